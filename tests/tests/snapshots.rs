//! Snapshots of volumes on real machines: that they have all that was acknowledged, stay what they were whatever
//! happens to the tree, cannot be changed, and give back what only they kept.

use std::os::unix::fs::FileExt;

use serde_json::Value;
use unum_tests::Playground;
use unum_tests::actor::{Actor, actors, cannot_run_files};

const MIB: u64 = 1 << 20;
const MACHINES: [&str; 3] = ["n1", "n2", "n3"];

/// All that can be seen of a tree, by path: what stat tells, attributes, contents, holes, targets of links.
const SEEN: [&str; 3] = [
    "data = lambda path: [os.lseek(fd := os.open(path, os.O_RDONLY), 0, os.SEEK_DATA) if os.stat(path).st_blocks else -1, \
     os.lseek(fd, 0, os.SEEK_HOLE) if os.stat(path).st_size else -1, os.close(fd)]",
    "look = lambda path, s: (s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size, s.st_blocks, s.st_mtime_ns, \
     s.st_ctime_ns, s.st_ino & (2**48 - 1), s.st_rdev, \
     [(name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(os.listxattr(path, follow_symlinks=False))], \
     os.readlink(path) if stat.S_ISLNK(s.st_mode) else sorted(os.listdir(path)) if stat.S_ISDIR(s.st_mode) else \
     (hashlib.sha256(read(path)).hexdigest(), data(path)) if stat.S_ISREG(s.st_mode) else None)",
    "seen = lambda root: hashlib.sha256(repr(sorted((os.path.relpath(os.path.join(at, name), root), \
     look(os.path.join(at, name), os.lstat(os.path.join(at, name)))) \
     for at, below, files in os.walk(root) for name in below + files + ['.'])).encode()).hexdigest()",
];

fn seers<const N: usize>(playground: &Playground, machines: [&str; N]) -> [Actor; N] {
    let mut all = actors(playground, machines);
    for actor in &mut all {
        actor.run(&SEEN);
    }
    all
}

fn seen(actor: &mut Actor, root: &str) -> String {
    actor.call(&format!("seen('{root}')"))
}

/// A bit of everything.
const FURNISH: [&str; 16] = [
    "os.makedirs('/unum/v/d/e/empty')",
    "write('/unum/v/d/f', os.urandom(3000000))",
    "os.link('/unum/v/d/f', '/unum/v/d/second')",
    "os.link('/unum/v/d/f', '/unum/v/third')",
    "os.symlink('d/f', '/unum/v/link')",
    "os.setxattr('/unum/v/d/f', 'user.x', b'old')",
    "os.setxattr('/unum/v/d', 'user.long', bytes(40000))",
    "write('/unum/v/sparse', b'end', 'wb')",
    "os.truncate('/unum/v/sparse', 0)",
    "fd = os.open('/unum/v/sparse', os.O_RDWR)",
    "os.pwrite(fd, b'x' * 100000, 5000000) and None",
    "os.ftruncate(fd, 9000000)",
    "os.close(fd)",
    "os.mkfifo('/unum/v/fifo', 0o640)",
    "[write('/unum/v/d/e/%03d' % n, b'%d' % n * n) for n in range(200)] and None",
    "os.chown('/unum/v/d/e', 12, 34), os.chmod('/unum/v/d/e', 0o2751) and None",
];

fn furnish(playground: &Playground, actor: &mut Actor) {
    playground.json("n1", "volume create /unum/v --quota 64M");
    for line in FURNISH {
        let answer = actor.call(line);
        assert!(["ok", "(None, None)"].contains(&answer.as_str()), "{line}: {answer}");
    }
}

fn take(playground: &Playground, machine: &str, words: &str) -> Value {
    playground.json(machine, &format!("snapshot create {words}"))
}

/// Checks that all is well, however long a last replica takes.
fn is_clean(playground: &Playground) -> Value {
    playground.json_when("n2", "fsck", "that all is clean", |shown| shown["clean"] == true)
}

