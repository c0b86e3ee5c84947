//! A cluster that grows, shrinks, loses machines for good and has them replaced.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use unum_tests::{Playground, cannot_run_daemons, text};

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(String::from).collect()
}

/// The machines other than these.
fn others<'a>(all: &[&'a str], without: &[&str]) -> Vec<&'a str> {
    all.iter().copied().filter(|name| !without.contains(name)).collect()
}

/// Voters, those that live, and how many losses are survived.
fn strength(status: &Value) -> (u64, u64, u64) {
    let count = |field: &str| status[field].as_u64().expect("a number");
    (count("voters"), count("voters_alive"), count("losses_survivable"))
}

/// A status that shows all nodes alive and this strength.
fn is_strong(nodes: u64, voters: u64, losses: u64) -> impl Fn(&Value) -> bool {
    move |status| status["nodes_alive"] == nodes && strength(status) == (voters, voters, losses)
}

/// Some files of `MIB` mebibytes each that no store can shrink, and their sums.
fn write_files(playground: &Playground, machine: &str, names: &[&str]) -> String {
    for name in names {
        let write =
            format!("head -c {FILE_BYTES} /dev/urandom > /unum/{name} && sync /unum/{name}");
        playground.does(machine, &write);
    }
    sums(playground, machine)
}

const FILE_BYTES: u64 = 3 << 20;

fn sums(playground: &Playground, machine: &str) -> String {
    playground.does_at_last(machine, "cd /unum && timeout 20 sha256sum $(ls | sort)")
}

