//! Programs on other nodes, as a person at one node sees them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use unum_tests::{Playground, cannot_run, text};

/// Longest wait for what happens soon.
const SOON: Duration = Duration::from_secs(20);

fn cluster() -> Option<Playground> {
    if cannot_run() {
        return None;
    }
    if !std::path::Path::new("/dev/fuse").exists() {
        println!("skipped: there is no /dev/fuse");
        return None;
    }
    Some(Playground::up(&["--nodes", "3"]))
}

/// `unum` with these words on a machine.
fn unum(playground: &Playground, machine: &str, words: &[&str]) -> Command {
    let words: Vec<&str> = std::iter::once("unum").chain(words.iter().copied()).collect();
    playground.on(machine, &words)
}

fn output(command: &mut Command) -> Output {
    command.output().expect("unum runs")
}

/// What a script on n2, run from n1, printed; it must succeed.
fn there(playground: &Playground, script: &str) -> String {
    let output = output(&mut unum(playground, "n1", &["run", "-n", "n2", "sh", "-c", script]));
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "it did not come: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn processes(playground: &Playground, machine: &str) -> Vec<serde_json::Value> {
    let listed = output(&mut unum(playground, machine, &["ps", "--json"]));
    serde_json::from_slice(&listed.stdout).expect("an array")
}

fn find(playground: &Playground, machine: &str, command: &str) -> Option<serde_json::Value> {
    processes(playground, machine).into_iter().find(|process| process["command"] == command)
}

fn end_of(child: Child) -> Output {
    child.wait_with_output().expect("it ends")
}

#[test]
fn programs_elsewhere_are_as_those_here() {
    let Some(playground) = cluster() else { return };
    statuses_are_the_programs(&playground);
    a_program_has_its_callers_surroundings(&playground);
    streams_end_as_pipes_do(&playground);
    programs_are_seen_and_signalled_from_everywhere(&playground);
    users_are_kept_apart(&playground);
    a_detached_program_keeps_its_words(&playground);
}

fn statuses_are_the_programs(playground: &Playground) {
    let script = "for i in 0 1 7 128 255; do unum run -n n2 -- sh -c \"exit $i\"; echo $?; done
        unum run -n n2 -- sh -c 'kill -KILL $$'; echo $?
        unum run -n n2 -- sh -c 'kill -TERM $$'; echo $?
        unum run -n n2 -- /no/such; echo $?
        unum run -n n2 -- /etc/passwd; echo $?
        unum run -n n9 -- true; echo $?
        unum run -n n2 -- unum where";
    let output = playground.sh("n1", script);
    let seen: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
    let expected = ["0", "1", "7", "128", "255", "137", "143", "127", "126", "125", "n2"];
    assert_eq!(seen, expected, "{}", text(&output.stderr));
}

fn a_program_has_its_callers_surroundings(playground: &Playground) {
    let script = "cd /unum && umask 027 && ulimit -n 333 && export A='x y' &&
        exec nice -n 3 unum run -n n2 -- sh -c \
        'pwd; umask; ulimit -n; echo $A; nice; cat /proc/self/oom_score_adj; hostname'";
    let seen = text(&playground.sh("n1", script).stdout);
    // Whoever runs the tests may be nice himself.
    let own: i32 = text(&playground.sh("n1", "nice").stdout).trim().parse().expect("a number");
    assert_eq!(seen, format!("/unum\n0027\n333\nx y\n{}\n0\nn2\n", own + 3));
    assert_eq!(
        there(playground, "nice; grep SigBlk /proc/self/status"),
        format!("{own}\nSigBlk:\t0000000000000000\n")
    );
}

