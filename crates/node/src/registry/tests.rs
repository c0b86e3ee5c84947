//! Three registries in one process, on real time and real directories, joined by an in-process
//! transport whose links can be cut. What needs faults and virtual time is in the simulator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use unum_proto::ids::{Epoch, Lane, NodeId, RequestId};
use unum_proto::registry::command::Kind;
use unum_proto::registry::{self as wire, reply};

use super::transport::{Answer, Call, Transport, Unreached};
use super::{Options, Registry, RegistryError, Standing};
use crate::store::disk::RealDisk;

const WAIT: Duration = Duration::from_secs(10);

/// Who can be reached, by id.
#[derive(Default)]
struct Wires {
    nodes: BTreeMap<NodeId, Registry>,
    cut: BTreeSet<NodeId>,
    /// Nodes without power: what is sent to them stays unanswered, and nobody is told.
    mute: BTreeSet<NodeId>,
}

#[derive(Clone, Default)]
struct Lan(Arc<Mutex<Wires>>);

impl Lan {
    fn is_mute(&self, node: NodeId) -> bool {
        self.0.lock().unwrap().mute.contains(&node)
    }
}

struct Port {
    lan: Lan,
    own: NodeId,
}

impl Transport for Port {
    fn call(
        &self,
        to: NodeId,
        call: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, Unreached>> {
        let (lan, own) = (self.lan.clone(), self.own);
        async move {
            if lan.is_mute(own) || lan.is_mute(to) {
                return silence(to, call, within).await;
            }
            let peer = {
                let wires = lan.0.lock().unwrap();
                let cut = wires.cut.contains(&own) || wires.cut.contains(&to);
                wires.nodes.get(&to).filter(|_| !cut).cloned()
            };
            let peer = peer.ok_or(Unreached::Unreachable(to, "cut".into()))?;
            match tokio::time::timeout(within, peer.answer(own, call)).await {
                Ok(answer) => answer.map_err(|error| Unreached::Refused(to, error.to_string())),
                Err(_) => Err(Unreached::Timeout(to)),
            }
        }
        .boxed()
    }
}

/// Calls to a leader that lost its power last until somebody gives them up.
async fn silence(to: NodeId, call: Call, within: Duration) -> Result<Answer, Unreached> {
    match call {
        Call::Propose(_) | Call::Barrier(_) | Call::Stable(_) => std::future::pending().await,
        _ => tokio::time::sleep(within).await,
    }
    Err(Unreached::Timeout(to))
}

struct Cluster {
    lan: Lan,
    dirs: BTreeMap<NodeId, tempfile::TempDir>,
    seq: u64,
}

impl Cluster {
    async fn found() -> Self {
        let mut cluster = Self { lan: Lan::default(), dirs: BTreeMap::new(), seq: 0 };
        let first = cluster.start(NodeId(1)).await;
        first.initialize().await.unwrap();
        let found = wire::Found {
            cluster: Bytes::from_static(&[7; 16]),
            name: "home".into(),
            authorities_pem: vec!["PEM".into()],
            node_name: "n1".into(),
            description: None,
        };
        let reply = first.propose(cluster.id(), Kind::Found(found)).await.unwrap();
        assert_eq!(reply, reply::Kind::Node(wire::NodeEpoch { node: 1, epoch: 1 }));
        first.set_epoch(Epoch(1));
        cluster
    }

    async fn three() -> Self {
        let mut cluster = Self::found().await;
        cluster.join(2).await;
        cluster.join(3).await;
        let three = |standing: Standing| standing.voters.len() == 3 && standing.settled;
        cluster.until(|c| three(c.node(1).standing()), "three voters").await;
        cluster
    }

    async fn start(&mut self, id: NodeId) -> Registry {
        let dir = self.dirs.entry(id).or_insert_with(|| tempfile::tempdir().unwrap());
        let disk = RealDisk::open(dir.path()).unwrap();
        let port = Port { lan: self.lan.clone(), own: id };
        let options =
            Options { reserve_bytes: 4096, ..Options::new(id, Arc::new(disk), Arc::new(port)) };
        let registry = Registry::start(options).await.unwrap();
        self.lan.0.lock().unwrap().nodes.insert(id, registry.clone());
        registry
    }

    async fn join(&mut self, id: u64) {
        let secret_hash = Bytes::copy_from_slice(blake3::hash(&id.to_le_bytes()).as_bytes());
        let first = self.node(1);
        let token = wire::CreateToken {
            hash: secret_hash.clone(),
            role: wire::Role::Node.into(),
            ttl_ms: 60_000,
            uid: 0,
        };
        first.propose(self.id(), Kind::CreateToken(token)).await.unwrap();
        let register = wire::RegisterNode {
            token_hash: secret_hash,
            name: format!("n{id}"),
            role: wire::Role::Node.into(),
            description: None,
        };
        let reply = first.propose(self.id(), Kind::RegisterNode(register)).await.unwrap();
        assert_eq!(reply, reply::Kind::Node(wire::NodeEpoch { node: id, epoch: 1 }));
        let newcomer = self.start(NodeId(id)).await;
        self.until(|_| newcomer.standing().leader.is_some(), "the newcomer knows the leader").await;
        let up = wire::NodeUp { node: id, epoch: 1, description: None, boot: Bytes::new() };
        newcomer.propose(self.id(), Kind::NodeUp(up)).await.unwrap();
        newcomer.set_epoch(Epoch(2));
    }

