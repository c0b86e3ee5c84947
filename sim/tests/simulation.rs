//! The simulator passes on sound code, repeats itself, and finds each planted flaw.

use unum_sim::{Flaw, Plan, run};

/// Few, for every build; `cargo run -p sim -- --seeds 1000` runs many.
const SEEDS: std::ops::Range<u64> = 0..12;
/// How many seeds a planted flaw may survive.
const FLAW_SEEDS: std::ops::Range<u64> = 0..5;

#[test]
fn sound_clusters_keep_their_promises() {
    for seed in SEEDS {
        let report = run(Plan::new(seed)).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(report.operations > 0 && report.entries > 0, "seed {seed} did nothing");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let plan = Plan { messages: true, ..Plan::new(7) };
    let (first, second) = (run(plan).unwrap(), run(plan).unwrap());
    let differs = first.trace.iter().zip(&second.trace).find(|(a, b)| a != b);
    assert_eq!(differs, None);
    assert_eq!(first, second);
}

#[test]
fn another_seed_gives_another_run() {
    assert_ne!(run(Plan::new(1)).unwrap().trace, run(Plan::new(2)).unwrap().trace);
}

fn is_found(flaw: Flaw, words: &[&str]) {
    let failures: Vec<String> = FLAW_SEEDS
        .filter_map(|seed| run(Plan::new(seed).with(flaw)).err())
        .map(|failure| failure.what)
        .collect();
    let told = failures.iter().any(|what| words.iter().any(|word| what.contains(word)));
    assert!(told, "{flaw:?} was not found for what it is: {failures:?}");
}

#[test]
fn a_disk_that_lies_about_syncs_is_found() {
    is_found(Flaw::LyingSync, &["damaged", "different", "not linearizable", "two leaders"]);
}

#[test]
fn forgotten_replies_are_found() {
    is_found(Flaw::ForgetReplies, &["ran twice"]);
}

#[test]
fn a_barrier_without_a_quorum_is_found() {
    is_found(Flaw::BarrierWithoutQuorum, &["a barrier on", "not linearizable"]);
}

#[test]
fn a_vote_of_the_forgetful_is_found() {
    is_found(
        Flaw::IgnoreSuspicion,
        &["different", "not linearizable", "ran twice", "a barrier on"],
    );
}

#[test]
fn a_failure_says_how_to_replay_it() {
    let failure = run(Plan::new(3).with(Flaw::ForgetReplies)).unwrap_err();
    assert!(failure.to_string().contains("cargo run -p sim -- --seed 3 --trace"));
    assert!(failure.trace.iter().any(|line| line.contains("boots")));
}
