//! The state as a stream of bounded records, and back.
//!
//! Invariant: restoring the records of a state gives a state that answers every later command
//! alike; records are no larger than the largest value or tree record. A record that makes no
//! sense is an error, never a panic: snapshots come from disks and peers.

use bytes::Bytes;
use unum_proto::ids::{Epoch, Lane, NodeId};
use unum_proto::registry::snapshot_record::Kind;
use unum_proto::registry::{
    CertificateIssued, CountersRecord, IdentityRecord, LaneRecord, NodeRecord, NodeState,
    PidBlockRecord, ReplyRecord, Role, SnapshotRecord, TokenRecord, ValueRecord,
};

use super::replies::LaneReplies;
use super::{Certificate, History, Identity, Node, State, Token, Value};
use crate::time::Time;
use crate::tree::TreeLoader;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotFault {
    #[error("a snapshot record of an unknown kind: it was written by a newer version")]
    Unknown,
    #[error("a snapshot record that makes no sense: {0}")]
    Senseless(&'static str),
    #[error(transparent)]
    Tree(#[from] crate::tree::SnapshotError),
}

/// The records of a state, in the order in which they are restored.
pub fn records(state: &State) -> impl Iterator<Item = SnapshotRecord> + '_ {
    std::iter::once(Kind::Counters(counters(state)))
        .chain(state.identity.iter().map(|identity| Kind::Identity(identity_record(identity))))
        .chain(state.nodes.iter().map(|node| Kind::Node(node_record(node))))
        .chain(state.tokens.iter().map(|(hash, token)| Kind::Token(token_record(hash, token))))
        .chain(
            state.pids.owners.iter().map(|(block, node)| {
                Kind::PidBlock(PidBlockRecord { block: *block, node: node.0 })
            }),
        )
        .chain(state.values.map.iter().map(|(key, value)| Kind::Value(value_record(key, value))))
        .chain(state.tree.records().map(Kind::Tree))
        .chain(state.replies.lanes.iter().flat_map(|(id, lane)| lane_records(*id, lane)))
        .map(SnapshotRecord::from)
}

/// Builds a state from records, one at a time.
#[derive(Debug, Default)]
pub struct Restore {
    state: State,
    tree: TreeLoader,
}

impl Restore {
    pub fn add(&mut self, record: SnapshotRecord) -> Result<(), SnapshotFault> {
        match record.kind.ok_or(SnapshotFault::Unknown)? {
            Kind::Head(_) => Err(SnapshotFault::Senseless("a second head")),
            Kind::Counters(record) => self.add_counters(record),
            Kind::Identity(record) => self.add_identity(record),
            Kind::Node(record) => self.add_node(record),
            Kind::Token(record) => self.add_token(record),
            Kind::PidBlock(record) => {
                self.state.pids.owners.insert(record.block, NodeId(record.node));
                Ok(())
            }
            Kind::Value(record) => {
                let value = Value { bytes: own(&record.value), version: record.version };
                self.state.values.map.insert(own(&record.key), value);
                Ok(())
            }
            Kind::Lane(record) => {
                self.add_lane(&record);
                Ok(())
            }
            Kind::Reply(record) => self.add_reply(record),
            Kind::Tree(record) => self.tree.absorb(&record).map_err(SnapshotFault::from),
        }
    }

    pub fn finish(mut self) -> Result<State, SnapshotFault> {
        self.state.tree = self.tree.finish()?;
        Ok(self.state)
    }

    fn add_counters(&mut self, record: CountersRecord) -> Result<(), SnapshotFault> {
        self.state.nodes.node_next = NodeId(record.node_next);
        self.state.values.version_last = record.version_last;
        self.state.replies.use_last = record.use_last;
        self.state.pids.block_next = record.block_next;
        self.state.pids.freed = record.blocks_freed.into_iter().collect();
        self.state.time = Time(record.time_ns);
        let history = record.history.as_ref().try_into();
        self.state.history =
            History(history.map_err(|_| SnapshotFault::Senseless("a history of another size"))?);
        Ok(())
    }

    fn add_identity(&mut self, record: IdentityRecord) -> Result<(), SnapshotFault> {
        let cluster = record.cluster.as_ref().try_into();
        let cluster =
            cluster.map_err(|_| SnapshotFault::Senseless("a cluster id of another size"))?;
        self.state.identity = Some(Identity {
            cluster,
            name: record.name,
            authorities_pem: record.authorities_pem,
            founded: Time(record.founded_ns),
        });
        Ok(())
    }

    fn add_node(&mut self, record: NodeRecord) -> Result<(), SnapshotFault> {
        let id = NodeId(record.id);
        let node = Node {
            id,
            role: record.role(),
            state: record.state(),
            name: record.name,
            epoch: Epoch(record.epoch),
            description: record.description.unwrap_or_default(),
            certificate: record.certificate.map(|certificate| Certificate {
                serial: own(&certificate.serial),
                fingerprint: own(&certificate.fingerprint),
                not_after: Time(certificate.not_after_ns),
            }),
            since: Time(record.since_ns),
            joined: Time(record.joined_ns),
            why: record.why,
            boot: own(&record.boot),
        };
        if node.role == Role::Unspecified || node.state == NodeState::Unspecified {
            return Err(SnapshotFault::Senseless("a node without role or state"));
        }
        self.state.nodes.map.insert(id, node);
        Ok(())
    }

    fn add_token(&mut self, record: TokenRecord) -> Result<(), SnapshotFault> {
        let hash = record.hash.as_ref().try_into();
        let hash = hash.map_err(|_| SnapshotFault::Senseless("a token hash of another size"))?;
        let token = Token {
            role: record.role(),
            expires: Time(record.expires_ns),
            creator_node: NodeId(record.creator_node),
            creator_uid: record.creator_uid,
            used_by: (record.used_by != 0).then_some(NodeId(record.used_by)),
        };
        self.state.tokens.map.insert(hash, token);
        Ok(())
    }

    fn add_lane(&mut self, record: &LaneRecord) {
        let lane = LaneReplies {
            node: NodeId(record.node),
            used: record.used,
            forgotten: record.forgotten,
            replies: imbl::OrdMap::new(),
        };
        self.state.replies.lanes.insert(Lane(record.lane), lane);
    }

    fn add_reply(&mut self, record: ReplyRecord) -> Result<(), SnapshotFault> {
        let lane = self.state.replies.lanes.get_mut(&Lane(record.lane));
        let lane = lane.ok_or(SnapshotFault::Senseless("a reply without its lane"))?;
        lane.replies.insert(record.seq, own(&record.reply));
        Ok(())
    }
}

/// A digest of the whole state: equal states have equal digests.
pub fn digest(state: &State) -> [u8; 32] {
    use prost::Message;
    let mut hasher = blake3::Hasher::new();
    for record in records(state) {
        hasher.update(&record.encode_length_delimited_to_vec());
    }
    *hasher.finalize().as_bytes()
}

/// A copy of its own: a slice would keep the whole buffer that it was read from.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn counters(state: &State) -> CountersRecord {
    CountersRecord {
        node_next: state.nodes.node_next.0,
        version_last: state.values.version_last,
        use_last: state.replies.use_last,
        block_next: state.pids.block_next,
        blocks_freed: state.pids.freed.iter().copied().collect(),
        history: Bytes::copy_from_slice(&state.history.0),
        time_ns: state.time.0,
    }
}

