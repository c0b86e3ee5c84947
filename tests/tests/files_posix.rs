//! What POSIX promises of files and locks, across machines.

use unum_tests::Playground;
use unum_tests::actor::{Answer, actors, cannot_run_files};

#[test]
fn locks_hold_on_all_machines_and_end_with_their_owners() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let open = "f = os.open('/unum/locked', os.O_RDWR | os.O_CREAT)";
    let [mut a, mut b, mut c] = actors(&playground, ["n1", "n2", "n2"]);
    for actor in [&mut a, &mut b, &mut c] {
        actor.run(&[open]);
    }

    // The two tables do not know of each other.
    a.run(&["fcntl.flock(f, fcntl.LOCK_EX)"]);
    b.run(&["lock(f, 'w')"]);
    b.expect("fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)", "EAGAIN");
    a.expect("lock(f, 'r', 5, 5)", "EAGAIN");
    a.expect("conflict(f, 'r', 5, 5)", "('w', 0, 0)");
    b.run(&["lock(f, 'u', 5, 5)", "lock(f, 'r', 7, 1)"]);
    a.run(&["lock(f, 'r', 5, 5)"]);
    a.expect("lock(f, 'w', 7, 1)", "EAGAIN");
    b.run(&["lock(f, 'u')"]);

    // A waiting request is granted by an unlock, a close, an exit.
    a.run(&["lock(f, 'w')"]);
    b.waits("lock(f, 'w', wait=True)");
    a.run(&["lock(f, 'u')"]);
    assert_eq!(b.answer(), "ok");
    a.waits("lock(f, 'w', wait=True)");
    b.run(&["os.close(os.dup(f))"]);
    assert_eq!(a.answer(), "ok", "closing any descriptor of the file releases its record locks");
    b.waits("fcntl.flock(f, fcntl.LOCK_EX)");
    c.waits("lock(f, 'w', wait=True)");
    drop(a);
    assert_eq!((b.answer(), c.answer()), ("ok".into(), "ok".into()));

    // A signal ends the wait, and nothing is left of the request.
    let [mut a] = actors(&playground, ["n1"]);
    a.run(&[open]);
    a.expect("within(0.5, lambda: lock(f, 'w', wait=True))", "'interrupted'");
    a.expect("within(0.5, lambda: fcntl.flock(f, fcntl.LOCK_EX))", "'interrupted'");
    b.run(&["fcntl.flock(f, fcntl.LOCK_UN)", "fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"]);
    c.run(&["lock(f, 'u')", "lock(f, 'w')"]);

    // Who dies waiting waits no more.
    a.waits("lock(f, 'w', wait=True)");
    drop(a);
    c.run(&["lock(f, 'u')"]);
    let [mut a] = actors(&playground, ["n3"]);
    a.run(&[open, "lock(f, 'w')", "lock(f, 'u')"]);

    // A circle is refused; one that a wait of the other kind closes is not.
    a.run(&["lock(f, 'w', 0, 1)"]);
    b.run(&["lock(f, 'w', 1, 1)"]);
    a.waits("lock(f, 'w', 1, 1, wait=True)");
    b.expect("lock(f, 'w', 0, 1, wait=True)", "EDEADLOCK");
    b.run(&["lock(f, 'u')"]);
    assert_eq!(a.answer(), "ok");

    // Open file description locks belong to the open file, not to the process.
    a.run(&["lock(f, 'u')", "g = os.open('/unum/locked', os.O_RDWR)"]);
    a.run(&["lock(f, 'w', ofd=True)"]);
    a.expect("lock(g, 'w', ofd=True)", "EAGAIN");
    b.expect("lock(f, 'w')", "EAGAIN");
    a.run(&["os.close(g)"]);
    b.expect("lock(f, 'w')", "EAGAIN");
    // Such a lock ends with the open file, which the kernel tells of after the close.
    a.run(&["os.close(f)"]);
    b.run(&["lock(f, 'w', wait=True)"]);

    // A machine that loses its power holds nothing.
    let [mut a] = actors(&playground, ["n3"]);
    a.run(&[open]);
    b.run(&["fcntl.flock(f, fcntl.LOCK_EX)"]);
    a.waits("lock(f, 'w', wait=True)");
    playground.must("cut", &["n2"]);
    assert_eq!(a.answer(), "ok");
    a.run(&["fcntl.flock(f, fcntl.LOCK_EX)"]);
    assert_eq!(b.look(), Answer::Gone);
    drop((a, b, c));
}

