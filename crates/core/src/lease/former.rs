//! When former leaders were heard last, and until when they can have led.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use unum_proto::ids::NodeId;

/// What one node has heard of leaders since its life began, by its own clock, which began no later.
///
/// Invariant: `earlier` covers all that was followed of leaders before `term`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    /// The latest that is known to have begun.
    term: u64,
    /// When its leader was heard last.
    last: Option<Duration>,
    /// When leaders of earlier terms were heard last; the beginning of this life if never.
    earlier: Duration,
}

impl Heard {
    pub fn term(&self) -> u64 {
        self.term
    }

    /// A leader was heard. To be told before its message can be followed.
    pub fn leader(&mut self, term: u64, at: Duration) {
        self.begin(term);
        match term == self.term {
            true => self.last = self.last.max(Some(at)),
            false => self.earlier = self.earlier.max(at),
        }
    }

    /// A term has begun: this node votes, or leads, or follows in it.
    pub fn begin(&mut self, term: u64) {
        if term > self.term {
            self.earlier = self.earlier.max(self.last.take().unwrap_or_default());
            self.term = term;
        }
    }

    /// For the leader of this term, which this node follows: when earlier ones were heard last. None: a
    /// later term has begun.
    pub fn before(&self, term: u64) -> Option<Duration> {
        match term == self.term {
            true => Some(self.earlier),
            false => (term > self.term).then(|| self.earlier.max(self.last.unwrap_or_default())),
        }
    }

    /// The same for this node when it begins to lead. None also if it was a leader of this term already:
    /// it may have given leases.
    pub fn before_leading(&self, term: u64) -> Option<Duration> {
        self.before(term).filter(|_| term != self.term || self.last.is_none())
    }
}

/// What a new leader knows of when former ones were heard last, by its own clock.
#[derive(Clone, Debug, Default)]
pub struct Former {
    /// Each configuration that a majority was needed of for its election.
    voters: Vec<BTreeSet<NodeId>>,
    own: Duration,
    told: BTreeMap<NodeId, Duration>,
}

impl Former {
    /// `heard`: when the new leader itself heard former ones last. No voters: it is never known.
    pub fn new(own: NodeId, heard: Duration, voters: Vec<BTreeSet<NodeId>>) -> Self {
        Self { voters, own: heard, told: [(own, heard)].into() }
    }

    /// A node that follows the new leader heard former ones at `at` for the last time.
    pub fn told(&mut self, from: NodeId, at: Duration) {
        let known = self.told.entry(from).or_insert(at);
        *known = at.min(*known);
    }

    /// What a majority of each configuration, and the leader itself, heard of former leaders, it heard by
    /// then. None: too few have told.
    pub fn over(&self) -> Option<Duration> {
        let majority = |voters: &BTreeSet<NodeId>| {
            let told = voters.iter().filter_map(|voter| self.told.get(voter));
            let mut times: Vec<Duration> = told.copied().collect();
            times.sort_unstable();
            times.get(voters.len() / 2).copied()
        };
        let times: Option<Vec<Duration>> = self.voters.iter().map(majority).collect();
        Some(times?.into_iter().max()?.max(self.own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const D: NodeId = NodeId(4);
    const E: NodeId = NodeId(5);

    #[test]
    fn earlier_leaders_are_told_from_the_present_one() {
        let mut heard = Heard::default();
        assert_eq!(heard.before(1), Some(Duration::ZERO), "not since this life began");
        heard.leader(1, MS * 10);
        heard.leader(1, MS * 20);
        assert_eq!((heard.before(1), heard.before(2)), (Some(Duration::ZERO), Some(MS * 20)));
        heard.leader(3, MS * 30);
        heard.leader(3, MS * 40);
        assert_eq!((heard.before(3), heard.before(4)), (Some(MS * 20), Some(MS * 40)));
        assert_eq!(heard.before(2), None, "a later term has begun");
        assert_eq!(heard.before_leading(3), None, "somebody led in it");
        heard.begin(4);
        assert_eq!(heard.before_leading(4), Some(MS * 40));
    }

    #[test]
    fn a_message_that_crosses_an_election_is_told() {
        let mut heard = Heard::default();
        heard.leader(1, MS * 10);
        heard.begin(2);
        assert_eq!(heard.before(2), Some(MS * 10));
        heard.leader(1, MS * 12);
        assert_eq!(heard.before(2), Some(MS * 12), "it may have come before the vote");
        heard.leader(2, MS * 14);
        assert_eq!(heard.before(2), Some(MS * 12));
    }

    #[test]
    fn a_majority_must_tell() {
        let mut former = Former::new(A, MS * 10, vec![[A, B, C, D, E].into()]);
        former.told(B, MS * 40);
        former.told(NodeId(6), MS);
        assert_eq!(former.over(), None, "two of five, and one who has no vote");
        former.told(C, MS * 30);
        assert_eq!(former.over(), Some(MS * 40));
        former.told(D, MS * 20);
        assert_eq!(former.over(), Some(MS * 30), "the earliest three");
        former.told(B, MS * 50);
        former.told(D, MS * 60);
        assert_eq!(former.over(), Some(MS * 30), "what was told first holds");
    }

    #[test]
    fn the_leader_counts_itself() {
        let mut former = Former::new(A, MS * 90, vec![[A, B, C].into()]);
        former.told(B, MS * 10);
        former.told(C, MS * 20);
        assert_eq!(former.over(), Some(MS * 90));
        assert_eq!(Former::new(A, MS * 5, vec![[A].into()]).over(), Some(MS * 5));
        assert_eq!(Former::default().over(), None);
    }

    #[test]
    fn each_of_two_configurations_needs_a_majority() {
        let mut former = Former::new(A, MS * 10, vec![[A, B, C].into(), [C, D, E].into()]);
        former.told(B, MS * 20);
        former.told(C, MS * 30);
        assert_eq!(former.over(), None, "one of the second");
        former.told(D, MS * 40);
        assert_eq!(former.over(), Some(MS * 40));
    }
}
