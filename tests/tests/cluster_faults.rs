//! A cluster that is cut in two, loses its power, or is spoken to by strangers.
//!
//! `UNUM_LONG_SECONDS=90` has certificates renewed for so long instead of 14 seconds.

use std::process::Output;
use std::time::{Duration, Instant};

use unum_tests::{Playground, cannot_run, text};

/// Longer than anything here takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);

fn cannot_run_daemons() -> bool {
    let fuse = std::path::Path::new("/dev/fuse").exists();
    if !fuse {
        println!("skipped: there is no /dev/fuse");
    }
    cannot_run() || !fuse
}

fn json(playground: &Playground, machine: &str, command: &str) -> serde_json::Value {
    let output = playground.sh(machine, &format!("{command} --json"));
    assert!(output.status.success(), "{command}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON value")
}

/// What succeeds at last; gives its standard output.
fn eventually(playground: &Playground, machine: &str, script: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = playground.sh(machine, script);
        if output.status.success() {
            return text(&output.stdout);
        }
        assert!(Instant::now() < deadline, "{machine}: {script}: {}", text(&output.stderr));
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn must(playground: &Playground, machine: &str, script: &str) -> String {
    let output = playground.sh(machine, script);
    assert!(output.status.success(), "{machine}: {script}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The standard error of what must fail.
fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "it went well: {}", text(&output.stdout));
    text(&output.stderr)
}

/// The leader, and the others.
fn leader(playground: &Playground) -> (String, Vec<String>) {
    let nodes = json(playground, "n1", "unum nodes");
    let nodes = nodes.as_array().expect("an array");
    let name = |node: &serde_json::Value| node["name"].as_str().expect("a name").to_string();
    let leads = |node: &&serde_json::Value| node["leader"] == true;
    let leader = name(nodes.iter().find(leads).expect("a leader"));
    (leader.clone(), nodes.iter().map(name).filter(|other| *other != leader).collect())
}

#[test]
fn a_leader_that_is_cut_off_refuses_and_serves_nothing_stale() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "3", "--set", "file_patience=2s"]);
    must(&playground, "n1", "unum registry put key before; echo before > /unum/file");
    let (lonely, others) = leader(&playground);
    let voters = json(&playground, "n1", "unum status")["voters"].clone();
    playground.must("partition", &[&others[0], &others[1], "--", &lonely]);

    eventually(&playground, &others[0], "unum registry put key after");
    eventually(&playground, &others[1], "echo after > /unum/file");

    std::thread::scope(|scope| {
        let on_lonely = |script: &'static str| {
            let (playground, lonely) = (&playground, &lonely);
            scope.spawn(move || playground.sh(lonely, script))
        };
        let put = on_lonely("unum registry put key lost");
        let get = on_lonely("unum registry get key");
        let read = on_lonely("cat /unum/file");
        let write = on_lonely("echo lost > /unum/file");
        for call in [put, get] {
            let told = refused(&call.join().expect("no panic"));
            assert!(told.contains("no majority"), "{told}");
        }
        for call in [read, write] {
            let told = refused(&call.join().expect("no panic"));
            assert!(told.contains("timed out"), "{told}");
        }
    });
    let shown = playground.sh(&lonely, "unum nodes");
    assert!(text(&shown.stderr).contains("what this node knew last"), "{}", text(&shown.stderr));
    let status = json(&playground, &lonely, "unum status");
    assert_eq!(status["state"], "no-quorum");
    assert_eq!(status["leader"], serde_json::Value::Null, "it leads nobody");
    let shown = must(&playground, &lonely, "unum status");
    assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");

    playground.must("heal", &[]);
    for machine in ["n1", "n2", "n3"] {
        assert_eq!(eventually(&playground, machine, "unum registry get key"), "after");
        assert_eq!(eventually(&playground, machine, "cat /unum/file"), "after\n");
        let status = json(&playground, machine, "unum status");
        assert_eq!((&status["state"], &status["voters"]), (&"ready".into(), &voters));
    }
}

#[test]
fn what_was_synced_is_there_after_a_power_cut_of_all() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "3"]);
    must(&playground, "n1", "unum registry put key kept");
    must(&playground, "n2", "echo kept > /unum/file && sync /unum/file");
    playground.must("cut", &["n1", "n2", "n3"]);
    playground.must("boot", &["n1", "n2", "n3"]);
    for machine in ["n1", "n2", "n3"] {
        assert_eq!(eventually(&playground, machine, "unum registry get key"), "kept");
        assert_eq!(eventually(&playground, machine, "cat /unum/file"), "kept\n");
    }
}

