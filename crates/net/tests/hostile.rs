//! What a peer that breaks the rules, or a local user, can take: no more than its share.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{
    raw::{hello, raw_tls, request},
    *,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use unum_net::{
    CallOptions, CertificateAuthority, Opened, Router, Settings, UnixServer,
    join::{JoinDesk, JoinFuture},
};
use unum_proto::{cluster::JoinRequest, file::GetChunkReply, ids::NodeId, rpc::PingHeader};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_no_replies_is_not_served_for_ever() {
    unum_net::methods! { Large = "test.large", Control, PingHeader => GetChunkReply; }
    let executed = Arc::new(AtomicU64::new(0));
    let counting = executed.clone();
    let router = Router::new().call::<Large>(move |_, _| {
        counting.fetch_add(1, Ordering::SeqCst);
        async move { Ok(GetChunkReply { data: vec![7; 1 << 20].into() }) }
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unumd.sock");
    let server = UnixServer::start(&path, Arc::new(router)).unwrap();
    let mut program = UnixStream::connect(&path).await.unwrap();
    let mut bytes = hello();
    (1..=200).for_each(|call| bytes.extend(request(call, "test.large", &[])));
    program.write_all(&bytes).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Replies of a mebibyte: those that fit into the queue, and a few on their way.
    let executed = executed.load(Ordering::SeqCst);
    assert!((1..30).contains(&executed), "{executed} replies wait for whoever reads none");
    server.shutdown().await;
}

struct Slow;

impl JoinDesk for Slow {
    fn join(&self, _: std::net::SocketAddr, _: JoinRequest) -> JoinFuture {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_ask_to_join_and_dawdle_are_few() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let identity_store = store(&authority, 2);
    let node = Node::start_with(identity_store, Settings::default(), Some(Arc::new(Slow))).await;
    let me = identity(&authority, 1, DAY);
    let mut waiting = Vec::new();
    let mut turned_away = 0;
    for _ in 0..80 {
        let address = node.server.address();
        let Ok(mut tls) = raw_tls(&me, address, b"unum-join/1").await else { continue };
        let mut byte = [0];
        match tokio::time::timeout(Duration::from_millis(20), tls.read(&mut byte)).await {
            Ok(_) => turned_away += 1,
            Err(_) => waiting.push(tls),
        }
    }
    assert!(waiting.len() <= 64 && turned_away >= 10, "{} wait", waiting.len());
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_begins_after_the_certificate_and_its_grace() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let grace = Duration::from_millis(100);
    let settings = Settings { certificate_grace: grace, ..Settings::default() };
    let node = Node::start_with(store(&authority, 2), settings, None).await;
    let me = identity(&authority, 1, Duration::from_secs(2));
    let mut tls = raw_tls(&me, node.server.address(), b"unum/1").await.unwrap();
    tls.write_all(&hello()).await.unwrap();
    tls.write_all(&request(1, "test.count", &[8, 7])).await.unwrap();
    tls.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(3500)).await;
    // It was told to go away, and does not.
    tls.write_all(&request(2, "test.count", &[8, 8])).await.unwrap();
    tls.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let counts = node.seen.counts.lock().unwrap().clone();
    assert_eq!(counts.get(&7), Some(&1));
    assert_eq!(counts.get(&8), None);
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_streams_of_a_node_that_is_removed_end() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let settings = Settings {
        idle_ping: Duration::from_millis(500),
        dead_peer_bulk: Duration::from_millis(500),
        ..Settings::default()
    };
    let node = Node::start_with(store(&authority, 2), settings.clone(), None).await;
    let client = client_with(store(&authority, 1), 2, node.server.address(), settings);
    let (to, options) = (NodeId(2).into(), CallOptions::unlimited());
    let opened = client.open::<Upcase>(&to, PingHeader::default(), &options).await.unwrap();
    let Opened { reply, mut sender, mut receiver } = opened;
    sender.send("hello".into()).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "HELLO");
    node.store.set_revoked(|node| node == NodeId(1));
    let end = tokio::time::timeout(PATIENCE, receiver.recv()).await;
    assert!(end.expect("the stream goes on").is_err());
    drop((reply, sender));
    client.shutdown().await;
    node.server.shutdown().await;
}
