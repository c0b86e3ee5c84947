//! The registry on this node: consensus around the pure state of `unum_core::registry`.
//!
//! [`Registry`] is the handle that the services use: `propose` a command, pass a `barrier`, then
//! `read`. It runs on openraft, generic over its runtime, so that the simulator runs this very code
//! under virtual time. Invariants: a command is acknowledged only when a majority of the voters has
//! it durably; a read behind a barrier shows all that was acknowledged before.
//! Leaves out: what commands mean (core), who may issue them (the services), the wire (the
//! transport).

mod barrier;
mod control;
pub mod error;
mod leases;
pub mod limits;
mod log;
mod machine;
pub mod mutation;
mod network;
pub mod offload;
mod pace;
mod pipeline;
mod room;
mod shell;
pub mod snapshots;
mod start;
mod suspicion;
pub mod transport;
pub mod types;
mod writer;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::{AsyncRuntime, Instant};
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch};
use unum_core::registry::{Refused, State};
use unum_core::tree::{Local, Tree};
use unum_net::Departures;
use unum_proto::ids::{Epoch, Ino, NodeId, RequestId};
use unum_proto::registry::{self as wire, Command, reply};

use barrier::Confirmed;
use limits::{COMMAND_BYTES_MAX, DEADLINE_DEFAULT, RETRY_PAUSE, SHUTDOWN_TIMEOUT};
use machine::Applied;
use pipeline::{Group, Outcome};
use shell::Core;

pub use error::{RegistryError, StartError};
pub use leases::{Changed, Feed};
pub use machine::{AppliedEntry, Observe};
pub use openraft_rt_tokio::TokioRuntime;
pub use shell::{Clock, Unanswered};
pub use start::{Options, Timing, system_clock};

/// The daemon's registry.
pub type Registry = RegistryOn<TokioRuntime>;

/// A handle to this node's registry; cheap to clone.
pub struct RegistryOn<RT: AsyncRuntime> {
    core: Arc<Core<RT>>,
    proposals: mpsc::Sender<Group>,
    readers: mpsc::Sender<barrier::Waiter>,
    /// Keeps the leader's side alive.
    _confirmations: mpsc::Sender<barrier::Waiter>,
    epoch: Arc<Mutex<Epoch>>,
    departures: Departures,
}

impl<RT: AsyncRuntime> Clone for RegistryOn<RT> {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            proposals: self.proposals.clone(),
            readers: self.readers.clone(),
            _confirmations: self._confirmations.clone(),
            epoch: self.epoch.clone(),
            departures: self.departures.clone(),
        }
    }
}

/// How consensus stands, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// None also on a leader that no majority has answered for a while.
    pub leader: Option<NodeId>,
    pub term: u64,
    /// While they are being changed: those before and those after.
    pub voters: BTreeSet<NodeId>,
    /// The voters are committed and not being changed: a minority of them may be lost.
    pub settled: bool,
    pub members: BTreeSet<NodeId>,
    pub applied: u64,
    pub last_log: u64,
    pub snapshot: u64,
    /// On the leader: who has been silent for too long.
    pub silent: BTreeSet<NodeId>,
    pub disk_full: bool,
    /// This node may have lost what it acknowledged and does not vote until it has caught up.
    pub suspect: bool,
    /// It is suspect, and what it lost did not look like what a power cut tears.
    pub lost: bool,
    pub stopped: bool,
}

/// A pause that an answer asks for before the next attempt.
enum Next {
    Retry { quorum: bool },
    Fail(RegistryError),
}

impl<RT: AsyncRuntime> RegistryOn<RT> {
    pub fn own(&self) -> NodeId {
        self.core.own
    }

    /// The epoch that this node's commands show from now on: what `NodeUp` or `Found` replied.
    pub fn set_epoch(&self, epoch: Epoch) {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = epoch;
    }

