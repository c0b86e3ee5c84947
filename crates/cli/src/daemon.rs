//! Speaking with the node's daemon over its local socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use unum_net::{CallOptions, Client, Method, Name, RpcError};
pub use unum_node::api::methods::*;
pub use unum_node::processes as process;

use crate::failure::{Explain, Failure, Result};

pub const SOCKET: &str = "/run/unum/unumd.sock";
/// An administrative call that takes longer has lost its daemon or its majority.
pub const CALL_PATIENCE: Duration = Duration::from_secs(20);

/// The daemon behind one socket.
pub struct Daemon {
    client: Client,
    socket: PathBuf,
}

impl Daemon {
    pub async fn connect(socket: &Path) -> Result<Self> {
        match Client::unix(socket).await {
            Ok(client) => Ok(Self { client, socket: socket.into() }),
            Err(error) => Err(unreachable(socket, error)),
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub async fn call<M: Method>(&self, request: M::Request) -> Result<M::Reply> {
        self.call_within::<M>(request, CALL_PATIENCE).await
    }

    pub async fn call_within<M: Method>(
        &self,
        request: M::Request,
        patience: Duration,
    ) -> Result<M::Reply> {
        let options = CallOptions::within(patience).fail_fast();
        self.client
            .call::<M>(&local(), request, &options)
            .await
            .map_err(|error| self.explain(M::NAME, error, patience))
    }

    fn explain(&self, method: &str, error: RpcError, patience: Duration) -> Failure {
        let socket = self.socket.display();
        match error {
            RpcError::DeadlineExceeded => Failure::new(format!(
                "unumd did not answer within {} s (asked for {method} over {socket})",
                patience.as_secs()
            ))
            .next("See whether it reaches a majority of the voters: unum status"),
            RpcError::Unreachable { why, .. } => {
                Failure::new(format!("unumd does not answer on {socket}: {why}"))
                    .next("Start it: unum up")
            }
            RpcError::OutcomeUnknown { .. } => Failure::new(
                "unumd died before it answered; whether it did what was asked is not \
                              known",
            )
            .next("Look with `unum status` and `unum nodes` before you try again."),
            other => Failure::new(other.to_string()),
        }
    }
}

/// The local daemon answers to every name.
pub fn local() -> Name {
    Name::Service("admin".into())
}

pub fn unreachable(socket: &Path, error: std::io::Error) -> Failure {
    let failure = Failure::new(format!("cannot reach unumd on {}: {error}", socket.display()));
    match error.kind() {
        // The reason comes as a sentence; nearly always nobody listens.
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::Other => failure.next(
            "It does not run here. Start it with `unum up` or `unum join`, or name another socket \
             with --socket.",
        ),
        ErrorKind::PermissionDenied => failure.next("You may not use this socket."),
        _ => failure,
    }
}

/// Runs an exchange with the daemon to its end.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .explain(|| "cannot start the event loop".into())?
        .block_on(work)
}