/// Flips a bit in the first copy of these bytes in a machine's store.
fn flip_in(playground: &Playground, machine: &str, marker: &[u8]) -> usize {
    let entries = std::fs::read_dir(playground.disk(machine).join("chunks")).expect("a store");
    let mut flipped = 0;
    for path in entries.map(|entry| entry.expect("a file").path()).filter(|path| path.is_file()) {
        let bytes = std::fs::read(&path).expect("a segment");
        let Some(at) = bytes.windows(marker.len()).position(|window| window == marker) else {
            continue;
        };
        let file = std::fs::File::options().write(true).open(path).expect("a segment");
        file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("a byte");
        flipped += 1;
    }
    flipped
}

#[test]
fn a_snapshot_is_the_tree_of_its_moment_on_every_machine() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b, mut c] = seers(&playground, MACHINES);
    furnish(&playground, &mut a);
    // All machines know that there is none.
    for actor in [&mut a, &mut b, &mut c] {
        actor.expect("os.path.exists('/unum/v/.snapshot/one')", "False");
        actor.expect("os.listdir('/unum/v/.snapshot')", "[]");
    }
    // What is pending at its writer is part of it.
    a.run(&["write('/unum/v/last', b'written just now')"]);
    let made = take(&playground, "n2", "/unum/v/d one");
    assert_eq!(
        (&made["volume"], &made["name"], &made["path"]),
        (&2.into(), &"one".into(), &"/unum/v/.snapshot/one".into())
    );
    c.expect("read('/unum/v/.snapshot/one/last')", "b'written just now'");
    let live = seen(&mut a, "/unum/v");
    assert_eq!(seen(&mut b, "/unum/v/.snapshot/one"), live);
    // Change and remove everything.
    b.run(&[
        "write('/unum/v/d/f', b'new' * 1000, 'r+b')",
        "os.setxattr('/unum/v/d/f', 'user.x', b'new')",
        "os.chmod('/unum/v/third', 0o777)",
        "os.rename('/unum/v/d/e', '/unum/v/moved')",
        "write('/unum/v/added', b'added')",
    ]);
    take(&playground, "n3", "/unum/v two");
    let two = seen(&mut c, "/unum/v");
    playground.does("n1", "rm -r /unum/v/*");
    for actor in [&mut a, &mut b, &mut c] {
        assert_eq!(seen(actor, "/unum/v/.snapshot/one"), live);
        assert_eq!(seen(actor, "/unum/v/.snapshot/two"), two);
        actor.expect(
            "os.listdir('/unum/v'), os.listdir('/unum/v/.snapshot')",
            "([], ['one', 'two'])",
        );
    }
    // Nothing lists it, and its numbers are its own.
    assert_eq!(playground.does("n2", "find /unum"), "/unum\n/unum/v\n");
    let same = "os.stat('/unum/v').st_dev == os.stat('/unum/v/.snapshot/one/last').st_dev";
    a.expect(same, "True");
    a.expect(
        "os.statvfs('/unum/v/.snapshot/one/d').f_blocks == os.statvfs('/unum/v').f_blocks",
        "True",
    );
    a.expect("os.stat('/unum/v/.snapshot/one').st_ino == os.stat('/unum/v').st_ino", "False");
    a.expect("os.path.realpath('/unum/v/.snapshot/one/d/..')", "'/unum/v/.snapshot/one'");
    playground
        .does("n1", "cd /unum/v/.snapshot/one/d && [ $(/bin/pwd) = /unum/v/.snapshot/one/d ]");
    // A quota counts the tree of today, and usage tells the rest.
    // What is removed counts a few seconds more.
    let usage =
        playground.json_when("n3", "volume usage /unum/v", "that little is in use", |usage| {
            usage["used_bytes"].as_u64() < Some(MIB)
        });
    assert_eq!(usage["snapshots"], 2);
    assert!(usage["snapshot_bytes"].as_u64() > Some(3_000_000), "{usage}");
    // Whole files come back by copies.
    playground
        .does("n2", "cp -a /unum/v/.snapshot/one/. /unum/v/ && cmp /unum/v/third /unum/v/d/f");
    b.expect("read('/unum/v/last'), os.stat('/unum/v/d/f').st_nlink", "(b'written just now', 3)");
    // A name by the time, and one of each volume.
    let named = take(&playground, "n1", "/unum")["name"].as_str().expect("a name").to_owned();
    assert!(named.len() == 20 && named.ends_with('Z'), "{named}");
    a.expect(
        &format!("os.listdir('/unum/.snapshot'), os.listdir('/unum/.snapshot/{named}/v')"),
        &format!("(['{named}'], [])"),
    );
    let listed = playground.json("n2", "snapshot list");
    let names: Vec<_> =
        listed.as_array().expect("a list").iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, [named.as_str(), "one", "two"]);
    let listed = playground.json("n2", "snapshot list /unum/v/d");
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    is_clean(&playground);
}

