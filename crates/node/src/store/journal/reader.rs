//! Reading records while the writer appends. A reader sees only what is durable.

use std::sync::Arc;

use bytes::BytesMut;

use super::format::{Entry, Seq, take_record};
use super::{Index, JournalError, Segments};
use crate::store::disk::DiskFile;

/// Reads records of a journal; cheap to clone. Its calls block on the disk.
#[derive(Clone)]
pub struct JournalReader {
    index: Arc<Index>,
}

/// A run of neighbouring records in one segment.
struct Run {
    file: Arc<dyn DiskFile>,
    salt: u64,
    start: u32,
    end: u32,
    from: Seq,
    to: Seq,
}

impl JournalReader {
    pub(super) fn new(index: Arc<Index>) -> Self {
        Self { index }
    }

    /// The oldest record that is still there, if there is one.
    pub fn first(&self) -> Seq {
        self.index.read().first()
    }

    /// The number that the next record will get.
    pub fn next(&self) -> Seq {
        self.index.read().next()
    }

    pub fn read(&self, seq: Seq) -> Result<Entry, JournalError> {
        let mut entries = self.read_range(seq, seq.saturating_add(1), 0)?;
        entries.pop().ok_or_else(|| self.index.read().out_of_range(seq))
    }

    /// The records from `from` to before `to`: at least one, and no more than fit into `bytes_max`.
    /// Ends early where the journal ends; `from` itself must be there unless the range is empty.
    pub fn read_range(
        &self,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        let mut entries = Vec::new();
        let mut left = bytes_max;
        let mut next = from;
        while next < to && (entries.is_empty() || left > 0) {
            let at_least_one = entries.is_empty();
            let found = self.index.read().run(next, to, left, at_least_one)?;
            let Some(run) = found else { break };
            left = left.saturating_sub((run.end - run.start) as usize);
            next = run.to;
            self.read_run(&run, &mut entries)?;
        }
        Ok(entries)
    }

    fn read_run(&self, run: &Run, entries: &mut Vec<Entry>) -> Result<(), JournalError> {
        let mut buf = BytesMut::zeroed((run.end - run.start) as usize);
        let read = run.file.read_at(&mut buf, u64::from(run.start))?;
        buf.truncate(read);
        let bytes = buf.freeze();
        let mut at = 0;
        for seq in run.from..run.to {
            let (entry, span) = take_record(&bytes.slice(at..), run.salt, seq)
                .ok_or_else(|| self.judge(run, seq, at))?;
            entries.push(entry);
            at += span;
        }
        Ok(())
    }

    /// A record that does not read back was truncated meanwhile, or it is rotten.
    fn judge(&self, run: &Run, seq: Seq, at: usize) -> JournalError {
        let segments = self.index.read();
        if !segments.holds(run, seq) {
            return segments.out_of_range(seq);
        }
        JournalError::Rotten {
            file: run.file.path().to_owned(),
            offset: u64::from(run.start) + at as u64,
            what: "a record that was read back does not match its checksum",
        }
    }
}

impl Segments {
    /// The records from `from` on that lie in one segment and fit; `None` at the journal's end.
    fn run(
        &self,
        from: Seq,
        to: Seq,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<Option<Run>, JournalError> {
        if from >= self.next() && !at_least_one {
            return Ok(None);
        }
        if from < self.first() || from >= self.next() {
            return Err(self.out_of_range(from));
        }
        let place = self.0.partition_point(|segment| segment.header.first <= from);
        // An empty segment may share its first number with the one behind it.
        let Some(segment) = self.0[..place].iter().rev().find(|s| s.next() > from) else {
            return Err(self.out_of_range(from));
        };
        let skip = (from - segment.header.first) as usize;
        let Some(start) = segment.offsets.get(skip).copied() else {
            return Err(self.out_of_range(from));
        };
        let last = segment.next().min(to);
        let ends = segment.offsets[skip + 1..].iter().copied().chain([segment.end]);
        let fitting: Vec<u32> = ends
            .take((last - from) as usize)
            .enumerate()
            .take_while(|(i, end)| {
                (*end - start) as usize <= bytes_max || (*i == 0 && at_least_one)
            })
            .map(|(_, end)| end)
            .collect();
        let Some(end) = fitting.last().copied() else { return Ok(None) };
        let to = from + fitting.len() as u64;
        Ok(Some(Run {
            file: segment.file.clone(),
            salt: segment.header.salt,
            start,
            end,
            from,
            to,
        }))
    }

    fn holds(&self, run: &Run, seq: Seq) -> bool {
        self.0.iter().any(|segment| {
            Arc::ptr_eq(&segment.file, &run.file)
                && seq >= segment.header.first
                && seq < segment.next()
        })
    }
}
