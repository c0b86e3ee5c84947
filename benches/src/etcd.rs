//! Puts to etcd's leader through tonic, with the few messages that this takes written by hand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use crate::{KEYS, VALUE_SIZE, pace};

/// Clients that share a connection: more connections cost etcd more than they bring it.
const CLIENTS_PER_CONNECTION: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

pub async fn run(clients: usize, time: Duration, urls: &str) -> Result<()> {
    let leader = find_leader(urls).await?;
    let mut channels = Vec::new();
    for _ in 0..clients.div_ceil(CLIENTS_PER_CONNECTION) {
        channels.push(connect(&leader).await?);
    }
    let callers = (0..clients).filter_map(|client| {
        let channel = channels.get(client / CLIENTS_PER_CONNECTION)?.clone();
        Some(move || put(channel.clone()))
    });
    pace::run(callers.collect(), time).await?.print(&format!("etcd, {clients} clients"));
    Ok(())
}

async fn find_leader(urls: &str) -> Result<String> {
    for url in urls.split(',') {
        let channel = connect(url).await?;
        let status: StatusResponse =
            call(channel, "/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(url.to_owned());
        }
    }
    bail!("none of these etcd servers leads: {urls}")
}

async fn connect(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true);
    endpoint.connect().await.with_context(|| format!("etcd does not answer on {url}"))
}

async fn put(channel: Channel) -> Result<()> {
    static KEY: AtomicU64 = AtomicU64::new(0);
    let key = format!("bench/{}", KEY.fetch_add(1, Ordering::Relaxed) % KEYS);
    let value = Bytes::from(vec![7; VALUE_SIZE]);
    let response: PutResponse =
        call(channel, "/etcdserverpb.KV/Put", PutRequest { key: key.into(), value }).await?;
    response.header.filter(|header| header.revision > 0).context("no revision in etcd's reply")?;
    Ok(())
}

async fn call<Q, R>(channel: Channel, path: &'static str, request: Q) -> Result<R>
where
    Q: Message + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel);
    let exchange = async {
        grpc.ready().await?;
        let codec = tonic_prost::ProstCodec::<Q, R>::default();
        let request = tonic::Request::new(request);
        anyhow::Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
    };
    tokio::time::timeout(PATIENCE, exchange).await.context("etcd took too long")?
}
