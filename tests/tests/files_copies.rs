//! copy_file_range on `/unum`: copies that take their bytes from the same chunks.

use unum_tests::Playground;
use unum_tests::actor::{actors, cannot_run_files};

/// Bytes that the copies of a large file may add on a disk: what the file system around it rounds up.
const NOISE_MAX: u64 = 2 << 20;

const MIB: u64 = 1 << 20;

fn is_clean(playground: &Playground) {
    playground.json_when("n1", "fsck --deep", "that all is clean", |shown| shown["clean"] == true);
}

#[test]
fn copies_share_their_bytes_and_harm_nothing() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b, mut c] = actors(&playground, ["n1", "n2", "n3"]);
    // 24 MiB, each different, with a hole and zeros that are only allocated.
    a.run(&[
        "data = b''.join(hashlib.sha256(b'%d' % n).digest() * 32768 for n in range(24))",
        "write('/unum/a', data)",
        "f = os.open('/unum/a', os.O_RDWR)",
        "fallocate(f, 3, 1 << 20, 1 << 20)",
        "fallocate(f, 1, 24 << 20, 1 << 20)",
        "os.ftruncate(f, 26 << 20)",
        "os.fsync(f)",
        "data = read('/unum/a')",
    ]);
    let before: Vec<u64> =
        ["n1", "n2", "n3"].map(|machine| playground.chunk_bytes(machine)).to_vec();
    assert!(before.iter().all(|bytes| *bytes >= 23 * MIB), "{before:?}");

    // The copy is seen elsewhere at once, and costs nothing on any disk.
    a.expect("copy_all('/unum/a', '/unum/b')", &(26 * MIB).to_string());
    b.run(&["digest = lambda p: hashlib.sha256(read(p)).hexdigest()"]);
    c.run(&["digest = lambda p: hashlib.sha256(read(p)).hexdigest()"]);
    let digest = a.call("hashlib.sha256(data).hexdigest()");
    b.expect("digest('/unum/b')", &digest);
    a.expect(
        "os.stat('/unum/b').st_blocks, [os.lseek(os.open('/unum/b', 0), 0, w) for w in (3, 4)]",
        &format!("({}, [0, {MIB}])", 24 * MIB / 512),
    );
    for n in 0..4 {
        b.expect(&format!("copy_all('/unum/b', '/unum/more-{n}')"), &(26 * MIB).to_string());
    }
    c.expect("digest('/unum/more-3')", &digest);
    // cp makes new bytes of a file with holes, and a copy by reference of one without.
    let dense = "cd /unum && dd if=/dev/urandom of=dense bs=1M count=5 && sync dense";
    playground.does("n1", dense);
    let before = before.into_iter().map(|bytes| bytes + 5 * MIB);
    playground.does("n1", "cd /unum && cp dense with-cp && cp --reflink=auto -a dense with-cp-a");
    playground.does("n2", "cd /unum && cp -r dense with-cp-r && sync .");
    playground.does("n3", "cd /unum && for f in with-*; do cmp dense $f || exit; done");
    is_clean(&playground);
    for (machine, before) in ["n1", "n2", "n3"].into_iter().zip(before) {
        let after = playground.chunk_bytes(machine);
        assert!(after <= before + NOISE_MAX, "{machine}: {before} bytes became {after}");
    }

    // What is done to the one leaves the other alone.
    b.run(&["g = os.open('/unum/b', os.O_RDWR)"]);
    b.expect("os.pwrite(g, b'b' * 9, (5 << 20) - 4)", "9");
    a.expect("os.pwrite(f, b'a' * 9, (7 << 20) - 4)", "9");
    a.expect("os.pread(f, 9, (5 << 20) - 4) == data[(5 << 20) - 4:(5 << 20) + 5]", "True");
    c.expect("read('/unum/b')[(5 << 20) - 5:(5 << 20) + 6][1:-1]", "b'bbbbbbbbb'");
    c.expect("digest('/unum/more-0')", &digest);

    // The source goes, with all its names and its last open file; the bytes stay for who shares them.
    a.run(&["os.close(f)"]);
    playground.does("n2", "cd /unum && rm a b dense with-* more-0 more-1 more-2 && sleep 8");
    c.expect("digest('/unum/more-3')", &digest);
    playground.must("cut", &["n1", "n2"]);
    drop((a, b));
    playground.boot("n1");
    playground.boot("n2");
    let sum = playground.does("n1", "sha256sum /unum/more-3");
    assert_eq!(sum.split_whitespace().next(), Some(digest.trim_matches('\'')));
    playground.does("n2", "rm /unum/more-3 && sleep 8 && sync -f /unum");
    is_clean(&playground);
}

