//! Commands of this daemon's run: each gets the next number of the run's lane.

use crate::registry::{Registry, RegistryError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use unum_proto::ids::{Lane, RequestId};
use unum_proto::registry::{command, reply};

/// Proposes on behalf of this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Proposer {
    registry: Registry,
    lane: Lane,
    next: Arc<AtomicU64>,
}

impl Proposer {
    pub fn new(registry: Registry) -> Self {
        Self { registry, lane: Lane(rand::random()), next: Arc::default() }
    }

    pub async fn propose(
        &self,
        kind: command::Kind,
        within: Duration,
    ) -> Result<reply::Kind, RegistryError> {
        let id = RequestId { lane: self.lane, seq: self.next.fetch_add(1, Ordering::Relaxed) };
        self.registry.propose_within(id, kind, within).await
    }
}