#[test]
fn voters_grow_with_the_cluster_and_are_replaced_when_lost() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::machines(6, &[]);
    let all = ["n1", "n2", "n3", "n4", "n5", "n6"];
    playground.found("n1");
    let expected = [(1, 1, 0), (2, 1, 0), (3, 3, 1), (4, 3, 1), (5, 5, 2), (6, 5, 2)];
    for (nodes, voters, losses) in expected {
        if nodes > 1 {
            playground.join(all[nodes as usize - 1], "n1", "");
        }
        let strong = is_strong(nodes, voters, losses);
        let status = playground.status_when("n1", &format!("{voters} voters"), &strong);
        let told = status["losses_reason"].as_str().expect("a sentence");
        let promised = match losses {
            0 => "survives no loss",
            1 => "survives the loss of 1 node",
            _ => "survives the loss of 2 nodes",
        };
        assert!(told.starts_with(promised), "{told}");
        // The newest node says the same of the cluster.
        playground.status_when(all[nodes as usize - 1], "the same", strong);
    }
    let shown = playground.does("n6", "unum status");
    let line = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(line.contains("survives the loss of 2 nodes: 5 of 5 voters are alive"), "{shown}");
    assert!(line.contains("because each further one delays every write"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    let spare =
        others(&all, &playground.voters("n1").iter().map(String::as_str).collect::<Vec<_>>());
    let [spare] = spare[..] else { panic!("not one spare node: {spare:?}") };

    // A voter dies: at once the cluster says that it survives less, and then the spare one votes.
    let victim = if playground.leader("n1") == "n5" { "n4" } else { "n5" };
    let sums = write_files(&playground, "n1", &["a", "b", "c", "d"]);
    playground.must("cut", &[victim]);
    let weaker = playground.status_when("n1", "one voter less", |status| {
        strength(status) == (5, 4, 1) && status["nodes_alive"] == 5
    });
    let told = weaker["losses_reason"].as_str().expect("a sentence");
    assert!(told.contains("bring the dead voter back"), "{told}");
    playground.status_when("n1", "a new voter", |status| strength(status) == (5, 5, 2));
    let voters = playground.voters("n1");
    assert!(voters.contains(spare) && !voters.contains(victim), "{voters:?}");

    // It is gone for good: what it held is copied, and it is not let in again.
    playground.does("n1", &format!("unum remove {victim}"));
    let left = others(&all, &[victim]);
    assert_eq!(playground.nodes_that("n1", |_| true), left.iter().map(|n| n.to_string()).collect());
    playground.status_when("n1", "whole files", |status| status["chunks_degraded"] == 0);
    assert_eq!(playground.status_when("n1", "5 voters", is_strong(5, 5, 2))["nodes"], 5);
    let copies: u64 = left.iter().map(|machine| playground.chunk_bytes(machine)).sum();
    assert!(copies >= 3 * 4 * FILE_BYTES, "{copies} bytes are no three copies");
    let pair = [left[2], left[3]];
    playground.must("cut", &pair);
    assert_eq!(self::sums(&playground, left[4]), sums, "without {pair:?}");
    pair.iter().for_each(|machine| playground.boot(machine));
    playground.status_when(left[4], "all back", is_strong(5, 5, 2));

    playground.must("boot", &[victim]);
    let status = playground.status_when(victim, "that it was removed", |status| {
        status["warnings"].to_string().contains("unum join")
    });
    let told = status["warnings"].to_string();
    assert!(told.contains("removed") && told.contains("unum leave --force"), "{told}");
    playground.is_refused(victim, "timeout 5 unum registry put key value");
    assert_eq!(playground.nodes_that(left[0], |_| true).len(), 5);
    playground.does(victim, "unum leave --force");
    playground.join(victim, left[0], "");
    playground.status_when(victim, "six nodes", is_strong(6, 5, 2));
    assert_eq!(self::sums(&playground, victim), sums);
}

#[test]
fn who_leaves_takes_nothing_with_him() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "4"]);
    let all = ["n1", "n2", "n3", "n4"];
    let sums = write_files(&playground, "n4", &["a", "b", "c", "d"]);
    let voters = playground.voters("n1");
    let learner = all.into_iter().find(|name| !voters.contains(*name)).expect("a learner");
    let leave = |all: &[&'static str], leaver: &str, stronger: (u64, u64, u64)| {
        let ready = format!("/unum/.ready-{leaver}");
        let trap = format!("trap 'echo {leaver} > /unum/.saved; exit' TERM");
        let save = format!("{trap}; > {ready}; sleep 1000 & wait");
        let run = format!("unum run -d -n {leaver} -- sh -c \"{save}\"");
        let left = others(all, &[leaver]);
        let pid = playground.does(left[0], &run);
        // Before its trap is set the program just ends.
        playground.does_at_last(left[0], &format!("rm {ready}"));
        playground.does(leaver, "unum leave");
        assert_eq!(playground.json(leaver, "status")["state"], "solitary");
        assert!(!playground.tries(leaver, "pgrep -x sleep").status.success(), "{pid} goes on");
        assert!(!playground.tries(leaver, "grep ' /unum ' /proc/mounts").status.success());
        let told = playground.is_refused(leaver, "unum nodes");
        assert!(told.contains("belongs to no cluster"), "{told}");
        for machine in &left {
            let strong = is_strong(stronger.0, stronger.1, stronger.2);
            playground.status_when(machine, "new voters and whole files", |status| {
                strong(status) && status["chunks_degraded"] == 0
            });
            assert_eq!(self::sums(&playground, machine), sums);
            assert!(playground.chunk_bytes(machine) >= 4 * FILE_BYTES, "{machine} lacks copies");
            let told = playground.tries(machine, &format!("timeout 10 unum wait {}", pid.trim()));
            assert!(!told.status.success() && told.status.code() != Some(124), "{told:?}");
        }
        // Its programs could save what they had.
        assert_eq!(playground.does(left[0], "cat /unum/.saved"), format!("{leaver}\n"));
        let nodes = playground.nodes_that(left[0], |_| true);
        assert_eq!(nodes, left.iter().map(|name| name.to_string()).collect());
        left
    };
    let back = |machine: &str| {
        playground.join(machine, others(&all, &[machine])[0], "");
        playground.status_when(machine, "four nodes", is_strong(4, 3, 1));
        assert_eq!(self::sums(&playground, machine), sums);
    };

    leave(&all, learner, (3, 3, 1));
    back(learner);
    let left = leave(&all, &playground.leader("n1"), (3, 3, 1));
    let leader = playground.leader(left[0]);
    let voter = others(&left, &[&leader])[0];
    let left = leave(&left, voter, (2, 1, 0));
    // What was on those that left is on the last one, too, in the end.
    let [stays, goes] = left[..] else { panic!("not two: {left:?}") };
    playground.does(goes, "unum leave");
    assert_eq!(self::sums(&playground, stays), sums);
    let told = playground.is_refused(stays, "unum leave");
    assert!(told.contains("last node") && told.contains("--force"), "{told}");
    assert_eq!(self::sums(&playground, stays), sums);
}

