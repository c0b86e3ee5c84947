//! What this node keeps of other machines' files, under a lease of each home.
//!
//! Kept are attributes, names (also that there is none), links' targets, xattrs and warrants of files that were opened
//! for reading; and that the kernel's pages of a file, or its listing of a directory, are good. The home
//! recalls all of an inode at once when anything about it changes.
//!
//! Invariants:
//! - nothing is shown after a recall of it was confirmed, nor after the lease;
//! - an answer that was on its way while its inode was recalled is used once and not kept: a [`Ticket`], taken before
//!   the question, tells.
//!
//! The kernel is trusted with attributes alone, for no longer than the lease lasts, and only as answer to
//! GETATTR: it has the inode then, and ignores an answer that is older than an invalidation. It asks for
//! them before each read of a page, and drops the pages if size or mtime differ.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::time::Instant;
use unum_proto::host::{Attributes, RenewReply};
use unum_proto::ids::NodeId;

use super::table::Target;

/// Inodes that are kept of all homes; then all is dropped.
const KNOWN_MAX: usize = 1 << 17;
/// Names that are kept of one directory; then they are dropped.
const NAMES_MAX: usize = 1 << 14;
/// Extended attributes that are kept of one inode.
const XATTRS_MAX: usize = 16;
/// Warrants that are kept of one file.
const WARRANTS_MAX: usize = 8;
/// Recalls whose inodes are remembered, of one home. An answer that is older is not kept.
const RECENT_MAX: usize = 4096;
/// What was recalled is not kept again for so long: two that change it in turn would only take it from each other.
const RESTLESS: Duration = Duration::from_millis(100);
/// A lease that nobody used for so long is not prolonged.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// The kernel trusts attributes for no longer than this, if the lease lasts longer.
pub const TTL_MAX: Duration = Duration::from_millis(512);
/// Attributes are not given away for less.
const TTL_MIN: Duration = Duration::from_millis(10);

/// With whose rights a file was opened, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opener {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub flags: u32,
}

/// When a question was asked, and under which lease. The lease 0: the answer is not to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub lease: u64,
    recalls: u64,
}

impl Ticket {
    pub const NONE: Ticket = Ticket { lease: 0, recalls: 0 };
}

/// One inode.
#[derive(Default)]
pub struct Known {
    lease: u64,
    pub attributes: Option<Attributes>,
    names: HashMap<Bytes, Option<Bytes>>,
    pub xattrs: HashMap<Bytes, Result<Bytes, Errno>>,
    pub link: Option<Bytes>,
    /// What the kernel has of the content is good.
    pages: bool,
    warrants: Vec<(Opener, Bytes)>,
}

#[derive(Default)]
struct Home {
    lease: u64,
    until: Option<Instant>,
    root_allowed: bool,
    /// Somebody prolongs the lease.
    kept: bool,
    used: Option<Instant>,
    recalls: u64,
    /// The last recalls: their numbers, inodes, and when it was.
    recent: VecDeque<(u64, Bytes, Instant)>,
}

#[derive(Default)]
struct State {
    homes: HashMap<NodeId, Home>,
    known: HashMap<Target, Known>,
    held: HashMap<(NodeId, Bytes), Held>,
    /// Warrants to be given back, once for each open.
    released: Vec<(NodeId, Bytes)>,
}

/// A warrant in use.
#[derive(Default)]
struct Held {
    /// Open files here, and one more while it is kept for the next open.
    users: usize,
    /// How often the home was asked to open it.
    opens: usize,
}

#[derive(Default)]
pub struct Memory {
    /// Never held across an await.
    state: Mutex<State>,
}

impl Home {
    fn is_live(&self) -> bool {
        self.lease != 0 && self.until.is_some_and(|until| until > Instant::now())
    }

    /// The last recall of the inode since `recalls`, or that it is not known.
    fn recalled_since(&self, recalls: u64, handle: &Bytes) -> bool {
        let oldest = self.recent.front().map_or(self.recalls, |(number, ..)| number - 1);
        let unknown = recalls < oldest && recalls < self.recalls;
        unknown || self.recent.iter().any(|(number, of, _)| *number > recalls && of == handle)
    }

    fn is_restless(&self, handle: &Bytes) -> bool {
        let lately = self.recent.iter().rev().take_while(|(_, _, when)| when.elapsed() < RESTLESS);
        lately.into_iter().any(|(_, of, _)| of == handle)
    }
}

