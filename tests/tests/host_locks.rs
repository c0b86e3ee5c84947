//! fcntl and flock locks on other machines' files: they hold on all machines and at home, outlive daemons, and end with
//! their owners.

use std::time::Duration;

use unum_tests::Playground;
use unum_tests::actor::{actors, cannot_run_files};

const AT_HOME: &str = "f = os.open('/tmp/f', os.O_RDWR | os.O_CREAT)";
const AWAY: &str = "f = os.open('/n/n1/tmp/f', os.O_RDWR)";

#[test]
fn locks_hold_at_home_and_away_and_end_with_their_owners() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let [mut home, mut near, mut far] = actors(&playground, ["n1", "n2", "n3"]);
    home.run(&[AT_HOME]);
    near.run(&[AWAY]);
    far.run(&[AWAY]);

    // Ranges, kinds and families.
    near.run(&["lock(f, 'w', 10, 10)", "fcntl.flock(f, fcntl.LOCK_SH)"]);
    for other in [&mut home, &mut far] {
        other.expect("lock(f, 'r', 19, 5)", "EAGAIN");
        other.expect("conflict(f, 'r', 0, 0)", "('w', 10, 10)");
        other.expect("conflict(f, 'w', 0, 10) is None", "True");
        other.expect("fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)", "EAGAIN");
        other.run(&[
            "fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)",
            "fcntl.flock(f, fcntl.LOCK_UN)",
        ]);
    }
    near.expect("conflict(f, 'w', 0, 0) is None", "True");
    near.run(&["lock(f, 'u', 15, 1)"]);
    home.run(&["lock(f, 'w', 15, 1)"]);
    near.expect("lock(f, 'r')", "EAGAIN");
    home.run(&["lock(f, 'u')"]);
    near.run(&["lock(f, 'u')", "fcntl.flock(f, fcntl.LOCK_UN)"]);

    // Who waits is granted by an unlock, a close, an exit, wherever; and let go by a signal.
    home.run(&["lock(f, 'w')"]);
    near.waits("lock(f, 'w', wait=True)");
    far.expect("within(0.5, lambda: lock(f, 'w', wait=True))", "'interrupted'");
    far.expect(
        "within(0.5, lambda: fcntl.flock(f, fcntl.LOCK_EX) or lock(f, 'w', wait=True))",
        "'interrupted'",
    );
    home.run(&["lock(f, 'u')"]);
    assert_eq!(near.answer(), "ok");
    home.waits("lock(f, 'w', wait=True)");
    near.run(&["os.close(os.dup(f))"]);
    assert_eq!(home.answer(), "ok", "closing any descriptor of the file releases its record locks");
    near.waits("fcntl.flock(f, fcntl.LOCK_EX)");
    let [mut second] = actors(&playground, ["n3"]);
    second.run(&[AWAY]);
    second.waits("lock(f, 'w', wait=True)");
    assert!(playground.sh("n3", &format!("kill -9 {}", far.pid)).status.success());
    assert_eq!(near.answer(), "ok", "the flock of a process that died has ended");
    home.run(&["lock(f, 'u')"]);
    assert_eq!(second.answer(), "ok");

    // Open file description locks belong to the open file.
    second.run(&["lock(f, 'u')", "lock(f, 'w', ofd=True)", "os.close(os.dup(f))"]);
    home.expect("lock(f, 'w')", "EAGAIN");
    second.run(&["os.close(f)"]);
    home.run(&["lock(f, 'w', wait=True)", "lock(f, 'u')"]);

    // A file without a name can be locked, and one that is open for reading alone, by readers.
    near.run(&["fcntl.flock(f, fcntl.LOCK_UN)", "os.unlink('/n/n1/tmp/f')", "lock(f, 'w')"]);
    home.expect("lock(f, 'w')", "EAGAIN");
    near.run(&["os.close(f)"]);
    home.run(&["lock(f, 'w', wait=True)", "os.close(f)", AT_HOME]);
    near.run(&["f = os.open('/n/n1/tmp/f', os.O_RDONLY)", "lock(f, 'r')"]);
    near.expect("lock(f, 'w')", "EBADF");
    home.expect("lock(f, 'w')", "EAGAIN");
    near.run(&["os.close(f)"]);
    home.run(&["lock(f, 'w')"]);
}

