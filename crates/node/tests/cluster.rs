//! Whole daemons on the loopback interface: founding, joining, losing, removing, renewing.
//!
//! Each daemon has a runtime of its own, so that it can be killed as SIGKILL kills: at once, with
//! nothing said and nothing tidied up.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use unum_net::{CallOptions, Client, Code, Method, Name, RpcError};
use unum_node::api::methods::*;
use unum_node::daemon::{self, DaemonError};
use unum_node::settings::Settings;
use unum_proto::admin::*;
use unum_proto::ids::NodeId;

/// Longer than anything here takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Daemon {
    settings: Settings,
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<tokio::task::JoinHandle<Result<(), DaemonError>>>,
}

impl Daemon {
    fn start(&mut self, found: bool) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let settings = self.settings.clone();
        self.ended = Some(runtime.spawn(async move {
            let stop = async {
                if stopped.await.is_err() {
                    std::future::pending().await
                }
            };
            daemon::run(settings, found, stop).await
        }));
        self.stop = Some(stop);
        self.runtime = Some(runtime);
    }

    /// As SIGKILL does.
    fn kill(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended.abort();
        }
        if let Some(runtime) = self.runtime.take() {
            tokio::task::block_in_place(|| runtime.shutdown_timeout(Duration::from_secs(5)));
        }
        if let Some(stop) = self.stop.take() {
            drop(stop);
        }
    }

    /// As SIGTERM does.
    async fn end(&mut self) -> Result<(), DaemonError> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let ended = self.ended.take().unwrap().await.unwrap();
        let runtime = self.runtime.take();
        tokio::task::spawn_blocking(move || drop(runtime)).await.unwrap();
        ended
    }

    async fn call<M: Method>(&self, request: M::Request) -> Result<M::Reply, RpcError> {
        let client = self.client().await;
        client.call::<M>(&Name::Node(NodeId(0)), request, &CallOptions::within(PATIENCE)).await
    }

    async fn client(&self) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::unix(&self.settings.socket()).await {
                Ok(client) => return client,
                Err(error) if Instant::now() > deadline => panic!("no local socket: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn status(&self) -> StatusReply {
        self.call::<ShowStatus>(StatusRequest {}).await.unwrap()
    }

    async fn state_of(&self, name: &str) -> NodeState {
        let nodes = self.call::<ListNodes>(NodesRequest {}).await.unwrap().nodes;
        let node = nodes.iter().find(|node| node.name == name);
        node.map_or(NodeState::Unspecified, |node| node.state())
    }

    async fn put(&self, name: &str, content: &str) -> Result<u64, RpcError> {
        let request = ValuePutRequest {
            name: name.into(),
            content: content.as_bytes().to_vec(),
            if_version: None,
        };
        self.call::<ValuePut>(request).await.map(|reply| reply.version)
    }

    async fn get(&self, name: &str) -> Option<String> {
        let reply = self.call::<ValueGet>(ValueGetRequest { name: name.into() }).await.unwrap();
        reply.value.map(|value| String::from_utf8(value.content).unwrap())
    }

    async fn token(&self, ttl_ms: u64) -> TokenCreateReply {
        let request = TokenCreateRequest { ttl_ms, role: NodeRole::Node.into() };
        self.call::<TokenCreate>(request).await.unwrap()
    }

    async fn join(&self, token: &str, addresses: &[String]) -> Result<JoinReply, RpcError> {
        let request = JoinRequest { token: token.into(), addresses: addresses.to_vec() };
        self.call::<Join>(request).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A directory with room for some daemons.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn daemon(&self, name: &str, change: impl FnOnce(&mut Settings)) -> Daemon {
        let dir: PathBuf = self.dir.path().join(name);
        let mut settings = Settings {
            worker: false,
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            mount: dir.join("unum"),
            name: name.into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            ..Settings::default()
        };
        // A restarted daemon is found where it was.
        settings.listen.set_port(free_port());
        change(&mut settings);
        Daemon { settings, runtime: None, stop: None, ended: None }
    }

    /// Nodes n1..n`count` in one cluster.
    async fn cluster(&self, count: usize, change: impl Fn(&mut Settings)) -> Vec<Daemon> {
        let mut daemons: Vec<Daemon> =
            (1..=count).map(|number| self.daemon(&format!("n{number}"), &change)).collect();
        for daemon in &mut daemons {
            daemon.start(false);
        }
        daemons[0].call::<Create>(CreateRequest {}).await.unwrap();
        for number in 1..count {
            let token = daemons[0].token(60_000).await;
            daemons[number].join(&token.token, &token.addresses).await.unwrap();
        }
        daemons
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn eventually<F>(what: &str, mut holds: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn message(error: &RpcError) -> String {
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_machines_become_one_and_outlive_a_leader() {
    let lab = Lab::new();
    let mut nodes = lab.cluster(3, |_| {}).await;
    eventually("three voters", || async {
        let status = nodes[2].status().await;
        status.voters == 3 && status.nodes_alive == 3 && status.losses_survivable == 1
    })
    .await;
    let status = nodes[1].status().await;
    assert_eq!((status.state(), status.nodes, status.name.as_str()), (DaemonState::Ready, 3, "n2"));
    assert!(status.losses_reason.contains("survives the loss of 1 node"), "{status:?}");
    nodes[1].put("greeting", "hello").await.unwrap();
    assert_eq!(nodes[2].get("greeting").await.as_deref(), Some("hello"));

    // Every voter holds the authority's key, so whoever leads can sign.
    eventually("the key on all voters", || async {
        nodes.iter().all(|node| node.settings.data_dir.join("ca.key").exists())
    })
    .await;
    let leader = nodes[0].status().await.leader as usize - 1;
    nodes[leader].kill();
    let other = (leader + 1) % 3;
    nodes[other].put("greeting", "still here").await.unwrap();
    let third = (leader + 2) % 3;
    assert_eq!(nodes[third].get("greeting").await.as_deref(), Some("still here"));
    let lost = nodes[leader].settings.name.clone();
    eventually("the death is known", || async {
        nodes[other].state_of(&lost).await == NodeState::Dead
    })
    .await;
    assert_eq!(nodes[other].status().await.losses_survivable, 0);

    nodes[leader].start(false);
    eventually("it is back", || async { nodes[other].state_of(&lost).await == NodeState::Alive })
        .await;
    assert_eq!(nodes[leader].get("greeting").await.as_deref(), Some("still here"));

    // Without a majority: told within a bounded time, and nothing stale is shown.
    nodes[other].kill();
    nodes[third].kill();
    eventually("no quorum is seen", || async {
        nodes[leader].status().await.state() == DaemonState::NoQuorum
    })
    .await;
    let asked = Instant::now();
    let status = nodes[leader].status().await;
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert!(status.warnings.iter().any(|told| told.contains("no majority")), "{status:?}");
    let client = nodes[leader].client().await;
    let request = ValueGetRequest { name: "greeting".into() };
    let options = CallOptions::within(Duration::from_secs(2));
    assert!(client.call::<ValueGet>(&Name::Node(NodeId(0)), request, &options).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_good_token_opens_the_door() {
    let lab = Lab::new();
    let first = lab.cluster(1, |_| {}).await.remove(0);
    let mut foreign = lab.daemon("foreign", |_| {});
    foreign.start(true);
    let mut guest = lab.daemon("guest", |_| {});
    guest.start(false);
    let good = first.token(60_000).await;

    let refusal = |error: RpcError| message(&error);
    let wrong = guest.join("unum-nonsense", &good.addresses).await.map_err(refusal).unwrap_err();
    assert!(wrong.contains("incomplete or mistyped"), "{wrong}");
    eventually("the other cluster is up", || async {
        foreign.status().await.state() == DaemonState::Ready
    })
    .await;
    let other = foreign.token(60_000).await;
    let told = guest.join(&other.token, &good.addresses).await.map_err(refusal).unwrap_err();
    assert!(told.contains("not the cluster that made this token"), "{told}");
    let short = first.token(1).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let told = guest.join(&short.token, &good.addresses).await.map_err(refusal).unwrap_err();
    assert!(told.contains("expired"), "{told}");
    let revoked = first.token(60_000).await;
    first.call::<TokenRevoke>(TokenRevokeRequest { id: revoked.id.clone() }).await.unwrap();
    let told = guest.join(&revoked.token, &good.addresses).await.map_err(refusal).unwrap_err();
    assert!(told.contains("unknown"), "{told}");
    let listed = first.call::<TokenList>(TokenListRequest {}).await.unwrap().tokens;
    assert_eq!(listed.iter().map(|token| &token.id).collect::<Vec<_>>(), [&good.id]);
    assert_eq!(guest.status().await.state(), DaemonState::Solitary);

    guest.join(&good.token, &good.addresses).await.unwrap();
    assert_eq!(first.state_of("guest").await, NodeState::Alive);
    let mut late = lab.daemon("late", |_| {});
    late.start(false);
    let told = late.join(&good.token, &good.addresses).await.map_err(refusal).unwrap_err();
    assert!(told.contains("has been used"), "{told}");
    let again = guest.join(&good.token, &good.addresses).await.unwrap_err();
    assert_eq!(again.code(), Some(Code::Exists));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_removed_are_refused_and_leavers_are_free() {
    let lab = Lab::new();
    let mut nodes = lab.cluster(3, |_| {}).await;
    eventually("three voters", || async { nodes[0].status().await.voters == 3 }).await;
    let remove = |force| RemoveRequest { node: "n3".into(), force };
    let alive = nodes[0].call::<Remove>(remove(false)).await.unwrap_err();
    assert_eq!(alive.code(), Some(Code::Conflict), "{alive}");
    nodes[2].kill();
    eventually("n3 is dead", || async { nodes[0].state_of("n3").await == NodeState::Dead }).await;
    nodes[0].call::<Remove>(remove(false)).await.unwrap();
    eventually("one voter is left of two nodes", || async {
        let status = nodes[0].status().await;
        status.nodes == 2 && status.voters == 1
    })
    .await;
    // It comes back with its old certificate: nobody listens.
    nodes[2].start(false);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(nodes[2].status().await.state(), DaemonState::NoQuorum);
    assert!(nodes[2].put("x", "from the removed").await.is_err());
    assert_eq!(nodes[0].get("x").await, None);

    let leader = nodes[0].status().await.leader as usize - 1;
    let stays = 1 - leader;
    nodes[leader].call::<Leave>(LeaveRequest { force: false }).await.unwrap();
    assert_eq!(nodes[leader].status().await.state(), DaemonState::Solitary);
    nodes[stays].put("x", "alone").await.unwrap();
    let last = nodes[stays].call::<Leave>(LeaveRequest { force: false }).await.unwrap_err();
    assert!(message(&last).contains("last node"), "{last}");
    // Who left may come back, as somebody new.
    let token = nodes[stays].token(60_000).await;
    nodes[leader].join(&token.token, &token.addresses).await.unwrap();
    assert_eq!(nodes[leader].get("x").await.as_deref(), Some("alone"));
    nodes[stays].end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_while_calls_go_on() {
    let lab = Lab::new();
    let brief = |settings: &mut Settings| settings.certificate_lifetime = Duration::from_secs(3);
    let nodes = lab.cluster(2, brief).await;
    let first = nodes[1].status().await.certificate_expires_ms;
    let start = Instant::now();
    let mut renewals = std::collections::BTreeSet::from([first]);
    let mut calls = 0;
    while start.elapsed() < Duration::from_secs(8) {
        nodes[1].put("beat", &calls.to_string()).await.unwrap();
        calls += 1;
        renewals.insert(nodes[1].status().await.certificate_expires_ms);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(renewals.len() >= 3, "{renewals:?}");
    assert_eq!(nodes[0].get("beat").await, Some((calls - 1).to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_daemon_for_each_directory_and_a_quick_start() {
    let lab = Lab::new();
    let mut daemon = lab.daemon("n1", |_| {});
    let begun = Instant::now();
    daemon.start(true);
    eventually("ready", || async { daemon.status().await.state() == DaemonState::Ready }).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let second = daemon::run(daemon.settings.clone(), false, std::future::pending()).await;
    assert!(matches!(second, Err(DaemonError::Start(_))), "{second:?}");
    let down = daemon.call::<Down>(DownRequest {}).await.unwrap();
    assert_eq!(down.daemon_pid, std::process::id());
    daemon.end().await.unwrap();
}
