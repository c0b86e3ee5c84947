//! Each machine's own files, seen from the others at `/n/NODE`.
//!
//! The machines share this computer's file system; `/tmp` is each machine's own.

use std::time::{Duration, Instant};

use unum_tests::Playground;
use unum_tests::actor::{Actor, Answer, actors, cannot_run_files};

/// Rounds of change and look.
const ROUNDS: usize = 300;

/// Makes an actor an ordinary user.
fn become_user(actor: &mut Actor, uid: u32, groups: &str) {
    actor.run(&[
        &format!("os.setgroups({groups})"),
        &format!("os.setresgid({uid}, {uid}, {uid})"),
        &format!("os.setresuid({uid}, {uid}, {uid})"),
    ]);
}

#[test]
fn what_one_machine_changes_all_others_see_at_once() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let [mut home, mut near, mut far] = actors(&playground, ["n1", "n2", "n3"]);
    home.run(&["os.mkdir('/tmp/d')", "write('/tmp/d/f', b'')", "os.chdir('/tmp')"]);
    for actor in [&mut near, &mut far] {
        actor.run(&["os.chdir('/n/n1/tmp')", "f = os.open('d/f', os.O_RDWR)"]);
    }
    // One at home by its own name.
    let [mut named] = actors(&playground, ["n1"]);
    named.run(&["os.chdir('/n/n1/tmp')"]);
    // What a machine does to its own files is told to the others before anything leaves it.
    let tell = "tell = lambda: os.statvfs('/n/n3/tmp') and None";
    for actor in [&mut home, &mut named] {
        actor.run(&[tell]);
    }
    near.run(&["tell = lambda: None"]);
    far.run(&["tell = lambda: None"]);
    for round in 0..ROUNDS {
        let [writer, reader, other] = match round % 3 {
            0 => [&mut home, &mut near, &mut far],
            1 => [&mut near, &mut home, &mut far],
            _ => [&mut named, &mut far, &mut near],
        };
        let size = 8 + round * 37 % 9000;
        writer.run(&[&format!("write('d/f', b'{round:08}', 'r+b')"), "tell()"]);
        reader.expect("read('d/f')[:8]", &format!("b'{round:08}'"));
        writer.run(&[&format!("os.truncate('d/f', {size})"), "tell()"]);
        other.expect("os.stat('d/f').st_size", &size.to_string());
        other.expect("len(read('d/f'))", &size.to_string());
        writer.run(&[&format!("write('d/x', b'{round}')"), "tell()"]);
        reader.expect("read('d/x')", &format!("b'{round}'"));
        other.run(&[&format!("os.rename('d/x', 'd/{round}')"), "tell()"]);
        reader.expect("os.path.exists('d/x')", "False");
        writer.expect(&format!("read('d/{round}')"), &format!("b'{round}'"));
        reader.run(&[&format!("os.unlink('d/{round}')"), "tell()"]);
        other.expect("os.listdir('d')", "['f']");
        writer.run(&[&format!("os.chmod('d', 0o7{}0)", round % 8), "tell()"]);
        for actor in [reader, other] {
            let mode = format!("'0o7{}0'", round % 8);
            actor.expect("oct(os.stat('d').st_mode & 0o777)", &mode);
        }
        // Now and then the kernels get to keep something.
        if round % 50 == 49 {
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    home.run(&["os.unlink('d/f')", "tell()"]);
    far.expect("os.path.exists('d/f'), os.fstat(f).st_nlink", "(False, 0)");
}

#[test]
fn files_behave_as_on_a_local_disk() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let [mut home, mut away] = actors(&playground, ["n1", "n2"]);
    home.run(&["os.mkdir('/tmp/d')", "os.chdir('/tmp/d')"]);
    away.run(&["os.chdir('/n/n1/tmp/d')"]);
    // Names.
    away.run(&["write('a', b'text')", "os.link('a', 'b')", "os.symlink('a', 's')"]);
    away.expect("os.stat('a').st_nlink, os.stat('a').st_ino == os.stat('b').st_ino", "(2, True)");
    home.expect("os.stat('a').st_nlink, os.readlink('s'), read('s')", "(2, 'a', b'text')");
    away.expect("read('s'), sorted(os.listdir('.'))", "(b'text', ['a', 'b', 's'])");
    away.expect("{e.name: e.inode() == e.stat(follow_symlinks=False).st_ino for e in os.scandir('.')} == {'a': True, 'b': True, 's': True}", "True");
    away.expect("os.rmdir('a')", "ENOTDIR");
    away.run(&["os.mkdir('e')", "write('e/x', b'')"]);
    away.expect("os.rmdir('e')", "ENOTEMPTY");
    away.expect("os.link('a', 'e/x')", "EEXIST");
    away.expect("os.rename('a', '/n/n3/tmp/a')", "EXDEV");
    away.expect("rename('a', 'e', 1)", "EEXIST");
    away.run(&["rename('b', 'e', 2)"]);
    home.expect("os.path.isfile('e'), os.path.isdir('b')", "(True, True)");
    away.expect(&format!("os.stat('{}')", "x".repeat(256)), "ENAMETOOLONG");
    away.run(&["os.mkfifo('p')", "os.mknod('r', 0o644)"]);
    home.expect("stat.S_ISFIFO(os.stat('p').st_mode), os.stat('r').st_size", "(True, 0)");
    // Contents.
    away.run(&["block = hashlib.sha256(b'x').digest() * 100_000", "write('large', block)"]);
    home.expect("hashlib.sha256(read('large')).digest() == hashlib.sha256(hashlib.sha256(b'x').digest() * 100_000).digest()", "True");
    away.expect("read('large') == block", "True");
    away.run(&["f = os.open('sparse', os.O_RDWR | os.O_CREAT)", "os.ftruncate(f, 1 << 30)"]);
    away.expect("os.pwrite(f, b'end', (1 << 30) - 3)", "3");
    away.expect(
        "os.lseek(f, 0, os.SEEK_DATA) > 1 << 29, os.stat('sparse').st_blocks < 1000",
        "(True, True)",
    );
    away.run(&["fallocate(f, 0, 0, 8192)", "os.fsync(f)", "os.fdatasync(f)"]);
    home.expect("os.stat('sparse').st_size == 1 << 30", "True");
    away.run(&["l = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)"]);
    home.run(&["l = os.open('log', os.O_WRONLY | os.O_APPEND)"]);
    for n in 0..20 {
        away.expect(&format!("os.write(l, b'{n:02}\\n')"), "3");
        home.expect(&format!("os.write(l, b'{n:02}\\n')"), "3");
    }
    away.expect("read('log') == b''.join(b'%02d\\n%02d\\n' % (n, n) for n in range(20))", "True");
    // Stores through a mapping are there when it is closed.
    away.run(&["m = mmap.mmap(f, 4096)", "m[0:5] = b'store'", "m.flush()", "m.close()"]);
    home.expect("read('sparse')[:5]", "b'store'");
    // Open files outlive their names.
    away.run(&["os.unlink('sparse')"]);
    away.expect("os.pread(f, 5, 0), os.fstat(f).st_nlink", "(b'store', 0)");
    away.run(&["g = os.open('.', os.O_TMPFILE | os.O_RDWR)"]);
    away.expect("os.write(g, b'unnamed'), os.pread(g, 7, 0)", "(7, b'unnamed')");
    // Attributes.
    away.run(&[
        "os.setxattr('a', 'user.k', b'v')",
        "os.utime('a', ns=(1_000_000_001, 2_000_000_002))",
    ]);
    home.expect("os.getxattr('a', 'user.k'), os.stat('a').st_mtime_ns", "(b'v', 2000000002)");
    away.expect("os.listxattr('a'), os.getxattr('a', 'user.k')", "(['user.k'], b'v')");
    away.run(&["os.removexattr('a', 'user.k')"]);
    away.expect("os.getxattr('a', 'user.k')", "ENODATA");
    away.run(&["os.umask(0o027) and None", "write('masked', b'')", "os.mkdir('maskdir')"]);
    home.expect(
        "oct(os.stat('masked').st_mode), oct(os.stat('maskdir').st_mode)",
        "('0o100640', '0o40750')",
    );
    away.expect("os.statvfs('a').f_blocks > 0", "True");
    // Programs run from it.
    away.expect("os.waitstatus_to_exitcode(os.system('/n/n1/bin/true')), os.system('/n/n1/bin/sh -c \"exit 3\"') >> 8", "(0, 3)");
    // Many names.
    home.run(&["os.mkdir('many')", "[write('many/%04d' % n, b'') for n in range(3000)] and None"]);
    away.expect("sorted(os.listdir('many')) == ['%04d' % n for n in range(3000)]", "True");
}

