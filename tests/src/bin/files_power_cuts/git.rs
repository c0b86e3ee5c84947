//! Commits to a git repository.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use unum_tests::text;

use crate::dice::Dice;
use crate::load::Notes;

const FILES: u64 = 8;
/// The wait between commits, so that checks need not go through thousands of them.
const PAUSE_MAX_MS: u64 = 200;

/// Gives what git printed. It asks for durable objects, references and index of itself
/// (core.fsync), and reads no settings of the machine.
fn git(directory: &Path, words: &[&str]) -> Result<String> {
    let settings = ["core.fsync=all", "gc.auto=0", "user.name=cuts", "user.email=cuts@unum"];
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_CONFIG_NOSYSTEM", "1");
    command.args(settings.iter().flat_map(|setting| ["-c", setting]));
    let output = command.args(words).output().context("cannot run git")?;
    let (told, failed) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "git {}: {failed}{told}", words.join(" "));
    Ok(told.trim_end().to_owned())
}

fn content(life: &str, number: u64) -> String {
    format!("{life} {number}\n").repeat(1 + number as usize % 300)
}

fn file(number: u64) -> String {
    format!("file{}", number % FILES)
}

pub fn write(life: &str, directory: &Path, mut notes: Notes) -> Result<()> {
    git(directory, &["init", "-q", "-b", "main"])?;
    let mut dice = Dice(life.len() as u64);
    for number in 0.. {
        fs::write(directory.join(file(number)), content(life, number))?;
        git(directory, &["add", "."])?;
        git(directory, &["commit", "-q", "-m", &number.to_string()])?;
        // Git makes the reference's content durable, but leaves its rename to the file system.
        File::open(directory.join(".git/refs/heads"))?.sync_all()?;
        notes.add(&format!("{number} {}", git(directory, &["rev-parse", "HEAD"])?))?;
        std::thread::sleep(dice.millis(PAUSE_MAX_MS));
    }
    Ok(())
}

/// The repository is sound, and the newest acknowledged commit is the branch or an ancestor of it, at
/// its place, with what was committed.
pub fn check(life: &str, directory: &Path, noted: &[String]) -> Result<()> {
    let (number, commit) = noted.last().and_then(|note| note.split_once(' ')).context("a note")?;
    let number: u64 = number.parse()?;
    // From this commit: references are read after the objects, and a writer may be adding some.
    git(directory, &["fsck", "--full", "--strict", "--no-dangling", commit])?;
    git(directory, &["merge-base", "--is-ancestor", commit, "main"])
        .with_context(|| format!("commit {number} was acknowledged and is not in the branch"))?;
    let ancestors = git(directory, &["rev-list", "--count", commit])?;
    ensure!(ancestors == (number + 1).to_string(), "commit {number} is number {ancestors}");
    let shown = git(directory, &["show", &format!("{commit}:{}", file(number))])?;
    ensure!(shown == content(life, number).trim_end(), "commit {number} has another content");
    Ok(())
}
