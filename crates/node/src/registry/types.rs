//! The types of consensus, and their wire forms.
//!
//! A message of a peer that lacks a field or names an impossible membership is `Malformed`, never
//! a panic.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use openraft::vote::leader_id_std::CommittedLeaderId;
use openraft::{AsyncRuntime, RaftTypeConfig};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

/// The types of the registry's consensus on a given runtime.
pub struct Types<RT>(PhantomData<fn() -> RT>);

pub type Term = u64;
pub type LeaderId = leader_id_std::LeaderId<Term, NodeId>;
pub type Vote = openraft::Vote<LeaderId>;
pub type LogId = openraft::LogId<CommittedLeaderId<Term>>;
pub type Membership = openraft::Membership<NodeId, ()>;
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId<Term>, NodeId, ()>;
pub type Payload = openraft::EntryPayload<Encoded, NodeId, ()>;
pub type Entry = openraft::Entry<CommittedLeaderId<Term>, Payload>;
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId<Term>, NodeId, ()>;

/// An encoded `Batch`: what the log stores and the network carries, encoded once.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoded(pub Bytes);

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The encoded replies to a batch.
pub type Replies = Vec<Bytes>;

impl<RT: AsyncRuntime> RaftTypeConfig for Types<RT> {
    type D = Encoded;
    type R = Replies;
    type NodeId = NodeId;
    type Node = ();
    type Term = Term;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = RT;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

// By hand: a derive would ask the same of the runtime.
impl<RT> fmt::Debug for Types<RT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

impl<RT> Clone for Types<RT> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<RT> Copy for Types<RT> {}

impl<RT> Default for Types<RT> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<RT> PartialEq for Types<RT> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<RT> Eq for Types<RT> {}

impl<RT> PartialOrd for Types<RT> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<RT> Ord for Types<RT> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

/// A message that a correct peer or disk does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a consensus message without a sensible {0}")]
pub struct Malformed(pub &'static str);

pub fn log_id_to_wire(id: LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, index: id.index }
}

pub fn log_id_from_wire(id: wire::LogId) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(id.term), index: id.index }
}

pub fn vote_to_wire(vote: Vote) -> wire::Vote {
    let leader = vote.leader_id;
    wire::Vote { term: leader.term, node: leader.voted_for.0, committed: vote.committed }
}

pub fn vote_from_wire(vote: Option<wire::Vote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed("vote"))?;
    let leader_id = LeaderId { term: vote.term, voted_for: NodeId(vote.node) };
    Ok(Vote { leader_id, committed: vote.committed })
}

pub fn membership_to_wire(membership: &Membership) -> wire::Membership {
    let sets = membership.get_joint_config().iter();
    wire::Membership {
        voters: sets
            .map(|set| wire::VoterSet { nodes: set.iter().map(|id| id.0).collect() })
            .collect(),
        members: membership.nodes().map(|(id, _)| id.0).collect(),
    }
}

pub fn membership_from_wire(membership: &wire::Membership) -> Result<Membership, Malformed> {
    let voters: Vec<BTreeSet<NodeId>> = membership
        .voters
        .iter()
        .map(|set| set.nodes.iter().copied().map(NodeId).collect())
        .collect();
    if voters.is_empty() {
        return Ok(Membership::default());
    }
    let members: BTreeMap<NodeId, ()> =
        membership.members.iter().map(|id| (NodeId(*id), ())).collect();
    Membership::new(voters, members).map_err(|_| Malformed("membership"))
}

pub fn entry_to_wire(entry: &Entry) -> wire::Entry {
    let (batch, membership) = match &entry.payload {
        Payload::Blank => (None, None),
        Payload::Normal(batch) => (Some(batch.0.clone()), None),
        Payload::Membership(membership) => (None, Some(membership_to_wire(membership))),
    };
    wire::Entry { id: Some(log_id_to_wire(entry.log_id)), batch, membership }
}

pub fn entry_from_wire(entry: wire::Entry) -> Result<Entry, Malformed> {
    let log_id = log_id_from_wire(entry.id.ok_or(Malformed("entry id"))?);
    let payload = match (entry.batch, &entry.membership) {
        (None, None) => Payload::Blank,
        (Some(batch), None) => Payload::Normal(Encoded(batch)),
        (None, Some(membership)) => Payload::Membership(membership_from_wire(membership)?),
        (Some(_), Some(_)) => return Err(Malformed("entry payload")),
    };
    Ok(Entry { log_id, payload })
}

pub fn meta_to_wire(meta: &SnapshotMeta) -> wire::SnapshotHead {
    wire::SnapshotHead {
        last: meta.last_log_id.map(log_id_to_wire),
        membership_at: meta.last_membership.log_id().map(log_id_to_wire),
        membership: Some(membership_to_wire(meta.last_membership.membership())),
    }
}

pub fn meta_from_wire(head: &wire::SnapshotHead) -> Result<SnapshotMeta, Malformed> {
    let membership = head.membership.as_ref().ok_or(Malformed("membership"))?;
    let membership = membership_from_wire(membership)?;
    let at = head.membership_at.map(log_id_from_wire);
    Ok(SnapshotMeta {
        last_log_id: head.last.map(log_id_from_wire),
        last_membership: StoredMembership::new(at, membership),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        log_id_from_wire(wire::LogId { term, index })
    }

    #[test]
    fn entries_survive_the_wire() {
        let sets = vec![BTreeSet::from([NodeId(1), NodeId(2)]), BTreeSet::from([NodeId(2)])];
        let members: BTreeMap<NodeId, ()> = (1..4).map(|id| (NodeId(id), ())).collect();
        let payloads = [
            Payload::Blank,
            Payload::Normal(Encoded(Bytes::from_static(b"batch"))),
            Payload::Membership(Membership::new(sets, members).unwrap()),
        ];
        for payload in payloads {
            let entry = Entry { log_id: id(3, 9), payload };
            assert_eq!(entry_from_wire(entry_to_wire(&entry)), Ok(entry));
        }
    }

    #[test]
    fn a_voter_that_is_no_member_is_malformed() {
        let voters = vec![wire::VoterSet { nodes: vec![1, 2] }];
        let membership = wire::Membership { voters, members: vec![1] };
        assert!(membership_from_wire(&membership).is_err());
    }

    #[test]
    fn an_entry_with_two_payloads_is_malformed() {
        let entry = wire::Entry {
            id: Some(wire::LogId { term: 1, index: 1 }),
            batch: Some(Bytes::new()),
            membership: Some(wire::Membership { voters: vec![], members: vec![] }),
        };
        assert!(entry_from_wire(entry).is_err());
    }
}
