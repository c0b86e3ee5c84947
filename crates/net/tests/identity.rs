//! Who gets in: certificates, tokens, and those who have neither.

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{raw::raw_tls, *};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use unum_net::{
    CallOptions, CertificateAuthority, Client, IdentityStore, JoinToken, Name, RpcError, Settings,
    TurnedAway,
    identity::keep_renewed,
    join::{JoinDesk, JoinError, JoinFuture, join},
};
use unum_proto::{
    cluster::{JoinAccepted, JoinRefusalKind, JoinRefused, JoinRequest, NodeFacts},
    ids::NodeId,
    rpc::PingHeader,
};

const TO: Name = Name::Node(NodeId(2));

fn brief() -> CallOptions {
    CallOptions::within(Duration::from_secs(5)).fail_fast()
}

fn nonce(nonce: u64) -> PingHeader {
    PingHeader { nonce }
}

async fn refusal(client: &Client, to: Name) -> String {
    let error = client.call::<Echo>(&to, nonce(1), &brief()).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable { .. }), "{error}");
    client.shutdown().await;
    error.to_string()
}

/// The listener still serves those who may come in.
async fn lives(node: &Node, authority: &CertificateAuthority) {
    let client = client(store(authority, 1), 2, node.server.address());
    client.call::<Echo>(&TO, nonce(1), &brief()).await.unwrap();
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_clusters_own_nodes_get_in() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let node = Node::start(&authority, 2).await;
    let address = node.server.address();

    let foreign = CertificateAuthority::create("theirs").unwrap();
    let why = refusal(&client(store(&foreign, 1), 2, address), TO).await;
    assert!(why.contains("certificate was refused"), "{why}");

    // A dialler that trusts us, with a certificate of somebody else's CA: the server refuses.
    let trusting = identity(&foreign, 1, DAY);
    let trusted = [authority.certificate().to_vec(), foreign.certificate().to_vec()];
    let trusting = Arc::new(IdentityStore::new(trusting.with_trusted(&trusted).unwrap()).unwrap());
    let why = refusal(&client(trusting, 2, address), TO).await;
    assert!(why.contains("refused"), "{why}");

    // The right cluster, but not the node that was asked for.
    let why = refusal(&client(store(&authority, 1), 3, address), Name::Node(NodeId(3))).await;
    assert!(why.contains("it is node-2, not node-3"), "{why}");

    // Removed nodes.
    node.store.set_revoked(|node| node == NodeId(5));
    let removed = store(&authority, 5);
    let why = refusal(&client(removed.clone(), 2, address), TO).await;
    assert!(why.contains("refused"), "{why}");
    assert_eq!(removed.turned_away(), Some(TurnedAway::Removed));
    node.store.set_revoked(|_| false);
    let again = client(removed.clone(), 2, address);
    again.call::<Echo>(&TO, nonce(1), &brief()).await.unwrap();
    again.shutdown().await;
    assert_eq!(removed.turned_away(), None);

    lives(&node, &authority).await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_refused() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let node = Node::start(&authority, 2).await;
    let short = identity(&authority, 1, Duration::from_secs(1));
    let short = Arc::new(IdentityStore::new(short).unwrap());
    while short.expires() + Duration::from_secs(1) > std::time::SystemTime::now() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let why = refusal(&client(short.clone(), 2, node.server.address()), TO).await;
    assert!(why.contains("refused"), "{why}");
    assert_eq!(short.turned_away(), Some(TurnedAway::Expired));
    lives(&node, &authority).await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_removed_is_cut_off_at_its_next_request() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let node = Node::start(&authority, 2).await;
    let client = client(store(&authority, 1), 2, node.server.address());
    client.call::<Echo>(&TO, nonce(1), &brief()).await.unwrap();
    node.store.set_revoked(|node| node == NodeId(1));
    let error = client.call::<Echo>(&TO, nonce(1), &brief()).await.unwrap_err();
    assert!(matches!(error, RpcError::OutcomeUnknown { .. }), "{error}");
    let error = client.call::<Echo>(&TO, nonce(1), &brief()).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable { .. }), "{error}");
    client.shutdown().await;
    node.server.shutdown().await;
}

