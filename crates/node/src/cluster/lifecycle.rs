//! A node's own part in the registry: it comes up, takes PIDs, and follows what the registry says
//! about it and the others.
//!
//! Invariants: a daemon acts under the epoch that its own `NodeUp` was given and no other; after it
//! was called dead it comes up anew before it acts again. Who has been removed is refused from the
//! moment that the removal is applied here.

use super::facts;
use super::proposer::Proposer;
use super::service::learn_leader;
use crate::beats::beat;
use crate::membership::Membership;
use crate::registry::{Registry, RegistryError};
use crate::tasks::Stop;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use unum_core::registry::{Node, State};
use unum_net::{Directory, IdentityStore};
use unum_proto::ids::{Epoch, NodeId};
use unum_proto::registry::{Description, LeasePids, NodeState, NodeUp, command, reply};

/// How often the registry is looked at when nothing tells of a change.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How long one attempt to come up may take.
const UP_TIME_MAX: Duration = Duration::from_secs(3);
/// The wait before the next attempt.
const UP_RETRY: Duration = Duration::from_millis(100);

/// What this node is in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The registry is not there yet, or does not know of this run.
    Coming,
    /// Up, under this epoch.
    Up(Epoch),
    /// It left or was removed: this daemon has nothing to do here any more.
    Gone(NodeState),
}

pub struct Lifecycle {
    pub own: NodeId,
    pub registry: Registry,
    pub proposer: Proposer,
    pub directory: Arc<Directory>,
    pub identity: Arc<IdentityStore>,
    pub membership: Membership,
    pub description: Description,
    /// Names this run of the machine, as `system::boot_name` does.
    pub boot: Bytes,
    pub standing: watch::Sender<Standing>,
    pub refused: Refusals,
}

/// The nodes whose certificates are refused. Held only to look a number up or to replace the set.
#[derive(Clone, Default)]
pub struct Refusals(Arc<RwLock<BTreeSet<NodeId>>>);

impl Refusals {
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    fn replace(&self, nodes: BTreeSet<NodeId>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }
}

impl Lifecycle {
    pub async fn run(self, stop: Stop) {
        let mut applied = self.registry.watch();
        let refused = self.refused.clone();
        self.identity.set_revoked(move |node| refused.contains(node));
        let mut known = Known::default();
        loop {
            self.follow(&mut known).await;
            let retry = match self.come_up().await {
                true => LOOK_PERIOD,
                false => UP_RETRY,
            };
            tokio::select! {
                () = stop.requested() => return,
                Ok(()) = applied.changed(), if retry == LOOK_PERIOD => {
                    applied.borrow_and_update();
                }
                () = beat(retry) => {}
            }
        }
    }

    /// Tells directory, gossip and TLS about the members.
    async fn follow(&self, known: &mut Known) {
        learn_leader(&self.directory, &self.registry);
        let consensus = self.registry.standing();
        self.membership.report(|load| load.applied = consensus.applied);
        let next = self.registry.read(|state| Known::read(state, &consensus.members));
        if next == *known {
            return;
        }
        for (node, addresses) in next.members.iter().filter(|(node, _)| *node != self.own) {
            if !known.members.contains(&(*node, addresses.clone())) {
                self.directory.set_node(*node, facts::resolve(addresses).await);
            }
        }
        for (node, _) in &known.members {
            if !next.members.iter().any(|(member, _)| member == node) {
                self.directory.remove_node(*node);
            }
        }
        self.refused.replace(next.refused.clone());
        self.membership.set_contacts(next.members.iter().map(|(node, _)| *node).collect());
        *known = next;
    }

    /// Makes this node's record say that it is up under an epoch of its own. False: not yet.
    async fn come_up(&self) -> bool {
        let record = self.registry.read(|state| state.nodes().get(self.own).cloned());
        let Some(record) = record else { return false };
        match self.next_step(&record) {
            Step::Nothing => self.take_pids(record.epoch).await,
            Step::Gone => {
                self.standing.send_replace(Standing::Gone(record.state));
                true
            }
            Step::ComeUp => self.announce(record.epoch).await,
        }
    }

    fn next_step(&self, record: &Node) -> Step {
        match (record.state, *self.standing.borrow()) {
            (NodeState::Left | NodeState::Removed, _) => Step::Gone,
            (NodeState::Up, Standing::Up(epoch)) if epoch == record.epoch => Step::Nothing,
            (NodeState::Up, Standing::Up(epoch)) if epoch > record.epoch => Step::Nothing,
            (NodeState::Unspecified | NodeState::Joining | NodeState::Up | NodeState::Down, _) => {
                Step::ComeUp
            }
        }
    }

    async fn announce(&self, epoch: Epoch) -> bool {
        let up = NodeUp {
            node: self.own.0,
            epoch: epoch.0,
            description: Some(self.description.clone()),
            boot: self.boot.clone(),
        };
        match self.proposer.propose(command::Kind::NodeUp(up), UP_TIME_MAX).await {
            Ok(reply::Kind::Node(node)) => {
                let epoch = Epoch(node.epoch);
                tracing::info!(node = %self.own, %epoch, "up");
                self.registry.set_epoch(epoch);
                self.membership.report(|load| load.epoch = epoch.0);
                self.standing.send_replace(Standing::Up(epoch));
                self.take_pids(epoch).await
            }
            Ok(other) => {
                tracing::warn!(?other, "odd answer to coming up");
                false
            }
            // Our copy lags behind; it will show the newer epoch soon.
            Err(RegistryError::Fenced { .. }) => false,
            Err(error) => {
                tracing::debug!(%error, "cannot come up yet");
                false
            }
        }
    }

    /// A node that runs programs holds a block of PIDs at least.
    async fn take_pids(&self, epoch: Epoch) -> bool {
        let held = self.registry.read(|state| state.pids().blocks_of(self.own).next().is_some());
        if held {
            return true;
        }
        let lease = LeasePids { node: self.own.0, epoch: epoch.0 };
        match self.proposer.propose(command::Kind::LeasePids(lease), UP_TIME_MAX).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot lease PIDs");
                false
            }
        }
    }
}

enum Step {
    Nothing,
    ComeUp,
    Gone,
}

/// What was last told to directory, gossip and TLS.
#[derive(Default, PartialEq)]
struct Known {
    members: Vec<(NodeId, Vec<String>)>,
    refused: BTreeSet<NodeId>,
}

impl Known {
    /// A node that leaves is heard until consensus has let it go, for it may still have a vote.
    fn read(state: &State, consensus: &BTreeSet<NodeId>) -> Self {
        let heard = |node: &Node| {
            let leaving = node.state == NodeState::Left && consensus.contains(&node.id);
            node.is_member() || leaving
        };
        let nodes = state.nodes();
        let address = |node: &Node| (node.id, node.description.addresses.clone());
        Self {
            members: nodes.iter().filter(|node| heard(node)).map(address).collect(),
            refused: nodes.iter().filter(|node| !heard(node)).map(|node| node.id).collect(),
        }
    }
}
