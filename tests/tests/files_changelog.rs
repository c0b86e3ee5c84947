//! What programs change under their machine's write lease: nothing that was synced is lost, what a power
//! cut takes is the end of what the machine did, and a machine that was given up hears of it.

use std::time::Duration;

use serde_json::Value;
use unum_tests::Playground;
use unum_tests::actor::{Actor, actors, cannot_run_files};

/// Makes `/unum/p/NUMBER` with content that tells the number, and reads such files.
const FILES: [&str; 3] = [
    "content = lambda n: b'%05d' % n * 200",
    "make = lambda n: write(f'/unum/p/{n:05}', content(n))",
    "good = lambda n: read(f'/unum/p/{n:05}') == content(n)",
];
const SYNC: &str =
    "sync = lambda path: (lambda f: os.fsync(f) or os.close(f))(os.open(path, os.O_RDONLY))";

fn file_makers<const N: usize>(playground: &Playground, machines: [&str; N]) -> [Actor; N] {
    let mut made = actors(playground, machines);
    for actor in &mut made {
        actor.run(&FILES);
        actor.run(&[SYNC]);
    }
    made
}

#[test]
fn a_power_cut_takes_the_end_of_what_a_machine_did() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = file_makers(&playground, ["n2", "n1"]);
    a.run(&["os.mkdir('/unum/p')", "[make(n) for n in range(300)] and None"]);
    a.run(&["sync('/unum/p/00299')"]);
    a.tell("[make(n) for n in range(300, 30000)] and None");
    std::thread::sleep(Duration::from_millis(1700));
    playground.must("cut", &["n2"]);
    b.run(&["names = sorted(os.listdir('/unum/p'))"]);
    b.expect("names == [f'{n:05}' for n in range(len(names))]", "True");
    b.expect("300 <= len(names) < 30000", "True");
    // The last one may have been made and not written yet.
    b.expect("[n for n in range(len(names) - 1) if not good(n)]", "[]");
    b.expect("read('/unum/p/' + names[-1]) in (b'', content(len(names) - 1))", "True");
}

#[test]
fn a_killed_daemon_loses_nothing() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = file_makers(&playground, ["n2", "n3"]);
    a.run(&["os.mkdir('/unum/p')", "open = os.open('/unum/p/open', os.O_RDWR | os.O_CREAT)"]);
    for round in 0..3 {
        let (from, to) = (round * 400, (round + 1) * 400);
        a.run(&[
            &format!("[make(n) for n in range({from}, {to})] and None"),
            &format!("os.pwrite(open, b'{round}', {round}) and None"),
        ]);
        playground.must("kill-daemon", &["n2"]);
        a.run(&[&format!("os.rename('/unum/p/{from:05}', '/unum/p/moved{round}')")]);
        b.expect(&format!("[n for n in range({from} + 1, {to}) if not good(n)]"), "[]");
        b.expect(&format!("read('/unum/p/moved{round}') == content({from})"), "True");
    }
    b.expect("read('/unum/p/open')", "b'012'");
    a.expect("os.fsync(open)", "ok");
}

#[test]
fn strict_files_outlive_a_power_cut_without_a_sync() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = file_makers(&playground, ["n2", "n1"]);
    a.run(&[
        "os.mkdir('/unum/p')",
        "os.setxattr('/unum/p', 'user.unum.class', b'strict')",
        "[make(n) for n in range(60)] and None",
    ]);
    playground.must("cut", &["n2"]);
    b.expect("[n for n in range(60) if not good(n)]", "[]");
}

#[test]
fn a_machine_that_was_given_up_is_told_what_it_lost() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "file_patience=20s"]);
    let [mut a, mut b] = file_makers(&playground, ["n2", "n1"]);
    a.run(&[
        "f = os.open('/unum/f', os.O_RDWR | os.O_CREAT)",
        "os.pwrite(f, b'kept', 0) and None",
        "other = os.open('/unum/other', os.O_RDWR | os.O_CREAT)",
        "os.fsync(f)",
        // It goes on until its calls are no longer answered.
        "spin = lambda: [os.pwrite(f, b'%08d' % n, 0) for n in range(1000000)]",
    ]);
    a.tell("within(4, spin)");
    std::thread::sleep(Duration::from_millis(500));
    playground.must("partition", &["n1", "n3", "--", "n2"]);
    a.answer();
    // The holder cannot be asked; once it is declared down nobody has to ask.
    b.run(&["got = int(read('/unum/f'))", "write('/unum/f', b'new')"]);
    playground.must("heal", &[]);
    playground.json_when("n1", "nodes", "n2 up again", |nodes| {
        let mut nodes = nodes.as_array().into_iter().flatten();
        let again = |node: &Value| node["state"] == "alive" && node["epoch"].as_u64() > Some(2);
        nodes.any(|node| node["name"] == "n2" && again(node))
    });
    a.expect("os.fsync(f)", "EIO");
    // Once, and only where something was lost.
    a.expect("os.fsync(f)", "ok");
    a.expect("os.fsync(other)", "ok");
    a.expect("os.pread(f, 8, 0)", "b'new'");
}
