//! Listening: one TCP port for nodes and joining machines, one Unix socket for local programs.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::server::Acceptor;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::complaints::Complaints;
use crate::{
    Caller, IdentityStore, Router, Settings,
    credentials::caller_of,
    dial::prepare,
    identity::{ALPN_JOIN, ALPN_RPC, read_node},
    join::{JoinDesk, JoinLimiter, serve_join},
    limits::{
        CONNECTIONS_MAX, CONNECTIONS_PER_USER_MAX, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, JOINS_MAX,
    },
    link::describe,
    served::{End, Peer, Shared, greet, serve},
};

/// Wait after accept failed, as when descriptors have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A listening daemon.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
}

/// What a new connection needs besides `Shared`.
struct Door {
    shared: Arc<Shared>,
    identity: Arc<IdentityStore>,
    desk: Option<Arc<dyn JoinDesk>>,
    limiter: JoinLimiter,
    complaints: Complaints,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    joins: Semaphore,
}

/// A TLS connection, by what it chose to speak.
enum Entered {
    Node(TlsStream<TcpStream>, Peer),
    Joiner(TlsStream<TcpStream>),
}

impl Server {
    /// Serves nodes, and joining machines if there is a desk for them. Needs a tokio runtime.
    pub fn start(
        listener: TcpListener,
        identity: Arc<IdentityStore>,
        router: Arc<Router>,
        desk: Option<Arc<dyn JoinDesk>>,
        settings: Settings,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(router, Some(identity.clone()), settings));
        let door = Arc::new(Door {
            shared: shared.clone(),
            identity,
            desk,
            limiter: JoinLimiter::new(std::time::Instant::now()),
            complaints: Complaints::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            joins: Semaphore::new(JOINS_MAX),
        });
        shared.tasks.spawn(door.listen(listener));
        Ok(Server { shared, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections and waits for all tasks.
    pub async fn shutdown(self) {
        self.shared.tasks.shutdown().await;
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

impl Door {
    async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("cannot accept connections: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let connection = self.connections.clone().try_acquire_owned();
            let handshake = self.handshakes.clone().try_acquire_owned();
            let (Ok(connection), Ok(handshake)) = (connection, handshake) else {
                self.complain(&format!("turned {from} away: too many connections"));
                continue;
            };
            let door = self.clone();
            self.shared.tasks.spawn(async move {
                door.admit(tcp, from, handshake).await;
                drop(connection);
            });
        }
    }

    async fn admit(&self, tcp: TcpStream, from: SocketAddr, handshake: OwnedSemaphorePermit) {
        prepare(&tcp, self.shared.settings.dead_peer_bulk);
        let entering = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.enter(tcp));
        let (tls, peer) = match entering.await {
            Ok(Ok(Entered::Node(tls, peer))) => (tls, peer),
            Ok(Ok(Entered::Joiner(tls))) => {
                drop(handshake);
                return self.take_in(tls, from).await;
            }
            Ok(Err(why)) => {
                return self.complain(&format!("refused a connection from {from}: {why}"));
            }
            Err(_) => {
                let why = format!("dropped {from}: no handshake in {HANDSHAKE_TIMEOUT:?}");
                return self.complain(&why);
            }
        };
        let (input, output) = tokio::io::split(tls);
        let greeting = greet(&self.shared, Box::pin(input), Box::pin(output));
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, greeting).await {
            Ok(Ok(greeted)) => {
                drop(handshake);
                serve(self.shared.clone(), greeted, peer).await;
            }
            Ok(Err(why)) => tracing::warn!("refused a connection of {peer} ({from}): {why}"),
            Err(_) => tracing::warn!("dropped {peer} ({from}): no hello in {HANDSHAKE_TIMEOUT:?}"),
        }
    }

    /// Logs what a stranger did. Whoever knocks often fills no disk with it.
    fn complain(&self, what: &str) {
        match self.complaints.admit(std::time::Instant::now()) {
            Some(0) => tracing::warn!("{what}"),
            Some(unsaid) => tracing::warn!("{what} (and {unsaid} more such of late)"),
            None => {}
        }
    }

    async fn take_in(&self, tls: TlsStream<TcpStream>, from: SocketAddr) {
        let Some(desk) = self.desk.clone() else { return };
        match self.joins.try_acquire() {
            Ok(_permit) => serve_join(tls, from, desk, &self.limiter).await,
            Err(_) => self.complain(&format!("turned {from} away: too many machines ask to join")),
        }
    }

    async fn enter(&self, tcp: TcpStream) -> Result<Entered, String> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp)
            .await
            .map_err(|e| format!("{}; only mutual TLS is spoken here", describe(&e)))?;
        let armed = self.identity.armed();
        let joins = start
            .client_hello()
            .alpn()
            .is_some_and(|mut offered| offered.any(|name| name == ALPN_JOIN));
        if joins && self.desk.is_some() {
            let accept = start.into_stream(armed.accept_join.clone());
            return accept.await.map(Entered::Joiner).map_err(|e| describe(&e));
        }
        let accept = start.into_stream(armed.accept.clone());
        let tls = accept.await.map_err(|e| describe(&e))?;
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() != Some(ALPN_RPC) {
            return Err("it does not ask for the protocol unum/1".into());
        }
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.ok_or("it showed no certificate")?;
        let who = read_node(certificate).map_err(|e| e.to_string())?;
        Ok(Entered::Node(tls, Peer::Node { node: who.node, expires: who.not_after }))
    }
}

