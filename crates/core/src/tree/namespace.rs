//! Commands that change names: create, link, unlink, rmdir, rename.
//!
//! Each one checks everything first and changes the tree only when nothing can fail any more.
//! Invariants kept: an inode's nlink is the number of its names (for a directory: 2 plus its
//! subdirectories); `..` is the directory that holds the name; no directory is below itself.

use std::sync::Arc;

use unum_proto::ids::{Ino, NodeId, VolumeId};
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{Create, CreateUnnamed, Link, Rename, Rmdir, Unlink};

use super::Tree;
use super::acl::{self, Acl};
use super::directory::{Directory, Entry, valid_name};
use super::error::TreeError;
use super::extents::ExtentMap;
use super::inode::{Body, Inode, Kind, SETGID, Xattrs};
use crate::limits::{LINKS_MAX, SYMLINK_LENGTH_MAX};
use crate::time::Time;

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

impl Tree {
    pub(super) fn create(&mut self, now: Time, command: &Create) -> Result<Outcome, TreeError> {
        let parent = Ino(command.parent);
        let kind = Kind::from_proto(command.kind)?;
        let name = valid_name(&command.name)?;
        if let Some(existing) = self.directory(parent)?.get(name) {
            return self.open_existing(existing, kind, command.exclusive);
        }
        let body = new_body(kind, parent, command)?;
        valid_owner(command.uid, command.gid)?;
        self.room_for_inode()?;
        self.quota_for_inode(parent)?;
        let (mode, xattrs) = self.born_with(parent, kind, command.mode, command.umask)?;
        let (mode, gid) = self.inherited(parent, kind, mode, command.gid)?;
        let (strict, volume) = self.class_and_volume(parent)?;
        let inode =
            Inode { xattrs, strict, volume, ..Inode::new(now, mode, command.uid, gid, body) };
        let ino = self.number(parent, command)?;
        self.inodes.insert(ino, inode);
        self.volumes.add_inode(volume);
        self.cover_newborn(parent, ino);
        self.add_name(now, parent, name, ino, kind);
        self.inode_reply(ino, true)
    }

    fn open_existing(
        &self,
        entry: Entry,
        kind: Kind,
        exclusive: bool,
    ) -> Result<Outcome, TreeError> {
        match (exclusive, kind, entry.kind) {
            (false, Kind::Regular, Kind::Directory) => Err(TreeError::IsDirectory),
            (false, Kind::Regular, _) => self.inode_reply(entry.ino, false),
            _ => Err(TreeError::Exists),
        }
    }

    pub(super) fn create_unnamed(
        &mut self,
        now: Time,
        node: NodeId,
        command: &CreateUnnamed,
    ) -> Result<Outcome, TreeError> {
        let parent = Ino(command.parent);
        self.directory(parent)?;
        valid_owner(command.uid, command.gid)?;
        if node == NodeId(0) {
            return Err(TreeError::Invalid);
        }
        self.room_for_inode()?;
        self.quota_for_inode(parent)?;
        let (mode, xattrs) = self.born_with(parent, Kind::Regular, command.mode, command.umask)?;
        let (mode, gid) = self.inherited(parent, Kind::Regular, mode, command.gid)?;
        let (strict, volume) = self.class_and_volume(parent)?;
        let body = Body::Regular(ExtentMap::default());
        let inode = Inode {
            nlink: 0,
            xattrs,
            linkable: command.linkable,
            strict,
            volume,
            ..Inode::new(now, mode, command.uid, gid, body)
        };
        let ino = self.next_ino;
        self.next_ino = Ino(ino.0 + 1);
        self.inodes.insert(ino, inode);
        self.volumes.add_inode(volume);
        self.orphans.add(now, ino);
        self.orphans.hold(node, ino);
        self.inode_reply(ino, true)
    }

    /// What is made in a directory has both from it.
    fn class_and_volume(&self, parent: Ino) -> Result<(bool, VolumeId), TreeError> {
        self.inode(parent).map(|directory| (directory.strict, directory.volume))
    }

    /// Mode and access control lists of something new: by the parent's default list, or else by the umask.
    fn born_with(
        &self,
        parent: Ino,
        kind: Kind,
        mode: u32,
        umask: u32,
    ) -> Result<(u32, Option<Arc<Xattrs>>), TreeError> {
        if kind == Kind::Symlink {
            return Ok((mode, None));
        }
        let Some(value) = self.inode(parent)?.xattr(acl::DEFAULT) else {
            return Ok((mode & !(umask & 0o777), None));
        };
        let access = Acl::parse(value)?.inherited(mode);
        let mut xattrs = Xattrs::new();
        if kind == Kind::Directory {
            xattrs.insert(acl::DEFAULT.into(), value.clone());
        }
        if !access.is_mode() {
            xattrs.insert(acl::ACCESS.into(), access.encode().into());
        }
        let xattrs = (!xattrs.is_empty()).then(|| Arc::new(xattrs));
        Ok((access.mode(mode), xattrs))
    }

