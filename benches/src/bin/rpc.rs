//! The price of a call: Unum's RPC against a bare ping-pong over tokio-rustls and against tonic,
//! all with mutual TLS 1.3 over the loopback, in the same run.
//!
//! `cargo run --release -p unum-benches --bin rpc [ROUNDS]` prints a table; each figure is the median of
//! the rounds, which take turns so that all suffer the same neighbours.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::{
    codegen::{BoxFuture, Service, http},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig},
};
use unum_net::{
    CallOptions, CertificateAuthority, Client, Directory, IdentityStore, Name, NodeKey, Opened,
    Router, Server, Settings,
};
use unum_proto::ids::NodeId;

const ROUND: Duration = Duration::from_millis(1500);
const PAYLOAD_SIZE: usize = 64;
const STREAM_SIZE: usize = 1 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(bytes = "bytes", tag = "1")]
    bytes: Bytes,
}

unum_net::methods! {
    Null = "bench.null", Control, Payload => Payload;
    NullIdempotent = "bench.null-idempotent", Control, idempotent, Payload => Payload;
    Take = "bench.take", Bulk, Payload => Payload;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(7), |text| text.parse())?;
    let bench = Bench::start().await?;
    let mut table = Table::default();
    for _ in 0..rounds {
        bench.round(&mut table).await?;
    }
    table.print();
    Ok(())
}

#[derive(Default)]
struct Table {
    /// Name of the row, values of its rounds, how to print one.
    rows: Vec<(String, Vec<f64>, &'static str)>,
}

impl Table {
    fn add(&mut self, name: &str, unit: &'static str, value: f64) {
        match self.rows.iter_mut().find(|row| row.0 == name) {
            Some(row) => row.1.push(value),
            None => self.rows.push((name.to_owned(), vec![value], unit)),
        }
    }

    fn print(&self) {
        println!("| measured | median | least | most |\n|---|---:|---:|---:|");
        for (name, values, unit) in &self.rows {
            let mut values = values.clone();
            values.sort_by(f64::total_cmp);
            let (least, most) = (values[0], values[values.len() - 1]);
            let median = values[values.len() / 2];
            println!("| {name} ({unit}) | {median:.1} | {least:.1} | {most:.1} |");
        }
    }
}

struct Bench {
    raw: Raw,
    client: Client,
    tonic: Channel,
    _server: Server,
}

impl Bench {
    async fn start() -> Result<Self> {
        let pki = Pki::make()?;
        let (client, server) = start_unum().await?;
        let raw = Raw::start(&pki).await?;
        let tonic = start_tonic(&pki).await?;
        Ok(Bench { raw, client, tonic, _server: server })
    }

    async fn round(&self, table: &mut Table) -> Result<()> {
        for clients in [1, 64] {
            let raw = self.raw.ping_pong(clients).await?;
            table.add(&format!("raw rustls, {clients} clients, p50"), "us", raw.p50_us);
            table.add(&format!("raw rustls, {clients} clients"), "calls/s", raw.per_second);
            let unum = run(clients, |_| {
                let client = self.client.clone();
                async move { Ok(move || null_call::<Null>(client.clone())) }
            })
            .await?;
            table.add(&format!("unum, {clients} clients, p50"), "us", unum.p50_us);
            table.add(&format!("unum, {clients} clients"), "calls/s", unum.per_second);
            table.add(
                &format!("unum / raw, {clients} clients, p50"),
                "x",
                unum.p50_us / raw.p50_us,
            );
            let unum = run(clients, |_| {
                let client = self.client.clone();
                async move { Ok(move || null_call::<NullIdempotent>(client.clone())) }
            })
            .await?;
            table.add(&format!("unum idempotent, {clients} clients, p50"), "us", unum.p50_us);
            let tonic = run(clients, |_| {
                let channel = self.tonic.clone();
                async move { Ok(move || tonic_call(channel.clone())) }
            })
            .await?;
            table.add(&format!("tonic, {clients} clients, p50"), "us", tonic.p50_us);
            table.add(&format!("tonic, {clients} clients"), "calls/s", tonic.per_second);
        }
        table.add("raw rustls, 1 MiB pieces one way", "MiB/s", self.raw.stream().await?);
        table.add("unum, stream of 1 MiB pieces", "MiB/s", self.unum_stream().await?);
        Ok(())
    }

