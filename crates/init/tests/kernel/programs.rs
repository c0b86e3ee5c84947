//! Starts, signals, streams, PIDs, keepsakes.

use std::time::{Duration, Instant};

use crate::common::*;
use unum_init::client::ClientError;
use unum_proto::init::*;
use unum_sys::world::{StartError, start_world};

#[test]
fn exit_status_signal_and_use_are_reported() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let pid = spawn(&mut client, command(&["sh", "-c", "exit 7"]));
    let exited = wait(&mut client, pid);
    assert_eq!((exited.code, exited.signal, exited.shell_status()), (7, 0, 7));
    assert!((BLOCK.lo..BLOCK.hi).contains(&pid));

    let pid = spawn(&mut client, command(&["sleep", "1000"]));
    signal(&mut client, pid, 15, Target::Process);
    assert_eq!(wait(&mut client, pid).shell_status(), 143);

    let burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done";
    let pid = spawn(&mut client, command(&["sh", "-c", burn]));
    let exited = wait(&mut client, pid);
    assert!(exited.user_us > 1000 && exited.max_rss_kib > 500, "{exited:?}");
    assert!(exited.ended_ms >= exited.started_ms && exited.started_ms > 1_600_000_000_000);

    let (fault, _) = refusal(&mut client, Ask::Wait(Wait { pid: 49_999, forget: false }));
    assert_eq!(fault, Fault::NoSuchProcess);
}

#[test]
fn a_start_that_fails_says_which_step() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.connect();
    let (fault, _) = refusal(&mut client, Ask::Spawn(command(&["true"])));
    assert_eq!(fault, Fault::OutOfPids, "no block was set");
    set_blocks(&mut client, &[BLOCK]);
    let mut fails = |spawn: Spawn| refusal(&mut client, Ask::Spawn(spawn));

    let (fault, message) = fails(command(&["no-such-command"]));
    assert_eq!(
        (fault, message.as_str()),
        (Fault::CommandNotFound, "no-such-command: command not found")
    );
    assert_eq!(fails(command(&["/no/such"])).0, Fault::CommandNotFound);
    assert_eq!(fails(command(&["/etc/passwd"])).0, Fault::NotExecutable);
    assert_eq!(fails(command(&["/etc"])).0, Fault::NotExecutable);
    assert_eq!(fails(with_terminal(&["no-such-command"])).0, Fault::CommandNotFound);
    assert_eq!(fails(Spawn::default()).0, Fault::BadRequest);
    let (fault, message) = fails(Spawn { cwd: b"/no/dir".to_vec(), ..command(&["true"]) });
    assert_eq!(fault, Fault::Directory);
    assert!(message.contains("/no/dir"), "{message}");
    let limit = Rlimit { resource: 999, soft: 1, hard: 1 };
    assert_eq!(fails(Spawn { rlimits: vec![limit], ..command(&["true"]) }).0, Fault::Credentials);
    assert_eq!(
        fails(Spawn { argv: vec![b"a\0b".to_vec()], ..Spawn::default() }).0,
        Fault::BadRequest
    );

    let Ok(Answer::Programs(list)) = client.call(Ask::List(List {})) else { panic!("no list") };
    assert_eq!(list.programs, vec![], "failed starts leave no record");
}

#[test]
fn a_program_gets_what_its_caller_had_and_nothing_else() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let script = "id -u; id -g; id -G; umask; pwd; ulimit -n; echo $X; nice; cat <&0; \
                  ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; \
                  ps -o pid= -p 1; cat /proc/self/oom_score_adj";
    let mut ask = with_pipes(&["sh", "-c", script]);
    ask.env.push(b"X=y z".to_vec());
    (ask.uid, ask.gid, ask.groups, ask.umask) = (1234, 2345, vec![2345, 77], 0o027);
    ask.cwd = b"/usr".to_vec();
    ask.rlimits = vec![Rlimit { resource: 7, soft: 333, hard: 444 }];
    ask.nice = 3;
    let pid = spawn(&mut client, ask);
    let mut session = Session::attach(&mut client, pid);
    session.feed(&mut client, b"in\n");
    let exited = session.until_over(&mut client);
    let out = String::from_utf8_lossy(&session.out).into_owned();
    let lines: Vec<&str> = out.lines().collect();
    let err = String::from_utf8_lossy(&session.err).into_owned();
    assert_eq!(exited.shell_status(), 0, "{out} {err}");
    let head = ["1234", "2345", "2345 77", "0027", "/usr", "333", "y z", "3", "in", "4"];
    assert_eq!(&lines[..10], &head, "{err}");
    let zero = "0000000000000000";
    assert_eq!(lines[10], format!("SigBlk:\t{zero}"));
    assert_eq!(lines[11], format!("SigIgn:\t{zero}"));
    assert_eq!(lines[14], "0");
    assert_eq!(exited.stdout_end, session.out.len() as u64);
}

