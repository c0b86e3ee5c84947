//! The simulator passes on sound code, repeats itself, and finds each planted flaw.

use unum_sim::coverage::{Coverage, Met};
use unum_sim::disaster::most_logs_rot;
use unum_sim::faults::Trouble;
use unum_sim::{Flaw, Plan, run};

/// Few, for every build; `cargo run -p sim -- --seeds 1000` runs many.
const SEEDS: std::ops::Range<u64> = 0..12;
/// How many seeds a planted flaw may survive.
const FLAW_SEEDS: std::ops::Range<u64> = 0..5;
/// Some of their power cuts make a majority of the voters suspect.
const POWER_CUT_SEEDS: std::ops::Range<u64> = 10..16;

#[test]
fn sound_clusters_keep_their_promises() {
    let mut met = Coverage::default();
    for seed in SEEDS {
        let report = run(Plan::new(seed)).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(report.operations > 0 && report.entries > 0, "seed {seed} did nothing");
        met.add(&report.coverage);
    }
    let missed: Vec<Met> = LEASES_MET.into_iter().filter(|what| met.of(*what) == 0).collect();
    assert_eq!(missed, [], "read leases were not put to the test");
    // Between the troubles nobody waits for a heartbeat to carry a confirmation.
    let (at_once, late) = (met.of(Met::SettledAtOnce), met.of(Met::SettledLate));
    assert!(at_once > 2 * late, "{at_once} writes were stable at once, {late} late");
}

const LEASES_MET: [Met; 4] =
    [Met::ReadFromCache, Met::LeaseLapsed, Met::FormerLeasesAwaited, Met::SettledForReader];

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

fn is_found(flaw: Flaw, only: Option<Trouble>, words: &[&str]) {
    let failures: Vec<String> = FLAW_SEEDS
        .filter_map(|seed| run(Plan { only, ..Plan::new(seed).with(flaw) }).err())
        .map(|failure| failure.what)
        .collect();
    let told = failures.iter().any(|what| words.iter().any(|word| what.contains(word)));
    assert!(told, "{flaw:?} was not found for what it is: {failures:?}");
}

#[test]
fn a_disk_that_lies_about_syncs_is_found() {
    is_found(Flaw::LyingSync, None, &["damaged", "different", "not linearizable", "two leaders"]);
}

#[test]
fn forgotten_replies_are_found() {
    is_found(Flaw::ForgetReplies, None, &["ran twice"]);
}

#[test]
fn a_barrier_without_a_quorum_is_found() {
    is_found(Flaw::BarrierWithoutQuorum, None, &["a barrier on", "not linearizable"]);
}

/// What a voter does that lost an entry: the leader that it elects contradicts what is applied.
const CONTRADICTIONS: [&str; 3] = ["ended by itself", "different", "not linearizable"];

#[test]
fn a_vote_of_the_forgetful_is_found() {
    is_found(Flaw::IgnoreSuspicion, Some(Trouble::Amnesia), &CONTRADICTIONS);
}

#[test]
fn a_bar_that_not_all_voters_made_is_found() {
    is_found(Flaw::BarOfSome, Some(Trouble::Amnesia), &CONTRADICTIONS);
}

/// Some program reads what was before a change that another one was told of, or has read.
fn shows_something_stale(flaw: Flaw, only: Trouble) {
    let found = |seed| {
        // The least that shows it: these runs are many.
        let plan = Plan { nodes: 3, gossip: false, turnover: false, ..Plan::new(seed) };
        let failure = run(Plan { only: Some(only), ..plan.with(flaw) }).err();
        failure.is_some_and(|failure| failure.what.contains("the history of register"))
    };
    assert!({ FLAW_SEEDS }.any(found), "{flaw:?} was not found for what it is");
}

#[test]
fn a_leader_that_forgets_former_leases_is_found() {
    shows_something_stale(Flaw::ForgetFormerLeases, Trouble::ChangeSides);
}

#[test]
fn a_leader_that_takes_one_voters_word_is_found() {
    shows_something_stale(Flaw::TrustOne, Trouble::ChangeSides);
}

#[test]
fn a_leader_that_leases_for_longer_than_it_can_prove_is_found() {
    shows_something_stale(Flaw::OutliveProof, Trouble::IsolateLeader);
}

#[test]
fn a_leader_that_leases_without_a_quorum_is_found() {
    shows_something_stale(Flaw::RenewWithoutQuorum, Trouble::IsolateLeader);
}

#[test]
fn a_reader_that_shows_what_is_not_stable_is_found() {
    shows_something_stale(Flaw::ShowUnsettled, Trouble::HandOver);
}

#[test]
fn a_writer_that_is_told_before_the_change_is_stable_is_found() {
    shows_something_stale(Flaw::AcknowledgeUnsettled, Trouble::HandOver);
}

#[test]
fn a_cache_that_confirms_before_it_drops_is_found() {
    shows_something_stale(Flaw::ConfirmBeforeDrop, Trouble::HandOver);
}

#[test]
fn a_cache_that_outlives_its_lease_is_found() {
    shows_something_stale(Flaw::KeepAfterLease, Trouble::IsolateLeader);
}

#[test]
fn waiting_for_a_leader_that_nobody_elects_is_found() {
    let plan = |seed| Plan { only: Some(Trouble::PowerCut), ..Plan::new(seed) };
    let stuck = |seed| run(plan(seed).with(Flaw::NoRollCall)).is_err();
    assert!({ POWER_CUT_SEEDS }.any(stuck), "no power cut made a majority suspect");
}

#[test]
fn a_power_cut_that_tears_the_logs_of_most_is_survived() {
    let mut met = Coverage::default();
    for seed in POWER_CUT_SEEDS {
        let plan = Plan { only: Some(Trouble::PowerCut), ..Plan::new(seed) };
        met.add(&run(plan).unwrap_or_else(|failure| panic!("{failure}")).coverage);
    }
    assert!(met.of(Met::MostSuspect) > 0, "no power cut made a majority suspect");
}

#[test]
fn nobody_leads_when_most_logs_rot_until_an_operator_says_so() {
    for seed in 0..3 {
        most_logs_rot(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

#[test]
fn a_failure_says_how_to_replay_it() {
    let failure = run(Plan::new(3).with(Flaw::ForgetReplies)).unwrap_err();
    assert!(failure.to_string().contains("cargo run -p sim -- --seed 3 --trace"));
    assert!(failure.trace.iter().any(|line| line.contains("boots")));
}