#[test]
fn rights_are_those_of_the_home() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut home, mut root, mut user] = actors(&playground, ["n1", "n2", "n2"]);
    home.run(&[
        "os.chdir('/tmp')",
        "os.umask(0) and None",
        "write('secret', b'root')",
        "os.chmod('secret', 0o600)",
        "os.mkdir('shared')",
        "os.chown('shared', 0, 4242)",
        "os.chmod('shared', 0o2770)",
        "os.mkdir('closed', 0o700)",
        "write('closed/open', b'x')",
        "write('public', b'all')",
        "os.chmod('public', 0o644)",
        "os.mkdir('mine', 0o755)",
        "os.chown('mine', 1234, 1234)",
    ]);
    for actor in [&mut root, &mut user] {
        actor.run(&["os.chdir('/n/n1/tmp')"]);
    }
    // Root of another node is nobody.
    root.expect("read('public')", "b'all'");
    root.expect("read('secret')", "EACCES");
    root.expect("write('public', b'')", "EACCES");
    root.expect("os.listdir('closed')", "EACCES");
    root.expect("os.unlink('public')", "EPERM");
    root.expect("os.chown('public', 1, 1)", "EPERM");
    root.run(&["write('byroot', b'')"]);
    home.expect("os.stat('byroot').st_uid, os.stat('byroot').st_gid", "(65534, 65534)");
    root.expect(
        "os.setxattr('byroot', 'security.capability', b'\\x01\\0\\0\\x02' + b'\\xff' * 16)",
        "EPERM",
    );

    become_user(&mut user, 1234, "[4242]");
    user.expect("read('secret')", "EACCES");
    user.expect("read('closed/open')", "EACCES");
    user.expect("os.stat('closed/open')", "EACCES");
    user.run(&["write('mine/a', b'1')", "write('shared/b', b'2')"]);
    home.expect("os.stat('mine/a').st_uid, os.stat('shared/b').st_gid", "(1234, 4242)");
    user.expect("os.unlink('public')", "EPERM");
    user.expect("os.rename('public', 'other')", "EPERM");
    user.expect("os.chown('mine/a', 0, 0)", "EPERM");
    user.run(&["os.chown('mine/a', -1, 4242)", "os.chmod('mine/a', 0o6755)"]);
    user.expect("oct(os.stat('mine/a').st_mode)", "'0o106755'");
    // A write takes the bits away that would make it somebody.
    user.run(&["write('mine/a', b'3', 'r+b')"]);
    home.expect("oct(os.stat('mine/a').st_mode)", "'0o100755'");
    user.expect(
        "os.setxattr('mine/a', 'security.capability', b'\\x01\\0\\0\\x02' + b'\\xff' * 16)",
        "EPERM",
    );
    user.expect("os.setxattr('mine/a', 'trusted.x', b'y')", "EPERM");
    user.expect("os.mknod('mine/dev', 0o600 | stat.S_IFCHR, os.makedev(1, 3))", "EPERM");
    user.expect("os.access('mine/a', os.R_OK), os.access('secret', os.R_OK)", "(True, False)");
    // Without the group there is no way in.
    let [mut other] = actors(&playground, ["n3"]);
    become_user(&mut other, 1235, "[]");
    other.expect("os.listdir('/n/n1/tmp/shared')", "EACCES");
    other.expect("write('/n/n1/tmp/mine/a', b'')", "EACCES");
    other.expect("read('/n/n1/tmp/mine/a')", "b'3'");
    // What may be executed only is.
    home.expect("os.system('cp /bin/true only; chmod 711 only')", "0");
    other.expect("read('/n/n1/tmp/only')", "EACCES");
    other.expect("os.system('/n/n1/tmp/only')", "0");
    // An access control list counts on both sides.
    let acl = playground.sh("n1", "command -v setfacl && setfacl -m u:1235:r /tmp/secret");
    if acl.status.success() {
        other.expect("read('/n/n1/tmp/secret')", "b'root'");
        user.expect("read('secret')", "EACCES");
    }
}