#[test]
fn nothing_in_a_snapshot_can_be_changed() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = seers(&playground, ["n1", "n2"]);
    furnish(&playground, &mut a);
    take(&playground, "n1", "/unum/v one");
    let before = seen(&mut b, "/unum/v/.snapshot/one");
    a.run(&[
        "S = '/unum/v/.snapshot/one/'",
        "r = os.open(S + 'd/f', os.O_RDONLY)",
        "w = os.open('/unum/v/out', os.O_RDWR | os.O_CREAT)",
    ]);
    for call in [
        "os.open(S + 'd/f', os.O_WRONLY)",
        "os.open(S + 'd/f', os.O_RDWR)",
        "os.open(S + 'd/f', os.O_RDONLY | os.O_TRUNC)",
        "os.open(S + 'new', os.O_WRONLY | os.O_CREAT)",
        "os.open(S + 'd', os.O_RDWR | os.O_TMPFILE)",
        "os.mkdir(S + 'new')",
        "os.mkdir('/unum/v/.snapshot/new')",
        "os.symlink('x', S + 'new')",
        "os.mkfifo(S + 'new')",
        "os.unlink(S + 'd/f')",
        "os.rmdir(S + 'd/e/empty')",
        "os.rmdir('/unum/v/.snapshot/one')",
        "os.rmdir('/unum/v/.snapshot')",
        "os.rename(S + 'd/f', S + 'd/g')",
        "os.rename(S + 'd/f', '/unum/v/g')",
        "os.rename('/unum/v/third', S + 'g')",
        "os.rename('/unum/v/.snapshot/one', '/unum/v/.snapshot/two')",
        "os.rename('/unum/v/.snapshot', '/unum/v/x')",
        "rename(S + 'd/f', '/unum/v/third', 2)",
        "os.link(S + 'd/f', '/unum/v/g')",
        "os.link('/unum/v/third', S + 'g')",
        "os.chmod(S + 'd/f', 0o600)",
        "os.chown(S + 'd', 1, 1)",
        "os.utime(S + 'd/f')",
        "os.truncate(S + 'd/f', 3)",
        "os.setxattr(S + 'd/f', 'user.x', b'1')",
        "os.removexattr(S + 'd/f', 'user.x')",
        "os.chmod('/unum/v/.snapshot', 0o777)",
        "os.setxattr('/unum/v/.snapshot', 'user.x', b'1')",
        "fcntl.flock(r, fcntl.LOCK_EX)",
    ] {
        a.expect(call, "EROFS");
    }
    // Writing by a descriptor for reading is what it is everywhere.
    a.expect("fallocate(r, 0, 0, 10)", "EBADF");
    a.expect("os.copy_file_range(w, r, 10)", "EBADF");
    // The name cannot be had, wherever it would come from, but elsewhere it is one like others.
    for call in [
        "os.mkdir('/unum/v/.snapshot')",
        "os.mkdir('/unum/.snapshot')",
        "os.symlink('x', '/unum/v/.snapshot')",
        "os.link('/unum/v/third', '/unum/v/.snapshot')",
        "rename('/unum/v/d', '/unum/v/.snapshot', 1)",
    ] {
        a.expect(call, "EEXIST");
    }
    assert_ne!(a.call("os.rename('/unum/v/third', '/unum/v/.snapshot')"), "ok");
    assert_ne!(a.call("os.rename('/unum/v/d', '/unum/v/.snapshot')"), "ok");
    playground.is_refused("n2", "unum volume create /unum/.snapshot");
    playground.is_refused("n2", "unum volume create /unum/v/.snapshot/one/x");
    a.run(&["os.mkdir('/unum/v/d/.snapshot')", "os.rmdir('/unum/v/d/.snapshot')"]);
    // Reading, locks for that included, and copies out of it.
    a.run(&[
        "fcntl.flock(r, fcntl.LOCK_SH)",
        "fcntl.flock(r, fcntl.LOCK_UN)",
        "lock(r, 'r')",
        "lock(r, 'u')",
    ]);
    a.expect(
        "copy_all(S + 'd/f', '/unum/v/out'), read('/unum/v/out') == read(S + 'd/f')",
        "(3000000, True)",
    );
    // Rights are those of the moment.
    a.run(&["os.chmod('/unum/v/d/e', 0o700)"]);
    take(&playground, "n2", "/unum/v two");
    a.run(&["os.chmod('/unum/v/d/e', 0o755)"]);
    b.expect("as_user(1000, lambda: read('/unum/v/.snapshot/two/d/e/001'), 1000)", "EACCES");
    b.expect("as_user(1000, lambda: read('/unum/v/d/e/001'), 1000)", "b'1'");
    assert_eq!(seen(&mut b, "/unum/v/.snapshot/one"), before);

    // Root alone takes and deletes them; everybody may look.
    for words in [&["create", "/unum/v"][..], &["delete", "/unum/v", "one"]] {
        let words = [&["--user", "nobody", "n1", "--", "unum", "snapshot"][..], words].concat();
        assert!(!playground.dev("exec", &words).status.success(), "{words:?}");
    }
    let looks = ["--user", "nobody", "n1", "--", "unum", "snapshot", "list", "/unum/v"];
    assert!(playground.dev("exec", &looks).status.success());
    // What is wrong is said.
    for (words, told) in [
        ("create /unum/v one", "the volume has a snapshot of this name"),
        ("create /unum/v a/b", "cannot be the name of a snapshot"),
        ("create /unum/v ..", "cannot be the name of a snapshot"),
        ("create /tmp x", "/tmp"),
        ("delete /unum/v three", "the volume has no snapshot of this name"),
        ("delete /unum one", "the volume has no snapshot of this name"),
    ] {
        let answer = playground.is_refused("n2", &format!("unum snapshot {words}"));
        assert!(answer.contains(told), "{words}: {answer}");
    }
    // A volume with snapshots stays.
    playground.does("n1", "rm -r /unum/v/*");
    let told = playground.is_refused("n1", "unum volume delete /unum/v");
    assert!(told.contains("it has 2 snapshots"), "{told}");
    a.expect("os.rmdir('/unum/v')", "EBUSY");
    playground.does("n1", "unum snapshot delete /unum/v one && unum snapshot delete /unum/v two");
    playground.does("n3", "unum volume delete /unum/v");
    is_clean(&playground);
}

