//! Volumes on real machines: what crosses them, what their limits refuse and when, on how many machines their
//! contents are, and who may do what.

use std::time::{Duration, Instant};

use serde_json::Value;
use unum_tests::Playground;
use unum_tests::actor::{Actor, actors, cannot_run_files};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
const MACHINES: [&str; 3] = ["n1", "n2", "n3"];

/// What a machine knows of a volume.
fn usage(playground: &Playground, machine: &str, directory: &str) -> Value {
    playground.json(machine, &format!("volume usage {directory}"))
}

/// What is used, in bytes and inodes, once all machines have drained what they changed.
fn used(playground: &Playground, directory: &str) -> (u64, u64) {
    for machine in MACHINES {
        playground.does(machine, "sync /unum");
    }
    let shown = usage(playground, "n1", directory);
    let number = |key: &str| shown[key].as_u64().expect("a number");
    (number("used_bytes"), number("used_inodes"))
}

#[test]
fn volumes_are_made_shown_set_and_removed() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n2"]);
    // Both machines know that there is no such name, and forget it.
    a.expect("os.path.exists('/unum/v')", "False");
    b.expect("os.path.exists('/unum/v')", "False");
    let made = playground.json("n1", "volume create /unum/v --quota 10M --inodes 20 --replicas 2");
    assert_eq!((&made["id"], &made["path"]), (&2.into(), &"/unum/v".into()));
    a.expect("os.listdir('/unum/v'), os.stat('/unum/v').st_mode", "([], 16877)");
    b.expect("os.listdir('/unum/v'), os.stat('/unum').st_nlink", "([], 3)");
    playground.does("n3", "cd /unum/v && unum volume create inner");
    b.run(&["write('/unum/v/f', bytes(100000))", "os.mkdir('/unum/d')"]);

    let listed = playground.json("n2", "volume list");
    let row = |id: usize, path: &str, inodes: u64, bytes: u64| {
        let row = &listed[id - 1];
        assert_eq!((&row["id"], &row["path"]), (&id.into(), &path.into()));
        assert_eq!((&row["used_inodes"], &row["used_bytes"]), (&inodes.into(), &bytes.into()));
    };
    row(1, "/unum", 2, 0);
    row(2, "/unum/v", 2, 100_000);
    row(3, "/unum/v/inner", 1, 0);
    assert_eq!(
        (&listed[1]["replicas"], &listed[1]["replicas_default"]),
        (&2.into(), &false.into())
    );
    assert_eq!((&listed[2]["replicas"], &listed[2]["replicas_default"]), (&3.into(), &true.into()));
    assert_eq!(
        (&listed[1]["quota_bytes"], &listed[1]["quota_inodes"]),
        (&(10 * MIB).into(), &20.into())
    );
    assert_eq!(listed[2]["quota_bytes"], Value::Null);
    assert_eq!(usage(&playground, "n3", "/unum/v/inner")["id"], 3);
    assert_eq!(usage(&playground, "n3", "")["id"], 1);

    // df and statfs tell the limits, above them the disk.
    let df =
        playground.does("n3", "df -B1 --output=size,used,avail,itotal,iused /unum/v/f | tail -1");
    let df: Vec<u64> =
        df.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    assert_eq!(df[0], 10 * MIB);
    assert!(df[1] >= 100_000 && df[1] < 110_000 && df[1] + df[2] == df[0], "{df:?}");
    assert_eq!(df[3..], [20, 2]);
    b.expect("os.statvfs('/unum').f_blocks > os.statvfs('/unum/v').f_blocks", "True");

    // Between volumes there are only copies.
    for call in [
        "os.rename('/unum/v/f', '/unum/f')",
        "os.rename('/unum/d', '/unum/v/d')",
        "os.rename('/unum/v/inner', '/unum/inner')",
        "os.rename('/unum/v/f', '/unum/v/inner/f')",
        "os.link('/unum/v/f', '/unum/f')",
        "rename('/unum/v/f', '/unum/d', 2)",
    ] {
        a.expect(call, "EXDEV");
        b.expect(call, "EXDEV");
    }
    playground.does("n1", "mv -n /unum/v/f /unum/d/ && ! [ -e /unum/v/f ] && stat /unum/d/f");
    b.expect("read('/unum/d/f') == bytes(100000)", "True");
    // A volume moves as a whole, where its name is.
    b.run(&["os.rename('/unum/v', '/unum/d/w')"]);
    assert_eq!(usage(&playground, "n1", "/unum/d/w/inner")["path"], "/unum/d/w/inner");

    // Settings, together with the class.
    let words = "volume set /unum/d/w quota=none inodes=7 replicas=default class=strict";
    let told = playground.json("n3", words);
    assert_eq!((&told["class"], &told["changed"]), (&"strict".into(), &2.into()));
    let volume = &told["volume"];
    assert_eq!((&volume["quota_bytes"], &volume["quota_inodes"]), (&Value::Null, &7.into()));
    assert_eq!(volume["replicas_default"], true);
    let told = playground.is_refused("n3", "unum volume set /unum/d quota=1G");
    assert!(told.contains("not the root of a volume: it is in volume 1 at /unum"), "{told}");
    for bad in ["quota=1X", "replicas=9", "inodes=0", "quota=1G quota=2G", "size=1"] {
        playground.is_refused("n3", &format!("unum volume set /unum/d/w {bad}"));
    }
    for bad in ["/unum/d", "/tmp/x", "/unum/none/x", "/unum/d/f/x"] {
        playground.is_refused("n2", &format!("unum volume create {bad}"));
    }

    // Root alone; everybody may look.
    for words in [
        &["create", "/unum/mine"][..],
        &["set", "/unum/d/w", "quota=1G"],
        &["set", "/unum", "replicas=1"],
        &["delete", "/unum/d/w/inner"],
    ] {
        let words = [&["--user", "nobody", "n1", "--", "unum", "volume"][..], words].concat();
        let output = playground.dev("exec", &words);
        assert!(!output.status.success(), "{words:?}");
    }
    playground.must("exec", &["--user", "nobody", "n1", "--", "unum", "volume", "list"]);

    // Removed, by either way, when they are empty.
    let told = playground.is_refused("n2", "unum volume delete /unum/d/w");
    assert!(told.contains("not empty"), "{told}");
    playground.is_refused("n2", "unum volume delete /unum/d");
    playground.is_refused("n2", "unum volume delete /unum");
    playground.does("n2", "rmdir /unum/d/w/inner && unum volume delete /unum/d/w");
    let listed = playground.json("n1", "volume list");
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    let made = playground.json("n1", "volume create /unum/v");
    assert_eq!(made["id"], 4, "numbers are never given again");
    playground.does("n1", "unum fsck");
}