#[test]
fn a_machine_belongs_to_its_cluster_from_the_moment_it_was_told_so() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "1"]);
    playground.must("cut", &["n1"]);
    playground.must("boot", &["n1"]);
    eventually(&playground, "n1", "unum status | grep -q 'state *ready'");
    let status = json(&playground, "n1", "unum status");
    assert!(status["cluster"].is_string(), "{status}");
    let cluster = status["cluster"].clone();
    playground.must("kill-daemon", &["n1"]);
    eventually(&playground, "n1", "unum status | grep -q 'state *ready'");
    assert_eq!(json(&playground, "n1", "unum status")["cluster"], cluster);
}

#[test]
fn only_a_good_token_lets_a_machine_in() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "3"]);
    let token = |machine: &str, options: &str| -> (String, String) {
        let made = json(&playground, machine, &format!("unum token create {options}"));
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_string();
        (text(&made["token"]), text(&made["addresses"][0]))
    };
    let (_, address) = token("n1", "");
    let (expired, _) = token("n1", "--ttl 1s");
    let made = Instant::now();
    must(&playground, "n3", "unum leave");
    must(&playground, "n3", "unum up");
    let (foreign, _) = token("n3", "");
    must(&playground, "n3", "unum leave --force || unum leave");
    let join = |token: &str| playground.sh("n3", &format!("unum join {token} {address}"));

    let (good, _) = token("n1", "");
    let last = if good.ends_with('a') { 'b' } else { 'a' };
    let wrong = format!("{}{last}", &good[..good.len() - 1]);
    // One second, and some for clocks that the registry's time comes from.
    std::thread::sleep(Duration::from_millis(1500).saturating_sub(made.elapsed()));
    for bad in [&wrong, &expired, &foreign] {
        let told = refused(&join(bad));
        assert!(told.contains("token") || told.contains("authority"), "{told}");
        assert!(!told.contains("panicked"), "{told}");
    }
    assert_eq!(json(&playground, "n1", "unum nodes").as_array().map(Vec::len), Some(2));
    let joined = join(&good);
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    must(&playground, "n3", "unum leave");
    let told = refused(&join(&good));
    assert!(told.contains("used"), "{told}");
}

#[test]
fn strangers_on_the_port_harm_nobody() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "3"]);
    let pid = json(&playground, "n1", "unum status")["daemon_pid"].clone();
    let memory = || -> u64 {
        let script = format!("awk '/VmRSS/ {{ print $2 }}' /proc/{pid}/status");
        must(&playground, "n1", &script).trim().parse().expect("a number of KiB")
    };
    let before = memory();
    let port = "/dev/tcp/10.117.0.1/7117";
    let strange = |script: String| playground.on("n2", &["bash", "-c", &script]).output().unwrap();
    strange(format!("exec 3<>{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; timeout 5 cat <&3"));
    strange(format!("head -c 8000000 /dev/urandom > {port}"));
    strange(format!("for i in $(seq 50); do head -c 2000 /dev/urandom > {port}; done"));
    // Half-open ones, and one that sends a byte now and then, while work goes on.
    std::thread::scope(|scope| {
        let hold = format!(
            "for i in $(seq 200); do exec {{f}}<>{port}; done; \
             for i in 1 2 3 4 5 6; do printf '\\x16' >&$f; sleep 0.5; done"
        );
        let holding = scope.spawn(|| strange(hold));
        std::thread::sleep(Duration::from_secs(1));
        for machine in ["n1", "n2", "n3"] {
            must(&playground, machine, "unum registry put key value && echo x > /unum/file");
        }
        holding.join().expect("no panic");
    });
    let grown = memory().saturating_sub(before);
    assert!(grown < 64 << 10, "the daemon grew by {grown} KiB");
    assert_eq!(json(&playground, "n1", "unum status")["daemon_pid"], pid);
    let nodes = json(&playground, "n3", "unum nodes");
    let alive = |node: &serde_json::Value| node["state"] == "alive";
    assert!(nodes.as_array().expect("an array").iter().all(alive), "{nodes}");
    let logged = playground.must("logs", &["n1"]);
    let told = logged.lines().filter(|line| line.contains("10.117.0.2")).count();
    assert!((1..60).contains(&told), "{told} lines");
}

#[test]
fn calls_go_on_while_certificates_are_renewed() {
    if cannot_run_daemons() {
        return;
    }
    let asked = std::env::var("UNUM_LONG_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds: u64 = asked.unwrap_or(14);
    let playground = Playground::up(&["--nodes", "3", "--set", "certificate_lifetime=9s"]);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for (machine, script) in [
            ("n1", "echo line > /unum/one && cat /unum/one"),
            ("n2", "unum registry put key value && unum registry get key"),
            ("n3", "unum run -n n1 -- true"),
        ] {
            let playground = &playground;
            scope.spawn(move || {
                while Instant::now() < end {
                    must(playground, machine, script);
                }
            });
        }
    });
    let logged: String = ["n1", "n2", "n3"].map(|n| playground.must("logs", &[n])).concat();
    let renewed = logged.matches("renewed a certificate").count() as u64;
    assert!(renewed >= 3 * (seconds / 9), "{renewed} renewals");
}
