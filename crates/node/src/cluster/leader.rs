//! What the leader does for the members besides ordering commands: it calls the dead dead. (Who
//! votes is consensus' own affair.)

use super::observe::{Contact, Newcomers};
use super::proposer::Proposer;
use crate::beats::beat;
use crate::membership::Membership;
use crate::registry::Registry;
use crate::tasks::Stop;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;
use unum_core::time::Time;
use unum_proto::ids::{Epoch, NodeId};
use unum_proto::registry::{NodeDown, command};

/// How often the leader looks around when nothing tells it of a change.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// How long a majority may take to confirm that this node leads before it calls anybody dead.
const CONFIRM_TIME_MAX: Duration = Duration::from_millis(500);
/// Short, for a verdict that waits grows old.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(1);

pub struct Leader {
    pub own: NodeId,
    pub registry: Registry,
    pub proposer: Proposer,
    pub membership: Membership,
}

impl Leader {
    pub async fn run(self, stop: Stop) {
        let start = Instant::now();
        let mut newcomers = Newcomers::default();
        let mut contact = Contact::default();
        let mut seen = self.membership.watch();
        loop {
            if self.leads() {
                self.look_around(&mut newcomers, &mut contact, start).await;
            } else {
                newcomers = Newcomers::default();
            }
            tokio::select! {
                () = stop.requested() => return,
                Ok(()) = seen.changed() => { seen.borrow_and_update(); }
                () = beat(LOOK_PERIOD) => {}
            }
        }
    }

    fn leads(&self) -> bool {
        self.registry.standing().leader == Some(self.own)
    }

    /// To one that is cut off all others look dead: a majority must agree that it leads before it
    /// says so.
    async fn look_around(&self, newcomers: &mut Newcomers, contact: &mut Contact, start: Instant) {
        if self.newly_dead(newcomers, start).is_empty() {
            return;
        }
        let by_majority = self.registry.barrier(CONFIRM_TIME_MAX).await.is_ok() && self.leads();
        if !contact.confirmed(by_majority, start.elapsed()) {
            return;
        }
        for (node, epoch) in self.newly_dead(newcomers, start) {
            self.call_dead(node, epoch).await;
        }
    }

    fn newly_dead(&self, newcomers: &mut Newcomers, start: Instant) -> Vec<(NodeId, Epoch)> {
        let nodes = self.registry.read(|state| state.nodes().clone());
        newcomers.newly_dead(&nodes, &self.membership.view(), self.own, start.elapsed())
    }

    async fn call_dead(&self, node: NodeId, epoch: Epoch) {
        tracing::warn!(%node, "is dead, says gossip");
        let why = "it does not answer its neighbours".to_string();
        let down = command::Kind::NodeDown(NodeDown { node: node.0, epoch: epoch.0, why });
        if let Err(error) = self.proposer.propose(down, COMMAND_TIME_MAX).await {
            tracing::warn!(%node, %error, "cannot record a death");
        }
    }
}

pub fn wall_clock() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
