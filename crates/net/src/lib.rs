//! Between daemons, and between a daemon and its local programs: identity, mutual TLS, frames, RPC,
//! streams, and the handshake by which a machine joins.
//!
//! Invariants: no byte between nodes travels outside TLS 1.3 with both sides' certificates checked
//! (the join handshake checks the server's against the token's hash first); bytes from a peer never
//! panic and never make more memory be held than a named limit; a method that is not idempotent is
//! executed at most once for each call.
//!
//! Left out: who is a member, where services live (the daemon tells the `Directory`), and what any
//! method means.

mod call;
mod client;
mod complaints;
mod credentials;
mod departures;
mod dial;
mod directory;
mod error;
mod frame;
pub mod identity;
pub mod join;
pub mod limits;
mod link;
mod method;
mod peer;
mod reader;
mod replies;
mod router;
mod served;
mod server;
mod settings;
mod stream;
mod tasks;
mod writer;

pub use call::{CallOptions, Caller, Incoming, TraceContext};
pub use client::{Client, Opened, ReplyFuture};
pub use departures::{Departures, Guard};
pub use directory::{Directory, Name};
pub use error::{Code, Hint, RpcError, Status};
pub use identity::{CertificateAuthority, ClusterId, Identity, IdentityStore, NodeKey, TurnedAway};
pub use join::JoinToken;
pub use method::{Class, Method};
pub use router::Router;
pub use server::{Server, UnixServer};
pub use settings::Settings;
pub use stream::{StreamReceiver, StreamSender};
pub use writer::Outgoing;