    pub fn epoch(&self) -> Epoch {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the command executed once and returns its reply. Asking again with the same id, on
    /// whatever node, gives the same reply.
    pub async fn propose(
        &self,
        id: RequestId,
        command: impl Into<Command>,
    ) -> Result<reply::Kind, RegistryError> {
        self.propose_within(id, command, DEADLINE_DEFAULT).await
    }

    pub async fn propose_within(
        &self,
        id: RequestId,
        command: impl Into<Command>,
        within: Duration,
    ) -> Result<reply::Kind, RegistryError> {
        self.propose_indexed(id, command, within).await.map(|(reply, _)| reply)
    }

    /// What programs of this machine say to all passes there first.
    pub fn departing_through(self, departures: Departures) -> Self {
        Self { departures, ..self }
    }

    pub fn departures(&self) -> &Departures {
        &self.departures
    }

    /// Tells the index of a log entry too, at or behind that of the command.
    pub async fn propose_indexed(
        &self,
        id: RequestId,
        command: impl Into<Command>,
        within: Duration,
    ) -> Result<(reply::Kind, u64), RegistryError> {
        let bytes = self.encode(id, command.into())?;
        let started = RT::Instant::now();
        let deadline = started + within;
        // Once an attempt's outcome is unknown, only a reply can settle whether it was done.
        let mut in_doubt = false;
        let mut quorum = false;
        while RT::Instant::now() < deadline {
            let attempt = RT::timeout_at(deadline, self.attempt(bytes.clone()));
            let Ok(outcome) = attempt.await else { break };
            in_doubt |= outcome == Outcome::Unknown;
            match judge(outcome, in_doubt)? {
                Ok((reply, index)) => return Ok((decode_reply(reply)?, index)),
                Err(Next::Fail(error)) => return Err(error),
                Err(Next::Retry { quorum: seen }) => quorum = seen,
            }
            RT::sleep(RETRY_PAUSE).await;
        }
        Err(timed_out(quorum || self.standing().leader.is_some(), started.elapsed()))
    }

    /// After this, `read` shows everything that was acknowledged before the call.
    pub async fn barrier(&self, within: Duration) -> Result<(), RegistryError> {
        let started = RT::Instant::now();
        let deadline = started + within;
        while RT::Instant::now() < deadline {
            let Ok(confirmed) = RT::timeout_at(deadline, self.confirm()).await else { break };
            match confirmed? {
                Confirmed::Index(index) => {
                    match RT::timeout_at(deadline, self.core.shared.reached(index)).await {
                        Ok(()) => return Ok(()),
                        Err(_) => break,
                    }
                }
                Confirmed::NotLeader { .. } | Confirmed::Unknown => RT::sleep(RETRY_PAUSE).await,
            }
        }
        // A leader that cannot be confirmed is as good as none.
        Err(RegistryError::NoQuorum { waited: started.elapsed() })
    }

    /// From now on this node wants a read lease; the caller keeps its caches, which are empty now,
    /// as the feed says.
    pub fn feed(&self) -> Feed<RT> {
        Feed::begin(self.core.clone())
    }

    /// Gives the read lease back: the caller has emptied its caches and shows nothing from now on. So
    /// nobody's changes wait for the lease's end.
    pub async fn resign_lease(&self) {
        leases::resign(&self.core).await;
    }

    /// Whether what was read before this call may be shown without a barrier.
    pub fn holds_lease(&self) -> bool {
        self.core.leases.holds()
    }

    /// When the read lease ends unless it is renewed.
    pub fn lease_until(&self) -> Option<RT::Instant> {
        self.core.leases.until()
    }

    /// Whether this node leads and still waits for read leases that former leaders gave.
    pub fn awaits_former_leases(&self) -> bool {
        self.core.leases.awaits_former()
    }

    /// Whether both are handles to one life of a registry.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.core, &other.core)
    }

    /// Returns once the entry is applied here.
    pub async fn reached(&self, index: u64, within: Duration) -> Result<(), RegistryError> {
        let reached = RT::timeout(within, self.core.shared.reached(index)).await;
        reached.map_err(|_| RegistryError::NoQuorum { waited: within })
    }

    /// How long the read lease lasts unless it is renewed. None: there was none.
    pub fn lease_left(&self) -> Option<Duration> {
        let until = self.core.leases.until()?;
        Some(until.saturating_duration_since(RT::Instant::now()))
    }

    /// The entry that must be stable before what is read here of these inodes may be shown; 0 if it
    /// may be shown. To be asked after the reading.
    pub fn unsettled(&self, inodes: &[Ino]) -> u64 {
        self.core.leases.unsettled(inodes)
    }

