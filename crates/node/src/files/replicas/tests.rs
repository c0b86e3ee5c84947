//! Storing many chunks on real stores behind real connections, with nodes that do not do their part.

use std::sync::atomic::AtomicUsize;

use tokio::net::TcpListener;
use unum_net::{
    CertificateAuthority, Directory, Identity, IdentityStore, NodeKey, Server, Settings,
};
use unum_proto::file::{PUT_CHUNKS_BYTES_MAX, PUT_CHUNKS_MAX, PutChunk, PutChunks};

use super::*;
use crate::store::disk::SimDisk;
use crate::store::{ChunkOptions, ChunkStore};

const DAY: Duration = Duration::from_secs(86_400);
const LANE: u64 = 77;
const OWN: NodeId = NodeId(1);
const FACTOR: usize = 3;

/// Longer than anything here takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq)]
enum Conduct {
    Sound,
    /// Its disk has room for this many bytes.
    Room(u64),
    /// It takes requests and does not answer.
    Silent,
    /// Nobody listens there.
    Dead,
    /// It refuses this chunk and takes all others.
    Picky(ChunkId),
}

struct Everybody {
    alive: Vec<Place>,
}

impl Candidates for Everybody {
    fn alive(&self, _: usize) -> Vec<Place> {
        self.alive.clone()
    }

    fn total(&self) -> usize {
        self.alive.len()
    }
}

/// Nodes from 1 on, seen from the first one.
struct Cluster {
    replicas: Replicas,
    stores: Vec<ChunkQueue>,
    /// Requests that brought chunks to the others.
    requests: Arc<AtomicUsize>,
    _servers: Vec<Server>,
}

impl Cluster {
    async fn start(conducts: &[Conduct]) -> Self {
        let authority = CertificateAuthority::create("test").unwrap();
        let directory = Arc::new(Directory::new());
        let requests = Arc::new(AtomicUsize::new(0));
        let (mut stores, mut servers) = (Vec::new(), Vec::new());
        for (node, conduct) in (1..).map(NodeId).zip(conducts) {
            let store = store(match conduct {
                Conduct::Room(bytes) => *bytes,
                _ => 1 << 30,
            });
            stores.push(store.clone());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            directory.set_node(node, vec![listener.local_addr().unwrap()]);
            if *conduct != Conduct::Dead {
                let router = Arc::new(routes(store, *conduct, requests.clone()));
                let identity = identity(&authority, node);
                let server = Server::start(listener, identity, router, None, Settings::default());
                servers.push(server.unwrap());
            }
        }
        let client = Client::new(identity(&authority, OWN), directory, Settings::default());
        let place = |node| Place { node: NodeId(node), weight: 1 };
        let alive = (1..=conducts.len() as u64).map(place).collect();
        let everybody = Box::new(Everybody { alive });
        let replicas = Replicas::new(OWN, client, stores[0].clone(), everybody, FACTOR, LANE);
        Self { replicas, stores, requests, _servers: servers }
    }

    async fn write_all(&self, drafts: &[Draft]) -> Result<Vec<Stored>, ContentError> {
        let drafts = with_factor(drafts.to_vec());
        self.replicas.write_all(drafts, Instant::now() + PATIENCE).await
    }

    fn drafts(&self, count: usize, bytes: usize) -> Vec<Draft> {
        (0..count).map(|n| draft(self.replicas.name(), n, bytes)).collect()
    }

    /// Every replica that is told of is there, and is what was given.
    async fn check(&self, drafts: &[Draft], stored: &[Stored]) {
        assert_eq!(drafts.len(), stored.len());
        for (draft, stored) in drafts.iter().zip(stored) {
            assert_eq!((stored.id, stored.hash), (draft.id, draft.hash));
            assert_eq!(stored.length as usize, draft.data.len());
            for node in &stored.replicas {
                let store = &self.stores[node.0 as usize - 1];
                assert_eq!(store.get(draft.id, 0, draft.data.len()).await.unwrap(), draft.data);
            }
        }
    }
}

fn with_factor(drafts: Vec<Draft>) -> Vec<(Draft, usize)> {
    drafts.into_iter().map(|draft| (draft, FACTOR)).collect()
}

