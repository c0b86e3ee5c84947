//! Nodes on the loopback, and proxies that stand for bad networks.
#![allow(dead_code)] // Each test program uses a part.

pub mod raw;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use unum_net::{
    CertificateAuthority, Client, Directory, Identity, IdentityStore, Incoming, NodeKey, Router,
    Server, Settings, join::JoinDesk,
};
use unum_proto::{ids::NodeId, rpc::PingHeader};

pub const DAY: Duration = Duration::from_secs(86_400);

unum_net::methods! {
    pub Count = "test.count", Control, PingHeader => PingHeader;
    pub Echo = "test.echo", Control, idempotent, PingHeader => PingHeader;
    pub Sleep = "test.sleep", Control, PingHeader => PingHeader;
    pub Who = "test.who", Control, unum_proto::rpc::User => unum_proto::rpc::CastHeader;
    pub Upcase = "test.upcase", Bulk, PingHeader => PingHeader;
    pub Note = "test.note", Control, PingHeader => PingHeader;
    pub Panic = "test.panic", Control, PingHeader => PingHeader;
    pub Unknown = "test.unknown", Control, PingHeader => PingHeader;
}

/// What the service saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub counts: std::sync::Mutex<std::collections::HashMap<u64, u32>>,
    pub sleeping: AtomicU64,
    pub woken: AtomicU64,
    pub noted: AtomicU64,
}

/// Counts down when the future that holds it is dropped.
struct Asleep(Arc<Seen>);

impl Drop for Asleep {
    fn drop(&mut self) {
        self.0.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn router(seen: &Arc<Seen>) -> Router {
    let (counting, sleeping, noting) = (seen.clone(), seen.clone(), seen.clone());
    Router::new()
        .call::<Count>(move |_, request| {
            let seen = counting.clone();
            *seen.counts.lock().unwrap().entry(request.nonce).or_default() += 1;
            async move {
                if request.nonce % 3 == 0 {
                    tokio::time::sleep(Duration::from_millis(request.nonce % 7)).await;
                }
                Ok(PingHeader { nonce: request.nonce + 1 })
            }
        })
        .call::<Echo>(|_, request| async move { Ok(request) })
        .call::<Sleep>(move |_, request| {
            let seen = sleeping.clone();
            async move {
                seen.sleeping.fetch_add(1, Ordering::SeqCst);
                let asleep = Asleep(seen.clone());
                tokio::time::sleep(Duration::from_millis(request.nonce)).await;
                seen.woken.fetch_add(1, Ordering::SeqCst);
                drop(asleep);
                Ok(request)
            }
        })
        .call::<Who>(|incoming: Incoming, _| async move {
            let caller = incoming.caller;
            let method =
                format!("{:?} {} {} {:?}", caller.node, caller.uid, caller.gid, caller.groups);
            let trace = format!("{:?}", incoming.trace).into_bytes();
            Ok(unum_proto::rpc::CastHeader { method, trace, user: None })
        })
        .stream::<Upcase>(|_, _, mut sender, mut receiver| async move {
            let mut total = 0;
            while let Some(bytes) = receiver.recv().await? {
                total += bytes.len() as u64;
                sender.send(bytes.to_ascii_uppercase().into()).await?;
            }
            Ok(PingHeader { nonce: total })
        })
        .cast::<Note>(move |_, request| {
            noting.noted.fetch_add(request.nonce, Ordering::SeqCst);
        })
        .call::<Panic>(|_, _| async move { panic!("on purpose") })
}

pub fn identity(authority: &CertificateAuthority, node: u64, valid: Duration) -> Identity {
    let key = NodeKey::generate().unwrap();
    let certificate = authority.issue(&key.signing_request().unwrap(), NodeId(node), "n", valid);
    Identity::new(key, &certificate.unwrap()).unwrap()
}

pub fn store(authority: &CertificateAuthority, node: u64) -> Arc<IdentityStore> {
    Arc::new(IdentityStore::new(identity(authority, node, DAY)).unwrap())
}

pub struct Node {
    pub server: Server,
    pub store: Arc<IdentityStore>,
    pub seen: Arc<Seen>,
}

impl Node {
    pub async fn start(authority: &CertificateAuthority, node: u64) -> Self {
        Self::start_with(store(authority, node), Settings::default(), None).await
    }

    pub async fn start_with(
        store: Arc<IdentityStore>,
        settings: Settings,
        desk: Option<Arc<dyn JoinDesk>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let seen = Arc::new(Seen::default());
        let router = Arc::new(router(&seen));
        let server = Server::start(listener, store.clone(), router, desk, settings).unwrap();
        Node { server, store, seen }
    }
}

/// A client that believes that `node` is at `address`.
pub fn client(store: Arc<IdentityStore>, node: u64, address: SocketAddr) -> Client {
    client_with(store, node, address, Settings::default())
}

pub fn client_with(
    store: Arc<IdentityStore>,
    node: u64,
    address: SocketAddr,
    settings: Settings,
) -> Client {
    let directory = Arc::new(Directory::new());
    directory.set_node(NodeId(node), vec![address]);
    Client::new(store, directory, settings)
}

/// Passes bytes on, and cuts each connection after a number of bytes from a seeded sequence.
pub struct Proxy {
    pub address: SocketAddr,
    /// Bytes stop passing in both directions, without any sign.
    pub blackhole: Arc<AtomicBool>,
    pub connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(to: SocketAddr, cut_after: Option<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let blackhole = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicU64::new(0));
        let (hole, count) = (blackhole.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut pairs = tokio::task::JoinSet::new();
            let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
            while let Ok((near, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                let budget = cut_after.map(|mean| mean / 2 + dice % mean);
                pairs.spawn(relay(near, to, budget, hole.clone()));
            }
        });
        Proxy { address, blackhole, connections, task }
    }

    pub fn stop(self) {
        self.task.abort();
    }
}

async fn relay(near: TcpStream, to: SocketAddr, budget: Option<u64>, hole: Arc<AtomicBool>) {
    let Ok(far) = TcpStream::connect(to).await else { return };
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let left = Arc::new(AtomicU64::new(budget.unwrap_or(u64::MAX)));
    tokio::select! {
        () = pump(near_in, far_out, left.clone(), hole.clone()) => {}
        () = pump(far_in, near_out, left, hole) => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    left: Arc<AtomicU64>,
    hole: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        if hole.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let before = left.load(Ordering::SeqCst);
        let allowed = (count as u64).min(before);
        left.store(before - allowed, Ordering::SeqCst);
        if to.write_all(&buffer[..allowed as usize]).await.is_err() || allowed < count as u64 {
            return;
        }
    }
}
