//! What the log changes, for whoever keeps copies of what the tree says.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use unum_core::tree::{Change, What};
use unum_proto::ids::Ino;

use super::Leases;
use super::stability::Due;
use crate::registry::shell::Core;

/// Changes that wait for the caches. Beyond it the caches are told to drop everything.
const FEED_MAX: usize = 1 << 16;

/// What the caches have not been told yet.
#[derive(Default)]
pub(super) struct FeedState {
    /// The caches follow.
    pub on: bool,
    /// There are no caches any more.
    pub unheeded: bool,
    pub changes: Vec<Change>,
    pub all: bool,
    /// The newest applied entry.
    pub index: u64,
    /// The caches are at work on what they were told.
    pub busy: bool,
    /// Since when the caches have something to do.
    pub since: Option<Duration>,
}

/// What was applied since the caches were told last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub changes: Vec<Change>,
    /// Anything may have changed.
    pub all: bool,
    pub index: u64,
}

impl<RT: AsyncRuntime> Leases<RT> {
    /// An entry is applied. Called before anybody can read what it did.
    /// `term`: of the leader that wrote it.
    pub fn applied(&self, index: u64, term: u64, changes: Vec<Change>) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        inner.obey(term, self.now());
        inner.feed.index = index;
        if inner.feed.on {
            let granted =
                |change: &Change| change.by == self.own && matches!(change.what, What::Covered(_));
            if changes.iter().any(granted) {
                inner.granted = index;
            }
            for change in &changes {
                match inode_of(change) {
                    Some(ino) => inner.unsettled.changed(index, ino),
                    None => inner.unsettled.all_changed(index),
                }
            }
            inner.feed.add(changes);
            if inner.feed.is_idle() {
                inner.holder.confirm(index);
            } else {
                inner.feed.since.get_or_insert(self.now());
                self.fed.notify_one();
            }
        }
        self.advance(inner);
    }

    /// The state was replaced as a whole.
    pub fn replaced(&self, index: u64, term: u64) {
        let mut inner = self.inner();
        inner.obey(term, self.now());
        inner.feed.index = index;
        if inner.feed.on {
            inner.unsettled.all_changed(index);
        }
        if inner.feed.on && !inner.feed.unheeded {
            inner.feed.all = true;
            inner.feed.since.get_or_insert(self.now());
            self.fed.notify_one();
        }
    }
}

/// The inode that a change is about. None: it may be any.
fn inode_of(change: &Change) -> Option<Ino> {
    match change.what {
        What::Inode(ino) | What::Name(ino, _) | What::Covered(ino) => Some(ino),
        What::Fenced => None,
    }
}

impl FeedState {
    pub fn add(&mut self, changes: Vec<Change>) {
        if self.unheeded {
            return;
        }
        if self.changes.len() + changes.len() > FEED_MAX {
            self.all = true;
            self.changes.clear();
        } else if !self.all {
            self.changes.extend(changes);
        }
    }

    pub fn is_idle(&self) -> bool {
        !self.busy && !self.all && self.changes.is_empty()
    }
}

/// The changes of the file tree as they are applied here, for whoever keeps copies. There is one
/// follower at a time.
pub struct Feed<RT: AsyncRuntime> {
    core: Arc<Core<RT>>,
}

impl<RT: AsyncRuntime> Feed<RT> {
    /// The caller's caches are empty: from now on this node wants a lease.
    pub fn begin(core: Arc<Core<RT>>) -> Self {
        {
            let mut inner = core.leases.inner();
            let index = inner.feed.index;
            inner.feed = FeedState { on: true, index, ..FeedState::default() };
            inner.unsettled.all_changed(index);
            inner.holder.begin(index);
            core.leases.due.send_replace(Due { index, confirmed: index });
        }
        Self { core }
    }

    /// What has changed since the last call. The caller drops it from its caches and then calls
    /// [`Feed::dropped`]; if that takes longer than a lease lasts, the lease ends.
    pub async fn next(&self) -> Changed {
        loop {
            let fed = self.core.leases.fed.notified();
            if let Some(changed) = self.take() {
                return changed;
            }
            fed.await;
        }
    }

    fn take(&self) -> Option<Changed> {
        let mut inner = self.core.leases.inner();
        let feed = &mut inner.feed;
        if feed.changes.is_empty() && !feed.all {
            return None;
        }
        feed.busy = true;
        let changes = std::mem::take(&mut feed.changes);
        Some(Changed { changes, all: std::mem::take(&mut feed.all), index: feed.index })
    }

    /// Nothing of what the entries up to this one changed is in a cache any more.
    pub fn dropped(&self, index: u64) {
        let leases = &self.core.leases;
        let mut inner = leases.inner();
        let inner = &mut *inner;
        inner.feed.busy = false;
        let idle = inner.feed.is_idle();
        inner.feed.since = (!idle).then(|| leases.now());
        inner.holder.confirm(if idle { inner.feed.index } else { index });
        if inner.leading.is_some() {
            leases.answer_own(inner, leases.now());
            leases.advance(inner);
        }
        leases.want(Due { index, confirmed: inner.holder.confirmed().unwrap_or(0) });
    }
}

impl<RT: AsyncRuntime> Drop for Feed<RT> {
    /// From now on nobody drops anything from any cache.
    fn drop(&mut self) {
        let mut inner = self.core.leases.inner();
        inner.feed.on &= inner.feed.unheeded;
        inner.holder.end();
    }
}
