//! The programs that write while powers are cut. A *life* is one start of all of them on one machine.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{git, records, sqlite};

const TREE: &str = "/unum/cuts";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Files to which records are appended, with fdatasync.
    Records,
    /// An SQLite database with a rollback journal.
    Rollback,
    /// An SQLite database with a write-ahead log.
    Wal,
    /// A git repository.
    Git,
}

pub const LOADS: [Load; 4] = [Load::Records, Load::Rollback, Load::Wal, Load::Git];

impl Load {
    pub fn word(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Rollback => "rollback",
            Self::Wal => "wal",
            Self::Git => "git",
        }
    }

    pub fn named(word: &str) -> Result<Self> {
        let found = LOADS.into_iter().find(|load| load.word() == word);
        found.with_context(|| format!("no load is called {word}"))
    }

    /// Where it writes in this life.
    pub fn directory(self, life: &str) -> PathBuf {
        life_directory(life).join(self.word())
    }

    /// Writes until it is killed. A write that fails is not acknowledged, and ends this.
    pub fn write(self, life: &str, notes: &Path) -> Result<()> {
        let directory = self.directory(life);
        fs::create_dir_all(&directory)?;
        let notes = Notes::open(&Notes::path(notes, life, self))?;
        match self {
            Self::Records => records::write(life, &directory, notes),
            Self::Rollback | Self::Wal => sqlite::write(self.word(), life, &directory, notes),
            Self::Git => git::write(life, &directory, notes),
        }
    }

    /// Whether everything acknowledged in this life is there, and whole. Gives how much that is.
    pub fn check(self, life: &str, notes: &Path) -> Result<u64> {
        let noted = Notes::read(&Notes::path(notes, life, self))?;
        if noted.is_empty() {
            return Ok(0);
        }
        let directory = self.directory(life);
        let checked = match self {
            Self::Records => records::check(life, &directory, &noted),
            Self::Rollback | Self::Wal => sqlite::check(self.word(), life, &directory, &noted),
            Self::Git => git::check(life, &directory, &noted),
        };
        checked.with_context(|| format!("{life}/{}", self.word()))?;
        Ok(noted.len() as u64)
    }

    /// Users of a write-ahead log share memory, so they must be on one machine (sqlite.org/wal.html).
    pub fn is_seen_from(self, machine: &str, life: &str) -> bool {
        self != Self::Wal || machine_of(life) == machine
    }
}

pub fn life_directory(life: &str) -> PathBuf {
    Path::new(TREE).join(life)
}

fn machine_of(life: &str) -> &str {
    life.split_once('-').map_or(life, |(machine, _)| machine)
}

/// What was acknowledged to one load, a line each, kept outside of the playground.
pub struct Notes(fs::File);

impl Notes {
    pub fn path(notes: &Path, life: &str, load: Load) -> PathBuf {
        notes.join(format!("{life}.{}", load.word()))
    }

    fn open(path: &Path) -> Result<Self> {
        Ok(Self(OpenOptions::new().create(true).append(true).open(path)?))
    }

    pub fn add(&mut self, line: &str) -> Result<()> {
        Ok(self.0.write_all(format!("{line}\n").as_bytes())?)
    }

    /// A program of its own writes the notes.
    pub fn into_file(self) -> fs::File {
        self.0
    }

    fn read(path: &Path) -> Result<Vec<String>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            // The load has not come so far.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => bail!("{}: {error}", path.display()),
        };
        // The newest note may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        Ok(whole.lines().map(Into::into).collect())
    }
}
