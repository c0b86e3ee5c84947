//! What a node keeps on its disk: the directory abstraction, the journal and the chunks.
//!
//! Invariants: nothing is acknowledged before it was synced; whatever was not synced may be gone
//! after a power cut, but is never returned in a damaged form; bytes from a disk never panic.
//!
//! Left out on purpose: what the records mean (their owners know) and which chunks are wanted (the
//! registry knows). The formats are written down in `docs/spec/journal.md`.

pub mod chunks;
pub mod disk;
pub(crate) mod fields;
pub mod journal;
pub mod limits;

pub use chunks::{ChunkError, ChunkOptions, ChunkQueue, ChunkStore, Outline};
pub use disk::{Disk, DiskError, DiskFile, DiskLock, Open, RealDisk, Space};
pub use journal::{
    Journal, JournalError, JournalOptions, JournalQueue, JournalReader, Record, Tail,
};
