//! Loads of many small calls, one after the other.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::random::Random;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const DIRECTORY_FILES_MAX: u64 = 1000;
const SEED: u64 = 3;

pub fn write(mib: u64, path: &str) -> Result<()> {
    let mut piece = vec![0; MIB];
    let mut random = Random(SEED);
    random.fill(&mut piece);
    let mut file = File::create(path)?;
    for number in 0..mib {
        // No two pieces are alike: nothing is gained by finding equal ones.
        piece[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&piece)?;
    }
    Ok(file.sync_all()?)
}

pub fn random_read(count: u64, path: &str) -> Result<()> {
    let file = File::open(path)?;
    let mut page = [0; PAGE];
    let mut random = Random(SEED);
    let pages = pages(&file)?;
    for _ in 0..count {
        file.read_exact_at(&mut page, random.below(pages) * PAGE as u64)?;
    }
    Ok(())
}

pub fn random_write(count: u64, path: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut page = [0; PAGE];
    let mut random = Random(SEED);
    random.fill(&mut page);
    let pages = pages(&file)?;
    for _ in 0..count {
        file.write_all_at(&page, random.below(pages) * PAGE as u64)?;
    }
    Ok(file.sync_all()?)
}

fn pages(file: &File) -> Result<u64> {
    let pages = file.metadata()?.len() / PAGE as u64;
    ensure!(pages > 0, "the file is shorter than a page");
    Ok(pages)
}

pub fn sync(count: u64, path: &str) -> Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..count {
        file.write_all(&[7; PAGE])?;
        file.sync_all()?;
    }
    Ok(())
}

pub fn create(count: u64, dir: &Path) -> Result<()> {
    for number in 0..count {
        if number % DIRECTORY_FILES_MAX == 0 {
            fs::create_dir_all(directory(dir, number))?;
        }
        File::create_new(file(dir, number))?;
    }
    Ok(())
}

pub fn create_here(count: u64, dir: &Path, prefix: &str) -> Result<()> {
    (0..count).try_for_each(|number| {
        File::create_new(dir.join(format!("{prefix}{number}")))?;
        Ok(())
    })
}

/// As most programs do it: without the time of birth, which the standard library asks for, too, and which FUSE
/// never brings along with a name.
pub fn stat(count: u64, dir: &Path) -> Result<()> {
    each(count, dir, |path| Ok(rustix::fs::lstat(path).map(drop)?))
}

pub fn open(count: u64, dir: &Path) -> Result<()> {
    each(count, dir, |path| File::open(path).map(drop))
}

pub fn unlink(count: u64, dir: &Path) -> Result<()> {
    each(count, dir, |path| fs::remove_file(path))
}

fn each(count: u64, dir: &Path, call: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    for number in 0..count {
        let path = file(dir, number);
        call(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn directory(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("d{}", number / DIRECTORY_FILES_MAX))
}

fn file(dir: &Path, number: u64) -> PathBuf {
    directory(dir, number).join(format!("f{number}"))
}
