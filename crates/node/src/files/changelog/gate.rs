//! What must not overtake what.
//!
//! A command to the registry that changes the tree comes behind all changes that were made unheard before
//! it, and no change is made unheard while one is under way. Invariant: while anybody passes, nothing is
//! pending.

use tokio::time::{Instant, timeout_at};

use super::ChangeLog;
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
