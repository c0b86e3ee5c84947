//! What travels along with each call: who asks, until when, and as part of which trace.

use std::{fmt, time::Duration};

use tokio::{sync::watch, time::Instant};
use unum_proto::{ids::NodeId, rpc};

/// Who asks. Between nodes, `node` is what the peer's certificate says and the rest is what that
/// node claims about its user; on the local socket all of it is from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// None on the local socket.
    pub node: Option<NodeId>,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Caller {
    /// The daemon itself.
    pub fn system() -> Self {
        Caller::default()
    }

    pub(crate) fn to_wire(&self) -> Option<rpc::User> {
        if self.uid == 0 && self.gid == 0 && self.groups.is_empty() {
            return None;
        }
        Some(rpc::User { uid: self.uid, gid: self.gid, groups: self.groups.clone() })
    }

    pub(crate) fn from_wire(node: Option<NodeId>, user: Option<rpc::User>) -> Self {
        let user = user.unwrap_or_default();
        Caller { node, uid: user.uid, gid: user.gid, groups: user.groups }
    }
}

/// W3C trace context, 25 bytes on the wire. All zero: not traced.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct TraceContext {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub flags: u8,
}

pub const TRACE_SIZE: usize = 25;

impl TraceContext {
    pub(crate) fn to_wire(self) -> Vec<u8> {
        if self == TraceContext::default() {
            return Vec::new();
        }
        let mut bytes = Vec::with_capacity(TRACE_SIZE);
        bytes.extend_from_slice(&self.trace);
        bytes.extend_from_slice(&self.span);
        bytes.push(self.flags);
        bytes
    }

    /// None: neither empty nor of the right length.
    pub(crate) fn from_wire(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(TraceContext::default());
        }
        let (trace, rest) = bytes.split_first_chunk::<16>()?;
        let (span, rest) = rest.split_first_chunk::<8>()?;
        let [flags] = rest else { return None };
        Some(TraceContext { trace: *trace, span: *span, flags: *flags })
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace = u128::from_be_bytes(self.trace);
        let span = u64::from_be_bytes(self.span);
        write!(f, "{trace:032x}-{span:016x}-{:02x}", self.flags)
    }
}

/// How a call is made.
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// None only suits calls with streams, which may last as long as a program runs.
    pub deadline: Option<Instant>,
    pub trace: TraceContext,
    /// On whose behalf. Ignored on the local socket, where the kernel knows.
    pub caller: Caller,
    /// Give up at the first failure to connect, rather than redialling until the deadline.
    pub fail_fast: bool,
}

impl CallOptions {
    pub fn within(timeout: Duration) -> Self {
        CallOptions { deadline: Some(Instant::now() + timeout), ..CallOptions::unlimited() }
    }

    pub fn until(deadline: Instant) -> Self {
        CallOptions { deadline: Some(deadline), ..CallOptions::unlimited() }
    }

    /// Without a deadline.
    pub fn unlimited() -> Self {
        CallOptions {
            deadline: None,
            trace: TraceContext::default(),
            caller: Caller::system(),
            fail_fast: false,
        }
    }

    /// A call made to answer another: same user, deadline and trace.
    pub fn on_behalf(incoming: &Incoming) -> Self {
        CallOptions {
            deadline: incoming.deadline,
            trace: incoming.trace,
            caller: incoming.caller.clone(),
            fail_fast: false,
        }
    }

    pub fn caller(mut self, caller: Caller) -> Self {
        self.caller = caller;
        self
    }

    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = trace;
        self
    }

    pub fn fail_fast(mut self) -> Self {
        self.fail_fast = true;
        self
    }
}

/// What a service knows of a call besides its request.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub caller: Caller,
    pub deadline: Option<Instant>,
    pub trace: TraceContext,
    pub(crate) cancelled: Option<watch::Receiver<bool>>,
    pub(crate) ending: watch::Receiver<bool>,
}

impl Incoming {
    /// Completes when the connection that the call came over has ended. Of a caller on this machine
    /// that means that it has ended or wants nothing more: its connection does not break by itself.
    pub async fn disconnected(&self) {
        let mut ending = self.ending.clone();
        if ending.wait_for(|ending| *ending).await.is_err() {
            // This daemon is going down, which says nothing of the caller.
            std::future::pending().await
        }
    }

    /// Completes when the caller is no longer interested. The service's future is dropped then
    /// anyway; this is for work that it handed to somebody else.
    pub async fn cancelled(&self) {
        if let Some(signal) = &self.cancelled {
            let mut signal = signal.clone();
            if signal.wait_for(|cancelled| *cancelled).await.is_ok() {
                return;
            }
        }
        std::future::pending().await
    }
}