/// Sends bytes as they are, and reads until the server hangs up.
async fn blurt(address: SocketAddr, bytes: &[u8]) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let _ = tcp.write_all(bytes).await;
    let _ = tcp.shutdown().await;
    let mut answer = Vec::new();
    let _ =
        tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut answer)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_plaintext_are_turned_away() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let node = Node::start(&authority, 2).await;
    let address = node.server.address();
    blurt(address, b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n").await;
    blurt(address, &[0xff; 4096]).await;
    blurt(address, &[0x16, 0x03, 0x01, 0x00, 0x05, 1, 0, 0, 1, 0]).await;
    blurt(address, b"").await;
    let mut dice = 7u64;
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..64)
            .map(|_| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (dice >> 56) as u8
            })
            .collect();
        blurt(address, &bytes).await;
    }
    lives(&node, &authority).await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_sends_hostile_frames_is_hung_up_on() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let node = Node::start(&authority, 2).await;
    let address = node.server.address();
    // The protocol version 1, class 1, run 0: tag 1 varint 1, tag 2 varint 1.
    let hello = [4, 0, 0, 0, 1, 4, 0, 0, 0x08, 1, 0x10, 1];
    let hostile: [&[u8]; 6] = [
        &[0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0],
        &[1, 0, 0, 0, 2, 9, 0, 0, 0],
        &[0, 0, 0, 0, 77, 0, 0, 0],
        &[2, 0, 0, 0, 2, 2, 0, 0, 0xff, 0xff],
        &[0, 0, 0, 0, 3, 0, 0, 0],
        &hello,
    ];
    for bytes in hostile {
        let mut tls = raw_tls(&identity(&authority, 1, DAY), address, b"unum/1").await.unwrap();
        tls.write_all(&hello).await.unwrap();
        tls.write_all(bytes).await.unwrap();
        tls.flush().await.unwrap();
        let mut answer = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), tls.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "the server did not hang up after {bytes:?}");
        assert!(!answer.is_empty(), "no hello");
    }
    // Another protocol, and none.
    let other = raw_tls(&identity(&authority, 1, DAY), address, b"h2").await;
    assert!(other.is_err(), "h2 was accepted");
    let mut none = raw_tls(&identity(&authority, 1, DAY), address, b"").await.unwrap();
    let mut answer = Vec::new();
    let _ =
        tokio::time::timeout(Duration::from_secs(5), none.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.is_empty());
    lives(&node, &authority).await;
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_without_a_failed_call() {
    let authority = Arc::new(CertificateAuthority::create("ours").unwrap());
    let valid = Duration::from_secs(3);
    let settings = Settings {
        certificate_grace: Duration::from_millis(500),
        drain: Duration::from_secs(5),
        ..Settings::default()
    };
    let mut renewing = tokio::task::JoinSet::new();
    let mut stores = Vec::new();
    for id in [1, 2] {
        let store = Arc::new(IdentityStore::new(identity(&authority, id, valid)).unwrap());
        let authority = authority.clone();
        renewing.spawn(keep_renewed(store.clone(), move |request| {
            let certificate = authority.issue(&request, NodeId(id), "n", valid);
            async move { certificate }
        }));
        stores.push(store);
    }
    let node = Node::start_with(stores[1].clone(), settings.clone(), None).await;
    let client = client_with(stores[0].clone(), 2, node.server.address(), settings);
    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicU64::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..4u64 {
        let (client, stop, calls) = (client.clone(), stop.clone(), calls.clone());
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let options = CallOptions::within(Duration::from_secs(5));
                client.call::<Sleep>(&TO, nonce(caller * 3), &options).await.unwrap();
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let start = Instant::now();
    while *stores[0].changes().borrow() < 5 || *stores[1].changes().borrow() < 5 {
        assert!(start.elapsed() < Duration::from_secs(30), "renewals do not happen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert!(calls.load(Ordering::Relaxed) > 100);
    renewing.shutdown().await;
    client.shutdown().await;
    node.server.shutdown().await;
}

/// A cluster's front desk that knows one token.
struct Desk {
    authority: Arc<CertificateAuthority>,
    token: JoinToken,
    used: AtomicBool,
    asked: AtomicU64,
}

impl Desk {
    fn decide(&self, request: JoinRequest) -> Result<JoinAccepted, JoinRefused> {
        use unum_net::join::TokenSecret;
        let refuse = |kind: JoinRefusalKind| {
            Err(JoinRefused { kind: kind.into(), message: format!("{kind:?}") })
        };
        let given = TokenSecret::hash_of(&request.secret);
        let known = request.token_id == self.token.id
            && TokenSecret::hashes_equal(&given, &self.token.secret.hash());
        if !known {
            return refuse(JoinRefusalKind::UnknownToken);
        }
        if self.used.swap(true, Ordering::SeqCst) {
            return refuse(JoinRefusalKind::TokenUsed);
        }
        let certificate = self.authority.issue(&request.csr, NodeId(9), "n9", DAY).unwrap();
        Ok(JoinAccepted {
            node: 9,
            name: request.facts.unwrap_or_default().name,
            certificate: Some(certificate),
            peers: vec![],
            cluster_name: "ours".into(),
        })
    }
}

impl JoinDesk for Desk {
    fn join(&self, _: SocketAddr, request: JoinRequest) -> JoinFuture {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let decision = self.decide(request);
        Box::pin(async move { decision })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_one_machine_join() {
    let authority = Arc::new(CertificateAuthority::create("ours").unwrap());
    let token = JoinToken::create(authority.hash());
    let desk = Arc::new(Desk {
        authority: authority.clone(),
        token: token.clone(),
        used: AtomicBool::new(false),
        asked: AtomicU64::new(0),
    });
    let settings = Settings::default();
    let node = Node::start_with(store(&authority, 2), settings, Some(desk.clone())).await;
    let address = node.server.address();
    let facts = || NodeFacts { name: "n9".into(), ..Default::default() };

    // Another cluster's token: nothing is sent.
    let foreign = JoinToken::create([1; 32]);
    let error = join(address, &foreign, facts(), "node").await.unwrap_err();
    assert!(matches!(error, JoinError::WrongCluster(_)), "{error}");
    assert_eq!(desk.asked.load(Ordering::SeqCst), 0);

    // The right cluster, a made-up secret.
    let guess = JoinToken::create(authority.hash());
    let error = join(address, &guess, facts(), "node").await.unwrap_err();
    let unknown = JoinRefusalKind::UnknownToken;
    assert!(matches!(error, JoinError::Refused { kind, .. } if kind == unknown), "{error}");

    let joined = join(address, &token, facts(), "node").await.unwrap();
    assert_eq!(joined.identity.node(), NodeId(9));
    assert_eq!(joined.accepted.name, "n9");
    let newcomer = Arc::new(IdentityStore::new(joined.identity).unwrap());
    let client = client(newcomer, 2, address);
    let reply = client.call::<Who>(&TO, Default::default(), &brief()).await.unwrap();
    assert!(reply.method.starts_with("Some(NodeId(9))"), "{}", reply.method);
    client.shutdown().await;

    let error = join(address, &token, facts(), "node").await.unwrap_err();
    let used = JoinRefusalKind::TokenUsed;
    assert!(matches!(error, JoinError::Refused { kind, .. } if kind == used), "{error}");
    node.server.shutdown().await;
}

#[test]
fn an_identity_survives_its_files() {
    let authority = CertificateAuthority::create("ours").unwrap();
    let again =
        CertificateAuthority::load(authority.certificate_pem(), authority.key_pem()).unwrap();
    assert_eq!(again.cluster(), authority.cluster());
    assert_eq!((again.name(), again.hash()), ("ours", authority.hash()));
    let first = identity(&again, 3, DAY);
    let (key, chain, trusted) = (first.key().to_pem(), first.chain_pem(), first.trusted_pem());
    let second = unum_net::Identity::from_pem(&key, &chain, &trusted).unwrap();
    assert_eq!((second.node(), second.cluster()), (NodeId(3), authority.cluster()));
    let other = unum_net::NodeKey::generate().unwrap().to_pem();
    assert!(unum_net::Identity::from_pem(&other, &chain, &trusted).is_err());
    let stranger = CertificateAuthority::create("theirs").unwrap();
    let mixed = CertificateAuthority::load(authority.certificate_pem(), stranger.key_pem());
    assert!(mixed.is_err());
}
