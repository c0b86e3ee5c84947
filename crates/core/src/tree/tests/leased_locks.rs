//! Locks under a write lease: scripts of a registry and the views of its nodes.

use expect_test::{Expect, expect};
use unum_proto::tree::{
    AcquireLease, Drain, Lock, LockState, LoggedChange, ReleaseLease, ReleaseNode, ReleaseOwner,
    Unlock,
};

use super::super::leased_locks::{fold_locks, locks_left};
use super::locks::range;
use super::*;
use crate::tree::locks::LOCK_END_MAX;

/// Two nodes and one file.
struct Nodes {
    confirmed: Tree,
    locals: [Option<Local>; 2],
    now: Time,
    file: Ino,
    told: String,
}

impl Nodes {
    fn new() -> Self {
        let mut world = World::new();
        let file = world.create(ROOT, "f", Kind::Regular).expect("f");
        let (confirmed, now) = (world.tree, world.now);
        Self { confirmed, locals: [None, None], now, file, told: String::new() }
    }

    /// `A1 lock x 0-9`: owner A of node 1. Locks are made unheard where that may be.
    fn run(script: &str, expected: Expect) -> Self {
        let mut nodes = Self::new();
        for line in script.split(';').map(str::trim) {
            let outcome = nodes.step(line);
            nodes.told += &format!("{line}: {outcome}\n");
        }
        let told = format!("{}{}", nodes.told, nodes.held());
        expected.assert_eq(&told);
        nodes
    }

    fn held(&self) -> String {
        let held = self.confirmed.locks().held(self.file).iter();
        let shown = held.map(|lock| {
            let kind = if lock.exclusive { "x" } else { "s" };
            let end = if lock.end == LOCK_END_MAX { String::new() } else { lock.end.to_string() };
            let (owner, node) = (char::from(lock.owner.id as u8), lock.owner.node.0);
            format!("{owner}{node} {:?} {kind} {}-{end}\n", lock.table, lock.start)
        });
        shown.collect()
    }

    fn step(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let who = words[0].as_bytes();
        let (owner, node) = (u64::from(who[0]), u64::from(who[1] - b'0'));
        let ino = self.file.0;
        let command = match words[1] {
            verb @ ("lock" | "wait") => Command::Lock(Lock {
                ino,
                range: Some(range(words[3], owner)),
                exclusive: words[2] == "x",
                pid: owner as u32,
                waiter: (verb == "wait").then_some(owner),
            }),
            "unlock" => Command::Unlock(Unlock { ino, range: Some(range(words[2], owner)) }),
            "close" => {
                Command::ReleaseOwner(ReleaseOwner { ino, table: LockTable::Record as i32, owner })
            }
            "lease" => Command::AcquireLease(AcquireLease { inos: vec![ino], below: 0 }),
            "drain" => return self.drain(node),
            "release" => {
                let Some((lease, _)) = self.confirmed.lease_of(NodeId(node)) else {
                    return "no lease".to_owned();
                };
                Command::ReleaseLease(ReleaseLease { lease: lease.0 })
            }
            "dies" => Command::ReleaseNode(ReleaseNode { node }),
            other => panic!("unknown step {other}"),
        };
        self.make(NodeId(node), command)
    }

    fn make(&mut self, node: NodeId, command: Command) -> String {
        let at = node.0 as usize - 1;
        let view = self.locals[at].as_ref().map_or(&self.confirmed, Local::tree);
        if view.may_change_unheard(node, &command) {
            let local = self.locals[at].take();
            let local = local.or_else(|| Local::resume(&self.confirmed, node, []));
            let local = self.locals[at].insert(local.expect("a lease"));
            let (reply, kept) = local.change(self.now, command).expect("it may");
            let how = if kept.is_some() { "unheard" } else { "nothing new" };
            if local.pending().is_empty() {
                self.locals[at] = None;
            }
            return format!("{how}, {}", shown(&reply));
        }
        // Only what gives room may overtake.
        if !matches!(command, Command::ReleaseNode(_)) {
            self.drain(node.0);
        }
        shown(&self.commit(node, command))
    }