#[test]
fn a_hundred_mebibytes_survive_lost_connections() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let size = 100usize << 20;
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut all = Vec::with_capacity(size);
    while all.len() < size {
        all.extend_from_slice(&random().to_le_bytes());
    }
    let pid = spawn(&mut client, with_pipes(&["cat"]));
    let mut session = Session::attach(&mut client, pid);
    let mut drops = 0;
    let mut until_drop = random() % 400;
    while !(session.ended == [true; 2] && session.exited.is_some()) {
        session.feed(&mut client, &all);
        session.step(&mut client, Duration::from_millis(100));
        until_drop = until_drop.saturating_sub(1);
        if until_drop == 0 && drops < 40 {
            drops += 1;
            until_drop = random() % 400 + 1;
            // What was on its way in either direction is lost with the connection.
            client = world.connect();
            session.attach_again(&mut client);
        }
    }
    assert!(drops > 5, "{drops} drops");
    assert_eq!(session.out.len(), size);
    assert!(session.out == all, "bytes differ");
    assert_eq!(session.exited.map(|e| e.shell_status()), Some(0));
}

#[test]
fn an_unread_stream_stops_its_program_and_no_other() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let flood = spawn(&mut client, with_pipes(&["yes"]));
    let attach = Attach { pid: flood, stdout: 0, stderr: 0, from_oldest: true };
    assert!(client.call(Ask::Attach(attach)).is_ok());
    let mut got = 0;
    while let Some(event) = client.event(Duration::from_millis(300)).expect("an event") {
        if let Happened::Output(output) = event {
            got += output.bytes.len();
        }
    }
    assert_eq!(got, STREAM_BUFFER_SIZE, "what nobody acknowledges is bounded");
    let pid = spawn(&mut client, with_pipes(&["echo", "hello"]));
    let mut session = Session::attach(&mut client, pid);
    assert_eq!(session.until_over(&mut client).shell_status(), 0);
    assert_eq!(session.out, b"hello\n");
    signal(&mut client, flood, 9, Target::Process);
    assert_eq!(wait(&mut client, flood).shell_status(), 137);
}

#[test]
fn a_closed_output_is_a_closed_pipe_to_its_program() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let script = "yes; echo $? >&2; trap '' PIPE; seq 9; echo $? >&2; exit 3";
    let pid = spawn(&mut client, with_pipes(&["bash", "-c", script]));
    let mut session = Session::attach(&mut client, pid);
    session.until(&mut client, |s| !s.out.is_empty());
    let close = CloseOutput { pid, stream: Stream::Stdout as i32 };
    client.cast(Ask::CloseOutput(close)).expect("sent");
    session.given_up[0] = true;
    session.until(&mut client, |s| s.exited.is_some() && s.ended[1]);
    // SIGPIPE where it is not ignored, a failed write where it is; the program itself goes on.
    let told = String::from_utf8_lossy(&session.err).into_owned();
    let statuses: Vec<&str> = told.lines().filter(|line| line.parse::<u8>().is_ok()).collect();
    assert_eq!(statuses, ["141", "1"], "{told}");
    assert_eq!(session.exited.map(|e| e.shell_status()), Some(3));
}

#[test]
fn unread_words_of_exited_programs_are_bounded_in_sum() {
    const PROGRAMS: usize = 64 * 1024 / 200 + 8;
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let mut pids = Vec::new();
    for _ in 0..PROGRAMS {
        let pid = spawn(&mut client, with_pipes(&["head", "-c", "204800", "/dev/zero"]));
        assert_eq!(wait(&mut client, pid).shell_status(), 0);
        pids.push(pid);
    }
    // The bound is seen to now and then.
    std::thread::sleep(Duration::from_millis(600));
    let attach = |pid: &u32| Ask::Attach(Attach { pid: *pid, ..Attach::default() });
    let (fault, _) = refusal(&mut client, attach(pids.first().expect("one")));
    assert_eq!(fault, Fault::OffsetGone);
    let newest = client.call(attach(pids.last().expect("one")));
    assert!(matches!(newest, Ok(Answer::Attached(_))), "{newest:?}");
}