/// Gives an actor `name(n)` in a directory, `put(path)`, which writes 1 MiB there, and `fill()`, which writes such
/// files until a limit is met and tells how many there are.
fn make_filler(actor: &mut Actor, directory: &str) {
    let tried = "def tried(n):\\n try: put(name(n))\\n except OSError as e: return e.errno == 122";
    actor.run(&[
        "chunk = os.urandom(1 << 20)",
        "put = lambda path: write(path, chunk)",
        &format!("name = lambda n: '{directory}/%03d' % n"),
        &format!("exec('{tried}', scope)"),
        "fill = lambda: next(n for n in range(1000) if tried(n))",
    ]);
}

#[test]
fn limits_hold_for_all_machines_at_the_call_that_breaks_them() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b, mut c] = actors(&playground, MACHINES);
    playground.does("n1", "unum volume create /unum/v --quota 8M --inodes 30");
    a.run(&["os.mkdir('/unum/v/a')"]);
    b.run(&["os.mkdir('/unum/v/b')"]);
    for (actor, own) in [(&mut a, "a"), (&mut b, "b")] {
        make_filler(actor, &format!("/unum/v/{own}"));
    }

    // Under its write lease a machine is told at once, before anybody else hears of it.
    let written: u64 = a.call("fill()").parse().expect("a number");
    assert_eq!(written, 8);
    a.expect("os.stat(name(8)).st_size", "0");
    a.expect("put(name(8))", "EDQUOT");
    a.run(&["put(name(0))", "f = os.open(name(1), os.O_RDWR)"]);
    a.expect("os.pwrite(f, b'x' * 1000, 5)", "1000");
    a.expect("os.pwrite(f, b'x', 1 << 20)", "EDQUOT");
    a.expect("fallocate(f, 0, 1 << 20, 1)", "EDQUOT");
    // Through mapped memory it is told by the sync.
    a.run(&[
        "os.ftruncate(f, 2 << 20)",
        "m = mmap.mmap(f, 2 << 20)",
        "m.__setitem__(slice(1 << 20, (1 << 20) + 1), b'x')",
    ]);
    a.expect("m.flush()", "EDQUOT");
    a.run(&["m.close()", "os.ftruncate(f, 1 << 20)"]);
    a.run(&["os.ftruncate(f, 1 << 30)", "os.ftruncate(f, 1 << 19)", "os.fsync(f)"]);
    // The others know what it drained.
    assert_eq!(used(&playground, "/unum/v").0, 8 * MIB - 512 * KIB);
    b.expect("put(name(0))", "EDQUOT");
    b.run(&["chunk = chunk[:500 << 10]", "put(name(0))"]);
    assert_eq!(used(&playground, "/unum/v").0, 8 * MIB - 12 * KIB);
    c.expect("write('/unum/v/c', b'x' * 20000)", "EDQUOT");
    playground.does("n3", "unum volume set /unum/v quota=9M");
    for (actor, name) in [(&mut b, "of b"), (&mut c, "of c")] {
        actor.run(&[&format!("write('/unum/v/{name}', b'x' * 20000)")]);
    }

    // Inodes of all kinds; names are none.
    let (_, inodes) = used(&playground, "/unum/v");
    c.run(&[&format!("[os.mkdir('/unum/v/d%d' % n) for n in range(30 - {inodes})] and None")]);
    for call in [
        "os.mkdir('/unum/v/x')",
        "os.symlink('/', '/unum/v/x')",
        "os.mkfifo('/unum/v/x')",
        "os.open('/unum/v/x', os.O_CREAT | os.O_WRONLY)",
        "os.open('/unum/v', os.O_TMPFILE | os.O_WRONLY)",
    ] {
        c.expect(call, "EDQUOT");
    }
    used(&playground, "/unum/v");
    a.expect("os.mkdir('/unum/v/a/x')", "EDQUOT");
    a.run(&["os.link(name(0), '/unum/v/a/link')", "os.mkdir('/unum/elsewhere')"]);
    // What is removed is free when no machine can have it open any more.
    b.run(&["os.rmdir('/unum/v/d0')"]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while c.call("os.mkdir('/unum/v/x')") == "EDQUOT" {
        assert!(Instant::now() < deadline, "the room of what was removed never comes back");
        std::thread::sleep(Duration::from_millis(200));
    }
    playground.does("n1", "unum fsck");
}

