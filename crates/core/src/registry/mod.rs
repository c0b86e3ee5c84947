//! The replicated registry: what the nodes must agree on.
//!
//! One state machine: [`State::apply`] turns a command and the time of its log entry into a reply
//! and nothing else, so every node that applies the same log has the same state.
//! [`State::execute`] runs a whole log entry, each command at most once.
//!
//! Invariants: a refused command changes nothing; a command whose issuer shows a stale epoch is
//! refused first; cloning is cheap (persistent maps), so a snapshot never holds the log up.
//! Leaves out on purpose: who may issue what (the services check that before they propose), and
//! every effect outside of the state.

mod identity;
pub mod limits;
mod nodes;
mod pids;
mod refused;
mod replies;
pub mod snapshot;
mod tokens;
mod values;
pub mod voters;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use prost::Message;
use unum_proto::ids::{Epoch, Lane, NodeId, RequestId};
use unum_proto::registry::command::Kind;
use unum_proto::registry::{
    Batch, Command, Done, Found, NodeEpoch, NodeState, Proposal, RegisterNode, Reply, Role,
    Version, reply,
};

use unum_proto::tree::{ReleaseNode, tree_command};

pub use identity::Identity;
pub use nodes::{Certificate, Node, Nodes};
pub use pids::Pids;
pub use refused::{Field, Refused};
pub use replies::Replies;
pub use tokens::{Token, TokenHash, Tokens, role_name};
pub use values::{Value, Values};

use crate::time::Time;
use crate::tree::{Change, Chunk, Executed, Tree};
use replies::Recalled;

/// Everything that the cluster agrees on.
#[derive(Clone, Debug, Default)]
pub struct State {
    identity: Option<Identity>,
    nodes: Nodes,
    tokens: Tokens,
    pids: Pids,
    values: Values,
    replies: Replies,
    history: History,
    tree: Tree,
    /// The time of the last entry.
    time: Time,
}

/// A running digest of all commands and replies: equal on two nodes that have applied the same
/// log, and different for ever once they have diverged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History(pub [u8; 32]);

impl History {
    fn absorb(&mut self, id: RequestId, reply: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(&id.lane.0.to_le_bytes());
        hasher.update(&id.seq.to_le_bytes());
        hasher.update(reply);
        self.0 = *hasher.finalize().as_bytes();
    }
}

impl State {
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub fn pids(&self) -> &Pids {
        &self.pids
    }

    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The time of the last log entry.
    pub fn time(&self) -> Time {
        self.time
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Gives back the memory that looks at the file tree have taken.
    pub fn tidy(&mut self) {
        self.tree.tidy();
    }

    /// What the last log entry changed in the file tree.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.tree.take_changes()
    }

    /// Whether the tree's commands are kept for [`Self::take_executed`].
    pub fn record_tree(&mut self, on: bool) {
        self.tree.record(on);
    }

    /// The tree's commands since the last call.
    pub fn take_executed(&mut self) -> Vec<Executed> {
        self.tree.take_executed()
    }

    pub fn history(&self) -> History {
        self.history
    }

    /// Forgets all replies, so that a repeated request runs again: a fault for the simulator to
    /// find.
    #[doc(hidden)]
    pub fn forget_replies(&mut self) {
        self.replies = Replies::default();
    }

    /// Runs the commands of a log entry in order. The replies are encoded: most of them leave
    /// over the network, and so they are remembered.
    pub fn execute(&mut self, batch: &Batch) -> Vec<Bytes> {
        // A new leader's clock may lag behind the former one's: time never goes back.
        self.time = self.time.max(Time(batch.time_ns));
        let now = self.time;
        self.tree.take_changes();
        batch.proposals.iter().map(|proposal| self.execute_one(now, proposal)).collect()
    }

