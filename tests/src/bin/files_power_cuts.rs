//! Cuts the power of random machines under a writing load and checks that nothing acknowledged is
//! lost.
//!
//!     files_power_cuts CUTS [SEED]
//!
//! A writer on each machine appends records with fsync to files of its own and notes each that was
//! acknowledged outside of the playground. After every cut and boot, every machine reads every
//! file: each must be a row of whole records, and each acknowledged one must be among them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use unum_tests::{Playground, cannot_run, text};

const MACHINES: [&str; 3] = ["n1", "n2", "n3"];
const FILES: u64 = 4;
const PAYLOAD_MAX: u64 = 40_000;
/// Lives of writers whose files are kept and read again.
const LIVES_KEPT: usize = 9;
const TREE: &str = "/unum/cuts";
/// Of each machine, when something went wrong.
const LOG_LINES_SHOWN: usize = 60;
/// Of a record: number and payload length.
const HEAD: usize = 16;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["write", life, notes] => write(life, Path::new(notes)),
        ["check", notes] => check(Path::new(notes)),
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

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn millis(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

/// The whole record is decided by the life, the file and the number.
fn record(life: &str, file: u64, number: u64) -> Vec<u8> {
    let seed = life.bytes().fold(file, |seed, byte| seed.wrapping_mul(257) + u64::from(byte));
    let mut dice = Dice(seed.wrapping_mul(1 << 20) + number);
    // Most are small, some fill several pages.
    let limit = if dice.below(8) == 0 { PAYLOAD_MAX } else { 300 };
    let length = dice.below(limit);
    let mut record = Vec::with_capacity(HEAD + length as usize);
    record.extend(number.to_le_bytes());
    record.extend(length.to_le_bytes());
    record.extend((0..length).map(|_| dice.next() as u8));
    record
}

/// Writes until it is killed. A write that fails is not acknowledged, and its file not used again.
fn write(life: &str, notes: &Path) -> Result<()> {
    let directory = Path::new(TREE).join(life);
    fs::create_dir_all(&directory)?;
    let mut notes = OpenOptions::new().create(true).append(true).open(notes.join(life))?;
    let open = |file: u64| {
        let path = directory.join(file.to_string());
        OpenOptions::new().create(true).append(true).open(path)
    };
    let mut files = (0..FILES).map(open).collect::<Result<Vec<File>, _>>()?;
    for number in 0.. {
        let file = number % FILES;
        files[file as usize].write_all(&record(life, file, number))?;
        files[file as usize].sync_data()?;
        notes.write_all(format!("{file} {number}\n").as_bytes())?;
    }
    Ok(())
}

fn check(notes: &Path) -> Result<()> {
    let mut acknowledged = 0;
    for entry in fs::read_dir(notes)? {
        let entry = entry?;
        let life = entry.file_name().to_string_lossy().into_owned();
        // The newest note may be half written.
        let noted = fs::read_to_string(entry.path())?;
        let whole = noted.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut newest = BTreeMap::new();
        for line in whole.lines() {
            let (file, number) = line.split_once(' ').context("a note")?;
            newest.insert(file.parse::<u64>()?, number.parse::<u64>()?);
            acknowledged += 1;
        }
        for (file, number) in newest {
            check_file(&life, file, number).with_context(|| format!("{life}/{file}"))?;
        }
    }
    println!("{acknowledged}");
    Ok(())
}

/// Every record up to the newest acknowledged one, whole and in order; at most one more, which was
/// on its way.
fn check_file(life: &str, file: u64, newest: u64) -> Result<()> {
    let mut content = Vec::new();
    File::open(Path::new(TREE).join(life).join(file.to_string()))?.read_to_end(&mut content)?;
    let mut rest = &content[..];
    let mut number = file;
    while !rest.is_empty() || number <= newest {
        let at = content.len() - rest.len();
        let wanted = record(life, file, number);
        ensure!(
            rest.starts_with(&wanted),
            "record {number} (acknowledged up to {newest}) is not at {at} of {}",
            content.len()
        );
        rest = &rest[wanted.len()..];
        number += FILES;
    }
    Ok(())
}

struct Writer {
    life: String,
    program: Child,
}

struct Run {
    playground: Playground,
    own: PathBuf,
    notes: tempfile::TempDir,
    lives: Vec<String>,
    writers: BTreeMap<&'static str, Writer>,
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
    let mut run = Run { playground, own, notes, lives: Vec::new(), writers: BTreeMap::new() };
    let result = run.go(cuts, &mut dice);
    if result.is_err() {
        run.show_logs();
    }
    for machine in MACHINES {
        run.end_writer(machine);
    }
    result
}

impl Run {
    fn go(&mut self, cuts: u32, dice: &mut Dice) -> Result<()> {
        for machine in MACHINES {
            self.start_writer(machine)?;
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
            self.end_writer(machine);
            let checked = self.check_everywhere();
            let checked = checked.with_context(|| format!("after cut {cut}, of {machine}"))?;
            let role = if leader == machine { " (leader)" } else { "" };
            println!(
                "cut {cut} of {machine}{role}: {checked} records are there; boot took {booted} ms"
            );
            self.start_writer(machine)?;
            self.forget_old()?;
            self.look_after_writers()?;
        }
        println!("{cuts} cuts passed");
        Ok(())
    }

    fn start_writer(&mut self, machine: &'static str) -> Result<()> {
        let life = format!("{machine}-{}", self.lives.len());
        let notes = self.notes.path().as_os_str();
        let words = [self.own.as_os_str(), "write".as_ref(), life.as_ref(), notes];
        let program = self.playground.on(machine, &words).stderr(Stdio::piped()).spawn()?;
        self.lives.push(life.clone());
        self.writers.insert(machine, Writer { life, program });
        Ok(())
    }

    fn end_writer(&mut self, machine: &str) {
        if let Some(mut writer) = self.writers.remove(machine) {
            let _ = writer.program.kill();
            let _ = writer.program.wait();
        }
    }

    /// A writer whose machine was not cut must go on.
    fn look_after_writers(&mut self) -> Result<()> {
        for writer in self.writers.values_mut() {
            if writer.program.try_wait()?.is_some() {
                let mut told = String::new();
                if let Some(pipe) = &mut writer.program.stderr {
                    pipe.read_to_string(&mut told)?;
                }
                bail!("the writer {} ended: {told}", writer.life);
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
        let words = [self.own.as_os_str(), "check".as_ref(), notes];
        let checks: Vec<(&str, Child)> = MACHINES
            .into_iter()
            .map(|machine| {
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

    /// The files of long ended writers are removed, so that each round reads about as much.
    fn forget_old(&mut self) -> Result<()> {
        let running: Vec<&String> = self.writers.values().map(|writer| &writer.life).collect();
        let ended: Vec<String> =
            self.lives.iter().filter(|life| !running.contains(life)).cloned().collect();
        for life in ended.iter().take(ended.len().saturating_sub(LIVES_KEPT)) {
            if !self.notes.path().join(life).exists() {
                continue;
            }
            fs::remove_file(self.notes.path().join(life))?;
            let removed = self.playground.sh("n2", &format!("rm -r {TREE}/{life}"));
            ensure!(removed.status.success(), "rm: {}", text(&removed.stderr));
        }
        Ok(())
    }
}
