//! Reads everything that this node shall hold, finds what is missing or damaged, and mends it.
//!
//! A scrub walks this node's chunks in the order of their ids, no faster than its rate, and reads
//! each from the disk itself. What reads come upon meanwhile, and what was not there when the daemon
//! started, is mended at once.
//!
//! Invariant: what mends a replica has the hash that the registry knows.
//!
//! The record of the scrub is a small file that is written now and then. Where it is lost, or older
//! than the truth, a part is read twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use unum_core::tree::Chunk;
use unum_proto::admin;
use unum_proto::file::FaultKind;
use unum_proto::ids::{ChunkId, NodeId};

use super::{COPY_TIME_MAX, Contents, locked};
use crate::store::ChunkError;

/// Chunks that one look into the registry brings.
const STEP_MAX: usize = 256;
/// Pause between two looks whether it is time for the next scrub.
const LOOK_PAUSE: Duration = Duration::from_secs(60);
/// The record is written so often at most.
const RECORD_PERIOD: Duration = Duration::from_secs(30);
/// Pause before what could not be mended, because no other node answered, is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(30);
/// Reads come upon what cannot be mended time and again, those of the other nodes' mending among
/// them: it is looked at so often at most.
const GIVEN_UP_PAUSE: Duration = Duration::from_secs(600);
/// Chunks remembered that could not be mended; the next scrub finds the others.
const UNMENDED_MAX: usize = 1 << 16;

/// What is remembered of the scrub across daemons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Unix time in milliseconds of the beginning of the last or current scrub.
    began_ms: u64,
    finished_ms: u64,
    /// Lane and number of the last chunk that was looked at; none while it rests.
    cursor: Option<(u64, u64)>,
    is_under_way: bool,
    checked_bytes: u64,
    found: u64,
    mended: u64,
}

impl Record {
    /// What cannot be read is forgotten: the scrub begins anew.
    pub fn load(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn store(&self, path: &Path) -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, path)
    }

    pub fn standing(&self, total_bytes: u64, unmended: u64) -> admin::Scrub {
        admin::Scrub {
            began_ms: if self.is_under_way { self.began_ms } else { 0 },
            checked_bytes: self.checked_bytes,
            total_bytes,
            finished_ms: self.finished_ms,
            found: self.found,
            mended: self.mended,
            unmended,
        }
    }

    /// Begins one, unless one is under way or it is not time yet.
    fn begin(&mut self, now_ms: u64, period: Duration) -> bool {
        let period_ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        // A clock that was set back delays it by a period at most.
        let rested = now_ms.abs_diff(self.began_ms) >= period_ms;
        if !self.is_under_way && rested {
            self.began_ms = now_ms;
            self.is_under_way = true;
            self.cursor = None;
            self.checked_bytes = 0;
        }
        self.is_under_way
    }

    fn finish(&mut self, now_ms: u64) {
        self.finished_ms = now_ms;
        self.is_under_way = false;
        self.cursor = None;
    }
}

/// What came of looking after a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mended {
    /// Nobody wants it here, or it is as it should be.
    Nothing,
    Done,
    /// It may go later.
    Later(String),
    /// No other node has a good replica.
    Never(String),
}

pub(super) async fn run(contents: Arc<Contents>) {
    let period = contents.parts.rates.scrub_period;
    let mut written = Instant::now();
    loop {
        let is_under_way = locked(&contents.scrubbed).begin(now_ms(), period);
        if !is_under_way {
            sleep(LOOK_PAUSE.min(period)).await;
            continue;
        }
        // What is not seen yet is read by the next scrub.
        let cursor = locked(&contents.scrubbed).cursor;
        let after = cursor.map(|(lane, seq)| ChunkId { lane, seq });
        let walk = contents.look(|tree| tree.chunks_on(contents.parts.node, after, STEP_MAX));
        for (id, chunk) in walk.found {
            contents.scrubbing.take(u64::from(chunk.length)).await;
            contents.look_after(id, &chunk).await;
            locked(&contents.scrubbed).checked_bytes += u64::from(chunk.length);
        }
        {
            let mut record = locked(&contents.scrubbed);
            match walk.next {
                Some(next) => record.cursor = Some((next.lane, next.seq)),
                None => record.finish(now_ms()),
            }
        }
        if walk.next.is_none() || written.elapsed() >= RECORD_PERIOD {
            contents.write_record();
            written = Instant::now();
        }
        tokio::task::yield_now().await;
    }
}