    async fn unum_stream(&self) -> Result<f64> {
        let to = Name::Node(NodeId(2));
        let options = CallOptions::unlimited();
        let Opened { reply, mut sender, receiver } =
            self.client.open::<Take>(&to, Payload::default(), &options).await?;
        let piece = Bytes::from(vec![7; STREAM_SIZE]);
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < ROUND {
            sender.send(piece.clone()).await?;
            count += 1;
        }
        sender.finish();
        reply.await?;
        drop(receiver);
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    }
}

struct Figures {
    p50_us: f64,
    per_second: f64,
}

/// So many clients, each calling again as soon as it has its reply.
async fn run<M, F, C, A>(clients: usize, make: M) -> Result<Figures>
where
    M: Fn(usize) -> F,
    F: Future<Output = Result<C>>,
    C: FnMut() -> A + Send + 'static,
    A: Future<Output = Result<()>> + Send + 'static,
{
    let mut tasks = tokio::task::JoinSet::new();
    let mut callers = Vec::new();
    for client in 0..clients {
        callers.push(make(client).await?);
    }
    let start = Instant::now();
    for mut call in callers {
        tasks.spawn(async move {
            let mut times = Vec::with_capacity(1 << 16);
            while start.elapsed() < ROUND {
                let before = Instant::now();
                call().await?;
                times.push(before.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    let elapsed = start.elapsed().as_secs_f64();
    times.sort();
    let p50 = times.get(times.len() / 2).context("no call ended")?;
    Ok(Figures { p50_us: p50.as_secs_f64() * 1e6, per_second: times.len() as f64 / elapsed })
}

async fn null_call<M>(client: Client) -> Result<()>
where
    M: unum_net::Method<Request = Payload, Reply = Payload>,
{
    let request = Payload { bytes: Bytes::from_static(&[7; PAYLOAD_SIZE]) };
    let options = CallOptions::within(Duration::from_secs(5));
    client.call::<M>(&Name::Node(NodeId(2)), request, &options).await?;
    Ok(())
}

async fn start_unum() -> Result<(Client, Server)> {
    let authority = CertificateAuthority::create("bench")?;
    let store = |node| -> Result<Arc<IdentityStore>> {
        let key = NodeKey::generate()?;
        let day = Duration::from_secs(86_400);
        let certificate = authority.issue_for_key(&key, NodeId(node), "bench", day)?;
        Ok(Arc::new(IdentityStore::new(unum_net::Identity::new(key, &certificate)?)?))
    };
    let router = Router::new()
        .call::<Null>(|_, request| async move { Ok(request) })
        .call::<NullIdempotent>(|_, request| async move { Ok(request) })
        .stream::<Take>(|_, _, sender, mut receiver| async move {
            while receiver.recv().await?.is_some() {}
            drop(sender);
            Ok(Payload::default())
        });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let settings = Settings::default();
    let server = Server::start(listener, store(2)?, Arc::new(router), None, settings.clone())?;
    let directory = Arc::new(Directory::new());
    directory.set_node(NodeId(2), vec![server.address()]);
    Ok((Client::new(store(1)?, directory, settings), server))
}

/// Certificates with host names, for the two that check these.
struct Pki {
    authority: CertificateDer<'static>,
    authority_pem: String,
    chain: CertificateDer<'static>,
    chain_pem: String,
    key: PrivateKeyDer<'static>,
    key_pem: String,
}

impl Pki {
    fn make() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate()?;
        let authority = params.self_signed(&authority_key)?;
        let issuer = Issuer::from_params(&params, authority_key);
        let key = KeyPair::generate()?;
        let leaf =
            CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &issuer)?;
        Ok(Pki {
            authority: authority.der().clone(),
            authority_pem: authority.pem(),
            chain: leaf.der().clone(),
            chain_pem: leaf.pem(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            key_pem: key.serialize_pem(),
        })
    }
}

/// Ping-pong over tokio-rustls with nothing in between.
struct Raw {
    connector: TlsConnector,
    address: SocketAddr,
}

impl Raw {
    async fn start(pki: &Pki) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(pki.authority.clone())?;
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![pki.chain.clone()], pki.key.clone_key())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![pki.chain.clone()], pki.key.clone_key())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(Self::serve(listener, TlsAcceptor::from(Arc::new(server))));
        Ok(Raw { connector: TlsConnector::from(Arc::new(client)), address })
    }

    async fn serve(listener: TcpListener, acceptor: TlsAcceptor) -> Result<()> {
        loop {
            let (tcp, _) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut tls = acceptor.accept(tcp).await?;
                match tls.read_u8().await? {
                    0 => loop {
                        let mut buffer = [0; PAYLOAD_SIZE];
                        tls.read_exact(&mut buffer).await?;
                        tls.write_all(&buffer).await?;
                        tls.flush().await?;
                    },
                    _ => {
                        let mut buffer = vec![0; 64 << 10];
                        while tls.read(&mut buffer).await? > 0 {}
                        anyhow::Ok(())
                    }
                }
            });
        }
    }

