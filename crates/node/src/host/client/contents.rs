//! Opening and closing files, and their bytes.

use bytes::Bytes;
use rustix::io::Errno;
use unum_proto::host as wire;
use unum_proto::host::{change, look};
use unum_sys::fuse::{Fh, Header, Ino, OpenFlags, Opened};

use super::calls::{About, Call};
use super::messages::{accepted, check, check_handle, groups_of, journal_failed};
use crate::host::memory::{Opener, Ticket};
use crate::host::table::Target;
use crate::host::{Append, Read, Sync, Write};

/// The kernel's mark of an open for execution (`__FMODE_EXEC`).
const OPEN_FOR_EXEC: u32 = 0x20;

impl Call<'_> {
    pub(super) async fn open(&self, flags: u32) -> Result<Opened, Errno> {
        let listing = flags & libc::O_DIRECTORY as u32 != 0;
        match self.about(self.header.ino)? {
            About::Root if listing => Ok(Opened::default()),
            About::Root | About::OwnLink => Err(Errno::ISDIR),
            About::Home(target) => self.open_at(&target, flags).await,
        }
    }

    pub(super) async fn open_at(&self, target: &Target, flags: u32) -> Result<Opened, Errno> {
        let memory = &self.trees.memory;
        let reads = flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
        let listing = flags & libc::O_DIRECTORY as u32 != 0;
        let ticket = if reads { self.ticket(target) } else { Ticket::NONE };
        let opener = self.opener(flags);
        if let Some(warrant) = memory.warrant(target, &opener) {
            let mode = open_flags(memory.opened(ticket, target), listing);
            return self.enter_open(target.node, warrant, mode);
        }
        let call = look::Call::Open(wire::Open { flags });
        let answer = self.ask(target, call, ticket).await?;
        let (granted, warrant) = (answer.granted, accepted(answer)?.warrant);
        check_handle(&warrant)?;
        memory.warrant_opened(target.node, &warrant);
        let ticket = if granted { ticket } else { Ticket::NONE };
        memory.keep_warrant(ticket, target, opener, &warrant);
        let mode = open_flags(memory.opened(ticket, target), listing);
        self.enter_open(target.node, warrant, mode)
    }

    /// Who would get the same answer to the same open.
    pub(super) fn opener(&self, flags: u32) -> Opener {
        let Header { uid, gid, pid, .. } = self.header;
        let groups = if uid == 0 { Vec::new() } else { groups_of(pid) };
        let counts = (libc::O_ACCMODE | libc::O_DIRECTORY) as u32 | OPEN_FOR_EXEC;
        Opener { uid, gid, groups, flags: flags & counts }
    }

    /// Forgets the open file at once, and has its home told.
    pub(super) fn release(&self, fh: Fh) {
        let closed = self.trees.table().close(fh.0);
        let Ok(Some(file)) = closed.map_err(|error| journal_failed(&error)) else { return };
        self.trees.memory.warrant_closed(file.node, file.warrant);
        self.trees.give_back();
    }

    pub(super) async fn read(&self, fh: Fh, offset: u64, size: u32) -> Result<Bytes, Errno> {
        let file = self.open_file(fh)?;
        let fence = self.trees.table().fence(fh.0);
        let (most, mut content) = (wire::CONTENT_SIZE_MAX as u32, Vec::new());
        loop {
            let left = size - content.len() as u32;
            let at = offset.checked_add(content.len() as u64).ok_or(Errno::INVAL)?;
            let request = wire::Read {
                warrant: file.warrant.clone(),
                offset: at,
                size: left.min(most),
                fence,
            };
            let reply = self.trees.ask::<Read>(file.node, request, &self.options_of_none()).await?;
            check(reply.errno)?;
            let came = reply.content.len() as u32;
            if came > left {
                return Err(Errno::PROTO);
            }
            if content.is_empty() && (came == size || came < left.min(most)) {
                return Ok(reply.content);
            }
            content.extend(&reply.content);
            if came < left.min(most) || content.len() as u32 == size {
                return Ok(content.into());
            }
        }
    }

    pub(super) async fn write(&self, write: unum_sys::fuse::Write) -> Result<u32, Errno> {
        let file = self.open_file(write.fh)?;
        if let Ok(target) = self.own_target() {
            self.trees.memory.changed(&target);
        }
        let fence = self.trees.table().fence(write.fh.0);
        let append = write.flags & libc::O_APPEND as u32 != 0 && !write.cached;
        let mut done = 0;
        let mut rest = write.content;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(wire::CONTENT_SIZE_MAX));
            let size = piece.len() as u32;
            let request = wire::Write {
                warrant: file.warrant.clone(),
                offset: write.offset.checked_add(u64::from(done)).ok_or(Errno::FBIG)?,
                content: piece,
                append,
                lane: self.trees.parts.lane.0,
                number: self.header.unique.0,
                fence,
            };
            let options = self.options_of_none();
            let reply = match append {
                true => self.trees.ask::<Append>(file.node, request, &options).await?,
                false => self.trees.ask::<Write>(file.node, request, &options).await?,
            };
            match check(reply.errno) {
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
                Ok(()) => done += reply.written.min(size),
            }
            // A second piece under the same number would get the first one's answer.
            if reply.written < size || append {
                break;
            }
        }
        Ok(done)
    }

    pub(super) async fn fsync(&self, fh: Fh, content_only: bool) -> Result<(), Errno> {
        if self.header.ino == Ino::ROOT {
            return Ok(());
        }
        let file = self.open_file(fh)?;
        let request = wire::Sync { warrant: file.warrant, content_only };
        let reply = self.trees.ask::<Sync>(file.node, request, &self.options_of_none()).await?;
        check(reply.errno)
    }

    pub(super) async fn fallocate(
        &self,
        fh: Fh,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<(), Errno> {
        let (target, file) = (self.own_target()?, self.open_file(fh)?);
        let fence = self.trees.table().fence(fh.0);
        let call = wire::Allocate { warrant: file.warrant, mode, offset, length, fence };
        self.change(&target, change::Call::Allocate(call)).await.map(drop)
    }

    pub(super) async fn lseek(&self, fh: Fh, offset: u64, whence: u32) -> Result<u64, Errno> {
        let (target, file) = (self.own_target()?, self.open_file(fh)?);
        let call = wire::Seek { warrant: file.warrant, offset, whence };
        Ok(self.look(&target, look::Call::Seek(call)).await?.position)
    }
}

/// How the kernel shall treat an open file: `kept` says whether it may keep pages, and those from before.
pub(super) fn open_flags(kept: Option<bool>, listing: bool) -> OpenFlags {
    match kept {
        None if listing => OpenFlags::NONE,
        None => OpenFlags::DIRECT_IO,
        Some(before) => {
            let before = if before { OpenFlags::KEEP_CACHE } else { OpenFlags::NONE };
            if listing { before | OpenFlags::CACHE_DIR } else { before }
        }
    }
}