fn identity_record(identity: &Identity) -> IdentityRecord {
    IdentityRecord {
        cluster: Bytes::copy_from_slice(&identity.cluster),
        name: identity.name.clone(),
        authorities_pem: identity.authorities_pem.clone(),
        founded_ns: identity.founded.0,
    }
}

fn node_record(node: &Node) -> NodeRecord {
    NodeRecord {
        id: node.id.0,
        name: node.name.clone(),
        role: node.role.into(),
        state: node.state.into(),
        epoch: node.epoch.0,
        description: Some(node.description.clone()),
        certificate: node.certificate.as_ref().map(|certificate| CertificateIssued {
            node: node.id.0,
            serial: certificate.serial.clone(),
            fingerprint: certificate.fingerprint.clone(),
            not_after_ns: certificate.not_after.0,
        }),
        since_ns: node.since.0,
        joined_ns: node.joined.0,
        why: node.why.clone(),
        boot: node.boot.clone(),
    }
}

fn token_record(hash: &[u8; 32], token: &Token) -> TokenRecord {
    TokenRecord {
        hash: Bytes::copy_from_slice(hash),
        role: token.role.into(),
        expires_ns: token.expires.0,
        creator_node: token.creator_node.0,
        creator_uid: token.creator_uid,
        used_by: token.used_by.map_or(0, |node| node.0),
    }
}

fn value_record(key: &Bytes, value: &Value) -> ValueRecord {
    ValueRecord { key: key.clone(), value: value.bytes.clone(), version: value.version }
}

fn lane_records(id: Lane, lane: &LaneReplies) -> impl Iterator<Item = Kind> + '_ {
    let head =
        LaneRecord { lane: id.0, node: lane.node.0, used: lane.used, forgotten: lane.forgotten };
    let replies = lane.replies.iter().map(move |(seq, reply)| {
        Kind::Reply(ReplyRecord { lane: id.0, seq: *seq, reply: reply.clone() })
    });
    std::iter::once(Kind::Lane(head)).chain(replies)
}