#[test]
fn the_only_copy_of_something_does_not_go_unnoticed() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "4", "--set", "replicas=1"]);
    let all = ["n1", "n2", "n3", "n4"];
    let voters = playground.voters("n1");
    let leaver = all.into_iter().find(|name| voters.contains(*name) && *name != "n1");
    let leaver = leaver.expect("a voter");
    let dead = others(&all, &[leaver, "n1"])[0];
    // Where the chunks of a file go is as good as chance.
    let mut sums = String::new();
    for number in 0..40 {
        sums = write_files(&playground, "n1", &[&format!("f{number}")]);
        if [leaver, dead].iter().all(|name| playground.chunk_bytes(name) > FILE_BYTES) {
            break;
        }
    }
    // Who leaves hands it over.
    assert!(playground.chunk_bytes(leaver) > FILE_BYTES, "{leaver} holds nothing");
    playground.does(leaver, "unum leave");
    for machine in others(&all, &[leaver]) {
        assert_eq!(self::sums(&playground, machine), sums);
    }
    // Who is dead cannot: he is not removed by mistake.
    assert!(playground.chunk_bytes(dead) > FILE_BYTES, "{dead} holds nothing");
    playground.must("cut", &[dead]);
    playground.status_when("n1", "a death", |status| status["nodes_alive"] == 2);
    let told = playground.is_refused("n1", &format!("unum remove {dead}"));
    assert!(told.contains("only copy") && told.contains("--force"), "{told}");
    playground.boot(dead);
    assert_eq!(self::sums(&playground, dead), sums);
}

#[test]
fn two_nodes_and_a_witness_survive_the_loss_of_any_one() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::machines(3, &[]);
    let all = ["n1", "n2", "n3"];
    playground.found("n1");
    playground.join("n2", "n1", "");
    playground.join("n3", "n1", "--role witness");
    playground.status_when("n1", "three voters", is_strong(3, 3, 1));
    let witnesses = playground.nodes_that("n2", |node| node["role"] == "witness");
    assert_eq!(witnesses, names(["n3"]));

    // A witness holds no content and runs no programs.
    for number in 0..8 {
        playground
            .does("n1", &format!("unum run -- true && head -c 1M /dev/urandom > /unum/{number}"));
    }
    assert!(playground.chunk_bytes("n3") < 1 << 20, "the witness holds content");
    let told = playground.is_refused("n1", "unum run -n n3 -- true");
    assert!(told.contains("witness"), "{told}");

    for victim in all {
        let left = others(&all, &[victim]);
        let put = |machine: &str, value: &str| {
            let put = format!("timeout 10 unum registry put key {value}");
            playground.does_at_last(machine, &put);
        };
        let workers = others(&left, &["n3"]);
        playground.does(workers[0], &format!("echo before > /unum/{victim}; sync /unum/{victim}"));
        playground.must("cut", &[victim]);
        for machine in &left {
            put(machine, &format!("{victim}-{machine}"));
        }
        for machine in &workers {
            let read = format!("timeout 10 cat /unum/{victim}");
            assert_eq!(playground.does_at_last(machine, &read), "before\n");
            playground
                .does_at_last(machine, &format!("timeout 10 sh -c 'echo {machine} > /unum/x'"));
        }
        let weaker = |status: &Value| strength(status) == (3, 2, 0);
        playground.status_when(left[0], "the loss", weaker);
        playground.must("boot", &[victim]);
        playground.status_when(left[1], "all back", is_strong(3, 3, 1));
        playground.status_when(victim, "all back", is_strong(3, 3, 1));
    }
}

/// With a witness the loss of either node is survived, so content is on both before it counts as
/// written, however slow one of them is.
#[test]
fn what_is_written_beside_a_witness_is_on_both_nodes() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::machines(3, &["--set", "gossip_suspicion=4s"]);
    playground.found("n1");
    playground.join("n3", "n1", "--role witness");
    playground.join("n2", "n1", "");
    playground.status_when("n1", "three voters", is_strong(3, 3, 1));
    playground.does("n1", "head -c 1M /dev/urandom > /unum/file");
    let pid = playground.json("n2", "status")["daemon_pid"].clone();
    playground.does("n2", &format!("kill -STOP {pid}"));
    std::thread::scope(|scope| {
        let write = scope.spawn(|| {
            playground.does(
                "n1",
                "head -c 1M /dev/urandom > /unum/file && sync /unum/file; sha256sum /unum/file",
            )
        });
        std::thread::sleep(Duration::from_millis(400));
        playground.does("n2", &format!("kill -CONT {pid}"));
        let written = write.join().expect("no panic");
        playground.must("cut", &["n1"]);
        let read = playground.does_at_last("n2", "timeout 10 sha256sum /unum/file");
        assert_eq!(read, written);
    });
}

