//! Server.
use crate::{IdentityStore, Router, Settings, join::JoinDesk};
use std::{io, net::SocketAddr, path::Path, sync::Arc};
use tokio::net::TcpListener;

/// A listening daemon.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// Serves nodes, and joining machines if there is a desk for them.
    pub fn start(
        _listener: TcpListener,
        _identity: Arc<IdentityStore>,
        _router: Arc<Router>,
        _desk: Option<Arc<dyn JoinDesk>>,
        _settings: Settings,
    ) -> io::Result<Self> {
        unimplemented!()
    }

    pub fn address(&self) -> SocketAddr {
        unimplemented!()
    }

    /// Stops, with all tasks joined.
    pub async fn shutdown(self) {
        unimplemented!()
    }
}

/// A daemon's local socket.
#[derive(Debug)]
pub struct UnixServer {}

impl UnixServer {
    /// Replaces a socket that a dead daemon left; mode 0666, callers are told apart by their credentials.
    pub fn start(_path: &Path, _router: Arc<Router>) -> io::Result<Self> {
        unimplemented!()
    }

    pub async fn shutdown(self) {
        unimplemented!()
    }
}
