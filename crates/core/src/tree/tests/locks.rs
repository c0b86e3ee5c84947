//! Locks: scripts. `A1 lock x 0-9` asks for an exclusive record lock of owner A on node 1.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use unum_proto::tree::{CancelWait, Lock, LockRange, LockState, ReleaseNode, ReleaseOwner, Unlock};

use super::*;
use crate::tree::locks::LOCK_END_MAX;

/// `0-9`, `0-` to the end, or `flock`.
pub(super) fn range(text: &str, owner: u64) -> LockRange {
    let (table, start, end) = match text.split_once('-') {
        None => (LockTable::Flock, 0, 0),
        Some((start, "")) => (LockTable::Record, start.parse().expect("start"), LOCK_END_MAX),
        Some((start, end)) => {
            (LockTable::Record, start.parse().expect("start"), end.parse().expect("end"))
        }
    };
    LockRange { table: table as i32, owner, start, end }
}

fn lock_command(words: &[&str], owner: u64, ino: Ino) -> Command {
    let waiter = (words[0] == "wait").then(|| words[3].parse().expect("waiter"));
    Command::Lock(Lock {
        ino: ino.0,
        range: Some(range(words[2], owner)),
        exclusive: words[1] == "x",
        pid: owner as u32,
        waiter,
    })
}

fn step(world: &mut World, inos: &[Ino], line: &str) -> String {
    let mut words = line.split_whitespace();
    let who = words.next().expect("who").as_bytes();
    let owner = u64::from(who[0]);
    world.node = NodeId(u64::from(who[1] - b'0'));
    let ino = if who.get(2) == Some(&b'\'') { inos[1] } else { inos[0] };
    let words: Vec<&str> = words.collect();
    let command = match words[0] {
        "lock" | "wait" => lock_command(&words, owner, ino),
        "unlock" => Command::Unlock(Unlock { ino: ino.0, range: Some(range(words[1], owner)) }),
        "cancel" => Command::CancelWait(CancelWait { waiter: words[1].parse().expect("waiter") }),
        "close" => {
            let table = if words[1] == "flock" { LockTable::Flock } else { LockTable::Record };
            Command::ReleaseOwner(ReleaseOwner { ino: ino.0, table: table as i32, owner })
        }
        "dies" => Command::ReleaseNode(ReleaseNode { node: world.node.0 }),
        other => panic!("unknown step {other}"),
    };
    let mut shown = match world.run(command) {
        Ok(Outcome::Locked(locked)) => {
            let by = locked.conflict.map(|c| char::from(c.pid as u8)).map(String::from);
            let state = LockState::try_from(locked.state).expect("a state");
            format!("{state:?} {}", by.unwrap_or_default()).trim().to_owned()
        }
        Ok(Outcome::WaitEnded(ended)) => format!("cancelled {}", ended.cancelled),
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{error:?}"),
    };
    for waiter in &world.granted {
        let _ = write!(shown, ", grants {}", waiter.waiter);
    }
    shown
}

fn check(script: &str, expected: Expect) {
    let mut world = World::new();
    let f = world.create(ROOT, "f", Kind::Regular).expect("f");
    let g = world.create(ROOT, "g", Kind::Regular).expect("g");
    let mut out = String::new();
    for line in script.split(';').map(str::trim) {
        let shown = step(&mut world, &[f, g], line);
        let _ = writeln!(out, "{line}: {shown}");
    }
    for lock in world.tree.locks().held(f) {
        let kind = if lock.exclusive { "x" } else { "s" };
        let owner = char::from(lock.owner.id as u8);
        let end = if lock.end == LOCK_END_MAX { String::new() } else { lock.end.to_string() };
        let _ = writeln!(
            out,
            "{owner}{} {:?} {kind} {}-{end}",
            lock.owner.node.0, lock.table, lock.start
        );
    }
    expected.assert_eq(&out);
}

