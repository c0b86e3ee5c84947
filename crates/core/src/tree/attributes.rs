//! Commands that change attributes: setattr and extended attributes.

use unum_proto::ids::Ino;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{NewTime, RemoveXattr, SetAttributes, SetXattr, Timestamp, XattrMode};

use super::Tree;
use super::acl::{self, Acl};
use super::error::TreeError;
use super::inode::{Body, Inode, SETGID, Xattrs, timestamp, valid_timestamp};
use super::namespace::valid_owner;
use crate::limits::{
    XATTR_LIST_SIZE_MAX, XATTR_NAME_LENGTH_MAX, XATTR_TOTAL_SIZE_MAX, XATTR_VALUE_SIZE_MAX,
};
use crate::time::Time;

/// Attributes in this name space belong to the kernel; access control lists are those that are supported.
const SYSTEM_PREFIX: &[u8] = b"system.";

/// The class of an inode: whether its changes are durable before their calls return.
pub const CLASS_XATTR: &[u8] = b"user.unum.class";
const CLASS_STRICT: &[u8] = b"strict";
const CLASS_POSIX: &[u8] = b"posix";

impl Tree {
    pub(super) fn set_attributes(
        &mut self,
        now: Time,
        command: &SetAttributes,
    ) -> Result<Outcome, TreeError> {
        let ino = Ino(command.ino);
        self.inode(ino)?;
        let atime = command.atime.map(|time| new_time(now, time)).transpose()?;
        let mtime = command.mtime.map(|time| new_time(now, time)).transpose()?;
        valid_owner(command.uid.unwrap_or(0), command.gid.unwrap_or(0))?;
        if let Some(size) = command.size {
            self.resize(now, ino, size)?;
        }
        let inode = self.inode_mut(ino)?;
        if command.kill_privileges || command.uid.is_some() || command.gid.is_some() {
            inode.kill_privileges();
        }
        inode.uid = command.uid.unwrap_or(inode.uid);
        inode.gid = command.gid.unwrap_or(inode.gid);
        if let Some(mode) = command.mode {
            inode.change_mode(mode);
        }
        inode.atime = atime.unwrap_or(inode.atime);
        if command.size.is_none() {
            inode.touch(now);
        }
        inode.mtime = mtime.unwrap_or(inode.mtime);
        self.inode_reply(ino, false)
    }

    /// The value of an extended attribute. Each inode has one that tells its class, but does not list it.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<&[u8], TreeError> {
        if name == CLASS_XATTR {
            return Ok(if self.inode(ino)?.strict { CLASS_STRICT } else { CLASS_POSIX });
        }
        let value = self.inode(ino)?.xattr(name).ok_or(TreeError::NoAttribute)?;
        Ok(value)
    }

    /// The names of all extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<impl Iterator<Item = &[u8]>, TreeError> {
        let xattrs = self.inode(ino)?.xattrs.as_ref();
        Ok(xattrs.into_iter().flat_map(|xattrs| xattrs.keys()).map(AsRef::as_ref))
    }

    pub(super) fn set_xattr(&mut self, now: Time, command: &SetXattr) -> Result<(), TreeError> {
        let ino = Ino(command.ino);
        let name = valid_xattr_name(&command.name)?;
        let mode = XattrMode::try_from(command.mode).map_err(|_| TreeError::Invalid)?;
        if name == CLASS_XATTR {
            return self.set_class(now, ino, &command.value);
        }
        let inode = self.inode(ino)?;
        match (mode, inode.xattr(name).is_some()) {
            (XattrMode::Create, true) => return Err(TreeError::Exists),
            (XattrMode::Replace, false) => return Err(TreeError::NoAttribute),
            (XattrMode::Any, _) | (XattrMode::Create, false) | (XattrMode::Replace, true) => {}
        }
        room_for_xattr(inode, name, &command.value)?;
        if name == acl::ACCESS || name == acl::DEFAULT {
            return self.set_acl(now, ino, name, command);
        }
        let inode = self.inode_mut(ino)?;
        inode.insert_xattr(name, &command.value);
        inode.touch(now);
        Ok(())
    }

    /// An access list brings its mode along; one that says no more than that is not kept.
    fn set_acl(
        &mut self,
        now: Time,
        ino: Ino,
        name: &[u8],
        command: &SetXattr,
    ) -> Result<(), TreeError> {
        let inode = self.inode(ino)?;
        let is_access = name == acl::ACCESS;
        match inode.body {
            Body::Symlink(_) => return Err(TreeError::Unsupported),
            Body::Directory(_) => {}
            _ if is_access => {}
            _ => return Err(TreeError::Invalid),
        }
        let acl = Acl::parse(&command.value)?;
        let inode = self.inode_mut(ino)?;
        if is_access {
            inode.mode = acl.mode(inode.mode);
            if command.kill_setgid {
                inode.mode &= !SETGID;
            }
        }
        match is_access && acl.is_mode() {
            true => drop(inode.remove_xattr(name)),
            false => inode.insert_xattr(name, &acl.encode()),
        }
        inode.touch(now);
        Ok(())
    }

    /// What is made in a directory gets its class.
    fn set_class(&mut self, now: Time, ino: Ino, class: &[u8]) -> Result<(), TreeError> {
        let strict = match class {
            CLASS_STRICT => true,
            CLASS_POSIX => false,
            _ => return Err(TreeError::Invalid),
        };
        let inode = self.inode_mut(ino)?;
        inode.strict = strict;
        inode.touch(now);
        Ok(())
    }

    pub(super) fn remove_xattr(
        &mut self,
        now: Time,
        command: &RemoveXattr,
    ) -> Result<(), TreeError> {
        let name = valid_xattr_name(&command.name)?;
        if name == CLASS_XATTR {
            return self.set_class(now, Ino(command.ino), CLASS_POSIX);
        }
        self.xattr(Ino(command.ino), name)?;
        let inode = self.inode_mut(Ino(command.ino))?;
        inode.remove_xattr(name);
        inode.touch(now);
        Ok(())
    }
}

fn new_time(now: Time, time: NewTime) -> Result<Timestamp, TreeError> {
    time.value.map_or(Ok(timestamp(now)), valid_timestamp)
}

pub(super) fn valid_xattr_name(name: &[u8]) -> Result<&[u8], TreeError> {
    if name.len() > XATTR_NAME_LENGTH_MAX {
        return Err(TreeError::NameTooLong);
    }
    if name.is_empty() || name.contains(&0) {
        return Err(TreeError::Invalid);
    }
    let is_acl = name == acl::ACCESS || name == acl::DEFAULT;
    if name.starts_with(SYSTEM_PREFIX) && !is_acl {
        return Err(TreeError::Unsupported);
    }
    Ok(name)
}

fn room_for_xattr(inode: &Inode, name: &[u8], value: &[u8]) -> Result<(), TreeError> {
    let empty = Xattrs::new();
    let xattrs = inode.xattrs.as_deref().unwrap_or(&empty);
    let others = || xattrs.iter().filter(|(other, _)| other.as_ref() != name);
    let list: usize = others().map(|(name, _)| name.len() + 1).sum();
    let total: usize = others().map(|(name, value)| name.len() + value.len()).sum();
    let fits = value.len() <= XATTR_VALUE_SIZE_MAX
        && list + name.len() < XATTR_LIST_SIZE_MAX
        && total + name.len() + value.len() <= XATTR_TOTAL_SIZE_MAX;
    if fits { Ok(()) } else { Err(TreeError::AttributeTooBig) }
}
