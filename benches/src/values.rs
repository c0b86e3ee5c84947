//! Puts to Unum's registry as any local client makes them: calls over the daemon's socket.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use unum_net::{CallOptions, Client, Name};
use unum_node::api::methods::{ListNodes, ValuePut};
use unum_proto::admin::{NodesRequest, ValuePutRequest};

use crate::{KEYS, VALUE_SIZE, pace};

const PATIENCE: Duration = Duration::from_secs(5);

pub async fn run(clients: usize, time: Duration, socket: &str) -> Result<()> {
    let client = connect(socket).await?;
    let callers = (0..clients).map(|_| {
        let client = client.clone();
        move || put(client.clone())
    });
    pace::run(callers.collect(), time).await?.print(&format!("unum, {clients} clients"));
    client.shutdown().await;
    Ok(())
}

pub async fn print_leader(socket: &str) -> Result<()> {
    let client = connect(socket).await?;
    let options = CallOptions::within(PATIENCE);
    let to = Name::Service("admin".into());
    let reply = client.call::<ListNodes>(&to, NodesRequest {}, &options).await?;
    let leader = reply.nodes.into_iter().find(|node| node.leader).context("nobody leads")?;
    println!("{}", leader.name);
    client.shutdown().await;
    Ok(())
}

async fn connect(socket: &str) -> Result<Client> {
    let client = Client::unix(Path::new(socket)).await;
    client.with_context(|| format!("no daemon answers on {socket}"))
}

async fn put(client: Client) -> Result<()> {
    static KEY: AtomicU64 = AtomicU64::new(0);
    let request = ValuePutRequest {
        name: format!("bench/{}", KEY.fetch_add(1, Ordering::Relaxed) % KEYS),
        content: vec![7; VALUE_SIZE],
        if_version: None,
    };
    let options = CallOptions::within(PATIENCE);
    let reply = client.call::<ValuePut>(&Name::Service("admin".into()), request, &options).await?;
    ensure!(reply.done && reply.version > 0, "the value was not put");
    Ok(())
}