    fn node(&self, id: u64) -> Registry {
        self.lan.0.lock().unwrap().nodes.get(&NodeId(id)).unwrap().clone()
    }

    fn id(&mut self) -> RequestId {
        self.seq += 1;
        RequestId { lane: Lane(99), seq: self.seq }
    }

    fn cut(&self, id: NodeId) {
        self.lan.0.lock().unwrap().cut.insert(id);
    }

    fn heal(&self) {
        self.lan.0.lock().unwrap().cut.clear();
    }

    async fn kill(&self, id: NodeId) {
        let node = self.lan.0.lock().unwrap().nodes.remove(&id);
        if let Some(node) = node {
            node.shutdown().await;
        }
    }

    async fn until(&self, mut ready: impl FnMut(&Self) -> bool, what: &str) {
        for _ in 0..500 {
            if ready(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never came: {what}");
    }

    async fn stop(self) {
        for id in self.dirs.keys() {
            self.kill(*id).await;
        }
    }
}

fn put(key: &str, value: &str) -> Kind {
    Kind::PutValue(wire::PutValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    })
}

fn value(registry: &Registry, key: &str) -> Option<Bytes> {
    registry.read(|state| state.values().get(key.as_bytes()).map(|value| value.bytes.clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_writes_another_reads_behind_a_barrier() {
    let mut cluster = Cluster::three().await;
    for round in 0..20 {
        let writer = cluster.node(1 + round % 3);
        let reader = cluster.node(1 + (round + 1) % 3);
        let text = format!("round {round}");
        writer.propose(cluster.id(), put("k", &text)).await.unwrap();
        reader.barrier(WAIT).await.unwrap();
        assert_eq!(value(&reader, "k").as_deref(), Some(text.as_bytes()));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_gets_the_same_reply_on_any_node() {
    let mut cluster = Cluster::three().await;
    let id = cluster.id();
    let first = cluster.node(2).propose(id, put("k", "v")).await.unwrap();
    let again = cluster.node(2).propose(id, put("k", "other")).await.unwrap();
    assert_eq!(first, again);
    cluster.node(2).barrier(WAIT).await.unwrap();
    assert_eq!(value(&cluster.node(2), "k").as_deref(), Some(&b"v"[..]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_and_a_minority_refuses() {
    let mut cluster = Cluster::three().await;
    cluster.node(1).propose(cluster.id(), put("k", "before")).await.unwrap();
    let leader = cluster.node(1).standing().leader.unwrap();
    cluster.cut(leader);
    let other = cluster.node(if leader == NodeId(2) { 3 } else { 2 });
    other.propose(cluster.id(), put("k", "after")).await.unwrap();
    let lonely = cluster.node(leader.0);
    let short = Duration::from_millis(800);
    assert!(matches!(lonely.barrier(short).await, Err(RegistryError::NoQuorum { .. })));
    let refused = lonely.propose_within(cluster.id(), put("k", "lost"), short).await;
    assert!(refused.is_err(), "{refused:?}");
    cluster.heal();
    lonely.barrier(WAIT).await.unwrap();
    assert_ne!(value(&lonely, "k").as_deref(), Some(&b"before"[..]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_on_their_way_to_a_leader_without_power_go_to_the_next_one() {
    let mut cluster = Cluster::three().await;
    let leader = cluster.node(1).standing().leader.unwrap();
    let other = cluster.node(if leader == NodeId(2) { 3 } else { 2 });
    cluster.lan.0.lock().unwrap().mute.insert(leader);
    other.propose_within(cluster.id(), put("k", "after"), WAIT).await.unwrap();
    other.barrier(WAIT).await.unwrap();
    assert_eq!(value(&other, "k").as_deref(), Some(&b"after"[..]));
    let lonely = cluster.node(leader.0);
    cluster.until(|_| lonely.standing().leader.is_none(), "it leads nobody").await;
    cluster.lan.0.lock().unwrap().mute.clear();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_consensus_is_told() {
    let cluster = Cluster::found().await;
    let node = cluster.node(1);
    let ended = tokio::spawn({
        let node = node.clone();
        async move { node.ended().await }
    });
    node.shutdown().await;
    assert!(!ended.await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_finds_its_log_again_after_a_restart() {
    let mut cluster = Cluster::three().await;
    for round in 0..30 {
        cluster.node(1).propose(cluster.id(), put(&format!("k{round}"), "v")).await.unwrap();
    }
    for id in 1..=3 {
        cluster.kill(NodeId(id)).await;
    }
    for id in 1..=3 {
        cluster.start(NodeId(id)).await;
    }
    for id in 1..=3 {
        cluster.node(id).barrier(WAIT).await.unwrap();
        assert_eq!(cluster.node(id).read(|state| state.values().len()), 30);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_epoch_is_fenced() {
    let mut cluster = Cluster::three().await;
    cluster.node(3).set_epoch(Epoch(1));
    let fenced = cluster.node(3).propose(cluster.id(), put("k", "v")).await;
    assert_eq!(fenced, Err(RegistryError::Fenced { current: Epoch(2) }));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_leaves_hands_over() {
    let cluster = Cluster::three().await;
    let leader = cluster.node(1).standing().leader.unwrap();
    let to = cluster.node(leader.0).hand_over().await.unwrap();
    cluster.until(|c| c.node(to.0).standing().leader == Some(to), "the new leader").await;
    cluster.stop().await;
}
