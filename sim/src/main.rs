//! `cargo run -p sim -- --seeds 1000`: simulates clusters and says which seed fails.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use unum_sim::coverage::{self, Coverage};
use unum_sim::faults::Trouble;
use unum_sim::{Flaw, Plan, run};

/// Simulates a cluster's control plane under faults, one run per seed.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happened.
    #[arg(long)]
    trace: bool,
    /// With --trace: print each message, too.
    #[arg(long)]
    messages: bool,
    /// Make this kind of trouble only.
    #[arg(long, value_enum)]
    only: Option<Trouble>,
    /// Print how often each thing was met, and fail if one never was.
    #[arg(long)]
    coverage: bool,
    /// Plant a flaw, to see it found.
    #[arg(long, value_enum, default_value = "none")]
    flaw: Flaw,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.trace && std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    }
    let seeds = match arguments.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => arguments.from..arguments.from.saturating_add(arguments.seeds),
    };
    let started = Instant::now();
    let mut met = Coverage::default();
    let (mut failed, mut entries, mut operations, mut runs) = (0, 0, 0, 0);
    for seed in seeds {
        let messages = arguments.messages;
        let only = arguments.only;
        let plan = Plan { messages, only, ..Plan::new(seed).with(arguments.flaw) };
        runs += 1;
        let trace = match run(plan) {
            Ok(report) => {
                entries += report.entries;
                operations += report.operations;
                met.add(&report.coverage);
                report.trace
            }
            Err(failure) => {
                failed += 1;
                println!("{failure}");
                failure.trace
            }
        };
        if arguments.trace {
            trace.iter().for_each(|line| println!("{line}"));
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{runs} runs, {failed} failed; {operations} operations, {entries} applied entries \
         in {seconds:.1} s"
    );
    if arguments.coverage {
        coverage::ALL.iter().for_each(|what| println!("{:8} {what:?}", met.of(*what)));
        if !met.never_met().is_empty() {
            println!("never met: {:?}", met.never_met());
            return ExitCode::FAILURE;
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