#[test]
fn files_keep_what_posix_promises_across_machines() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n2"]);

    // Appends of two machines: none is lost, none is torn.
    let append = "f = os.open('/unum/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)";
    a.run(&[append]);
    b.run(&[append]);
    a.tell("[os.write(f, b'a%06d\\n' % n) for n in range(300)] and None");
    b.tell("[os.write(f, b'b%06d\\n' % n) for n in range(300)] and None");
    assert_eq!((a.answer(), b.answer()), ("ok".into(), "ok".into()));
    a.expect("len(read('/unum/log'))", "4800");
    let numbered = "[l for l in read('/unum/log').split(b'\\n') if l[:1] == b'%s'] == [b'%s%%06d' \
                    %% n for n in range(300)]";
    for letter in ["a", "b"] {
        b.expect(&numbered.replace("%s", letter).replace("%%", "%"), "True");
    }

    // A file without a name lives while it is open anywhere, and not longer.
    a.run(&["write('/unum/gone', b'x' * 100000)", "f = os.open('/unum/gone', os.O_RDWR)"]);
    b.run(&["g = os.open('/unum/gone', os.O_RDONLY)", "os.unlink('/unum/gone')"]);
    a.expect("os.pread(f, 3, 99997)", "b'xxx'");
    a.expect("os.pwrite(f, b'yyy', 99998)", "3");
    a.expect("os.fstat(f).st_nlink, os.fstat(f).st_size", "(0, 100001)");
    a.run(&["os.close(f)", "time.sleep(5)"]);
    b.expect("os.pread(g, 9, 99997)", "b'xyyy'");
    a.expect("os.path.exists('/unum/gone')", "False");
    b.run(&["os.close(g)"]);
    let used = "(lambda s: s.f_files - s.f_ffree)(os.statvfs('/unum'))";
    a.run(&[
        "write('/unum/tail', b'')",
        "os.unlink('/unum/tail')",
        &format!("before = {used}"),
        "f = os.open('/unum', os.O_TMPFILE | os.O_RDWR)",
    ]);
    a.expect(&format!("{used} > 0"), "True");
    a.run(&["os.close(f)", "time.sleep(8)"]);
    // The root, the log, and nothing else.
    a.expect(used, "2");

    // Renaming over an open file: the old content stays with who has it open.
    a.run(&["write('/unum/new', b'new')", "write('/unum/old', b'old')"]);
    b.run(&["g = os.open('/unum/old', os.O_RDONLY)"]);
    a.run(&["os.rename('/unum/new', '/unum/old')"]);
    b.expect("os.pread(g, 9, 0), read('/unum/old')", "(b'old', b'new')");
    a.run(&["write('/unum/new', b'second')"]);
    a.expect("rename('/unum/new', '/unum/old', 1)", "EEXIST");
    a.expect("rename('/unum/new', '/unum/old', 2)", "0".replace('0', "ok").as_str());
    b.expect("read('/unum/old'), read('/unum/new')", "(b'second', b'new')");

    // A shared mapping.
    a.run(&[
        "write('/unum/mapped', bytes(10000))",
        "f = os.open('/unum/mapped', os.O_RDWR)",
        "m = mmap.mmap(f, 10000)",
        "m[4090:4100] = b'0123456789'",
    ]);
    a.run(&["m.flush()"]);
    b.expect("read('/unum/mapped')[4089:4101]", "b'\\x000123456789\\x00'");
    a.run(&["m[9999:10000] = b'!'", "m.close()", "os.close(f)"]);
    b.expect("read('/unum/mapped')[9998:], os.stat('/unum/mapped').st_size", "(b'\\x00!', 10000)");

    // A file that gets its name late.
    a.run(&["f = os.open('/unum', os.O_TMPFILE | os.O_RDWR, 0o640)"]);
    a.expect("os.write(f, b'unnamed')", "7");
    a.expect("call('linkat', -100, b'/proc/self/fd/%d' % f, -100, b'/unum/named', 0x400)", "0");
    b.expect(
        "read('/unum/named'), oct(os.stat('/unum/named').st_mode)",
        "(b'unnamed', '0o100640')",
    );
    a.run(&["f = os.open('/unum', os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640)"]);
    a.expect(
        "call('linkat', -100, b'/proc/self/fd/%d' % f, -100, b'/unum/never', 0x400)",
        "ENOENT",
    );

    // Holes.
    a.run(&["f = os.open('/unum/holes', os.O_RDWR | os.O_CREAT)"]);
    a.expect("os.pwrite(f, b'x' * 8192, 1 << 20)", "8192");
    a.run(&["fallocate(f, 3, (1 << 20) + 1000, 2000)", "os.truncate(f, 3 << 20)"]);
    b.run(&["g = os.open('/unum/holes', os.O_RDONLY)"]);
    b.expect("os.lseek(g, 0, os.SEEK_DATA)", "1048576");
    b.expect("os.lseek(g, 1 << 20, os.SEEK_HOLE)", "1049576");
    b.expect("os.lseek(g, 1049576, os.SEEK_DATA)", "1051576");
    b.expect("os.lseek(g, (1 << 20) + 8192, os.SEEK_DATA)", "ENXIO");
    b.expect("os.pread(g, 4, 1049574)", "b'xx\\x00\\x00'");
    b.expect("os.fstat(g).st_blocks * 512 < 1 << 20", "True");
    a.run(&["fallocate(f, 1, 0, 1 << 24)"]);
    a.expect("os.fstat(f).st_size", "3145728");
    a.run(&["fallocate(f, 0, 0, 1 << 24)"]);
    b.expect("os.fstat(g).st_size", "16777216");

    // Large appends of two machines stay whole.
    let append = |letter| format!("[os.write(f, b'{letter}' * 50001) for n in range(20)] and None");
    for actor in [&mut a, &mut b] {
        actor.run(&["f = os.open('/unum/big', os.O_WRONLY | os.O_CREAT | os.O_APPEND)"]);
    }
    a.tell(&append('a'));
    b.tell(&append('b'));
    assert_eq!((a.answer(), b.answer()), ("ok".into(), "ok".into()));
    let pieces = "[read('/unum/big')[n * 50001:(n + 1) * 50001] for n in range(40)]";
    a.run(&[&format!("pieces = {pieces}")]);
    a.expect("sorted(pieces) == [b'a' * 50001] * 20 + [b'b' * 50001] * 20", "True");

    // Extended attributes.
    a.run(&["os.setxattr('/unum/named', 'user.colour', b'blue')"]);
    b.expect("os.getxattr('/unum/named', 'user.colour')", "b'blue'");
    b.expect("os.listxattr('/unum/named')", "['user.colour']");
    b.expect("os.setxattr('/unum/named', 'user.colour', b'x', os.XATTR_CREATE)", "EEXIST");
    b.run(&["os.removexattr('/unum/named', 'user.colour')"]);
    a.expect("os.getxattr('/unum/named', 'user.colour')", "ENODATA");

    // Special files: one of a FIFO's ends works on its machine.
    a.run(&["os.mkfifo('/unum/fifo', 0o600)", "f = os.open('/unum/fifo', os.O_RDWR)"]);
    a.expect("os.write(f, b'through'), os.read(f, 9)", "(7, b'through')");
    b.expect("stat.S_ISFIFO(os.stat('/unum/fifo').st_mode)", "True");
    a.run(&["os.mknod('/unum/null', 0o20666, os.makedev(1, 3))"]);
    b.expect("os.stat('/unum/null').st_rdev == os.makedev(1, 3)", "True");
    a.run(&["s = socket.socket(socket.AF_UNIX)", "s.bind('/unum/socket')"]);
    b.expect("stat.S_ISSOCK(os.stat('/unum/socket').st_mode)", "True");

    // Names and links.
    a.run(&["os.mkdir('/unum/names')", "write('/unum/names/' + 'n' * 255, b'')"]);
    a.expect("write('/unum/names/' + 'n' * 256, b'')", "ENAMETOOLONG");
    b.expect("os.listdir('/unum/names') == ['n' * 255]", "True");
    b.run(&["os.link('/unum/named', '/unum/names/second')", "os.unlink('/unum/named')"]);
    a.expect("os.stat('/unum/names/second').st_nlink", "1");
    a.expect("os.link('/unum/names', '/unum/directory')", "EPERM");
    a.run(&["os.symlink('names/second', '/unum/short')"]);
    b.expect("read('/unum/short'), os.readlink('/unum/short')", "(b'unnamed', 'names/second')");
    a.expect("os.rmdir('/unum/names')", "ENOTEMPTY");
    a.expect("os.rename('/unum/names', '/unum/names/inner')", "EINVAL");

    // A directory with the setgid bit hands on its group.
    a.run(&["os.mkdir('/unum/team')", "os.chown('/unum/team', 0, 4242)"]);
    a.run(&["os.chmod('/unum/team', 0o2775)", "os.mkdir('/unum/team/sub')"]);
    a.run(&["write('/unum/team/file', b'')"]);
    b.expect("os.stat('/unum/team/file').st_gid", "4242");
    b.expect(
        "oct(os.stat('/unum/team/sub').st_mode), os.stat('/unum/team/sub').st_gid",
        "('0o42755', 4242)",
    );

    // Truncation is seen at once, also by who has the file open and read.
    a.run(&["write('/unum/cut', b'0123456789' * 1000)"]);
    b.run(&["g = os.open('/unum/cut', os.O_RDONLY)"]);
    b.expect("os.pread(g, 4, 9996)", "b'6789'");
    a.run(&["os.truncate('/unum/cut', 9998)"]);
    b.expect("os.pread(g, 4, 9996)", "b'67'");
    a.run(&["os.truncate('/unum/cut', 10001)"]);
    b.expect("os.pread(g, 9, 9996)", "b'67\\x00\\x00\\x00'");
    drop((a, b));
}

