//! `unum ps`, `kill`, `wait`, `logs` and `where`: programs on all nodes.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use unum_net::CallOptions;
use unum_proto::process::{
    Ended, ListRequest, LogsRequest, Process, SignalRequest, SignalScope, WaitRequest,
    WhereRequest, ended,
};

use crate::cluster::timestamp;
use crate::daemon::{Daemon, block_on, local, process};
use crate::dev::user_name;
use crate::failure::{EXIT_OWN_FAILURE, Explain, Failure, Result};
use crate::output::{Output, Table};
use crate::run;

/// How long one `process.wait` may last; then it is asked again.
const WAIT_ROUND: Duration = Duration::from_secs(600);
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
const SIGNAL_MAX: i32 = 64;

#[derive(Serialize)]
struct ProcessRow {
    pid: u32,
    ppid: u32,
    node: String,
    user: String,
    state: String,
    cpu_ms: u64,
    rss_bytes: u64,
    started: Option<String>,
    command: String,
    detached: bool,
}

impl From<&Process> for ProcessRow {
    fn from(process: &Process) -> Self {
        Self {
            pid: process.pid,
            ppid: process.parent,
            node: process.node_name.clone(),
            user: user_name(process.uid),
            state: process.state.clone(),
            cpu_ms: process.cpu_us / 1000,
            rss_bytes: process.resident_bytes,
            started: timestamp(process.started_ms),
            command: process.command.clone(),
            detached: process.detached,
        }
    }
}

pub fn list(socket: &Path, out: &Output) -> Result<()> {
    let reply = block_on(async {
        Daemon::connect(socket).await?.call::<process::List>(ListRequest { local: false }).await
    })?;
    for node in &reply.silent_names {
        out.note(&format!("node {node} does not answer; its processes are not shown"));
    }
    let rows: Vec<ProcessRow> = reply.processes.iter().map(ProcessRow::from).collect();
    out.list(&rows, || {
        let mut table =
            Table::new(&["PID", "PPID", "NODE", "USER", "S", "CPU", "MEMORY", "COMMAND"]);
        for row in &rows {
            table.row([
                row.pid.to_string(),
                row.ppid.to_string(),
                row.node.clone(),
                row.user.clone(),
                row.state.clone(),
                format!("{}.{:02}", row.cpu_ms / 1000, row.cpu_ms % 1000 / 10),
                format!("{}K", row.rss_bytes / 1024),
                row.command.clone(),
            ]);
        }
        table
    })
}

/// `words` are what follows `kill`: perhaps -SIGNAL or -s SIGNAL, then PIDs.
pub fn kill(socket: &Path, words: &[String]) -> Result<()> {
    let (signal, pids) = parse_kill(words)?;
    block_on(async {
        let daemon = Daemon::connect(socket).await?;
        let mut failed = None;
        for pid in pids {
            let request = SignalRequest { pid, signal, scope: SignalScope::Process.into() };
            if let Err(failure) = daemon.call::<process::Signal>(request).await {
                failed.get_or_insert(failure);
            }
        }
        failed.map_or(Ok(()), Err)
    })
}

fn parse_kill(words: &[String]) -> Result<(i32, Vec<u32>)> {
    let (signal, pids) = match words {
        [option, name, pids @ ..] if option == "-s" => (signal_number(name)?, pids),
        [first, pids @ ..] if first.starts_with('-') && first != "--" => {
            (signal_number(first.trim_start_matches('-'))?, pids)
        }
        pids => (15, pids),
    };
    let pids: Vec<u32> = pids
        .iter()
        .filter(|word| *word != "--")
        .map(|word| parse_pid(word))
        .collect::<Result<_>>()?;
    match pids.is_empty() {
        true => Err(Failure::usage("which process?").next("unum kill [-SIGNAL] PID...")),
        false => Ok((signal, pids)),
    }
}

fn parse_pid(word: &str) -> Result<u32> {
    word.parse().map_err(|_| Failure::usage(format!("{word} is not a process ID")))
}

fn signal_number(name: &str) -> Result<i32> {
    if let Ok(number) = name.parse::<i32>()
        && (0..=SIGNAL_MAX).contains(&number)
    {
        return Ok(number);
    }
    let upper = name.to_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let found = SIGNALS.iter().find(|(known, _)| *known == bare);
    found.map(|(_, number)| *number).ok_or_else(|| {
        Failure::usage(format!("there is no signal {name}")).next("Names are as in `kill -l`.")
    })
}

