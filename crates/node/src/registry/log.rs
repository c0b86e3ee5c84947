//! The log of consensus: entries in memory since the last purge, all of it in a journal.
//!
//! The journal holds records of five kinds in the order in which they took effect: entries, votes,
//! commit positions, truncations and purges; replaying them gives the log. A commit position rides
//! along with the next group instead of causing a sync of its own: it only saves work at a restart.
//! Invariants: an entry can be read once `append` returned; its flush is told when it is durable;
//! records are released only when vote, commit position and purge have been written anew behind
//! them; a vote is told durable when two groups hold it, for the last group may be lost to rot, and
//! a node that forgets its vote acknowledges entries to a leader that it has helped to depose.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use unum_proto::registry as wire;

use super::limits::APPEND_BYTES_MAX;
use super::types::{
    Entry, LogId, Malformed, Types, Vote, entry_from_wire, entry_to_wire, log_id_from_wire,
    log_id_to_wire, vote_from_wire, vote_to_wire,
};
use super::writer::{Done, Work};
use crate::store::journal::{self, Journal, JournalError, OwnedRecord, Record, Seq};

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_COMMITTED: u8 = 3;
const KIND_TRUNCATED: u8 = 4;
const KIND_PURGED: u8 = 5;

/// Groups that hold a vote before it is told durable.
const VOTE_COPIES: u32 = 2;
/// Bytes that are read at once while replaying.
const REPLAY_BYTES: usize = 1 << 20;

struct Slot {
    entry: Entry,
    seq: Seq,
    bytes: usize,
}

/// What the journal says, in memory.
#[derive(Default)]
struct Memory {
    entries: VecDeque<Slot>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// The commit position is newer than the journal's.
    committed_unwritten: bool,
    /// The number that the next record gets.
    next: Seq,
    /// Bytes of entries in memory.
    bytes: u64,
}

impl Memory {
    fn last(&self) -> Option<LogId> {
        self.entries.back().map(|slot| slot.entry.log_id).or(self.purged)
    }

    /// Index of the first entry in memory, or where it would be.
    fn first_index(&self) -> u64 {
        match self.entries.front() {
            Some(slot) => slot.entry.log_id.index,
            None => self.purged.map_or(0, |id| id.index.saturating_add(1)),
        }
    }

    fn replay(&mut self, record: journal::Entry) -> Result<(), Malformed> {
        let decode = |_| Malformed("journal record");
        let bytes = record.bytes;
        match record.kind {
            KIND_ENTRY => {
                let size = bytes.len();
                let entry = entry_from_wire(wire::Entry::decode(bytes).map_err(decode)?)?;
                self.push(entry, record.seq, size)?;
            }
            KIND_VOTE => {
                let vote = wire::Vote::decode(bytes).map_err(decode)?;
                self.vote = Some(vote_from_wire(Some(vote))?);
            }
            KIND_COMMITTED => {
                let id = wire::LogId::decode(bytes).map_err(decode)?;
                self.committed = Some(log_id_from_wire(id));
            }
            KIND_TRUNCATED => {
                let position = wire::LogPosition::decode(bytes).map_err(decode)?;
                self.truncate(position.last.map(log_id_from_wire));
            }
            KIND_PURGED => {
                let id = wire::LogId::decode(bytes).map_err(decode)?;
                self.purge(log_id_from_wire(id));
            }
            _ => return Err(Malformed("journal record kind")),
        }
        self.next = record.seq + 1;
        Ok(())
    }

    fn push(&mut self, entry: Entry, seq: Seq, bytes: usize) -> Result<(), Malformed> {
        let index = entry.log_id.index;
        if let Some(last) = self.entries.back()
            && last.entry.log_id.index.checked_add(1) != Some(index)
        {
            return Err(Malformed("log order"));
        }
        self.bytes += bytes as u64;
        self.entries.push_back(Slot { entry, seq, bytes });
        Ok(())
    }

    fn truncate(&mut self, last: Option<LogId>) {
        let keep = last.map_or(0, |id| id.index.saturating_add(1));
        if last.is_none() {
            self.purged = None;
        }
        while self.entries.back().is_some_and(|slot| slot.entry.log_id.index >= keep) {
            self.bytes -= self.entries.pop_back().map_or(0, |slot| slot.bytes as u64);
        }
    }

    fn purge(&mut self, upto: LogId) {
        while self.entries.front().is_some_and(|slot| slot.entry.log_id.index <= upto.index) {
            self.bytes -= self.entries.pop_front().map_or(0, |slot| slot.bytes as u64);
        }
        self.purged = self.purged.max(Some(upto));
    }

    fn range(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Vec<Entry> {
        let first = self.first_index();
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let skip = start.saturating_sub(first).min(self.entries.len() as u64) as usize;
        let mut bytes = 0;
        self.entries
            .range(skip..)
            .take_while(|slot| {
                let fits = bytes == 0 || bytes + slot.bytes <= bytes_max;
                bytes += slot.bytes;
                slot.entry.log_id.index < end && fits
            })
            .map(|slot| slot.entry.clone())
            .collect()
    }
}

/// What the journal held when it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    pub vote: Option<Vote>,
}

/// The log, readable and writable by consensus; cheap to clone.
pub struct LogStore<RT: AsyncRuntime> {
    memory: Arc<Mutex<Memory>>,
    writer: mpsc::Sender<Work<RT>>,
}

impl<RT: AsyncRuntime> Clone for LogStore<RT> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), writer: self.writer.clone() }
    }
}

/// Tells how the log stands, without keeping its writer alive.
pub struct LogView<RT: AsyncRuntime> {
    memory: Arc<Mutex<Memory>>,
    writer: mpsc::WeakSender<Work<RT>>,
}