impl Memory {
    /// To be taken before a question is asked that a user of this uid has about the inode. Also tells whether
    /// somebody has to begin to prolong the lease.
    pub fn ticket(&self, about: &Target, uid: u32) -> (Ticket, bool) {
        let mut state = self.state();
        let home = state.homes.entry(about.node).or_default();
        home.used = Some(Instant::now());
        let begins = !std::mem::replace(&mut home.kept, true);
        let may = home.is_live() && (uid != 0 || home.root_allowed);
        if !may || home.is_restless(&about.handle) {
            return (Ticket::NONE, begins);
        }
        (Ticket { lease: home.lease, recalls: home.recalls }, begins)
    }

    /// What is kept of the inode, for a user of this uid, with how long the kernel may trust it.
    pub fn look<T>(
        &self,
        about: &Target,
        uid: u32,
        look: impl FnOnce(&Known, Duration) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state();
        let State { homes, known, .. } = &mut *state;
        let home = homes.get_mut(&about.node).filter(|home| home.is_live())?;
        if uid == 0 && !home.root_allowed {
            return None;
        }
        let known = known.get(about).filter(|known| known.lease == home.lease)?;
        home.used = Some(Instant::now());
        let left = home.until?.saturating_duration_since(Instant::now()).min(TTL_MAX);
        look(known, if left < TTL_MIN { Duration::ZERO } else { left })
    }

    /// Keeps something of the inode that was granted, unless it was recalled since the ticket was taken.
    pub fn keep(&self, ticket: Ticket, about: &Target, keep: impl FnOnce(&mut Known)) {
        let mut state = self.state();
        if let Some(known) = state.admit(ticket, about) {
            keep(known);
        }
    }

    /// A file was opened, or a directory for listing. Whether the kernel may keep its pages from before; None: it
    /// may keep none.
    pub fn opened(&self, ticket: Ticket, about: &Target) -> Option<bool> {
        let mut state = self.state();
        state.admit(ticket, about).map(|known| std::mem::replace(&mut known.pages, true))
    }

    /// What home recalled: everything about these, or everything.
    pub fn recall(&self, home: NodeId, handles: &[Bytes], all: bool) {
        let mut state = self.state();
        let now = Instant::now();
        if let Some(home) = state.homes.get_mut(&home) {
            for handle in handles {
                home.recalls += 1;
                home.recent.push_back((home.recalls, handle.clone(), now));
            }
            if all {
                home.recalls += 1;
                home.recent.clear();
            }
            while home.recent.len() > RECENT_MAX {
                home.recent.pop_front();
            }
        }
        match all {
            true => state.drop_home(home),
            false => handles.iter().for_each(|handle| {
                state.drop_known(&Target { node: home, handle: handle.clone() });
            }),
        }
    }

    /// What a node's own change touched: it need not wait for the recall.
    pub fn changed(&self, about: &Target) {
        self.state().drop_known(about);
    }

    /// The lease to ask the home to prolong. None: nobody uses it any more.
    pub fn to_renew(&self, home: NodeId) -> Option<u64> {
        let mut state = self.state();
        let entry = state.homes.get_mut(&home)?;
        if entry.used.is_some_and(|used| used.elapsed() < IDLE_MAX) {
            return Some(if entry.is_live() { entry.lease } else { 0 });
        }
        entry.kept = false;
        entry.lease = 0;
        state.drop_home(home);
        None
    }

    /// The home's answer to what was asked at `asked`. A home gives another lease only when what it granted under the
    /// former one was recalled, or that is over.
    pub fn renewed(&self, home: NodeId, asked: Instant, reply: &RenewReply) {
        let mut state = self.state();
        let Some(entry) = state.homes.get_mut(&home) else { return };
        let same = entry.lease == reply.lease && entry.is_live();
        entry.until = Some(asked + Duration::from_millis(reply.term_ms.into()));
        entry.root_allowed = reply.root_allowed;
        if !same {
            // Nothing is granted under a new lease yet.
            entry.lease = reply.lease;
            entry.recalls += 1;
            entry.recent.clear();
            state.drop_home(home);
        }
    }

    /// The home opened it: for an open file here.
    pub fn warrant_opened(&self, home: NodeId, warrant: &Bytes) {
        let mut state = self.state();
        let held = state.held.entry((home, warrant.clone())).or_default();
        held.users += 1;
        held.opens += 1;
    }

    /// A warrant for one more open file here, without asking the home.
    pub fn warrant(&self, about: &Target, opener: &Opener) -> Option<Bytes> {
        let warrant = self.look(about, opener.uid, |known, _| known.warrant(opener))?;
        let mut state = self.state();
        // It may have been given back meanwhile.
        state.held.get_mut(&(about.node, warrant.clone()))?.users += 1;
        Some(warrant)
    }

