//! Reaching a peer: addresses, TCP, TLS, hello.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    net::{TcpStream, UnixStream},
    time::Instant,
};
use tokio_rustls::TlsConnector;
use unum_proto::ids::NodeId;

use crate::{
    Class, Directory, IdentityStore, Name, Settings,
    identity::{ALPN_RPC, expected_name, read_node},
    limits::DIAL_TIMEOUT,
    link::{Link, NoLink},
    tasks::Tasks,
};

/// How a client reaches its peers.
pub(crate) enum Way {
    Nodes {
        identity: Arc<IdentityStore>,
        directory: Arc<Directory>,
    },
    /// One daemon behind a local socket, whatever the name.
    Local(PathBuf),
}

pub(crate) struct Dialler {
    pub(crate) way: Way,
    pub(crate) settings: Settings,
    pub(crate) run: u64,
    pub(crate) tasks: Tasks,
}

impl Dialler {
    pub(crate) async fn dial(
        self: Arc<Self>,
        node: NodeId,
        class: Class,
    ) -> Result<Arc<Link>, String> {
        match &self.way {
            Way::Nodes { identity, directory } => {
                let addresses = directory.addresses(node);
                if addresses.is_empty() {
                    return Err("none of its addresses is known".into());
                }
                let mut failures = Vec::new();
                for address in addresses {
                    let attempt = self.dial_node(identity, node, class, address);
                    match tokio::time::timeout(DIAL_TIMEOUT, attempt).await {
                        Ok(Ok(link)) => {
                            // What this node thinks of itself says nothing of the others.
                            if node != identity.node() {
                                identity.taken_in();
                            }
                            return Ok(link);
                        }
                        Ok(Err(NoLink { why, turned_away })) => {
                            turned_away.into_iter().for_each(|why| identity.turn_away(why));
                            failures.push(format!("{address}: {why}"));
                        }
                        Err(_) => {
                            failures.push(format!("{address}: no answer in {DIAL_TIMEOUT:?}"))
                        }
                    }
                }
                Err(failures.join("; "))
            }
            Way::Local(path) => {
                let attempt = self.dial_local(path, class);
                match tokio::time::timeout(DIAL_TIMEOUT, attempt).await {
                    Ok(linked) => linked.map_err(|failed| failed.why),
                    Err(_) => Err(format!("{}: no answer in {DIAL_TIMEOUT:?}", path.display())),
                }
            }
        }
    }

    async fn dial_node(
        &self,
        identity: &IdentityStore,
        node: NodeId,
        class: Class,
        address: SocketAddr,
    ) -> Result<Arc<Link>, NoLink> {
        let tcp = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        prepare(&tcp, self.dead_after(class));
        let armed = identity.armed();
        let name = expected_name(node).map_err(|e| e.to_string())?;
        let connector = TlsConnector::from(armed.dial.clone());
        let tls = connector.connect(name, tcp).await.map_err(|e| NoLink::from_io(&e))?;
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() != Some(ALPN_RPC) {
            return Err("it is no daemon of Unum: it did not choose the protocol unum/1".into());
        }
        let theirs = session.peer_certificates().and_then(|chain| chain.first());
        let theirs = theirs.ok_or("it showed no certificate")?;
        let theirs = read_node(theirs).map_err(|e| e.to_string())?;
        let end = theirs.not_after.min(armed.identity.expires());
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        let expires = Instant::now() + left;
        let (input, output) = tokio::io::split(tls);
        let (input, output) = (Box::pin(input), Box::pin(output));
        let to = Name::Node(node);
        let (link, frames) =
            Link::establish(input, output, class, to, self.run, Some(expires)).await?;
        link.start(frames, &self.tasks, &self.settings);
        Ok(link)
    }

    async fn dial_local(&self, path: &Path, class: Class) -> Result<Arc<Link>, NoLink> {
        let socket = UnixStream::connect(path)
            .await
            .map_err(|e| format!("{}: {e}; is unumd running?", path.display()))?;
        let (input, output) = socket.into_split();
        let (input, output) = (Box::pin(input), Box::pin(output));
        let to = Name::service("the local daemon");
        let (link, frames) = Link::establish(input, output, class, to, self.run, None).await?;
        link.start(frames, &self.tasks, &self.settings);
        Ok(link)
    }

    fn dead_after(&self, class: Class) -> Duration {
        match class {
            Class::Control => self.settings.dead_peer,
            Class::Bulk => self.settings.dead_peer_bulk,
        }
    }
}

/// Small frames leave at once, and unacknowledged ones do not wait for ever.
pub(crate) fn prepare(tcp: &TcpStream, dead_after: Duration) {
    let timeout = u32::try_from((dead_after * 2).as_millis()).unwrap_or(u32::MAX);
    // Both only make things faster; a socket that refuses them still works.
    let _ = tcp.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(tcp, timeout);
}
