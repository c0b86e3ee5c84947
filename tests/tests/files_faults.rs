//! Files while daemons die, networks part and machines lose their power; and that nothing stale is
//! ever shown.

use std::process::Command;
use std::time::Duration;

use unum_tests::actor::{Answer, actors, cannot_run_files};
use unum_tests::{Playground, text};

/// Power cuts in the test; `scripts/power-cuts` does more.
const CUTS: &str = "6";

#[test]
fn what_one_machine_changed_every_other_sees() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut a, mut b, mut c] = actors(&playground, ["n1", "n2", "n3"]);
    a.run(&["os.mkdir('/unum/d')", "f = os.open('/unum/d/f', os.O_RDWR | os.O_CREAT)"]);
    for actor in [&mut b, &mut c] {
        actor.run(&["f = os.open('/unum/d/f', os.O_RDWR)"]);
    }
    for round in 0..400 {
        // Each machine writes in turn, and the two others look at once.
        let turn = round % 3;
        let [writer, reader, other] = match turn {
            0 => [&mut a, &mut b, &mut c],
            1 => [&mut b, &mut c, &mut a],
            _ => [&mut c, &mut a, &mut b],
        };
        let size = 8 + round * 37 % 9000;
        writer.expect(&format!("os.pwrite(f, b'{round:08}', 0)"), "8");
        reader.expect("os.pread(f, 8, 0)", &format!("b'{round:08}'"));
        writer.run(&[&format!("os.ftruncate(f, {size})")]);
        other.expect("os.stat('/unum/d/f').st_size", &size.to_string());
        other.expect("os.pread(f, 8, 0)", &format!("b'{round:08}'"));
        writer.run(&[&format!("write('/unum/d/x', b'{round}')")]);
        reader.expect("read('/unum/d/x')", &format!("b'{round}'"));
        other.run(&[&format!("os.rename('/unum/d/x', '/unum/d/{round}')")]);
        reader.expect("os.path.exists('/unum/d/x')", "False");
        writer.expect(&format!("read('/unum/d/{round}')"), &format!("b'{round}'"));
        reader.run(&[&format!("os.unlink('/unum/d/{round}')")]);
        other.expect("os.listdir('/unum/d')", "['f']");
    }
}

#[test]
fn calls_in_flight_and_open_files_survive_their_daemon() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&[]);
    let [mut writer, mut appender, mut reader, mut other] =
        actors(&playground, ["n2", "n2", "n2", "n1"]);
    writer.run(&[
        "block = lambda n: hashlib.sha256(b'%d' % n).digest() * 8192",
        "w = os.open('/unum/large', os.O_WRONLY | os.O_CREAT)",
    ]);
    appender.run(&["l = os.open('/unum/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)"]);
    reader.run(&[
        "write('/unum/held', b''.join(b'%07d\\n' % n for n in range(20000)))",
        "r = os.open('/unum/held', os.O_RDONLY)",
    ]);
    other.run(&["os.unlink('/unum/held')"]);
    writer.tell("[os.write(w, block(n)) for n in range(160)] and None");
    appender.tell("[os.write(l, b'%07d\\n' % n) for n in range(1500)] and None");
    // It comes back ever more slowly; after four deaths in a row the node would be declared down first.
    for n in 0..3 {
        playground.must("kill-daemon", &["n2"]);
        let at = n * 6000;
        reader.expect(&format!("os.pread(r, 8, {at} * 8)"), &format!("b'{at:07}\\n'"));
        std::thread::sleep(Duration::from_millis(100 + 350 * n));
    }
    assert_eq!((writer.answer(), appender.answer()), ("ok".into(), "ok".into()));
    writer.run(&["os.close(w)"]);
    other.run(&["block = lambda n: hashlib.sha256(b'%d' % n).digest() * 8192"]);
    other.expect("read('/unum/large') == b''.join(block(n) for n in range(160))", "True");
    // A call that had been carried out before its daemon died is not carried out twice.
    other.expect("read('/unum/log') == b''.join(b'%07d\\n' % n for n in range(1500))", "True");
    reader.expect("os.pread(r, 8, 19999 * 8), os.fstat(r).st_nlink", "(b'0019999\\n', 0)");
}