fn identity(authority: &CertificateAuthority, node: NodeId) -> Arc<IdentityStore> {
    let key = NodeKey::generate().unwrap();
    let certificate = authority.issue(&key.signing_request().unwrap(), node, "n", DAY).unwrap();
    Arc::new(IdentityStore::new(Identity::new(key, &certificate).unwrap()).unwrap())
}

fn store(room: u64) -> ChunkQueue {
    let sim = SimDisk::new(1, room).unwrap();
    let options = ChunkOptions { reserve_bytes: 0, ..ChunkOptions::default() };
    let (store, _) = ChunkStore::open(sim.disk(), options).unwrap();
    ChunkQueue::start(Arc::new(store)).unwrap()
}

fn routes(store: ChunkQueue, conduct: Conduct, requests: Arc<AtomicUsize>) -> Router {
    let (single, counted) = (store.clone(), requests.clone());
    Router::new()
        .call::<PutChunkMethod>(move |_, request| {
            counted.fetch_add(1, Ordering::SeqCst);
            let store = single.clone();
            async move {
                if conduct == Conduct::Silent {
                    std::future::pending::<()>().await;
                }
                write::serve_put(store, request).await
            }
        })
        .call::<PutChunksMethod>(move |_, mut request: PutChunks| {
            requests.fetch_add(1, Ordering::SeqCst);
            let store = store.clone();
            async move {
                if conduct == Conduct::Silent {
                    std::future::pending::<()>().await;
                }
                if let Conduct::Picky(id) = conduct {
                    let other = |put: &mut PutChunk| put.chunk == Some(id.into());
                    // Its hash does not match any more.
                    request
                        .chunks
                        .iter_mut()
                        .filter_map(|put| other(put).then_some(put))
                        .for_each(|put| put.hash = Bytes::from_static(&[0; HASH_SIZE]));
                }
                write::serve_put_all(store, request).await
            }
        })
}

fn draft(id: ChunkId, n: usize, bytes: usize) -> Draft {
    let data: Bytes = (0..bytes).map(|at| (at * 7 + n) as u8).collect::<Vec<_>>().into();
    Draft { id, hash: *blake3::hash(&data).as_bytes(), data }
}

