//! Read leases on this node, as holder and as lessor. What they mean is in `unum_core::lease`; here are
//! the clock, the log's changes, and who waits for what.
//!
//! The file service follows the changes ([`Feed`]), drops from its caches what they touch, and says
//! so; that is what this node confirms.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use openraft::{AsyncRuntime, Instant};
use tokio::sync::{Notify, Semaphore, watch};
use unum_core::lease::{Holder, LEASE, Lessor, Mark};
use unum_core::tree::{Change, What};
use unum_proto::ids::{Ino, NodeId};
use unum_proto::registry as wire;

use super::limits::{FORWARD_TIMEOUT, RETRY_PAUSE};
use super::mutation::Mutation;
use super::shell::Core;
use super::transport::{Answer, Call};
use super::unsettled::Unsettled;
use super::watermark::Watermark;

/// How long a node that goes waits for the leader to hear of it.
const RESIGN_TIMEOUT: Duration = Duration::from_millis(200);
/// Questions to the leader whether an entry is stable that are on their way at once.
const QUESTIONS_IN_FLIGHT_MAX: usize = 8;
/// Changes that wait for the caches. Beyond it the caches are told to drop everything.
const FEED_MAX: usize = 1 << 16;

/// What a moment may be off when it is told by a clock of another speed.
const ROUNDING: Duration = Duration::from_nanos(1);

/// Both sides of the leases of one node.
pub struct Leases<RT: AsyncRuntime> {
    own: NodeId,
    started: RT::Instant,
    /// Of this node's clock; 1 but in simulations.
    speed: f64,
    mutation: Mutation,
    inner: Mutex<Inner>,
    /// Up to where the log is known to be stable.
    stable: Watermark,
    due: watch::Sender<Due>,
    fed: Notify,
}

/// What the leader is to be told, and asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    /// The newest entry that somebody here wants stable.
    index: u64,
    /// What this node confirms.
    confirmed: u64,
}

struct Inner {
    holder: Holder,
    feed: FeedState,
    unsettled: Unsettled,
    leading: Option<Leading>,
}

/// What the caches have not been told yet.
#[derive(Default)]
struct FeedState {
    /// The caches follow.
    on: bool,
    /// There are no caches any more.
    unheeded: bool,
    changes: Vec<Change>,
    all: bool,
    /// The newest applied entry.
    index: u64,
    /// The caches are at work on what they were told.
    busy: bool,
    /// Since when the caches have something to do.
    since: Option<Duration>,
}

struct Leading {
    term: u64,
    lessor: Lessor,
    /// When the newest message was sent that a member has answered.
    answered: BTreeMap<NodeId, Duration>,
    /// Each configuration that a majority is needed of.
    voters: Vec<BTreeSet<NodeId>>,
    /// Who may get a lease.
    holders: BTreeSet<NodeId>,
}

