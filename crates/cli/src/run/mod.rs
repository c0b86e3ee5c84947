//! `unum run`: a program on some node, as if it ran here.
//!
//! The daemon on the way may die: the program and its streams are kept by unum-init on the program's
//! node, every byte has an offset, and `unum run` attaches again where it was.

mod attachment;
mod program;
mod terminal;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use unum_net::{CallOptions, Client, Code, RpcError};
use unum_proto::process::{Ended, StartFailure, StartReply, StartRequest, StartStep, ended};

use crate::daemon::{block_on, local, process};
use crate::failure::{
    EXIT_FAILURE, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_OWN_FAILURE, EXIT_SIGNAL_BASE, Explain,
    Failure, Result,
};
use crate::output::Output;

/// How long the daemon may be away before we give up on it.
pub const DAEMON_PATIENCE: Duration = Duration::from_secs(30);
/// A daemon that was just killed is back within a few of these.
pub const RETRY_PERIOD: Duration = Duration::from_millis(50);
const START_PATIENCE: Duration = Duration::from_secs(20);
const KEY_SIZE: usize = 16;
/// The program's node was lost: how it ended, if it did, is not known. As with ssh.
const EXIT_LOST: u8 = 255;

pub struct RunOrder {
    pub node: Option<String>,
    pub detach: bool,
    pub time: bool,
    pub command: Vec<OsString>,
}

pub fn run(socket: &Path, order: &RunOrder, out: &Output) -> Result<u8> {
    let terminal = if order.detach { None } else { terminal::Terminal::of_this_process() };
    let request = StartRequest {
        program: Some(program::describe(order, terminal.as_ref())?),
        node: order.node.clone().unwrap_or_default(),
        key: fresh_key()?,
    };
    block_on(async {
        let (started, client) = start(socket, request).await.map_err(own_failure)?;
        if order.detach {
            out.one(&program::Started::from(&started), || format!("{}\n", started.pid))?;
            return Ok(0);
        }
        let ended = attachment::attend(socket, client, started.pid, terminal).await;
        let ended = ended.map_err(own_failure)?;
        if order.time {
            tell_use(&ended);
        }
        exit_of(&ended, &started.node_name)
    })
}

fn own_failure(failure: Failure) -> Failure {
    let exit = if failure.exit == EXIT_FAILURE { EXIT_OWN_FAILURE } else { failure.exit };
    failure.exit(exit)
}

fn fresh_key() -> Result<Bytes> {
    let mut key = [0; KEY_SIZE];
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
        .explain(|| "cannot get random bytes".into())?;
    Ok(Bytes::copy_from_slice(&key))
}

/// Starts the program once, however often the request must be repeated: the key tells.
async fn start(socket: &Path, request: StartRequest) -> Result<(StartReply, Client)> {
    let give_up = Instant::now() + DAEMON_PATIENCE;
    let mut sent = false;
    loop {
        let error = match Client::unix(socket).await {
            Ok(client) => {
                sent = true;
                let options = CallOptions::within(START_PATIENCE).fail_fast();
                let answer =
                    client.call::<process::Start>(&local(), request.clone(), &options).await;
                match answer {
                    Ok(reply) => return Ok((reply, client)),
                    Err(
                        error @ (RpcError::OutcomeUnknown { .. } | RpcError::Unreachable { .. }),
                    ) => Failure::new(format!("the daemon went away: {error}")),
                    Err(error) => return Err(start_failure(error)),
                }
            }
            Err(error) => crate::daemon::unreachable(socket, error),
        };
        // A daemon that never answered does not run; one that did is being started again.
        if !sent || Instant::now() > give_up {
            return Err(error);
        }
        tokio::time::sleep(RETRY_PERIOD).await;
    }
}

fn start_failure(error: RpcError) -> Failure {
    let step = match &error {
        RpcError::Status(status) => StartFailure::decode(status.detail.clone())
            .map(|failure| failure.step())
            .unwrap_or(StartStep::Unspecified),
        _ => StartStep::Unspecified,
    };
    let failure = Failure::new(error.to_string());
    match step {
        StartStep::Find => failure.exit(EXIT_NOT_FOUND),
        StartStep::Execute => failure.exit(EXIT_NOT_EXECUTABLE),
        StartStep::Place => failure.next("See the nodes there are: unum nodes"),
        StartStep::Directory => {
            failure.next("Change to a directory that exists there, such as one below /unum.")
        }
        StartStep::Resources | StartStep::Unspecified => failure,
    }
}

fn lost(text: String) -> Failure {
    Failure::new(text).next("Run it again; what it had not yet written is gone.").exit(EXIT_LOST)
}

/// Whether asking again would bring the same answer.
pub fn is_lasting(error: &RpcError) -> bool {
    matches!(
        error.code(),
        Some(Code::NotFound | Code::Denied | Code::Invalid | Code::Conflict | Code::UnknownMethod)
    )
}

/// What the program used, as time(1) says it.
pub fn tell_use(ended: &Ended) {
    let seconds = |us: u64| format!("{}.{:03}", us / 1_000_000, us / 1000 % 1000);
    // Nobody who reads standard error is no reason to fail.
    let _ = writeln!(
        std::io::stderr(),
        "real {}\nuser {}\nsys {}\npeak {} KiB",
        seconds(ended.elapsed_us),
        seconds(ended.user_cpu_us),
        seconds(ended.system_cpu_us),
        ended.peak_memory_bytes / 1024
    );
}

/// The exit status for a program that ended so.
pub fn exit_of(ended: &Ended, node: &str) -> Result<u8> {
    match ended.how {
        Some(ended::How::Exited(code)) => Ok(code as u8),
        Some(ended::How::Signalled(signal)) => {
            Ok(u8::try_from(signal).map_or(EXIT_FAILURE, |signal| EXIT_SIGNAL_BASE + signal))
        }
        Some(ended::How::Lost(_)) => {
            let node = if node.is_empty() { String::new() } else { format!(" {node}") };
            Err(lost(format!("the program was lost with its node{node}")))
        }
        None => Err(Failure::new("how the program ended is not known").exit(EXIT_OWN_FAILURE)),
    }
}
