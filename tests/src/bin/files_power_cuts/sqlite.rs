//! Transactions of an SQLite database, by Python's own module.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use unum_tests::text;

use crate::load::Notes;

const PROGRAM: &str = include_str!("sqlite.py");

fn program(words: [&str; 3], directory: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", PROGRAM]).args(words).arg(directory.join("db"));
    command
}

pub fn write(journal: &str, life: &str, directory: &Path, notes: Notes) -> Result<()> {
    let mut program = program(["write", journal, life], directory);
    let output = program.stdout(notes.into_file()).stderr(Stdio::piped()).output()?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(())
}

pub fn check(journal: &str, life: &str, directory: &Path, noted: &[String]) -> Result<()> {
    let newest = noted.last().context("a note")?;
    let output = program(["check", journal, life], directory).arg(newest).output()?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(())
}
