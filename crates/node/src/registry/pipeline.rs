//! From commands to log entries, and to the leader.
//!
//! One queue per node. Whatever waits in it when a batch may leave becomes one batch: on the
//! leader a log entry, elsewhere one message to the leader, where it joins the leader's queue.
//! Invariants: a batch is bounded in commands and bytes, few are on their way at once, the queue
//! is bounded; nothing is retried here (the issuer does that, with the same request id); a batch
//! from another node is never passed on a second time.

use std::sync::Arc;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft::errors::{ClientWriteError, RaftError};
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::limits::{BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, BATCHES_IN_FLIGHT_MAX};
use super::shell::Core;
use super::transport::{Answer, Call, Unreached};
use super::types::Encoded;

/// Commands that came together and are answered together.
pub struct Group {
    /// Encoded `Proposal`s.
    pub proposals: Vec<Bytes>,
    /// Whether they may be passed on to the leader.
    pub forward: bool,
    pub done: oneshot::Sender<Outcome>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The encoded replies, in order.
    Done {
        replies: Vec<Bytes>,
        index: u64,
    },
    NotLeader {
        leader: Option<NodeId>,
    },
    Overloaded,
    DiskFull,
    /// It may have been done or may yet be.
    Unknown,
    /// The issuer did something wrong.
    Denied,
}

pub struct Pipeline<RT: AsyncRuntime> {
    core: Arc<Core<RT>>,
    queue: mpsc::Receiver<Group>,
    held: Option<Group>,
    in_flight: Arc<Semaphore>,
}

impl<RT: AsyncRuntime> Pipeline<RT> {
    pub fn new(core: Arc<Core<RT>>, queue: mpsc::Receiver<Group>) -> Self {
        let in_flight = Arc::new(Semaphore::new(BATCHES_IN_FLIGHT_MAX));
        Self { core, queue, held: None, in_flight }
    }

    /// Ends when all senders are gone.
    pub async fn run(mut self) {
        while let Some(first) = self.next().await {
            // Waiting here is what makes the batch grow.
            let Ok(permit) = self.in_flight.clone().acquire_owned().await else { return };
            let groups = self.gather(first);
            let core = self.core.clone();
            // It is not joined: it ends by itself, bounded by its time-outs.
            drop(RT::spawn(async move {
                send(&core, groups).await;
                drop(permit);
            }));
        }
    }

    async fn next(&mut self) -> Option<Group> {
        match self.held.take() {
            Some(group) => Some(group),
            None => self.queue.recv().await,
        }
    }

    fn gather(&mut self, first: Group) -> Vec<Group> {
        let mut commands = first.proposals.len();
        let mut bytes = weight(&first);
        let mut groups = vec![first];
        while let Ok(group) = self.queue.try_recv() {
            commands += group.proposals.len();
            bytes += weight(&group);
            if commands > BATCH_COMMANDS_MAX || bytes > BATCH_BYTES_MAX {
                self.held = Some(group);
                break;
            }
            groups.push(group);
        }
        groups
    }
}

fn weight(group: &Group) -> usize {
    group.proposals.iter().map(|proposal| proposal.len() + 8).sum()
}

async fn send<RT: AsyncRuntime>(core: &Core<RT>, groups: Vec<Group>) {
    match core.leader() {
        Some(leader) if leader == core.own => {
            let outcome = match core.room.is_full() {
                true => Outcome::DiskFull,
                false => write(core, &groups).await,
            };
            distribute(groups, outcome);
        }
        leader => {
            let (ours, others): (Vec<_>, Vec<_>) = groups.into_iter().partition(|g| g.forward);
            distribute(others, Outcome::NotLeader { leader });
            if ours.is_empty() {
                return;
            }
            let outcome = match leader {
                Some(leader) => forward(core, leader, &ours).await,
                None => Outcome::NotLeader { leader: None },
            };
            distribute(ours, outcome);
        }
    }
}

async fn write<RT: AsyncRuntime>(core: &Core<RT>, groups: &[Group]) -> Outcome {
    let proposals = groups.iter().flat_map(|group| group.proposals.iter().cloned()).collect();
    let batch = wire::RawBatch { time_ns: (core.clock)().0, proposals };
    let encoded = Encoded(batch.encode_to_vec().into());
    match core.raft.client_write(encoded).await {
        Ok(response) => Outcome::Done { replies: response.data, index: response.log_id.index },
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
            Outcome::NotLeader { leader: to.leader_id }
        }
        Err(_) => Outcome::Unknown,
    }
}

async fn forward<RT: AsyncRuntime>(core: &Core<RT>, leader: NodeId, groups: &[Group]) -> Outcome {
    let proposals = groups.iter().flat_map(|group| group.proposals.iter().cloned()).collect();
    let call = Call::Propose(wire::ProposeRequest { proposals });
    match core.ask_leader(leader, call).await {
        Ok(Answer::Propose(reply)) => outcome_from_wire(reply),
        Err(Unreached::Unreachable(..)) => Outcome::NotLeader { leader: None },
        Ok(_) | Err(Unreached::Timeout(_) | Unreached::Refused(..)) => Outcome::Unknown,
    }
}

/// Gives each group its share of the replies.
fn distribute(groups: Vec<Group>, outcome: Outcome) {
    let Outcome::Done { replies, index } = outcome else {
        for group in groups {
            let _ = group.done.send(outcome.clone());
        }
        return;
    };
    let expected: usize = groups.iter().map(|group| group.proposals.len()).sum();
    let complete = replies.len() == expected;
    let mut replies = replies.into_iter();
    for group in groups {
        let share: Vec<Bytes> = replies.by_ref().take(group.proposals.len()).collect();
        // A caller that went away does not want its replies.
        let _ = group.done.send(match complete {
            true => Outcome::Done { replies: share, index },
            false => Outcome::Unknown,
        });
    }
}

pub fn outcome_from_wire(reply: wire::ProposeReply) -> Outcome {
    match reply.outcome() {
        wire::ShellOutcome::Ok => Outcome::Done { replies: reply.replies, index: reply.index },
        wire::ShellOutcome::NotLeader => {
            Outcome::NotLeader { leader: (reply.leader != 0).then_some(NodeId(reply.leader)) }
        }
        wire::ShellOutcome::Overloaded => Outcome::Overloaded,
        wire::ShellOutcome::DiskFull => Outcome::DiskFull,
        wire::ShellOutcome::Denied => Outcome::Denied,
        wire::ShellOutcome::Unknown | wire::ShellOutcome::Unspecified => Outcome::Unknown,
    }
}

pub fn outcome_to_wire(outcome: Outcome) -> wire::ProposeReply {
    let mut reply = wire::ProposeReply::default();
    let code = match outcome {
        Outcome::Done { replies, index } => {
            reply.replies = replies;
            reply.index = index;
            wire::ShellOutcome::Ok
        }
        Outcome::NotLeader { leader } => {
            reply.leader = leader.map_or(0, |leader| leader.0);
            wire::ShellOutcome::NotLeader
        }
        Outcome::Overloaded => wire::ShellOutcome::Overloaded,
        Outcome::DiskFull => wire::ShellOutcome::DiskFull,
        Outcome::Denied => wire::ShellOutcome::Denied,
        Outcome::Unknown => wire::ShellOutcome::Unknown,
    };
    reply.set_outcome(code);
    reply
}
