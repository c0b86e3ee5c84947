//! Names: looking them up, making, moving and removing them, listing; and telling the kernel of what they name.

use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use unum_proto::host as wire;
use unum_proto::host::{change, look};
use unum_proto::ids::NodeId;
use unum_sys::fuse::{
    Added, Attr, Delivery, DirectoryBuffer, Entry, Fh, Ino, OpenFlags, Opened, Responder,
};

use super::calls::{About, Call};
use super::contents::open_flags;
use super::messages::{accepted, attr, check_handle, file_number, journal_failed, root_number};
use super::{HOME_TTL, OWN_TTL};
use crate::host::table::{OWN_LINK, OpenFile, ROOT, Target};

/// A name that was found or made, on its way to the kernel. Unless the kernel takes it, it is forgotten.
pub(super) struct Shown {
    pub entry: Entry,
    pub opened: Option<Opened>,
}

impl Call<'_> {
    pub(super) async fn lookup(&self, name: Vec<u8>) -> Result<Shown, Errno> {
        match self.about(self.header.ino)? {
            About::Root => self.lookup_node(&name),
            About::OwnLink => Err(Errno::NOTDIR),
            About::Home(target) => self.lookup_in(target, name.into()).await,
        }
    }

    pub(super) async fn lookup_in(&self, dir: Target, name: Bytes) -> Result<Shown, Errno> {
        let memory = &self.trees.memory;
        match self.recollect(&dir, |known, _| known.name(&name)) {
            Some(None) => return Err(Errno::NOENT),
            Some(Some(handle)) => {
                let child = Target { node: dir.node, handle };
                if let Some(attributes) = self.recollect(&child, |known, _| known.attributes) {
                    let number = self.enter(child)?;
                    return Ok(shown(number, attr(dir.node, &attributes), HOME_TTL));
                }
            }
            None => {}
        }
        let ticket = self.ticket(&dir);
        let call = look::Call::Lookup(wire::Named { name: name.clone() });
        let answer = self.ask(&dir, call, ticket).await?;
        let found = match answer.errno as i32 {
            0 => Some(Some(answer.handle.clone())),
            libc::ENOENT => Some(None),
            _ => None,
        };
        if let (true, Some(found)) = (answer.granted, found) {
            memory.keep(ticket, &dir, |known| known.keep_name(name, found));
        }
        if answer.granted_found {
            let child = Target { node: dir.node, handle: answer.handle.clone() };
            memory.keep(ticket, &child, |known| known.attributes = answer.attributes);
        }
        self.shown(dir.node, accepted(answer)?)
    }

    /// Nobody is asked, so a listing of the nodes waits for none of them.
    pub(super) fn lookup_node(&self, name: &[u8]) -> Result<Shown, Errno> {
        let nodes = self.trees.nodes();
        let found = nodes.iter().find(|(_, known)| known.as_bytes() == name);
        let (node, _) = found.ok_or(Errno::NOENT)?;
        if *node == self.trees.parts.node {
            let attr = self.own_link();
            return Ok(shown(OWN_LINK, attr, OWN_TTL));
        }
        let target = Target { node: *node, handle: Bytes::new() };
        let number = self.enter(target)?;
        Ok(shown(number, self.node_root(*node), HOME_TTL))
    }

    pub(super) fn own_link(&self) -> Attr {
        Attr { nlink: 1, ..self.trees.made_up(OWN_LINK, libc::S_IFLNK | 0o777, 1) }
    }

    pub(super) fn node_root(&self, node: NodeId) -> Attr {
        self.trees.made_up(root_number(node), libc::S_IFDIR | 0o555, 0)
    }

    /// Gives the inode its number.
    pub(super) fn enter(&self, target: Target) -> Result<u64, Errno> {
        let entered = self.trees.table().show(target);
        entered.map_err(|error| journal_failed(&error))?.map_err(|_| Errno::NFILE)
    }

    pub(super) fn shown(&self, node: NodeId, answer: wire::Answer) -> Result<Shown, Errno> {
        let attributes = answer.attributes.ok_or(Errno::PROTO)?;
        check_handle(&answer.handle)?;
        let opened = match answer.warrant.is_empty() {
            true => None,
            false => {
                check_handle(&answer.warrant)?;
                self.trees.memory.warrant_opened(node, &answer.warrant);
                Some(self.enter_open(node, answer.warrant, open_flags(None, false))?)
            }
        };
        let number = self.enter(Target { node, handle: answer.handle })?;
        let entry = shown(number, attr(node, &attributes), HOME_TTL).entry;
        Ok(Shown { entry, opened })
    }

    pub(super) fn enter_open(
        &self,
        node: NodeId,
        warrant: Bytes,
        flags: OpenFlags,
    ) -> Result<Opened, Errno> {
        let entered = self.trees.table().open(OpenFile { node, warrant: warrant.clone() });
        let entered = entered.map_err(|error| journal_failed(&error));
        match entered.and_then(|entered| entered.map_err(|_| Errno::NFILE)) {
            Ok(fh) => Ok(Opened { fh: Fh(fh), flags, backing: None }),
            Err(errno) => {
                self.trees.memory.warrant_closed(node, warrant);
                self.trees.give_back();
                Err(errno)
            }
        }
    }

    /// Answers with a name. What the kernel does not take is forgotten and closed.
    pub(super) fn show(&self, to: Responder, result: Result<Shown, Errno>) {
        let shown = match result {
            Ok(shown) => shown,
            Err(errno) => {
                to.error(errno);
                return;
            }
        };
        let delivery = match &shown.opened {
            Some(opened) => to.created(&shown.entry, opened),
            None => to.entry(&shown.entry),
        };
        if delivery != Delivery::Accepted {
            self.forget_one(shown.entry.ino, 1);
            if let Some(opened) = shown.opened {
                self.release(opened.fh);
            }
        }
    }

    pub(super) fn opened(&self, to: Responder, result: Result<Opened, Errno>) {
        match result {
            Ok(opened) => {
                if to.opened(&opened) != Delivery::Accepted {
                    self.release(opened.fh);
                }
            }
            Err(errno) => drop(to.error(errno)),
        }
    }

    pub(super) fn forget(&self, nodes: Vec<unum_sys::fuse::Forgotten>) {
        for forgotten in nodes {
            self.forget_one(forgotten.ino, forgotten.lookups);
        }
    }

    pub(super) fn forget_one(&self, ino: Ino, lookups: u64) {
        if ino.0 == ROOT || ino.0 == OWN_LINK {
            return;
        }
        if let Err(error) = self.trees.table().forget(ino.0, lookups) {
            journal_failed(&error);
        }
    }

    pub(super) async fn make(&self, call: change::Call) -> Result<Shown, Errno> {
        let target = self.own_target()?;
        let answer = self.change(&target, call).await?;
        self.shown(target.node, answer)
    }

    pub(super) async fn symlink(&self, name: Vec<u8>, target: Vec<u8>) -> Result<Shown, Errno> {
        let link = wire::MakeLink { name: name.into(), target: target.into() };
        self.make(change::Call::MakeLink(link)).await
    }

    pub(super) async fn link(&self, ino: Ino, name: Vec<u8>) -> Result<Shown, Errno> {
        let (dir, target) = (self.own_target()?, self.target(ino)?);
        if dir.node != target.node {
            return Err(Errno::XDEV);
        }
        let link = wire::Link { target: target.handle, name: name.into() };
        self.make(change::Call::Link(link)).await
    }

    pub(super) async fn name_change(
        &self,
        name: Vec<u8>,
        call: impl FnOnce(wire::Named) -> change::Call,
    ) -> Result<(), Errno> {
        let target = self.own_target()?;
        self.change(&target, call(wire::Named { name: name.into() })).await.map(drop)
    }

    pub(super) async fn rename(
        &self,
        name: Vec<u8>,
        new_parent: Ino,
        new_name: Vec<u8>,
        flags: u32,
    ) -> Result<(), Errno> {
        let (from, to) = (self.own_target()?, self.target(new_parent)?);
        if from.node != to.node {
            return Err(Errno::XDEV);
        }
        let call = wire::Rename {
            name: name.into(),
            new_parent: to.handle,
            new_name: new_name.into(),
            flags,
        };
        self.change(&from, change::Call::Rename(call)).await.map(drop)
    }

    pub(super) async fn readdir(
        &self,
        fh: Fh,
        offset: u64,
        size: u32,
    ) -> Result<DirectoryBuffer, Errno> {
        let mut buffer = DirectoryBuffer::new(size);
        if self.header.ino == Ino::ROOT {
            self.list_nodes(offset, &mut buffer);
            return Ok(buffer);
        }
        let file = self.open_file(fh)?;
        let list =
            wire::List { warrant: file.warrant, offset, size: size.min(wire::LISTING_SIZE_MAX) };
        let target = self.own_target()?;
        let answer = self.look(&target, look::Call::List(list)).await?;
        // The directory's; what is mounted on a name has another one, as on a local disk.
        let device = answer.attributes.map_or(0, |directory| directory.device);
        for entry in answer.entries {
            let next = if entry.next == 0 { i64::MAX as u64 } else { entry.next };
            let known = entry.name.len() <= wire::NAME_SIZE_MAX && !entry.name.contains(&b'/');
            if !known {
                return Err(Errno::PROTO);
            }
            let number = Ino(file_number(target.node, device, entry.inode));
            if buffer.add(number, next, entry.kind, &entry.name) == Added::Full {
                break;
            }
        }
        Ok(buffer)
    }

    pub(super) fn list_nodes(&self, offset: u64, buffer: &mut DirectoryBuffer) {
        let (own, dots) = (self.trees.parts.node, [b".".to_vec(), b"..".to_vec()]);
        let dots = dots.into_iter().map(|name| (ROOT, libc::S_IFDIR, name));
        let nodes = self.trees.nodes().into_iter().map(|(node, name)| match node == own {
            true => (OWN_LINK, libc::S_IFLNK, name.into_bytes()),
            false => (root_number(node), libc::S_IFDIR, name.into_bytes()),
        });
        let behind = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (number, kind, name)) in dots.chain(nodes).enumerate().skip(behind) {
            if buffer.add(Ino(number), at as u64 + 1, kind, &name) == Added::Full {
                return;
            }
        }
    }
}

pub(super) fn make(name: Vec<u8>, mode: u32, umask: u32, rdev: u32, flags: u32) -> wire::Make {
    wire::Make { name: name.into(), mode, umask, rdev, flags }
}

pub(super) fn shown(number: u64, attr: Attr, ttl: Duration) -> Shown {
    let entry = Entry { ino: Ino(number), generation: 0, attr, entry_ttl: ttl, attr_ttl: ttl };
    Shown { entry, opened: None }
}
