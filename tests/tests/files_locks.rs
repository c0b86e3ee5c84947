//! Locks that a machine takes under its write lease, without asking anybody: they hold on all machines, outlive the
//! daemon, and end with their machine, which hears of it.

use unum_tests::Playground;
use unum_tests::actor::{Actor, actors, cannot_run_files};

const OPEN: &str = "f = os.open('/unum/f', os.O_RDWR | os.O_CREAT)";
/// Has its machine at work in the file, so that the write lease covers it. Whoever made it work there before is
/// over by then.
const WORK: &str = "[(os.pwrite(f, b'%08d' % n, 0), time.sleep(0.01)) for n in range(40)] and None";
const PAIRS: &str = "pairs = lambda n: [(lock(f, 'w'), lock(f, 'u')) for _ in range(n)] and None";
/// What the leases and the drains of a test in between may cost.
const COMMITS_MAX: u64 = 25;

fn applied(playground: &Playground) -> u64 {
    playground.json("n1", "status")["applied"].as_u64().expect("a number")
}

/// A playground, with programs that have the file open; the machine of the first has it under lease.
fn at_work<const N: usize>(machines: [&str; N]) -> (Playground, [Actor; N]) {
    let playground = Playground::up(&[]);
    let mut all = actors(&playground, machines);
    for actor in &mut all {
        actor.run(&[OPEN, PAIRS]);
    }
    all[0].run(&[WORK]);
    (playground, all)
}

#[test]
fn locks_under_a_lease_need_no_commits() {
    if cannot_run_files() {
        return;
    }
    let (playground, [mut a, mut b]) = at_work(["n1", "n2"]);
    let commits = |actor: &mut Actor, line: &str| {
        let before = applied(&playground);
        actor.run(&[line, "os.fsync(f)"]);
        applied(&playground) - before
    };
    for pairs in [
        "pairs(500)",
        "[(fcntl.flock(f, fcntl.LOCK_EX), fcntl.flock(f, fcntl.LOCK_UN)) for _ in range(500)] and None",
        "[(lock(f, 'r', 3, 9, ofd=True), lock(f, 'u', 0, 5, ofd=True), lock(f, 'u', ofd=True)) for _ in range(500)] and None",
        // A close gives back what its process had.
        "[(lock(f, 'w'), os.close(os.dup(f))) for _ in range(500)] and None",
    ] {
        let commits = commits(&mut a, pairs);
        assert!(commits <= COMMITS_MAX, "{commits} commits for 500 times {pairs}");
    }
    // A file that is strict is locked by commits, and still is.
    a.run(&["os.setxattr('/unum/f', 'user.unum.class', b'strict')"]);
    let strict = commits(&mut a, "pairs(20)");
    assert!(strict >= 40, "{strict} commits");
    b.run(&["lock(f, 'w')"]);
    a.expect("lock(f, 'r')", "EAGAIN");
}

