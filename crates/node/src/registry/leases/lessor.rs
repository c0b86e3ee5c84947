//! The leader's side: whose marks it brings back, and what is stable by what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::AsyncRuntime;
use unum_core::lease::{Former, Lessor};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::{Inner, Leases, Mutation, mark_from_wire, mark_to_wire};

/// For how long a planted flaw has leases given without proof.
const PLANTED_PROOF_AGE: Duration = Duration::from_millis(256);

pub(super) struct Leading {
    pub term: u64,
    pub lessor: Lessor,
    /// When the newest message was sent that a member has answered.
    pub answered: BTreeMap<NodeId, Duration>,
    pub voters: Voters,
    /// Who may get a lease.
    pub holders: BTreeSet<NodeId>,
}

/// Who votes, by an entry of the log.
pub struct Voters {
    pub term: u64,
    pub at: u64,
    /// Each set that a majority is needed of.
    pub sets: Vec<BTreeSet<NodeId>>,
}

/// What a leader's lessor begins with.
pub struct Lead {
    pub term: u64,
    pub voters: Voters,
    /// The voters are committed.
    pub settled: bool,
    /// The members by what is committed: the next leader knows of them, and waits for them.
    pub holders: BTreeSet<NodeId>,
    /// The end of the log.
    pub last: u64,
}

impl<RT: AsyncRuntime> Leases<RT> {
    /// To be called often while this node leads. `members`: who may hold a lease of a former leader.
    pub fn lead(&self, lead: Lead, members: impl FnOnce() -> Vec<NodeId>) {
        let now = self.now();
        let mut inner = self.inner();
        let inner = &mut *inner;
        if lead.term < inner.heard.term() {
            // What consensus told is old.
            return;
        }
        inner.obey(lead.term, now);
        match &mut inner.leading {
            Some(leading) => {
                leading.configured(lead.voters);
                leading.holders = lead.holders;
            }
            None => {
                let waited_for = match self.mutation {
                    Mutation::ForgetFormerLeases => Vec::new(),
                    _ => members(),
                };
                let heard = inner.heard.before_leading(lead.term);
                let lessor = Lessor::new(now, self.former(&lead, heard), waited_for, lead.last);
                inner.leading = Some(Leading {
                    term: lead.term,
                    lessor,
                    answered: BTreeMap::new(),
                    voters: lead.voters,
                    holders: lead.holders,
                });
            }
        }
        self.answer_own(inner, now);
        self.advance(inner);
    }

    /// What a new leader knows of former ones.
    fn former(&self, lead: &Lead, heard: Option<Duration>) -> Former {
        match heard {
            // Otherwise its voters may not be those of its election.
            Some(heard) if lead.settled && lead.voters.term < lead.term => {
                let (own, heard) = match self.mutation {
                    // Its own word does not count either.
                    Mutation::TrustOne => (NodeId(0), Duration::ZERO),
                    _ => (self.own, heard),
                };
                Former::new(own, heard, lead.voters.sets.clone())
            }
            _ => Former::default(),
        }
    }

    /// An entry with other voters is about to be sent by the leader of this term.
    pub fn configured(&self, term: u64, at: u64, sets: &[BTreeSet<NodeId>]) {
        let mut inner = self.inner();
        if let Some(leading) = inner.leading.as_mut().filter(|leading| leading.term == term) {
            leading.configured(Voters { term, at, sets: sets.to_vec() });
        }
    }

    pub fn follow(&self) {
        let now = self.now();
        self.inner().resign_lead(now);
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
        let quorum_at = leading.quorum_at(self.own, now, self.mutation)?;
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
        if let Some(ago) = reply.former_ns {
            let at = now.saturating_sub(Duration::from_nanos(ago));
            if leading.heard_former(from, at, self.mutation) {
                // Who waits for the end of a former leader's leases waits too long.
                self.stable.stir();
            }
        }
        self.answer_own(inner, now);
        self.advance(inner);
    }

    /// The leader is a holder like all others; what it hears from a majority is its own renewal.
    pub(super) fn answer_own(&self, inner: &mut Inner, now: Duration) {
        let Some(mark) = inner.mark(now) else { return };
        let confirmed = inner.holder.confirmed().unwrap_or(0);
        let Some(leading) = &mut inner.leading else { return };
        let quorum_at = leading.quorum_at(self.own, now, self.mutation);
        leading.lessor.answered(now, self.own, Some(mark), confirmed);
        let renewal = quorum_at.and_then(|at| leading.lessor.renewal(now, self.own, at));
        if let Some(mark) = renewal {
            inner.holder.renew(mark);
        }
    }

    pub(super) fn confirmed(&self, from: NodeId, life: u64, index: u64) {
        let mut inner = self.inner();
        if let Some(leading) = &mut inner.leading {
            leading.lessor.confirmed(from, life, index);
        }
        self.advance(&mut inner);
    }

    /// On the leader: makes known what is stable.
    pub(super) fn advance(&self, inner: &mut Inner) {
        let Some(leading) = &mut inner.leading else { return };
        let stable = leading.lessor.stable(self.now(), inner.feed.index);
        self.settled(inner, stable);
    }
}

impl Leading {
    /// The newest voters count. Entries may be sent again.
    fn configured(&mut self, voters: Voters) {
        if voters.at >= self.voters.at {
            self.voters = voters;
        }
    }

    fn heard_former(&mut self, from: NodeId, at: Duration, mutation: Mutation) -> bool {
        if mutation == Mutation::TrustOne {
            let voters = self.voters.sets.iter().flatten();
            return voters
                .fold(false, |sooner, voter| sooner | self.lessor.heard_former(*voter, at));
        }
        self.lessor.heard_former(from, at)
    }

    /// When messages were sent that a majority of each configuration has answered: what shows that
    /// this node leads, and what leases are given by. None: there are none.
    fn quorum_at(&self, own: NodeId, now: Duration, mutation: Mutation) -> Option<Duration> {
        let quorum_at = self.answered_by_majority(own, now);
        let fresh = quorum_at.is_some_and(|at| now < at + PLANTED_PROOF_AGE);
        match mutation {
            Mutation::RenewWithoutQuorum => Some(now),
            Mutation::OutliveProof if fresh => Some(now),
            _ => quorum_at,
        }
    }

    fn answered_by_majority(&self, own: NodeId, now: Duration) -> Option<Duration> {
        let at = |node: &NodeId| match *node == own {
            true => Some(now),
            false => self.answered.get(node).copied(),
        };
        let majority_at = |voters: &BTreeSet<NodeId>| {
            let mut times: Vec<Duration> = voters.iter().filter_map(at).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            times.get(voters.len() / 2).copied()
        };
        let times: Option<Vec<Duration>> = self.voters.sets.iter().map(majority_at).collect();
        times?.into_iter().min()
    }
}
