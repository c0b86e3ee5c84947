//! Scripts over the whole state: what a cluster's life does to it, and what it refuses.

use bytes::Bytes;
use expect_test::{Expect, expect};
use prost::Message;
use unum_proto::ids::{Lane, NodeId, Pid};
use unum_proto::registry::command::Kind;
use unum_proto::registry::{
    Batch, CompareAndSet, CreateToken, DeleteValue, Found, LeasePids, LeaveNode, NodeDown, NodeUp,
    Proposal, PutValue, RegisterNode, RemoveNode, Reply, Role, SnapshotRecord, reply,
};

use super::limits::{LANE_REPLIES_MAX, NODE_LANES_MAX, VALUE_SIZE_MAX};
use super::snapshot::{Restore, digest, records};
use super::{Refused, State};
use crate::time::Time;

/// A state with a clock that a script moves.
#[derive(Default)]
struct Script {
    state: State,
    now: u64,
}

impl Script {
    fn founded() -> Self {
        let mut script = Self::default();
        script.run(Kind::Found(Found {
            cluster: Bytes::from_static(&[7; 16]),
            name: "home".into(),
            authorities_pem: vec!["PEM".into()],
            node_name: "n1".into(),
            description: None,
        }));
        script
    }

    fn run(&mut self, kind: Kind) -> String {
        self.now += 1;
        show(self.state.apply(Time::from_secs(self.now), &kind.into()))
    }

    fn token(&mut self, byte: u8, role: Role, ttl_ms: u64) -> String {
        let hash = Bytes::from(vec![byte; 32]);
        self.run(Kind::CreateToken(CreateToken { hash, role: role.into(), ttl_ms, uid: 0 }))
    }

    fn register(&mut self, byte: u8, name: &str, role: Role) -> String {
        let token_hash = Bytes::from(vec![byte; 32]);
        let (name, role) = (name.into(), role.into());
        self.run(Kind::RegisterNode(RegisterNode { token_hash, name, role, description: None }))
    }

    /// As a log entry: remembered, and fenced by the issuer's epoch.
    fn propose(&mut self, lane: u64, seq: u64, node: u64, epoch: u64, kind: Kind) -> String {
        self.now += 1;
        let proposal = Proposal { lane, seq, node, epoch, command: Some(kind.into()) };
        let batch = Batch { time_ns: Time::from_secs(self.now).0, proposals: vec![proposal] };
        let reply = self.state.execute(&batch).pop().unwrap();
        show(Reply::decode(reply).unwrap())
    }

    fn put(&mut self, lane: u64, seq: u64, value: &str) -> String {
        self.propose(lane, seq, 0, 0, put("k", value))
    }

    fn value(&self, key: &str) -> Option<&[u8]> {
        self.state.values().get(key.as_bytes()).map(|value| value.bytes.as_ref())
    }
}

fn put(key: &str, value: &str) -> Kind {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Kind::PutValue(PutValue { key, value: Bytes::copy_from_slice(value.as_bytes()) })
}

fn show(reply: Reply) -> String {
    match reply.kind {
        Some(reply::Kind::Refused(refusal)) => format!("refused: {}", Refused::from(&refusal)),
        Some(reply::Kind::Done(_)) => "done".into(),
        Some(reply::Kind::Node(node)) => format!("node {} epoch {}", node.node, node.epoch),
        Some(reply::Kind::Pids(pids)) => format!("pids {} +{}", pids.first, pids.count),
        Some(reply::Kind::Version(version)) => format!("version {}", version.version),
        Some(reply::Kind::Tree(_)) => "tree".into(),
        None => "nothing".into(),
    }
}

