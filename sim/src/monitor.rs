//! What must hold at every step, whatever happens.
//!
//! - At most one node leads in a term.
//! - Two nodes (or two lives of one) never apply different entries at one index, nor come to
//!   different histories by the same entries.
//! - A request has one reply, however often it is in the log: it ran at most once.
//! - A barrier never lets a reader see less than what was acknowledged before.
//! - The file tree is consistent in itself.

use std::collections::BTreeMap;

use prost::Message;
use unum_core::registry::Refused;
use unum_node::registry::AppliedEntry;
use unum_proto::ids::{Lane, NodeId, RequestId};
use unum_proto::registry::{Reply, reply};

/// Whether an encoded reply is the refusal of an epoch that was over.
fn is_fenced(reply: &[u8]) -> bool {
    match Reply::decode(reply).ok().and_then(|reply| reply.kind) {
        Some(reply::Kind::Refused(refusal)) => {
            matches!(Refused::from(&refusal), Refused::Fenced { .. })
        }
        _ => false,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Fact {
    term: u64,
    content: [u8; 32],
    history: [u8; 32],
    by: NodeId,
}

#[derive(Default)]
pub struct Monitor {
    leaders: BTreeMap<u64, NodeId>,
    applied: BTreeMap<u64, Fact>,
    /// The first place of a request in the log, and its reply.
    replies: BTreeMap<RequestId, (u64, bytes::Bytes)>,
    /// The highest index that was acknowledged to a client.
    acknowledged: u64,
    violations: Vec<String>,
    pub entries: u64,
    pub repeats: u64,
}

impl Monitor {
    pub fn violation(&self) -> Option<&String> {
        self.violations.first()
    }

    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    pub fn report(&mut self, violation: String) {
        self.violations.push(violation);
    }

    /// A node sends entries or heartbeats as the leader of a term.
    pub fn leads(&mut self, node: NodeId, term: u64) {
        let first = *self.leaders.entry(term).or_insert(node);
        if first != node {
            self.report(format!("two leaders in term {term}: {first} and {node}"));
        }
    }

    pub fn applied(&mut self, node: NodeId, entry: &AppliedEntry<'_>) {
        let index = entry.log_id.index;
        let fact = Fact {
            term: entry.log_id.leader_id.term,
            content: *blake3::hash(&entry.batch.encode_to_vec()).as_bytes(),
            history: entry.history.0,
            by: node,
        };
        let first = self.applied.entry(index).or_insert_with(|| fact.clone());
        let same = first.term == fact.term && first.content == fact.content;
        let (by, alike) = (first.by, first.history == fact.history);
        if !same {
            self.report(format!("entry {index} of {by} and of {node} are different"));
        } else if !alike {
            self.report(format!("{by} and {node} have diverged by entry {index}"));
        }
        self.entries += 1;
        self.ran(entry, index);
    }

    fn ran(&mut self, entry: &AppliedEntry<'_>, index: u64) {
        for (proposal, reply) in entry.batch.proposals.iter().zip(entry.replies) {
            let id = RequestId { lane: Lane(proposal.lane), seq: proposal.seq };
            let first = self.replies.entry(id).or_insert_with(|| (index, reply.clone()));
            if first.0 != index {
                self.repeats += 1;
            }
            if first.1 == *reply {
                continue;
            }
            // What was fenced did nothing, and its id was free for what came later.
            if index >= first.0 && is_fenced(&first.1) {
                *first = (index, reply.clone());
            } else if index > first.0 || !is_fenced(reply) {
                let at = first.0;
                self.report(format!(
                    "request {} of {} ran twice: at {at} and at {index}",
                    id.seq, id.lane
                ));
            }
        }
    }

    /// A client has got the reply to this request.
    pub fn acknowledged(&mut self, id: RequestId) {
        match self.replies.get(&id) {
            Some((index, _)) => self.acknowledged = self.acknowledged.max(*index),
            None => self.report(format!(
                "request {} of {} was acknowledged and applied nowhere",
                id.seq, id.lane
            )),
        }
    }

    /// What a request came to, if it was ever applied.
    pub fn reply(&self, id: RequestId) -> Option<bytes::Bytes> {
        self.replies.get(&id).map(|(_, reply)| reply.clone())
    }

    pub fn acknowledged_index(&self) -> u64 {
        self.acknowledged
    }

    /// A reader passed a barrier that it asked for when `before` was the last acknowledged index.
    pub fn passed_barrier(&mut self, node: NodeId, before: u64, applied: u64) {
        if applied < before {
            self.report(format!(
                "a barrier on {node} let a read see entry {applied}, older than {before}, which \
                 was acknowledged before"
            ));
        }
    }
}