#[test]
fn a_timer_ends_no_call() {
    if cannot_run_files() {
        return;
    }
    let settings = ["--set", "file_patience=20s", "--set", "gossip_suspicion=6s"];
    let playground = Playground::up(&settings);
    let [mut a, mut b] = actors(&playground, ["n1", "n3"]);
    a.run(&["write('/unum/f', b'before')", "os.mkdir('/unum/d')"]);
    b.run(&["f = os.open('/unum/g', os.O_CREAT | os.O_RDWR)", "ticking(0.05)"]);
    for call in ["os.stat('/unum/f').st_size", "os.write(f, b'1') + (os.fsync(f) or 5)"] {
        playground.must("partition", &["n1", "n2", "--", "n3"]);
        // What n3 may show by its leases is over.
        std::thread::sleep(Duration::from_millis(2200));
        b.waits(call);
        std::thread::sleep(Duration::from_millis(1500));
        playground.must("heal", &[]);
        assert_eq!(b.answer(), "6", "{call}");
    }
    b.expect("len(ticks) > 20", "True");
    // A signal that kills is another matter, and Python is asked to end by an exception.
    playground.must("partition", &["n1", "n2", "--", "n3"]);
    std::thread::sleep(Duration::from_millis(2200));
    b.expect("within(0.3, lambda: os.stat('/unum/d'), signal.SIGINT)", "'interrupted'");
    b.waits("(signal.signal(signal.SIGINT, signal.SIG_DFL), os.stat('/unum/d'))");
    assert!(playground.sh("n3", &format!("kill -INT {}", b.pid)).status.success());
    assert_eq!(b.look(), Answer::Gone);
}

#[test]
fn a_minority_fails_clearly_and_shows_nothing_stale() {
    if cannot_run_files() {
        return;
    }
    let playground = Playground::up(&["--set", "file_patience=6s"]);
    let [mut a, mut b, mut c, mut d] = actors(&playground, ["n1", "n2", "n3", "n3"]);
    a.run(&["write('/unum/f', b'before')"]);
    c.run(&["f = os.open('/unum/f', os.O_RDWR)"]);
    c.expect("os.pread(f, 9, 0)", "b'before'");
    playground.must("partition", &["n1", "n2", "--", "n3"]);
    a.run(&["write('/unum/f', b'after')", "write('/unum/g', b'new')"]);
    b.expect("read('/unum/f'), read('/unum/g')", "(b'after', b'new')");
    c.tell("os.pread(f, 9, 0)");
    d.tell("os.stat('/unum/f')");
    assert_eq!((c.answer(), d.answer()), ("ETIMEDOUT".into(), "ETIMEDOUT".into()));
    c.expect("os.pwrite(f, b'never', 0)", "ETIMEDOUT");
    c.expect("os.stat('/unum/g')", "ETIMEDOUT");
    // Who is asked to end is let go before the time, though it catches the signal.
    c.expect("within(0.3, lambda: os.stat('/unum/f'), signal.SIGINT)", "'interrupted'");
    c.expect("within(0.3, lambda: os.pwrite(f, b'never', 0), signal.SIGTERM)", "'interrupted'");
    d.waits("os.stat('/unum/f')");
    assert!(playground.sh("n3", &format!("kill -9 {}", d.pid)).status.success());
    assert_eq!(d.look(), Answer::Gone);
    playground.must("heal", &[]);
    a.run(&["write('/unum/h', b'healed')"]);
    // The first calls may fall into the time before the machines have found each other again.
    let again =
        "for i in range(100):\\n  try:\\n    os.stat('/unum')\\n    break\\n  except OSError: pass";
    c.run(&[&format!("exec({again:?})").replace("\\\\n", "\\n")]);
    c.expect("read('/unum/h'), read('/unum/f')", "(b'healed', b'after')");
    b.expect("read('/unum/f')", "b'after'");
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged() {
    if cannot_run_files() {
        return;
    }
    let program = env!("CARGO_BIN_EXE_files_power_cuts");
    let output = Command::new(program).arg(CUTS).output().expect("the program runs");
    let (told, failed) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{told}\n{failed}");
}