#[test]
fn only_what_is_exported_is_seen() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let [mut home, mut away] = actors(&playground, ["n1", "n2"]);
    for path in ["proc", "sys", "dev", "dev/shm", "unum", "n", "var/lib/unum", "run/unum"] {
        let seen = away.call(&format!("os.listdir('/n/n1/{path}')"));
        assert_eq!(seen, "EACCES", "{path}");
    }
    // Not under another name or mount either.
    home.run(&["os.mkdir('/tmp/m')", "os.mkdir('/tmp/p')"]);
    home.run(&["os.symlink('/var/lib/unum', '/tmp/link')"]);
    home.expect("os.system('mount --bind /var/lib/unum /tmp/m && mount -t proc proc /tmp/p')", "0");
    away.expect("os.listdir('/n/n1/tmp/m')", "EACCES");
    away.expect("os.listdir('/n/n1/tmp/p')", "EACCES");
    // A link is followed where it is read.
    away.expect("os.readlink('/n/n1/tmp/link')", "'/var/lib/unum'");
    away.expect("os.path.samefile('/n/n1/tmp/link', '/var/lib/unum')", "True");
    home.expect("os.system('umount /tmp/m /tmp/p')", "0");

    // Policy of one machine.
    home.run(&[
        "os.makedirs('/tmp/a/b/c')",
        "write('/tmp/a/b/c/f', b'seen')",
        "write('/tmp/a/x', b'')",
    ]);
    let settings = |value: &str| {
        let line = format!("host_export = \"{value}\"");
        let file = "/etc/unum/unum.toml";
        let edit = format!("sed -i '/^host_export/d' {file} && echo '{line}' >> {file}");
        assert!(playground.sh("n1", &edit).status.success());
        playground.must("kill-daemon", &["n1"]);
    };
    settings("/tmp/a/b");
    let away = &mut away;
    let seen = |away: &mut Actor, line: &str, answer: &str| {
        // The home is just coming back.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let told = away.call(line);
            if told == answer || Instant::now() > deadline {
                assert_eq!(told, answer, "{line}");
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    seen(away, "os.listdir('/n/n1')", "['tmp']");
    away.expect("os.listdir('/n/n1/tmp'), os.listdir('/n/n1/tmp/a')", "(['a'], ['b'])");
    away.expect("read('/n/n1/tmp/a/b/c/f')", "b'seen'");
    away.expect("read('/n/n1/tmp/a/x')", "ENOENT");
    away.expect("os.stat('/n/n1/etc')", "ENOENT");
    away.expect("os.mkdir('/n/n1/tmp/a/y')", "EACCES");
    away.run(&["os.mkdir('/n/n1/tmp/a/b/y')"]);
    settings("none");
    seen(away, "os.listdir('/n/n1')", "EACCES");
    away.expect("'n1' in os.listdir('/n')", "True");
    away.expect("os.path.exists('/n/n3/tmp')", "True");
}

#[test]
fn a_home_that_is_away_fails_clearly_and_alone() {
    if cannot_run_files() {
        return;
    }
    let patience = ["--set", "file_patience=8s", "--set", "gossip_suspicion=6s"];
    let playground = Playground::up(&[&patience[..], &["--set", "host_root=allow"]].concat());
    let [mut home, mut away, mut second] = actors(&playground, ["n3", "n1", "n1"]);
    home.run(&["write('/tmp/f', b'text')"]);
    away.run(&["f = os.open('/n/n3/tmp/f', os.O_RDONLY)"]);
    playground.must("partition", &["n1", "n2", "--", "n3"]);
    // What the kernel keeps is over.
    std::thread::sleep(Duration::from_millis(2200));
    // Who is asked to end is let go before the time.
    away.expect("within(0.3, lambda: os.pread(f, 4, 0), signal.SIGINT)", "'interrupted'");
    away.expect("within(0.3, lambda: os.stat('/n/n3/tmp/f'), signal.SIGINT)", "'interrupted'");
    second.waits("read('/n/n3/tmp/f')");
    assert!(playground.sh("n1", &format!("kill -9 {}", second.pid)).status.success());
    assert_eq!(second.look(), Answer::Gone);
    // The others are as near as ever, and the lost one is still listed.
    let [mut second] = actors(&playground, ["n1"]);
    let start = Instant::now();
    second.expect(
        "sorted(os.listdir('/n')), os.path.exists('/n/n2/tmp')",
        "(['n1', 'n2', 'n3'], True)",
    );
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let told = away.call("os.pread(f, 4, 0)");
    assert!(["ETIMEDOUT", "EHOSTDOWN"].contains(&told.as_str()), "{told}");
    // Once it is known to be dead, nobody waits.
    playground.json_when("n1", "nodes", "n3 down", |nodes| {
        let nodes = nodes.as_array().into_iter().flatten();
        nodes.into_iter().any(|node| node["name"] == "n3" && node["state"] == "dead")
    });
    let start = Instant::now();
    away.expect("os.pread(f, 4, 0)", "EHOSTDOWN");
    away.expect("os.stat('/n/n3/tmp/f')", "EHOSTDOWN");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    playground.must("heal", &[]);
    playground.json_when("n1", "nodes", "n3 up", |nodes| {
        let nodes = nodes.as_array().into_iter().flatten();
        nodes.into_iter().any(|node| node["name"] == "n3" && node["state"] == "alive")
    });
    let again = "for i in range(100):\\n  try:\\n    os.stat('/n/n3/tmp')\\n    break\\n  except OSError: time.sleep(0.1)";
    away.run(&[&format!("exec({again:?})").replace("\\\\n", "\\n")]);
    away.expect("os.pread(f, 4, 0)", "b'text'");
}

#[test]
fn open_files_and_calls_in_flight_survive_both_daemons() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow", "--set", "gossip_suspicion=6s"]);
    let [mut home, mut reader, mut writer, mut maker] =
        actors(&playground, ["n1", "n2", "n2", "n2"]);
    home.run(&[
        "os.mkdir('/tmp/d')",
        "write('/tmp/held', b''.join(b'%07d\\n' % n for n in range(20000)))",
    ]);
    for actor in [&mut reader, &mut writer, &mut maker] {
        actor.run(&["os.chdir('/n/n1/tmp/d')"]);
    }
    reader.run(&["r = os.open('../held', os.O_RDONLY)"]);
    writer.run(&["w = os.open('w', os.O_WRONLY | os.O_CREAT)"]);
    writer.tell("[os.pwrite(w, b'%07d\\n' % n, 8 * n) for n in range(1200)] and None");
    maker.run(&["l = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)"]);
    maker.tell("[(os.mkdir('m%d' % n), os.rename('m%d' % n, 'k%d' % n), os.write(l, b'%07d\\n' % n)) for n in range(300)] and None");
    // The daemon of those who look: its calls are sent again, and none is carried out twice.
    for n in 0..3 {
        playground.must("kill-daemon", &["n2"]);
        let at = n * 3000;
        reader.expect(&format!("os.pread(r, 8, {at} * 8)"), &format!("b'{at:07}\\n'"));
        std::thread::sleep(Duration::from_millis(100 + 170 * n));
    }
    assert_eq!((writer.answer(), maker.answer()), ("ok".into(), "ok".into()));
    home.expect("read('/tmp/d/w') == b''.join(b'%07d\\n' % n for n in range(1200))", "True");
    home.expect("read('/tmp/d/log') == b''.join(b'%07d\\n' % n for n in range(300))", "True");
    home.expect(
        "sorted(os.listdir('/tmp/d')) == sorted(['w', 'log'] + ['k%d' % n for n in range(300)])",
        "True",
    );
    // The daemon of the home.
    writer.tell("[os.pwrite(w, b'%07d\\n' % (n + 1), 8 * n) for n in range(1200)] and None");
    for n in 0..3 {
        playground.must("kill-daemon", &["n1"]);
        let at = n * 3000;
        reader.expect(&format!("os.pread(r, 8, {at} * 8)"), &format!("b'{at:07}\\n'"));
        std::thread::sleep(Duration::from_millis(100 + 170 * n));
    }
    assert_eq!(writer.answer(), "ok");
    home.expect("read('/tmp/d/w') == b''.join(b'%07d\\n' % (n + 1) for n in range(1200))", "True");
    reader.expect("os.listdir('k7'), os.stat('../held').st_size", "([], 160000)");
}

