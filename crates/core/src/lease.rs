//! Read leases: who may answer from its own copy of the registry, and how long a change waits for those
//! who may.
//!
//! A node that holds a lease reads without asking anybody, and lets its kernel cache what it read. So a
//! change may be acknowledged only when no holder can show what was before it: when it is *stable*. Each
//! holder *confirms* an entry of the log when it has applied it and dropped what its caches held of it;
//! an entry is stable when all holders have confirmed it. Whoever sees a change that is not stable yet
//! waits until it is, or a reader elsewhere, later, might still see what was before. (Leases for
//! reading at replicas: Moraru, Andersen, Kaminsky, "Paxos Quorum Leases", SoCC 2014; holding back what is
//! not everywhere yet: Terrace, Freedman, "Object Storage on CRAQ", USENIX ATC 2009.)
//!
//! The leader is the *lessor*. The messages are those of consensus: each answer of a follower carries a
//! [`Mark`], a reading of its own clock; the leader's next message brings the mark back and so renews the
//! lease for [`LEASE`] from that reading. The lessor counts from when the mark came, so it is never
//! the first to hold the lease for ended. Only clocks' speeds are compared, never their readings.
//!
//! Why it is safe:
//! - *A leader that is none any more* renews only marks while a majority answered it within the last
//!   [`QUORUM_AGE_MAX`], so what it gives ends by `QUORUM_AGE_MAX + LEASE` after the election of the next.
//! - *A new leader* holds nothing stable until every member that may hold a lease of a former leader has
//!   answered it, and so has one of its own, or until that time has gone by.
//! - *A newcomer*, or a node that was away, gets a lease only once it has confirmed whatever was stable
//!   when it was admitted.
//!
//! Left out: a node that is removed is no member that a new leader waits for. For as long as its lease
//! lasts it may show what was before.
//!
//! Times are durations since any fixed moment of the node's own monotonic clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use unum_proto::ids::NodeId;

/// How long a lease lasts from the reading of the holder's clock that renews it.
pub const LEASE: Duration = Duration::from_millis(1024);
/// What the lessor adds, for clocks that do not go at one speed.
pub const DRIFT_MAX: Duration = Duration::from_millis(64);
/// A leader that no majority answered for longer renews no lease.
pub const QUORUM_AGE_MAX: Duration = Duration::from_millis(256);
/// Entries that a node without a lease may lag behind and still be waited for while it catches up. Whoever
/// is further behind comes nearer first.
pub const ADMISSION_LAG_MAX: u64 = 1024;

/// A reading of a holder's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which life of the holder's caches: a new daemon knows nothing of what its predecessor's held.
    /// Later lives have larger numbers.
    pub life: u64,
    pub at: Duration,
}

/// The holder's side: what one node knows of its own lease.
#[derive(Clone, Debug)]
pub struct Holder {
    life: u64,
    /// None: it wants no lease.
    confirmed: Option<u64>,
    until: Option<Duration>,
    resigned: bool,
}

impl Holder {
    pub fn new(life: u64) -> Self {
        Self { life, confirmed: None, until: None, resigned: false }
    }

    pub fn life(&self) -> u64 {
        self.life
    }

    /// From now on a lease is wanted. What was cached before is gone, and what is read from now on
    /// has `applied`.
    pub fn begin(&mut self, applied: u64) {
        self.confirmed.get_or_insert(applied);
    }

    /// No lease is wanted any more, and what is cached is not kept true.
    pub fn end(&mut self) {
        if !self.resigned {
            (self.confirmed, self.until) = (None, None);
        }
    }

    /// The lease is given back: no cache holds anything, and nothing is shown from now on. Whoever
    /// confirms all that may come is waited for by nobody, neither by this leader nor by the next.
    pub fn resign(&mut self) {
        (self.confirmed, self.until, self.resigned) = (Some(u64::MAX), None, true);
    }

    /// All entries up to this one are applied, and no cache holds what was before them.
    pub fn confirm(&mut self, index: u64) {
        if let Some(confirmed) = &mut self.confirmed {
            *confirmed = index.max(*confirmed);
        }
    }

    /// How far this node has confirmed. None: it wants no lease.
    pub fn confirmed(&self) -> Option<u64> {
        self.confirmed
    }

    /// For the answer to a message of the leader.
    pub fn mark(&self, now: Duration) -> Option<Mark> {
        self.confirmed.map(|_| Mark { life: self.life, at: now })
    }

    /// The leader brought a mark back.
    pub fn renew(&mut self, mark: Mark) {
        if mark.life == self.life && self.confirmed.is_some() && !self.resigned {
            self.until = self.until.max(Some(mark.at + LEASE));
        }
    }

    /// When the lease ends unless it is renewed. What the caches hold must be gone by then.
    pub fn until(&self) -> Option<Duration> {
        self.until
    }

