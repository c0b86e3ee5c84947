//! A real cluster of three machines, used as a person would.

use std::io::Write;
use std::process::Stdio;

use unum_tests::{Census, Playground, cannot_run, text};

fn cannot_run_daemons() -> bool {
    if cannot_run() {
        return true;
    }
    let fuse = std::path::Path::new("/dev/fuse").exists();
    if !fuse {
        println!("skipped: there is no /dev/fuse");
    }
    !fuse
}

fn unum(playground: &Playground, machine: &str, words: &[&str]) -> std::process::Output {
    let words: Vec<&str> = std::iter::once("unum").chain(words.iter().copied()).collect();
    playground.on(machine, &words).output().expect("unum runs")
}

fn json(playground: &Playground, machine: &str, words: &[&str]) -> serde_json::Value {
    let output = unum(playground, machine, &[words, &["--json"]].concat());
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON value")
}

#[test]
fn three_machines_form_one_cluster_and_leave_nothing_behind() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "3"]);
    let name = playground.name().to_string();
    for machine in ["n1", "n2", "n3"] {
        let nodes = json(&playground, machine, &["nodes"]);
        let names: Vec<&str> =
            nodes.as_array().expect("an array").iter().filter_map(|n| n["name"].as_str()).collect();
        assert_eq!(names, ["n1", "n2", "n3"]);
    }
    let status = json(&playground, "n2", &["status"]);
    assert_eq!(
        (&status["state"], &status["name"], &status["voters"], &status["losses_survivable"]),
        (&"ready".into(), &"n2".into(), &3.into(), &1.into())
    );
    for words in [&["nodes"][..], &["ps"], &["status"], &["token", "list"]] {
        let shown = text(&unum(&playground, "n1", words).stdout);
        assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    }
    let written = playground.sh("n1", "echo hello > /unum/file");
    assert!(written.status.success(), "{}", text(&written.stderr));
    assert_eq!(text(&playground.sh("n3", "cat /unum/file").stdout), "hello\n");
    drop(playground);
    let interfaces = Census::of(&name).interfaces;
    assert_eq!(Census::of(&name), Census { interfaces, ..Census::default() });
}

#[test]
fn programs_run_elsewhere_as_if_here() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "3"]);
    let run =
        |words: &[&str]| unum(&playground, "n1", &[&["run", "-n", "n2", "--"], words].concat());
    assert_eq!(text(&run(&["hostname"]).stdout), "n2\n");
    assert_eq!(run(&["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(run(&["no-such-program"]).status.code(), Some(127));

    const SIZE: usize = 8 << 20;
    let content: Vec<u8> = (0..SIZE).map(|i| ((i * 31) >> 3) as u8).collect();
    let mut child = playground
        .on("n1", &["unum", "run", "-n", "n2", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unum runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    let sent = content.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("all was taken");
    assert!(output.stdout == content, "{} of {SIZE} bytes came back", output.stdout.len());
}

#[test]
fn a_running_program_survives_the_daemons_on_both_sides() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "3"]);
    let count = "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.2; done; exit 9";
    let child = playground
        .on("n1", &["unum", "run", "-n", "n2", "--", "sh", "-c", count])
        .stdout(Stdio::piped())
        .spawn()
        .expect("unum runs");
    std::thread::sleep(std::time::Duration::from_millis(400));
    playground.must("kill-daemon", &["n1"]);
    std::thread::sleep(std::time::Duration::from_millis(400));
    playground.must("kill-daemon", &["n2"]);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(text(&output.stdout), "1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    assert_eq!(output.status.code(), Some(9));
}

#[test]
fn detached_programs_are_listed_signalled_waited_for_and_logged() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "2"]);
    let script = "echo out; echo err >&2; exec sleep 1000";
    let words = ["run", "-d", "-n", "n2", "--", "sh", "-c", script];
    let started = unum(&playground, "n1", &words);
    let pid = text(&started.stdout).trim().to_string();
    let number: u32 = pid.parse().expect("a process ID");
    assert_eq!(text(&unum(&playground, "n1", &["where", &pid]).stdout), "n2\n");
    let listed = json(&playground, "n1", &["ps"]);
    let found = listed.as_array().expect("an array").iter().find(|p| p["pid"] == number);
    assert_eq!(found.expect("it is listed")["node"], "n2");
    assert!(unum(&playground, "n1", &["kill", "-TERM", &pid]).status.success());
    assert_eq!(unum(&playground, "n1", &["wait", &pid]).status.code(), Some(143));
    assert_eq!(text(&unum(&playground, "n1", &["logs", &pid]).stdout), "out\nerr\n");
}

#[test]
fn a_synced_file_outlives_the_power_of_any_one_machine() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "3"]);
    for (round, victim) in ["n1", "n2", "n3"].into_iter().enumerate() {
        let witness = if victim == "n1" { "n2" } else { "n1" };
        let write = format!("echo {round} > /unum/{victim} && sync /unum/{victim}");
        assert!(playground.sh(victim, &write).status.success());
        playground.must("cut", &[victim]);
        let read = playground.sh(witness, &format!("timeout 20 cat /unum/{victim}"));
        assert_eq!(text(&read.stdout), format!("{round}\n"), "{}", text(&read.stderr));
        playground.must("boot", &[victim]);
        let back = format!(
            "for i in $(seq 200); do [ -e /unum/{victim} ] && exec cat /unum/{victim}; sleep 0.1; done"
        );
        assert_eq!(text(&playground.sh(victim, &back).stdout), format!("{round}\n"));
    }
}