    /// Keeps a warrant for the next open by the same.
    pub fn keep_warrant(&self, ticket: Ticket, about: &Target, opener: Opener, warrant: &Bytes) {
        let mut state = self.state();
        let Some(known) = state.admit(ticket, about) else { return };
        if known.warrants.len() >= WARRANTS_MAX || known.warrant(&opener).is_some() {
            return;
        }
        known.warrants.push((opener, warrant.clone()));
        state.held.entry((about.node, warrant.clone())).or_default().users += 1;
    }

    /// An open file here was closed.
    pub fn warrant_closed(&self, home: NodeId, warrant: Bytes) {
        self.state().let_go(home, warrant);
    }

    /// Warrants to be given back.
    pub fn take_released(&self) -> Vec<(NodeId, Bytes)> {
        std::mem::take(&mut self.state().released)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn admit(&mut self, ticket: Ticket, about: &Target) -> Option<&mut Known> {
        let home = self.homes.get(&about.node).filter(|home| home.is_live())?;
        let fits = ticket.lease != 0 && ticket.lease == home.lease;
        if !fits || home.recalled_since(ticket.recalls, &about.handle) {
            return None;
        }
        if self.known.len() >= KNOWN_MAX {
            let all: Vec<_> = self.known.keys().cloned().collect();
            all.iter().for_each(|target| self.drop_known(target));
        }
        let known = self.known.entry(about.clone()).or_default();
        if known.lease != ticket.lease {
            let warrants = std::mem::take(&mut known.warrants);
            *known = Known { lease: ticket.lease, ..Known::default() };
            warrants.into_iter().for_each(|(_, warrant)| self.let_go(about.node, warrant));
        }
        self.known.get_mut(about)
    }

    fn drop_known(&mut self, target: &Target) {
        if let Some(known) = self.known.remove(target) {
            known.warrants.into_iter().for_each(|(_, warrant)| self.let_go(target.node, warrant));
        }
    }

    /// One user less. With the last one it is given back, once for each time that the home opened it: of what an
    /// earlier daemon opened, that is once for each close.
    fn let_go(&mut self, home: NodeId, warrant: Bytes) {
        let key = (home, warrant);
        let Some(held) = self.held.get_mut(&key) else { return self.released.push(key) };
        held.users = held.users.saturating_sub(1);
        if held.users == 0 {
            let opens = held.opens;
            self.held.remove(&key);
            self.released.extend(std::iter::repeat_n(key, opens));
        }
    }

    fn drop_home(&mut self, home: NodeId) {
        let of_home: Vec<_> = self.known.keys().filter(|of| of.node == home).cloned().collect();
        of_home.iter().for_each(|target| self.drop_known(target));
    }
}

impl Known {
    /// The handle of what has this name here; the inner None: nothing has.
    pub fn name(&self, name: &[u8]) -> Option<Option<Bytes>> {
        self.names.get(name).cloned()
    }

    pub fn keep_name(&mut self, name: Bytes, handle: Option<Bytes>) {
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(name, handle);
    }

    pub fn keep_xattr(&mut self, name: Bytes, value: Result<Bytes, Errno>) {
        if self.xattrs.len() < XATTRS_MAX {
            self.xattrs.insert(name, value);
        }
    }

