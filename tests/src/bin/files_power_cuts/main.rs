//! Cuts the power of random machines under a writing load and checks that nothing acknowledged is
//! lost.
//!
//!     files_power_cuts CUTS [SEED]
//!
//! On each machine several programs write with fsync (see [`load`]) to files of their own and note
//! outside of the playground what was acknowledged. After every cut and boot, every machine looks
//! whether all of it is there and whole, and `unum fsck` must find nothing.

mod dice;
mod git;
mod load;
mod records;
mod sqlite;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dice::Dice;
use load::{LOADS, Load, Notes, life_directory};
use unum_tests::{Playground, cannot_run, text};

const MACHINES: [&str; 3] = ["n1", "n2", "n3"];
/// Ended lives whose files are kept and read again.
const LIVES_KEPT: usize = 4;
/// Of each machine, when something went wrong.
const LOG_LINES_SHOWN: usize = 60;
/// What fsck finds must be mended by itself in this time, such as replicas that missed a write.
const MENDING_TIME_MAX: Duration = Duration::from_secs(60);
const FSCK_PERIOD: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["write", load, life, notes] => write(load, life, Path::new(notes)),
        ["check", machine, notes, ref lives @ ..] => check(machine, Path::new(notes), lives),
        [cuts] => run(cuts, "1"),
        [cuts, seed] => run(cuts, seed),
        _ => Err(anyhow::anyhow!("usage: files_power_cuts CUTS [SEED]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(load: &str, life: &str, notes: &Path) -> Result<()> {
    Load::named(load)?.write(life, notes)
}

/// Looks at these lives from this machine.
fn check(machine: &str, notes: &Path, lives: &[&str]) -> Result<()> {
    let mut acknowledged = 0;
    for life in lives {
        for load in LOADS.into_iter().filter(|load| load.is_seen_from(machine, life)) {
            acknowledged += load.check(life, notes)?;
        }
    }
    println!("{acknowledged}");
    Ok(())
}

/// One life of the loads.
struct Writers {
    life: String,
    programs: Vec<(Load, Child)>,
}

struct Run {
    playground: Playground,
    own: PathBuf,
    notes: tempfile::TempDir,
    /// How many lives began.
    begun: usize,
    /// Those that are looked at, the oldest first.
    lives: Vec<String>,
    writers: BTreeMap<&'static str, Writers>,
}

fn run(cuts: &str, seed: &str) -> Result<()> {
    if cannot_run() || !Path::new("/dev/fuse").exists() {
        return Ok(());
    }
    let cuts: u32 = cuts.parse().context("the number of cuts")?;
    let mut dice = Dice(seed.parse().context("the seed")?);
    let own = std::env::current_exe()?;
    // Beside this program: a machine sees the same directory there.
    let beside = own.parent().context("a directory")?.to_owned();
    let notes = tempfile::Builder::new().prefix("cuts").tempdir_in(beside)?;
    let playground = Playground::up(&[]);
    let mut run =
        Run { playground, own, notes, begun: 0, lives: Vec::new(), writers: BTreeMap::new() };
    let result = run.go(cuts, &mut dice);
    if result.is_err() {
        run.show_logs();
    }
    for machine in MACHINES {
        run.end_writers(machine);
    }
    result
}

impl Run {
    fn go(&mut self, cuts: u32, dice: &mut Dice) -> Result<()> {
        for machine in MACHINES {
            self.start_writers(machine)?;
        }
        for cut in 1..=cuts {
            std::thread::sleep(Duration::from_millis(300) + dice.millis(1200));
            let machine = MACHINES[dice.below(3) as usize];
            let leader = self.leader();
            self.playground.must("cut", &[machine]);
            std::thread::sleep(dice.millis(2500));
            let booting = Instant::now();
            self.playground.boot(machine);
            let booted = booting.elapsed().as_millis();
            self.end_writers(machine);
            let checked = self.check_everywhere();
            let checked = checked.and_then(|checked| self.fsck().map(|()| checked));
            let checked = checked.with_context(|| format!("after cut {cut}, of {machine}"))?;
            let took = booting.elapsed().as_millis() - booted;
            let role = if leader == machine { " (leader)" } else { "" };
            println!(
                "cut {cut} of {machine}{role}: {checked} acknowledged writes are there; boot took \
                 {booted} ms, the look {took} ms"
            );
            self.start_writers(machine)?;
            self.forget_old()?;
            self.look_after_writers()?;
        }
        println!("{cuts} cuts passed");
        Ok(())
    }

    fn start_writers(&mut self, machine: &'static str) -> Result<()> {
        let life = format!("{machine}-{}", self.begun);
        let notes = self.notes.path().as_os_str();
        let mut programs = Vec::new();
        for load in LOADS {
            let own = self.own.as_os_str();
            let words = [own, "write".as_ref(), load.word().as_ref(), life.as_ref(), notes];
            let mut program = self.playground.on(machine, &words);
            programs.push((load, program.stderr(Stdio::piped()).spawn()?));
        }
        self.begun += 1;
        self.lives.push(life.clone());
        self.writers.insert(machine, Writers { life, programs });
        Ok(())
    }

    fn end_writers(&mut self, machine: &str) {
        let ended = self.writers.remove(machine).map(|writers| writers.programs);
        for (_, mut program) in ended.into_iter().flatten() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }

    /// Those whose machine was not cut must go on.
    fn look_after_writers(&mut self) -> Result<()> {
        for writers in self.writers.values_mut() {
            for (load, program) in &mut writers.programs {
                if program.try_wait()?.is_some() {
                    let mut told = String::new();
                    if let Some(pipe) = &mut program.stderr {
                        pipe.read_to_string(&mut told)?;
                    }
                    bail!("the writer of {}/{} ended: {told}", writers.life, load.word());
                }
            }
        }
        Ok(())
    }

    fn show_logs(&self) {
        for machine in MACHINES {
            let log = text(&self.playground.dev("logs", &[machine]).stdout);
            let lines: Vec<&str> = log.lines().collect();
            let newest = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("-- newest log lines of {machine}\n{}", newest.join("\n"));
        }
    }

    fn leader(&self) -> String {
        let asked = |words| {
            let told = self.playground.sh("n1", words).stdout;
            serde_json::from_slice::<serde_json::Value>(&told).unwrap_or_default()
        };
        let leader = &asked("unum status --json")["leader"];
        let nodes = asked("unum nodes --json");
        let mut nodes = nodes.as_array().into_iter().flatten();
        let node = nodes.find(|node| node["id"] == *leader);
        node.and_then(|node| node["name"].as_str()).unwrap_or_default().into()
    }

    fn check_everywhere(&self) -> Result<u64> {
        let mut most = 0;
        let notes = self.notes.path().as_os_str();
        let checks: Vec<(&str, Child)> = MACHINES
            .into_iter()
            .map(|machine| {
                let mut words = vec![self.own.as_os_str(), "check".as_ref()];
                words.extend([machine.as_ref(), notes]);
                words.extend(self.lives.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
                let mut check: Command = self.playground.on(machine, &words);
                let check = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
                Ok((machine, check))
            })
            .collect::<Result<_>>()?;
        for (machine, check) in checks {
            let output = check.wait_with_output()?;
            ensure!(output.status.success(), "read on {machine}: {}", text(&output.stderr));
            most = most.max(text(&output.stdout).trim().parse()?);
        }
        Ok(most)
    }

    /// Nothing is wrong with the tree and its contents, or what a cut left is mended by itself.
    fn fsck(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            let output = self.playground.sh("n1", "unum fsck");
            if output.status.success() {
                return Ok(());
            }
            ensure!(
                started.elapsed() < MENDING_TIME_MAX,
                "unum fsck: {}{}",
                text(&output.stdout),
                text(&output.stderr)
            );
            std::thread::sleep(FSCK_PERIOD);
        }
    }

    /// The files of long ended lives are removed, so that each round reads about as much.
    fn forget_old(&mut self) -> Result<()> {
        let running: Vec<&String> = self.writers.values().map(|writers| &writers.life).collect();
        let ended: Vec<String> =
            self.lives.iter().filter(|life| !running.contains(life)).cloned().collect();
        for life in ended.iter().take(ended.len().saturating_sub(LIVES_KEPT)) {
            for load in LOADS {
                let _ = fs::remove_file(Notes::path(self.notes.path(), life, load));
            }
            let directory = life_directory(life);
            let removed = self.playground.sh("n2", &format!("rm -r {}", directory.display()));
            ensure!(removed.status.success(), "rm: {}", text(&removed.stderr));
            self.lives.retain(|kept| kept != life);
        }
        Ok(())
    }
}