    /// The entry that must be stable before this node's write lease may be used: before, others may
    /// show what it covers without asking. 0: it may be used.
    pub fn ungranted(&self) -> u64 {
        self.core.leases.ungranted()
    }

    /// Returns once no holder of a read lease can show what was before this entry.
    pub async fn settle(&self, index: u64, within: Duration) -> Result<(), RegistryError> {
        let settled = RT::timeout(within, self.core.leases.settle(index)).await;
        settled.map_err(|_| RegistryError::NoQuorum { waited: within })
    }

    /// Whether the node was removed, or has left and no longer votes. One that is not known here is
    /// no outsider: this node may lag behind.
    pub fn is_outsider(&self, node: NodeId) -> bool {
        let state = self.read(|state| state.nodes().get(node).map(|node| node.state));
        match state {
            Some(wire::NodeState::Removed) => true,
            Some(wire::NodeState::Left) => !self.standing().members.contains(&node),
            _ => false,
        }
    }

    /// Reads what is applied here. Without a barrier before it, that may be old.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.look(|applied| look(&applied.state))
    }

    /// Reads the file tree as programs of this node see it: with what they changed and the log does not
    /// have yet.
    pub fn read_tree<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        self.look(|applied| look(applied.tree()))
    }

    fn look<T>(&self, look: impl FnOnce(&Applied) -> T) -> T {
        let applied = self.core.shared.read();
        let seen = look(&applied);
        let untidy = applied.wants_tidying();
        drop(applied);
        if untidy {
            self.core.shared.tidy();
        }
        seen
    }

    /// Looks at what this node changed and the log does not have yet.
    pub fn read_local<T>(&self, look: impl FnOnce(Option<&Local>) -> T) -> T {
        look(self.core.shared.read().local.as_ref())
    }

    /// Changes that: the closure gets the confirmed tree, too. Nothing is applied or read meanwhile.
    pub fn with_local<T>(&self, change: impl FnOnce(&Tree, &mut Option<Local>) -> T) -> T {
        let mut applied = self.core.shared.write();
        let applied = &mut *applied;
        change(applied.state.tree(), &mut applied.local)
    }

    /// Takes what this node had changed when its write lease was ended: it is lost.
    pub fn take_lost(&self) -> Vec<Local> {
        if self.core.shared.read().lost.is_empty() {
            return Vec::new();
        }
        std::mem::take(&mut self.core.shared.write().lost)
    }

    /// The log index up to which this node has applied.
    pub fn applied(&self) -> u64 {
        self.core.shared.index()
    }

    /// The same, as it grows.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.core.shared.watch()
    }

    /// Makes this node the only voter of a new cluster. Done already: no harm.
    pub async fn initialize(&self) -> Result<(), RegistryError> {
        let members = std::collections::BTreeMap::from([(self.core.own, ())]);
        match self.core.raft.initialize(members).await {
            Ok(()) | Err(openraft::errors::RaftError::APIError(_)) => Ok(()),
            Err(openraft::errors::RaftError::Fatal(_)) => Err(RegistryError::Stopped),
        }
    }

    /// If this node leads, hands over to the voter that is furthest. Returns who was asked.
    pub async fn hand_over(&self) -> Option<NodeId> {
        let metrics = self.core.raft.metrics().borrow_watched().clone();
        let replication = metrics.replication.as_ref()?;
        let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        let (to, _) = replication
            .iter()
            .filter(|(id, _)| voters.contains(id) && **id != self.core.own)
            .max_by_key(|(_, matched)| matched.map(|id| id.index))?;
        let to = *to;
        self.core.raft.trigger().transfer_leader(to).await.ok().map(|()| to)
    }

    /// Answers a call of another node's shell.
    pub async fn answer(
        &self,
        from: NodeId,
        call: transport::Call,
    ) -> Result<transport::Answer, Unanswered> {
        self.core.answer(from, call).await
    }

    pub fn standing(&self) -> Standing {
        let metrics = self.core.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let beats = metrics.heartbeat.iter().flatten();
        let silent: BTreeSet<NodeId> = beats
            .filter(|(id, at)| **id != self.core.own && !at.is_some_and(control::is_recent::<RT>))
            .map(|(id, _)| *id)
            .collect();
        let configurations = membership.get_joint_config();
        let lost =
            |voters: &BTreeSet<NodeId>| voters.difference(&silent).count() * 2 <= voters.len();
        let lost_majority =
            metrics.current_leader == Some(self.core.own) && configurations.iter().any(lost);
        Standing {
            leader: metrics.current_leader.filter(|_| !lost_majority),
            term: metrics.current_term,
            voters: membership.voter_ids().collect(),
            settled: configurations.len() == 1
                && metrics.membership_config == metrics.committed_membership_config,
            members: membership.nodes().map(|(id, _)| *id).collect(),
            applied: self.core.shared.index(),
            last_log: metrics.last_log_index.unwrap_or(0),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            silent,
            disk_full: self.core.room.is_full(),
            suspect: self.core.suspicion.is_on(),
            lost: self.core.suspicion.has_lost(),
            stopped: metrics.running_state.is_err(),
        }
    }

    /// Completes when consensus has ended on this node, by itself or by a shutdown, and says why.
    pub async fn ended(&self) -> String {
        let mut metrics = self.core.raft.metrics();
        loop {
            if let Err(why) = &metrics.borrow_watched().running_state {
                return why.to_string();
            }
            if metrics.changed().await.is_err() {
                return "it is gone".into();
            }
        }
    }

    /// Stops consensus on this node. When this returns, nothing writes to its directory any more.
    pub async fn shutdown(&self) {
        // It may have stopped by itself; either way it is over.
        let _ = self.core.raft.shutdown().await;
        let ended = self.core.log_ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            let _ = RT::timeout(SHUTDOWN_TIMEOUT, ended).await;
        }
    }

    fn encode(&self, id: RequestId, command: Command) -> Result<Bytes, RegistryError> {
        let proposal = wire::Proposal {
            lane: id.lane.0,
            seq: id.seq,
            node: self.core.own.0,
            epoch: self.epoch().0,
            command: Some(command),
        };
        let bytes = proposal.encoded_len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(RegistryError::TooLarge { bytes, max: COMMAND_BYTES_MAX });
        }
        Ok(proposal.encode_to_vec().into())
    }

    async fn attempt(&self, proposal: Bytes) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let group = Group { proposals: vec![proposal], forward: true, done };
        if self.proposals.send(group).await.is_err() {
            return Outcome::Unknown;
        }
        outcome.await.unwrap_or(Outcome::Unknown)
    }

    async fn confirm(&self) -> Result<Confirmed, RegistryError> {
        let (waiter, confirmed) = oneshot::channel();
        self.readers.send(waiter).await.map_err(|_| RegistryError::Stopped)?;
        Ok(confirmed.await.unwrap_or(Confirmed::Unknown))
    }
}