#[test]
fn copies_obey_the_rules_of_the_call() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n2"]);
    a.run(&[
        "write('/unum/a', b'0123456789' * 1000)",
        "write('/unum/b', b'x' * 5000)",
        "f = os.open('/unum/a', os.O_RDWR)",
        "g = os.open('/unum/b', os.O_RDWR)",
    ]);
    // Short at the end, nothing behind it; the target grows, and what was between is zeros.
    a.expect("copy_range(f, 9995, g, 6000, 100)", "5");
    a.expect("copy_range(f, 10000, g, 0, 100)", "0");
    a.expect("copy_range(f, 20000, g, 0, 100)", "0");
    b.expect("read('/unum/b') == b'x' * 5000 + bytes(1000) + b'56789'", "True");
    // Within one file, where nothing overlaps.
    a.expect("copy_range(f, 0, f, 99, 100)", "EINVAL");
    a.expect("copy_range(f, 3, f, 10003, 100)", "100");
    b.expect("read('/unum/a')[9990:] == b'0123456789' + bytes(3) + b'3456789012' * 10", "True");
    a.expect("call('copy_file_range', f, None, g, None, ctypes.c_size_t(1), 1)", "EINVAL");
    a.expect("copy_range(f, 0, os.open('/unum/b', os.O_WRONLY | os.O_APPEND), 0, 1)", "EBADF");
    a.expect("copy_range(f, 0, os.open('/unum/b', os.O_RDONLY), 0, 1)", "EBADF");
    a.expect("copy_range(f, 0, g, 8 << 40, 2)", "EFBIG");
    // The target's times change, not the source's.
    let times = "[os.stat(f'/unum/{n}').st_mtime_ns for n in 'ab']";
    a.run(&[&format!("before = {times}")]);
    a.expect("copy_range(f, 0, g, 0, 3)", "3");
    b.run(&[&format!("after = {times}")]);
    let before = a.call("before");
    b.expect(&format!("[y > x for x, y in zip({before}, after)]"), "[False, True]");

    // A program without root's rights takes the set-ID bits away.
    a.run(&["os.chmod('/unum/b', 0o6777)", "os.chmod('/unum/a', 0o644)"]);
    a.expect("copy_range(f, 0, g, 0, 3)", "3");
    a.expect("oct(os.stat('/unum/b').st_mode)", "'0o106777'");
    playground.does(
        "n2",
        "setpriv --reuid=1000 --regid=1000 --clear-groups python3 -c 'import os; \
         os.copy_file_range(os.open(\"/unum/a\", 0), os.open(\"/unum/b\", 1), 3)'",
    );
    a.expect("oct(os.stat('/unum/b').st_mode)", "'0o100777'");

    // What is changed through a mapping comes along, and a mapping shows what came.
    a.run(&["m = mmap.mmap(f, 4096)", "n = mmap.mmap(g, 4096)", "m[:5] = b'MMMMM'"]);
    a.expect("n[4090:4096]", "b'xxxxxx'");
    b.run(&["h = os.open('/unum/b', os.O_RDONLY)", "o = mmap.mmap(h, 4096, prot=mmap.PROT_READ)"]);
    b.expect("os.pread(h, 5, 0) == o[:5], o[4090:4096]", "(True, b'xxxxxx')");
    a.expect("copy_range(f, 0, g, 4090, 6)", "6");
    a.expect("n[4090:4096], os.pread(g, 6, 4090)", "(b'MMMMM5', b'MMMMM5')");
    b.expect("os.pread(h, 6, 4090), read('/unum/b')[4090:4096]", "(b'MMMMM5', b'MMMMM5')");
    b.expect("o[4090:4096]", "b'MMMMM5'");

    // A copy that is not drained, from a file that is gone when it is.
    a.run(&[
        "write('/unum/c', b'c' * 300000)",
        "c = os.open('/unum/c', os.O_RDONLY)",
        "d = os.open('/unum/d', os.O_RDWR | os.O_CREAT)",
        "os.unlink('/unum/c')",
    ]);
    a.expect("copy_range(c, 0, d, 0, 1 << 20)", "300000");
    a.run(&["os.close(c)"]);
    b.expect("read('/unum/d') == b'c' * 300000", "True");
    // A daemon that dies loses no copy.
    a.expect("copy_range(d, 0, g, 0, 1 << 20)", "300000");
    playground.must("kill-daemon", &["n1"]);
    a.expect("os.pread(g, 3, 299997), os.fstat(g).st_size", "(b'ccc', 300000)");
    b.expect("read('/unum/b') == b'c' * 300000", "True");
    is_clean(&playground);
}

#[test]
fn copying_what_another_machine_made_waits_for_no_commit_per_file() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    playground
        .does("n1", "mkdir /unum/tree && cd /unum/tree && seq 400 | xargs -I@ sh -c 'seq @ > @'");
    // Looking at it has the maker give its lease back.
    playground.does("n2", "cat /unum/tree/* | wc -c && sleep 3");
    let applied = || playground.json("n2", "status")["applied"].as_u64().expect("a number");
    let before = applied();
    playground.does("n2", "cp -r /unum/tree /unum/copy && sync /unum/copy");
    let commits = applied() - before;
    assert!(commits < 200, "{commits} commits for 400 files");
    playground.does("n3", "diff -r /unum/tree /unum/copy");
}