/// A machine with a disk of its own for the daemon, lost with its power.
fn give_small_disk(playground: &Playground, machine: &str) {
    playground.does(machine, "mount -t tmpfs -o size=256m none /var/lib/unum");
}

const FILL: &str = "head -c 400M /dev/zero > /var/lib/unum/ballast 2>/dev/null; \
                    test -s /var/lib/unum/ballast";

#[test]
fn a_full_disk_stops_what_needs_it_and_nothing_else() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::machines(3, &["--set", "file_patience=4s"]);
    let all = ["n1", "n2", "n3"];
    all.iter().for_each(|machine| give_small_disk(&playground, machine));
    playground.found("n1");
    playground.join("n2", "n1", "");
    playground.join("n3", "n1", "");
    playground.status_when("n1", "three voters", is_strong(3, 3, 1));
    let mut sums = write_files(&playground, "n1", &["a", "b"]);
    playground.does("n1", "unum registry put key before");

    // A follower's disk: the others go on, and nothing is lost.
    let leader = playground.leader("n1");
    let followers = others(&all, &[&leader]);
    let full = followers[0];
    playground.does(full, FILL);
    playground.status_when(full, "a full disk", says_full);
    for machine in all {
        playground.does(machine, &format!("unum registry put key {machine}"));
        playground.does(machine, &format!("echo {machine} > /unum/.small && sync /unum/.small"));
        assert_eq!(playground.does(machine, "cat /unum/.small"), format!("{machine}\n"));
        sums = write_files(&playground, machine, &[machine]);
    }
    playground.does(full, "rm /var/lib/unum/ballast");
    playground.status_when(full, "room", |status| !says_full(status));
    assert_eq!(self::sums(&playground, full), sums);

    // The leader's: changes are refused clearly, reads go on.
    let leader = playground.leader("n1");
    playground.does(&leader, FILL);
    playground.status_when(&leader, "a full disk", says_full);
    for machine in all {
        let told = playground.is_refused(machine, "unum registry put key lost");
        assert!(told.contains("disk is full") && told.contains("room"), "{told}");
        let told = playground.is_refused(machine, "echo lost > /unum/lost");
        assert!(told.contains("No space left"), "{told}");
        assert_eq!(playground.does(machine, "unum registry get key"), "n3");
        assert_eq!(self::sums(&playground, machine), sums);
    }
    playground.does(&leader, "rm /var/lib/unum/ballast");
    for machine in all {
        playground.does_at_last(machine, "unum registry put key after");
        playground.does_at_last(machine, &format!("echo {machine} > /unum/.small"));
    }

    // The disks of all, filled by content: what was acknowledged is there.
    let leave_little = "room=$(df -k --output=avail /var/lib/unum | tail -1); \
                        head -c $((room - 120 * 1024))K /dev/zero > /var/lib/unum/ballast";
    all.iter().for_each(|machine| drop(playground.tries(machine, leave_little)));
    let mut kept = Vec::new();
    let told = loop {
        let name = format!(".big{}", kept.len());
        let write = format!("head -c 8M /dev/urandom > /unum/{name} && sha256sum /unum/{name}");
        let output = playground.tries("n2", &write);
        match output.status.success() {
            true => kept.push(text(&output.stdout)),
            false => break text(&output.stderr),
        }
        assert!(kept.len() < 64, "it never gets full");
    };
    assert!(told.contains("No space left"), "{told}");
    assert!(!kept.is_empty(), "there was no room to begin with");
    let list = kept.concat();
    let check = |machine: &str| {
        playground
            .does(machine, &format!("printf '%s' '{list}' | timeout 30 sha256sum -c --quiet"));
        assert_eq!(self::sums(&playground, machine), sums);
    };
    all.iter().for_each(|machine| check(machine));
    let state = |machine: &str| playground.json(machine, "status")["state"].clone();
    all.iter().for_each(|machine| assert_eq!(state(machine), "ready"));
}

fn says_full(status: &Value) -> bool {
    status["warnings"].to_string().contains("data directory is full")
}