    async fn connect(&self, mode: u8) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let mut tls = self.connector.connect(ServerName::try_from("localhost")?, tcp).await?;
        tls.write_u8(mode).await?;
        tls.flush().await?;
        Ok(tls)
    }

    /// Each client has a connection of its own: nothing is shared.
    async fn ping_pong(&self, clients: usize) -> Result<Figures> {
        run(clients, |_| async {
            let tls = Arc::new(tokio::sync::Mutex::new(self.connect(0).await?));
            Ok(move || {
                let tls = tls.clone();
                async move {
                    let mut tls = tls.lock().await;
                    let mut buffer = [7; PAYLOAD_SIZE];
                    tls.write_all(&buffer).await?;
                    tls.flush().await?;
                    tls.read_exact(&mut buffer).await?;
                    Ok(())
                }
            })
        })
        .await
    }

    async fn stream(&self) -> Result<f64> {
        let mut tls = self.connect(1).await?;
        let piece = vec![7; STREAM_SIZE];
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < ROUND {
            tls.write_all(&piece).await?;
            count += 1;
        }
        tls.shutdown().await?;
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    }
}

const TONIC_PATH: &str = "/bench.Bench/Null";

async fn start_tonic(pki: &Pki) -> Result<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    drop(listener);
    let identity = Identity::from_pem(&pki.chain_pem, &pki.key_pem);
    let authority = Certificate::from_pem(&pki.authority_pem);
    let tls = ServerTlsConfig::new().identity(identity.clone()).client_ca_root(authority.clone());
    let server = tonic::transport::Server::builder().tcp_nodelay(true).tls_config(tls)?;
    tokio::spawn({
        let mut server = server;
        async move { server.add_service(TonicBench).serve(address).await }
    });
    let tls = ClientTlsConfig::new()
        .ca_certificate(authority)
        .identity(identity)
        .domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?;
    let endpoint = endpoint.tcp_nodelay(true).tls_config(tls)?;
    for _ in 0..50 {
        if let Ok(channel) = endpoint.connect().await {
            return Ok(channel);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    endpoint.connect().await.context("tonic does not answer")
}

async fn tonic_call(channel: Channel) -> Result<()> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let codec = tonic_prost::ProstCodec::<Payload, Payload>::default();
    let request = Payload { bytes: Bytes::from_static(&[7; PAYLOAD_SIZE]) };
    let path = http::uri::PathAndQuery::from_static(TONIC_PATH);
    grpc.unary(tonic::Request::new(request), path, codec).await?;
    Ok(())
}

#[derive(Clone)]
struct TonicBench;

struct TonicNull;

impl tonic::server::NamedService for TonicBench {
    const NAME: &'static str = "bench.Bench";
}

impl tonic::server::UnaryService<Payload> for TonicNull {
    type Response = Payload;
    type Future = BoxFuture<tonic::Response<Payload>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<Payload>) -> Self::Future {
        Box::pin(async move { Ok(tonic::Response::new(request.into_inner())) })
    }
}

impl Service<http::Request<tonic::body::Body>> for TonicBench {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<Payload, Payload>::default();
            Ok(tonic::server::Grpc::new(codec).unary(TonicNull, request).await)
        })
    }
}
