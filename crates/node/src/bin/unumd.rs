//! unumd: a node's daemon. Options, log, runtime; everything else is in the library.

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use unum_node::settings::{KEYS, Settings};
use unum_node::{beats, daemon, system};

/// The daemon waits more than it computes.
const WORKER_THREADS: usize = 2;
/// Threads for disk work that would hold a worker up.
const BLOCKING_THREADS_MAX: usize = 16;
const IDLE_THREAD_LIFE: std::time::Duration = std::time::Duration::from_secs(5);

fn main() -> ExitCode {
    let matches = options().get_matches();
    match start(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unumd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Command {
    let mut command = Command::new("unumd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The daemon that makes this machine a node of an Unum cluster")
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("The settings file [default: /etc/unum/unum.toml, if it exists]"),
        )
        .arg(
            Arg::new("init-cluster")
                .long("init-cluster")
                .action(ArgAction::SetTrue)
                .help("Make a new cluster if this machine belongs to none"),
        )
        .arg(
            Arg::new("print-settings")
                .long("print-settings")
                .action(ArgAction::SetTrue)
                .help("Print all settings as a file with comments, and exit"),
        );
    for key in KEYS {
        command =
            command.arg(Arg::new(key.name).long(key.option()).value_name("VALUE").help(key.help));
    }
    command
}

fn start(matches: &ArgMatches) -> anyhow::Result<()> {
    let settings = settings(matches)?;
    if matches.get_flag("print-settings") {
        print!("{}", settings.to_toml());
        return Ok(());
    }
    start_log(&settings.log)?;
    let priority = system::raise_priority();
    tracing::debug!(priority, "priority raised");
    beats::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(IDLE_THREAD_LIFE)
        .thread_name("unumd")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        Ok(daemon::run(settings, matches.get_flag("init-cluster"), stop).await?)
    })
}

fn settings(matches: &ArgMatches) -> anyhow::Result<Settings> {
    let file = matches.get_one::<String>("config").map(PathBuf::from);
    let mut settings = Settings::load(file.as_deref().map(Path::new))?;
    for key in KEYS {
        if let Some(value) = matches.get_one::<String>(key.name) {
            settings.set(key.name, value)?;
        }
    }
    Ok(settings)
}

fn start_log(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .with_context(|| format!("the setting `log` cannot be {filter:?}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

/// Completes at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stops"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stops"),
        }
    })
}
