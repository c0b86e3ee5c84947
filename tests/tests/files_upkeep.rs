//! What happens to the contents of files after they are stored: lost replicas are made anew, rot is
//! never served and always mended, chunks move to nodes that join, garbage goes, and fsck finds what
//! is wrong.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use unum_node::store::{ChunkOptions, ChunkStore, RealDisk};
use unum_proto::ids::ChunkId;
use unum_tests::{Playground, cannot_run_daemons, text, word};

const MIB: u64 = 1 << 20;

/// Files of random bytes, `mib` mebibytes and as many chunks each, with all of their replicas.
fn write_files(playground: &Playground, machine: &str, count: u32, mib: u64) -> String {
    let write = "dd if=/dev/urandom iflag=fullblock bs=1M conv=fsync status=none";
    let script =
        format!("for i in $(seq {count}); do {write} of=/unum/f$i count={mib} || exit; done");
    playground.does(machine, &script);
    is_clean(playground, machine, "");
    sums(playground, machine)
}

fn sums(playground: &Playground, machine: &str) -> String {
    playground.does(machine, "cd /unum && sha256sum f*")
}

/// The exit status of `unum fsck` and what it found.
fn fsck(playground: &Playground, machine: &str, options: &str) -> (i32, Value) {
    let output = playground.tries(machine, &format!("unum fsck --json {options}"));
    let shown = serde_json::from_slice(&output.stdout);
    let shown: Value = shown.unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    (output.status.code().expect("it ended by itself"), shown)
}

fn is_clean(playground: &Playground, machine: &str, options: &str) -> Value {
    let (exit, shown) = fsck(playground, machine, options);
    assert_eq!((exit, &shown["clean"]), (0, &Value::Bool(true)), "{shown:#}");
    shown
}

fn clean_at_last(playground: &Playground, machine: &str, options: &str) -> Value {
    let command = format!("fsck {options}");
    playground.json_when(machine, &command, "that all is clean", |shown| shown["clean"] == true)
}

fn kinds(report: &Value) -> BTreeSet<String> {
    let findings = report["findings"].as_array().expect("an array");
    findings.iter().map(|finding| word(&finding["kind"])).collect()
}

fn segments(playground: &Playground, machine: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(playground.disk(machine).join("chunks")).expect("a store");
    entries
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "chunks"))
        .collect()
}

/// Flips a bit every `step` bytes of a machine's store; tells how many.
fn flip_bits(playground: &Playground, machine: &str, from: u64, step: u64) -> u64 {
    let mut flipped = 0;
    for path in segments(playground, machine) {
        let file = std::fs::File::options().read(true).write(true).open(path).expect("a segment");
        let end = file.metadata().expect("a length").len();
        for at in (from..end).step_by(step as usize) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("a byte");
            file.write_all_at(&[byte[0] ^ 4], at).expect("a byte");
            flipped += 1;
        }
    }
    flipped
}

/// Flips one bit of each copy of these bytes in a machine's store.
fn flip_in(playground: &Playground, machine: &str, marker: &[u8]) -> usize {
    let mut flipped = 0;
    for path in segments(playground, machine) {
        let bytes = std::fs::read(&path).expect("a segment");
        let file = std::fs::File::options().write(true).open(path).expect("a segment");
        for at in 0..bytes.len().saturating_sub(marker.len()) {
            if bytes[at..].starts_with(marker) {
                file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("a byte");
                flipped += 1;
            }
        }
    }
    flipped
}

/// Changes a setting of one machine and starts its daemon anew.
fn set_on(playground: &Playground, machine: &str, key: &str, value: &str) {
    let file = "/etc/unum/unum.toml";
    playground
        .does(machine, &format!("sed -i '/^{key} /d' {file}; echo '{key} = {value}' >> {file}"));
    playground.must("kill-daemon", &[machine]);
    playground.status_when(machine, "a new daemon", |status| status["state"] == "ready");
}