/// What a leader's lessor begins with.
pub struct Lead {
    pub term: u64,
    pub voters: Vec<BTreeSet<NodeId>>,
    /// The members by what is committed: the next leader knows of them, and waits for them.
    pub holders: BTreeSet<NodeId>,
    /// The end of the log.
    pub last: u64,
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
    pub fn new(own: NodeId, mutation: Mutation, speed: f64, life: u64, applied: u64) -> Self {
        let feed = FeedState { index: applied, ..FeedState::default() };
        let inner = Inner {
            holder: Holder::new(life),
            feed,
            unsettled: Unsettled::default(),
            leading: None,
        };
        Self {
            own,
            started: RT::Instant::now(),
            speed,
            mutation,
            inner: Mutex::new(inner),
            stable: Watermark::default(),
            due: watch::Sender::default(),
            fed: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed().mul_f64(self.speed)
    }

    /// When this clock has gone for so long, never earlier.
    fn instant(&self, at: Duration) -> RT::Instant {
        self.started + at.div_f64(self.speed) + ROUNDING
    }

    // The holder.

    /// Whether what was read before this call may be shown without asking anybody.
    pub fn holds(&self) -> bool {
        let inner = self.inner();
        inner.holder.holds(self.now())
    }

    /// When the lease ends unless it is renewed.
    pub fn until(&self) -> Option<RT::Instant> {
        self.inner().holder.until().map(|until| self.instant(until))
    }

    pub fn renewed(&self, mark: wire::LeaseMark) {
        let mark = Mark { life: mark.life, at: Duration::from_nanos(mark.at_ns) };
        self.inner().holder.renew(mark);
    }

    /// For the answer to a message of the leader.
    pub fn mark(&self) -> Option<(wire::LeaseMark, u64)> {
        let (now, inner) = (self.now(), self.inner());
        let mark = inner.mark(now, now)?;
        Some((mark_to_wire(mark), inner.holder.confirmed()?))
    }

    /// An entry is applied. Called before anybody can read what it did.
    /// `term`: of the leader that wrote it.
    pub fn applied(&self, index: u64, term: u64, changes: Vec<Change>) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        inner.obey(term);
        inner.feed.index = index;
        if inner.feed.on {
            for change in &changes {
                inner.unsettled.changed(index, inode_of(change));
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
        inner.obey(term);
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

    // The lessor.

    /// To be called often while this node leads. `members`: who may hold a lease of a former leader.
    pub fn lead(&self, lead: Lead, members: impl FnOnce() -> Vec<NodeId>) {
        let now = self.now();
        let mut inner = self.inner();
        let inner = &mut *inner;
        match &mut inner.leading {
            Some(leading) if leading.term == lead.term => {
                (leading.voters, leading.holders) = (lead.voters, lead.holders);
            }
            leading => {
                let waited_for = match self.mutation {
                    Mutation::ForgetFormerLeases => Vec::new(),
                    _ => members(),
                };
                let lessor = Lessor::new(now, waited_for, lead.last);
                let answered = BTreeMap::new();
                let (term, voters, holders) = (lead.term, lead.voters, lead.holders);
                *leading = Some(Leading { term, lessor, answered, voters, holders });
            }
        }
        self.answer_own(inner, now);
        self.advance(inner);
    }

    pub fn follow(&self) {
        self.inner().leading = None;
    }

    pub fn awaits_former(&self) -> bool {
        let now = self.now();
        let inner = self.inner();
        inner.leading.as_ref().is_some_and(|leading| leading.lessor.awaits_former(now))
    }

    /// What a message of this term to a member brings back.
    pub fn renewal(&self, term: u64, to: NodeId) -> Option<wire::LeaseMark> {
        let now = self.now();
        let inner = self.inner();
        let leading = inner.leading.as_ref().filter(|leading| leading.term == term)?;
        let quorum_at = leading.quorum_at(self.own, now, self.mutation);
        leading.lessor.renewal(now, to, quorum_at).map(mark_to_wire)
    }

    /// When a message is sent whose answer will be told.
    pub fn sending(&self) -> Duration {
        self.now()
    }

    /// A member has followed a message of this term.
    pub fn answered(&self, term: u64, from: NodeId, sent: Duration, reply: &wire::AppendReply) {
        let now = self.now();
        let mut inner = self.inner();
        let inner = &mut *inner;
        let Some(leading) = inner.leading.as_mut().filter(|leading| leading.term == term) else {
            return;
        };
        let at = leading.answered.entry(from).or_default();
        *at = sent.max(*at);
        if leading.holders.contains(&from) {
            leading.lessor.answered(now, from, reply.mark.map(mark_from_wire), reply.confirmed);
        }
        self.answer_own(inner, now);
        self.advance(inner);
    }

    /// The leader is a holder like all others; what it hears from a majority is its own renewal.
    fn answer_own(&self, inner: &mut Inner, now: Duration) {
        let Some(leading) = &inner.leading else { return };
        let quorum_at = leading.quorum_at(self.own, now, self.mutation);
        let Some(mark) = inner.mark(now, quorum_at) else { return };
        let confirmed = inner.holder.confirmed().unwrap_or(0);
        let Some(leading) = &mut inner.leading else { return };
        leading.lessor.answered(now, self.own, Some(mark), confirmed);
        if let Some(mark) = leading.lessor.renewal(now, self.own, quorum_at) {
            inner.holder.renew(mark);
        }
    }

    fn confirmed(&self, from: NodeId, life: u64, index: u64) {
        let mut inner = self.inner();
        if let Some(leading) = &mut inner.leading {
            leading.lessor.confirmed(from, life, index);
        }
        self.advance(&mut inner);
    }

    /// On the leader: makes known what is stable.
    fn advance(&self, inner: &mut Inner) {
        let Some(leading) = &mut inner.leading else { return };
        let stable = leading.lessor.stable(self.now(), inner.feed.index);
        self.settled(inner, stable);
    }

    fn settled(&self, inner: &mut Inner, stable: u64) {
        if self.stable.raise(stable) {
            inner.unsettled.settled(stable);
        }
    }
}

impl Inner {
    /// A node whose caches do not keep up holds up the changes of all others: it shall have no lease.
    fn mark(&self, now: Duration, at: Duration) -> Option<Mark> {
        let keeps_up = self.feed.since.is_none_or(|since| now < since + LEASE);
        self.holder.mark(at).filter(|_| keeps_up)
    }
}

impl Inner {
    /// What is applied here was written by the leader of this term. If that is a later one, this
    /// node leads no more, and what it knows of holders says nothing about these entries.
    fn obey(&mut self, term: u64) {
        self.leading.take_if(|leading| leading.term < term);
    }
}

fn inode_of(change: &Change) -> Ino {
    match change.what {
        What::Inode(ino) | What::Name(ino, _) => ino,
    }
}

impl FeedState {
    fn add(&mut self, changes: Vec<Change>) {
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

    fn is_idle(&self) -> bool {
        !self.busy && !self.all && self.changes.is_empty()
    }
}

impl Leading {
    /// When messages were sent that a majority of each configuration has answered.
    fn quorum_at(&self, own: NodeId, now: Duration, mutation: Mutation) -> Duration {
        if mutation == Mutation::RenewWithoutQuorum {
            return now;
        }
        let at = |node: &NodeId| match *node == own {
            true => now,
            false => self.answered.get(node).copied().unwrap_or_default(),
        };
        let majority_at = |voters: &BTreeSet<NodeId>| {
            let mut times: Vec<Duration> = voters.iter().map(at).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            times.get(voters.len() / 2).copied().unwrap_or_default()
        };
        self.voters.iter().map(majority_at).min().unwrap_or_default()
    }
}

fn mark_to_wire(mark: Mark) -> wire::LeaseMark {
    wire::LeaseMark { life: mark.life, at_ns: mark.at.as_nanos() as u64 }
}

fn mark_from_wire(mark: wire::LeaseMark) -> Mark {
    Mark { life: mark.life, at: Duration::from_nanos(mark.at_ns) }
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

impl<RT: AsyncRuntime> Leases<RT> {
    /// Gives the lease back; the caller's caches are empty and it shows nothing from now on.
    pub fn resign(&self) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        inner.holder.resign();
        let index = inner.feed.index;
        inner.feed = FeedState { on: true, unheeded: true, index, ..FeedState::default() };
        let now = self.now();
        self.answer_own(inner, now);
        if let Some(leading) = &mut inner.leading {
            leading.lessor.confirmed(self.own, inner.holder.life(), u64::MAX);
        }
        self.advance(inner);
    }

    fn want(&self, wanted: Due) {
        self.due.send_if_modified(|due| {
            let before = *due;
            due.index = wanted.index.max(due.index);
            due.confirmed = wanted.confirmed.max(due.confirmed);
            *due != before
        });
    }

    /// Whether the leader will be asked as soon as the caches have dropped what they are at.
    fn will_ask(&self, index: u64) -> bool {
        let inner = self.inner();
        !inner.feed.is_idle() && inner.holder.confirmed().is_some_and(|confirmed| confirmed < index)
    }

    /// The entry that must be stable before what is applied here of these inodes may be shown; 0 if
    /// it may be shown.
    pub fn unsettled(&self, inodes: &[Ino]) -> u64 {
        if self.mutation == Mutation::ShowUnsettled {
            return 0;
        }
        let newest = self.inner().unsettled.newest_of(inodes);
        if newest <= self.stable.get() { 0 } else { newest }
    }

    /// Returns when the log is known to be stable up to this entry.
    pub async fn settle(&self, index: u64) {
        loop {
            let risen = pin!(self.stable.risen());
            if self.stable.get() >= index {
                return;
            }
            if !self.will_ask(index) {
                self.want(Due { index, confirmed: 0 });
            }
            // A question that went unanswered is asked again.
            let again = pin!(RT::sleep(FORWARD_TIMEOUT));
            if let Either::Left(_) = select(again, risen).await {
                self.due.send_modify(|due| due.index = index.max(due.index));
            }
        }
    }
}

/// Tells the leader what this node has confirmed and asks what is stable, whenever something is
/// wanted.
pub async fn ask_for_stability<RT: AsyncRuntime>(core: Arc<Core<RT>>) {
    let mut due = core.leases.due.subscribe();
    let in_flight = Arc::new(Semaphore::new(QUESTIONS_IN_FLIGHT_MAX));
    while due.changed().await.is_ok() {
        let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
        let index = due.borrow_and_update().index;
        let core = core.clone();
        // It is not joined: it ends by itself, bounded by its time-out.
        drop(RT::spawn(async move {
            ask_until_stable(&core, index).await;
            drop(permit);
        }));
    }
}

async fn ask_until_stable<RT: AsyncRuntime>(core: &Core<RT>, index: u64) {
    let give_up = RT::Instant::now() + FORWARD_TIMEOUT;
    while core.leases.stable.get() < index && RT::Instant::now() < give_up {
        let stable = match core.leader() {
            Some(leader) if leader == core.own => stable_here(core, index).await,
            Some(leader) => stable_there(core, leader, index).await,
            None => None,
        };
        match stable {
            Some(stable) => {
                let mut inner = core.leases.inner();
                core.leases.settled(&mut inner, stable);
            }
            None => RT::sleep(RETRY_PAUSE).await,
        }
    }
}

/// Gives this node's lease back and tells the leader.
pub async fn resign<RT: AsyncRuntime>(core: &Core<RT>) {
    core.leases.resign();
    if let Some(leader) = core.leader().filter(|leader| *leader != core.own) {
        // A leader that does not hear of it waits for the lease's end.
        let _ = RT::timeout(RESIGN_TIMEOUT, stable_there(core, leader, 0)).await;
    }
}

async fn stable_there<RT: AsyncRuntime>(
    core: &Core<RT>,
    leader: NodeId,
    index: u64,
) -> Option<u64> {
    let request = {
        let inner = core.leases.inner();
        let mark = inner.holder.mark(Duration::ZERO);
        wire::StableRequest {
            life: mark.map_or(0, |mark| mark.life),
            confirmed: inner.holder.confirmed().unwrap_or(0),
            index,
        }
    };
    match core.ask_leader(leader, Call::Stable(request)).await {
        Ok(Answer::Stable(reply)) if reply.outcome() == wire::ShellOutcome::Ok => Some(reply.index),
        Ok(_) | Err(_) => None,
    }
}

/// Answers another node's question.
pub async fn answer<RT: AsyncRuntime>(
    core: &Core<RT>,
    from: NodeId,
    request: wire::StableRequest,
) -> wire::StableReply {
    core.leases.confirmed(from, request.life, request.confirmed);
    let mut reply = wire::StableReply::default();
    match stable_here(core, request.index).await {
        Some(index) => {
            reply.index = index;
            reply.set_outcome(wire::ShellOutcome::Ok);
        }
        None => reply.set_outcome(wire::ShellOutcome::NotLeader),
    }
    reply
}

/// On the leader: waits for an entry to be stable, but not for long. None: this node does not lead.
async fn stable_here<RT: AsyncRuntime>(core: &Core<RT>, index: u64) -> Option<u64> {
    let give_up = RT::Instant::now() + FORWARD_TIMEOUT / 2;
    loop {
        if core.leader() != Some(core.own) {
            return None;
        }
        let risen = pin!(core.leases.stable.risen());
        let next = core.leases.look(index)?;
        let known = core.leases.stable.get();
        if known >= index || RT::Instant::now() >= give_up {
            return Some(known);
        }
        let until = next.map_or(give_up, |next| next.min(give_up));
        select(risen, pin!(RT::sleep_until(until))).await;
    }
}

impl<RT: AsyncRuntime> Leases<RT> {
    /// Looks whether time has made more of the log stable, and tells when it may do so next. None:
    /// this node is no lessor.
    fn look(&self, index: u64) -> Option<Option<RT::Instant>> {
        let mut inner = self.inner();
        self.advance(&mut inner);
        let leading = inner.leading.as_ref()?;
        let behind: Vec<NodeId> = leading.lessor.behind(index).collect();
        if !behind.is_empty() {
            tracing::trace!(index, ?behind, "an entry is not stable yet");
        }
        Some(leading.lessor.next(self.now()).map(|next| self.instant(next)))
    }
}