    fn execute_one(&mut self, now: Time, proposal: &Proposal) -> Bytes {
        let id = RequestId { lane: Lane(proposal.lane), seq: proposal.seq };
        let issuer = NodeId(proposal.node);
        match self.replies.recall(id) {
            Recalled::Known(reply) => return reply,
            Recalled::Forgotten => return encode(Err(Refused::Forgotten)),
            Recalled::New => {}
        }
        let done = self.dispatch(now, issuer, proposal);
        // Nothing was done: the id is still free for the same command under the present epoch.
        let fenced = matches!(done, Err(Refused::Fenced { .. }));
        let reply = encode(done);
        if !fenced {
            self.replies.remember(issuer, id, reply.clone());
        }
        self.history.absorb(id, &reply);
        reply
    }

    fn dispatch(
        &mut self,
        now: Time,
        issuer: NodeId,
        proposal: &Proposal,
    ) -> Result<reply::Kind, Refused> {
        let command = proposal.command.as_ref().ok_or(Refused::NotUnderstood)?;
        let kind = command.kind.as_ref().ok_or(Refused::NotUnderstood)?;
        if must_show_epoch(issuer, kind) {
            self.nodes.check_epoch(issuer, Epoch(proposal.epoch))?;
        }
        self.apply_kind(now, issuer, kind)
    }

    /// Applies one command on behalf of the cluster itself: no fence, no memory of replies.
    pub fn apply(&mut self, now: Time, command: &Command) -> Reply {
        let done = match &command.kind {
            Some(kind) => self.apply_kind(now, NodeId(0), kind),
            None => Err(Refused::NotUnderstood),
        };
        reply_of(done)
    }

    fn apply_kind(
        &mut self,
        now: Time,
        issuer: NodeId,
        kind: &Kind,
    ) -> Result<reply::Kind, Refused> {
        match kind {
            Kind::Found(command) => self.found(now, command),
            Kind::SetAuthorities(command) => {
                let identity = self.identity.as_mut().ok_or(Refused::NotFounded)?;
                identity.set_authorities(&command.authorities_pem).map(done)
            }
            Kind::CreateToken(command) => self.tokens.create(now, issuer, command).map(done),
            Kind::RevokeToken(command) => self.tokens.revoke(&command.hash).map(done),
            Kind::RegisterNode(command) => self.register(now, command),
            Kind::NodeUp(command) => {
                let (id, epoch) = (NodeId(command.node), Epoch(command.epoch));
                let description = command.description.as_ref();
                let up = self.nodes.up(now, id, epoch, description, &command.boot)?;
                if up.rebooted {
                    self.release_files(now, id);
                }
                Ok(node_reply(id, up.epoch))
            }
            Kind::NodeDown(command) => {
                let (id, epoch) = (NodeId(command.node), Epoch(command.epoch));
                let epoch = self.nodes.down(now, id, epoch, &command.why)?;
                self.release_files(now, id);
                Ok(node_reply(id, epoch))
            }
            Kind::LeaveNode(command) => {
                let id = NodeId(command.node);
                self.nodes.check_epoch(id, Epoch(command.epoch))?;
                match self.only_copies(id) {
                    lost @ 1.. if command.keep_files => Err(Refused::OnlyCopies(lost)),
                    _ => self.part(now, id, NodeState::Left),
                }
            }
            Kind::RemoveNode(command) => self.part(now, NodeId(command.node), NodeState::Removed),
            Kind::CertificateIssued(command) => self.nodes.certify(command).map(done),
            Kind::LeasePids(command) => {
                let id = NodeId(command.node);
                self.nodes.check_epoch(id, Epoch(command.epoch))?;
                self.pids.lease(id).map(reply::Kind::Pids)
            }
            Kind::ReturnPids(command) => {
                let id = NodeId(command.node);
                self.nodes.check_epoch(id, Epoch(command.epoch))?;
                self.pids.give_back(id, command.block).map(done)
            }
            Kind::Tree(command) => Ok(reply::Kind::Tree(self.tree.apply(now, issuer, command))),
            Kind::PutValue(command) => self.values.put(command).map(version_reply),
            Kind::DeleteValue(command) => self.values.delete(command).map(version_reply),
            Kind::CompareAndSet(command) => self.values.compare_and_set(command).map(version_reply),
        }
    }

