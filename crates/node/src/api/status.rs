//! What the daemon tells of the cluster and of itself. It answers within a bounded time, with a
//! majority or without: what it then says is its own knowledge, and it says so.

use super::Api;
use crate::cluster::facts::VERSION;
use crate::cluster::leader::wall_clock;
use crate::cluster::observe::members;
use crate::cluster::running::Parts;
use crate::daemon::Phase;
use crate::membership::{MemberState, View};
use crate::registry::{RegistryError, Standing};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use unum_core::registry::voters::{self, Health};
use unum_core::registry::{Node, Nodes};
use unum_net::{Incoming, Status, TurnedAway};
use unum_proto::admin::{
    DaemonState, Node as ShownNode, NodeRole, NodeState as Shown, NodesReply, NodesRequest,
    StatusReply, StatusRequest,
};
use unum_proto::registry::{NodeState, Role};

/// How long an answer waits for the majority before it is given from local knowledge.
const MAJORITY_TIME_MAX: Duration = Duration::from_millis(800);
/// A store with less room than this share of its size is worth a warning.
const ROOM_WARNING_SHARE: u64 = 20;

pub async fn nodes(
    api: Arc<Api>,
    _incoming: Incoming,
    _request: NodesRequest,
) -> Result<NodesReply, Status> {
    let parts = api.parts()?;
    // A failure leaves what is known here, which is all that there is without a majority.
    let majority = parts.registry.barrier(MAJORITY_TIME_MAX).await;
    let consensus = parts.registry.standing();
    let view = parts.membership.view();
    let nodes = parts.registry.read(|state| state.nodes().clone());
    let shown = |node| shown_node(&parts, node, &view, &consensus);
    Ok(NodesReply { nodes: nodes.members().map(shown).collect(), no_quorum: majority.is_err() })
}

fn shown_node(parts: &Parts, node: &Node, view: &View, consensus: &Standing) -> ShownNode {
    let member = view.get(&node.id);
    let load = member.and_then(|member| member.load).unwrap_or_default();
    let described = &node.description;
    let state = shown_state(node, member.map(|member| member.state));
    ShownNode {
        id: node.id.0,
        name: node.name.clone(),
        state: state.into(),
        role: shown_role(node.role).into(),
        voter: consensus.voters.contains(&node.id),
        leader: consensus.leader == Some(node.id),
        address: described.addresses.first().cloned().unwrap_or_default(),
        cores: described.cores,
        load_milli: load.load_milli,
        memory_bytes: described.memory_bytes,
        memory_free_bytes: load.memory_free,
        epoch: node.epoch.0,
        version: described.version.clone(),
        joined_ms: node.joined.0 / 1_000_000,
        heard_ms: heard_ms(parts, node, state),
        processes: load.programs,
        arch: described.architecture.clone(),
    }
}

/// Gossip knows first; the registry knows what gossip cannot.
fn shown_state(node: &Node, heard: Option<MemberState>) -> Shown {
    match (node.state, heard) {
        (NodeState::Left | NodeState::Removed | NodeState::Unspecified, _) => Shown::Leaving,
        (NodeState::Joining, _) => Shown::Joining,
        (NodeState::Down, _) | (_, Some(MemberState::Down)) => Shown::Dead,
        (NodeState::Up, Some(MemberState::Alive)) => Shown::Alive,
        (NodeState::Up, Some(MemberState::Suspect)) => Shown::Suspect,
        (NodeState::Up, Some(MemberState::Unknown) | None) => Shown::Unspecified,
    }
}

fn shown_role(role: Role) -> NodeRole {
    match role {
        Role::Node => NodeRole::Node,
        Role::Witness => NodeRole::Witness,
        Role::Unspecified => NodeRole::Unspecified,
    }
}

/// As precise as gossip: a node that is alive has answered within a probe or two.
fn heard_ms(parts: &Parts, node: &Node, state: Shown) -> u64 {
    match state {
        _ if node.id == parts.node => 0,
        Shown::Alive => wall_clock().0 / 1_000_000,
        _ => node.since.0 / 1_000_000,
    }
}

pub async fn status(
    api: Arc<Api>,
    _incoming: Incoming,
    _request: StatusRequest,
) -> Result<StatusReply, Status> {
    let own = StatusReply {
        state: daemon_state(api.shared.phase()).into(),
        version: VERSION.into(),
        daemon_pid: std::process::id(),
        started_ms: unix_ms(api.shared.started),
        ..StatusReply::default()
    };
    match api.shared.parts() {
        Some(parts) => Ok(cluster_status(&parts, own).await),
        None => Ok(own),
    }
}