impl<RT: AsyncRuntime> LogView<RT> {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Bytes of entries since the last purge.
    pub fn bytes(&self) -> u64 {
        self.memory().bytes
    }

    /// Where the log ends: what is acknowledged does not reach further.
    pub fn last(&self) -> Option<LogId> {
        self.memory().last()
    }

    /// Waits until all that was queued before the call is durable; whether it is.
    pub async fn flushed(&self) -> bool {
        let Some(writer) = self.writer.upgrade() else { return false };
        let (done, durable) = oneshot::channel();
        let work = Work::Write { records: Vec::new(), done: Done::Waiter(done) };
        writer.send(work).await.is_ok() && matches!(durable.await, Ok(Ok(())))
    }
}

/// The log as it was read from the journal, not yet connected to its writer.
pub struct Replayed(Memory);

impl Replayed {
    pub fn read(journal: &Journal) -> Result<Self, ReplayError> {
        let reader = journal.reader();
        let mut memory = Memory { next: journal.next(), ..Memory::default() };
        let mut at = journal.first();
        while at < journal.next() {
            for record in reader.read_range(at, journal.next(), REPLAY_BYTES)? {
                at = record.seq + 1;
                memory.replay(record)?;
            }
        }
        memory.next = journal.next();
        // A commit position can be ahead of the entries that this node has.
        memory.committed = memory.committed.min(memory.last());
        Ok(Self(memory))
    }

    pub fn found(&self) -> Found {
        Found { purged: self.0.purged, last: self.0.last(), vote: self.0.vote }
    }

    /// Gives up all entries and keeps the vote: what was purged before them is lost. Durable when
    /// this returns.
    pub fn forget_entries(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        let nothing = wire::LogPosition { last: None }.encode_to_vec();
        let seq = journal.append(&[Record { kind: KIND_TRUNCATED, bytes: &nothing }])?;
        self.0 = Memory { vote: self.0.vote, next: seq + 1, ..Memory::default() };
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the log cannot be replayed: {0}; it was written by another version")]
    Malformed(#[from] Malformed),
}

impl<RT: AsyncRuntime> LogStore<RT> {
    pub fn new(replayed: Replayed, writer: mpsc::Sender<Work<RT>>) -> Self {
        Self { memory: Arc::new(Mutex::new(replayed.0)), writer }
    }

    pub fn view(&self) -> LogView<RT> {
        LogView { memory: self.memory.clone(), writer: self.writer.downgrade() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn queue(&self, work: Work<RT>) -> io::Result<()> {
        let sent = self.writer.send(work).await;
        sent.map_err(|_| io::Error::other("the log's writer has stopped"))
    }
}

/// Gives a record its number.
fn number(memory: &mut Memory, kind: u8, message: &impl Message) -> (Seq, OwnedRecord) {
    let seq = memory.next;
    memory.next += 1;
    (seq, OwnedRecord { kind, bytes: message.encode_to_vec().into() })
}

fn commit_record(memory: &mut Memory) -> Option<OwnedRecord> {
    let committed = memory.committed.filter(|_| memory.committed_unwritten)?;
    memory.committed_unwritten = false;
    Some(number(memory, KIND_COMMITTED, &log_id_to_wire(committed)).1)
}

impl<RT: AsyncRuntime> RaftLogReader<Types<RT>> for LogStore<RT> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.memory().range(range, usize::MAX))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        Ok(self.memory().range(start..end, APPEND_BYTES_MAX))
    }
}

impl<RT: AsyncRuntime> RaftLogStorage<Types<RT>> for LogStore<RT> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types<RT>>> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.memory().vote = Some(*vote);
        for _ in 0..VOTE_COPIES {
            let record = number(&mut self.memory(), KIND_VOTE, &vote_to_wire(*vote)).1;
            let (done, durable) = oneshot::channel();
            self.queue(Work::Write { records: vec![record], done: Done::Waiter(done) }).await?;
            let stopped = |_| Err(io::Error::other("the log's writer has stopped"));
            durable.await.unwrap_or_else(stopped)?;
        }
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut memory = self.memory();
        memory.committed_unwritten |= memory.committed != committed;
        memory.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<RT>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = {
            let mut memory = self.memory();
            let mut records = Vec::new();
            for entry in entries {
                let (seq, record) = number(&mut memory, KIND_ENTRY, &entry_to_wire(&entry));
                let pushed = memory.push(entry, seq, record.bytes.len());
                pushed.map_err(io::Error::other)?;
                records.push(record);
            }
            records.extend(commit_record(&mut memory));
            records
        };
        self.queue(Work::Write { records, done: Done::Flushed(callback) }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let record = {
            let mut memory = self.memory();
            memory.truncate(last_log_id);
            let position = wire::LogPosition { last: last_log_id.map(log_id_to_wire) };
            number(&mut memory, KIND_TRUNCATED, &position).1
        };
        self.queue(Work::Write { records: vec![record], done: Done::Nobody }).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let (records, below) = {
            let mut memory = self.memory();
            memory.purge(log_id);
            let (seq, record) = number(&mut memory, KIND_PURGED, &log_id_to_wire(log_id));
            let mut records = vec![record];
            if let Some(vote) = memory.vote {
                records.push(number(&mut memory, KIND_VOTE, &vote_to_wire(vote)).1);
            }
            memory.committed_unwritten = true;
            records.extend(commit_record(&mut memory));
            (records, memory.entries.front().map_or(seq, |slot| slot.seq.min(seq)))
        };
        self.queue(Work::Write { records, done: Done::Nobody }).await?;
        self.queue(Work::Release { below }).await
    }
}
