//! epoll with descriptors that know what they wait for.
//!
//! Invariants: tokens are never used twice, so an event of a descriptor that was closed meanwhile finds
//! nobody; a descriptor without interest is not in the set at all, because epoll reports a hang-up even
//! to those who asked for nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll;
pub use rustix::event::epoll::EventFlags;

/// Events taken in one round.
const EVENTS_MAX: usize = 64;

pub struct Poll {
    set: Rc<OwnedFd>,
    next: u64,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { set: Rc::new(set), next: 1 })
    }

    pub fn watch<T: AsFd>(&mut self, source: T) -> Watched<T> {
        self.next += 1;
        Watched { source, set: Rc::clone(&self.set), token: self.next, wanted: None }
    }

    /// Tokens with something to do, at the latest after `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<Vec<u64>> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let timeout = rustix::event::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match epoll::wait(&*self.set, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) => Ok(events.iter().map(|e| e.data.u64()).collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }
}

pub struct Watched<T: AsFd> {
    source: T,
    set: Rc<OwnedFd>,
    token: u64,
    wanted: Option<EventFlags>,
}

impl<T: AsFd> Watched<T> {
    pub fn token(&self) -> u64 {
        self.token
    }

    pub fn get(&self) -> &T {
        &self.source
    }

    /// Waits for these; `None` for nothing at all, `Some(empty)` for errors and hang-ups alone.
    pub fn want(&mut self, flags: Option<EventFlags>) -> io::Result<()> {
        if flags == self.wanted {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(self.token);
        match (self.wanted, flags) {
            (None, Some(flags)) => epoll::add(&*self.set, &self.source, data, flags)?,
            (Some(_), Some(flags)) => epoll::modify(&*self.set, &self.source, data, flags)?,
            (_, None) => epoll::delete(&*self.set, &self.source)?,
        }
        self.wanted = flags;
        Ok(())
    }
}

impl<T: AsFd> AsFd for Watched<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        // A child that has not yet exec'ed may hold a copy, which would keep the entry alive.
        if self.wanted.is_some() {
            let _ = epoll::delete(&*self.set, &self.source);
        }
    }
}