    fn warrant(&self, opener: &Opener) -> Option<Bytes> {
        let found = self.warrants.iter().find(|(by, _)| by == opener);
        found.map(|(_, warrant)| warrant.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: NodeId = NodeId(1);

    fn target(handle: &'static str) -> Target {
        Target { node: HOME, handle: Bytes::from_static(handle.as_bytes()) }
    }

    fn lease(lease: u64, root_allowed: bool) -> RenewReply {
        RenewReply { lease, term_ms: 2000, root_allowed }
    }

    fn live() -> Memory {
        let memory = Memory::default();
        assert_eq!(memory.ticket(&target("a"), 1), (Ticket::NONE, true), "no lease yet");
        memory.renewed(HOME, Instant::now(), &lease(7, false));
        memory
    }

    fn keep(memory: &Memory, ticket: Ticket, handle: &'static str) {
        memory.keep(ticket, &target(handle), |known| {
            known.attributes = Some(Attributes { size: 5, ..Attributes::default() });
        });
    }

    fn knows(memory: &Memory, handle: &'static str) -> bool {
        let look = |known: &Known, _| known.attributes;
        memory.look(&target(handle), 1, look).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_recalled_on_its_way_is_not_kept() {
        let memory = live();
        let ticket = |handle| memory.ticket(&target(handle), 1).0;
        keep(&memory, ticket("a"), "a");
        keep(&memory, ticket("b"), "b");
        assert!(knows(&memory, "a") && knows(&memory, "b"));
        let (a, b) = (ticket("a"), ticket("b"));
        memory.recall(HOME, &[target("a").handle], false);
        assert!(!knows(&memory, "a") && knows(&memory, "b"));
        keep(&memory, a, "a");
        keep(&memory, b, "b");
        assert!(!knows(&memory, "a") && knows(&memory, "b"));
        // For a moment it is not even asked for.
        assert_eq!(ticket("a"), Ticket::NONE);
        tokio::time::advance(RESTLESS * 2).await;
        keep(&memory, ticket("a"), "a");
        assert!(knows(&memory, "a"));
        let b = ticket("b");
        memory.recall(HOME, &[], true);
        keep(&memory, b, "b");
        assert!(!knows(&memory, "a") && !knows(&memory, "b"));
        // More recalls than are remembered.
        let b = ticket("b");
        for _ in 0..=RECENT_MAX {
            memory.recall(HOME, &[target("x").handle], false);
        }
        keep(&memory, b, "b");
        assert!(!knows(&memory, "b"));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_shown_after_the_lease_nor_under_another() {
        let memory = live();
        let ticket = memory.ticket(&target("a"), 1).0;
        keep(&memory, ticket, "a");
        tokio::time::advance(Duration::from_millis(1500)).await;
        let ttl = memory.look(&target("a"), 1, |_, ttl| Some(ttl)).unwrap();
        assert!(ttl <= Duration::from_millis(500), "{ttl:?}");
        memory.renewed(HOME, Instant::now(), &lease(7, false));
        assert!(knows(&memory, "a"));
        tokio::time::advance(Duration::from_millis(2001)).await;
        assert!(!knows(&memory, "a"));
        assert_eq!(memory.to_renew(HOME), Some(0));
        memory.renewed(HOME, Instant::now(), &lease(8, false));
        assert!(!knows(&memory, "a"));
        keep(&memory, ticket, "a");
        assert!(!knows(&memory, "a"), "the ticket is of the former lease");
        tokio::time::advance(IDLE_MAX).await;
        assert_eq!(memory.to_renew(HOME), None);
    }

    #[tokio::test(start_paused = true)]
    async fn root_sees_nothing_of_a_home_where_it_is_nobody() {
        let memory = live();
        keep(&memory, memory.ticket(&target("a"), 1).0, "a");
        assert_eq!(memory.ticket(&target("a"), 0).0, Ticket::NONE);
        assert!(memory.look(&target("a"), 0, |_, _| Some(())).is_none());
        memory.renewed(HOME, Instant::now(), &lease(7, true));
        assert!(memory.look(&target("a"), 0, |_, _| Some(())).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn pages_are_good_from_the_first_open_to_the_recall_and_warrants_go_back() {
        let memory = live();
        let ticket = || memory.ticket(&target("a"), 1).0;
        assert_eq!(memory.opened(Ticket::NONE, &target("a")), None);
        assert_eq!(memory.opened(ticket(), &target("a")), Some(false));
        assert_eq!(memory.opened(ticket(), &target("a")), Some(true));
        let opener = Opener { uid: 1, gid: 1, groups: vec![], flags: 0 };
        let warrant = Bytes::from_static(b"t");
        memory.warrant_opened(HOME, &warrant);
        memory.keep_warrant(ticket(), &target("a"), opener.clone(), &warrant);
        let other = Opener { groups: vec![4], ..opener.clone() };
        let found = |opener: &Opener| memory.warrant(&target("a"), opener);
        assert_eq!((found(&opener), found(&other)), (Some(warrant.clone()), None));
        memory.recall(HOME, &[target("a").handle], false);
        memory.warrant_closed(HOME, warrant.clone());
        assert_eq!(memory.take_released(), [], "it is open still");
        memory.warrant_closed(HOME, warrant.clone());
        assert_eq!(memory.take_released(), [(HOME, warrant.clone())]);
        // One that an earlier daemon opened.
        memory.warrant_closed(HOME, warrant.clone());
        assert_eq!(memory.take_released(), [(HOME, warrant)]);
        tokio::time::advance(RESTLESS * 2).await;
        assert_eq!(memory.opened(ticket(), &target("a")), Some(false));
    }
}