fn streams_end_as_pipes_do(playground: &Playground) {
    let script = "unum run -n n2 -- yes 2>&1 | head -1
        (unum run -n n2 -- bash -c 'yes; echo $? >&2; exit 4'; echo $? >&2) 2>/tmp/told | head -1
        grep -v yes: /tmp/told
        seq 100000 | unum run -n n2 -- sha256sum; seq 100000 | sha256sum
        unum run -n n2 -- wc -c < /dev/null
        unum run -n n2 -- wc -c <&-
        seq 5 > /tmp/five; unum run -n n2 -- wc -l < /tmp/five
        yes | unum run -n n2 -- head -c 1M | wc -c";
    let seen = text(&playground.sh("n1", script).stdout);
    let lines: Vec<&str> = seen.lines().collect();
    // Only the writer is told by the closed pipe; the program goes on and ends as it likes.
    assert_eq!(lines[..lines.len() - 6], ["y", "y", "141", "4"], "{seen}");
    let [hash_there, hash_here] = lines[lines.len() - 6..lines.len() - 4] else {
        panic!("{seen}");
    };
    assert_eq!(hash_there, hash_here);
    assert_eq!(lines[lines.len() - 4..], ["0", "0", "5", "1048576"], "{seen}");
    until("`yes` ends when nobody reads", || find(playground, "n2", "yes").is_none().then_some(()));
}