#[test]
fn a_closed_standard_input_is_told() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let pid = spawn(&mut client, with_pipes(&["head", "-c", "100000"]));
    let mut session = Session::attach(&mut client, pid);
    let endless = vec![b'y'; 10 << 20];
    while session.exited.is_none() || !session.input_closed {
        session.feed(&mut client, &endless);
        session.step(&mut client, Duration::from_millis(100));
    }
    session.until_over(&mut client);
    assert_eq!(session.out.len(), 100_000);
    assert_eq!(session.exited.map(|e| e.shell_status()), Some(0));
}

#[test]
fn processes_left_behind_are_adopted_and_do_not_hold_the_exit_back() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let pid = spawn(&mut client, with_pipes(&["sh", "-c", "sleep 1000 & echo $!"]));
    let mut session = Session::attach(&mut client, pid);
    session.until(&mut client, |s| s.exited.is_some_and(|e| s.out.len() as u64 == e.stdout_end));
    assert_eq!(session.ended, [false; 2]);
    let child: u32 = String::from_utf8_lossy(&session.out).trim().parse().expect("a PID");
    signal(&mut client, child, 9, Target::Process);
    session.until(&mut client, |s| s.ended == [true; 2]);
    let deadline = Instant::now() + PATIENCE;
    while refused_as_missing(&mut client, child) != Some(true) {
        assert!(Instant::now() < deadline, "an orphan was not reaped");
    }
}

fn refused_as_missing(client: &mut unum_init::client::Client, pid: u32) -> Option<bool> {
    let ask = Ask::Signal(Signal { pid, target: 0, signal: 0, uid: 0 });
    match client.call(ask) {
        Err(ClientError::Refused(failed)) => Some(failed.fault() == Fault::NoSuchProcess),
        _ => None,
    }
}

#[test]
fn a_user_signals_only_what_is_his() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let his = spawn(&mut client, Spawn { uid: 1234, gid: 1234, ..command(&["sleep", "1000"]) });
    let roots = spawn(&mut client, command(&["sleep", "1000"]));
    let ask = |pid, target: Target| {
        Ask::Signal(Signal { pid, target: target as i32, signal: 15, uid: 1234 })
    };
    assert_eq!(refusal(&mut client, ask(roots, Target::Process)).0, Fault::NotPermitted);
    assert_eq!(refusal(&mut client, ask(roots, Target::Group)).0, Fault::NotPermitted);
    assert_eq!(refusal(&mut client, ask(roots, Target::Session)).0, Fault::NotPermitted);
    assert_eq!(refusal(&mut client, ask(1, Target::Process)).0, Fault::NotPermitted);
    assert_eq!(refusal(&mut client, ask(53_999, Target::Process)).0, Fault::NoSuchProcess);
    assert!(client.call(ask(his, Target::Session)).is_ok());
    assert_eq!(wait(&mut client, his).shell_status(), 143);
    signal(&mut client, roots, 9, Target::Group);
    assert_eq!(wait(&mut client, roots).shell_status(), 137);
}

#[test]
fn a_user_raises_no_limit_above_the_machines() {
    const NICE: u32 = 13;
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let limits = std::fs::read_to_string("/proc/self/limits").expect("proc");
    let line = limits.lines().find(|line| line.starts_with("Max nice priority")).expect("a limit");
    let own: u64 = line.split_whitespace().nth(4).expect("a hard limit").parse().expect("a number");
    let more = Rlimit { resource: NICE, soft: own + 7, hard: own + 7 };
    let script = "grep 'Max nice' /proc/self/limits";
    let ask =
        Spawn { uid: 1234, gid: 1234, rlimits: vec![more], ..with_pipes(&["sh", "-c", script]) };
    let pid = spawn(&mut client, ask);
    let mut session = Session::attach(&mut client, pid);
    session.until_over(&mut client);
    let told = String::from_utf8_lossy(&session.out).into_owned();
    assert_eq!(told.split_whitespace().nth(4), Some(own.to_string().as_str()), "{told}");
}

