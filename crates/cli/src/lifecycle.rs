//! `unum up`, `join` and `down`: the daemon's life on this machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use unum_net::Client;
use unum_node::settings::{SETTINGS_PATH, Settings};
use unum_proto::admin::{
    CreateRequest, DaemonState, DownRequest, JoinRequest, StatusReply, StatusRequest,
};

use crate::args::StartArgs;
use crate::daemon::{Create, Daemon, Down, Join, ShowStatus, block_on};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::service::{self, Service};

/// The daemon's socket answers within this time, or the daemon did not start.
const START_PATIENCE: Duration = Duration::from_secs(15);
/// A member that starts finds its majority within this time, or it is told to the person.
const READY_PATIENCE: Duration = Duration::from_secs(30);
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// Making a cluster is a matter of milliseconds, but for a disk that is busy with something else.
const CREATE_PATIENCE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const POLL_PERIOD: Duration = Duration::from_millis(20);
/// Waits longer than this are told on a terminal.
const SILENCE_MAX: Duration = Duration::from_secs(2);

pub fn up(start: &StartArgs, socket: Option<&Path>, out: &Output) -> Result<()> {
    let service = prepare(start, socket)?;
    block_on(async {
        let (daemon, status) = running_daemon(&service, out).await?;
        if status.state() == DaemonState::Solitary {
            let create = daemon.call_within::<Create>(CreateRequest {}, CREATE_PATIENCE);
            telling(out, "waiting for the cluster to be made; is the disk busy?", create).await?;
        }
        let status = wait_until_ready(&service, &daemon, out).await?;
        out.say(&format!("node {} of cluster {} is up", status.name, status.cluster));
        Ok(())
    })
}

pub fn join(
    token: String,
    addresses: Vec<String>,
    start: &StartArgs,
    socket: Option<&Path>,
    out: &Output,
) -> Result<()> {
    let service = prepare(start, socket)?;
    block_on(async {
        let (daemon, status) = running_daemon(&service, out).await?;
        if status.state() != DaemonState::Solitary {
            return Err(Failure::new(format!(
                "this machine is already node {} of cluster {}",
                status.name, status.cluster
            ))
            .next("To make it join another cluster, first: unum leave"));
        }
        let request = JoinRequest { token, addresses };
        let join = daemon.call_within::<Join>(request, JOIN_PATIENCE);
        telling(out, "waiting to be let in", join).await?;
        let status = wait_until_ready(&service, &daemon, out).await?;
        out.say(&format!("node {} of cluster {} is up", status.name, status.cluster));
        Ok(())
    })
}

pub fn down(config: Option<PathBuf>, socket: &Path, out: &Output) -> Result<()> {
    require_root("stop the daemon")?;
    let path = config.unwrap_or_else(|| SETTINGS_PATH.into());
    let settings = load(&path)?;
    let service = Service::find(path, settings);
    // A settings file that names another run directory names the socket too.
    let usual = socket == Path::new(crate::daemon::SOCKET);
    let socket = if usual { service.settings.socket() } else { socket.into() };
    block_on(async {
        match Daemon::connect(&socket).await {
            Err(_) => out.note("unumd does not run here"),
            Ok(daemon) => {
                let reply = daemon.call_within::<Down>(DownRequest {}, STOP_PATIENCE).await?;
                wait_for_end(reply.daemon_pid).await?;
            }
        }
        Ok(())
    })?;
    service.disable()
}

/// The settings that the daemon is started with: the file's, written first if there is none.
fn prepare(start: &StartArgs, socket: Option<&Path>) -> Result<Service> {
    require_root("start a node")?;
    let path = start.config.clone().unwrap_or_else(|| SETTINGS_PATH.into());
    if !path.exists() {
        let mut settings = Settings::default();
        apply(start, &mut settings)?;
        check_socket(socket, &settings)?;
        service::write_settings(&path, &settings)?;
    }
    let settings = load(&path)?;
    let mut wanted = settings.clone();
    apply(start, &mut wanted)?;
    if wanted != settings {
        return Err(Failure::usage(format!(
            "{} exists and says something else than the options given",
            path.display()
        ))
        .next("Change the file, or name another with --config."));
    }
    check_socket(socket, &settings)?;
    let path = path.canonicalize().unwrap_or(path);
    Ok(Service::find(path, settings))
}