#[test]
fn locks_under_a_lease_hold_on_all_machines() {
    if cannot_run_files() {
        return;
    }
    let (_playground, [mut a, mut b, mut c]) = at_work(["n1", "n2", "n1"]);
    // Record locks: whoever asks elsewhere finds them, and waits.
    a.run(&["pairs(20)", "lock(f, 'w', 10, 10)"]);
    b.expect("conflict(f, 'r', 0, 0)", "('w', 10, 10)");
    a.run(&[WORK, "pairs(20)", "lock(f, 'w', 10, 10)"]);
    b.expect("lock(f, 'r', 19, 1)", "EAGAIN");
    b.run(&["lock(f, 'r', 20, 1)", "lock(f, 'u')"]);
    b.waits("lock(f, 'w', wait=True)");
    // A program of the same machine is another one, and comes behind.
    c.expect("lock(f, 'r', 12, 1)", "EAGAIN");
    c.waits("lock(f, 'w', wait=True)");
    a.run(&["lock(f, 'u')"]);
    assert_eq!(b.answer(), "ok");
    b.run(&["os.close(os.dup(f))"]);
    assert_eq!(c.answer(), "ok");
    c.run(&["lock(f, 'u')"]);

    // flock knows nothing of these.
    a.run(&[WORK, "lock(f, 'w')", "fcntl.flock(f, fcntl.LOCK_SH)"]);
    b.expect("fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)", "EAGAIN");
    b.run(&["fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)"]);
    b.expect("lock(f, 'r')", "EAGAIN");
    a.waits("fcntl.flock(f, fcntl.LOCK_EX)");
    b.run(&["fcntl.flock(f, fcntl.LOCK_UN)"]);
    assert_eq!(a.answer(), "ok");
    a.run(&["lock(f, 'u')", "fcntl.flock(f, fcntl.LOCK_UN)"]);

    // A signal ends the wait for one.
    a.run(&[WORK, "lock(f, 'w')"]);
    b.expect("within(0.5, lambda: lock(f, 'w', wait=True))", "'interrupted'");
    a.run(&["lock(f, 'u')"]);

    // A circle is found though half of it was nobody's knowledge.
    let g = "g = os.open('/unum/g', os.O_RDWR | os.O_CREAT)";
    a.run(&[g, WORK, "lock(f, 'w')"]);
    b.run(&[g, &WORK.replace("(f,", "(g,"), "lock(g, 'w')"]);
    b.waits("lock(f, 'w', wait=True)");
    a.expect("lock(g, 'w', wait=True)", "EDEADLOCK");
    a.run(&["lock(f, 'u')"]);
    assert_eq!(b.answer(), "ok");
    b.run(&["lock(f, 'u')", "lock(g, 'u')"]);

    // A fork has none of its parent's record locks, and its end takes none of them; both have an open file's.
    a.run(&[WORK, "lock(f, 'w')", "fcntl.flock(f, fcntl.LOCK_EX)"]);
    a.run(&[
        "import subprocess",
        "fork = lambda work: os.waitpid(os.fork() or (work(), os._exit(0)), 0) and None",
        "fork(lambda: os.close(f))",
    ]);
    b.expect("lock(f, 'r')", "EAGAIN");
    b.expect("fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)", "EAGAIN");
    // What an exit leaves is given back.
    a.run(&[WORK, "pairs(3)", "lock(f, 'w')"]);
    drop(a);
    b.run(&["lock(f, 'w', wait=True)", "fcntl.flock(f, fcntl.LOCK_EX)"]);
    drop((b, c));
}

#[test]
fn locks_under_a_lease_outlive_the_daemon() {
    if cannot_run_files() {
        return;
    }
    let (playground, [mut a, mut b]) = at_work(["n2", "n1"]);
    for end in ["lock(f, 'u')", "os.close(os.dup(f))"] {
        a.run(&[WORK, "pairs(50)", "lock(f, 'w')", "fcntl.flock(f, fcntl.LOCK_EX)"]);
        playground.must("kill-daemon", &["n2"]);
        b.expect("lock(f, 'r')", "EAGAIN");
        b.expect("fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)", "EAGAIN");
        b.waits("lock(f, 'w', wait=True)");
        a.run(&[end]);
        assert_eq!(b.answer(), "ok");
        b.run(&["lock(f, 'u')"]);
        a.run(&["fcntl.flock(f, fcntl.LOCK_UN)"]);
        b.run(&["fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)", "fcntl.flock(f, fcntl.LOCK_UN)"]);
    }
    a.expect("os.fsync(f)", "ok");
}

#[test]
fn locks_under_a_lease_end_with_their_machine() {
    if cannot_run_files() {
        return;
    }
    let (playground, [mut a, mut b]) = at_work(["n2", "n1"]);
    a.run(&["pairs(50)", "lock(f, 'w')", "fcntl.flock(f, fcntl.LOCK_EX)"]);
    playground.must("cut", &["n2"]);
    b.run(&["lock(f, 'w', wait=True)", "fcntl.flock(f, fcntl.LOCK_EX)"]);
    drop((a, b));
}