#[test]
fn the_streams_of_a_program_are_its_users() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let pid = spawn(&mut client, Spawn { uid: 1234, gid: 1234, ..with_pipes(&["cat"]) });
    let attach = Ask::Attach(Attach { pid, ..Attach::default() });
    let bytes = bytes::Bytes::from_static(b"x");
    let input = Ask::Input(Input { pid, offset: 0, bytes, eof: true });
    let ack = Ask::Ack(Ack { pid, stream: Stream::Stdout as i32, offset: 0 });
    let resize = Ask::Resize(Resize { pid, rows: 1, cols: 1 });
    let detach = Ask::Detach(Detach { pid });
    let hang_up = Ask::Hangup(Hangup { pid });
    for ask in [attach.clone(), input.clone(), ack, resize, detach, hang_up] {
        match client.call_for(4321, ask) {
            Err(ClientError::Refused(failed)) => assert_eq!(failed.fault(), Fault::NotPermitted),
            other => panic!("not refused: {other:?}"),
        }
    }
    assert!(matches!(client.call_for(0, attach.clone()), Ok(Answer::Attached(_))));
    assert!(matches!(client.call_for(1234, attach.clone()), Ok(Answer::Attached(_))));
    assert!(client.call_for(1234, input).is_ok());
    assert_eq!(wait(&mut client, pid).shell_status(), 0);
    // The same when it has ended: its output is kept, for its user.
    assert!(matches!(client.call_for(4321, attach.clone()), Err(ClientError::Refused(_))));
    assert!(matches!(client.call_for(1234, attach), Ok(Answer::Attached(_))));
}

#[test]
fn no_pid_leaves_a_small_block() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.connect();
    let blocks = [PidBlock { lo: 70_000, hi: 70_600 }, PidBlock { lo: 90_000, hi: 90_500 }];
    set_blocks(&mut client, &blocks);
    // Each subshell says its own PID, which it reads itself.
    let script = "i=0; while [ $i -lt 1500 ]; do sh -c 'echo $$'; i=$((i+1)); done";
    let pids: Vec<u32> =
        (0..3).map(|_| spawn(&mut client, with_pipes(&["sh", "-c", script]))).collect();
    let mut seen = pids.clone();
    for pid in pids {
        let mut session = Session::attach(&mut client, pid);
        session.until_over(&mut client);
        let out = String::from_utf8_lossy(&session.out).into_owned();
        seen.extend(out.lines().map(|l| l.parse::<u32>().expect("a PID")));
    }
    assert_eq!(seen.len(), 4503);
    let outside: Vec<_> =
        seen.iter().filter(|pid| !blocks.iter().any(|b| (b.lo..b.hi).contains(pid))).collect();
    assert_eq!(outside, Vec::<&u32>::new());
    let used = blocks.map(|b| seen.iter().filter(|pid| (b.lo..b.hi).contains(pid)).count());
    assert!(used.iter().all(|n| *n > 500), "both blocks serve: {used:?}");
    let Ok(Answer::Status(status)) = client.call(Ask::Status(StatusAsk {})) else { panic!() };
    assert_eq!(status.strayed, 0);
}

#[test]
fn a_full_block_refuses_and_says_so() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.connect();
    set_blocks(&mut client, &[PidBlock { lo: 60_000, hi: 60_256 }]);
    let mut count = 0;
    let fault = loop {
        match client.call(Ask::Spawn(command(&["sleep", "1000"]))) {
            Ok(_) => count += 1,
            Err(ClientError::Refused(failed)) => break failed.fault(),
            Err(e) => panic!("{e}"),
        }
        // Counting is not done at each spawn.
        let _ = client.call(Ask::Status(StatusAsk {}));
    };
    assert_eq!(fault, Fault::OutOfPids);
    assert!((200..256).contains(&count), "{count}");
    set_blocks(&mut client, &[PidBlock { lo: 60_000, hi: 61_000 }]);
    spawn(&mut client, command(&["true"]));
}