#[test]
fn snapshots_outlive_daemons_and_leaders_and_power() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let leader = playground.leader("n1");
    let others: Vec<&str> = MACHINES.into_iter().filter(|machine| *machine != leader).collect();
    let [mut a, mut b] = seers(&playground, [others[0], others[1]]);
    furnish(&playground, &mut a);
    take(&playground, others[1], "/unum/v one");
    let one = seen(&mut a, "/unum/v");
    a.run(&["write('/unum/v/d/f', b'new', 'r+b')", "os.unlink('/unum/v/link')"]);
    take(&playground, others[0], "/unum/v two");
    let two = seen(&mut b, "/unum/v");
    a.run(&[
        "os.unlink('/unum/v/sparse')",
        "r = os.open('/unum/v/.snapshot/one/sparse', os.O_RDONLY)",
    ]);
    // Each daemon anew, with an open file.
    for machine in MACHINES {
        playground.must("kill-daemon", &[machine]);
        playground.status_when(machine, "a new daemon", |status| status["state"] == "ready");
    }
    a.expect("hashlib.sha256(os.pread(r, 100000, 5000000)).digest() == hashlib.sha256(b'x' * 100000).digest()", "True");
    assert_eq!(seen(&mut a, "/unum/v/.snapshot/one"), one);
    // Nobody leads for a while: what is in snapshots is read all the same.
    let leader = playground.leader("n1");
    let (reader, machine) = match leader == others[0] {
        true => (&mut b, others[1]),
        false => (&mut a, others[0]),
    };
    reader.expect("len(os.listdir('/unum/v/.snapshot/two/d'))", "3");
    playground.must("cut", &[&leader]);
    assert_eq!(seen(reader, "/unum/v/.snapshot/one"), one);
    assert_eq!(seen(reader, "/unum/v/.snapshot/two"), two);
    playground.does_at_last(machine, "unum snapshot list");
    playground.boot(&leader);
    // All machines at once.
    drop((a, b));
    playground.must("cut", &MACHINES);
    for machine in MACHINES {
        playground.must("boot", &[machine]);
    }
    playground.does_at_last("n1", "ls /unum/v");
    let [mut c] = seers(&playground, ["n3"]);
    playground.does_at_last("n3", "ls /unum/v/.snapshot/one");
    assert_eq!(seen(&mut c, "/unum/v/.snapshot/one"), one);
    assert_eq!(seen(&mut c, "/unum/v/.snapshot/two"), two);
    is_clean(&playground);
}

