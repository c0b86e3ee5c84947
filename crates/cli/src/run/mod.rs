//! `unum run`: a program on some node, as if it ran here.
//!
//! The daemon on the way may die: the program and its streams are kept by unum-init on the program's
//! node, every byte has an offset, and `unum run` attaches again where it was.

mod attachment;
mod program;
mod terminal;

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use unum_net::{CallOptions, Client, RpcError};
use unum_proto::process::{Ended, StartFailure, StartReply, StartRequest, StartStep, ended};

use crate::daemon::{block_on, local, process};
use crate::failure::{
    EXIT_FAILURE, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_OWN_FAILURE, EXIT_SIGNAL_BASE, Explain,
    Failure, Result,
};
use crate::output::Output;

/// How long the daemon may be away before we give up on it.
const DAEMON_PATIENCE: Duration = Duration::from_secs(30);
/// A daemon that was just killed is back within a few of these.
const RETRY_PERIOD: Duration = Duration::from_millis(50);
const START_PATIENCE: Duration = Duration::from_secs(20);
const KEY_SIZE: usize = 16;

pub struct RunOrder {
    pub node: Option<String>,
    pub detach: bool,
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
        let started = start(socket, request).await.map_err(own_failure)?;
        if order.detach {
            out.one(&program::Started::from(&started), || format!("{}\n", started.pid))?;
            return Ok(0);
        }
        let ended = attachment::attend(socket, started.pid, terminal).await.map_err(own_failure)?;
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
async fn start(socket: &Path, request: StartRequest) -> Result<StartReply> {
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
                    Ok(reply) => return Ok(reply),
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

/// The exit status for a program that ended so.
pub fn exit_of(ended: &Ended, node: &str) -> Result<u8> {
    match ended.how {
        Some(ended::How::Exited(code)) => Ok(code as u8),
        Some(ended::How::Signalled(signal)) => {
            Ok(u8::try_from(signal).map_or(EXIT_FAILURE, |signal| EXIT_SIGNAL_BASE + signal))
        }
        Some(ended::How::Lost(_)) => {
            Err(Failure::new(format!("the program was lost with its node {node}"))
                .next("Run it again; what it had not yet written is gone.")
                .exit(EXIT_OWN_FAILURE))
        }
        None => Err(Failure::new("how the program ended is not known").exit(EXIT_OWN_FAILURE)),
    }
}
