//! The journal for many tasks at once: a thread owns it, and whatever waits when a sync ends goes
//! into the next group.
//!
//! Invariants: requests take effect in the order in which they were queued; a full queue makes the
//! callers wait; a caller that goes away takes nothing back.

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::format::{RECORD_HEADER_BYTES, Seq};
use super::{Journal, JournalError, JournalReader, Record};
use crate::store::limits::{JOURNAL_GROUP_BYTES_MAX, JOURNAL_GROUP_RECORDS_MAX, JOURNAL_QUEUE_MAX};

#[derive(Clone, Debug)]
pub struct OwnedRecord {
    pub kind: u8,
    pub bytes: Bytes,
}

/// Gives requests to the thread that owns the journal; cheap to clone. The thread ends when the
/// last clone is gone and the queue is empty; the last clone waits for it.
#[derive(Clone)]
pub struct JournalQueue {
    requests: mpsc::Sender<Request>,
    reader: JournalReader,
    /// Dropped after `requests`: the thread ends because there are no senders.
    _thread: Arc<Joined>,
}

struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic of the thread has been printed; its callers have got `Stopped`.
            let _ = thread.join();
        }
    }
}

/// A request that is queued; awaiting it gives its outcome. Dropping it takes nothing back.
pub struct Pending<T>(oneshot::Receiver<Result<T, JournalError>>);

impl<T> Pending<T> {
    pub async fn done(self) -> Result<T, JournalError> {
        self.0.await.unwrap_or(Err(JournalError::Stopped))
    }

    /// For callers outside of any runtime.
    pub fn wait(self) -> Result<T, JournalError> {
        self.0.blocking_recv().unwrap_or(Err(JournalError::Stopped))
    }
}

type Done<T> = oneshot::Sender<Result<T, JournalError>>;

enum Request {
    Append { records: Vec<OwnedRecord>, done: Done<Seq> },
    Truncate { next: Seq, done: Done<()> },
    Release { below: Seq, done: Done<Seq> },
    Restart { next: Seq, done: Done<()> },
}

impl JournalQueue {
    pub fn start(journal: Journal) -> std::io::Result<Self> {
        let (requests, queue) = mpsc::channel(JOURNAL_QUEUE_MAX);
        let reader = journal.reader();
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || Worker { journal, queue, held: None }.run())?;
        Ok(Self { requests, reader, _thread: Arc::new(Joined(Some(thread))) })
    }

    pub fn reader(&self) -> &JournalReader {
        &self.reader
    }

    /// Queues the records; `done` gives the number of the first one when they are durable.
    pub async fn append(&self, records: Vec<OwnedRecord>) -> Result<Pending<Seq>, JournalError> {
        self.queue(|done| Request::Append { records, done }).await
    }

    pub async fn truncate(&self, next: Seq) -> Result<Pending<()>, JournalError> {
        self.queue(|done| Request::Truncate { next, done }).await
    }

    pub async fn release(&self, below: Seq) -> Result<Pending<Seq>, JournalError> {
        self.queue(|done| Request::Release { below, done }).await
    }

    pub async fn restart(&self, next: Seq) -> Result<Pending<()>, JournalError> {
        self.queue(|done| Request::Restart { next, done }).await
    }

    async fn queue<T>(
        &self,
        request: impl FnOnce(Done<T>) -> Request,
    ) -> Result<Pending<T>, JournalError> {
        let (done, pending) = oneshot::channel();
        self.requests.send(request(done)).await.map_err(|_| JournalError::Stopped)?;
        Ok(Pending(pending))
    }
}

struct Worker {
    journal: Journal,
    queue: mpsc::Receiver<Request>,
    /// Taken from the queue, but not fit for the group that was being gathered.
    held: Option<Request>,
}

/// Appends that go into one group.
#[derive(Default)]
struct Group {
    appends: Vec<(Vec<OwnedRecord>, Done<Seq>)>,
    records: usize,
    bytes: usize,
}

impl Group {
    fn takes(&self, records: &[OwnedRecord]) -> bool {
        self.appends.is_empty()
            || (self.records + records.len() <= JOURNAL_GROUP_RECORDS_MAX
                && self.bytes + span(records) <= JOURNAL_GROUP_BYTES_MAX)
    }

    fn push(&mut self, records: Vec<OwnedRecord>, done: Done<Seq>) {
        self.records += records.len();
        self.bytes += span(&records);
        self.appends.push((records, done));
    }
}

fn span(records: &[OwnedRecord]) -> usize {
    records.iter().map(|record| RECORD_HEADER_BYTES + record.bytes.len()).sum()
}

impl Worker {
    fn run(mut self) {
        while let Some(request) = self.held.take().or_else(|| self.queue.blocking_recv()) {
            // A caller that went away does not want its outcome.
            match request {
                Request::Append { records, done } => self.append(records, done),
                Request::Truncate { next, done } => drop(done.send(self.journal.truncate(next))),
                Request::Release { below, done } => drop(done.send(self.journal.release(below))),
                Request::Restart { next, done } => drop(done.send(self.journal.restart(next))),
            }
        }
    }

    fn append(&mut self, records: Vec<OwnedRecord>, done: Done<Seq>) {
        let mut group = Group::default();
        group.push(records, done);
        while let Ok(request) = self.queue.try_recv() {
            match request {
                Request::Append { records, done } if group.takes(&records) => {
                    group.push(records, done);
                }
                other => {
                    self.held = Some(other);
                    break;
                }
            }
        }
        self.write(group);
    }

    fn write(&mut self, group: Group) {
        match self.journal.append(&borrow(group.appends.iter().flat_map(|(r, _)| r))) {
            Ok(mut seq) => {
                for (records, done) in group.appends {
                    let len = records.len() as u64;
                    let _ = done.send(Ok(seq));
                    seq += len;
                }
            }
            // What does not fit together may fit alone: the small ones shall not fail with the large.
            Err(JournalError::Full(_) | JournalError::TooLarge { .. })
                if group.appends.len() > 1 =>
            {
                for (records, done) in group.appends {
                    let _ = done.send(self.journal.append(&borrow(records.iter())));
                }
            }
            Err(error) => {
                for (_, done) in group.appends {
                    let _ = done.send(Err(error.clone()));
                }
            }
        }
    }
}

fn borrow<'a>(records: impl Iterator<Item = &'a OwnedRecord>) -> Vec<Record<'a>> {
    records.map(|record| Record { kind: record.kind, bytes: &record.bytes }).collect()
}