    fn commit(&mut self, node: NodeId, command: Command) -> TreeReply {
        self.now = Time(self.now.0 + 1_000_000_000);
        self.confirmed.record(true);
        let reply = self.confirmed.apply(self.now, node, &command.into());
        let executed = self.confirmed.take_executed();
        for local in &mut self.locals {
            if let Some(view) = local
                && (!view.follow(&self.confirmed, executed.clone()) || view.pending().is_empty())
            {
                *local = None;
            }
        }
        assert_eq!(self.confirmed.check(), Vec::<String>::new());
        reply
    }

    fn drain(&mut self, node: u64) -> String {
        let Some(local) = &self.locals[node as usize - 1] else { return "nothing".to_owned() };
        let mut changes: Vec<LoggedChange> =
            local.pending().iter().map(Pending::to_proto).collect();
        let first = local.pending().front().expect("pending").number;
        let lease = local.lease().0;
        fold_locks(&mut changes);
        let undone = changes.iter().filter(|change| change.undone).count();
        let all = changes.len();
        let reply = self.commit(NodeId(node), Command::Drain(Drain { lease, first, changes }));
        let Ok(Outcome::Drained(drained)) = outcome(&reply) else { return format!("{reply:?}") };
        assert_eq!(reply.granted, [], "a drain grants nothing");
        format!("{undone} of {all} undone, {} refused", drained.refused.len())
    }
}

fn shown(reply: &TreeReply) -> String {
    let granted: String = reply.granted.iter().map(|w| format!(", grants {}", w.node)).collect();
    match outcome(reply) {
        Ok(Outcome::Locked(locked)) => {
            format!("{:?}{granted}", LockState::try_from(locked.state).expect("a state"))
        }
        Ok(_) => format!("ok{granted}"),
        Err(error) => format!("{error:?}"),
    }
}