#[test]
fn who_was_taken_for_dead_does_not_go_on_as_if_it_had_its_locks() {
    if cannot_run_files() {
        return;
    }
    let (playground, [mut a, mut b, mut c]) = at_work(["n2", "n1", "n2"]);
    a.run(&["other = os.open('/unum/other', os.O_RDWR | os.O_CREAT)", "lock(other, 'w')"]);
    a.run(&["lock(other, 'u')", WORK, "pairs(50)", "lock(f, 'w')"]);
    playground.must("partition", &["n1", "n3", "--", "n2"]);
    b.run(&["lock(f, 'w', wait=True)", "os.pwrite(f, b'new', 0) and None", "lock(f, 'u')"]);
    playground.must("heal", &[]);
    playground.json_when("n1", "nodes", "all nodes", |nodes| {
        let nodes = nodes.as_array().into_iter().flatten();
        nodes.filter(|node| node["state"] == "alive").count() == 3
    });
    a.expect("os.pwrite(f, b'late', 0)", "EIO");
    a.expect("lock(f, 'w', 0, 1)", "EIO");
    a.expect("os.truncate(f, 0)", "EIO");
    // It is told by an unlock, once; by then it knows.
    a.expect("lock(f, 'u')", "EIO");
    a.run(&["lock(f, 'w')"]);
    a.expect("os.pread(f, 3, 0)", "b'new'");
    a.expect("os.pwrite(f, b'anew', 0)", "4");
    b.expect("lock(f, 'w')", "EAGAIN");
    a.run(&["lock(f, 'u')"]);
    // Who had unlocked, or had no lock, lost none.
    a.expect("os.pwrite(other, b'on', 0)", "2");
    c.expect("os.pwrite(f, b'on', 0)", "2");
}

/// Rounds of each of two machines that take turns.
const ROUNDS: u32 = 200;

#[test]
fn two_machines_count_under_a_lock() {
    if cannot_run_files() {
        return;
    }
    let (_playground, mut all) = at_work(["n1", "n2"]);
    let kinds = [
        ("lock(f, 'w', wait=True)", "lock(f, 'u')"),
        ("fcntl.flock(f, fcntl.LOCK_EX)", "fcntl.flock(f, fcntl.LOCK_UN)"),
        ("lock(f, 'w', wait=True, ofd=True)", "lock(f, 'u', ofd=True)"),
    ];
    all[0].run(&["os.pwrite(f, b'%08d' % 0, 0) and None"]);
    for (at, (lock, unlock)) in kinds.iter().enumerate() {
        for actor in &mut all {
            actor.run(&[&format!(
                "add = lambda: ({lock}, os.pwrite(f, b'%08d' % (int(os.pread(f, 8, 0)) + 1), 0), {unlock})"
            )]);
        }
        for actor in &mut all {
            actor.tell(&format!("[add() for _ in range({ROUNDS})] and None"));
        }
        for actor in &mut all {
            assert_eq!(actor.answer(), "ok");
        }
        let sum = (at as u32 + 1) * ROUNDS * all.len() as u32;
        for actor in &mut all {
            actor.expect("int(os.pread(f, 8, 0))", &sum.to_string());
        }
    }
    // Readers in turn: nobody keeps the other from it, and who wants it alone gets it after all.
    let shared =
        "[(lock(f, 'r', wait=True), os.pread(f, 8, 0), lock(f, 'u')) for _ in range(200)] and None";
    for actor in &mut all {
        actor.tell(shared);
    }
    for actor in &mut all {
        assert_eq!(actor.answer(), "ok");
    }
    let [a, b] = &mut all;
    a.run(&["lock(f, 'r')"]);
    b.run(&["lock(f, 'r')"]);
    a.expect("lock(f, 'w')", "EAGAIN");
    b.run(&["lock(f, 'u')"]);
    a.run(&["lock(f, 'w')"]);
    b.expect("conflict(f, 'r')", "('w', 0, 0)");
}
