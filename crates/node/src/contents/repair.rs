//! Makes the replicas that the survey asks for: restores lost ones and moves others.
//!
//! Invariant: what a chunk's replicas are changes in the registry after the new ones are durable, and
//! only if nobody else has changed them meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use unum_proto::ids::ChunkId;

use super::survey::{Item, Work};
use super::{COPY_TIME_MAX, Contents};

/// Chunks on their way at the same time.
const COPIES_MAX: usize = 8;
/// What failed is left alone for so long: a full disk stays full for a while.
const COPY_RETRY_PAUSE: Duration = Duration::from_secs(20);
const MOVE_RETRY_PAUSE: Duration = Duration::from_secs(600);
/// Failures that are remembered; the others are tried again at once.
const FAILURES_MAX: usize = 1 << 16;

/// Until when to leave chunks alone.
type Failures = HashMap<ChunkId, Instant>;

pub(super) async fn run(contents: Arc<Contents>, mut work: watch::Receiver<Work>) {
    let mut failures = Failures::new();
    while work.changed().await.is_ok() {
        let items = work.borrow_and_update().clone();
        // What was done by the last list must be seen before the next one is judged.
        if items.is_empty() || contents.fresh().await.is_err() {
            continue;
        }
        let now = Instant::now();
        failures.retain(|_, until| *until > now);
        let failed = work_off(&contents, &items, &failures, &work).await;
        if let Some((_, why)) = failed.last() {
            let chunks = failed.len();
            tracing::warn!(chunks, why, "chunks could not be copied; they are tried again later");
        }
        for (item, _) in failed {
            let pause = if item.is_move { MOVE_RETRY_PAUSE } else { COPY_RETRY_PAUSE };
            if failures.len() < FAILURES_MAX {
                failures.insert(item.id, Instant::now() + pause);
            }
        }
    }
}

/// Carries out a list until a newer one comes, which knows better what is urgent. Returns what
/// failed, and why.
async fn work_off(
    contents: &Contents,
    items: &[Item],
    failures: &Failures,
    work: &watch::Receiver<Work>,
) -> Vec<(Item, String)> {
    let wanted: Vec<Item> =
        items.iter().filter(|item| !failures.contains_key(&item.id)).cloned().collect();
    let is_old = || work.has_changed().unwrap_or(true);
    let mut under_way = futures_util::stream::iter(wanted)
        .map(|item| async move {
            match is_old() {
                true => None,
                false => carry_out(contents, &item).await.err().map(|why| (item, why)),
            }
        })
        .buffer_unordered(COPIES_MAX);
    let mut failed = Vec::new();
    while let Some(outcome) = under_way.next().await {
        failed.extend(outcome);
    }
    failed
}

/// Nothing, if somebody else has changed the chunk's replicas.
pub(super) async fn carry_out(contents: &Contents, item: &Item) -> Result<(), String> {
    let Item { id, chunk, transfer, .. } = item;
    if !contents.is_current(*id, chunk) {
        return Ok(());
    }
    contents.copying.take(u64::from(chunk.length) * transfer.count as u64).await;
    let deadline = Instant::now() + COPY_TIME_MAX;
    let to = transfer.to.iter().copied();
    let replicas = &contents.parts.replicas;
    let copied = replicas.copy(*id, chunk, &transfer.from, to, transfer.count, deadline).await?;
    if copied.to.is_empty() {
        return Err(format!("no node takes another replica of chunk {id}: {}", copied.refusal));
    }
    contents.set_replicas(*id, chunk, transfer.result(&copied.to)).await
}