#[test]
fn two_machines_that_fill_a_volume_at_once_get_no_more_than_was_pending() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n2", "n3"]);
    playground.does("n1", "unum volume create /unum/v --quota 24M");
    playground.does("n1", "mkdir /unum/v/a /unum/v/b");
    for (actor, own) in [(&mut a, "a"), (&mut b, "b")] {
        make_filler(actor, &format!("/unum/v/{own}"));
    }
    a.tell("fill()");
    b.tell("fill()");
    let counts = [a.answer(), b.answer()].map(|count| count.parse::<u64>().expect("a number"));
    // The next daemon has to make good what this one promised.
    playground.must("kill-daemon", &["n2"]);
    let (bytes, _) = used(&playground, "/unum/v");
    assert_eq!(bytes, (counts[0] + counts[1]) * MIB, "nothing that was promised is lost");
    assert!((24 * MIB..=(24 + 2 * 128) * MIB).contains(&bytes), "{bytes}");
    for actor in [&mut a, &mut b] {
        actor.expect("put(name(500))", "EDQUOT");
    }
    assert_eq!(used(&playground, "/unum/v").0, bytes);
    // All of it is there for everybody.
    a.expect(
        &format!("sum(os.stat(f'/unum/v/b/{{n:03}}').st_blocks for n in range({}))", counts[1]),
        &(counts[1] * MIB / 512).to_string(),
    );

    // Limits, usage and numbers outlive a power cut of all machines.
    playground.does(
        "n1",
        "unum volume create /unum/v/in --replicas 2 --inodes 5 && touch /unum/v/in/f && sync /unum/v/in",
    );
    drop((a, b));
    let before = playground.json("n1", "volume list");
    playground.must("cut", &MACHINES);
    playground.must("boot", &MACHINES);
    let same = |shown: &Value| *shown == before;
    playground.json_when("n2", "volume list", "the volumes as they were", same);
    let told = playground.is_refused("n3", "head -c 100000 /dev/zero > /unum/v/new");
    assert!(told.contains("quota"), "{told}");
}