#[test]
fn locks_outlive_both_daemons() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let [mut home, mut near, mut far] = actors(&playground, ["n1", "n2", "n3"]);
    home.run(&[AT_HOME]);
    near.run(&[AWAY, "lock(f, 'w', 0, 10)", "fcntl.flock(f, fcntl.LOCK_EX)"]);
    far.run(&[AWAY]);
    for victim in ["n1", "n2"] {
        playground.must("kill-daemon", &[victim]);
        // The home's kernel has them, daemon or not.
        home.expect("lock(f, 'r')", "EAGAIN");
        home.expect("fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)", "EAGAIN");
        far.expect("lock(f, 'r', 5, 1)", "EAGAIN");
        near.run(&["lock(f, 'w', 10, 10)", "lock(f, 'u', 10, 10)"]);
        far.run(&["lock(f, 'w', 10, 1)", "lock(f, 'u', 10, 1)"]);
    }
    // What began under other daemons ends under these.
    near.run(&["os.close(f)"]);
    home.run(&["lock(f, 'w', wait=True)", "fcntl.flock(f, fcntl.LOCK_EX)", "lock(f, 'u')"]);

    // One who waits goes on waiting, and gets it.
    home.run(&["lock(f, 'w')"]);
    far.waits("lock(f, 'w', wait=True)");
    for victim in ["n1", "n3"] {
        playground.must("kill-daemon", &[victim]);
    }
    std::thread::sleep(Duration::from_millis(500));
    home.run(&["lock(f, 'u')"]);
    assert_eq!(far.answer(), "ok");
    home.expect("lock(f, 'w')", "EAGAIN");
}

#[test]
fn who_is_taken_for_dead_loses_its_locks_and_is_fenced_off() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let [mut home, mut cut, mut dead] = actors(&playground, ["n1", "n3", "n2"]);
    home.run(&[AT_HOME, "write('/tmp/g', b'')", "g = os.open('/tmp/g', os.O_RDWR)"]);
    let both = [AWAY, "g = os.open('/n/n1/tmp/g', os.O_RDWR)"];
    cut.run(&both);
    cut.run(&["lock(f, 'w')", "h = os.open('/n/n1/tmp/f', os.O_RDWR)"]);
    home.waits("lock(f, 'w', wait=True)");
    playground.must("partition", &["n1", "n2", "--", "n3"]);
    assert_eq!(home.answer(), "ok", "the locks of a node that is taken for dead end");
    home.run(&["os.pwrite(f, b'home', 0) and None", "lock(f, 'u')"]);
    playground.must("heal", &[]);
    // It does not know, and must not write as if it had the lock. What had no locks goes on.
    let again = "for i in range(200):\\n  try:\\n    os.pwrite(g, b'on', 0)\\n    break\\n  except OSError: time.sleep(0.05)";
    cut.run(&[&format!("exec({again:?})").replace("\\\\n", "\\n")]);
    cut.expect("os.pwrite(f, b'late', 0)", "EIO");
    cut.expect("os.pread(f, 4, 0)", "EIO");
    cut.expect("lock(f, 'w')", "EIO");
    cut.run(&["os.close(h)", "os.close(f)", AWAY, "lock(f, 'w')"]);
    cut.expect("os.pread(f, 4, 0)", "b'home'");
    cut.expect("os.pwrite(f, b'anew', 0)", "4");
    home.expect("lock(f, 'w')", "EAGAIN");
    cut.run(&["lock(f, 'u')"]);

    // A home that is down when a lock ends hears of it when it is back.
    dead.run(&[AWAY, "lock(f, 'w')"]);
    playground.must("partition", &["n1", "--", "n2", "n3"]);
    dead.expect("within(4, lambda: os.stat('/n/n1/tmp/f'), signal.SIGINT)", "EHOSTDOWN");
    dead.run(&["os.close(f)"]);
    home.expect("lock(f, 'r')", "EAGAIN");
    playground.must("heal", &[]);
    home.run(&["lock(f, 'w', wait=True)", "lock(f, 'u')"]);

    // A machine that loses its power.
    dead.run(&[AWAY, "lock(f, 'w')"]);
    home.waits("lock(f, 'w', wait=True)");
    playground.must("cut", &["n2"]);
    assert_eq!(home.answer(), "ok");
}

/// Additions by each machine.
const ADDITIONS: u32 = 25;

#[test]
fn three_machines_share_a_database_at_ones_home() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let mut all = actors(&playground, ["n1", "n2", "n3"]);
    let open = "db = sqlite3.connect(path, timeout=60, isolation_level=None)";
    for (actor, path) in all.iter_mut().zip(["/tmp/db", "/n/n1/tmp/db", "/n/n1/tmp/db"]) {
        actor.run(&["import sqlite3", &format!("path = {path:?}"), open]);
    }
    all[0].run(&["db.execute('create table t (n integer)') and None"]);
    all[0].run(&["db.execute('insert into t values (0)') and None"]);
    let add = "all(db.execute('begin immediate') and db.execute('update t set n = n + 1') \
        and db.execute('commit') for i in range(ADDITIONS))";
    for actor in &mut all {
        actor.tell(&add.replace("ADDITIONS", &ADDITIONS.to_string()));
    }
    for actor in &mut all {
        assert_eq!(actor.answer(), "True");
    }
    let sum = format!("[({},)]", 3 * ADDITIONS);
    for actor in &mut all {
        actor.expect("db.execute('select n from t').fetchall()", &sum);
        actor.expect("db.execute('pragma integrity_check').fetchall()", "[('ok',)]");
    }
}
