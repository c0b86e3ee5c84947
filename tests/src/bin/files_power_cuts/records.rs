//! Records appended to several files with fdatasync.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::dice::Dice;
use crate::load::Notes;

const FILES: u64 = 4;
const PAYLOAD_MAX: u64 = 40_000;
/// Of a record: number and payload length.
const HEAD: usize = 16;

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

pub fn write(life: &str, directory: &Path, mut notes: Notes) -> Result<()> {
    let open = |file: u64| {
        let path = directory.join(file.to_string());
        OpenOptions::new().create(true).append(true).open(path)
    };
    let mut files = (0..FILES).map(open).collect::<Result<Vec<File>, _>>()?;
    for number in 0.. {
        let file = number % FILES;
        files[file as usize].write_all(&record(life, file, number))?;
        files[file as usize].sync_data()?;
        notes.add(&format!("{file} {number}"))?;
    }
    Ok(())
}

pub fn check(life: &str, directory: &Path, noted: &[String]) -> Result<()> {
    let mut newest = BTreeMap::new();
    for line in noted {
        let (file, number) = line.split_once(' ').context("a note")?;
        newest.insert(file.parse::<u64>()?, number.parse::<u64>()?);
    }
    newest.into_iter().try_for_each(|(file, number)| {
        check_file(life, directory, file, number).with_context(|| format!("file {file}"))
    })
}

/// Every record up to the newest acknowledged one, whole and in order; at most one more, which was
/// on its way.
fn check_file(life: &str, directory: &Path, file: u64, newest: u64) -> Result<()> {
    let mut content = Vec::new();
    File::open(directory.join(file.to_string()))?.read_to_end(&mut content)?;
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
