//! Commands of this daemon's run: each gets the next number of the run's lane.

use crate::registry::{Registry, RegistryError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use unum_proto::ids::{Lane, RequestId};
use unum_proto::registry::{command, reply};

/// The wait before a fenced command is proposed again.
const FENCED_PAUSE: Duration = Duration::from_millis(20);

/// What a program of this machine says to all.
const PROPOSAL: &str = "registry.tell";

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

    /// A command that is fenced has changed nothing. While this node comes up anew that is a matter
    /// of a moment, so the command is proposed again, unless it speaks of an epoch itself.
    pub async fn propose(
        &self,
        kind: command::Kind,
        within: Duration,
    ) -> Result<reply::Kind, RegistryError> {
        self.propose_indexed(kind, within).await.map(|(reply, _)| reply)
    }

    /// With the index of a log entry at or behind the command.
    pub async fn propose_indexed(
        &self,
        kind: command::Kind,
        within: Duration,
    ) -> Result<(reply::Kind, u64), RegistryError> {
        let id = RequestId { lane: self.lane, seq: self.next.fetch_add(1, Ordering::Relaxed) };
        let deadline = Instant::now() + within;
        propose_as(&self.registry, id, kind, deadline).await
    }
}

/// The same under a request id of the caller's, with the index of a log entry at or behind the
/// command. What is fenced is not remembered: it goes out again under the same id.
pub async fn propose_as(
    registry: &Registry,
    id: RequestId,
    kind: command::Kind,
    deadline: Instant,
) -> Result<(reply::Kind, u64), RegistryError> {
    if says_something(&kind) {
        registry.departures().pass(PROPOSAL).await;
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match registry.propose_indexed(id, kind.clone(), left).await {
            Err(RegistryError::Fenced { .. })
                if !names_epoch(&kind) && Instant::now() + FENCED_PAUSE < deadline =>
            {
                tokio::time::sleep(FENCED_PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Whether others will see in it what a program of this machine did.
fn says_something(kind: &command::Kind) -> bool {
    matches!(
        kind,
        command::Kind::Tree(_)
            | command::Kind::PutValue(_)
            | command::Kind::DeleteValue(_)
            | command::Kind::CompareAndSet(_)
    )
}

fn names_epoch(kind: &command::Kind) -> bool {
    matches!(
        kind,
        command::Kind::NodeUp(_)
            | command::Kind::NodeDown(_)
            | command::Kind::LeaveNode(_)
            | command::Kind::LeasePids(_)
            | command::Kind::ReturnPids(_)
    )
}
