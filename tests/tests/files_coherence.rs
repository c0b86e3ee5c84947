//! What one machine changed, every other shows: also from its kernel's caches, also when its daemon
//! does not get to run.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use unum_tests::Playground;
use unum_tests::actor::{Actor, Answer, actors, cannot_run_files};
use unum_tests::coherence::Model;

/// Random calls in the test; the program `files_coherence` does more.
const CALLS: u32 = 2500;

#[test]
fn each_answer_shows_all_calls_before_it() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let mut actors = actors(&playground, ["n1", "n2", "n3"]);
    let mut rng = StdRng::seed_from_u64(7);
    for (root, stay) in [("/unum/first", 0.0), ("/unum/second", 0.8), ("/unum/third", 0.97)] {
        actors[0].run(&[&format!("os.mkdir('{root}')")]);
        let mut model = Model::new(root, actors.len(), stay);
        for _ in 0..CALLS / 3 {
            model.step(&mut rng, &mut actors);
        }
    }
}

#[test]
fn a_node_whose_daemon_stands_still_shows_nothing_stale() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n2"]);
    let look = "os.fstat(f).st_size, os.path.exists('/unum/d/gone'), read('/unum/d/name')";
    for round in 0..2 {
        a.run(&[
            "os.makedirs('/unum/d', exist_ok=True)",
            "write('/unum/d/file', b'old')",
            "write('/unum/d/gone', b'')",
            "write('/unum/d/name', b'old')",
        ]);
        b.run(&["f = os.open('/unum/d/file', os.O_RDONLY)"]);
        // Long enough at rest to be cached.
        std::thread::sleep(Duration::from_secs(2));
        for _ in 0..3 {
            b.expect(look, "(3, True, b'old')");
        }

        // A daemon that was killed is started again; one that stands still is missed by nobody but
        // the other machines.
        let stop = if round == 0 { "-STOP" } else { "-KILL" };
        playground.does("n2", &format!("kill {stop} $(pidof unumd)"));
        a.run(&[
            "write('/unum/d/file', b'longer')",
            "os.unlink('/unum/d/gone')",
            "write('/unum/d/new', b'new')",
            "os.rename('/unum/d/new', '/unum/d/name')",
        ]);
        b.tell(look);
        if round == 0 {
            assert_eq!(b.look(), Answer::Waits, "whatever needs the daemon waits for it");
            playground.does("n2", "kill -CONT $(pidof unumd)");
        }
        assert_eq!(b.answer(), "(6, False, b'new')", "round {round}");
        b.run(&["os.close(f)"]);
    }
}

/// Tries to find the daemon stopped before its read lease ends, which takes everything back.
const STOPS_MAX: u32 = 5;

#[test]
fn what_was_made_or_looked_up_is_shown_without_the_daemon() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n2"]);
    let stats = "len([os.stat(f'/unum/d/{n}', follow_symlinks=False).st_mode for n in range(9)])";
    let shows = |actor: &mut Actor, machine: &str| {
        // A change in a directory has the kernel ask for the directory's own attributes.
        actor.run(&["os.stat('/unum/d') and None"]);
        playground.does(machine, "kill -STOP $(pidof unumd)");
        actor.tell(stats);
        let answer = actor.look();
        playground.does(machine, "kill -CONT $(pidof unumd)");
        if answer == Answer::Waits {
            actor.answer();
        }
        answer != Answer::Waits
    };
    let made = (0..STOPS_MAX).any(|_| {
        a.run(&[
            "import shutil",
            "shutil.rmtree('/unum/d', ignore_errors=True)",
            "os.mkdir('/unum/d')",
            "[os.mkdir(f'/unum/d/{n}') for n in range(3)] and None",
            "[os.mknod(f'/unum/d/{n}') for n in range(3, 6)] and None",
            "[os.symlink('x', f'/unum/d/{n}') for n in range(6, 9)] and None",
        ]);
        shows(&mut a, "n1")
    });
    assert!(made, "what was made is asked for again");
    let looked_up = (0..STOPS_MAX).any(|_| {
        a.run(&["[os.utime(f'/unum/d/{n}', follow_symlinks=False) for n in range(9)] and None"]);
        // A directory that another machine changed a moment ago is not trusted.
        std::thread::sleep(Duration::from_secs(2));
        b.expect(stats, "9");
        shows(&mut b, "n2")
    });
    assert!(looked_up, "what was looked up is asked for again");
    // And yet nothing is shown that is over.
    a.run(&["os.chmod('/unum/d/4', 0o640)", "os.unlink('/unum/d/5')"]);
    b.expect(
        "oct(os.stat('/unum/d/4').st_mode), os.path.exists('/unum/d/5')",
        "('0o100640', False)",
    );
}

