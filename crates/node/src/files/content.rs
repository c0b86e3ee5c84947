//! The bytes of files: read from chunks, written as new chunks, and what lseek and fallocate say of
//! them.

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use rustix::io::Errno;
use tokio::time::Instant;
use unum_core::tree::{Hash, Seek, Tree, TreeError};
use unum_proto::file::CHUNK_SIZE_MAX;
use unum_proto::ids::{ChunkId, Ino, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{
    CopyRange, Extent, Fallocate, FallocateMode, NewChunk, Write as WriteCommand,
};
use unum_sys::fuse::{CopyFileRange, Fh, Write};

use super::errno::FileError;
use super::handles::HandleId;
use super::replicas::{ContentError, Draft, Stored};
use super::{Call, Files};

/// How often a read is planned anew because a chunk was gone: the file was changed meanwhile.
const READ_PLANS_MAX: usize = 4;

/// Extents in one largest write's length of file beyond which they are merged.
pub(super) const RAGGED_EXTENTS_MIN: usize = 32;

/// Inodes that may wait for merging, at most; more are found again by their next write.
const RAGGED_INODES_MAX: usize = 1024;

/// A copy that has to be a commit, or needs one for a lease, is made by its bytes if these are fewer: that is
/// quicker. A `cp -r` of what another node has made would wait for two commits with every file.
const COPY_HEARD_MIN: u64 = 1 << 20;

/// Bytes of one copy by reference. What an older kernel is told of it fits into 32 bits.
const COPY_LENGTH_MAX: u64 = 1 << 31;

/// Where the bytes of a stretch of a file come from, in order and without gaps.
pub(super) struct Plan {
    pieces: Vec<PlanPiece>,
    pub version: u64,
}

enum PlanPiece {
    Zeros(u64),
    Chunk { id: ChunkId, hash: Hash, offset: u32, length: u32, replicas: Vec<NodeId> },
}

impl Plan {
    /// Up to the end of the file.
    pub fn of(tree: &Tree, ino: Ino, offset: u64, length: u64) -> Result<Self, TreeError> {
        let inode = tree.inode(ino)?;
        let end = inode.size().min(offset.saturating_add(length));
        let mut plan = Self { pieces: Vec::new(), version: inode.version };
        let mut at = offset;
        for extent in tree.extents(ino, offset, length)? {
            plan.zeros(extent.offset - at);
            at = extent.end();
            match extent.source {
                None => plan.zeros(extent.length),
                Some(source) => {
                    let chunk = tree.chunk(source.chunk);
                    let chunk = chunk.as_deref();
                    plan.pieces.push(PlanPiece::Chunk {
                        id: source.chunk,
                        hash: chunk.map_or_else(Hash::default, |chunk| chunk.hash),
                        offset: source.offset,
                        length: extent.length as u32,
                        replicas: chunk.map_or_else(Vec::new, |chunk| chunk.replicas.to_vec()),
                    });
                }
            }
        }
        plan.zeros(end.saturating_sub(at));
        Ok(plan)
    }

    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    pub fn has_holes(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, PlanPiece::Zeros(_)))
    }

    fn zeros(&mut self, length: u64) {
        if length > 0 {
            self.pieces.push(PlanPiece::Zeros(length));
        }
    }

    pub async fn fetch(
        self,
        files: &Files,
        deadline: tokio::time::Instant,
    ) -> Result<Bytes, ContentError> {
        let fetched = try_join_all(self.pieces.into_iter().map(|piece| async move {
            match piece {
                PlanPiece::Zeros(length) => Ok(Bytes::from(vec![0; length as usize])),
                PlanPiece::Chunk { id, hash, offset, length, replicas } => {
                    if let Some(kept) = files.log.chunk(id) {
                        return kept.read(offset, length).map_err(|error| {
                            ContentError::Unreadable { chunk: id, replicas, why: error.to_string() }
                        });
                    }
                    files.replicas().read(id, &hash, &replicas, offset, length, deadline).await
                }
            }
        }))
        .await?;
        Ok(joined(fetched))
    }
}

fn joined(mut parts: Vec<Bytes>) -> Bytes {
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => {
            let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
            parts.iter().for_each(|part| whole.extend_from_slice(part));
            whole.freeze()
        }
    }
}

