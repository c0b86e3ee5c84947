//! The names of a directory, by name and in the order in which readdir shows them.

use unum_proto::ids::Ino;

use super::super::directory::{Entry, Name};
use super::super::inode::Kind;
use crate::packed::Packing;
use crate::packed::bytes::{Reader, Writer};

/// Directories are many, and each may have so many blocks open.
const OPEN_MAX: usize = 16;

const KINDS: [Kind; 7] = [
    Kind::Regular,
    Kind::Directory,
    Kind::Symlink,
    Kind::Fifo,
    Kind::Socket,
    Kind::Character,
    Kind::Block,
];

/// A name and what it stands for, under its cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub name: Name,
    pub ino: Ino,
    pub kind: Kind,
}

/// An inode's number and its kind.
fn pack_target(ino: Ino, kind: Kind, base: u64, to: &mut Writer) {
    to.number(KINDS.iter().position(|other| *other == kind).unwrap_or_default() as u64);
    to.distance(base, ino.0);
}

fn unpack_target(base: u64, from: &mut Reader<'_>) -> (Ino, Kind) {
    let kind = KINDS.get(from.number() as usize).copied().unwrap_or(Kind::Regular);
    (Ino(from.distance(base)), kind)
}

#[derive(Debug, Default)]
pub struct EntryBase {
    ino: u64,
    cookie: u64,
}

impl Packing for Entry {
    type Key = Name;
    type Base = EntryBase;
    const OPEN_MAX: usize = OPEN_MAX;

    fn pack_key(key: &Name, before: Option<&Name>, to: &mut Writer) {
        to.name(before.map_or(&[], |name| name), key);
    }

    fn unpack_key(before: Option<&Name>, from: &mut Reader<'_>) -> Name {
        from.name(before.map_or(&[], |name| name))
    }

    fn pack(&self, _: &Name, base: &mut EntryBase, to: &mut Writer) -> bool {
        pack_target(self.ino, self.kind, base.ino, to);
        to.distance(base.cookie, self.cookie);
        *base = EntryBase { ino: self.ino.0, cookie: self.cookie };
        true
    }

    fn unpack(_: &Name, base: &mut EntryBase, from: &mut Reader<'_>) -> Self {
        let (ino, kind) = unpack_target(base.ino, from);
        let cookie = from.distance(base.cookie);
        *base = EntryBase { ino: ino.0, cookie };
        Self { ino, kind, cookie }
    }
}

#[derive(Debug, Default)]
pub struct ListingBase {
    ino: u64,
    name: Name,
}

impl Packing for Listing {
    type Key = u64;
    type Base = ListingBase;
    const OPEN_MAX: usize = OPEN_MAX;

    fn pack_key(key: &u64, before: Option<&u64>, to: &mut Writer) {
        to.number(key - before.copied().unwrap_or_default());
    }

    fn unpack_key(before: Option<&u64>, from: &mut Reader<'_>) -> u64 {
        before.copied().unwrap_or_default() + from.number()
    }

    fn pack(&self, _: &u64, base: &mut ListingBase, to: &mut Writer) -> bool {
        pack_target(self.ino, self.kind, base.ino, to);
        to.name(&base.name, &self.name);
        *base = ListingBase { ino: self.ino.0, name: self.name.clone() };
        true
    }

    fn unpack(_: &u64, base: &mut ListingBase, from: &mut Reader<'_>) -> Self {
        let (ino, kind) = unpack_target(base.ino, from);
        let name = from.name(&base.name);
        *base = ListingBase { ino: ino.0, name: name.clone() };
        Self { name, ino, kind }
    }
}
