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

/// Partitions that it may take until one comes while a machine has changes pending.
const ROUNDS_MAX: u32 = 5;

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
fn a_volume_is_set_strict_and_back_with_all_that_is_in_it() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = file_makers(&playground, ["n1", "n2"]);
    a.run(&[
        "os.makedirs('/unum/p/sub')",
        "write('/unum/p/sub/old', b'old')",
        "write('/unum/out', b'')",
        "os.symlink('/unum/out', '/unum/p/link')",
        "os.mkfifo('/unum/p/sub/fifo')",
        "classes = lambda *paths: [os.getxattr(path, 'user.unum.class').decode() for path in paths]",
    ]);
    let told = playground.json("n1", "volume set /unum/p class=strict");
    assert_eq!(told["class"], "strict");
    assert_eq!(
        (&told["changed"], &told["skipped"], &told["failed"]),
        (&3.into(), &2.into(), &0.into())
    );
    let shown = playground.json("n2", "volume show /unum/p /unum/p/sub /unum");
    let shown: Vec<&Value> =
        shown.as_array().into_iter().flatten().map(|row| &row["class"]).collect();
    assert_eq!(shown, ["strict", "strict", "posix"]);
    a.expect("classes('/unum/p/sub/old', '/unum/out')", "['strict', 'posix']");

    b.run(&["[make(n) for n in range(40)] and None", "write('/unum/p/sub/old', b'new', 'ab')"]);
    playground.must("cut", &["n2"]);
    a.expect("[n for n in range(40) if not good(n)]", "[]");
    a.expect("read('/unum/p/sub/old')", "b'oldnew'");

    let told = playground.json("n1", "volume set /unum/p class=posix");
    assert_eq!((&told["changed"], &told["unchanged"]), (&43.into(), &0.into()));
    assert_eq!(playground.json("n3", "volume show /unum/p")[0]["class"], "posix");
    playground.does("n1", "unum volume set --only /unum/p class=strict && touch /unum/p/later");
    let found = "classes('/unum/p', '/unum/p/later', '/unum/p/sub', '/unum/p/00000')";
    a.expect(found, "['strict', 'strict', 'posix', 'posix']");

    assert_eq!(playground.json("n1", "volume show")[0]["path"], "/unum");
    let told = playground.is_refused("n1", "unum volume set /tmp class=strict");
    assert!(told.contains("/tmp is not in the cluster's file tree"), "{told}");
    let told = playground.is_refused("n1", "unum volume set /unum/p class=fast");
    assert!(told.contains("there are strict and posix"), "{told}");
    let words = ["--user", "nobody", "n1", "--", "unum", "volume", "set", "/unum/p", "class=posix"];
    let refused = playground.dev("exec", &words);
    assert_eq!(refused.status.code(), Some(1));
    assert!(unum_tests::text(&refused.stderr).contains("Permission denied"), "{refused:?}");
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
        "other = os.open('/unum/other', os.O_RDWR | os.O_CREAT)",
        "spin = lambda: [done.append(n) for n in range(1000000) if os.pwrite(f, b'%08d' % n, 0)]",
    ]);
    // If its lease is over just when the network parts, it makes no change that could be lost.
    let lost = (0..ROUNDS_MAX).any(|_| {
        a.run(&["done = []", "os.pwrite(f, b'%08d' % 0, 0) and None", "os.fsync(f)"]);
        // It goes on until its calls are no longer answered.
        a.tell("within(4, spin)");
        std::thread::sleep(Duration::from_millis(500));
        playground.must("partition", &["n1", "n3", "--", "n2"]);
        a.answer();
        // The holder cannot be asked; once it is declared down nobody has to ask.
        let survived = b.call("int(read('/unum/f'))").parse::<u64>().expect("a number");
        b.run(&["write('/unum/f', b'new')"]);
        playground.must("heal", &[]);
        playground.json_when("n1", "nodes", "all nodes", |nodes| {
            let nodes = nodes.as_array().into_iter().flatten();
            nodes.filter(|node| node["state"] == "alive").count() == 3
        });
        let answered = a.call("done[-1]").parse::<u64>().expect("a number");
        assert!(survived <= answered + 1, "{survived} of {answered}");
        survived < answered
    });
    assert!(lost, "nothing was ever lost");
    // A program that it starts closes the file at once, and takes nothing from it by that.
    a.run(&["os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0) and None"]);
    a.expect("os.fsync(f)", "EIO");
    // Once, and only where something was lost.
    a.expect("os.fsync(f)", "ok");
    a.expect("os.fsync(other)", "ok");
    a.expect("os.pread(f, 8, 0)", "b'new'");
}

#[test]
fn what_is_written_in_pieces_becomes_few_chunks() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = file_makers(&playground, ["n2", "n3"]);
    a.run(&[
        "import random",
        "at = random.Random(7)",
        "f = os.open('/unum/f', os.O_RDWR | os.O_CREAT)",
        "log = os.open('/unum/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)",
        "model = bytearray(3 << 20)",
        "put = lambda at, data: (model.__setitem__(slice(at, at + len(data)), data), \
         os.pwrite(f, data, at), os.write(log, data[:1000])) and None",
        // In a row, then here and there and over each other.
        "[put(n << 13, bytes([n & 255]) * 8192) for n in range(384)] and None",
        "os.fsync(f)",
    ]);
    let chunks = || playground.json("n1", "fsck")["chunks"].as_u64().expect("a number");
    // A drain may come in between at any point, and each begins a new chunk.
    assert!(chunks() < 48, "{} chunks for 3.4 MiB", chunks());
    a.run(&["[put(at.randrange(3000000), bytes([at.randrange(256)]) * at.randrange(1, 9000)) \
         for _ in range(900)] and None"]);
    a.expect("os.pread(f, 3 << 20, 0) == model", "True");
    a.run(&["os.fsync(f)"]);
    a.expect("os.pread(f, 3 << 20, 0) == model", "True");
    a.run(&["import hashlib"]);
    b.run(&["import hashlib"]);
    let sum = a.call("hashlib.md5(model).hexdigest()");
    b.expect("hashlib.md5(read('/unum/f')).hexdigest()", &sum);
    let log = a.call("hashlib.md5(read('/unum/log')).hexdigest()");
    b.expect("hashlib.md5(read('/unum/log')).hexdigest()", &log);
    // What is in the journal when a daemon is killed is folded by the next one.
    a.run(&["[put(at.randrange(3000000), bytes([at.randrange(256)]) * at.randrange(1, 9000)) \
         for _ in range(300)] and None"]);
    playground.must("kill-daemon", &["n2"]);
    a.expect("os.pread(f, 3 << 20, 0) == model", "True");
    let sum = a.call("hashlib.md5(model).hexdigest()");
    b.expect("hashlib.md5(read('/unum/f')).hexdigest()", &sum);
    assert_eq!(playground.json("n1", "fsck --deep")["clean"], true);
}
