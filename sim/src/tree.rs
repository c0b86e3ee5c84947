//! Commands to the file tree: what a client of files would send, and what none should.
//!
//! What they come to only has to be the same everywhere, and to leave a consistent tree; the tree's
//! own tests know what is right.

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use unum_core::tree::{ROOT, Tree};
use unum_proto::ids::NodeId;
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{
    ChunkKey, CopyRange, Create, CreateUnnamed, Extent, Fallocate, FileKind, Hold, Link, Lock,
    LockRange, LockTable, NewChunk, Reap, Release, ReleaseOwner, Rename, Rmdir, SetAttributes,
    SetReplicas, SetXattr, Unlink, Unlock, Write, XattrMode,
};

/// Names in each directory.
const NAMES: u32 = 6;
const PAGE: u64 = 4096;

/// What this node's copy of the tree shows: where commands can strike.
pub struct Sight {
    directories: Vec<u64>,
    inodes: Vec<u64>,
    orphans: Vec<u64>,
    chunks: Vec<(ChunkKey, Vec<u64>)>,
}

impl Sight {
    /// Two levels, which are all that is ever made but for renames.
    pub fn of(tree: &Tree) -> Self {
        let mut sight = Self {
            directories: vec![ROOT.0],
            inodes: Vec::new(),
            orphans: tree.orphans_after(None).map(|(_, ino)| ino.0).collect(),
            chunks: tree
                .chunks_after(None)
                .map(|(id, chunk)| (id.into(), chunk.replicas.iter().map(|n| n.0).collect()))
                .take(32)
                .collect(),
        };
        let mut at = 0;
        while let Some(directory) = sight.directories.get(at).copied().filter(|_| at < 8) {
            at += 1;
            let Ok(listed) = tree.read_directory(directory.into(), 0) else { continue };
            for entry in listed.filter(|entry| !matches!(&*entry.name, b"." | b"..")) {
                sight.inodes.push(entry.ino.0);
                if tree.inode(entry.ino).is_ok_and(|inode| inode.is_directory()) {
                    sight.directories.push(entry.ino.0);
                }
            }
        }
        sight.inodes.extend(&sight.orphans);
        sight
    }

    /// A directory, mostly one that exists.
    fn directory(&self, rng: &mut StdRng) -> u64 {
        self.directories.choose(rng).copied().unwrap_or(ROOT.0)
    }

    fn inode(&self, rng: &mut StdRng) -> u64 {
        match rng.random_bool(0.05) {
            true => rng.random_range(0..40),
            false => self.inodes.choose(rng).copied().unwrap_or(ROOT.0),
        }
    }
}

/// A command of this node; `unique` names chunks.
pub fn draw(rng: &mut StdRng, sight: &Sight, node: NodeId, unique: ChunkKey) -> Command {
    match rng.random_range(0..20) {
        0..4 => Command::Create(create(rng, sight)),
        4 => Command::Unlink(Unlink { parent: sight.directory(rng), name: name(rng) }),
        5 => Command::Rmdir(Rmdir { parent: sight.directory(rng), name: name(rng) }),
        6 | 7 => Command::Rename(Rename {
            parent: sight.directory(rng),
            name: name(rng),
            new_parent: sight.directory(rng),
            new_name: name(rng),
            flags: rng.random_range(0..3),
        }),
        8..11 => Command::Write(write(rng, sight, node, unique)),
        11 => Command::SetAttributes(SetAttributes {
            ino: sight.inode(rng),
            mode: rng.random_bool(0.5).then_some(0o600),
            size: rng.random_bool(0.7).then(|| rng.random_range(0..8 * PAGE)),
            ..SetAttributes::default()
        }),
        12 => Command::Fallocate(Fallocate {
            ino: sight.inode(rng),
            mode: rng.random_range(0..4),
            offset: rng.random_range(0..8) * PAGE,
            length: rng.random_range(0..4 * PAGE),
            keep_size: rng.random(),
            ..Fallocate::default()
        }),
        13 => Command::Link(Link {
            ino: sight.inode(rng),
            parent: sight.directory(rng),
            name: name(rng),
        }),
        14 => Command::Hold(Hold { inos: vec![sight.inode(rng)] }),
        15 => match rng.random() {
            true => Command::Release(Release { inos: vec![sight.inode(rng)] }),
            false => Command::Reap(Reap { inos: sight.orphans.clone() }),
        },
        16 => Command::SetXattr(SetXattr {
            ino: sight.inode(rng),
            name: Bytes::from_static(b"user.note"),
            value: Bytes::copy_from_slice(&unique.seq.to_le_bytes()),
            mode: XattrMode::default().into(),
            kill_setgid: false,
        }),
        17 => match rng.random() {
            true => set_replicas(rng, sight),
            false => Command::CopyRange(CopyRange {
                from: sight.inode(rng),
                from_offset: rng.random_range(0..4) * PAGE,
                to: sight.inode(rng),
                to_offset: rng.random_range(0..4) * PAGE,
                length: rng.random_range(0..4 * PAGE),
                kill_privileges: false,
            }),
        },
        18 => Command::CreateUnnamed(CreateUnnamed {
            parent: sight.directory(rng),
            mode: 0o600,
            linkable: rng.random(),
            ..CreateUnnamed::default()
        }),
        _ => lock(rng, sight),
    }
}

fn create(rng: &mut StdRng, sight: &Sight) -> Create {
    let kind = if rng.random_bool(0.3) { FileKind::Directory } else { FileKind::Regular };
    Create {
        parent: sight.directory(rng),
        name: name(rng),
        kind: kind.into(),
        mode: 0o755,
        exclusive: rng.random(),
        ..Create::default()
    }
}

fn write(rng: &mut StdRng, sight: &Sight, node: NodeId, unique: ChunkKey) -> Write {
    let length = rng.random_range(1..3 * PAGE);
    let offset = rng.random_range(0..6 * PAGE);
    let extent = Extent { offset, length, chunk: Some(unique), chunk_offset: 0 };
    let chunk = NewChunk {
        id: Some(unique),
        length: length as u32,
        hash: Bytes::copy_from_slice(blake3::hash(&unique.seq.to_le_bytes()).as_bytes()),
        replicas: vec![node.0],
    };
    Write {
        ino: sight.inode(rng),
        extents: vec![extent],
        chunks: vec![chunk],
        append: rng.random_bool(0.2),
        ..Write::default()
    }
}

fn set_replicas(rng: &mut StdRng, sight: &Sight) -> Command {
    let (chunk, expected) = sight.chunks.choose(rng).cloned().unwrap_or_default();
    let replicas = vec![rng.random_range(1..4), rng.random_range(4..6)];
    Command::SetReplicas(SetReplicas { chunk: Some(chunk), expected, replicas })
}

fn lock(rng: &mut StdRng, sight: &Sight) -> Command {
    let table = if rng.random() { LockTable::Record } else { LockTable::Flock };
    let start = rng.random_range(0..4) * 10;
    let owner = rng.random_range(1..4);
    let range = Some(LockRange { table: table.into(), owner, start, end: start + 15 });
    let ino = sight.inode(rng);
    match rng.random_range(0..4) {
        0 => Command::Unlock(Unlock { ino, range }),
        1 => Command::ReleaseOwner(ReleaseOwner { ino, table: table.into(), owner }),
        _ => Command::Lock(Lock {
            ino,
            range,
            exclusive: rng.random(),
            pid: 1,
            waiter: rng.random_bool(0.5).then(|| rng.random()),
        }),
    }
}

fn name(rng: &mut StdRng) -> Bytes {
    format!("f{}", rng.random_range(0..NAMES)).into()
}
