//! Programs with a terminal, on the real kernel.

use std::time::Duration;

use crate::common::*;
use unum_proto::init::*;

#[test]
fn a_terminal_has_its_size_and_its_owner() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let script =
        "stty size; tty; echo $TERM; stat -c %u $(tty); echo ok > /dev/tty; read l; stty size";
    let ask = Spawn { uid: 1234, gid: 1234, ..with_terminal(&["sh", "-c", script]) };
    let pid = spawn(&mut client, ask);
    let mut session = Session::attach(&mut client, pid);
    session.until_shown(&mut client, "ok\r\n");
    let shown = String::from_utf8_lossy(&session.out).into_owned();
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[0], "24 80");
    assert!(lines[1].starts_with("/dev/pts/"), "{shown}");
    assert_eq!(&lines[2..4], &["xterm", "1234"]);
    client.call(Ask::Resize(Resize { pid, rows: 50, cols: 132 })).expect("resize");
    session.typed(&mut client, b"\n");
    session.until_shown(&mut client, "50 132");
    assert_eq!(session.until_over(&mut client).shell_status(), 0);
}

#[test]
fn control_c_interrupts() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let pid = spawn(&mut client, with_terminal(&["sh", "-c", "echo go; exec sleep 1000"]));
    let mut session = Session::attach(&mut client, pid);
    session.until_shown(&mut client, "go");
    session.typed(&mut client, b"\x03");
    assert_eq!(session.until_over(&mut client).shell_status(), 130);
}

#[test]
fn control_z_stops_and_sigcont_goes_on() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let script = "echo go; read line; echo got $line; exit 5";
    let pid = spawn(&mut client, with_terminal(&["sh", "-c", script]));
    let mut session = Session::attach(&mut client, pid);
    session.until_shown(&mut client, "go");
    session.typed(&mut client, b"\x1a");
    session.until(&mut client, |s| s.stopped == [20]);
    let Ok(Answer::Programs(list)) = client.call(Ask::List(List {})) else { panic!("no list") };
    assert_eq!(list.programs.first().map(Program::state), Some(State::Stopped));
    // A daemon that comes later hears of it too.
    client = world.connect();
    session.stopped.clear();
    session.attach_again(&mut client);
    session.until(&mut client, |s| s.stopped == [20]);
    signal(&mut client, pid, 18, Target::Foreground);
    session.until(&mut client, |s| s.continued == 1);
    session.typed(&mut client, b"words\n");
    session.until_shown(&mut client, "got words");
    assert_eq!(session.until_over(&mut client).shell_status(), 5);
}

#[test]
fn nothing_of_a_terminals_output_is_lost_at_the_end() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    for _ in 0..10 {
        let pid = spawn(&mut client, with_terminal(&["seq", "20000"]));
        let mut session = Session::attach(&mut client, pid);
        let exited = session.until_over(&mut client);
        let expected: String = (1..=20_000).map(|n| format!("{n}\r\n")).collect();
        assert_eq!(session.out.len(), expected.len());
        assert!(session.out == expected.as_bytes());
        assert_eq!(exited.stdout_end, expected.len() as u64);
    }
}

#[test]
fn an_interactive_shell_has_job_control() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let pid = spawn(&mut client, with_terminal(&["bash", "--norc", "--noprofile", "-i"]));
    let mut session = Session::attach(&mut client, pid);
    // What is typed is echoed as it is typed: only the program's own word is "started".
    session.typed(&mut client, b"PS1='> '; sh -c 'echo s\"\"tarted; exec sleep 1000'\n");
    session.until_shown(&mut client, "started");
    session.typed(&mut client, b"\x1a");
    session.until_shown(&mut client, "Stopped");
    session.typed(&mut client, b"jobs; kill %1; fg; echo rest=$((40+2))\n");
    session.until_shown(&mut client, "rest=42");
    session.typed(&mut client, b"exit\n");
    session.until_over(&mut client);
    assert!(session.exited.is_some_and(|e| e.signal == 0));
}

#[test]
fn end_of_input_ends_a_line_reader() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let pid = spawn(&mut client, with_terminal(&["sh", "-c", "stty -echo; echo go; wc -c"]));
    let mut session = Session::attach(&mut client, pid);
    session.until_shown(&mut client, "go");
    session.feed(&mut client, b"no line's end");
    session.until_shown(&mut client, "13");
    assert_eq!(session.until_over(&mut client).shell_status(), 0);
}

#[test]
fn a_hang_up_reaches_all_of_the_session() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    for ask in [
        with_terminal(&["bash", "--norc", "-ic", "sleep 1000 & echo $!; sleep 1000"]),
        with_pipes(&["bash", "-c", "set -m; sleep 1000 & echo $!; sleep 1000"]),
    ] {
        let pid = spawn(&mut client, ask);
        let mut session = Session::attach(&mut client, pid);
        session.until_shown(&mut client, "\n");
        let shown = String::from_utf8_lossy(&session.out).into_owned();
        let child: u32 = shown
            .lines()
            .find_map(|l| l.rsplit(' ').next()?.trim().parse().ok())
            .unwrap_or_else(|| panic!("{shown:?}"));
        client.call(Ask::Hangup(Hangup { pid })).expect("hangup");
        assert_ne!(wait(&mut client, pid).shell_status(), 0);
        let ask = Ask::Signal(Signal { pid: child, target: 0, signal: 0, uid: 0 });
        let gone = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            client.call(ask.clone()).is_err()
        });
        assert!(gone, "{child} outlived the hang-up");
        client = world.connect();
    }
}

#[test]
fn a_program_that_nobody_attends_is_hung_up_after_its_time() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let ask = |ms| Spawn { orphan_after_ms: ms, ..with_terminal(&["sleep", "1000"]) };
    let lost = spawn(&mut client, ask(300));
    let attended = spawn(&mut client, ask(300));
    let kept = spawn(&mut client, ask(0));
    let _session = Session::attach(&mut client, attended);
    assert_eq!(wait(&mut client, lost).signal, 1);
    let Ok(Answer::Programs(list)) = client.call(Ask::List(List {})) else { panic!("no list") };
    let state = |pid| list.programs.iter().find(|p| p.pid == pid).map(Program::state);
    assert_eq!((state(attended), state(kept)), (Some(State::Running), Some(State::Running)));
    drop(client);
    let mut client = world.connect();
    assert_eq!(wait(&mut client, attended).signal, 1);
}