/// Mends what was lost while the daemon was away, then what reads come upon.
pub(super) async fn mend_suspects(contents: Arc<Contents>) {
    mend_missing(&contents).await;
    loop {
        let suspects = contents.parts.replicas.suspects().await;
        let mut later = Vec::new();
        for id in suspects.into_iter().filter(|id| !contents.is_given_up(*id)) {
            if let Mended::Later(why) = contents.mend(id).await {
                tracing::warn!(chunk = %id, why, "a damaged replica is mended later");
                later.push(id);
            }
        }
        if !later.is_empty() {
            let replicas = contents.parts.replicas.clone();
            // What reads come upon meanwhile waits with these.
            sleep(RETRY_PAUSE).await;
            later.into_iter().for_each(|id| replicas.suspect(id));
        }
    }
}

async fn mend_missing(contents: &Contents) {
    while contents.fresh().await.is_err() {
        sleep(RETRY_PAUSE).await;
    }
    let store = contents.parts.replicas.store().store();
    let mut after = None;
    loop {
        let walk = contents.look(|tree| tree.chunks_on(contents.parts.node, after, STEP_MAX));
        for (id, _) in walk.found.iter().filter(|(id, _)| !store.contains(*id)) {
            if let Mended::Later(_) = contents.mend(*id).await {
                contents.parts.replicas.suspect(*id);
            }
        }
        match walk.next {
            Some(next) => after = Some(next),
            None => return,
        }
        tokio::task::yield_now().await;
    }
}

impl Contents {
    async fn look_after(&self, id: ChunkId, chunk: &Chunk) {
        if self.fault(id, chunk, true).await.is_none() {
            locked(&self.unmended).remove(&id);
        } else if let Mended::Later(_) = self.mend(id).await {
            self.parts.replicas.suspect(id);
        }
    }

    /// What is wrong with this node's replica. `deep` reads all of it, from the disk itself.
    pub(super) async fn fault(
        &self,
        id: ChunkId,
        chunk: &Chunk,
        deep: bool,
    ) -> Option<(FaultKind, String)> {
        let store = self.parts.replicas.store();
        let outline = match deep {
            true => store.verify(id).await,
            false => store.outline(id).await,
        };
        match outline {
            Ok(found) if found.len != chunk.length => {
                let what = format!("it has {} bytes instead of {}", found.len, chunk.length);
                Some((FaultKind::Length, what))
            }
            Ok(found) if found.hash != chunk.hash => {
                Some((FaultKind::Rotten, "its content is another one than was written".into()))
            }
            Ok(_) => None,
            Err(ChunkError::NotFound { .. }) => {
                Some((FaultKind::Missing, "it is not there".into()))
            }
            Err(error) => Some((FaultKind::Rotten, error.to_string())),
        }
    }

    /// Looks at this node's replica once more, and replaces it by a good one if need be.
    pub(super) async fn mend(&self, id: ChunkId) -> Mended {
        if let Err(error) = self.fresh().await {
            return Mended::Later(error.to_string());
        }
        let Some(chunk) = self.wanted_here(id) else {
            locked(&self.unmended).remove(&id);
            return Mended::Nothing;
        };
        let Some((_, what)) = self.fault(id, &chunk, true).await else {
            locked(&self.unmended).remove(&id);
            return Mended::Nothing;
        };
        tracing::debug!(chunk = %id, what, "a replica here is damaged");
        let outcome = self.replace(id, &chunk).await;
        let is_new = self.count(id, &outcome);
        match &outcome {
            Mended::Never(why) if is_new => {
                tracing::error!(chunk = %id, why, "a replica cannot be mended");
            }
            Mended::Done => tracing::warn!(chunk = %id, what, "a bad replica here was mended"),
            Mended::Later(_) | Mended::Never(_) | Mended::Nothing => {}
        }
        outcome
    }