/// Who works under a lease syncs without waiting for a machine that stands still, which shows the new state all
/// the same when it goes on.
#[test]
fn a_sync_under_a_lease_waits_for_no_reader() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n3"]);
    a.run(&["write('/unum/f', b'0')"]);
    let mut last = 0;
    let synced = (1..=STOPS_MAX).any(|round| {
        b.expect("read('/unum/f')", &format!("b'{last}'"));
        last = round;
        // What both used a moment ago is left alone by leases.
        std::thread::sleep(Duration::from_secs(2));
        a.run(&["f = os.open('/unum/f', os.O_WRONLY)"]);
        a.run(&["[os.pwrite(f, b'-', 0) for _ in range(3)] and os.fsync(f)"]);
        playground.does("n3", "kill -STOP $(pidof unumd)");
        a.tell(&format!("os.pwrite(f, b'{round}', 0) and os.fsync(f)"));
        let answer = a.look();
        playground.does("n3", "kill -CONT $(pidof unumd)");
        if answer == Answer::Waits {
            a.answer();
        }
        a.run(&["os.close(f)"]);
        answer != Answer::Waits
    });
    assert!(synced, "a sync waits for a machine that may show nothing of the file");
    b.expect("read('/unum/f')", &format!("b'{last}'"));
}

#[test]
fn what_was_mapped_is_seen_when_it_is_closed() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b] = actors(&playground, ["n1", "n2"]);
    // Nothing is changed under a lease there, which would have readers wait.
    a.run(&["os.mkdir('/unum/d')", "os.setxattr('/unum/d', 'user.unum.class', b'strict')"]);
    a.run(&["write('/unum/d/f', bytes(4096))"]);
    b.run(&["f = os.open('/unum/d/f', os.O_RDONLY)"]);
    for round in 0..100 {
        b.expect("os.pread(f, 1, 0)[0]", &round.to_string());
        a.run(&[
            "f = os.open('/unum/d/f', os.O_RDWR)",
            "m = mmap.mmap(f, 4096)",
            &format!("m[0] = {}", round + 1),
            "m.close()",
            "os.close(f)",
        ]);
    }
}

/// Each machine's call in one directory may wait for what the others' are in the way of.
#[test]
fn machines_that_change_the_same_things_at_once_do_not_block_each_other() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let mut actors = actors(&playground, ["n1", "n2", "n3"]);
    actors[0].run(&["os.mkdir('/unum/d')", "write('/unum/d/shared', b'x' * 5000)"]);
    let look = "[os.path.exists('/unum/d/' + n) for n in ['shared', 'a0', 'a1', 'a2']] and None";
    for actor in &mut actors {
        actor.run(&[
            look,
            "f = os.open('/unum/d/shared', os.O_RDWR)",
            "os.pread(f, 5000, 0) and None",
        ]);
    }
    for work in [
        "[(write('/unum/d/a%', b'%' * 9), os.rename('/unum/d/a%', '/unum/d/shared')) \
         for _ in range(60)] and None",
        "[(os.pwrite(f, b'%' * 9, 100), os.pread(f, 200, 0)) for _ in range(60)] and None",
        "[(os.close(os.open('/unum/d/b%', os.O_CREAT | os.O_EXCL)), os.unlink('/unum/d/b%')) \
         for _ in range(60)] and None",
    ] {
        // At rest, so that all trust what is there.
        std::thread::sleep(Duration::from_millis(1500));
        actors.iter_mut().for_each(|actor| actor.run(&[look]));
        for (number, actor) in actors.iter_mut().enumerate() {
            actor.tell(&work.replace('%', &number.to_string()));
        }
        for actor in &mut actors {
            assert_eq!(actor.answer(), "ok");
        }
    }
    let last = actors[0].call("read('/unum/d/shared')");
    assert!(["b'000000000'", "b'111111111'", "b'222222222'"].contains(&&*last), "{last}");
    for actor in &mut actors {
        actor.expect("read('/unum/d/shared')", &last);
        actor.expect("sorted(os.listdir('/unum/d'))", "['shared']");
    }
}