fn daemon_state(phase: Phase) -> DaemonState {
    match phase {
        Phase::Solitary => DaemonState::Solitary,
        Phase::Starting => DaemonState::Starting,
        Phase::Running => DaemonState::Ready,
        Phase::Stopping => DaemonState::Stopping,
    }
}

async fn cluster_status(parts: &Parts, own: StatusReply) -> StatusReply {
    let majority = parts.registry.barrier(MAJORITY_TIME_MAX).await;
    let consensus = parts.registry.standing();
    let view = parts.membership.view();
    let nodes = parts.registry.read(|state| state.nodes().clone());
    let now = wall_clock();
    let members = members(&nodes, &view, parts.node, now);
    let alive = |member: &&voters::Member| member.health == Health::Alive;
    let votes = |member: &&voters::Member| consensus.voters.contains(&member.id);
    let (losses, losses_reason) = match consensus.settled {
        true => (
            voters::losses_survivable(&members, &consensus.voters).unwrap_or(0),
            voters::explain(&members, &consensus.voters),
        ),
        false => (0, "the voters are just being changed; ask again in a moment".into()),
    };
    let state = if majority.is_ok() { own.state } else { DaemonState::NoQuorum.into() };
    StatusReply {
        state,
        cluster: parts.identity.cluster().to_string(),
        node: parts.node.0,
        name: parts.name.clone(),
        address: parts.address.clone(),
        leader: consensus.leader.map_or(0, |leader| leader.0),
        term: consensus.term,
        applied: consensus.applied,
        nodes: members.len() as u32,
        nodes_alive: members.iter().filter(alive).count() as u32,
        voters: consensus.voters.len() as u32,
        voters_alive: members.iter().filter(votes).filter(alive).count() as u32,
        losses_survivable: losses as u32,
        losses_reason,
        certificate_expires_ms: unix_ms(parts.identity.expires()),
        chunks_degraded: parts.services.chunks_degraded(),
        mount: parts.services.mount().map_or_else(String::new, |path| path.display().to_string()),
        upkeep: Some(parts.services.contents.standing()),
        warnings: warnings(parts, &nodes, &consensus, majority.err()),
        ..own
    }
}

fn warnings(
    parts: &Parts,
    nodes: &Nodes,
    consensus: &Standing,
    majority: Option<RegistryError>,
) -> Vec<String> {
    let mut told = Vec::new();
    if let Some(error) = majority {
        told.push(format!(
            "no majority of the voters answers ({error}): changes are refused, and what is shown \
             is what this node knew last; bring voters back or heal the network"
        ));
    }
    if consensus.disk_full {
        told.push(
            "the disk under the data directory is full: changes are refused until there is room"
                .into(),
        );
    } else if let Some((free, total)) = room(&parts.settings.data_dir)
        && free < total / ROOM_WARNING_SHARE
    {
        told.push(format!(
            "only {} MiB are free of {} MiB under {}",
            free >> 20,
            total >> 20,
            parts.settings.data_dir.display()
        ));
    }
    if parts.epoch().is_none() {
        told.push("this node has not come up in the registry yet".into());
    }
    told.extend(turned_away(parts));
    told.extend(parts.services.limits.iter().cloned());
    for node in nodes.members().filter(|node| node.state == NodeState::Down) {
        told.push(format!("{} is dead: {}", node.name, node.why));
    }
    told
}

/// Waiting does not help a node that the others do not take for one of theirs.
fn turned_away(parts: &Parts) -> Option<String> {
    let expired = parts.identity.expires() < SystemTime::now();
    let why = parts.identity.turned_away();
    why.or(expired.then_some(TurnedAway::Expired)).map(|why| advice(why, &parts.name))
}

/// What a person can do for a node that the others turn away.
pub fn advice(why: TurnedAway, name: &str) -> String {
    match why {
        TurnedAway::Removed => "the other nodes refuse this one: it was removed from the cluster; \
                                to bring the machine back, run `unum leave --force` here, then \
                                `unum join` with a new token"
            .into(),
        TurnedAway::Expired => format!(
            "the other nodes refuse this one: its certificate has expired, since it was off or \
             without a leader for too long; run `unum remove {name}` on another node, then here \
             `unum leave --force` and `unum join` with a new token. If this machine's clock is \
             wrong, set it and restart unumd instead"
        ),
    }
}

fn room(path: &std::path::Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize))
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
