//! What must not overtake what.
//!
//! A command to the registry that changes the tree comes behind all changes that were made unheard before
//! it, and no change is made unheard while one is under way. Invariant: while anybody passes, nothing is
//! pending.

use tokio::time::{Instant, timeout_at};

use unum_core::tree::{Pending, gives_locks_back, locked_inode};
use unum_proto::tree::tree_command::Command;

use super::ChangeLog;
use super::drain::Trouble;
use crate::files::errno::FileError;

#[derive(Debug, Default)]
pub struct Gate {
    /// Commands under way.
    passing: u32,
    /// Those who wait for the log to be empty, or for something to be settled: no change is made unheard
    /// meanwhile.
    closed: u32,
}

impl Gate {
    pub fn is_passing(&self) -> bool {
        self.passing > 0
    }

    pub fn is_closed(&self) -> bool {
        self.closed > 0
    }
}

/// While it lives no change is made unheard.
pub struct Closed<'a> {
    log: &'a ChangeLog,
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.log.inner().gate.closed -= 1;
        self.log.moved.notify_waiters();
    }
}

/// The right to send a command to the registry that changes the tree.
pub struct Pass<'a> {
    log: &'a ChangeLog,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.log.inner().gate.passing -= 1;
        self.log.moved.notify_waiters();
    }
}

/// The right to send a command about locks.
pub struct Passage<'a> {
    /// None: something else is pending, and nothing is added to it.
    _pass: Option<Pass<'a>>,
    _closed: Option<Closed<'a>>,
}

impl ChangeLog {
    pub fn close(&self) -> Closed<'_> {
        self.inner().gate.closed += 1;
        Closed { log: self }
    }

    /// Returns when nothing is pending, and keeps it so while the pass lives.
    pub async fn pass(&self, deadline: Instant) -> Result<Pass<'_>, FileError> {
        if let Some(pass) = self.try_pass() {
            return Ok(pass);
        }
        let _closed = self.close();
        loop {
            self.drained(deadline).await?;
            if let Some(pass) = self.try_pass() {
                return Ok(pass);
            }
        }
    }

    /// The same for a command about the locks of an inode. One that only gives locks back does not wait for
    /// changes that cannot be drained for want of room, for others wait for it, unless the inode's locks are among
    /// what is pending.
    pub async fn pass_locks(
        &self,
        command: &Command,
        deadline: Instant,
    ) -> Result<Passage<'_>, FileError> {
        let passed = self.pass(deadline).await;
        match passed {
            Err(error) if gives_locks_back(command) && self.lacks_room() => {
                let closed = self.close();
                match self.has_locks_of(command) {
                    false => Ok(Passage { _pass: None, _closed: Some(closed) }),
                    true => Err(error),
                }
            }
            passed => Ok(Passage { _pass: Some(passed?), _closed: None }),
        }
    }

    fn lacks_room(&self) -> bool {
        self.inner().trouble.as_ref().is_some_and(Trouble::is_room)
    }

    /// Whether changes of the locks of the same inode are pending.
    fn has_locks_of(&self, command: &Command) -> bool {
        let ino = locked_inode(command);
        let about = |pending: &Pending| {
            let command = pending.command.command.as_ref();
            command.and_then(locked_inode).is_some_and(|other| Some(other) == ino)
        };
        self.parts
            .registry
            .read_local(|local| local.is_some_and(|local| local.pending().iter().any(about)))
    }

    fn try_pass(&self) -> Option<Pass<'_>> {
        let mut inner = self.inner();
        if self.parts.registry.read_local(|local| local.is_some()) {
            return None;
        }
        inner.gate.passing += 1;
        Some(Pass { log: self })
    }

    /// Returns when everything that was pending at the call is drained, or lost.
    pub async fn drained(&self, deadline: Instant) -> Result<(), FileError> {
        self.resume(deadline).await?;
        let registry = &self.parts.registry;
        let target = registry.read_local(|local| {
            let local = local?;
            Some((local.lease(), local.pending().back()?.number))
        });
        let Some((lease, last)) = target else { return Ok(()) };
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let waiting = registry.read_local(|local| {
                local.is_some_and(|local| {
                    let first = local.pending().front();
                    local.lease() == lease && first.is_some_and(|first| first.number <= last)
                })
            });
            if !waiting {
                return Ok(());
            }
            {
                let mut inner = self.inner();
                inner.demanded = true;
                if let Some(trouble) = inner.trouble.as_ref().filter(|trouble| trouble.is_room()) {
                    return Err(trouble.error());
                }
            }
            self.work.notify_one();
            timeout_at(deadline, moved).await.map_err(|_| self.late())?;
        }
    }
}