#[test]
fn ranges_split_and_merge() {
    check(
        "A1 lock x 0-99; A1 unlock 40-59; A1 lock s 10-19; A1 lock x 100-; B1 lock s 10-15; \
         B1 lock x 15-15; B1 lock s 45-50; A1 lock x 60-70",
        expect![[r#"
            A1 lock x 0-99: Granted
            A1 unlock 40-59: ok
            A1 lock s 10-19: Granted
            A1 lock x 100-: Granted
            B1 lock s 10-15: Granted
            B1 lock x 15-15: Conflict A
            B1 lock s 45-50: Granted
            A1 lock x 60-70: Granted
            A1 Record x 0-9
            B1 Record s 10-15
            A1 Record s 10-19
            A1 Record x 20-39
            B1 Record s 45-50
            A1 Record x 60-
        "#]],
    );
}

#[test]
fn the_same_number_on_two_nodes_is_two_owners() {
    check(
        "A1 lock x 0-9; A2 lock x 0-9; A1 lock s 0-9; A2 lock s 5-5; A1 dies",
        expect![[r#"
            A1 lock x 0-9: Granted
            A2 lock x 0-9: Conflict A
            A1 lock s 0-9: Granted
            A2 lock s 5-5: Granted
            A1 dies: ok
            A2 Record s 5-5
        "#]],
    );
}

#[test]
fn waits_are_granted_oldest_first() {
    check(
        "A1 lock x 0-9; B1 wait s 0-4 1; C2 wait x 0-9 2; D2 wait s 5-9 3; A1 unlock 0-9; \
         B1 close record; D2 close record; C2 unlock 0-9",
        expect![[r#"
            A1 lock x 0-9: Granted
            B1 wait s 0-4 1: Queued A
            C2 wait x 0-9 2: Queued A
            D2 wait s 5-9 3: Queued A
            A1 unlock 0-9: ok, grants 1, grants 3
            B1 close record: ok
            D2 close record: ok, grants 2
            C2 unlock 0-9: ok
        "#]],
    );
}

#[test]
fn waits_can_be_cancelled_once() {
    check(
        "A1 lock x 0-9; B1 wait x 0-9 1; B1 wait x 0-9 1; B2 cancel 1; B1 cancel 1; B1 cancel 1; \
         B1 wait x 0-9 2; A1 dies",
        expect![[r#"
            A1 lock x 0-9: Granted
            B1 wait x 0-9 1: Queued A
            B1 wait x 0-9 1: Invalid
            B2 cancel 1: cancelled false
            B1 cancel 1: cancelled true
            B1 cancel 1: cancelled false
            B1 wait x 0-9 2: Queued A
            A1 dies: ok
        "#]],
    );
}

#[test]
fn deadlocks_are_refused_over_files_and_nodes() {
    check(
        "A1 lock x 0-0; B2 lock x 1-1; C3' lock x 0-0; A1 wait x 1-1 1; B2' wait x 0-0 2; \
         C3 wait x 0-0 3; C3 lock x 0-0; B2' cancel 2; C3 wait x 0-0 3; A1 unlock 0-0",
        expect![[r#"
            A1 lock x 0-0: Granted
            B2 lock x 1-1: Granted
            C3' lock x 0-0: Granted
            A1 wait x 1-1 1: Queued B
            B2' wait x 0-0 2: Queued C
            C3 wait x 0-0 3: Deadlock
            C3 lock x 0-0: Conflict A
            B2' cancel 2: cancelled true
            C3 wait x 0-0 3: Queued A
            A1 unlock 0-0: ok, grants 3
            C3 Record x 0-0
            B2 Record x 1-1
        "#]],
    );
}

#[test]
fn flock_knows_nothing_of_records_and_converts() {
    check(
        "A1 lock x 0-9; B1 lock s flock; C2 lock s flock; B1 lock x flock; C2 wait x flock 1; \
         B1 lock x flock; B1 wait x flock 2; B1 close flock; B1 cancel 2",
        expect![[r#"
            A1 lock x 0-9: Granted
            B1 lock s flock: Granted
            C2 lock s flock: Granted
            B1 lock x flock: Conflict C
            C2 wait x flock 1: Queued B
            B1 lock x flock: Granted
            B1 wait x flock 2: Granted
            B1 close flock: ok, grants 1
            B1 cancel 2: cancelled false
            A1 Record x 0-9
            C2 Flock x 0-
        "#]],
    );
}

#[test]
fn two_that_convert_do_not_wait_for_each_other() {
    check(
        "A1 lock s flock; B1 lock s flock; A1 wait x flock 1; B1 wait x flock 2",
        expect![[r#"
            A1 lock s flock: Granted
            B1 lock s flock: Granted
            A1 wait x flock 1: Queued B
            B1 wait x flock 2: Granted
            B1 Flock x 0-
        "#]],
    );
}

#[test]
fn a_locked_orphan_is_not_reaped() {
    let mut world = World::new();
    let f = world.create(ROOT, "f", Kind::Regular).expect("f");
    step(&mut world, &[f], "A1 lock x 0-9");
    world.run(unlink(ROOT, "f")).expect("unlink");
    let later = world.now.after(limits::ORPHAN_GRACE * 2);
    assert_eq!(world.tree.reapable(later, 9), []);
    step(&mut world, &[f], "A1 close record");
    assert_eq!(world.tree.reapable(later, 9), [f]);
}

#[test]
fn the_number_of_locks_is_bounded() {
    let mut world = World::new();
    let f = world.create(ROOT, "f", Kind::Regular).expect("f");
    let mut tree = world.tree.clone();
    let mut refused = None;
    for at in 0..limits::LOCKS_PER_INODE_MAX as u64 + 1 {
        let range = LockRange { table: 1, owner: 1, start: at * 2, end: at * 2 };
        let lock = Lock { ino: f.0, range: Some(range), exclusive: true, pid: 1, waiter: None };
        let reply = tree.apply(world.now, world.node, &Command::Lock(lock).into());
        if let Err(error) = outcome(&reply) {
            refused = Some((at, error));
            break;
        }
    }
    let most = limits::LOCKS_PER_INODE_MAX as u64 - 1;
    assert_eq!(refused, Some((most, TreeError::TooManyLocks)));
}