    fn found(&mut self, now: Time, command: &Found) -> Result<reply::Kind, Refused> {
        if self.identity.is_some() {
            return Err(Refused::AlreadyFounded);
        }
        let identity = Identity::new(now, command)?;
        let description = command.description.clone().unwrap_or_default();
        let description = nodes::check_description(&description)?;
        self.nodes.check_newcomer(&command.node_name)?;
        self.identity = Some(identity);
        let name = &command.node_name;
        let (id, epoch) = self.nodes.add(now, name, Role::Node, NodeState::Up, description);
        Ok(node_reply(id, epoch))
    }

    /// All checks come before the token is used up: a newcomer whose name is taken can try again.
    fn register(&mut self, now: Time, command: &RegisterNode) -> Result<reply::Kind, Refused> {
        if self.identity.is_none() {
            return Err(Refused::NotFounded);
        }
        let hash = tokens::parse_hash(&command.token_hash)?;
        let role = tokens::parse_role(command.role)?;
        self.tokens.check(now, &hash, role)?;
        self.nodes.check_newcomer(&command.name)?;
        let description = command.description.clone().unwrap_or_default();
        let description = nodes::check_description(&description)?;
        let (id, epoch) = self.nodes.add(now, &command.name, role, NodeState::Joining, description);
        self.tokens.mark_used(&hash, id);
        Ok(node_reply(id, epoch))
    }

    /// Chunks that no member but `node` has a replica of. Looks at all chunks.
    pub fn only_copies(&self, node: NodeId) -> u64 {
        let has = |id: &NodeId| *id != node && self.nodes.get(*id).is_some_and(Node::is_member);
        let on_node = |chunk: &Chunk| chunk.replicas.contains(&node);
        let chunks = self.tree.chunks_after(None).map(|(_, chunk)| chunk);
        let only = chunks.filter(|chunk| on_node(chunk) && !chunk.replicas.iter().any(has));
        only.count() as u64
    }

    /// Ends what a node that is gone or fenced held in the file tree.
    fn release_files(&mut self, now: Time, id: NodeId) {
        let release = tree_command::Command::ReleaseNode(ReleaseNode { node: id.0 });
        self.tree.apply(now, id, &release.into());
    }

    fn part(&mut self, now: Time, id: NodeId, state: NodeState) -> Result<reply::Kind, Refused> {
        let epoch = self.nodes.go(now, id, state)?;
        self.release_files(now, id);
        self.pids.drop_node(id);
        self.replies.drop_node(id);
        Ok(node_reply(id, epoch))
    }
}

/// A node that comes up cannot know its epoch yet: `NodeUp` compares by itself. The cluster itself
/// (issuer 0) and the founder have none.
fn must_show_epoch(issuer: NodeId, kind: &Kind) -> bool {
    let exempt = matches!(kind, Kind::Found(_) | Kind::NodeUp(_));
    issuer != NodeId(0) && !exempt
}

fn node_reply(id: NodeId, epoch: Epoch) -> reply::Kind {
    reply::Kind::Node(NodeEpoch { node: id.0, epoch: epoch.0 })
}

fn version_reply(version: u64) -> reply::Kind {
    reply::Kind::Version(Version { version })
}

fn done(_: ()) -> reply::Kind {
    reply::Kind::Done(Done {})
}

fn reply_of(done: Result<reply::Kind, Refused>) -> Reply {
    done.unwrap_or_else(|refused| reply::Kind::Refused(refused.into())).into()
}

fn encode(done: Result<reply::Kind, Refused>) -> Bytes {
    reply_of(done).encode_to_vec().into()
}