#[test]
fn contents_are_on_as_many_machines_as_their_volume_says() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--nodes", "4"]);
    let all = ["n1", "n2", "n3", "n4"];
    let counted = |options: &str| {
        let output = playground.tries("n1", &format!("unum fsck --json {options}"));
        let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let number = |key: &str| shown[key].as_u64().expect("a number");
        assert_eq!(number("left"), 0, "{shown}");
        (number("chunks"), number("replicas"))
    };
    // A replica that is slow is left to repair.
    let whole = || {
        let none = |status: &Value| status["chunks_degraded"] == 0;
        playground.status_when("n4", "no chunk that lacks a replica", none);
    };
    let bytes = || all.map(|machine| playground.chunk_bytes(machine)).iter().sum::<u64>();
    for (number, directory) in [(1, "/unum/one"), (2, "/unum/two"), (4, "/unum/four")] {
        let (chunks, replicas) = counted("");
        let before = bytes();
        playground.does("n2", &format!("unum volume create {directory} --replicas {number}"));
        // Through the change log, and without it.
        let write = format!("dd if=/dev/urandom bs=1M count=8 iflag=fullblock of={directory}/");
        playground.does("n2", &format!("{write}a && {write}b && sync {directory}/*"));
        playground.does("n3", &format!("unum volume set {directory} class=strict && {write}c"));
        whole();
        let (now, holding) = counted("--deep");
        assert_eq!(holding - replicas, number * (now - chunks), "{directory}");
        let grown = bytes() - before;
        let wanted = number * 24 * MIB;
        assert!((wanted..wanted + wanted / 4 + MIB).contains(&grown), "{directory}: {grown}");
    }
    // What is elsewhere is on three, as the cluster's setting says.
    let (chunks, replicas) = counted("");
    playground.does("n1", "head -c 8M /dev/urandom > /unum/usual && sync /unum/usual");
    whole();
    let (now, holding) = counted("");
    assert_eq!(holding - replicas, 3 * (now - chunks));

    // A larger number has repair make the others.
    let sum = "cat /unum/one/* | sha256sum";
    let contents = playground.does("n1", sum);
    let (_, replicas) = counted("");
    playground.does("n1", "unum volume set /unum/one replicas=3");
    counted("--repair");
    let (_, now) = counted("");
    let chunks_of_one = (now - replicas) / 2;
    assert!(chunks_of_one >= 24, "{chunks_of_one}");
    whole();

    // A machine that leaves hands over even what it alone has.
    let alone = "cat /unum/alone/* | sha256sum";
    playground.does("n1", "unum volume create /unum/alone --replicas 1");
    playground
        .does("n1", "head -c 8M /dev/urandom | split -b 1M - /unum/alone/ && sync /unum/alone");
    let lonely = playground.does("n1", alone);
    playground.does("n4", "unum leave");
    assert_eq!(playground.does("n1", alone), lonely);

    // A volume with two outlives the loss of any machine.
    let two = playground.does("n1", "cat /unum/two/* | sha256sum");
    playground.must("cut", &["n3"]);
    playground.status_when("n1", "a dead node", |status| status["nodes_alive"] == 2);
    assert_eq!(playground.does("n2", "cat /unum/two/* | sha256sum"), two);
    assert_eq!(playground.does("n2", sum), contents);
    playground.does("n2", "head -c 1M /dev/urandom > /unum/two/new && sync /unum/two/new");
}