#[test]
fn deleting_frees_what_nothing_else_needs() {
    if cannot_run_files() {
        return;
    }
    let settings = ["--set", "garbage_after=2s", "--set", "file_patience=3s"];
    let playground = Playground::up(&settings);
    let [mut a, mut b, mut c] = seers(&playground, MACHINES);
    playground.json("n1", "volume create /unum/v --quota 100M");
    let fill = "dd if=/dev/urandom of=/unum/v/big bs=1M count=90 conv=fsync status=none";
    playground.does("n1", fill);
    playground.does("n1", "echo kept > /unum/v/kept");
    take(&playground, "n2", "/unum/v one");
    take(&playground, "n2", "/unum/v two");
    // The quota is that of the tree of today.
    playground.does("n3", "rm /unum/v/big && sync /unum");
    playground.does_at_last(
        "n3",
        "dd if=/dev/zero of=/unum/v/again bs=1M count=40 status=none && rm /unum/v/again",
    );
    let alone = |name: &str| {
        let listed = playground.json("n1", "snapshot list /unum/v");
        let row = listed.as_array().expect("a list").iter().find(|row| row["name"] == name);
        row.expect("it is there")["alone_bytes"].as_u64().expect("a number")
    };
    assert_eq!((alone("one"), alone("two")), (0, 0), "both need it");
    // Who has files of it open, or is in it, is told.
    a.run(&[
        "r = os.open('/unum/v/.snapshot/one/big', os.O_RDONLY)",
        "os.pread(r, 10, 0) and None",
    ]);
    b.run(&["os.chdir('/unum/v/.snapshot/one')", "os.stat('kept') and None"]);
    c.expect("os.path.exists('/unum/v/.snapshot/one/kept')", "True");
    playground.does("n2", "unum snapshot delete /unum/v one");
    for actor in [&mut a, &mut b, &mut c] {
        actor.expect("os.path.exists('/unum/v/.snapshot/one')", "False");
        actor.expect("os.listdir('/unum/v/.snapshot')", "['two']");
    }
    a.expect("os.pread(r, 1000, 50 << 20)", "ESTALE");
    a.expect("os.fstat(r)", "ESTALE");
    a.run(&["os.close(r)"]);
    assert_ne!(b.call("read('kept')"), "b'kept\\n'");
    b.run(&["os.chdir('/')"]);
    c.expect("len(read('/unum/v/.snapshot/two/big')) >> 20", "90");
    assert!(alone("two") >= 90 * MIB);
    // What only a snapshot needs is kept as everything else is.
    playground.does("n1", "for i in $(seq 4096); do echo unlikely; done > /unum/v/marked");
    take(&playground, "n1", "/unum/v marked");
    playground.does("n1", "rm /unum/v/marked && sync /unum");
    is_clean(&playground);
    assert!(flip_in(&playground, "n2", b"unlikely\nunlikely\n") > 0);
    let output = playground.tries("n1", "unum fsck --deep --json");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["findings"][0]["path"], "v/.snapshot/marked/marked", "{report:#}");
    c.expect("read('/unum/v/.snapshot/marked/marked') == b'unlikely\\n' * 4096", "True");
    playground.tries("n1", "unum fsck --deep --repair");
    playground
        .json_when("n1", "fsck --deep", "that all is mended", |report| report["clean"] == true);
    playground.does("n1", "unum snapshot delete /unum/v marked");
    let with_it = is_clean(&playground)["chunks"].as_u64().expect("chunks");
    assert!(with_it >= 90, "{with_it}");
    playground.does("n1", "unum snapshot delete /unum/v two");
    assert_eq!(playground.json("n3", "volume usage /unum/v")["snapshot_bytes"], 0);
    // Nothing is deleted that was put in the last 30 seconds.
    std::thread::sleep(std::time::Duration::from_secs(20));
    playground.json_when("n3", "fsck", "that no chunk is left over", |report| {
        report["clean"] == true && report["unused_chunks"] == 0 && report["chunks"] == 1
    });
    for machine in MACHINES {
        let freed = "[ $(du -sm /var/lib/unum/chunks | cut -f1) -lt 20 ]";
        playground.does_at_last(machine, freed);
    }
    assert_eq!(playground.does("n2", "cat /unum/v/kept"), "kept\n");
}