/// Waits for a program wherever it runs; a daemon on the way may be started again meanwhile.
pub fn wait(socket: &Path, pid: u32, time: bool, out: &Output) -> Result<u8> {
    let ended = block_on(async {
        let mut give_up = Instant::now() + run::DAEMON_PATIENCE;
        let mut connected = false;
        loop {
            let failure = match Daemon::connect(socket).await {
                Ok(daemon) => {
                    connected = true;
                    let asked = Instant::now();
                    match wait_once(&daemon, pid).await? {
                        Ok(ended) => return Ok(ended),
                        Err(failure) if asked.elapsed() < run::DAEMON_PATIENCE => failure,
                        Err(_) => {
                            give_up = Instant::now() + run::DAEMON_PATIENCE;
                            continue;
                        }
                    }
                }
                Err(failure) => failure,
            };
            if !connected || Instant::now() > give_up {
                return Err(own(failure));
            }
            tokio::time::sleep(run::RETRY_PERIOD).await;
        }
    })?;
    if out.json {
        out.one(&EndRow::new(pid, &ended), String::new)?;
    }
    if time {
        run::tell_use(&ended);
    }
    run::exit_of(&ended, "")
}

/// The inner error is worth another try.
async fn wait_once(daemon: &Daemon, pid: u32) -> Result<Result<Ended>> {
    let options = CallOptions::within(WAIT_ROUND);
    let request = WaitRequest { pid };
    let answer = daemon.client().call::<process::Wait>(&local(), request, &options).await;
    match answer {
        Ok(reply) => Ok(Ok(reply.ended.unwrap_or_default())),
        Err(error) if run::is_lasting(&error) => Err(own(Failure::new(error.to_string()))),
        Err(error) => Ok(Err(Failure::new(error.to_string()))),
    }
}

/// What `unum wait --json` prints.
#[derive(Serialize)]
struct EndRow {
    pid: u32,
    exit: Option<i32>,
    signal: Option<i32>,
    lost: bool,
    core_dumped: bool,
    elapsed_ms: u64,
    user_ms: u64,
    system_ms: u64,
    peak_bytes: u64,
}

impl EndRow {
    fn new(pid: u32, ended: &Ended) -> Self {
        let (exit, signal, lost) = match ended.how {
            Some(ended::How::Exited(code)) => (Some(code), None, false),
            Some(ended::How::Signalled(signal)) => (None, Some(signal), false),
            Some(ended::How::Lost(_)) | None => (None, None, true),
        };
        Self {
            pid,
            exit,
            signal,
            lost,
            core_dumped: ended.core_dumped,
            elapsed_ms: ended.elapsed_us / 1000,
            user_ms: ended.user_cpu_us / 1000,
            system_ms: ended.system_cpu_us / 1000,
            peak_bytes: ended.peak_memory_bytes,
        }
    }
}

fn own(failure: Failure) -> Failure {
    failure.exit(EXIT_OWN_FAILURE)
}

pub fn logs(socket: &Path, pid: u32, follow: bool) -> Result<()> {
    block_on(async {
        let daemon = Daemon::connect(socket).await?;
        let mut offset = 0;
        loop {
            let reply = daemon.call::<process::Logs>(LogsRequest { pid, offset }).await?;
            let mut stdout = std::io::stdout().lock();
            stdout
                .write_all(&reply.bytes)
                .and_then(|()| stdout.flush())
                .explain(|| "cannot write to standard output".into())?;
            drop(stdout);
            offset = reply.offset + reply.bytes.len() as u64;
            if reply.complete || (reply.bytes.is_empty() && !follow) {
                return Ok(());
            }
            if reply.bytes.is_empty() {
                tokio::time::sleep(FOLLOW_PERIOD).await;
            }
        }
    })
}

#[derive(Serialize)]
struct Whereabouts {
    id: u64,
    node: String,
}

pub fn whereabouts(socket: &Path, pid: Option<u32>, out: &Output) -> Result<()> {
    let request = WhereRequest { pid: pid.unwrap_or(0) };
    let reply =
        block_on(async { Daemon::connect(socket).await?.call::<process::Where>(request).await })?;
    let place = Whereabouts { id: reply.node, node: reply.node_name };
    out.one(&place, || format!("{}\n", place.node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_kill_does() {
        let parse = |words: &[&str]| {
            parse_kill(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(parse(&["7"]), Ok((15, vec![7])));
        assert_eq!(parse(&["-9", "7", "8"]), Ok((9, vec![7, 8])));
        assert_eq!(parse(&["-SIGstop", "7"]), Ok((19, vec![7])));
        assert_eq!(parse(&["-s", "HUP", "--", "7"]), Ok((1, vec![7])));
        assert_eq!(parse(&["-0", "7"]), Ok((0, vec![7])));
        for wrong in [&["-NOPE", "7"][..], &["-65", "7"], &["x"], &["-9"], &[]] {
            assert_eq!(parse(wrong).map_err(|failure| failure.exit), Err(2));
        }
    }
}