/// A file that is read again and again elsewhere, and changed at home; what tells is a file of the tree.
#[test]
fn who_is_told_of_a_change_by_way_of_the_tree_sees_it() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let [mut home, mut away, mut other] = actors(&playground, ["n1", "n2", "n3"]);
    home.run(&[
        "os.mkdir('/tmp/d')",
        "write('/tmp/d/header', b'00000000')",
        "write('/tmp/d/0', b'')",
        "write('/unum/round', b'0')",
    ]);
    // Everything only grows, so whatever is less than what was told of is stale.
    let reader = "def look(rounds):\n  stale = []\n  f = os.open('/n/n1/tmp/d/header', os.O_RDONLY)\n  now = 0\n  while now < rounds:\n    now = int(read('/unum/round'))\n    open_one, again = int(os.pread(f, 8, 0)), int(read('/n/n1/tmp/d/header')[:8])\n    size = os.stat('/n/n1/tmp/d/header').st_size\n    there = os.path.exists('/n/n1/tmp/d/%d' % now)\n    names = len(os.listdir('/n/n1/tmp/d'))\n    if min(open_one, again) < now or size < 8 + now or not there or names < now + 2:\n      stale.append((now, open_one, again, size, there, names))\n  return stale[:5]";
    for actor in [&mut away, &mut other] {
        actor.run(&[&format!("exec({reader:?}, globals())")]);
        actor.tell(&format!("look({ROUNDS})"));
    }
    let change = "def change(n):\n  write('/tmp/d/%d' % n, b'')\n  f = os.open('/tmp/d/header', os.O_WRONLY)\n  os.pwrite(f, b'%08d' % n, 0)\n  os.ftruncate(f, 8 + n)\n  os.close(f)\n  write('/unum/next', b'%d' % n)\n  os.rename('/unum/next', '/unum/round')";
    home.run(&[&format!("exec({change:?}, globals())")]);
    for round in 1..=ROUNDS {
        home.run(&[&format!("change({round})")]);
        // Long enough for the readers' kernels to keep something, at times.
        if round % 10 == 0 {
            std::thread::sleep(Duration::from_millis(150));
        }
    }
    assert_eq!((away.answer(), other.answer()), ("[]".into(), "[]".into()));
}

