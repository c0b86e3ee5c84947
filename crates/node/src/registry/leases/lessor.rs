//! The leader's side: whose marks it brings back, and what is stable by what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::AsyncRuntime;
use unum_core::lease::Lessor;
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::{Inner, Leases, Mutation, mark_from_wire, mark_to_wire};

pub(super) struct Leading {
    pub term: u64,
    pub lessor: Lessor,
    /// When the newest message was sent that a member has answered.
    pub answered: BTreeMap<NodeId, Duration>,
    /// Each configuration that a majority is needed of.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Who may get a lease.
    pub holders: BTreeSet<NodeId>,
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

impl<RT: AsyncRuntime> Leases<RT> {
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
    pub(super) fn answer_own(&self, inner: &mut Inner, now: Duration) {
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
