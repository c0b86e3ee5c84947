//! Starting and stopping unumd on this machine, by whatever looks after services here: systemd, a
//! playground machine's PID 1, or nobody (then unumd runs detached, with its log beside its data).

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use unum_node::settings::Settings;

use crate::dev::pid1;
use crate::failure::{Explain, Failure, Result};

pub const SETTINGS_FILE: &str = unum_node::settings::SETTINGS_PATH;
const SYSTEMD_RUNS: &str = "/run/systemd/system";
const UNIT: &str = "unumd.service";
const UNIT_FILES: [&str; 3] = [
    "/etc/systemd/system/unumd.service",
    "/usr/local/lib/systemd/system/unumd.service",
    "/lib/systemd/system/unumd.service",
];

/// Who looks after the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    Systemd,
    /// PID 1 of a playground machine.
    Machine,
    Nobody,
}

/// How one node's daemon is run.
#[derive(Clone, Debug)]
pub struct Service {
    pub keeper: Keeper,
    pub settings_path: PathBuf,
    pub settings: Settings,
}

impl Service {
    pub fn find(settings_path: PathBuf, settings: Settings) -> Self {
        let keeper = match settings_path == Path::new(SETTINGS_FILE) {
            true if Path::new(pid1::CONTROL_SOCKET).exists() => Keeper::Machine,
            true if Path::new(SYSTEMD_RUNS).exists() && unit_is_installed() => Keeper::Systemd,
            _ => Keeper::Nobody,
        };
        Self { keeper, settings_path, settings }
    }

    /// Has the daemon started, now and at each boot where something looks after that.
    pub fn enable(&self) -> Result<()> {
        match self.keeper {
            Keeper::Systemd => systemctl(&["enable", "--now", UNIT]),
            Keeper::Machine => pid1::ask(Path::new(pid1::CONTROL_SOCKET), "enable"),
            Keeper::Nobody => self.spawn_detached(),
        }
    }

    /// Sees to it that the daemon, which was asked to end, stays down.
    pub fn disable(&self) -> Result<()> {
        match self.keeper {
            Keeper::Systemd => systemctl(&["disable", "--now", UNIT]),
            Keeper::Machine => pid1::ask(Path::new(pid1::CONTROL_SOCKET), "disable"),
            Keeper::Nobody => Ok(()),
        }
    }

    /// Where to read what the daemon said.
    pub fn log_hint(&self) -> String {
        match self.keeper {
            Keeper::Systemd => format!("Read its log: journalctl -u {UNIT} -e"),
            Keeper::Machine => "Read its log: unum dev logs MACHINE".into(),
            Keeper::Nobody => format!("Read its log: tail {}", self.log_path().display()),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.settings.data_dir.join("unumd.log")
    }

    fn spawn_detached(&self) -> Result<()> {
        let path = self.log_path();
        std::fs::create_dir_all(&self.settings.data_dir)
            .explain(|| format!("cannot make {}", self.settings.data_dir.display()))?;
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.explain(|| format!("cannot write {}", path.display()))?;
        let errors = log.try_clone().explain(|| "cannot copy a descriptor".into())?;
        let mut command = Command::new("setsid");
        command.arg("--fork").arg(daemon_program()?).arg("--config").arg(&self.settings_path);
        command.stdin(Stdio::null()).stdout(log).stderr(errors).current_dir("/");
        let status = command.status().explain(|| "cannot start unumd with setsid".into())?;
        match status.success() {
            true => Ok(()),
            false => Err(Failure::new("unumd could not be started").next(self.log_hint())),
        }
    }
}

fn unit_is_installed() -> bool {
    UNIT_FILES.iter().any(|path| Path::new(path).exists())
}

fn systemctl(words: &[&str]) -> Result<()> {
    let output = Command::new("systemctl")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .explain(|| "cannot run systemctl".into())?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("systemctl {} failed: {}", words.join(" "), why.trim())))
}

/// unumd is installed beside unum.
fn daemon_program() -> Result<PathBuf> {
    let own = std::env::current_exe().explain(|| "cannot find the running program".into())?;
    let beside = own.with_file_name("unumd");
    if beside.exists() {
        return Ok(beside);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("unumd"))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            Failure::new(format!("there is no unumd beside {} nor on the path", own.display()))
                .next("Install both: make install")
        })
}

/// Writes a commented settings file unless there is one.
pub fn write_settings(path: &Path, settings: &Settings) -> Result<bool> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).explain(|| format!("cannot make {}", parent.display()))?;
    }
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        opened => opened.explain(|| format!("cannot write {}", path.display()))?,
    };
    std::io::Write::write_all(&mut file, settings.to_toml().as_bytes())
        .explain(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}