#[test]
fn keepsakes_outlive_their_client() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let path = world.path().join("kept");
    std::fs::write(&path, "kept bytes").expect("write");
    let file = std::fs::File::open(&path).expect("open");
    let keep =
        Keep { name: "f".into(), note: "a note".into(), descriptor: true, ledger: "".into() };
    client.call_with(Ask::Keep(keep), Some(file.into())).expect("keep");
    let keep =
        Keep { name: "n".into(), note: "alone".into(), descriptor: false, ledger: "".into() };
    client.call(Ask::Keep(keep)).expect("keep");
    drop(client);
    let mut client = world.connect();
    let Ok(Answer::Kept(kept)) = client.call(Ask::Fetch(Fetch { name: "f".into() })) else {
        panic!("not kept")
    };
    assert_eq!((&kept.note[..], kept.descriptor), (&b"a note"[..], true));
    let file = std::fs::File::from(client.take_descriptor().expect("a descriptor"));
    assert_eq!(std::io::read_to_string(file).expect("read"), "kept bytes");
    let Ok(Answer::Kept(kept)) = client.call(Ask::Fetch(Fetch { name: "n".into() })) else {
        panic!("not kept")
    };
    assert_eq!((&kept.note[..], kept.descriptor), (&b"alone"[..], false));
    client.call(Ask::Release(Release { name: "f".into() })).expect("release");
    let fetch = Ask::Fetch(Fetch { name: "f".into() });
    assert_eq!(refusal(&mut client, fetch).0, Fault::NotKept);
}

#[test]
fn a_detached_program_logs_on_without_a_daemon() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let script = "echo one; sleep 0.3; echo two >&2; exit 3";
    let log = Some(Stdio::Log(LogStdio {}));
    let pid = spawn(
        &mut client,
        Spawn { stdio: log, tag: b"t1".to_vec(), ..command(&["sh", "-c", script]) },
    );
    drop(client);
    let mut client = world.connect();
    let again = Spawn { tag: b"t1".to_vec(), ..command(&["true"]) };
    assert!(
        matches!(client.call(Ask::Spawn(again)), Ok(Answer::Spawned(s)) if s.existed && s.pid == pid)
    );
    assert_eq!(wait(&mut client, pid).code, 3);
    let Ok(Answer::Programs(list)) = client.call(Ask::List(List {})) else { panic!("no list") };
    let [program] = &list.programs[..] else { panic!("{list:?}") };
    assert_eq!(program.state(), State::Exited);
    assert!(program.command.starts_with("sh -c echo one"));
    assert!(program.log.ends_with(&format!("{pid}.log")));
    assert_eq!(std::fs::read_to_string(&program.log).expect("log"), "one\ntwo\n");
    let log = program.log.clone();
    client.call(Ask::Wait(Wait { pid, forget: true })).expect("wait");
    assert!(!std::path::Path::new(&log).exists());
}

#[test]
fn a_new_client_supersedes_and_nonsense_is_refused() {
    use std::io::{Read, Write};
    let Some(world) = TestWorld::start() else { return };
    let mut first = world.ready();
    let pid = spawn(&mut first, command(&["sleep", "1000"]));
    for nonsense in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0, 0, 0, 3, 255, 255, 255], &[255; 64]] {
        let mut socket = std::os::unix::net::UnixStream::connect(world.socket()).expect("connect");
        socket.write_all(nonsense).expect("write");
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        assert_eq!(rest, b"");
    }
    assert!(matches!(
        first.call(Ask::List(List {})),
        Err(ClientError::Closed | ClientError::Socket(_))
    ));
    let mut second = world.connect();
    signal(&mut second, pid, 9, Target::Process);
    assert_eq!(wait(&mut second, pid).signal, 9);
    assert!(matches!(start_world(&world.options()), Err(StartError::AlreadyRunning { .. })));
}

#[test]
fn the_world_ends_with_all_that_is_in_it() {
    let Some(world) = TestWorld::start() else { return };
    let mut client = world.ready();
    let trap = "trap '' TERM; (setsid sleep 1000)& sleep 1000";
    spawn(&mut client, command(&["sh", "-c", trap]));
    spawn(&mut client, with_terminal(&["sleep", "1000"]));
    let socket = std::os::unix::net::UnixStream::connect(world.socket()).expect("connect");
    let init = unum_sys::fds::peer(&socket).expect("peer").pid;
    assert!(init > 1, "seen from outside");
    drop(socket);
    let mut client = world.connect();
    client.call(Ask::Shutdown(Shutdown { grace_ms: 100 })).expect("shutdown");
    let deadline = Instant::now() + PATIENCE;
    while std::path::Path::new(&format!("/proc/{init}")).exists() {
        assert!(Instant::now() < deadline, "the world lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}