    /// Mode and group below a directory: with set-group-ID it passes on its group, and the bit to
    /// its subdirectories.
    pub(super) fn inherited(
        &self,
        parent: Ino,
        kind: Kind,
        mode: u32,
        gid: u32,
    ) -> Result<(u32, u32), TreeError> {
        let directory = self.inode(parent)?;
        if directory.mode & SETGID == 0 {
            return Ok((mode, gid));
        }
        let bit = if kind == Kind::Directory { SETGID } else { 0 };
        Ok((mode | bit, directory.gid))
    }

    pub(super) fn link(&mut self, now: Time, command: &Link) -> Result<Outcome, TreeError> {
        let (ino, parent) = (Ino(command.ino), Ino(command.parent));
        let name = valid_name(&command.name)?;
        let inode = self.inode(ino)?;
        let kind = inode.kind();
        if kind == Kind::Directory {
            return Err(TreeError::NotPermitted);
        }
        if inode.nlink == 0 && !inode.linkable {
            return Err(TreeError::NotFound);
        }
        if inode.nlink >= LINKS_MAX {
            return Err(TreeError::TooManyLinks);
        }
        if self.directory(parent)?.get(name).is_some() {
            return Err(TreeError::Exists);
        }
        self.refuse_crossing(ino, parent)?;
        let inode = self.inode_mut(ino)?;
        inode.nlink += 1;
        inode.linkable = false;
        inode.touch(now);
        self.orphans.remove(ino);
        self.add_name(now, parent, name, ino, kind);
        self.inode_reply(ino, false)
    }

    pub(super) fn unlink(&mut self, now: Time, command: &Unlink) -> Result<(), TreeError> {
        let parent = Ino(command.parent);
        let entry = self.entry(parent, &command.name)?;
        if entry.kind == Kind::Directory {
            return Err(TreeError::IsDirectory);
        }
        self.remove_name(now, parent, &command.name, entry.kind);
        self.drop_link(now, entry.ino);
        Ok(())
    }

    pub(super) fn rmdir(&mut self, now: Time, command: &Rmdir) -> Result<(), TreeError> {
        let parent = Ino(command.parent);
        let entry = self.entry(parent, &command.name)?;
        if !self.inode(entry.ino)?.directory()?.is_empty() {
            return Err(TreeError::NotEmpty);
        }
        self.refuse_snapshots_lost(entry.ino)?;
        self.remove_name(now, parent, &command.name, entry.kind);
        self.drop_link(now, entry.ino);
        Ok(())
    }

    pub(super) fn rename(&mut self, now: Time, command: &Rename) -> Result<(), TreeError> {
        let (from, to) = (Ino(command.parent), Ino(command.new_parent));
        let new_name = valid_name(&command.new_name)?;
        let (no_replace, exchange) = rename_flags(command.flags)?;
        let source = self.entry(from, &command.name)?;
        let target = self.directory(to)?.get(new_name);
        self.refuse_crossing(from, to)?;
        if no_replace && target.is_some() {
            return Err(TreeError::Exists);
        }
        if source.kind == Kind::Directory && self.is_within(to, source.ino) {
            return Err(TreeError::CrossesItself);
        }
        match target {
            Some(target) if exchange => self.exchange(now, command, source, target),
            None if exchange => Err(TreeError::NotFound),
            Some(target) => self.rename_onto(now, command, source, target),
            None => {
                self.remove_name(now, from, &command.name, source.kind);
                self.add_name(now, to, new_name, source.ino, source.kind);
                self.moved(now, source, to);
                Ok(())
            }
        }
    }

    fn rename_onto(
        &mut self,
        now: Time,
        command: &Rename,
        source: Entry,
        target: Entry,
    ) -> Result<(), TreeError> {
        let (from, to) = (Ino(command.parent), Ino(command.new_parent));
        if source.ino == target.ino {
            return Ok(());
        }
        match (source.kind == Kind::Directory, target.kind == Kind::Directory) {
            (_, true) if !self.inode(target.ino)?.directory()?.is_empty() => {
                return Err(TreeError::NotEmpty);
            }
            (true, false) => return Err(TreeError::NotDirectory),
            (false, true) => return Err(TreeError::IsDirectory),
            (true, true) | (false, false) => {}
        }
        self.refuse_snapshots_lost(target.ino)?;
        self.remove_name(now, from, &command.name, source.kind);
        self.replace_name(now, to, &command.new_name, target.kind, source);
        self.drop_link(now, target.ino);
        self.moved(now, source, to);
        Ok(())
    }

