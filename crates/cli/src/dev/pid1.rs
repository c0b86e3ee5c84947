//! PID 1 of a machine: reaps whatever is orphaned there and supervises unumd, as a service manager
//! does on a real machine. Ends only with the machine's power.
//!
//! It is steered through a socket, one word a connection: `enable`, `disable`, `kill`. Whether the
//! daemon is enabled is kept on the machine's disk, so it starts at the next boot.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::birth;
use super::mounts;
use super::service::{Action, Event, Service, Time};
use crate::failure::{Explain, Failure, Result};

pub const CONTROL_SOCKET: &str = "/run/unum-machine.sock";
pub const DAEMON_LOG: &str = "unumd.log";
const ENABLED: &str = "enabled";
const REQUEST_SIZE_MAX: u64 = 64;
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);

/// `unum dev-machine init`.
pub fn run(name: &str, dir: &Path) -> Result<()> {
    let program = birth::own_program()?;
    let programs = program.parent().unwrap_or(Path::new("/")).to_path_buf();
    birth::wait_for_go()?;
    let console = birth::append_to(&dir.join(birth::CONSOLE_LOG))?;
    let daemon_log = birth::append_to(&dir.join(DAEMON_LOG))?;
    rustix::system::sethostname(name.as_bytes()).explain(|| "cannot set the host name".into())?;
    mounts::set_up(dir, &programs)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .explain(|| "cannot start the event loop".into())?;
    runtime.block_on(async move {
        let listener = listen()?;
        birth::report_ready(&console)?;
        let supervisor = Supervisor {
            service: Service::default(),
            started: Instant::now(),
            daemon: None,
            programs,
            daemon_log,
            waiting: Vec::new(),
        };
        supervisor.run(listener).await
    })
}

fn listen() -> Result<UnixListener> {
    let bound = UnixListener::bind(CONTROL_SOCKET).and_then(|listener| {
        std::fs::set_permissions(CONTROL_SOCKET, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    bound.explain(|| format!("cannot listen on {CONTROL_SOCKET}"))
}

struct Supervisor {
    service: Service,
    started: Instant,
    daemon: Option<Pid>,
    programs: PathBuf,
    daemon_log: File,
    /// Who asked for the daemon's end and waits for it.
    waiting: Vec<UnixStream>,
}

impl Supervisor {
    async fn run(mut self, listener: UnixListener) -> Result<()> {
        let mut children =
            signal(SignalKind::child()).explain(|| "cannot watch children".into())?;
        if enabled_flag().exists() {
            self.step(Event::Enable);
        }
        loop {
            let wake = self.service.wakes_at().map(|at| self.started + at);
            tokio::select! {
                _ = children.recv() => self.reap().await,
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        self.serve(stream).await;
                    }
                }
                () = sleep_until(wake) => self.step(Event::Tick),
            }
        }
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    fn step(&mut self, event: Event) {
        match self.service.step(self.now(), event) {
            Some(Action::Start) => self.start(),
            Some(Action::Terminate) => self.signal(Signal::TERM),
            None => {}
        }
    }

    fn start(&mut self) {
        match self.spawn_daemon() {
            Ok(pid) => self.daemon = Pid::from_raw(pid),
            Err(error) => {
                eprintln!("unum: cannot start unumd: {error}");
                self.step(Event::Ended { failed: true });
            }
        }
    }

    fn spawn_daemon(&self) -> std::io::Result<i32> {
        let beside = self.programs.join("unumd");
        let program = if beside.exists() { beside } else { PathBuf::from("unumd") };
        // Dropping the handle leaves the child to `reap`, which waits for every child alike.
        let child = Command::new(program)
            .args(["--config", crate::service::SETTINGS_FILE])
            .env("PATH", path_with(&self.programs))
            .stdin(Stdio::null())
            .stdout(self.daemon_log.try_clone()?)
            .stderr(self.daemon_log.try_clone()?)
            .current_dir("/")
            .spawn()?;
        i32::try_from(child.id()).map_err(std::io::Error::other)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.daemon {
            // Not reaped yet, so the number is still the daemon's.
            let _ = kill_process(pid, signal);
        }
    }

    async fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if Some(pid) == self.daemon {
                self.daemon = None;
                self.step(Event::Ended { failed: status.exit_status() != Some(0) });
            }
        }
        if self.service.is_down() {
            for stream in std::mem::take(&mut self.waiting) {
                answer(stream, "ok").await;
            }
        }
    }

    async fn serve(&mut self, mut stream: UnixStream) {
        let mut word = String::new();
        let mut request = BufReader::new((&mut stream).take(REQUEST_SIZE_MAX));
        // A silent asker must not keep PID 1 from its other work; it gets the last answer below.
        let _ = tokio::time::timeout(REQUEST_PATIENCE, request.read_line(&mut word)).await;
        let reply = match word.trim() {
            "enable" => self.enable(),
            "disable" => {
                let _ = std::fs::remove_file(enabled_flag());
                self.step(Event::Disable);
                if !self.service.is_down() {
                    self.waiting.push(stream);
                    return;
                }
                "ok".into()
            }
            "kill" => match self.daemon {
                Some(_) => {
                    self.signal(Signal::KILL);
                    "ok".into()
                }
                None => "the daemon does not run".into(),
            },
            _ => "say enable, disable or kill".into(),
        };
        answer(stream, &reply).await;
    }

    fn enable(&mut self) -> String {
        if let Err(error) = File::create(enabled_flag()) {
            return format!("cannot write {}: {error}", enabled_flag().display());
        }
        self.step(Event::Enable);
        "ok".into()
    }
}

/// Whether the machine with this directory starts its daemon at the next boot.
pub fn starts_daemon(machine: &Path) -> bool {
    machine.join("etc").join(ENABLED).exists()
}

fn enabled_flag() -> PathBuf {
    Path::new(mounts::SETTINGS_DIR).join(ENABLED)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn answer(mut stream: UnixStream, text: &str) {
    // The asker may be gone; there is nobody else to tell.
    let _ = tokio::time::timeout(REQUEST_PATIENCE, async {
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await;
}

/// The running binaries come first on the path.
pub fn path_with(programs: &Path) -> std::ffi::OsString {
    let mut path = programs.as_os_str().to_os_string();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// Says one word to the machine's PID 1 and waits until it is done.
pub fn ask(socket: &Path, word: &str) -> Result<()> {
    use std::io::{Read, Write};
    let asked = StdUnixStream::connect(socket).and_then(|mut stream| {
        writeln!(stream, "{word}")?;
        let mut reply = String::new();
        stream.take(1024).read_to_string(&mut reply)?;
        Ok(reply)
    });
    match asked.explain(|| "the machine does not answer".into())?.as_str() {
        "ok" => Ok(()),
        "" => Err(Failure::new("the machine lost its power")),
        why => Err(Failure::new(why)),
    }
}