/// An encoded reply and its place in the log.
type Judged = Result<(Bytes, u64), Next>;

fn judge(outcome: Outcome, in_doubt: bool) -> Result<Judged, RegistryError> {
    Ok(match outcome {
        Outcome::Done { mut replies, index } => match replies.pop() {
            Some(reply) => Ok((reply, index)),
            None => Err(Next::Retry { quorum: true }),
        },
        // Refused before it got into the log. An earlier attempt may have got there.
        Outcome::DiskFull if in_doubt => Err(Next::Retry { quorum: true }),
        Outcome::DiskFull => Err(Next::Fail(RegistryError::DiskFull)),
        Outcome::Denied => Err(Next::Fail(RegistryError::Refused(Refused::NotUnderstood))),
        Outcome::Overloaded => Err(Next::Retry { quorum: true }),
        Outcome::NotLeader { leader } => Err(Next::Retry { quorum: leader.is_some() }),
        Outcome::Unknown => Err(Next::Retry { quorum: false }),
    })
}

fn timed_out(quorum: bool, waited: Duration) -> RegistryError {
    match quorum {
        true => RegistryError::Deadline { waited },
        false => RegistryError::NoQuorum { waited },
    }
}

fn decode_reply(bytes: Bytes) -> Result<reply::Kind, RegistryError> {
    let reply = wire::Reply::decode(bytes).ok().and_then(|reply| reply.kind);
    match reply {
        Some(reply::Kind::Refused(refusal)) => Err(Refused::from(&refusal).into()),
        Some(kind) => Ok(kind),
        None => Err(Refused::NotUnderstood.into()),
    }
}