/// A machine's store while its power is off.
fn with_store(playground: &Playground, machine: &str, work: impl FnOnce(&ChunkStore)) {
    let disk = RealDisk::open(playground.disk(machine).join("chunks")).expect("a directory");
    let options = ChunkOptions::default();
    let (store, damage) = ChunkStore::open(Arc::new(disk), options).expect("a store");
    assert_eq!(damage, []);
    work(&store);
}

fn put(store: &ChunkStore, id: ChunkId, content: &'static [u8]) {
    store.put(id, content.into(), &blake3::hash(content)).expect("room");
}

#[test]
fn two_of_five_nodes_are_lost_for_good() {
    if cannot_run_daemons() {
        return;
    }
    let settings = ["repair_after=8s", "repair_rate=1500K"];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    let playground = Playground::up(&[&["--nodes", "5"][..], &settings].concat());
    let written = write_files(&playground, "n1", 20, 1);
    is_clean(&playground, "n5", "");
    playground.must("cut", &["n3", "n5"]);
    assert_eq!(sums(&playground, "n1"), written);
    playground.status_when("n2", "two dead nodes", |status| {
        status["nodes_alive"] == 3 && status["chunks_degraded"].as_u64() > Some(0)
    });
    let (exit, report) = fsck(&playground, "n4", "");
    assert_eq!((exit, kinds(&report)), (4, BTreeSet::from(["replicas".into()])), "{report:#}");
    assert_eq!(report["dead_nodes"], serde_json::json!(["n3", "n5"]));
    assert!(report["findings"][0]["path"].as_str().is_some_and(|path| path.starts_with('f')));

    let repair = |status: &Value| status["upkeep"]["repair"].clone();
    let busy = playground.status_when("n2", "progress", |status| {
        let work = repair(status);
        work["done_bytes"].as_u64() > Some(0) && work["seconds_left"].as_u64() > Some(0)
    });
    let shown = playground.does("n4", "unum status");
    assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    let left = |status: &Value| repair(status)["bytes"].as_u64().unwrap_or(0);
    playground.status_when("n2", "less to do", |status| left(status) < left(&busy));
    let whole = playground.status_when("n2", "its end", |status| {
        repair(status).is_null() && status["chunks_degraded"] == 0
    });
    assert_eq!(whole["upkeep"]["chunks_without_source"], 0);
    let report = is_clean(&playground, "n1", "--deep");
    assert_eq!(report["replicas"], 60);
    assert_eq!(sums(&playground, "n4"), written);
    // Each node finds out by itself that nothing is left to do.
    playground.status_when("n4", "its end", |status| {
        let upkeep = &status["upkeep"];
        upkeep["repair"].is_null() && upkeep["moving"].is_null() && status["chunks_degraded"] == 0
    });
    let shown = playground.does("n4", "unum status");
    assert!(!shown.contains("files "), "{shown}");
}

