//! Where a playground lives on disk, and its bookkeeping.
//!
//! One directory per playground, with one small state file that is replaced atomically under a
//! lock. What is about to be made is written down before it is made, so that `dev down` finds
//! everything even after a crash between the two.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::cgroup::CpuGroup;
use super::identity::Identity;
use crate::failure::{Explain, Failure, Result};

/// More machines than this on one computer is a mistake in the number.
pub const MACHINES_MAX: u32 = 64;
const NAME_LENGTH_MAX: usize = 32;
const DIRECTORY_PREFIX: &str = "unum-dev-";
const STATE_FILE: &str = "state.json";
const LOCK_FILE: &str = "lock";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub name: String,
    /// The cores each machine may use; `None`: all.
    pub cpus: Option<f64>,
    /// The keeper of the network that connects the machines.
    pub switch: Option<Identity>,
    /// Machines run without a daemon.
    pub bare: bool,
    /// True once `dev up` has finished.
    pub complete: bool,
    pub machines: Vec<Machine>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// 1-based: n1 is 1. Decides the addresses.
    pub number: u32,
    pub name: String,
    /// PID 1 of the machine, as this computer sees it. `None`: its power is off.
    pub init: Option<Identity>,
    /// Machines of the same side of a partition reach each other.
    pub side: u32,
    pub group: Option<CpuGroup>,
}

impl Machine {
    pub fn running(&self) -> Option<Identity> {
        self.init.filter(|init| init.is_alive())
    }
}

impl State {
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|machine| machine.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.machines.iter().map(|m| m.name.as_str()).collect();
            Failure::usage(format!("there is no machine {name} in the playground {}", self.name))
                .next(format!("It has: {}.", names.join(", ")))
        })
    }

    pub fn machine_mut(&mut self, name: &str) -> Result<&mut Machine> {
        let number = self.machine(name)?.number;
        self.machines
            .iter_mut()
            .find(|machine| machine.number == number)
            .ok_or_else(|| Failure::new(format!("there is no machine {name}")))
    }
}

/// The directory of one playground.
#[derive(Clone, Debug)]
pub struct Place {
    pub name: String,
    pub dir: PathBuf,
}

/// The right to change a playground, held by one command at a time.
#[derive(Debug)]
pub struct Locked {
    pub place: Place,
    _lock: File,
}

impl Place {
    pub fn of(name: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > NAME_LENGTH_MAX || !name.chars().all(fits) {
            return Err(Failure::usage(format!("a playground cannot be named {name:?}"))
                .next("Use 1 to 32 letters, digits, '-' or '_'."));
        }
        let dir = parent_directory().join(format!("{DIRECTORY_PREFIX}{name}"));
        Ok(Self { name: name.into(), dir })
    }

    /// Every playground of this user on this computer.
    pub fn all() -> Vec<Self> {
        let entries = std::fs::read_dir(parent_directory()).into_iter().flatten().flatten();
        let mut places: Vec<Self> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Self::of(name.strip_prefix(DIRECTORY_PREFIX)?).ok()
            })
            .filter(|place| place.dir.join(STATE_FILE).exists())
            .collect();
        places.sort_by(|a, b| a.name.cmp(&b.name));
        places
    }

    pub fn machine_dir(&self, machine: &str) -> PathBuf {
        self.dir.join(machine)
    }

    pub fn exists(&self) -> bool {
        self.dir.join(STATE_FILE).exists()
    }

    /// The state as it is now; other commands may be changing it.
    pub fn load(&self) -> Result<State> {
        check_owner(&self.dir)?;
        let path = self.dir.join(STATE_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.missing()),
            Err(error) => {
                return Err(Failure::new(format!("cannot read {}: {error}", path.display())));
            }
        };
        serde_json::from_str(&text).map_err(|error| {
            Failure::new(format!("the state in {} cannot be understood: {error}", path.display()))
                .next("Take it down with the `unum` that made it.")
        })
    }

    fn missing(&self) -> Failure {
        let name = match self.name.as_str() {
            "default" => String::new(),
            name => format!(" --name {name}"),
        };
        Failure::new(format!("there is no playground {}", self.name))
            .next(format!("Start it: unum dev up{name}"))
    }

    /// Makes the directory if need be and takes the lock, waiting for other commands to finish.
    pub fn lock_or_create(&self) -> Result<Locked> {
        loop {
            make_private_directory(&self.dir)?;
            if let Some(locked) = self.try_lock_existing()? {
                return Ok(locked);
            }
        }
    }

    /// `None` when there is no such playground.
    pub fn lock(&self) -> Result<Option<Locked>> {
        loop {
            if !self.dir.exists() {
                return Ok(None);
            }
            if let Some(locked) = self.try_lock_existing()? {
                return Ok(Some(locked));
            }
        }
    }

    /// `None` when the playground was taken down while we waited.
    fn try_lock_existing(&self) -> Result<Option<Locked>> {
        check_owner(&self.dir)?;
        let path = self.dir.join(LOCK_FILE);
        let options = OpenOptions::new().write(true).create(true).mode(0o600).clone();
        let lock = match options.open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Failure::new(format!("cannot open {}: {error}", path.display())));
            }
        };
        flock(&lock, FlockOperation::LockExclusive)
            .explain(|| format!("cannot lock {}", path.display()))?;
        let linked = lock.metadata().is_ok_and(|lock| lock.nlink() > 0);
        Ok(linked.then(|| Locked { place: self.clone(), _lock: lock }))
    }
}

impl Locked {
    pub fn load(&self) -> Result<State> {
        self.place.load()
    }

    /// Replaces the state file as a whole.
    pub fn save(&self, state: &State) -> Result<()> {
        let path = self.place.dir.join(STATE_FILE);
        let fresh = self.place.dir.join("state.json.new");
        let text =
            serde_json::to_string_pretty(state).explain(|| "cannot write the state".into())?;
        let written = File::create(&fresh)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| std::fs::rename(&fresh, &path));
        written.explain(|| format!("cannot write {}", path.display()))
    }

    /// Removes the playground's directory. The lock file goes last: who waits for it sees that it
    /// is unlinked and starts over.
    pub fn remove(self) -> Result<()> {
        let dir = &self.place.dir;
        let removed = std::fs::read_dir(dir).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                if entry.file_name() != LOCK_FILE {
                    remove_any(&entry.path())?;
                }
            }
            std::fs::remove_file(dir.join(LOCK_FILE))?;
            std::fs::remove_dir(dir)
        });
        removed.explain(|| format!("cannot remove {}", dir.display()))
    }
}

fn remove_any(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path)?.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    }
}

fn parent_directory() -> PathBuf {
    match std::env::var_os("XDG_STATE_HOME").map(PathBuf::from) {
        Some(home) if home.is_absolute() => home,
        _ => PathBuf::from("/var/tmp"),
    }
}

fn make_private_directory(dir: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o711).create(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Failure::new(format!("cannot make {}: {error}", dir.display()))
            .next("Set XDG_STATE_HOME to a directory that exists and can be written.")),
    }
}

/// The parent may be writable by everybody: somebody else's directory must not steer what we kill.
fn check_owner(dir: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(dir) else { return Ok(()) };
    if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(Failure::new(format!("{} does not belong to you", dir.display()))
        .next("Choose another playground with --name, or set XDG_STATE_HOME."))
}
