//! The one writer of the log's journal: whatever waits when a sync ends goes into the next group.
//!
//! The same code runs on a thread in unumd and as a task in the simulator. Invariants: records are
//! durable before their completion is told; they take effect in the order in which they were
//! queued; for want of room it waits and completes nothing; after any other failure of the disk
//! everything fails, for nothing is known any more.

use std::io;
use std::sync::Arc;

use openraft::AsyncRuntime;
use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::limits::{
    DISK_RETRY, WRITER_GROUP_BYTES_MAX, WRITER_GROUP_RECORDS_MAX, WRITER_QUEUE_MAX,
};
use super::offload::Offload;
use super::room::Room;
use super::types::Types;
use crate::store::journal::{Journal, JournalError, OwnedRecord, Record, Seq};

pub enum Work<RT: AsyncRuntime> {
    Write {
        records: Vec<OwnedRecord>,
        done: Done<RT>,
    },
    /// Records below this one are not needed any more.
    Release {
        below: Seq,
    },
}

/// Whom to tell that records are durable.
pub enum Done<RT: AsyncRuntime> {
    Nobody,
    Flushed(IOFlushed<Types<RT>>),
    Waiter(oneshot::Sender<io::Result<()>>),
}

impl<RT: AsyncRuntime> Done<RT> {
    fn tell(self, outcome: io::Result<()>) {
        match self {
            Done::Nobody => {}
            Done::Flushed(flushed) => flushed.io_completed(outcome),
            // A waiter that is gone does not want to know.
            Done::Waiter(waiter) => drop(waiter.send(outcome)),
        }
    }
}

pub struct Writer<RT: AsyncRuntime> {
    journal: Journal,
    queue: mpsc::Receiver<Work<RT>>,
    room: Arc<Room>,
    group: Vec<Work<RT>>,
    failed: Option<JournalError>,
    /// What can go once a further group is written: records are written anew before the old ones
    /// are released, and the last group may be lost to rot.
    released: Option<Seq>,
    _alive: oneshot::Sender<()>,
}

/// What a look at the gathered group came to.
enum Step {
    Done,
    /// No room: try again later.
    Full,
}

impl<RT: AsyncRuntime> Writer<RT> {
    /// The writer ends when the last sender is gone, and then drops the other end of the receiver.
    pub fn start(
        journal: Journal,
        room: Arc<Room>,
        offload: Offload,
    ) -> (mpsc::Sender<Work<RT>>, oneshot::Receiver<()>) {
        let (sender, queue) = mpsc::channel(WRITER_QUEUE_MAX);
        let (alive, ended) = oneshot::channel();
        let writer = Self {
            journal,
            queue,
            room,
            group: Vec::new(),
            failed: None,
            released: None,
            _alive: alive,
        };
        match offload {
            Offload::Threads => drop(std::thread::spawn(move || writer.run_on_thread())),
            Offload::Inline => drop(RT::spawn(writer.run_as_task())),
        }
        (sender, ended)
    }

    fn run_on_thread(mut self) {
        while let Some(work) = self.queue.blocking_recv() {
            self.gather(work);
            while let Step::Full = self.step() {
                if self.queue.is_closed() {
                    return;
                }
                std::thread::sleep(DISK_RETRY);
            }
        }
    }

    async fn run_as_task(mut self) {
        while let Some(work) = self.queue.recv().await {
            self.gather(work);
            while let Step::Full = self.step() {
                if self.queue.is_closed() {
                    return;
                }
                RT::sleep(DISK_RETRY).await;
            }
        }
    }

    fn gather(&mut self, first: Work<RT>) {
        let (mut records, mut bytes) = weight(&first);
        self.group.push(first);
        while records < WRITER_GROUP_RECORDS_MAX && bytes < WRITER_GROUP_BYTES_MAX {
            let Ok(work) = self.queue.try_recv() else { break };
            let more = weight(&work);
            records += more.0;
            bytes += more.1;
            self.group.push(work);
        }
    }

    fn step(&mut self) -> Step {
        let outcome = match &self.failed {
            Some(error) => Err(error.clone()),
            None => self.write(),
        };
        match outcome {
            Ok(()) => self.tell_all(|| Ok(())),
            Err(JournalError::Full(_)) => {
                self.room.exhausted();
                return Step::Full;
            }
            Err(error) => {
                tracing::error!(%error, "the registry's log cannot be written");
                self.failed = Some(error.clone());
                self.tell_all(|| Err(io::Error::other(error.clone())));
            }
        }
        Step::Done
    }

    fn write(&mut self) -> Result<(), JournalError> {
        let records: Vec<Record<'_>> = self
            .group
            .iter()
            .flat_map(|work| match work {
                Work::Write { records, .. } => records.as_slice(),
                Work::Release { .. } => &[],
            })
            .map(|record| Record { kind: record.kind, bytes: &record.bytes })
            .collect();
        let below = self.group.iter().filter_map(|work| match work {
            Work::Write { .. } => None,
            Work::Release { below } => Some(*below),
        });
        let below = below.max();
        if records.is_empty() {
            self.released = self.released.max(below);
            return Ok(());
        }
        self.journal.append(&records)?;
        let due = std::mem::replace(&mut self.released, below);
        match due.map(|below| self.journal.release(below)) {
            // The records are written: only what is to be retried may fail for want of room.
            None | Some(Ok(_) | Err(JournalError::Full(_))) => Ok(()),
            Some(Err(error)) => Err(error),
        }
    }

    fn tell_all(&mut self, outcome: impl Fn() -> io::Result<()>) {
        for work in self.group.drain(..) {
            match work {
                Work::Write { done, .. } => done.tell(outcome()),
                Work::Release { .. } => {}
            }
        }
    }
}

fn weight<RT: AsyncRuntime>(work: &Work<RT>) -> (usize, usize) {
    match work {
        Work::Write { records, .. } => {
            (records.len(), records.iter().map(|record| record.bytes.len()).sum())
        }
        Work::Release { .. } => (0, 0),
    }
}
