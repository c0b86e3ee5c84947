//! Scripts with outcomes, and random commands against simple models.

mod acl;
mod anything;
mod content;
mod copies;
mod leased_locks;
mod leases;
mod locks;
mod model;
mod namespace;
mod orphans;
mod snapshot;
mod snapshots;
mod volumes;

use bytes::Bytes;
use proptest::test_runner::{Config, RngSeed};
use prost::Message;
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{
    CopyRange, Create, Fallocate, Link, LockTable, NewChunk, RemoveXattr, Rename, Rmdir,
    SetAttributes, SetXattr, TreeRecord, Unlink, Write,
};

use super::*;

/// The same cases in each run, and no files left behind.
fn property(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..Config::default() }
}

/// A tree whose every step is checked: no invariant breaks, and what fails changes nothing.
struct World {
    tree: Tree,
    now: Time,
    node: NodeId,
    granted: Vec<Waiter>,
    next_chunk: u64,
}

impl World {
    fn new() -> Self {
        Self {
            tree: Tree::new(),
            now: Time::from_secs(1000),
            node: NodeId(1),
            granted: Vec::new(),
            next_chunk: 1,
        }
    }

    fn run(&mut self, command: Command) -> Result<Outcome, TreeError> {
        self.now = Time(self.now.0 + 1_000_000_000);
        let before = self.tree.clone();
        let shown = format!("{command:?}");
        let reply = self.tree.apply(self.now, self.node, &command.into());
        assert_eq!(self.tree.check(), Vec::<String>::new(), "after {shown}");
        if outcome(&reply).is_err() {
            assert_eq!(records(&before), records(&self.tree), "failed, but changed: {shown}");
        }
        self.granted = reply.granted.clone();
        outcome(&reply).cloned()
    }

    fn create(&mut self, parent: Ino, name: &str, kind: Kind) -> Result<Ino, TreeError> {
        self.create_as(parent, name, kind, 0o644, 0, 0)
    }

    fn create_as(
        &mut self,
        parent: Ino,
        name: &str,
        kind: Kind,
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> Result<Ino, TreeError> {
        let create = Create {
            parent: parent.0,
            name: bytes(name),
            kind: kind.to_proto() as i32,
            mode,
            uid,
            gid,
            rdev: 0,
            target: if kind == Kind::Symlink { bytes("target") } else { Bytes::new() },
            exclusive: true,
            ino: 0,
            umask: 0,
        };
        self.run(Command::Create(create)).map(|outcome| inode_of(&outcome))
    }

    fn set(&mut self, set: SetAttributes) -> Result<Attributes, TreeError> {
        let ino = Ino(set.ino);
        self.run(Command::SetAttributes(set))?;
        self.tree.attributes(ino)
    }
}

fn records(tree: &Tree) -> Vec<TreeRecord> {
    tree.records().collect()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn inode_of(outcome: &Outcome) -> Ino {
    match outcome {
        Outcome::Inode(reply) => Ino(reply.attributes.expect("attributes").ino),
        other => panic!("no inode: {other:?}"),
    }
}

fn unlink(parent: Ino, name: &str) -> Command {
    Command::Unlink(Unlink { parent: parent.0, name: bytes(name) })
}

fn rmdir(parent: Ino, name: &str) -> Command {
    Command::Rmdir(Rmdir { parent: parent.0, name: bytes(name) })
}

fn link(ino: Ino, parent: Ino, name: &str) -> Command {
    Command::Link(Link { ino: ino.0, parent: parent.0, name: bytes(name) })
}

fn rename(from: (Ino, &str), to: (Ino, &str), flags: u32) -> Command {
    Command::Rename(Rename {
        parent: from.0.0,
        name: bytes(from.1),
        new_parent: to.0.0,
        new_name: bytes(to.1),
        flags,
    })
}

fn encode(record: &TreeRecord) -> Vec<u8> {
    record.encode_to_vec()
}