/// A program that is started elsewhere sees what was done before it was started.
#[test]
fn who_is_started_elsewhere_sees_what_was_done_before() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow"]);
    let [mut home, mut away] = actors(&playground, ["n1", "n2"]);
    home.run(&["write('/tmp/f', b'0')"]);
    away.expect("read('/n/n1/tmp/f')", "b'0'");
    home.run(&["import subprocess"]);
    let cat = "subprocess.run(['unum', 'run', '-n', 'n2', '--', 'cat', '/n/n1/tmp/f'], capture_output=True).stdout";
    for round in 0..20 {
        std::thread::sleep(Duration::from_millis(150));
        away.call("[read('/n/n1/tmp/f') for _ in range(3)]");
        home.run(&[&format!("write('/tmp/f', b'{round}')")]);
        home.expect(cat, &format!("b'{round}'"));
        home.run(&[&format!("write('/tmp/f', b'{round}{round}')")]);
        home.expect(cat, &format!("b'{round}{round}'"));
    }
}

/// The daemon of a reader dies while its kernel keeps things on its word.
#[test]
fn a_daemon_that_dies_shows_nothing_stale() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "host_root=allow", "--set", "gossip_suspicion=6s"]);
    let [mut home, mut away] = actors(&playground, ["n1", "n2"]);
    home.run(&["tell = lambda: os.statvfs('/n/n3/tmp') and None", "write('/tmp/f', b'00')"]);
    away.run(&["f = os.open('/n/n1/tmp/f', os.O_RDONLY)"]);
    for round in 10..18 {
        std::thread::sleep(Duration::from_millis(200));
        let warm = "[read('/n/n1/tmp/f') for _ in range(5)], os.pread(f, 2, 0), os.fstat(f)";
        away.call(warm);
        playground.must("kill-daemon", &["n2"]);
        home.run(&[&format!("write('/tmp/f', b'{round}')"), "tell()"]);
        away.expect("os.pread(f, 2, 0), read('/n/n1/tmp/f')", &format!("(b'{round}', b'{round}')"));
        away.call(warm);
        playground.must("kill-daemon", &["n1"]);
        home.run(&[&format!("write('/tmp/f', b'{round}x')"), "tell()"]);
        away.expect("os.fstat(f).st_size, read('/n/n1/tmp/f')", &format!("(3, b'{round}x')"));
    }
}