#[test]
fn what_came_and_went_is_not_heard_of_and_what_is_left_is() {
    Nodes::run(
        "A1 lease; A1 lock x 0-9; A1 unlock 0-9; A1 unlock 0-9; A1 lock x 5-20; A1 lock x 5-20; \
         A1 unlock 10-12; B1 lock s flock; B1 wait x flock; B1 wait x 10-11; A1 drain; A1 close; A1 drain",
        expect![[r#"
            A1 lease: ok
            A1 lock x 0-9: unheard, Granted
            A1 unlock 0-9: unheard, ok
            A1 unlock 0-9: nothing new, ok
            A1 lock x 5-20: unheard, Granted
            A1 lock x 5-20: nothing new, Granted
            A1 unlock 10-12: unheard, ok
            B1 lock s flock: unheard, Granted
            B1 wait x flock: unheard, Granted
            B1 wait x 10-11: unheard, Granted
            A1 drain: 2 of 7 undone, 0 refused
            A1 close: unheard, ok
            A1 drain: 0 of 1 undone, 0 refused
            B1 Record x 10-11
            B1 Flock x 0-
        "#]],
    );
}

#[test]
fn another_node_gets_nothing_before_the_lease_is_given_back() {
    Nodes::run(
        "A1 lease; A1 lock x 0-9; A1 unlock 5-9; B2 lock x 20-29; B2 wait x 0-0; A1 drain; B2 lock x 20-29; \
         A1 release; B2 lock x 0-0; B2 wait x 0-4; B2 lock x 5-9; A1 unlock 0-9",
        expect![[r#"
            A1 lease: ok
            A1 lock x 0-9: unheard, Granted
            A1 unlock 5-9: unheard, ok
            B2 lock x 20-29: Held
            B2 wait x 0-0: Held
            A1 drain: 0 of 2 undone, 0 refused
            B2 lock x 20-29: Held
            A1 release: ok
            B2 lock x 0-0: Conflict
            B2 wait x 0-4: Queued
            B2 lock x 5-9: Granted
            A1 unlock 0-9: ok, grants 2
            B2 Record x 0-9
        "#]],
    );
}

#[test]
fn what_others_had_before_they_may_give_back() {
    Nodes::run(
        "B2 lock s 0-9; A1 lease; A1 lock s 5-5; A1 lock x 5-5; B2 unlock 4-6; A1 lock x 4-6; B2 close; \
         A1 drain; A1 lock x 0-9; A1 drain",
        expect![[r#"
            B2 lock s 0-9: Granted
            A1 lease: ok
            A1 lock s 5-5: unheard, Granted
            A1 lock x 5-5: Conflict
            B2 unlock 4-6: ok
            A1 lock x 4-6: unheard, Granted
            B2 close: ok
            A1 drain: 0 of 1 undone, 0 refused
            A1 lock x 0-9: unheard, Granted
            A1 drain: 0 of 1 undone, 0 refused
            A1 Record x 0-9
        "#]],
    );
}

#[test]
fn where_somebody_waits_everything_is_heard() {
    Nodes::run(
        "B2 lock x 0-9; A2 wait x 0-9; A1 lease; C1 lock s 20-29; B1 lock x flock; B2 unlock 0-9; A2 close; \
         C1 lock x 0-9; B1 wait x 0-0; C1 unlock 0-9; B1 lock s 3-3",
        expect![[r#"
            B2 lock x 0-9: Granted
            A2 wait x 0-9: Queued
            A1 lease: ok
            C1 lock s 20-29: Granted
            B1 lock x flock: Granted
            B2 unlock 0-9: ok, grants 2
            A2 close: ok
            C1 lock x 0-9: unheard, Granted
            B1 wait x 0-0: Queued
            C1 unlock 0-9: ok, grants 1
            B1 lock s 3-3: unheard, Granted
            B1 Record x 0-0
            C1 Record s 20-29
            B1 Flock x 0-
        "#]],
    );
}

#[test]
fn a_lost_node_has_no_locks_drained_or_not() {
    let nodes = Nodes::run(
        "A1 lease; A1 lock x 0-9; A1 drain; A1 unlock 0-4; B1 lock x flock; A1 dies; B2 lock x 0-9; \
         B2 lock x flock; A1 lock s 0-0",
        expect![[r#"
            A1 lease: ok
            A1 lock x 0-9: unheard, Granted
            A1 drain: 0 of 1 undone, 0 refused
            A1 unlock 0-4: unheard, ok
            B1 lock x flock: unheard, Granted
            A1 dies: ok
            B2 lock x 0-9: Granted
            B2 lock x flock: Granted
            A1 lock s 0-0: Conflict
            B2 Record x 0-9
            B2 Flock x 0-
        "#]],
    );
    assert!(nodes.locals.iter().all(Option::is_none));
}

#[test]
fn what_is_left_of_lost_changes_is_known() {
    let lock = |owner: u64, text: &str| {
        Command::Lock(Lock {
            ino: 5,
            range: Some(range(text, owner)),
            exclusive: true,
            pid: 1,
            waiter: Some(7),
        })
    };
    let unlock = |owner: u64, text: &str| {
        Command::Unlock(Unlock { ino: 5, range: Some(range(text, owner)) })
    };
    let changes =
        [lock(1, "0-9"), lock(2, "flock"), lock(3, "0-9"), unlock(1, "0-4"), unlock(3, "0-")];
    let left = locks_left(NodeId(1), &changes);
    assert_eq!(left, [(Ino(5), LockTable::Record, 1), (Ino(5), LockTable::Flock, 2)]);
}

#[test]
fn what_no_drain_may_bring_is_refused() {
    let mut nodes = Nodes::new();
    nodes.step("B2 lock x 0-9");
    nodes.step("A1 lease");
    let lease = nodes.confirmed.lease_of(NodeId(1)).expect("a lease").0.0;
    let mut refused = |waiter: Option<u64>, text: &str| {
        let range = Some(range(text, 1));
        let lock = Lock { ino: nodes.file.0, range, exclusive: true, pid: 1, waiter };
        let command = Some(Command::Lock(lock).into());
        let change = LoggedChange { time_ns: 1, command, ..LoggedChange::default() };
        let first = nodes.confirmed.lease_of(NodeId(1)).expect("a lease").1.drained + 1;
        let drain = Drain { lease, first, changes: vec![change] };
        let reply = nodes.commit(NodeId(1), Command::Drain(drain));
        let Ok(Outcome::Drained(drained)) = outcome(&reply) else { panic!("{reply:?}") };
        drained.refused.first().map(|refused| TreeError::from_code(refused.why))
    };
    assert_eq!(refused(None, "0-0"), Some(TreeError::Held));
    assert_eq!(refused(Some(1), "20-29"), Some(TreeError::Invalid));
    assert_eq!(refused(None, "20-29"), None);
}