/// A daemon's local socket.
pub struct UnixServer {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl UnixServer {
    /// Replaces a socket that a dead daemon left. Anybody may connect: callers are told apart by
    /// what the kernel says of them. Needs a tokio runtime.
    pub fn start(path: &Path, router: Arc<Router>) -> io::Result<Self> {
        if is_stale(path) {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        let shared = Arc::new(Shared::new(router, None, Settings::default()));
        shared.tasks.spawn(listen_locally(shared.clone(), listener));
        Ok(UnixServer { shared, path: path.to_owned() })
    }

    /// Ends all connections, waits for all tasks and removes the socket.
    pub async fn shutdown(self) {
        self.shared.tasks.shutdown().await;
        // Gone already: as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl std::fmt::Debug for UnixServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UnixServer({})", self.path.display())
    }
}

/// A socket that nobody listens on.
fn is_stale(path: &Path) -> bool {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    }
}

/// Counts the connections of each local user.
#[derive(Debug, Default)]
struct Crowd {
    users: Mutex<HashMap<u32, usize>>,
}

/// One connection of a user.
struct Seat {
    crowd: Arc<Crowd>,
    uid: u32,
}

impl Crowd {
    /// None: the user has too many already.
    fn seat(self: &Arc<Self>, uid: u32) -> Option<Seat> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(uid).or_default();
        if *count >= CONNECTIONS_PER_USER_MAX {
            return None;
        }
        *count += 1;
        Some(Seat { crowd: self.clone(), uid })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut users = self.crowd.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = users.entry(self.uid) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

async fn listen_locally(shared: Arc<Shared>, listener: UnixListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let crowd = Arc::new(Crowd::default());
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!("cannot accept local connections: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            tracing::warn!("turned a local program away: too many connections");
            continue;
        };
        let caller = match caller_of(&socket) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!("refused a local program of unknown user: {error}");
                continue;
            }
        };
        let Some(seat) = crowd.seat(caller.uid) else {
            tracing::warn!("turned a program of uid {} away: too many connections", caller.uid);
            continue;
        };
        let serving = serve_local(shared.clone(), socket, caller);
        shared.tasks.spawn(async move {
            serving.await;
            drop((permit, seat));
        });
    }
}

async fn serve_local(shared: Arc<Shared>, socket: UnixStream, caller: Caller) {
    let (input, output) = socket.into_split();
    let greeting = greet(&shared, Box::pin(input), Box::pin(output));
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, greeting).await {
        Ok(Ok(greeted)) => serve(shared, greeted, Peer::Local(caller)).await,
        // It was killed, or thought better of it.
        Ok(Err(End::Closed | End::Io(_))) => {}
        Ok(Err(why)) => tracing::warn!("refused a local program of uid {}: {why}", caller.uid),
        Err(_) => tracing::warn!("dropped a local program of uid {}: no hello", caller.uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_does_not_keep_the_others_out() {
        let crowd = Arc::new(Crowd::default());
        let mut seats: Vec<Seat> = std::iter::from_fn(|| crowd.seat(1000)).collect();
        assert_eq!(seats.len(), CONNECTIONS_PER_USER_MAX);
        assert!(crowd.seat(0).is_some());
        seats.pop();
        assert!(crowd.seat(1000).is_some());
        drop(seats);
        assert!(crowd.users.lock().unwrap().is_empty());
    }
}
