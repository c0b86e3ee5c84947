//! What the registry and gossip together say of the members. Pure.

use crate::membership::{MemberState, View};
use std::collections::BTreeMap;
use std::time::Duration;
use unum_core::registry::voters::{Health, Member};
use unum_core::registry::{Node, Nodes};
use unum_core::time::Time;
use unum_proto::ids::{Epoch, NodeId};
use unum_proto::registry::NodeState;

/// A node that has just come up is not called dead for so long: what gossip knows may still be of
/// its former run.
pub const NEWCOMER_GRACE: Duration = Duration::from_secs(3);
/// For so long after a leader was cut off, gossip's word about the others may be of that time.
const CONTACT_GRACE: Duration = Duration::from_secs(3);

/// The members as the judgement of the cluster's health wants them. Whose log is how far only the
/// leader knows, and that judgement does not ask.
pub fn members(nodes: &Nodes, view: &View, own: NodeId, now: Time) -> Vec<Member> {
    nodes
        .members()
        .map(|node| Member {
            id: node.id,
            role: node.role,
            health: health(node, view, own, now),
            caught_up: true,
        })
        .collect()
}

fn health(node: &Node, view: &View, own: NodeId, now: Time) -> Health {
    let heard = match view.get(&node.id).map(|member| member.state) {
        Some(MemberState::Alive | MemberState::Suspect) => true,
        Some(MemberState::Unknown | MemberState::Down) | None => node.id == own,
    };
    match (node.state, heard) {
        (NodeState::Up, true) => Health::Alive,
        // Not yet agreed upon: it is dead from now on.
        (NodeState::Up, false) => Health::DeadSince(now),
        _ => Health::DeadSince(node.since),
    }
}

/// Remembers since when each node is up under its present epoch, on this node's clock.
#[derive(Debug, Default)]
pub struct Newcomers(BTreeMap<NodeId, (Epoch, Duration)>);

impl Newcomers {
    /// The nodes that the registry calls up and gossip calls down, with the epochs to end.
    pub fn newly_dead(
        &mut self,
        nodes: &Nodes,
        view: &View,
        own: NodeId,
        now: Duration,
    ) -> Vec<(NodeId, Epoch)> {
        self.learn(nodes, now);
        nodes
            .members()
            .filter(|node| node.state == NodeState::Up && node.id != own)
            .filter(|node| is_down(view, node.id) && self.age(node.id, now) >= NEWCOMER_GRACE)
            .map(|node| (node.id, node.epoch))
            .collect()
    }

    fn learn(&mut self, nodes: &Nodes, now: Duration) {
        let old = std::mem::take(&mut self.0);
        let first_time = old.is_empty();
        for node in nodes.members().filter(|node| node.state == NodeState::Up) {
            let since = match old.get(&node.id) {
                Some((epoch, since)) if *epoch == node.epoch => *since,
                // A leader that is new to its office has gossip's word for those it knows.
                _ if first_time => Duration::ZERO,
                _ => now,
            };
            self.0.insert(node.id, (node.epoch, since));
        }
    }

    fn age(&self, node: NodeId, now: Duration) -> Duration {
        self.0.get(&node).map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since))
    }
}

/// Whether the leader may call others dead: neither while it is cut off itself nor until gossip has
/// had the time to hear everybody again.
#[derive(Debug, Default)]
pub struct Contact {
    lost: Option<Duration>,
}

impl Contact {
    /// Takes in whether a majority has just confirmed that this node leads.
    pub fn confirmed(&mut self, by_majority: bool, now: Duration) -> bool {
        if !by_majority {
            self.lost = Some(now);
        }
        by_majority && self.lost.is_none_or(|at| now.saturating_sub(at) >= CONTACT_GRACE)
    }
}