fn programs_are_seen_and_signalled_from_everywhere(playground: &Playground) {
    let start = |seconds: &str| {
        let words = ["run", "-n", "n2", "sh", "-c", &format!("sleep {seconds} & wait")];
        unum(playground, "n1", &words).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let child = start("4242");
    let sleep = until("a child is listed", || find(playground, "n3", "sleep 4242"));
    assert_eq!((&sleep["node"], &sleep["user"]), (&"n2".into(), &"root".into()), "{sleep}");
    let parent = sleep["ppid"].to_string();
    let asked = output(&mut unum(playground, "n3", &["where", &parent]));
    assert_eq!(text(&asked.stdout), "n2\n");
    let waiting = unum(playground, "n3", &["wait", "--json", "--time", &parent])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    assert!(output(&mut unum(playground, "n3", &["kill", "-USR1", &parent])).status.success());
    assert_eq!(end_of(child).status.code(), Some(128 + 10));
    let waited = end_of(waiting);
    assert_eq!(waited.status.code(), Some(128 + 10));
    let ended: serde_json::Value = serde_json::from_slice(&waited.stdout).expect("an object");
    assert_eq!((&ended["signal"], &ended["lost"]), (&10.into(), &false.into()), "{ended}");
    assert!(ended["peak_bytes"].as_u64().is_some_and(|peak| peak > 100_000), "{ended}");
    assert!(text(&waited.stderr).contains("\npeak "), "{}", text(&waited.stderr));
    let sleep = sleep["pid"].to_string();
    assert!(output(&mut unum(playground, "n3", &["kill", &sleep])).status.success());

    // What `unum run` itself gets goes to its program.
    for (signal, status) in [("INT", 130), ("TERM", 143), ("QUIT", 131), ("HUP", 129)] {
        let script = format!(
            "unum run -n n2 -- sleep 77 & p=$!
             until unum ps | grep -q 'sleep 77'; do sleep 0.05; done
             kill -{signal} $p; wait $p; echo $?"
        );
        // In the background a shell without job control ignores INT and QUIT for its children.
        let script = format!("set -m; {script}");
        let seen = text(&output(&mut playground.on("n1", &["bash", "-c", &script])).stdout);
        assert_eq!(seen.trim_end().lines().last(), Some(status.to_string().as_str()), "{signal}");
    }
    // It stops and goes on with its program.
    let script = "set -m; unum run -n n2 -- sleep 81 & p=$!
        state() { until unum ps | grep 'sleep 81' | grep -q \" $1 \"; do sleep 0.05; done; }
        state S; kill -TSTP $p; state T; sleep 0.2; jobs | grep -c Stopped
        kill -CONT $p; state S; jobs | grep -c Running; kill $p; wait $p; echo $?";
    let seen = output(&mut playground.on("n1", &["timeout", "20", "bash", "-c", script]));
    assert_eq!(text(&seen.stdout), "1\n1\n143\n");
    // And when it is killed, the program is hung up.
    let script = "unum run -n n2 -- sleep 78 & p=$!
        until unum ps | grep -q 'sleep 78'; do sleep 0.05; done; kill -KILL $p; wait $p";
    playground.sh("n1", script);
    // Whenever that happens: before it is started, before `unum run` heard of it, and after.
    let script = "for ms in $(seq 0 39); do
            unum run -n n2 -- sleep 79 & p=$!; sleep 0.0$(printf %02d $ms); kill -KILL $p
        done; wait";
    playground.sh("n1", script);
    until("no orphan is left", || {
        let listed = processes(playground, "n2");
        let orphan = |process: &serde_json::Value| {
            ["sleep 77", "sleep 78", "sleep 79"].iter().any(|sleep| process["command"] == *sleep)
        };
        (!listed.iter().any(orphan)).then_some(())
    });
}

fn users_are_kept_apart(playground: &Playground) {
    let as_nobody = |words: &[&str]| {
        let words = [&["--user", "nobody", "n1", "--", "unum"], words].concat();
        playground.dev("exec", &words)
    };
    let who = text(&as_nobody(&["run", "-n", "n2", "sh", "-c", "id -un; id -G; nice"]).stdout);
    assert_eq!(who, "nobody\n65534\n0\n");
    let started = output(&mut unum(playground, "n1", &["run", "-d", "-n", "n2", "sleep", "600"]));
    let pid = text(&started.stdout).trim().to_owned();
    for words in [&["kill", &pid][..], &["kill", "-0", &pid], &["logs", &pid]] {
        let refused = as_nobody(words);
        assert!(!refused.status.success(), "{words:?} was allowed");
    }
    let mine = as_nobody(&["run", "-d", "-n", "n2", "sleep", "601"]);
    let mine = text(&mine.stdout).trim().to_owned();
    assert!(as_nobody(&["kill", &mine]).status.success());
    assert!(output(&mut unum(playground, "n3", &["kill", &pid])).status.success());
}

fn a_detached_program_keeps_its_words(playground: &Playground) {
    let script = "echo one; sleep 1; echo two >&2; exit 5";
    let started =
        output(&mut unum(playground, "n1", &["run", "-d", "-n", "n2", "sh", "-c", script]));
    let pid = text(&started.stdout).trim().to_owned();
    let followed = output(&mut unum(playground, "n3", &["logs", "-f", &pid]));
    assert_eq!(text(&followed.stdout), "one\ntwo\n");
    let waited = output(&mut unum(playground, "n3", &["wait", &pid]));
    assert_eq!(waited.status.code(), Some(5));
    let timed = output(&mut unum(playground, "n1", &["run", "--time", "-n", "n2", "true"]));
    let told = text(&timed.stderr);
    let names: Vec<&str> = told.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["real", "user", "sys", "peak"], "{told}");
}

#[test]
fn programs_and_their_streams_outlive_the_daemons() {
    let Some(playground) = cluster() else { return };
    streams_are_whole(&playground);
    a_start_waits_for_a_daemon_that_comes_up(&playground);
    a_slow_reader_loses_nothing(&playground);
    pids_are_unique(&playground);
    the_end_of_a_world_is_told(&playground);
    a_lost_node_is_told(&playground);
}

fn streams_are_whole(playground: &Playground) {
    const SIZE: usize = 48 << 20;
    let bytes: Vec<u8> =
        (0..SIZE as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
    let mut child = unum(playground, "n1", &["run", "-n", "n2", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let (mut to, mut from) =
        (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let sent = bytes.clone();
    let (tell, got) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || to.write_all(&sent));
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match from.read(&mut buffer) {
                Ok(0) | Err(_) => return all,
                Ok(count) => all.extend_from_slice(&buffer[..count]),
            }
            let _ = tell.send(all.len());
        }
    });
    // Each daemon dies twice, at a fifth of the way after the other.
    for (step, machine) in ["n2", "n1", "n2", "n1"].iter().enumerate() {
        let mark = SIZE / 5 * (step + 1);
        while got.recv_timeout(SOON * 2).expect("the stream goes on") < mark {}
        playground.must("kill-daemon", &[machine]);
    }
    let deadline = Instant::now() + SOON * 2;
    while !reader.is_finished() {
        assert!(Instant::now() < deadline, "the stream stands still");
        std::thread::sleep(Duration::from_millis(50));
    }
    writer.join().expect("no panic").expect("all was taken");
    let all = reader.join().expect("no panic");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert_eq!(all.len(), SIZE);
    assert!(all == bytes, "bytes differ");
}

fn a_start_waits_for_a_daemon_that_comes_up(playground: &Playground) {
    for machine in ["n2", "n1"] {
        playground.must("kill-daemon", &[machine]);
        let begun = output(&mut unum(playground, "n1", &["run", "-n", "n2", "true"]));
        assert!(begun.status.success(), "{}", text(&begun.stderr));
    }
}

/// A reader that stands still while the program says very many short things: they are more than the
/// daemon would hold, and none is lost.
fn a_slow_reader_loses_nothing(playground: &Playground) {
    let script = "unum run -n n2 -- bash -c 'for ((i = 0; i < 20000; i++)); do echo $i; done
' | (sleep 4; cat) | sha256sum; seq 0 19999 | sha256sum";
    let seen = text(&playground.sh("n1", script).stdout);
    let sums: Vec<&str> = seen.lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{seen}");
}

fn pids_are_unique(playground: &Playground) {
    let forks = "for i in $(seq 600); do sh -c 'echo $$ '; done";
    let children: Vec<Child> = ["n1", "n2", "n3"]
        .iter()
        .map(|node| {
            let words = ["run", "-n", node, "sh", "-c", forks];
            unum(playground, "n1", &words).stdout(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    let mut seen = BTreeSet::new();
    for child in children {
        let printed = text(&end_of(child).stdout);
        let pids: BTreeSet<u32> =
            printed.lines().map(|line| line.trim().parse().expect("a PID")).collect();
        assert_eq!(pids.len(), 600);
        for pid in pids {
            assert!(seen.insert(pid), "{pid} was used by two nodes");
        }
    }
}

fn the_end_of_a_world_is_told(playground: &Playground) {
    let child = unum(playground, "n1", &["run", "-n", "n3", "sleep", "79"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    until("it runs", || find(playground, "n1", "sleep 79"));
    let script = "exec 3>/unum/held; flock -x 3; for p in /proc/[0-9]*; do
        [ \"$(cat $p/comm)\" = unum-init ] && kill -KILL ${p#/proc/}; done; sleep 0.1";
    playground.sh("n3", script);
    let ended = end_of(child);
    assert_eq!(ended.status.code(), Some(255), "{}", text(&ended.stderr));
    until("a new world runs programs", || {
        let again = output(&mut unum(playground, "n1", &["run", "-n", "n3", "cat", "/unum/held"]));
        again.status.success().then_some(())
    });
    // What processes of the old world held is free.
    let lock = playground.sh("n1", "timeout 10 flock -x /unum/held echo locked");
    assert_eq!(text(&lock.stdout), "locked\n", "{}", text(&lock.stderr));
}

fn a_lost_node_is_told(playground: &Playground) {
    let start = |words: &[&str]| {
        unum(playground, "n1", words).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let child = start(&["run", "-n", "n2", "sleep", "80"]);
    let pid = until("it runs", || find(playground, "n1", "sleep 80"))["pid"].to_string();
    let waiting = start(&["wait", &pid]);
    playground.must("cut", &["n2"]);
    let cut = Instant::now();
    for child in [child, waiting] {
        let ended = end_of(child);
        let told = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(255), "{told}");
        assert!(told.contains("lost with its node"), "{told}");
    }
    assert!(cut.elapsed() < Duration::from_secs(15), "{:?}", cut.elapsed());
    let listed = output(&mut unum(playground, "n1", &["ps"]));
    assert!(text(&listed.stderr).contains("n2 does not answer"), "{}", text(&listed.stderr));
}
