//! How a call fails: what a service answers (`Status`) and what its caller gets (`RpcError`).

use std::fmt;

use bytes::Bytes;
use unum_proto::{
    ids::{Epoch, NodeId},
    rpc,
};

use crate::directory::Name;

/// Where a name is, and since which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    pub node: NodeId,
    pub epoch: Epoch,
}

impl From<Hint> for rpc::Hint {
    fn from(hint: Hint) -> Self {
        rpc::Hint { node: hint.node.0, epoch: hint.epoch.0 }
    }
}

impl From<rpc::Hint> for Hint {
    fn from(hint: rpc::Hint) -> Self {
        Hint { node: NodeId(hint.node), epoch: Epoch(hint.epoch) }
    }
}

/// Why a service did not do what was asked. The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Code {
    /// A fault of the service; nothing the caller can do.
    Internal = 1,
    /// The request makes no sense.
    Invalid = 2,
    NotFound = 3,
    Exists = 4,
    /// The caller may not do this.
    Denied = 5,
    /// Not now: no quorum, starting, shutting down. Trying later may help.
    Unavailable = 6,
    /// Something changed in between; look again, then retry.
    Conflict = 7,
    /// An epoch that the request carried is outdated.
    Fenced = 8,
    /// The service's own meaning: it is in `detail`.
    Service = 9,
    NoSpace = 10,
    /// Handled by the client; a service makes them with `Status::moved` and `Status::overloaded`.
    Moved = 32,
    Overloaded = 33,
    DeadlineExceeded = 34,
    Cancelled = 35,
    UnknownMethod = 36,
    /// The request was received before, and its reply is no longer kept.
    Forgotten = 37,
}

impl Code {
    /// The code of a number on the wire; one that this version does not know is `Internal`.
    pub fn from_wire(value: u32) -> Self {
        use Code::*;
        const ALL: [Code; 16] = [
            Internal,
            Invalid,
            NotFound,
            Exists,
            Denied,
            Unavailable,
            Conflict,
            Fenced,
            Service,
            NoSpace,
            Moved,
            Overloaded,
            DeadlineExceeded,
            Cancelled,
            UnknownMethod,
            Forgotten,
        ];
        ALL.into_iter().find(|code| *code as u32 == value).unwrap_or(Internal)
    }
}

/// A refusal by a service: a code for programs, a message for people, and a detail that the service
/// and its clients agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    pub message: String,
    pub detail: Bytes,
    pub(crate) hint: Option<Hint>,
}

impl Status {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Status { code, message: message.into(), detail: Bytes::new(), hint: None }
    }

    pub fn with_detail(mut self, detail: impl Into<Bytes>) -> Self {
        self.detail = detail.into();
        self
    }

    /// What was asked for lives elsewhere: the client goes on there.
    pub fn moved(hint: Hint) -> Self {
        Status { hint: Some(hint), ..Status::new(Code::Moved, format!("moved to {}", hint.node)) }
    }

    pub fn overloaded(message: impl Into<String>) -> Self {
        Status::new(Code::Overloaded, message)
    }

    pub fn denied(message: impl Into<String>) -> Self {
        Status::new(Code::Denied, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Status::new(Code::Internal, message)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// Why a call has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RpcError {
    /// Whether it was executed is unknown unless the method is idempotent.
    #[error("no answer before the deadline")]
    DeadlineExceeded,
    /// The far side's execution was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Certainly not executed.
    #[error("{to} cannot be reached: {why}")]
    Unreachable { to: Name, why: String },
    /// The connection broke after the request was sent, and it cannot be repeated safely.
    #[error("the connection to {to} broke and whether the request was executed is unknown: {why}")]
    OutcomeUnknown { to: Name, why: String },
    /// Moved more often than a call follows.
    #[error("moved to {}", hint.node)]
    Moved { hint: Hint },
    /// Not executed; a bounded queue on the way is full.
    #[error("overloaded: {0}")]
    Overloaded(String),
    #[error("denied: {0}")]
    Denied(String),
    #[error("{0}")]
    Status(Status),
    /// The peer does not keep to the protocol, or a message is larger than it allows.
    #[error("protocol error: {0}")]
    Protocol(String),
}

impl RpcError {
    /// The code of the service's refusal, if it is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            RpcError::Status(status) => Some(status.code),
            RpcError::Denied(_) => Some(Code::Denied),
            RpcError::Overloaded(_) => Some(Code::Overloaded),
            RpcError::Moved { .. } => Some(Code::Moved),
            RpcError::Cancelled => Some(Code::Cancelled),
            RpcError::DeadlineExceeded => Some(Code::DeadlineExceeded),
            _ => None,
        }
    }
}

impl From<Status> for RpcError {
    fn from(status: Status) -> Self {
        match (status.code, status.hint) {
            (Code::Moved, Some(hint)) => RpcError::Moved { hint },
            (Code::Overloaded, _) => RpcError::Overloaded(status.message),
            (Code::Denied, _) => RpcError::Denied(status.message),
            (Code::DeadlineExceeded, _) => RpcError::DeadlineExceeded,
            (Code::Cancelled, _) => RpcError::Cancelled,
            _ => RpcError::Status(status),
        }
    }
}

/// Handing on what another node answered.
impl From<RpcError> for Status {
    fn from(error: RpcError) -> Self {
        match error {
            RpcError::Status(status) => status,
            RpcError::Moved { hint } => Status::moved(hint),
            RpcError::DeadlineExceeded => Status::new(Code::DeadlineExceeded, error.to_string()),
            RpcError::Cancelled => Status::new(Code::Cancelled, error.to_string()),
            RpcError::Overloaded(message) => Status::overloaded(message),
            RpcError::Denied(message) => Status::denied(message),
            RpcError::Unreachable { .. } => Status::new(Code::Unavailable, error.to_string()),
            RpcError::OutcomeUnknown { .. } | RpcError::Protocol(_) => {
                Status::internal(error.to_string())
            }
        }
    }
}
