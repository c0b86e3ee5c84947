//! Calls between nodes over real connections, good and bad.

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::*;
use unum_net::{
    CallOptions, Caller, CertificateAuthority, Client, Code, Directory, Hint, Name, Opened,
    RpcError, Settings, TraceContext, UnixServer,
};
use unum_proto::{
    ids::{Epoch, NodeId},
    rpc::PingHeader,
};

const TO: Name = Name::Node(NodeId(2));

fn soon() -> CallOptions {
    CallOptions::within(Duration::from_secs(10))
}

fn nonce(nonce: u64) -> PingHeader {
    PingHeader { nonce }
}

async fn pair() -> (Node, Client) {
    let authority = CertificateAuthority::create("test").unwrap();
    let node = Node::start(&authority, 2).await;
    let client = client(store(&authority, 1), 2, node.server.address());
    (node, client)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_brings_its_reply_and_its_caller_is_known() {
    let (node, client) = pair().await;
    assert_eq!(client.call::<Count>(&TO, nonce(7), &soon()).await.unwrap(), nonce(8));
    let caller = Caller { node: None, uid: 1000, gid: 100, groups: vec![4, 24] };
    let trace = TraceContext { trace: [1; 16], span: [2; 8], flags: 1 };
    let options = soon().caller(caller).trace(trace);
    let reply = client.call::<Who>(&TO, Default::default(), &options).await.unwrap();
    assert_eq!(reply.method, "Some(NodeId(1)) 1000 100 [4, 24]");
    assert_eq!(reply.trace, format!("{trace:?}").into_bytes());
    client.shutdown().await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_told_apart() {
    let (node, client) = pair().await;
    let error = client.call::<Unknown>(&TO, nonce(1), &soon()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::UnknownMethod));
    let error = client.call::<Panic>(&TO, nonce(1), &soon()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Internal));
    let nowhere = Name::service("nowhere");
    let error = client.call::<Count>(&nowhere, nonce(1), &soon().fail_fast()).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable { .. }), "{error}");
    let brief = CallOptions::within(Duration::from_millis(100));
    let error = client.call::<Count>(&Name::Node(NodeId(9)), nonce(1), &brief).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable { .. }), "{error}");
    // The connection has survived all of it.
    client.call::<Echo>(&TO, nonce(1), &soon()).await.unwrap();
    client.shutdown().await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_and_cancellation_reach_the_far_side() {
    let (node, client) = pair().await;
    let seen = node.seen.clone();
    let brief = CallOptions::within(Duration::from_millis(150));
    let error = client.call::<Sleep>(&TO, nonce(60_000), &brief).await.unwrap_err();
    assert!(matches!(error, RpcError::DeadlineExceeded), "{error}");
    until("the late call ends", || seen.sleeping.load(Ordering::SeqCst) == 0).await;

    let caller = client.clone();
    let call = tokio::spawn(async move { caller.call::<Sleep>(&TO, nonce(60_000), &soon()).await });
    until("it runs", || seen.sleeping.load(Ordering::SeqCst) == 1).await;
    call.abort();
    until("the cancelled call ends", || seen.sleeping.load(Ordering::SeqCst) == 0).await;
    assert_eq!(seen.woken.load(Ordering::SeqCst), 0);
    client.shutdown().await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_more_than_their_window_in_both_directions() {
    let (node, client) = pair().await;
    let opened = client.open::<Upcase>(&TO, nonce(0), &CallOptions::unlimited()).await.unwrap();
    let Opened { reply, mut sender, mut receiver } = opened;
    const TOTAL: usize = 8 << 20;
    let sending = tokio::spawn(async move {
        let piece = Bytes::from(vec![b'a'; 300_000]);
        let mut left = TOTAL;
        while left > 0 {
            let size = left.min(piece.len());
            sender.send(piece.slice(..size)).await.unwrap();
            left -= size;
        }
        sender.finish();
    });
    let mut received = 0;
    while let Some(bytes) = receiver.recv().await.unwrap() {
        assert!(bytes.iter().all(|byte| *byte == b'A'));
        received += bytes.len();
    }
    assert_eq!(received, TOTAL);
    assert_eq!(reply.await.unwrap(), nonce(TOTAL as u64));
    sending.await.unwrap();
    client.shutdown().await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_waits_for_a_reader_that_does_not_read() {
    let (node, client) = pair().await;
    let opened = client.open::<Upcase>(&TO, nonce(0), &CallOptions::unlimited()).await.unwrap();
    let Opened { reply, mut sender, receiver } = opened;
    let piece = Bytes::from(vec![b'a'; 64 << 10]);
    let mut sent = 0;
    // Nobody reads the answers: two windows fill, then nothing moves.
    while tokio::time::timeout(Duration::from_millis(300), sender.send(piece.clone())).await.is_ok()
    {
        sent += piece.len();
        assert!(sent <= 3 << 20, "unbounded");
    }
    assert!(sent >= 1 << 20, "{sent}");
    drop((reply, sender, receiver));
    // The connection serves others all the while.
    client.call::<Echo>(&TO, nonce(1), &soon()).await.unwrap();
    client.shutdown().await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_reply_arrive() {
    let (node, client) = pair().await;
    for value in 1..=100 {
        client.cast::<Note>(&TO, nonce(value)).await.unwrap();
    }
    until("all noted", || node.seen.noted.load(Ordering::SeqCst) == 5050).await;
    client.shutdown().await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_never_make_a_call_run_twice() {
    let authority = CertificateAuthority::create("test").unwrap();
    let node = Node::start(&authority, 2).await;
    let proxy = Proxy::start(node.server.address(), Some(9_000)).await;
    let client = client(store(&authority, 1), 2, proxy.address);
    const CALLERS: u64 = 8;
    const CALLS: u64 = 60;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let client = client.clone();
        callers.spawn(async move {
            for call in 0..CALLS {
                let value = caller * CALLS + call;
                let options = CallOptions::within(Duration::from_secs(25));
                let reply = client.call::<Count>(&TO, nonce(value), &options).await.unwrap();
                assert_eq!(reply, nonce(value + 1));
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
    let counts = node.seen.counts.lock().unwrap().clone();
    assert_eq!(counts.len() as u64, CALLERS * CALLS);
    assert!(counts.values().all(|count| *count == 1), "executed twice: {counts:?}");
    assert!(proxy.connections.load(Ordering::SeqCst) > 3, "the proxy cut nothing");
    client.shutdown().await;
    proxy.stop();
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_attaches_to_the_execution_that_still_runs() {
    let authority = CertificateAuthority::create("test").unwrap();
    let node = Node::start(&authority, 2).await;
    let proxy = Proxy::start(node.server.address(), None).await;
    let settings = Settings { dead_peer: Duration::from_millis(200), ..Settings::default() };
    let client = client_with(store(&authority, 1), 2, proxy.address, settings);
    let caller = client.clone();
    let call = tokio::spawn(async move { caller.call::<Sleep>(&TO, nonce(1500), &soon()).await });
    until("it runs", || node.seen.sleeping.load(Ordering::SeqCst) == 1).await;
    // This connection falls silent; the next works.
    proxy.blackhole.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(400)).await;
    proxy.blackhole.store(false, Ordering::SeqCst);
    assert_eq!(call.await.unwrap().unwrap(), nonce(1500));
    assert_eq!(node.seen.woken.load(Ordering::SeqCst), 1);
    assert!(proxy.connections.load(Ordering::SeqCst) >= 2);
    client.shutdown().await;
    proxy.stop();
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_vanishes_silently_fails_calls_before_their_deadline() {
    let authority = CertificateAuthority::create("test").unwrap();
    let node = Node::start(&authority, 2).await;
    let proxy = Proxy::start(node.server.address(), None).await;
    let settings = Settings { dead_peer: Duration::from_millis(300), ..Settings::default() };
    let client = client_with(store(&authority, 1), 2, proxy.address, settings);
    client.call::<Echo>(&TO, nonce(1), &soon()).await.unwrap();
    proxy.blackhole.store(true, Ordering::SeqCst);
    let options = CallOptions::within(Duration::from_secs(30)).fail_fast();
    let start = Instant::now();
    let error = client.call::<Sleep>(&TO, nonce(1), &options).await.unwrap_err();
    assert!(matches!(error, RpcError::OutcomeUnknown { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    client.shutdown().await;
    proxy.stop();
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_daemon_is_not_asked_again() {
    let authority = CertificateAuthority::create("test").unwrap();
    let first = Node::start(&authority, 2).await;
    let directory = Arc::new(Directory::new());
    directory.set_node(NodeId(2), vec![first.server.address()]);
    let client = Client::new(store(&authority, 1), directory.clone(), Settings::default());
    let caller = client.clone();
    let call = tokio::spawn(async move { caller.call::<Sleep>(&TO, nonce(60_000), &soon()).await });
    until("it runs", || first.seen.sleeping.load(Ordering::SeqCst) == 1).await;
    let second = Node::start(&authority, 2).await;
    directory.set_node(NodeId(2), vec![second.server.address()]);
    first.server.shutdown().await;
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, RpcError::OutcomeUnknown { .. }), "{error}");
    assert_eq!(second.seen.sleeping.load(Ordering::SeqCst), 0);
    // What may run twice is asked again.
    client.call::<Echo>(&TO, nonce(1), &soon()).await.unwrap();
    client.shutdown().await;
    second.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_name_is_followed_and_remembered() {
    unum_net::methods! { Where = "test.where", Control, PingHeader => PingHeader; }
    let authority = CertificateAuthority::create("test").unwrap();
    let directory = Arc::new(Directory::new());
    let mut servers = Vec::new();
    for id in 2..=4u64 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        directory.set_node(NodeId(id), vec![listener.local_addr().unwrap()]);
        let router = unum_net::Router::new().call::<Where>(move |_, _| async move {
            if id == 4 {
                return Ok(nonce(id));
            }
            let hint = Hint { node: NodeId(id + 1), epoch: Epoch(id + 1) };
            Err(unum_net::Status::moved(hint))
        });
        let identity = store(&authority, id);
        let settings = Settings::default();
        let server =
            unum_net::Server::start(listener, identity, Arc::new(router), None, settings).unwrap();
        servers.push(server);
    }
    let name = Name::service("wanderer");
    directory.learn(&name, Hint { node: NodeId(2), epoch: Epoch(1) });
    let client = Client::new(store(&authority, 1), directory.clone(), Settings::default());
    assert_eq!(client.call::<Where>(&name, nonce(0), &soon()).await.unwrap(), nonce(4));
    assert_eq!(directory.resolve(&name), Some(NodeId(4)));
    client.shutdown().await;
    for server in servers {
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_programs_are_who_the_kernel_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unumd.sock");
    let seen = Arc::new(Seen::default());
    let server = UnixServer::start(&path, Arc::new(router(&seen))).unwrap();
    let client = Client::unix(&path).await.unwrap();
    let somebody = Caller { node: None, uid: 4242, gid: 4242, groups: vec![4242] };
    let reply =
        client.call::<Who>(&TO, Default::default(), &soon().caller(somebody)).await.unwrap();
    let uid = rustix::process::getuid().as_raw();
    assert!(reply.method.starts_with(&format!("None {uid} ")), "{}", reply.method);
    assert!(!reply.method.contains("4242"));
    let opened = client.open::<Upcase>(&TO, nonce(0), &soon()).await.unwrap();
    let Opened { reply, mut sender, mut receiver } = opened;
    sender.send(Bytes::from_static(b"hello")).await.unwrap();
    sender.finish();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "HELLO");
    assert_eq!(receiver.recv().await.unwrap(), None);
    assert_eq!(reply.await.unwrap(), nonce(5));
    client.shutdown().await;
    server.shutdown().await;
    assert!(!path.exists());
    let error = Client::unix(&path).await.unwrap_err();
    assert!(error.to_string().contains("is unumd running?"), "{error}");
}
