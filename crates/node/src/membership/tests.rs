//! Gossip under virtual time: a network with delay and loss, deaths, stalls and partitions.

use super::codec::{Identity, RUN_STRIDE};
use super::gossip::{Gossip, MemberState, PacketError, Timings};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use unum_proto::cluster::Load;
use unum_proto::ids::NodeId;

const MS: Duration = Duration::from_millis(1);
const TIMINGS: Timings = Timings {
    period: Duration::from_millis(250),
    timeout: Duration::from_millis(100),
    suspicion: Duration::from_millis(750),
};

/// Nodes 1..=n, each with its machine, in a network that a test can hurt.
struct Net {
    now: Duration,
    nodes: BTreeMap<NodeId, Gossip>,
    in_flight: BTreeMap<(Duration, u64), (NodeId, NodeId, Bytes)>,
    /// Nodes whose daemon does not run until the given time; packets wait in its sockets.
    stalled: BTreeMap<NodeId, Duration>,
    cut: BTreeSet<(NodeId, NodeId)>,
    loss_percent: u64,
    random: u64,
    packets: u64,
    false_alarms: Vec<String>,
    dead: BTreeSet<NodeId>,
}

impl Net {
    fn new(count: u64, seed: u64) -> Self {
        let mut net = Self {
            now: Duration::from_secs(1000),
            nodes: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            stalled: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss_percent: 0,
            random: seed,
            packets: 0,
            false_alarms: Vec::new(),
            dead: BTreeSet::new(),
        };
        for id in 1..=count {
            net.boot(id, 1, count);
        }
        net
    }

    fn boot(&mut self, id: u64, run: u64, count: u64) {
        let own = Identity { node: NodeId(id), run: run * RUN_STRIDE };
        let seed = self.draw();
        let mut gossip = Gossip::new(own, TIMINGS, seed, self.now);
        gossip.set_contacts((1..=count).map(NodeId), self.now);
        self.nodes.insert(NodeId(id), gossip);
        self.dead.remove(&NodeId(id));
    }

    fn kill(&mut self, id: u64) {
        self.nodes.remove(&NodeId(id));
        self.dead.insert(NodeId(id));
    }

    fn draw(&mut self) -> u64 {
        self.random =
            self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.random >> 33
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += MS;
            self.deliver();
            self.tick();
            if self.now.as_millis().is_multiple_of(20) {
                self.look_for_false_alarms();
            }
        }
    }

    fn runs(&self, node: NodeId) -> bool {
        self.stalled.get(&node).is_none_or(|until| *until <= self.now)
    }

    fn deliver(&mut self) {
        let due: Vec<_> = self.in_flight.range(..=(self.now, u64::MAX)).map(|(k, _)| *k).collect();
        for key in due {
            let Some((from, to, packet)) = self.in_flight.remove(&key) else { continue };
            if !self.runs(to) {
                self.in_flight.insert((self.now + MS * 3, key.1), (from, to, packet));
            } else if let Some(gossip) = self.nodes.get_mut(&to) {
                let _ = gossip.receive(from, &packet, self.now);
            }
        }
    }

    fn tick(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            if !self.runs(id) {
                continue;
            }
            let now = self.now;
            let Some(gossip) = self.nodes.get_mut(&id) else { continue };
            if gossip.next_wakeup().is_some_and(|at| at <= now) {
                gossip.tick(now);
            }
            for out in gossip.take_outgoing() {
                self.send(id, out.to, out.packet);
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, packet: Bytes) {
        self.packets += 1;
        let lost = self.draw() % 100 < self.loss_percent;
        if !lost && !self.cut.contains(&(from, to)) {
            let delay = MS * (1 + self.draw() % 5) as u32;
            self.in_flight.insert((self.now + delay, self.packets), (from, to, packet));
        }
    }

    fn look_for_false_alarms(&mut self) {
        for (id, gossip) in &self.nodes {
            for (other, member) in gossip.view(self.now) {
                let lives = !self.dead.contains(&other) && self.cut.is_empty();
                if lives && member.state == MemberState::Down {
                    self.false_alarms.push(format!("{id} of {other} at {:?}", self.now));
                }
            }
        }
    }

    fn states(&self, id: u64) -> Vec<MemberState> {
        let view = self.nodes.get(&NodeId(id)).map(|gossip| gossip.view(self.now));
        view.unwrap_or_default().values().map(|member| member.state).collect()
    }

    fn all_alive(&self, count: u64) -> bool {
        (1..=count).all(|id| self.states(id) == vec![MemberState::Alive; count as usize])
    }

    /// How long until every living node calls `id` dead.
    fn time_to_know(&mut self, id: u64) -> Duration {
        let from = self.now;
        let knows = |gossip: &Gossip, now| {
            gossip.view(now).get(&NodeId(id)).map(|m| m.state) == Some(MemberState::Down)
        };
        while !self.nodes.values().all(|gossip| knows(gossip, self.now)) {
            self.run(MS * 5);
            assert!(self.now - from < Duration::from_secs(60), "never known");
        }
        self.now - from
    }
}

