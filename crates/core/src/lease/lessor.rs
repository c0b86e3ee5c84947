//! A leader that gives leases and counts until they are over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use unum_proto::ids::NodeId;

use super::{ADMISSION_LAG_MAX, DRIFT_MAX, Former, LEASE, Mark};

/// What the lessor knows of one holder.
#[derive(Clone, Debug)]
struct Seat {
    mark: Mark,
    confirmed: u64,
    /// It has a lease only from here on.
    admitted_at: u64,
    /// When the mark came, by the lessor's clock.
    came: Duration,
}

impl Seat {
    /// The holder counts from earlier on.
    fn until(&self) -> Duration {
        self.came + LEASE + DRIFT_MAX
    }
}

/// The leader's side, for one term.
#[derive(Clone, Debug)]
pub struct Lessor {
    /// By then all former leaders had lost their majorities.
    elected: Duration,
    former: Former,
    /// Members that may still hold a lease of a former leader.
    unheard: BTreeSet<NodeId>,
    seats: BTreeMap<NodeId, Seat>,
    /// Nobody gets a lease before it has confirmed this entry.
    floor: u64,
    stable: u64,
}

impl Lessor {
    /// After an election. `members`: who may hold a lease of a former leader. `last`: an entry that is at or
    /// behind all that former leaders have acknowledged.
    pub fn new(
        now: Duration,
        former: Former,
        members: impl IntoIterator<Item = NodeId>,
        last: u64,
    ) -> Self {
        Self {
            elected: now,
            former,
            unheard: members.into_iter().collect(),
            seats: BTreeMap::new(),
            floor: last,
            stable: 0,
        }
    }

    /// A node that follows this leader heard former ones at `at` for the last time, if ever. Returns whether
    /// their leases are thereby known to be over sooner.
    pub fn heard_former(&mut self, from: NodeId, at: Duration) -> bool {
        let before = self.opens();
        self.former.told(from, at);
        self.opens() < before
    }

    /// No lease of a former leader outlasts this.
    fn opens(&self) -> Duration {
        let over = self.former.over().map_or(self.elected, |at| at.min(self.elected));
        over + LEASE + DRIFT_MAX
    }

    /// A member answered a message of this term. One that sent no mark wants no lease, but may have one
    /// that an earlier life of it got.
    pub fn answered(&mut self, now: Duration, from: NodeId, mark: Option<Mark>, confirmed: u64) {
        let Some(mark) = mark else { return };
        self.expire(now);
        let admitted_at = self.floor.max(self.stable);
        match self.seats.get_mut(&from) {
            Some(seat) if seat.mark.life == mark.life => {
                seat.mark = mark;
                seat.came = now;
                seat.confirmed = seat.confirmed.max(confirmed);
            }
            // A message of an earlier life that came late.
            Some(seat) if seat.mark.life > mark.life => return,
            _ if confirmed.saturating_add(ADMISSION_LAG_MAX) < admitted_at => return,
            // What an earlier life was given ends before this seat does.
            _ => {
                self.seats.insert(from, Seat { mark, confirmed, admitted_at, came: now });
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
    /// the voters has answered; the lease ends so long after that at the latest.
    pub fn renewal(&self, now: Duration, to: NodeId, quorum_at: Duration) -> Option<Mark> {
        let seat = self.seats.get(&to).filter(|seat| seat.confirmed >= seat.admitted_at)?;
        let unproven = seat.came.saturating_sub(quorum_at);
        let at = seat.mark.at.checked_sub(unproven)?;
        (unproven < LEASE && now < seat.until()).then_some(Mark { at, ..seat.mark })
    }

    /// Whether somebody may still hold a lease of a former leader.
    pub fn awaits_former(&self, now: Duration) -> bool {
        !self.unheard.is_empty() && now < self.opens()
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
        let ends = self.seats.values().map(Seat::until);
        let opens = (!self.unheard.is_empty()).then(|| self.opens());
        ends.chain(opens).filter(|at| *at > now).min()
    }

    /// Who is waited for before this entry is stable.
    pub fn behind(&self, index: u64) -> impl Iterator<Item = NodeId> {
        self.seats.iter().filter(move |(_, seat)| seat.confirmed < index).map(|(node, _)| *node)
    }

    fn expire(&mut self, now: Duration) {
        self.seats.retain(|_, seat| now < seat.until());
    }
}

#[cfg(test)]
mod tests {
    use super::super::Holder;
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn mark(life: u64, at: Duration) -> Option<Mark> {
        Some(Mark { life, at })
    }

    /// A lessor that nobody holds an older lease of.
    fn fresh() -> Lessor {
        Lessor::new(Duration::ZERO, Former::default(), [], 10)
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
        let mut lessor = Lessor::new(Duration::ZERO, Former::default(), [], 3);
        lessor.answered(MS * 1005, A, Some(sent), 3);
        let back = lessor.renewal(MS * 1100, A, MS * 1010).unwrap();
        holder.renew(back);
        assert!(holder.holds(MS * 5 + LEASE - MS));
        assert!(!holder.holds(MS * 5 + LEASE));
        holder.renew(Mark { life: 8, at: MS * 500 });
        assert!(!holder.holds(MS * 5 + LEASE), "that mark was another life's");
    }

    #[test]
    fn a_lease_rests_on_when_a_majority_was_last_heard() {
        let mut lessor = fresh();
        lessor.answered(MS * 500, A, mark(1, MS * 2000), 10);
        let at = |quorum_at| lessor.renewal(MS * 600, A, quorum_at).map(|mark| mark.at);
        assert_eq!(at(MS * 510), Some(MS * 2000));
        assert_eq!(at(MS * 480), Some(MS * 1980), "nobody else may lead 20 ms less");
        lessor.answered(MS * 1000, A, mark(1, MS * 2500), 10);
        assert_eq!(lessor.renewal(MS * 1000, A, MS * 1000 - LEASE), None);
        lessor.answered(MS * 1000, B, mark(1, MS * 10), 10);
        assert_eq!(lessor.renewal(MS * 1000, B, MS * 980), None, "its clock had not begun");
    }

    #[test]
    fn a_new_leader_waits_for_the_leases_of_former_ones() {
        let mut lessor = Lessor::new(MS, Former::default(), [A, B], 10);
        let open = MS + LEASE + DRIFT_MAX;
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
    fn a_new_leader_waits_no_longer_than_former_ones_can_have_led() {
        let former = Former::new(A, MS * 1000, vec![[A, B, C].into()]);
        let mut lessor = Lessor::new(MS * 1500, former, [A, B, C], 10);
        let over = |at: Duration| at + LEASE + DRIFT_MAX;
        lessor.answered(MS * 1500, A, mark(1, MS), 11);
        lessor.answered(MS * 1510, B, mark(1, MS), 11);
        assert_eq!(lessor.next(MS * 1510), Some(over(MS * 1500)), "B did not say when");
        assert!(lessor.heard_former(B, MS * 1050));
        assert_eq!(lessor.next(MS * 1510), Some(over(MS * 1050)));
        assert_eq!(lessor.stable(over(MS * 1050) - MS, 11), 0);
        assert_eq!(lessor.stable(over(MS * 1050), 11), 11, "the lease that C may hold is over");
        assert!(!lessor.heard_former(B, MS * 1600), "what it heard since, it did not follow");
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
        let mut next = Lessor::new(MS, Former::default(), [A], 15);
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