/// Where the daemon listens follows from its settings alone.
fn check_socket(asked: Option<&Path>, settings: &Settings) -> Result<()> {
    let socket = settings.socket();
    match asked {
        Some(asked) if asked != socket => Err(Failure::usage(format!(
            "the daemon with these settings listens at {}, not at {}",
            socket.display(),
            asked.display()
        ))
        .next("Choose its directory with --run-dir DIR; the socket is DIR/unumd.sock.")),
        _ => Ok(()),
    }
}

fn load(path: &Path) -> Result<Settings> {
    let file = path.exists().then_some(path);
    Settings::load(file).map_err(|error| Failure::new(error.to_string()))
}

fn apply(start: &StartArgs, settings: &mut Settings) -> Result<()> {
    let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let changes = [
        ("data_dir", text(&start.data_dir)),
        ("run_dir", text(&start.run_dir)),
        ("mount", text(&start.mount)),
        ("listen", start.listen.clone()),
        ("name", start.name.clone()),
    ];
    for (key, value) in changes {
        if let Some(value) = value {
            settings.set(key, &value).map_err(|error| Failure::usage(error.to_string()))?;
        }
    }
    Ok(())
}

fn require_root(what: &str) -> Result<()> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(Failure::new(format!("only root can {what}")).next("Run it with sudo.")),
    }
}

/// A connection to the daemon, which is started if it does not run.
async fn running_daemon(service: &Service, out: &Output) -> Result<(Daemon, StatusReply)> {
    let socket = service.settings.socket();
    if Client::unix(&socket).await.is_err() {
        service.enable()?;
    }
    let mut wait = Wait::new(START_PATIENCE, "waiting for unumd to start");
    loop {
        let failure = match Daemon::connect(&socket).await {
            Ok(daemon) => match daemon.call::<ShowStatus>(StatusRequest {}).await {
                Ok(status) => return Ok((daemon, status)),
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        if !wait.again(out).await {
            return Err(Failure::new(format!("unumd did not start: {}", failure.what))
                .next(service.log_hint()));
        }
    }
}

async fn wait_until_ready(service: &Service, daemon: &Daemon, out: &Output) -> Result<StatusReply> {
    let mut wait = Wait::new(READY_PATIENCE, "waiting for the cluster");
    loop {
        let status = daemon.call::<ShowStatus>(StatusRequest {}).await?;
        if status.state() == DaemonState::Ready {
            return Ok(status);
        }
        if !wait.again(out).await {
            return Err(Failure::new(format!(
                "unumd runs, but after {} s it still is in the state {}",
                READY_PATIENCE.as_secs(),
                status.state().word()
            ))
            .next(format!("See `unum status`. {}", service.log_hint())));
        }
    }
}

async fn wait_for_end(pid: u32) -> Result<()> {
    let deadline = Instant::now() + STOP_PATIENCE;
    while Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(pid) {
        if Instant::now() > deadline {
            return Err(Failure::new(format!("unumd (process {pid}) does not end"))
                .next(format!("Kill it: kill -9 {pid}")));
        }
        tokio::time::sleep(POLL_PERIOD).await;
    }
    Ok(())
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// Does the work, which has an end of its own, and tells the person what takes so long if it does.
async fn telling<T>(out: &Output, what: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    match tokio::time::timeout(SILENCE_MAX, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            out.progress(what);
            work.await
        }
    }
}

/// A wait with an end, told to the person when it gets long.
struct Wait {
    started: Instant,
    patience: Duration,
    what: Option<&'static str>,
}

impl Wait {
    fn new(patience: Duration, what: &'static str) -> Self {
        Self { started: Instant::now(), patience, what: Some(what) }
    }

    /// False when the patience is over.
    async fn again(&mut self, out: &Output) -> bool {
        let waited = self.started.elapsed();
        if waited > SILENCE_MAX
            && let Some(what) = self.what.take()
        {
            out.progress(what);
        }
        tokio::time::sleep(POLL_PERIOD).await;
        waited < self.patience
    }
}