    /// Whether what was read up to `now` may be shown.
    pub fn holds(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// What the lessor knows of one holder.
#[derive(Clone, Debug)]
struct Seat {
    mark: Mark,
    confirmed: u64,
    /// It has a lease only from here on.
    admitted_at: u64,
    /// By the lessor's clock.
    until: Duration,
}

/// The leader's side, for one term.
#[derive(Clone, Debug)]
pub struct Lessor {
    /// No lease of a former leader outlasts this.
    open_at: Duration,
    /// Members that may still hold one.
    unheard: BTreeSet<NodeId>,
    seats: BTreeMap<NodeId, Seat>,
    /// Nobody gets a lease before it has confirmed this entry.
    floor: u64,
    stable: u64,
}

impl Lessor {
    /// `members`: who may hold a lease of a former leader. `last`: an entry that is at or behind all that
    /// former leaders have acknowledged.
    pub fn new(now: Duration, members: impl IntoIterator<Item = NodeId>, last: u64) -> Self {
        Self {
            open_at: now + QUORUM_AGE_MAX + LEASE + DRIFT_MAX,
            unheard: members.into_iter().collect(),
            seats: BTreeMap::new(),
            floor: last,
            stable: 0,
        }
    }

    /// A member answered a message of this term. One that sent no mark wants no lease, but may have one
    /// that an earlier life of it got.
    pub fn answered(&mut self, now: Duration, from: NodeId, mark: Option<Mark>, confirmed: u64) {
        let Some(mark) = mark else { return };
        self.expire(now);
        let until = now + LEASE + DRIFT_MAX;
        let admitted_at = self.floor.max(self.stable);
        match self.seats.get_mut(&from) {
            Some(seat) if seat.mark.life == mark.life => {
                seat.mark = mark;
                seat.until = until;
                seat.confirmed = seat.confirmed.max(confirmed);
            }
            // A message of an earlier life that came late.
            Some(seat) if seat.mark.life > mark.life => return,
            _ if confirmed.saturating_add(ADMISSION_LAG_MAX) < admitted_at => return,
            // What an earlier life was given ends before this seat does.
            _ => {
                self.seats.insert(from, Seat { mark, confirmed, admitted_at, until });
            }
        }
        self.unheard.remove(&from);
    }

    /// A holder has confirmed the entries up to this one.
    pub fn confirmed(&mut self, from: NodeId, life: u64, index: u64) {
        if let Some(seat) = self.seats.get_mut(&from).filter(|seat| seat.mark.life == life) {
            seat.confirmed = seat.confirmed.max(index);
        }
    }

    /// The mark to bring back to a member. `quorum_at`: when messages were sent that a majority of
    /// the voters has answered.
    pub fn renewal(&self, now: Duration, to: NodeId, quorum_at: Duration) -> Option<Mark> {
        let seat = self.seats.get(&to)?;
        let leads = now <= quorum_at + QUORUM_AGE_MAX;
        (leads && now < seat.until && seat.confirmed >= seat.admitted_at).then_some(seat.mark)
    }

    /// Whether somebody may still hold a lease of a former leader.
    pub fn awaits_former(&self, now: Duration) -> bool {
        !self.unheard.is_empty() && now < self.open_at
    }

    /// Up to where the log is stable. `committed`: an entry that is committed, and with it all before.
    pub fn stable(&mut self, now: Duration, committed: u64) -> u64 {
        self.expire(now);
        if !self.awaits_former(now) {
            let confirmed = self.seats.values().map(|seat| seat.confirmed).min();
            self.stable = self.stable.max(confirmed.unwrap_or(u64::MAX).min(committed));
        }
        self.stable
    }

    /// When time alone may make more of the log stable.
    pub fn next(&self, now: Duration) -> Option<Duration> {
        let ends = self.seats.values().map(|seat| seat.until);
        let opens = (!self.unheard.is_empty()).then_some(self.open_at);
        ends.chain(opens).filter(|at| *at > now).min()
    }

    /// Who is waited for before this entry is stable.
    pub fn behind(&self, index: u64) -> impl Iterator<Item = NodeId> {
        self.seats.iter().filter(move |(_, seat)| seat.confirmed < index).map(|(node, _)| *node)
    }

    fn expire(&mut self, now: Duration) {
        self.seats.retain(|_, seat| now < seat.until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn mark(life: u64, at: Duration) -> Option<Mark> {
        Some(Mark { life, at })
    }

    /// A lessor that nobody holds an older lease of.
    fn fresh() -> Lessor {
        Lessor::new(Duration::ZERO, [], 10)
    }

    #[test]
    fn a_change_waits_for_every_holder_and_no_longer_than_its_lease() {
        let mut lessor = fresh();
        lessor.answered(MS, A, mark(1, MS * 70), 12);
        lessor.answered(MS, B, mark(1, MS * 90), 12);
        assert_eq!(lessor.stable(MS, 15), 12);
        lessor.confirmed(A, 1, 15);
        assert_eq!(lessor.stable(MS * 2, 15), 12);
        assert_eq!(lessor.behind(15).collect::<Vec<_>>(), [B]);

        let ends = MS + LEASE + DRIFT_MAX;
        assert_eq!(lessor.next(MS * 2), Some(ends));
        lessor.answered(MS * 500, A, mark(1, MS * 600), 15);
        assert_eq!(lessor.stable(ends - MS, 15), 12);
        assert_eq!(lessor.stable(ends, 15), 15, "B's lease is over");
        assert_eq!(lessor.renewal(ends, B, ends), None);
    }

    #[test]
    fn nothing_is_stable_that_is_not_committed() {
        let mut lessor = fresh();
        assert_eq!(lessor.stable(MS, 11), 11, "nobody reads anything");
        lessor.answered(MS, A, mark(1, MS), 20);
        assert_eq!(lessor.stable(MS, 13), 13);
    }

    #[test]
    fn the_holder_counts_from_its_own_reading() {
        let mut holder = Holder::new(7);
        assert_eq!(holder.mark(MS), None, "no lease is wanted yet");
        holder.begin(3);
        let sent = holder.mark(MS * 5).unwrap();
        let mut lessor = Lessor::new(Duration::ZERO, [], 3);
        lessor.answered(MS * 1005, A, Some(sent), 3);
        let back = lessor.renewal(MS * 1100, A, MS * 1000).unwrap();
        holder.renew(back);
        assert!(holder.holds(MS * 5 + LEASE - MS));
        assert!(!holder.holds(MS * 5 + LEASE));
        holder.renew(Mark { life: 8, at: MS * 500 });
        assert!(!holder.holds(MS * 5 + LEASE), "that mark was another life's");
    }

    #[test]
    fn a_leader_that_nobody_answers_renews_nothing() {
        let mut lessor = fresh();
        lessor.answered(MS, A, mark(1, MS), 10);
        assert!(lessor.renewal(MS + QUORUM_AGE_MAX, A, MS).is_some());
        assert_eq!(lessor.renewal(MS * 2 + QUORUM_AGE_MAX, A, MS), None);
    }

    #[test]
    fn a_new_leader_waits_for_the_leases_of_former_ones() {
        let mut lessor = Lessor::new(MS, [A, B], 10);
        let open = MS + QUORUM_AGE_MAX + LEASE + DRIFT_MAX;
        assert_eq!(lessor.next(MS), Some(open));
        lessor.answered(MS * 3, A, mark(1, MS), 11);
        assert_eq!(lessor.stable(MS * 3, 11), 0);
        lessor.answered(MS * 4, B, None, 11);
        assert_eq!(lessor.stable(MS * 4, 11), 0, "an earlier life of B may hold one");
        assert_eq!(lessor.clone().stable(open, 11), 11);
        lessor.answered(MS * 5, B, mark(1, MS), 11);
        assert_eq!(lessor.stable(MS * 5, 11), 11, "all have answered");
    }

    #[test]
    fn whoever_comes_late_catches_up_before_it_holds_a_lease() {
        let mut lessor = fresh();
        assert_eq!(lessor.stable(MS, 5000), 5000);
        lessor.answered(MS, A, mark(1, MS), 5000 - ADMISSION_LAG_MAX - 1);
        assert_eq!(lessor.stable(MS, 5001), 5001, "it is too far behind to be waited for");
        lessor.answered(MS, A, mark(1, MS), 4999);
        assert_eq!(lessor.stable(MS, 5010), 5001, "it is waited for from now on");
        assert_eq!(lessor.renewal(MS, A, MS), None);
        lessor.confirmed(A, 1, 5000);
        assert_eq!(lessor.renewal(MS, A, MS), None, "5001 was stable when it was admitted");
        lessor.confirmed(A, 1, 5001);
        assert!(lessor.renewal(MS, A, MS).is_some());
    }

    #[test]
    fn nobody_waits_for_who_has_resigned() {
        let mut holder = Holder::new(1);
        holder.begin(10);
        holder.renew(holder.mark(MS).unwrap());
        assert!(holder.holds(MS * 2));
        holder.resign();
        assert!(!holder.holds(MS * 2));
        holder.renew(holder.mark(MS * 3).unwrap());
        assert!(!holder.holds(MS * 4), "a renewal that comes late gives nothing back");

        let mut present = fresh();
        present.answered(MS, A, mark(1, MS), 12);
        present.confirmed(A, 1, holder.confirmed().unwrap());
        assert_eq!(present.stable(MS, 15), 15);
        let mut next = Lessor::new(MS, [A], 15);
        next.answered(MS * 2, A, holder.mark(MS * 2), holder.confirmed().unwrap());
        assert_eq!(next.stable(MS * 2, 16), 16);
    }

    #[test]
    fn a_new_life_is_admitted_anew() {
        let mut lessor = fresh();
        lessor.answered(MS, A, mark(1, MS), 100);
        assert_eq!(lessor.stable(MS, 100), 100);
        lessor.answered(MS * 2, A, mark(2, MS * 2), 60);
        assert_eq!(lessor.renewal(MS * 2, A, MS * 2), None, "it has not seen what is stable");
        lessor.confirmed(A, 1, 200);
        lessor.answered(MS * 3, A, mark(1, MS), 200);
        assert_eq!(lessor.stable(MS * 3, 200), 100, "the former life speaks for nobody");
        lessor.confirmed(A, 2, 200);
        assert!(lessor.renewal(MS * 3, A, MS * 3).is_some());
        assert_eq!(lessor.stable(MS * 3, 200), 200);
    }
}
