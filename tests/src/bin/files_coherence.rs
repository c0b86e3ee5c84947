//! Random calls on the files of several machines, one at a time: each answer must show all calls before it.
//!
//! `files_coherence [SECONDS [SEED]]`

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use unum_tests::Playground;
use unum_tests::actor::{actors, cannot_run_files};
use unum_tests::coherence::Model;

/// Calls that are shown when one goes wrong.
const SHOWN: usize = 40;
/// How likely a machine goes on, in one round after the other.
const STAY: [f64; 3] = [0.97, 0.0, 0.8];
/// A fresh directory after so many calls: names at rest are found in it by all.
const ROUND: u64 = 400;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (Ok(seconds), Ok(seed)) =
        (arguments.next().unwrap_or(Ok(60)), arguments.next().unwrap_or(Ok(1)))
    else {
        eprintln!("usage: files_coherence [SECONDS [SEED]]");
        return ExitCode::from(2);
    };
    if cannot_run_files() {
        return ExitCode::SUCCESS;
    }
    let playground = Playground::up(&[]);
    let mut actors = actors(&playground, ["n1", "n2", "n3"]);
    let mut rng = StdRng::seed_from_u64(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut calls, mut round) = (0_u64, 0_usize);
    while Instant::now() < end {
        let root = format!("/unum/round{round}");
        actors[0].run(&[&format!("os.mkdir('{root}')")]);
        let mut model = Model::new(&root, actors.len(), STAY[round % STAY.len()]);
        let mut last = VecDeque::new();
        for _ in 0..ROUND {
            let stepped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                model.step(&mut rng, &mut actors)
            }));
            match stepped {
                Ok(done) => last.push_back(done),
                Err(_) => {
                    last.iter().for_each(|done| println!("{done}"));
                    println!("after {calls} calls, seed {seed}");
                    return ExitCode::FAILURE;
                }
            }
            if last.len() > SHOWN {
                last.pop_front();
            }
            calls += 1;
        }
        round += 1;
    }
    println!("{calls} calls, each answer right (seed {seed})");
    ExitCode::SUCCESS
}