#[test]
fn a_large_directory_is_listed_while_it_changes() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n2"]);
    a.run(&["os.mkdir('/unum/many')"]);
    let half = |from: u32| {
        format!(
            "[os.close(os.open('/unum/many/%05d' % n, os.O_CREAT)) for n in range({from}, {from} + 2000)] and None"
        )
    };
    a.tell(&half(0));
    b.tell(&half(2000));
    assert_eq!((a.answer(), b.answer()), ("ok".into(), "ok".into()));
    let all = "sorted(os.listdir('/unum/many')) == ['%05d' % n for n in range(4000)]";
    a.expect(all, "True");
    b.expect(all, "True");
    // What is removed while a listing goes on makes it skip or repeat nothing else.
    a.run(&[
        "names = []",
        "listing = os.scandir('/unum/many')",
        "[names.append(next(listing).name) for _ in range(50)] and None",
    ]);
    b.run(&[
        "[os.unlink('/unum/many/' + n) for n in os.listdir('/unum/many') if n[-1] == '7'] and None",
    ]);
    a.run(&["names += [e.name for e in listing]"]);
    a.expect("len(names) == len(set(names))", "True");
    a.expect("{'%05d' % n for n in range(4000) if n % 10 != 7} <= set(names)", "True");
    b.expect("os.rmdir('/unum/many')", "ENOTEMPTY");
}