    async fn replace(&self, id: ChunkId, chunk: &Chunk) -> Mended {
        self.copying.take(u64::from(chunk.length)).await;
        let own = self.parts.node;
        let others: Vec<NodeId> =
            chunk.replicas.iter().copied().filter(|node| *node != own).collect();
        let deadline = Instant::now() + COPY_TIME_MAX;
        let data = match self.parts.replicas.read_whole(id, chunk, &others, deadline).await {
            Ok(data) => data,
            Err(error) if error.is_final() => return Mended::Never(error.to_string()),
            Err(error) => return Mended::Later(error.to_string()),
        };
        let (store, hash) = (self.parts.replicas.store(), chunk.hash.into());
        let put = match store.put(id, data.clone(), hash).await {
            // Another content, with checksums of its own: never what was acknowledged.
            Err(ChunkError::Conflict { .. }) => match store.delete(id).await {
                Ok(()) => store.put(id, data, hash).await,
                Err(error) => Err(error),
            },
            put => put,
        };
        match put {
            Ok(()) => Mended::Done,
            // Another node shall hold it: repair finds one.
            Err(ChunkError::Full(_)) => match self.set_replicas(id, chunk, others).await {
                Ok(()) => Mended::Done,
                Err(why) => Mended::Later(why),
            },
            Err(error) => Mended::Later(error.to_string()),
        }
    }

    /// Counts what came of a bad replica; tells whether it was not known to be bad.
    fn count(&self, id: ChunkId, outcome: &Mended) -> bool {
        let mut unmended = locked(&self.unmended);
        let is_new = match outcome {
            Mended::Done => unmended.remove(&id).is_none(),
            Mended::Never(_) if unmended.len() >= UNMENDED_MAX => !unmended.contains_key(&id),
            Mended::Never(_) => unmended.insert(id, Instant::now()).is_none(),
            Mended::Later(_) | Mended::Nothing => return false,
        };
        drop(unmended);
        let mut record = locked(&self.scrubbed);
        record.found += u64::from(is_new);
        record.mended += u64::from(*outcome == Mended::Done);
        is_new
    }

    /// Whether there is no good replica of this chunk, as far as was found out lately.
    fn is_given_up(&self, id: ChunkId) -> bool {
        let tried = locked(&self.unmended).get(&id).copied();
        tried.is_some_and(|at| at.elapsed() < GIVEN_UP_PAUSE)
    }

    /// Forgets those that nobody wants any more.
    pub(super) fn count_unmended(&self) -> u64 {
        let known: Vec<ChunkId> = locked(&self.unmended).keys().copied().collect();
        let unwanted: BTreeSet<ChunkId> =
            known.into_iter().filter(|id| self.wanted_here(*id).is_none()).collect();
        let mut unmended = locked(&self.unmended);
        unmended.retain(|id, _| !unwanted.contains(id));
        unmended.len() as u64
    }

    fn write_record(&self) {
        let record = locked(&self.scrubbed).clone();
        if let Err(error) = record.store(&self.parts.record) {
            let path = self.parts.record.display();
            tracing::warn!(%error, %path, "the record of the scrub cannot be written");
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_goes_on_where_it_was_and_rests_between() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("upkeep/scrub");
        let period = Duration::from_secs(100);
        let mut record = Record::load(&path);
        assert!(record.begin(1_000_000, period));
        record.cursor = Some((u64::MAX, 7));
        record.store(&path).unwrap();
        let mut record = Record::load(&path);
        assert!(record.begin(5_000_000, period));
        assert_eq!((record.cursor, record.began_ms), (Some((u64::MAX, 7)), 1_000_000));
        record.finish(5_000_000);
        assert!(record.begin(5_000_001, period), "the period counts from the beginning");
        record.finish(5_000_002);
        assert!(!record.begin(5_090_000, period));
        assert!(record.begin(5_100_001, period));
        assert_eq!((record.cursor, record.finished_ms), (None, 5_000_002));
        std::fs::write(&path, b"{ \"began_ms\": -1, ").unwrap();
        assert_eq!(Record::load(&path), Record::default());
    }
}
