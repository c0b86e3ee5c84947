//! What stat, chmod, chown, truncate, utimes, readlink, the xattr calls and statfs ask for.

use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use unum_proto::host as wire;
use unum_proto::host::{change, look};
use unum_sys::fuse::{Attr, Fh, Ino, SetAttr, StatFs, Statx, Timestamp};

use super::calls::{About, Call};
use super::messages::{accepted, attr, check, fits, new_time, root_number, time};
use super::{HOME_TTL, OWN_TTL};
use crate::host::memory::{Known, Ticket};
use crate::host::table::{ROOT, Target};

/// Every field of statx(2) that is filled here: STATX_BASIC_STATS and STATX_BTIME.
const STATX_FILLED: u32 = 0x0fff;

/// Extended attributes that everybody may see who may see the file: access control lists, labels, capabilities.
const SHOWN_TO_ALL: [&[u8]; 2] = [b"system.", b"security."];

impl Call<'_> {
    pub(super) async fn attributes(
        &self,
        fh: Option<Fh>,
    ) -> Result<(Attr, Duration, Timestamp), Errno> {
        match self.about(self.header.ino)? {
            About::Root => {
                let attr = self.trees.made_up(ROOT, libc::S_IFDIR | 0o555, 0);
                Ok((attr, OWN_TTL, self.trees.mounted))
            }
            About::OwnLink => Ok((self.own_link(), OWN_TTL, self.trees.mounted)),
            About::Home(target) => {
                let (attributes, ttl) = self.home_attributes(&target, fh).await?;
                let mut attr = attr(target.node, &attributes);
                if target.handle.is_empty() {
                    attr.ino = Ino(root_number(target.node));
                }
                Ok((attr, ttl, time(attributes.btime)))
            }
        }
    }

    pub(super) async fn home_attributes(
        &self,
        target: &Target,
        fh: Option<Fh>,
    ) -> Result<(wire::Attributes, Duration), Errno> {
        let known = |known: &Known, ttl| Some((known.attributes?, ttl));
        if let Some(kept) = self.recollect(target, known) {
            return Ok(kept);
        }
        let ticket = self.ticket(target);
        let mut answer = self.ask(target, look::Call::Attributes(wire::Nothing {}), ticket).await?;
        // The file may be open and have no name any more.
        if answer.errno as i32 == libc::ESTALE
            && let Some(open) = fh.and_then(|fh| self.open_file(fh).ok())
        {
            let call = look::Call::OpenAttributes(wire::Warrant { warrant: open.warrant });
            answer = self.ask(target, call, Ticket::NONE).await?;
        }
        let granted = answer.granted;
        let attributes = accepted(answer)?.attributes.ok_or(Errno::PROTO)?;
        if granted {
            let memory = &self.trees.memory;
            memory.keep(ticket, target, |known| known.attributes = Some(attributes));
        }
        Ok(self.recollect(target, known).unwrap_or((attributes, HOME_TTL)))
    }

    pub(super) async fn getattr(&self, fh: Option<Fh>) -> Result<(Attr, Duration), Errno> {
        self.attributes(fh).await.map(|(attr, ttl, _)| (attr, ttl))
    }

    pub(super) async fn statx(&self, fh: Option<Fh>) -> Result<Statx, Errno> {
        let (attr, attr_ttl, btime) = self.attributes(fh).await?;
        Ok(Statx { mask: STATX_FILLED, attr, btime, attr_ttl, ..Statx::default() })
    }

    pub(super) async fn setattr(&self, set: SetAttr) -> Result<Attr, Errno> {
        let target = self.own_target()?;
        let open = set.fh.filter(|_| set.size.is_some()).and_then(|fh| self.open_file(fh).ok());
        let call = wire::SetAttributes {
            fence: set.fh.map_or(0, |fh| self.trees.table().fence(fh.0)),
            warrant: open.map(|open| open.warrant).unwrap_or_default(),
            mode: set.mode.map(|mode| mode & 0o7777),
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime.map(new_time),
            mtime: set.mtime.map(new_time),
        };
        let answer = self.change(&target, change::Call::SetAttributes(call)).await?;
        Ok(attr(target.node, &answer.attributes.ok_or(Errno::PROTO)?))
    }

    pub(super) async fn readlink(&self) -> Result<Bytes, Errno> {
        match self.about(self.header.ino)? {
            About::Root => Err(Errno::INVAL),
            About::OwnLink => Ok(Bytes::from_static(b"/")),
            About::Home(target) => {
                if let Some(kept) = self.recollect(&target, |known, _| known.link.clone()) {
                    return Ok(kept);
                }
                let ticket = self.ticket(&target);
                let answer =
                    self.ask(&target, look::Call::ReadLink(wire::Nothing {}), ticket).await?;
                let (granted, answer) = (answer.granted, accepted(answer)?);
                if granted {
                    let content = Some(answer.content.clone());
                    self.trees.memory.keep(ticket, &target, |known| known.link = content);
                }
                Ok(answer.content)
            }
        }
    }

    pub(super) async fn statfs(&self) -> Result<StatFs, Errno> {
        let About::Home(target) = self.about(self.header.ino)? else {
            return Ok(StatFs { block_size: 4096, name_len_max: 255, ..StatFs::default() });
        };
        let answer = self.look(&target, look::Call::Space(wire::Nothing {})).await?;
        let space = answer.space.ok_or(Errno::PROTO)?;
        Ok(StatFs {
            blocks: space.blocks,
            blocks_free: space.blocks_free,
            blocks_available: space.blocks_available,
            files: space.files,
            files_free: space.files_free,
            block_size: space.block_size,
            fragment_size: space.fragment_size,
            name_len_max: space.name_length_max,
        })
    }

    pub(super) async fn setxattr(
        &self,
        name: Vec<u8>,
        value: Bytes,
        flags: u32,
    ) -> Result<(), Errno> {
        let target = self.own_target()?;
        let call = wire::SetXattr { name: name.into(), value, flags };
        self.change(&target, change::Call::SetXattr(call)).await.map(drop)
    }

    pub(super) async fn getxattr(&self, name: Vec<u8>, size: u32) -> Result<Bytes, Errno> {
        let About::Home(target) = self.about(self.header.ino)? else { return Err(Errno::NODATA) };
        let name = Bytes::from(name);
        let kept = |known: &Known, _| known.xattrs.get(&name).cloned();
        if let Some(kept) = self.recollect(&target, kept) {
            return fits(kept?, size);
        }
        let ticket = self.ticket(&target);
        let call = look::Call::Xattr(wire::Named { name: name.clone() });
        let answer = self.ask(&target, call, ticket).await?;
        let found = check(answer.errno).map(|()| answer.content);
        // Whether there is one does not depend on who asks; whether it is told may.
        let lasting = matches!(found, Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP));
        let to_all = SHOWN_TO_ALL.iter().any(|prefix| name.starts_with(prefix));
        if answer.granted && lasting && to_all {
            let found = found.clone();
            self.trees.memory.keep(ticket, &target, |known| known.keep_xattr(name, found));
        }
        fits(found?, size)
    }

    pub(super) async fn listxattr(&self, size: u32) -> Result<Bytes, Errno> {
        let About::Home(target) = self.about(self.header.ino)? else { return Ok(Bytes::new()) };
        fits(self.look(&target, look::Call::XattrNames(wire::Nothing {})).await?.content, size)
    }
}