fn sound(count: usize) -> Vec<Conduct> {
    vec![Conduct::Sound; count]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_chunks_are_one_message_and_one_sync_for_each_node() {
    let cluster = Cluster::start(&sound(3)).await;
    let drafts = cluster.drafts(500, 2000);
    let stored = cluster.write_all(&drafts).await.unwrap();
    cluster.check(&drafts, &stored).await;
    for stored in &stored {
        assert!(stored.replicas.len() >= 2, "{stored:?}");
    }
    // One may be left behind.
    assert!(cluster.requests.load(Ordering::SeqCst) <= 2);
    assert_eq!(cluster.stores[0].store().stamp(), 1);

    // Once more, as when it is not known what became of it.
    let again = cluster.write_all(&drafts).await.unwrap();
    cluster.check(&drafts, &again).await;
    let renewed = cluster.stores[0].store().list_one(drafts[0].id).unwrap();
    assert!(renewed.stamp > 1, "nobody takes it for garbage");
    assert_eq!(cluster.write_all(&[]).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_chunk_is_written_under_a_new_id() {
    let cluster = Cluster::start(&sound(3)).await;
    let given = cluster.replicas.name();
    let data = Bytes::from_static(b"some bytes");
    let stored =
        cluster.replicas.write(data.clone(), FACTOR, Instant::now() + PATIENCE).await.unwrap();
    assert!(stored.id.lane == LANE && stored.id.seq > given.seq);
    let hash = *blake3::hash(&data).as_bytes();
    let id = stored.id;
    cluster.check(&[Draft { id, hash, data }], &[stored]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_small_ones_go_together() {
    let cluster = Cluster::start(&sound(3)).await;
    let mut drafts = cluster.drafts(9, CHUNK_SIZE_MAX);
    drafts.extend(cluster.drafts(PUT_CHUNKS_MAX + 50, 3));
    let stored = cluster.write_all(&drafts).await.unwrap();
    cluster.check(&drafts, &stored).await;
    let messages = 9 * CHUNK_SIZE_MAX / PUT_CHUNKS_BYTES_MAX + 2;
    assert!(cluster.requests.load(Ordering::SeqCst) <= 2 * messages);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_stand_in_for_a_dead_node() {
    let conducts = [Conduct::Sound, Conduct::Dead, Conduct::Sound, Conduct::Sound, Conduct::Sound];
    let cluster = Cluster::start(&conducts).await;
    let drafts = cluster.drafts(60, 500);
    let stored = cluster.write_all(&drafts).await.unwrap();
    cluster.check(&drafts, &stored).await;
    for stored in &stored {
        assert!(stored.replicas.len() == 3 && !stored.replicas.contains(&NodeId(2)), "{stored:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_one_that_does_not_answer() {
    let cluster = Cluster::start(&[Conduct::Sound, Conduct::Silent, Conduct::Sound]).await;
    let drafts = cluster.drafts(100, 500);
    let begun = Instant::now();
    let stored = cluster.write_all(&drafts).await.unwrap();
    assert!(begun.elapsed() < PATIENCE / 2);
    cluster.check(&drafts, &stored).await;
    assert!(stored.iter().all(|stored| stored.replicas == [NodeId(1), NodeId(3)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_one_node_refuses_goes_elsewhere() {
    let picked = ChunkId { lane: LANE, seq: 4 };
    let picky = Conduct::Picky(picked);
    let sound = Conduct::Sound;
    let cluster = Cluster::start(&[sound, picky, sound, sound, sound]).await;
    let drafts = cluster.drafts(200, 300);
    let stored = cluster.write_all(&drafts).await.unwrap();
    cluster.check(&drafts, &stored).await;
    for stored in stored {
        assert_eq!(stored.replicas.len(), 3);
        assert!(stored.id != picked || !stored.replicas.contains(&NodeId(2)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_nodes_are_told() {
    let full = Conduct::Room(40_000);
    let cluster = Cluster::start(&[Conduct::Sound, full, full]).await;
    let drafts = cluster.drafts(100, 2000);
    let error = cluster.write_all(&drafts).await.unwrap_err();
    let ContentError::NoSpace { nodes } = error else { panic!("{error}") };
    assert!(nodes.iter().all(|node| [NodeId(2), NodeId(3)].contains(node)), "{nodes:?}");
    // One that may be lost is not waited for.
    let cluster = Cluster::start(&[Conduct::Sound, full, Conduct::Sound]).await;
    let drafts = cluster.drafts(100, 2000);
    let stored = cluster.write_all(&drafts).await.unwrap();
    cluster.check(&drafts, &stored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_nodes_are_an_error_after_the_deadline() {
    let cluster = Cluster::start(&[Conduct::Sound, Conduct::Dead, Conduct::Dead]).await;
    let drafts = cluster.drafts(10, 100);
    let deadline = Instant::now() + Duration::from_millis(300);
    let error = cluster.replicas.write_all(with_factor(drafts), deadline).await.unwrap_err();
    assert!(matches!(error, ContentError::TooFewReplicas { durable: 1, needed: 2, .. }), "{error}");
}

#[tokio::test]
async fn what_breaks_a_limit_is_refused_as_a_whole() {
    let store = store(1 << 30);
    let put = |seq, bytes| draft(ChunkId { lane: 1, seq }, 0, bytes).into_proto();
    let refused = [
        (0..=PUT_CHUNKS_MAX as u64).map(|seq| put(seq, 1)).collect(),
        (0..4).map(|seq| put(seq, CHUNK_SIZE_MAX)).collect(),
        vec![put(0, 5), put(1, CHUNK_SIZE_MAX + 1)],
        vec![put(0, 5), put(1, 0)],
        vec![put(0, 5), PutChunk { chunk: None, ..put(1, 5) }],
        vec![put(0, 5), PutChunk { hash: Bytes::from_static(b"short"), ..put(1, 5) }],
    ];
    for chunks in refused {
        let status = write::serve_put_all(store.clone(), PutChunks { chunks }).await.unwrap_err();
        assert_eq!(status.code, Code::Invalid);
    }
    assert_eq!(store.store().usage().unwrap().chunks, 0);
}

#[test]
fn a_node_that_cannot_answer_now_is_no_reason_to_give_a_chunk_up() {
    for code in [Code::NotFound, Code::Invalid, Code::Internal] {
        assert!(is_verdict(code), "{code:?}");
    }
    let passing = [
        Code::Unavailable,
        Code::Overloaded,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::UnknownMethod,
        Code::Forgotten,
    ];
    for code in passing {
        assert!(!is_verdict(code), "{code:?}");
    }
}