#[test]
fn a_snapshot_is_of_one_moment_while_machines_write() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b, mut c] = seers(&playground, MACHINES);
    playground.json("n1", "volume create /unum/v");
    // Each writes the next number to one file and then to another, again and again, and tells how far it is.
    for (actor, name) in [(&mut a, "a"), (&mut b, "b")] {
        actor.run(&[
            &format!("import threading; where = '/unum/v/{name}'; at = [0, False]"),
            "os.mkdir(where)",
            "step = lambda n: (write(where + '/first', b'%d' % n), write(where + '/second', b'%d' % n), at.__setitem__(0, n))",
            "work = lambda: [step(n) for n in iter(lambda: None if at[1] else at[0] + 1, None)]",
            "thread = threading.Thread(target=work)",
            "thread.start()",
        ]);
    }
    for round in 0..6 {
        std::thread::sleep(std::time::Duration::from_millis(400));
        let before: Vec<u64> =
            [&mut a, &mut b].map(|actor| actor.call("at[0]").parse().expect("a number")).to_vec();
        take(&playground, MACHINES[round % 3], &format!("/unum/v at{round}"));
        for (name, before) in ["a", "b"].into_iter().zip(before) {
            let mut of = |file: &str| -> Option<u64> {
                let path = format!("/unum/v/.snapshot/at{round}/{name}/{file}");
                let content =
                    c.call(&format!("read('{path}').decode() if os.path.exists('{path}') else ''"));
                content.trim_matches('\'').parse().ok()
            };
            // A file is empty between the calls that write it.
            let (first, second) = (of("first"), of("second"));
            let newest = first.max(second);
            assert!(
                before == 0 || newest >= Some(before),
                "{before} was there, not {first:?} {second:?}"
            );
            if let (Some(first), Some(second)) = (first, second) {
                assert!(first == second || first == second + 1, "{first} {second}");
            }
        }
    }
    for actor in [&mut a, &mut b] {
        actor.run(&["at.__setitem__(1, True)", "thread.join()"]);
    }
    is_clean(&playground);
}