#[test]
fn the_dead_are_known_soon() {
    for seed in 0..30 {
        for (count, limit) in [(2, 2000), (3, 2000), (5, 2000), (12, 3000)] {
            let mut net = Net::new(count, seed);
            net.run(MS * (3000 + 37 * seed as u32));
            assert!(net.all_alive(count));
            net.kill(2);
            let known = net.time_to_know(2);
            assert!(known < MS * limit, "{known:?} with {count} nodes, seed {seed}");
            assert_eq!(net.false_alarms, Vec::<String>::new());
        }
    }
}

#[test]
fn loss_and_stalls_raise_no_false_alarm() {
    for seed in 0..10 {
        let mut net = Net::new(3, seed);
        net.loss_percent = 2;
        net.run(MS * 2000);
        for _ in 0..60 {
            let node = NodeId(1 + net.draw() % 3);
            let length = MS * (net.draw() % 600) as u32;
            net.stalled.insert(node, net.now + length);
            net.run(MS * 1000);
        }
        assert_eq!(net.false_alarms, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_stalled_daemon_accuses_nobody() {
    let mut net = Net::new(3, 7);
    net.run(MS * 3000);
    net.stalled.insert(NodeId(1), net.now + MS * 20_000);
    net.dead.insert(NodeId(1));
    net.run(MS * 20_000);
    assert_eq!(net.states(2), [MemberState::Down, MemberState::Alive, MemberState::Alive]);
    net.run(MS * 6000);
    assert!(net.all_alive(3), "it comes back: {:?}", net.states(1));
    assert_eq!(net.false_alarms, Vec::<String>::new());
}

#[test]
fn a_new_run_replaces_the_old_one() {
    let mut net = Net::new(3, 1);
    net.run(MS * 3000);
    net.kill(3);
    net.run(MS * 300);
    net.boot(3, 2, 3);
    net.run(MS * 3000);
    assert!(net.all_alive(3));
    let view = net.nodes[&NodeId(1)].view(net.now);
    assert!(view[&NodeId(3)].run >= 2 * RUN_STRIDE);
    assert_eq!(net.false_alarms, Vec::<String>::new());
}

#[test]
fn a_partition_is_seen_by_both_sides_and_heals() {
    let mut net = Net::new(3, 3);
    net.run(MS * 3000);
    let sides = [(1, 3), (2, 3), (3, 1), (3, 2)];
    net.cut = sides.iter().map(|(a, b)| (NodeId(*a), NodeId(*b))).collect();
    net.run(MS * 4000);
    use MemberState::{Alive, Down};
    assert_eq!(net.states(1), [Alive, Alive, Down]);
    assert_eq!(net.states(3), [Down, Down, Alive]);
    net.cut.clear();
    net.dead.extend([NodeId(1), NodeId(2), NodeId(3)]);
    net.run(MS * 5000);
    assert!(net.all_alive(3), "{:?} {:?}", net.states(1), net.states(3));
}

#[test]
fn a_suspicion_of_the_living_ends() {
    for seed in 0..40 {
        let mut net = Net::new(4, seed);
        net.dead.extend((1..=4).map(NodeId));
        net.run(MS * 2000);
        for _ in 0..3 {
            let alone = NodeId(1 + net.draw() % 4);
            let others = (1..=4).map(NodeId).filter(|node| *node != alone);
            net.cut = others.flat_map(|node| [(alone, node), (node, alone)]).collect();
            let length = MS * (500 + net.draw() % 1500) as u32;
            net.run(length);
            net.cut.clear();
            net.run(MS * 100);
        }
        net.run(MS * 6000);
        let states: Vec<_> = (1..=4).map(|id| net.states(id)).collect();
        assert!(net.all_alive(4), "seed {seed}: {states:?}");
    }
}

#[test]
fn a_contact_that_never_answers_is_down_after_a_while() {
    let mut net = Net::new(2, 3);
    net.kill(2);
    net.run(MS * 300);
    assert_eq!(net.states(1), [MemberState::Alive, MemberState::Unknown]);
    net.run(MS * 2500);
    assert_eq!(net.states(1), [MemberState::Alive, MemberState::Down]);
}

#[test]
fn a_contact_learnt_during_a_stall_is_no_older_than_now() {
    let own = Identity { node: NodeId(1), run: 1 };
    let mut gossip = Gossip::new(own, TIMINGS, 1, Duration::ZERO);
    gossip.set_contacts([NodeId(2)], Duration::ZERO);
    gossip.tick(MS * 1);
    gossip.set_contacts([NodeId(2), NodeId(3)], MS * 900);
    gossip.tick(MS * 901);
    assert_eq!(gossip.view(MS * 902)[&NodeId(3)].state, MemberState::Unknown);
}

#[test]
fn loads_reach_everybody_and_the_newest_wins() {
    let mut net = Net::new(8, 5);
    net.run(MS * 3000);
    for programs in 1..=4 {
        let load = Load { programs, ..Load::default() };
        net.nodes.get_mut(&NodeId(4)).unwrap().report(load);
        net.run(MS * 1500);
    }
    for gossip in net.nodes.values() {
        let load = gossip.view(net.now)[&NodeId(4)].load;
        assert_eq!(load.map(|load| load.programs), Some(4));
    }
}

#[test]
fn a_newcomer_learns_the_loads_of_all_soon() {
    let mut net = Net::new(3, 14);
    net.run(MS * 2000);
    for id in 1..=3 {
        let load = Load { programs: 4, ..Load::default() };
        net.nodes.get_mut(&NodeId(id)).unwrap().report(load);
    }
    net.run(MS * 8000);
    net.kill(2);
    net.run(MS * 500);
    net.boot(2, 2, 3);
    net.run(MS * 1500);
    let view = net.nodes[&NodeId(2)].view(net.now);
    let known = |id: u64| view[&NodeId(id)].load.map(|load| load.programs);
    assert_eq!((known(1), known(3)), (Some(4), Some(4)));
}

#[test]
fn a_packet_in_another_name_is_refused() {
    let mut net = Net::new(3, 5);
    net.run(MS * 400);
    let one = net.nodes.get_mut(&NodeId(1)).unwrap();
    one.leave(net.now);
    let packet = one.take_outgoing().remove(0);
    let two = net.nodes.get_mut(&NodeId(2)).unwrap();
    let claimed = two.receive(NodeId(3), &packet.packet, net.now);
    assert!(matches!(claimed, Err(PacketError::Impostor { .. })));
    let stranger = two.receive(NodeId(9), &packet.packet, net.now);
    assert!(matches!(stranger, Err(PacketError::Impostor { .. })));
}

#[test]
fn a_goodbye_is_known_at_once() {
    let mut net = Net::new(3, 9);
    net.run(MS * 3000);
    let now = net.now;
    net.nodes.get_mut(&NodeId(3)).unwrap().leave(now);
    net.tick();
    net.kill(3);
    net.run(MS * 300);
    assert_eq!(net.states(1)[2], MemberState::Down);
}

#[test]
fn an_idle_cluster_is_quiet() {
    let mut net = Net::new(3, 2);
    net.run(MS * 5000);
    let before = net.packets;
    net.run(MS * 10_000);
    let per_second = (net.packets - before) / 10;
    assert!(per_second < 40, "{per_second} packets/s in the whole cluster");
}

proptest::proptest! {
    #[test]
    fn bytes_from_a_peer_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let mut net = Net::new(2, 1);
        let _ = net.nodes.get_mut(&NodeId(1)).unwrap().receive(NodeId(2), &bytes, net.now);
    }

    #[test]
    fn a_damaged_packet_never_panics(at in 0usize..300, value: u8, turn in 0usize..50) {
        let mut net = Net::new(3, 1);
        net.run(MS * (20 * turn as u32));
        let (key, (from, to, packet)) = match net.in_flight.pop_first() {
            Some(entry) => entry,
            None => return Ok(()),
        };
        let mut bytes = packet.to_vec();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = net.nodes.get_mut(&to).unwrap().receive(from, &bytes, key.0);
        net.run(MS * 50);
    }
}