impl Call<'_> {
    pub(super) async fn read(&self, offset: u64, size: u32) -> Result<Bytes, FileError> {
        let mut plans = 0;
        loop {
            let plan =
                self.see_own(|tree, _| Plan::of(tree, self.ino, offset, size.into())).await??;
            plans += 1;
            match plan.fetch(self.files, self.deadline).await {
                Err(ContentError::Unreached { .. }) if Instant::now() < self.deadline => {}
                Err(error) if plans >= READ_PLANS_MAX => return Err(error.into()),
                Err(error) => tracing::debug!(%error, "a read is planned anew"),
                Ok(bytes) => return Ok(bytes),
            }
        }
    }

    pub(super) async fn write(&self, write: Write) -> Result<u32, FileError> {
        let length = write.content.len();
        if length == 0 {
            return Ok(0);
        }
        self.keeps_locks(self.ino)?;
        // Pages that the kernel writes back know their place, whatever the file was opened with.
        let append = write.flags & libc::O_APPEND as u32 != 0 && !write.cached;
        let start = if append { 0 } else { write.offset };
        let drafts = self.drafts(write.content);
        let (extents, chunks) = self.laid_out(start, &drafts);
        let command = WriteCommand {
            ino: self.ino.0,
            extents,
            chunks,
            append,
            kill_privileges: write.kill_suidgid,
            if_version: None,
            relayout: false,
        };
        let outcome = match self.change_unheard(&Command::Write(command.clone()), &drafts).await? {
            Some(outcome) => outcome,
            None => {
                // Pages that the kernel writes back are locked, and who wants them elsewhere may wait for
                // them: their program asks for more by fsync or msync.
                let shown = (!write.cached).then_some([self.ino; 2]);
                Box::pin(self.write_heard(command, drafts, shown)).await?
            }
        };
        let Outcome::Written(written) = outcome else {
            return Err(FileError::Strange);
        };
        // What ends at the end of the file was perhaps put there by an append, wherever that was.
        let start = match written.attributes.filter(|_| append) {
            Some(attributes) => attributes.size.saturating_sub(length as u64),
            None => start,
        };
        self.files.note_ragged(self.ino, start);
        self.keeps_locks(self.ino)?;
        if write.flags & libc::O_DSYNC as u32 != 0 {
            self.sync().await?;
        }
        Ok(length as u32)
    }

    /// What is written is durable on enough replicas before the registry learns of it.
    async fn write_heard(
        &self,
        mut command: WriteCommand,
        drafts: Vec<Draft>,
        shown: Option<[Ino; 2]>,
    ) -> Result<Outcome, FileError> {
        let wanted = self.look(|tree| self.files.replicas().wanted(tree, self.ino));
        let drafts = drafts.into_iter().map(|draft| (draft, wanted)).collect();
        let stored = self.files.replicas().write_all(drafts, self.deadline).await?;
        for (chunk, stored) in command.chunks.iter_mut().zip(&stored) {
            chunk.replicas = stored.replicas.iter().map(|node| node.0).collect();
        }
        self.change_heard(Command::Write(command), shown).await
    }

    fn drafts(&self, content: Bytes) -> Vec<Draft> {
        let pieces = (0..content.len()).step_by(CHUNK_SIZE_MAX);
        let pieces = pieces.map(|at| content.slice(at..content.len().min(at + CHUNK_SIZE_MAX)));
        let draft = |data: Bytes| Draft {
            id: self.files.replicas().name(),
            hash: *blake3::hash(&data).as_bytes(),
            data,
        };
        pieces.map(draft).collect()
    }

    /// Drafts one behind the other, as a write command names them while they are only here.
    fn laid_out(&self, start: u64, drafts: &[Draft]) -> (Vec<Extent>, Vec<NewChunk>) {
        let mut at = start;
        let here = |draft: &Draft| {
            let length = draft.data.len() as u32;
            let replicas = vec![self.files.parts.node];
            let stored = Stored { id: draft.id, length, hash: draft.hash, replicas };
            let placed = placed(at, &stored);
            at += u64::from(length);
            placed
        };
        drafts.iter().map(here).unzip()
    }

    pub(super) async fn lseek(&self, offset: u64, whence: u32) -> Result<u64, FileError> {
        let what = match whence as i32 {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(self.see_own(|tree, _| tree.seek(self.ino, offset, what)).await??)
    }

    pub(super) async fn fallocate(
        &self,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<(), FileError> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE as u32 != 0;
        let kind = match (mode & !(libc::FALLOC_FL_KEEP_SIZE as u32)) as i32 {
            0 => FallocateMode::Allocate,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => FallocateMode::PunchHole,
            libc::FALLOC_FL_ZERO_RANGE => FallocateMode::ZeroRange,
            _ => return Err(Errno::OPNOTSUPP.into()),
        };
        let command = Fallocate {
            ino: self.ino.0,
            mode: kind as i32,
            offset,
            length,
            keep_size,
            kill_privileges: false,
        };
        self.keeps_locks(self.ino)?;
        self.change_seen(Command::Fallocate(command), [self.ino; 2]).await?;
        self.keeps_locks(self.ino)
    }

    /// copy_file_range: no byte is read or written, the copy takes its bytes from the same chunks. The kernel has
    /// written back what it had of the source and drops what it has of the target. Tells how many
    /// bytes were copied: fewer than asked for where the source has very many extents.
    pub(super) async fn copy_range(&self, copy: CopyFileRange) -> Result<u64, FileError> {
        if copy.flags != 0 {
            return Err(Errno::INVAL.into());
        }
        let to = Ino(copy.ino_out.0);
        self.keeps_locks(to)?;
        let command = CopyRange {
            from: self.ino.0,
            from_offset: copy.offset_in,
            to: to.0,
            to_offset: copy.offset_out,
            length: copy.length.min(COPY_LENGTH_MAX),
            // The kernel leaves it to the file system, and does not say whether the caller has CAP_FSETID.
            kill_privileges: self.uid != 0,
        };
        let command = Command::CopyRange(command);
        let node = self.files.parts.node;
        if copy.length < COPY_HEARD_MIN
            && !self.look(|tree| tree.may_change_unheard(node, &command))
        {
            // The kernel then copies by itself.
            return Err(Errno::OPNOTSUPP.into());
        }
        let outcome = self.change_seen(command, [to; 2]).await?;
        let Outcome::Copied(copied) = outcome else { return Err(FileError::Strange) };
        self.keeps_locks(to)?;
        let flags = self.files.handles().flags(HandleId(copy.fh_out.0));
        if flags.is_some_and(|flags| flags & libc::O_DSYNC as u32 != 0) {
            self.sync().await?;
        }
        Ok(copied.bytes)
    }

    /// Everything that was changed here before is durable when this returns, and what the kernel wrote
    /// back by itself is seen by all.
    pub(super) async fn fsync(&self, fh: Fh) -> Result<(), FileError> {
        self.sync().await?;
        self.files.shown_to_all(self.ino, self.deadline).await?;
        self.failure(fh)?;
        self.keeps_locks(self.ino)
    }

    pub(super) async fn sync(&self) -> Result<(), FileError> {
        self.files.log.drained(self.deadline).await
    }

    /// Tells an open file once that changes of it were lost.
    fn failure(&self, fh: Fh) -> Result<(), FileError> {
        self.files.log.bury();
        match self.files.handles().take_failure(HandleId(fh.0)) {
            true => Err(FileError::Errno(Errno::IO)),
            false => Ok(()),
        }
    }
}

/// A stored chunk as a write command names it.
pub(super) fn placed(offset: u64, stored: &Stored) -> (Extent, NewChunk) {
    let id = Some(stored.id.into());
    let extent = Extent { offset, length: stored.length.into(), chunk: id, chunk_offset: 0 };
    let chunk = NewChunk {
        id,
        length: stored.length,
        hash: Bytes::copy_from_slice(&stored.hash),
        replicas: stored.replicas.iter().map(|node| node.0).collect(),
    };
    (extent, chunk)
}

impl Files {
    /// Remembers an inode whose extents around `offset` have become many and short.
    pub(super) fn note_ragged(&self, ino: Ino, offset: u64) {
        let window = CHUNK_SIZE_MAX as u64;
        let start = offset - offset % window;
        let many = self.look(|tree| {
            let extents = tree.extents(ino, start, window)?;
            Ok::<_, TreeError>(extents.take(RAGGED_EXTENTS_MIN).count() >= RAGGED_EXTENTS_MIN)
        });
        if many == Ok(true) {
            let mut ragged = self.ragged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if ragged.len() < RAGGED_INODES_MAX {
                ragged.insert((ino, start));
            }
        }
    }
}
