//! How a machine without a certificate becomes a node.
//!
//! The joiner checks the hash of the server's CA certificate against its token while the TLS
//! handshake runs, so nothing secret is sent to anybody but the cluster that made the token. One
//! request, one reply, small, short, and limited in rate.

mod desk;
mod joiner;
mod token;

pub use desk::{JoinDesk, JoinFuture};
pub(crate) use desk::{JoinLimiter, serve_join};
pub use joiner::{JoinError, Joined, join};
pub use token::{JoinToken, TokenError, TokenSecret};
