//! What the leader does about membership, and every node about its log and disk.
//!
//! The leader brings the members of consensus in line with the registry: newcomers become learners,
//! voters are chosen by `unum_core::registry::voters`, the departed are dropped. One change at a
//! time; each is decided anew from what is committed, so a new leader simply goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::SerdeInstant;
use openraft::{AsyncRuntime, ChangeMembers, Instant, RaftMetrics};
use tokio::sync::watch;
use unum_core::registry::voters::{self, Health, Member};
use unum_core::time::Time;
use unum_proto::ids::NodeId;

use super::limits::{DISK_CHECK, DISK_CHECK_QUIET, LOG_KEPT_ENTRIES, SNAPSHOT_LOG_BYTES};
use super::shell::Core;
use super::types::Types;

/// Heartbeats between two looks at the membership.
const CONTROL_BEATS: u32 = 2;
/// A member whose last acknowledgement is older than this counts as dead.
const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// Entries that a learner may lag behind and still count as caught up.
const LAG_MAX: u64 = 1000;
/// One change of the membership.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks after the membership while this node leads.
pub async fn control_members<RT: AsyncRuntime>(core: Arc<Core<RT>>) {
    let mut dead = Silence::<RT>::default();
    loop {
        if !core.raft.server_metrics().borrow_watched().state.is_leader() {
            dead = Silence::default();
            if core.raft.server_metrics().wait_until(|now| now.state.is_leader()).await.is_err() {
                return;
            }
        }
        core.pace.beats(CONTROL_BEATS).await;
        let metrics = core.raft.metrics().borrow_watched().clone();
        if metrics.running_state.is_err() {
            return;
        }
        if metrics.current_leader != Some(core.own) || !metrics.state.is_leader() {
            dead = Silence::default();
            continue;
        }
        let now = (core.clock)();
        let members = members(&core, &metrics, &mut dead, now);
        if let Some(change) = next_change(&metrics, &members, now) {
            // A failure shows in the next look; the change is then decided anew.
            let retain = true;
            let _ = RT::timeout(CHANGE_TIMEOUT, core.raft.change_membership(change, retain)).await;
        }
    }
}

/// Whether an acknowledgement shows that its sender lives.
pub fn is_recent<RT: AsyncRuntime>(at: SerdeInstant<RT::Instant>) -> bool {
    at.elapsed() < SILENCE_MAX
}

/// Since when members are silent.
struct Silence<RT>(BTreeMap<NodeId, Time>, std::marker::PhantomData<fn() -> RT>);

impl<RT> Default for Silence<RT> {
    fn default() -> Self {
        Self(BTreeMap::new(), std::marker::PhantomData)
    }
}

impl<RT: AsyncRuntime> Silence<RT> {
    fn judge(&mut self, metrics: &RaftMetrics<Types<RT>>, id: NodeId, now: Time) -> Health {
        let heard = metrics.heartbeat.as_ref().and_then(|beats| beats.get(&id)).copied().flatten();
        let alive = id == metrics.id || heard.is_some_and(is_recent::<RT>);
        if alive {
            self.0.remove(&id);
            return Health::Alive;
        }
        Health::DeadSince(*self.0.entry(id).or_insert(now))
    }
}

fn members<RT: AsyncRuntime>(
    core: &Core<RT>,
    metrics: &RaftMetrics<Types<RT>>,
    silence: &mut Silence<RT>,
    now: Time,
) -> Vec<Member> {
    let last = metrics.last_log_index.unwrap_or(0);
    let matched = |id: NodeId| {
        let replication = metrics.replication.as_ref()?;
        replication.get(&id).copied().flatten().map(|log_id| log_id.index)
    };
    let applied = core.shared.read();
    let nodes = applied.state.nodes().members();
    nodes
        .map(|node| Member {
            id: node.id,
            role: node.role,
            health: silence.judge(metrics, node.id, now),
            caught_up: node.id == metrics.id
                || matched(node.id).is_some_and(|index| index + LAG_MAX >= last),
        })
        .collect()
}

fn next_change<RT: AsyncRuntime>(
    metrics: &RaftMetrics<Types<RT>>,
    members: &[Member],
    now: Time,
) -> Option<ChangeMembers<NodeId, ()>> {
    // Before the cluster is founded the registry knows nobody.
    if members.is_empty() {
        return None;
    }
    let membership = metrics.membership_config.membership();
    let in_consensus: BTreeSet<NodeId> = membership.nodes().map(|(id, _)| *id).collect();
    let in_registry: BTreeSet<NodeId> = members.iter().map(|member| member.id).collect();
    let newcomers: BTreeMap<NodeId, ()> =
        in_registry.difference(&in_consensus).map(|id| (*id, ())).collect();
    if !newcomers.is_empty() {
        return Some(ChangeMembers::AddNodes(newcomers));
    }
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    if let Some(change) = voters::decide(members, &voters, now) {
        tracing::info!(voters = ?change.voters, why = ?change.why, "changing the voters");
        return Some(ChangeMembers::ReplaceAllVoters(change.voters));
    }
    let departed: BTreeSet<NodeId> =
        in_consensus.difference(&in_registry).filter(|id| !voters.contains(id)).copied().collect();
    (!departed.is_empty()).then_some(ChangeMembers::RemoveNodes(departed))
}

/// Keeps the log short and the disk's room known: often while entries come or there is no room,
/// seldom while only others can fill the disk.
pub async fn keep_house<RT: AsyncRuntime>(core: Arc<Core<RT>>) {
    let mut applied = core.shared.watch();
    let mut server = core.raft.server_metrics();
    loop {
        let ended = server.wait_until(|_| false);
        let due = until_house_needs(&core, &mut applied);
        if let Either::Left(_) = select(pin!(ended), pin!(due)).await {
            return;
        }
        let metrics = core.raft.metrics().borrow_watched().clone();
        if metrics.running_state.is_err() {
            return;
        }
        let room = core.room.clone();
        core.offload.run(move || room.look()).await;
        if core.log.bytes() > SNAPSHOT_LOG_BYTES {
            let applied = metrics.last_applied.map_or(0, |id| id.index);
            let snapshot = metrics.snapshot.map_or(0, |id| id.index);
            // Consensus that has stopped shows in the metrics.
            let _ = match applied > snapshot + LOG_KEPT_ENTRIES {
                true => core.raft.trigger().snapshot().await,
                false => core.raft.trigger().purge_log(snapshot).await,
            };
        }
    }
}

async fn until_house_needs<RT: AsyncRuntime>(core: &Core<RT>, applied: &mut watch::Receiver<u64>) {
    applied.borrow_and_update();
    let busy = async {
        if !core.room.is_full() {
            select(pin!(applied.changed()), pin!(core.room.until_exhausted())).await;
        }
        RT::sleep(DISK_CHECK).await;
    };
    select(pin!(busy), pin!(RT::sleep(DISK_CHECK_QUIET))).await;
}