#[test]
fn flipped_bits_are_never_served_and_always_mended() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&[]);
    let written = write_files(&playground, "n1", 6, 2);
    // Every chunk is hit in its middle.
    assert!(flip_bits(&playground, "n2", 300_000, 500_000) >= 24);
    let (exit, report) = fsck(&playground, "n1", "--deep");
    assert_eq!((exit, kinds(&report)), (4, BTreeSet::from(["rotten".into()])), "{report:#}");
    assert_eq!((&report["found"], &report["findings"][0]["node"]), (&12.into(), &"n2".into()));
    // Who reads on that machine gets what was written, and that mends it.
    assert_eq!(sums(&playground, "n2"), written);
    clean_at_last(&playground, "n1", "--deep");
    playground.status_when("n2", "what was mended", |status| {
        status["upkeep"]["scrub"]["mended"] == 12 && status["upkeep"]["scrub"]["unmended"] == 0
    });

    // Nobody reads: the scrub finds it, heads of records and all.
    assert!(flip_bits(&playground, "n3", 3_000, 20_000) > 500);
    set_on(&playground, "n3", "scrub_period", "\"2s\"");
    playground.status_when("n3", "the end of a scrub that mended", |status| {
        let scrub = &status["upkeep"]["scrub"];
        scrub["mended"] == 12 && scrub["unmended"] == 0 && scrub["finished"].is_string()
    });
    clean_at_last(&playground, "n1", "--deep");
    assert_eq!(sums(&playground, "n3"), written);

    // Damaged everywhere: an error, and never what was not written.
    let marker = b"this is written once and damaged thrice";
    playground.does("n1", &format!("echo '{}' > /unum/once; sync /unum/once", text(marker)));
    for machine in ["n1", "n2", "n3"] {
        assert_eq!(flip_in(&playground, machine, marker), 1, "{machine}");
    }
    let told = playground.is_refused("n2", "cat /unum/once");
    assert!(told.contains("Input/output error"), "{told}");
    let (exit, report) = fsck(&playground, "n3", "--deep --repair");
    assert_eq!(exit, 4, "{report:#}");
    let findings = report["findings"].as_array().expect("an array");
    assert!(findings.iter().all(|finding| finding["path"] == "once"), "{report:#}");
    assert_eq!(kinds(&report), BTreeSet::from(["lost".into(), "rotten".into()]));
    playground.does("n1", "rm /unum/once");
    clean_at_last(&playground, "n1", "--deep");
    playground
        .status_when("n2", "nothing unmended", |status| status["upkeep"]["scrub"]["unmended"] == 0);
}

#[test]
fn fsck_finds_what_was_planted() {
    if cannot_run_daemons() {
        return;
    }
    let playground = Playground::up(&[]);
    let written = write_files(&playground, "n1", 10, 1);
    let report = is_clean(&playground, "n2", "");
    assert_eq!((&report["chunks"], &report["replicas"]), (&10.into(), &30.into()));
    // So slowly that what is missing is not mended before fsck looks.
    set_on(&playground, "n3", "repair_rate", "1000");
    playground.must("cut", &["n3"]);
    with_store(&playground, "n3", |store| {
        let there: Vec<ChunkId> = store.list(None, 100).iter().map(|listed| listed.chunk).collect();
        assert_eq!(there.len(), 10);
        // The first one missing is mended at once, the others wait.
        there[..4].iter().for_each(|id| store.delete(*id).expect("room"));
        for id in &there[4..6] {
            store.delete(*id).expect("room");
        }
        put(store, there[4], b"shorter than what was written");
        put(store, there[5], &[7; MIB as usize]);
        put(store, ChunkId { lane: 1, seq: 1 }, b"nobody knows this");
    });
    playground.boot("n3");
    assert!(flip_bits(&playground, "n1", 500_000, 100_000_000) > 0);
    let (exit, report) = fsck(&playground, "n2", "--deep");
    let expected = ["length", "missing", "rotten"].map(String::from);
    assert_eq!((exit, kinds(&report)), (4, BTreeSet::from(expected.clone())), "{report:#}");
    assert_eq!((&report["unused_chunks"], &report["unused_bytes"]), (&1.into(), &17.into()));
    let on = |node: &str, kind: &str| {
        let findings = report["findings"].as_array().expect("an array").iter();
        findings.filter(|finding| finding["node"] == node && finding["kind"] == kind).count()
    };
    assert_eq!((on("n3", "length"), on("n3", "rotten"), on("n1", "rotten")), (1, 1, 1));
    assert!((3..=4).contains(&on("n3", "missing")), "{report:#}");
    assert_eq!(on("n2", "rotten"), 0);
    // Without reading contents, what is told by heads alone is found all the same.
    let (exit, shallow) = fsck(&playground, "n1", "");
    assert_eq!(exit, 4);
    assert!(kinds(&shallow).is_superset(&BTreeSet::from(["length".into(), "missing".into()])));
    let shown = playground.tries("n1", "unum fsck");
    let shown = text(&shown.stdout);
    assert!(shown.contains("missing   f") && shown.contains(" left\n"), "{shown}");

    // Who reads there gets what was written, whatever lies there with checksums of its own.
    assert_eq!(sums(&playground, "n3"), written);
    set_on(&playground, "n3", "repair_rate", "\"64M\"");
    let (exit, report) = fsck(&playground, "n2", "--deep --repair");
    assert!(exit <= 1, "{exit} {report:#}");
    is_clean(&playground, "n1", "--deep");
    assert_eq!(sums(&playground, "n3"), written);

    playground.must("cut", &["n2", "n3"]);
    assert_eq!(playground.tries("n1", "unum fsck").status.code(), Some(8), "without a majority");
    playground.must("boot", &["n2", "n3"]);
}