    fn exchange(
        &mut self,
        now: Time,
        command: &Rename,
        source: Entry,
        target: Entry,
    ) -> Result<(), TreeError> {
        let (from, to) = (Ino(command.parent), Ino(command.new_parent));
        if source.ino == target.ino {
            return Ok(());
        }
        if target.kind == Kind::Directory && self.is_within(from, target.ino) {
            return Err(TreeError::CrossesItself);
        }
        self.replace_name(now, from, &command.name, source.kind, target);
        self.replace_name(now, to, &command.new_name, target.kind, source);
        self.moved(now, source, to);
        self.moved(now, target, from);
        Ok(())
    }

    /// Whether `ino` is `ancestor` or below it.
    fn is_within(&self, ino: Ino, ancestor: Ino) -> bool {
        let mut at = ino;
        loop {
            if at == ancestor {
                return true;
            }
            match self.directory(at) {
                Ok(directory) if directory.parent != at => at = directory.parent,
                Ok(_) | Err(_) => return false,
            }
        }
    }

    fn entry(&self, parent: Ino, name: &[u8]) -> Result<Entry, TreeError> {
        let name = valid_name(name)?;
        self.directory(parent)?.get(name).ok_or(TreeError::NotFound)
    }

    /// From here on nothing fails: the callers have looked everything up.
    pub(super) fn add_name(&mut self, now: Time, parent: Ino, name: &[u8], ino: Ino, kind: Kind) {
        self.changes.name(parent, name);
        self.change_directory(now, parent, 0, links(kind), |directory| {
            directory.insert(name, ino, kind);
        });
    }

    fn remove_name(&mut self, now: Time, parent: Ino, name: &[u8], kind: Kind) {
        self.changes.name(parent, name);
        self.change_directory(now, parent, links(kind), 0, |directory| {
            directory.remove(name);
        });
    }

    fn replace_name(&mut self, now: Time, parent: Ino, name: &[u8], old: Kind, new: Entry) {
        self.changes.name(parent, name);
        self.change_directory(now, parent, links(old), links(new.kind), |directory| {
            directory.replace(name, new.ino, new.kind);
        });
    }

    fn change_directory(
        &mut self,
        now: Time,
        ino: Ino,
        links_lost: u32,
        links_won: u32,
        change: impl FnOnce(&mut Directory),
    ) {
        let Ok(inode) = self.inode_mut(ino) else { return };
        if let Body::Directory(directory) = &mut inode.body {
            change(directory);
        }
        inode.nlink = inode.nlink.saturating_add(links_won).saturating_sub(links_lost);
        inode.touch_content(now);
    }

    /// One name of an inode is gone; with a directory, it was the only one.
    fn drop_link(&mut self, now: Time, ino: Ino) {
        let Ok(inode) = self.inode_mut(ino) else { return };
        inode.nlink = if inode.is_directory() { 0 } else { inode.nlink.saturating_sub(1) };
        inode.touch(now);
        if inode.nlink == 0 {
            self.orphans.add(now, ino);
        }
    }

    fn moved(&mut self, now: Time, entry: Entry, parent: Ino) {
        let Ok(inode) = self.inode_mut(entry.ino) else { return };
        if let Body::Directory(directory) = &mut inode.body {
            directory.parent = parent;
        }
        inode.touch(now);
    }
}

fn links(kind: Kind) -> u32 {
    u32::from(kind == Kind::Directory)
}

fn rename_flags(flags: u32) -> Result<(bool, bool), TreeError> {
    match flags {
        0 => Ok((false, false)),
        RENAME_NOREPLACE => Ok((true, false)),
        RENAME_EXCHANGE => Ok((false, true)),
        _ => Err(TreeError::Invalid),
    }
}

fn new_body(kind: Kind, parent: Ino, command: &Create) -> Result<Body, TreeError> {
    Ok(match kind {
        Kind::Regular => Body::Regular(ExtentMap::default()),
        Kind::Directory => Body::Directory(Directory::new(parent)),
        Kind::Symlink => Body::Symlink(valid_target(&command.target)?.into()),
        Kind::Fifo => Body::Fifo,
        Kind::Socket => Body::Socket,
        Kind::Character => Body::Character(command.rdev),
        Kind::Block => Body::Block(command.rdev),
    })
}

pub(super) fn valid_target(target: &[u8]) -> Result<&[u8], TreeError> {
    if target.len() > SYMLINK_LENGTH_MAX {
        return Err(TreeError::NameTooLong);
    }
    if target.is_empty() || target.contains(&0) {
        return Err(TreeError::Invalid);
    }
    Ok(target)
}

/// -1 is no user and no group.
pub(super) fn valid_owner(uid: u32, gid: u32) -> Result<(), TreeError> {
    if uid == u32::MAX || gid == u32::MAX { Err(TreeError::Invalid) } else { Ok(()) }
}