fn check(lines: Vec<String>, expected: Expect) {
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn tokens_let_in_one_node_each_and_say_what_is_wrong() {
    let mut s = Script::founded();
    check(
        vec![
            s.token(1, Role::Node, 3_600_000),
            s.register(9, "n2", Role::Node),
            s.register(1, "n2", Role::Witness),
            s.register(1, "n1", Role::Node),
            s.register(1, "n2", Role::Node),
            s.register(1, "n3", Role::Node),
            s.token(1, Role::Node, 1000),
            s.token(2, Role::Witness, 1000),
            s.register(2, "w1", Role::Witness),
            s.token(3, Role::Node, 0),
        ],
        expect![[r#"
            done
            refused: the join token is unknown; check it, or create one with `unum token create`
            refused: the join token is for the role node; create one for the role that you want
            refused: the name "n1" is taken by another node; choose another one
            node 2 epoch 1
            refused: the join token has been used; create a new one with `unum token create`
            refused: a token with this hash exists
            done
            refused: the join token has expired; create a new one with `unum token create`
            refused: the token's lifetime is not acceptable: it must be between 1 ms and 2592000000 ms"#]],
    );
}

#[test]
fn epochs_grow_and_the_stale_are_fenced() {
    let mut s = Script::founded();
    let up = |epoch| Kind::NodeUp(NodeUp { node: 1, epoch, ..NodeUp::default() });
    let down = Kind::NodeDown(NodeDown { node: 1, epoch: 2, why: "silent".into() });
    check(
        vec![
            s.run(up(1)),
            s.run(up(1)),
            s.propose(5, 1, 1, 2, put("k", "as the present one")),
            s.run(down),
            s.propose(5, 2, 1, 2, put("k", "as a ghost")),
            s.run(up(3)),
            s.propose(5, 2, 1, 4, put("k", "again")),
            s.propose(5, 2, 1, 2, put("k", "as a ghost")),
            s.run(Kind::LeaveNode(LeaveNode { node: 1, epoch: 4, keep_files: false })),
            s.propose(5, 4, 1, 5, put("k", "gone")),
        ],
        expect![[r#"
            node 1 epoch 2
            refused: fenced: the command carries an epoch that is over, the present one is epoch 2; read the registry again and come up anew
            version 1
            node 1 epoch 3
            refused: fenced: the command carries an epoch that is over, the present one is epoch 3; read the registry again and come up anew
            node 1 epoch 4
            version 2
            version 2
            node 1 epoch 5
            refused: the node has left the cluster; let it join again with a new token"#]],
    );
    assert_eq!(s.value("k"), Some(&b"again"[..]));
}

#[test]
fn blocks_of_pids_have_one_owner_and_come_back_with_removal() {
    let mut s = Script::founded();
    s.token(1, Role::Node, 3_600_000);
    s.register(1, "n2", Role::Node);
    let lease = |node| Kind::LeasePids(LeasePids { node, epoch: 1 });
    assert_eq!(s.run(lease(1)), "pids 8192 +8192");
    assert_eq!(s.run(lease(2)), "pids 16384 +8192");
    assert_eq!(s.state.pids().owner(Pid(16_385)), Some(NodeId(2)));
    assert_eq!(s.state.pids().owner(Pid(100)), None, "low PIDs are nobody's");
    s.run(Kind::RemoveNode(RemoveNode { node: 2 }));
    assert_eq!(s.state.pids().owner(Pid(16_385)), None);
    for _ in 0..31 {
        s.run(lease(1));
    }
    assert!(s.run(lease(1)).starts_with("refused: the limit of 32 blocks"));
}

#[test]
fn values_have_versions_that_are_never_given_twice() {
    let mut s = Script::founded();
    let key = Bytes::from_static(b"k");
    let delete = Kind::DeleteValue(DeleteValue { key: key.clone() });
    let swap = |expected, value: Option<&'static [u8]>| {
        let value = value.map(Bytes::from_static);
        Kind::CompareAndSet(CompareAndSet { key: key.clone(), expected, value })
    };
    let large = "x".repeat(VALUE_SIZE_MAX + 1);
    check(
        vec![
            s.run(swap(0, Some(b"a"))),
            s.run(swap(0, Some(b"b"))),
            s.run(swap(1, Some(b"c"))),
            s.run(delete.clone()),
            s.run(delete),
            s.run(put("k", "again")),
            s.run(swap(3, None)),
            s.run(put("", "v")),
            s.run(put("k", &large)),
        ],
        expect![[r#"
            version 1
            refused: the value has another version than expected: 1 (0: there is none)
            version 2
            version 0
            refused: there is no value with this key
            version 3
            version 0
            refused: the key is not acceptable: it is empty
            refused: the limit of 65536 the value is reached"#]],
    );
}

#[test]
fn a_repeated_request_runs_once() {
    let mut s = Script::founded();
    assert_eq!(s.put(1, 1, "a"), "version 1");
    assert_eq!(s.put(1, 1, "b"), "version 1");
    assert_eq!(s.value("k"), Some(&b"a"[..]));
}

#[test]
fn what_may_have_run_and_is_forgotten_is_refused() {
    let mut s = Script::founded();
    for seq in 0..=LANE_REPLIES_MAX as u64 {
        s.put(1, seq, "v");
    }
    assert!(s.put(1, 0, "late").starts_with("refused: the request is older"));
    assert!(s.put(1, 1, "late").starts_with("version"), "the next one is still remembered");
}

#[test]
fn a_node_keeps_the_lanes_that_it_used_last() {
    let mut s = Script::founded();
    let first = s.put(1, 1, "a");
    for lane in 2..=NODE_LANES_MAX as u64 {
        s.put(lane, 1, "v");
    }
    assert_eq!(s.put(1, 2, "b"), format!("version {}", NODE_LANES_MAX + 1));
    s.put(100, 1, "pushes lane 2 out");
    assert_eq!(s.put(1, 1, "repeated"), first, "lane 1 was used after lane 2");
    assert_ne!(s.put(2, 1, "repeated"), "version 2", "lane 2 is forgotten");
    assert_eq!(s.state.replies.lanes.len(), NODE_LANES_MAX);
    assert!(s.state.replies.lanes.contains_key(&Lane(1)));
}

#[test]
fn time_never_goes_back() {
    let mut state = State::default();
    let at = |time_ns| Batch { time_ns, proposals: vec![] };
    state.execute(&at(50));
    state.execute(&at(20));
    assert_eq!(state.time(), Time(50));
}

#[test]
fn a_restored_state_is_the_same_state() {
    let mut s = Script::founded();
    s.token(1, Role::Witness, 1000);
    s.token(2, Role::Node, 3_600_000);
    s.register(2, "n2", Role::Node);
    s.run(Kind::LeasePids(LeasePids { node: 2, epoch: 1 }));
    for seq in 0..50 {
        s.put(seq % 3, seq, "some value");
    }
    let mut restore = Restore::default();
    for record in records(&s.state) {
        let bytes = record.encode_to_vec();
        restore.add(SnapshotRecord::decode(bytes.as_slice()).unwrap()).unwrap();
    }
    let mut restored = Script { state: restore.finish().unwrap(), now: s.now };
    let mut original = s;
    assert_eq!(digest(&original.state), digest(&restored.state));
    for script in [&mut original, &mut restored] {
        assert_eq!(script.put(0, 0, "repeated"), "version 1");
        assert_eq!(script.put(0, 99, "new"), "version 51");
    }
    assert_eq!(digest(&original.state), digest(&restored.state));
}

proptest::proptest! {
    #[test]
    fn no_bytes_break_the_state(bytes in proptest::collection::vec(0u8.., 0..400)) {
        if let Ok(batch) = Batch::decode(bytes.as_slice()) {
            Script::founded().state.execute(&batch);
        }
        if let Ok(record) = SnapshotRecord::decode(bytes.as_slice()) {
            let _ = Restore::default().add(record);
        }
    }
}

#[test]
fn nobody_leaves_with_the_only_copy_of_something() {
    use unum_proto::tree::tree_command::Command as Tree;
    use unum_proto::tree::{ChunkKey, Create, Extent, NewChunk, SetReplicas, TreeCommand, Write};

    let mut s = Script::founded();
    s.token(1, Role::Node, 3_600_000);
    s.register(1, "n2", Role::Node);
    let tree = |command: Tree| Kind::Tree(TreeCommand::from(command));
    s.run(tree(Tree::Create(Create {
        parent: 1,
        name: Bytes::from_static(b"file"),
        kind: crate::tree::Kind::Regular.to_proto() as i32,
        mode: 0o644,
        ..Create::default()
    })));
    let ino = s.state.tree().lookup(unum_proto::ids::Ino(1), b"file").unwrap();
    let chunk = Some(ChunkKey { lane: 1, seq: 1 });
    let hash = Bytes::from(vec![7; 32]);
    s.run(tree(Tree::Write(Write {
        ino: ino.0,
        extents: vec![Extent { offset: 0, length: 10, chunk, chunk_offset: 0 }],
        chunks: vec![NewChunk { id: chunk, length: 10, hash, replicas: vec![2] }],
        ..Write::default()
    })));
    let leave = |keep_files| Kind::LeaveNode(LeaveNode { node: 2, epoch: 1, keep_files });
    let copy = SetReplicas { chunk, expected: vec![2], replicas: vec![1, 2] };
    let counts = |s: &Script| [1, 2].map(|node| s.state.only_copies(NodeId(node)));
    assert_eq!(counts(&s), [0, 1]);
    let refused = s.run(leave(true));
    s.run(tree(Tree::SetReplicas(copy)));
    assert_eq!(counts(&s), [0, 0]);
    check(
        vec![refused, s.run(leave(true))],
        expect![[r#"
            refused: the node holds the only copy of 1 pieces of files
            node 2 epoch 2"#]],
    );
    assert_eq!(counts(&s), [1, 0], "who has left counts no more");
}