fn is_down(view: &View, node: NodeId) -> bool {
    view.get(&node).is_some_and(|member| member.state == MemberState::Down)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::MemberView;
    use unum_core::registry::State;
    use unum_proto::registry::{Command, command::Kind};
    use unum_proto::registry::{CreateToken, Found, NodeDown, NodeUp, RegisterNode, Role};

    fn apply(state: &mut State, kind: Kind) {
        let reply = state.apply(Time(1_000_000_000), &Command::from(kind));
        let refused = matches!(reply.kind, Some(unum_proto::registry::reply::Kind::Refused(_)));
        assert!(!refused, "{reply:?}");
    }

    /// Three nodes, all up at epoch 2 but the founder, which is up at epoch 1.
    fn three() -> State {
        let mut state = State::default();
        apply(
            &mut state,
            Kind::Found(Found {
                cluster: vec![7; 16].into(),
                name: "lab".into(),
                authorities_pem: vec!["pem".into()],
                node_name: "n1".into(),
                description: None,
            }),
        );
        for id in 2..=3u64 {
            let hash = bytes::Bytes::from(vec![id as u8; 32]);
            let role = Role::Node.into();
            apply(
                &mut state,
                Kind::CreateToken(CreateToken { hash: hash.clone(), role, ttl_ms: 1000, uid: 0 }),
            );
            apply(
                &mut state,
                Kind::RegisterNode(RegisterNode {
                    token_hash: hash,
                    name: format!("n{id}"),
                    role,
                    description: None,
                }),
            );
            apply(&mut state, Kind::NodeUp(NodeUp { node: id, epoch: 1, ..Default::default() }));
        }
        state
    }

    fn view(states: &[MemberState]) -> View {
        let member = |state| MemberView { state, run: 1, load: None };
        (1..).map(NodeId).zip(states.iter().map(|state| member(*state))).collect()
    }

    use MemberState::{Alive, Down, Suspect, Unknown};

    #[test]
    fn the_dead_are_found_once_they_are_no_newcomers() {
        let mut state = three();
        let mut newcomers = Newcomers::default();
        let second = Duration::from_secs(1);
        let dead = view(&[Alive, Suspect, Down]);
        let mut found = |state: &State, now: u32| {
            newcomers.newly_dead(state.nodes(), &dead, NodeId(1), second * now)
        };
        assert_eq!(found(&state, 100), [(NodeId(3), Epoch(2))], "a new leader acts at once");
        apply(&mut state, Kind::NodeDown(NodeDown { node: 3, epoch: 2, why: String::new() }));
        assert_eq!(found(&state, 101), []);
        apply(&mut state, Kind::NodeUp(NodeUp { node: 3, epoch: 3, ..Default::default() }));
        assert_eq!(found(&state, 102), [], "gossip speaks of the former run");
        assert_eq!(found(&state, 104), []);
        assert_eq!(found(&state, 105), [(NodeId(3), Epoch(4))]);
    }

    #[test]
    fn a_leader_that_was_cut_off_waits_until_gossip_has_caught_up() {
        let second = Duration::from_secs(1);
        let mut contact = Contact::default();
        assert!(contact.confirmed(true, second), "it was elected by a majority");
        assert!(!contact.confirmed(false, second * 2));
        assert!(!contact.confirmed(true, second * 3), "gossip may still say what it said then");
        assert!(!contact.confirmed(true, second * 2 + CONTACT_GRACE - Duration::from_millis(1)));
        assert!(contact.confirmed(true, second * 2 + CONTACT_GRACE));
    }

    #[test]
    fn a_leader_never_calls_itself_dead() {
        let state = three();
        let seen = view(&[Down, Down, Unknown]);
        let found = Newcomers::default().newly_dead(
            state.nodes(),
            &seen,
            NodeId(1),
            Duration::from_secs(9),
        );
        assert_eq!(found, [(NodeId(2), Epoch(2))]);
    }

    #[test]
    fn members_are_alive_when_both_say_so() {
        let mut state = three();
        apply(&mut state, Kind::NodeDown(NodeDown { node: 2, epoch: 2, why: String::new() }));
        let seen = view(&[Alive, Alive, Down]);
        let now = Time(5_000_000_000);
        let members = members(state.nodes(), &seen, NodeId(1), now);
        let health: Vec<Health> = members.iter().map(|member| member.health).collect();
        let since = state.nodes().get(NodeId(2)).unwrap().since;
        assert_eq!(health, [Health::Alive, Health::DeadSince(since), Health::DeadSince(now)]);
    }
}