#[test]
fn programs_and_tools_work_in_the_tree() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let must = |machine: &str, script: &str| {
        let output = playground.sh(machine, &format!("set -e; {script}"));
        let told = unum_tests::text(&output.stderr);
        assert!(output.status.success(), "{machine}: {script}: {told}");
        unum_tests::text(&output.stdout)
    };
    must(
        "n1",
        "mkdir -p /unum/src && cd /unum/src
         printf '#include <stdio.h>\\nint main(void) { puts(\"built here\"); return 7; }\\n' > main.c
         printf 'prog: main.o\\n\\tcc -o $@ main.o\\nmain.o: main.c\\n\\tcc -c main.c\\n' > Makefile
         make -s && touch -d '1 minute ago' main.c && make -q",
    );
    let run = playground.sh("n2", "/unum/src/prog");
    assert_eq!(
        (run.status.code(), unum_tests::text(&run.stdout)),
        (Some(7), "built here\n".into())
    );
    must("n2", "cp /unum/src/prog /unum/src/again; chmod 700 /unum/src/again");
    assert_eq!(playground.sh("n3", "/unum/src/again").status.code(), Some(7));

    must(
        "n3",
        "cd /unum && mkdir tree && cd tree && mkdir -p a/b/c && seq 1000 > a/one && ln -s one a/two
         ln a/one a/b/three && head -c 3000000 /dev/urandom > a/b/c/big
         cd .. && tar cf all.tar tree && mkdir out && tar xf all.tar -C out && diff -r tree out/tree",
    );
    must("n1", "cd /unum && diff -r tree out/tree && cmp tree/a/b/c/big out/tree/a/b/c/big");

    if playground.sh("n1", "command -v git").status.success() {
        let git = "export HOME=/unum GIT_CONFIG_NOSYSTEM=1; g() { git -c user.name=a -c user.email=a@b \"$@\"; }; ";
        must(
            "n1",
            &format!(
                "{git} mkdir /unum/repo && cd /unum/repo && g init -q . && cp -r ../tree . && g add . && g commit -qm one"
            ),
        );
        must(
            "n2",
            &format!(
                "{git} cd /unum && g clone -q repo clone && cd clone && diff -r tree ../tree && echo x > y && g add y && g commit -qm two && g push -q origin HEAD:next && g fsck --strict"
            ),
        );
        let log = must("n3", &format!("{git} cd /unum/repo && g log --format=%s next"));
        assert_eq!(log, "two\none\n");
    } else {
        println!("skipped: there is no git here");
    }
}

#[test]
fn a_call_that_waits_for_a_lock_survives_its_daemon() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n2"]);
    let open = "f = os.open('/unum/locked', os.O_RDWR | os.O_CREAT)";
    a.run(&[open, "lock(f, 'w')"]);
    b.run(&[open, "fcntl.flock(f, fcntl.LOCK_EX)"]);
    b.waits("lock(f, 'w', wait=True)");
    playground.must("kill-daemon", &["n2"]);
    assert_eq!(b.look(), Answer::Waits);
    a.run(&["lock(f, 'u')"]);
    assert_eq!(b.answer(), "ok");
    a.expect("lock(f, 'w')", "EAGAIN");
    a.waits("fcntl.flock(f, fcntl.LOCK_EX)");
    b.run(&["os.close(f)"]);
    assert_eq!(a.answer(), "ok");
    a.run(&["lock(f, 'w')"]);
}