#[test]
fn chunks_move_to_nodes_that_join() {
    if cannot_run_daemons() {
        return;
    }
    let settings = ["--set", "repair_rate=3M", "--set", "garbage_after=2s"];
    let playground = Playground::machines(5, &settings);
    playground.found("n1");
    playground.join("n2", "n1", "");
    playground.join("n3", "n1", "");
    let written = write_files(&playground, "n1", 24, 1);
    playground.join("n4", "n1", "");
    playground.status_when("n2", "moving", |status| {
        status["upkeep"]["moving"]["bytes"].as_u64() > Some(0)
    });
    // Never fewer replicas than there were.
    is_clean(&playground, "n2", "");
    playground.join("n5", "n2", "");
    is_clean(&playground, "n3", "");
    assert_eq!(sums(&playground, "n5"), written);
    let has_moved = |machine: &str| playground.chunk_bytes(machine) >= 8 * MIB;
    playground.status_when("n1", "the end of moving", |status| {
        status["upkeep"]["moving"].is_null() && has_moved("n4") && has_moved("n5")
    });
    // What was moved away is no longer wanted there.
    let report =
        playground.json_when("n4", "fsck --deep", "that the old copies are gone", |report| {
            report["clean"] == true && report["unused_chunks"] == 0
        });
    assert_eq!((&report["chunks"], &report["replicas"]), (&24.into(), &72.into()));
    assert_eq!(sums(&playground, "n4"), written);
}

#[test]
fn the_room_of_deleted_files_is_freed() {
    if cannot_run_daemons() {
        return;
    }
    let settings = ["--set", "garbage_after=2s", "--set", "file_patience=3s"];
    let playground = Playground::up(&settings);
    let all = ["n1", "n2", "n3"];
    // More than a segment: the one that is written to stays.
    let written = write_files(&playground, "n1", 2, 1);
    playground.does("n1", "dd if=/dev/zero of=/unum/big bs=1M count=90 conv=fsync status=none");
    // The last replica may be made after the call returned.
    clean_at_last(&playground, "n1", "");
    let before = all.map(|machine| playground.chunk_bytes(machine));
    assert!(before.iter().all(|bytes| *bytes >= 90 * MIB), "{before:?}");
    playground.does("n2", "rm /unum/big");
    // Nothing is deleted that was put in the last 30 seconds.
    std::thread::sleep(std::time::Duration::from_secs(20));
    playground.json_when("n3", "fsck", "that no chunk is left over", |report| {
        report["clean"] == true && report["unused_chunks"] == 0 && report["chunks"] == 2
    });
    for machine in all {
        let freed = "[ $(du -sm /var/lib/unum/chunks | cut -f1) -lt 60 ]";
        playground.does_at_last(machine, freed);
    }
    assert_eq!(sums(&playground, "n3"), written);
    is_clean(&playground, "n2", "--deep");
    // A deletion outlives the daemon and the machine.
    playground.must("cut", &["n3"]);
    playground.boot("n3");
    assert_eq!(is_clean(&playground, "n1", "--deep")["unused_chunks"], 0);
    assert_eq!(sums(&playground, "n3"), written);
}