#[test]
fn no_call_drops_while_certificates_are_renewed_ten_times() {
    if cannot_run_daemons() {
        return;
    }
    const LIFETIME: Duration = Duration::from_secs(3);
    let playground = Playground::up(&["--nodes", "4", "--set", "certificate_lifetime=3s"]);
    let all = ["n1", "n2", "n3", "n4"];
    let voters = playground.voters("n1");
    let learner = all.into_iter().find(|name| !voters.contains(*name)).expect("a learner");
    let leader = playground.leader("n1");
    let voter = voters.iter().find(|name| **name != leader).expect("a voter").as_str();

    // One program's stream and many calls, for ten renewals at two thirds of each life.
    let renewals = |machine: &str| {
        let logged = all.map(|name| playground.must("logs", &[name])).concat();
        logged.matches(&format!("name=\"{machine}\"")).count()
    };
    let count = "for i in $(seq 1 200); do echo $i; sleep 0.1; done";
    let expected: String = (1..=200).map(|number| format!("{number}\n")).collect();
    std::thread::scope(|scope| {
        let stream = scope
            .spawn(|| playground.does(&leader, &format!("unum run -n {voter} -- sh -c '{count}'")));
        let puts: Vec<_> = all
            .iter()
            .map(|machine| {
                let put = "for i in $(seq 1 200); do unum registry put key-$(hostname) $i >/dev/null || exit 1; sleep 0.08; done";
                scope.spawn(|| playground.does(machine, put))
            })
            .collect();
        assert_eq!(stream.join().expect("no panic"), expected);
        puts.into_iter().for_each(|put| drop(put.join().expect("no panic")));
    });
    for machine in all {
        let renewed = renewals(machine);
        assert!(renewed >= 10, "{machine} renewed its certificate {renewed} times");
    }

    // A voter that was off for longer comes back by itself; any other says what is to be done.
    playground.must("cut", &[voter, learner]);
    std::thread::sleep(LIFETIME + Duration::from_secs(1));
    playground.must("boot", &[voter, learner]);
    playground.status_when(voter, "that it is back", |status| {
        strength(status) == (3, 3, 1) && status["warnings"].to_string().find("expired").is_none()
    });
    playground.does_at_last(voter, "unum registry put key back && echo back > /unum/file");
    let status = playground.status_when(learner, "that it has to join again", |status| {
        status["warnings"].to_string().contains("unum join")
    });
    let told = status["warnings"].to_string();
    assert!(told.contains(&format!("unum remove {learner}")), "{told}");
    assert!(told.contains("unum leave --force"), "{told}");
    assert!(!told.contains("was removed"), "{told}");
    assert!(playground.must("logs", &[learner]).contains("its certificate has expired"));
    playground.does(voter, &format!("unum remove {learner}"));
    playground.does(learner, "unum leave --force");
    playground.join(learner, voter, "");
    assert_eq!(playground.does_at_last(learner, "cat /unum/file"), "back\n");
}

#[test]
fn what_a_dead_node_held_is_copied_after_a_while() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&["--nodes", "4", "--set", "repair_after=2s"]);
    let all = ["n1", "n2", "n3", "n4"];
    let names: Vec<String> = (0..6).map(|number| format!("f{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let sums = write_files(&playground, "n1", &names);
    let voters = playground.voters("n1");
    let lost = all.into_iter().find(|name| !voters.contains(*name)).expect("a learner");
    assert!(playground.chunk_bytes(lost) > FILE_BYTES, "{lost} holds nothing");
    playground.must("cut", &[lost]);
    let left = others(&all, &[lost]);
    playground.status_when(left[0], "what it lacks", |status| {
        status["nodes_alive"] == 3 && status["chunks_degraded"] != 0
    });
    let shown = playground.does(left[0], "unum status");
    assert!(shown.contains("chunks lack replicas"), "{shown}");
    for machine in &left {
        playground.status_when(machine, "whole files", |status| status["chunks_degraded"] == 0);
    }
    // All is on each of the three that are left: any one of them has it without the other two.
    for pair in [[0, 1], [1, 2]] {
        let reader = left[3 - pair[0] - pair[1]];
        let [first, second] = pair.map(|index| left[index]);
        playground.must("cut", &[first]);
        assert_eq!(self::sums(&playground, reader), sums, "without {first}");
        assert_eq!(self::sums(&playground, second), sums, "without {first}");
        playground.boot(first);
        playground.status_when(first, "three nodes", |status| status["nodes_alive"] == 3);
    }
    playground.boot(lost);
    playground.status_when(lost, "all back", is_strong(4, 3, 1));
    assert_eq!(self::sums(&playground, lost), sums);
}
