//! Snapshots of volumes: how they are found, and what is refused.

use std::collections::BTreeMap;

use expect_test::expect;
use proptest::collection::vec;
use proptest::prelude::*;
use unum_proto::ids::{SnapshotId, VolumeId};
use unum_proto::tree::tree_record::Record;
use unum_proto::tree::{
    AcquireLease, CreateSnapshot, CreateUnnamed, CreateVolume, DeleteSnapshot, Extent,
    FallocateMode, Hold, Lock, LockRange, Reap, ReleaseLease,
};

mod model;
mod stream;

use super::*;

impl World {
    fn new_volume(&mut self, parent: Ino, name: &str) -> Ino {
        let create =
            CreateVolume { parent: parent.0, name: bytes(name), ..CreateVolume::default() };
        inode_of(&self.run(Command::CreateVolume(create)).expect("a volume"))
    }

    fn snapshot(&mut self, volume: VolumeId, name: &str) -> Result<Ino, TreeError> {
        let create = CreateSnapshot { volume: volume.0, name: bytes(name) };
        match self.run(Command::CreateSnapshot(create))? {
            Outcome::Snapshot(taken) => Ok(Ino(taken.root)),
            other => panic!("no snapshot: {other:?}"),
        }
    }

    fn forget(&mut self, volume: VolumeId, name: &str) -> Result<Outcome, TreeError> {
        let delete = DeleteSnapshot { volume: volume.0, name: bytes(name) };
        self.run(Command::DeleteSnapshot(delete))
    }

    fn write_new(&mut self, ino: Ino, offset: u64, length: u32) -> Command {
        let id = Some(ChunkId { lane: 9, seq: self.next_chunk }.into());
        self.next_chunk += 1;
        let chunk = NewChunk { id, length, hash: vec![1; 32].into(), replicas: vec![1] };
        let extent = Extent { offset, length: length.into(), chunk: id, chunk_offset: 0 };
        let (extents, chunks) = (vec![extent], vec![chunk]);
        Command::Write(Write { ino: ino.0, extents, chunks, ..Write::default() })
    }
}

/// A volume `/v` with a directory, a file of two chunks, a second name of it and a link.
fn furnished() -> (World, VolumeId, Ino) {
    let mut world = World::new();
    let v = world.new_volume(ROOT, "v");
    let d = world.create(v, "d", Kind::Directory).expect("d");
    let f = world.create(d, "f", Kind::Regular).expect("f");
    for offset in [0, 100] {
        let write = world.write_new(f, offset, 10);
        world.run(write).expect("written");
    }
    world.run(link(f, v, "g")).expect("linked");
    world.create(v, "s", Kind::Symlink).expect("s");
    let (volume, _) = world.tree.volume_of(v).expect("a volume");
    (world, volume, v)
}

fn listed(tree: &Tree, ino: Ino) -> Vec<String> {
    let all = tree.read_directory(ino, COOKIE_PARENT).expect("listed");
    all.map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect()
}

#[test]
fn snapshots_are_found_by_name_and_listed_by_nothing_else() {
    let (mut world, volume, v) = furnished();
    let shelf = world.tree.lookup(v, SNAPSHOTS_NAME).expect("a directory of snapshots");
    assert_eq!(listed(&world.tree, shelf), [""; 0]);
    let empty = world.tree.attributes(shelf).expect("attributes");
    let taken = world.snapshot(volume, "one").expect("taken");
    world.snapshot(volume, "two").expect("taken");
    assert_eq!(listed(&world.tree, shelf), ["one", "two"]);
    let two = world.tree.attributes(shelf).expect("attributes");
    assert!(two.content_time > empty.content_time && two.nlink == 4);
    assert_eq!(world.tree.lookup(shelf, b"one"), Ok(taken));
    assert_eq!(listed(&world.tree, v), ["d", "g", "s"]);
    assert_eq!(listed(&world.tree, taken), ["d", "g", "s"]);
    assert_eq!(world.tree.parent(shelf), Ok(v));
    assert_eq!(world.tree.parent(taken), Ok(shelf));
    let d = world.tree.lookup(taken, b"d").expect("d");
    assert_eq!(world.tree.parent(d), Ok(taken));
    assert_eq!(world.tree.lookup(taken, b".."), Ok(shelf));
    // Only roots of volumes of today have it.
    let inner = world.tree.lookup(v, b"d").expect("d");
    for directory in [inner, taken, shelf] {
        assert_eq!(world.tree.lookup(directory, SNAPSHOTS_NAME), Err(TreeError::NotFound));
    }
    assert!(world.tree.lookup(ROOT, SNAPSHOTS_NAME).is_ok());
    let [f, g] = [(d, "f"), (taken, "g")].map(|(at, name)| world.tree.lookup(at, name.as_bytes()));
    assert_eq!((f, is_past(f.expect("f"))), (g, true));
    assert_eq!(
        world.tree.snapshot_of(taken).map(|(name, ino)| (&**name, ino)),
        Some((&b"one"[..], v))
    );
    assert_eq!(world.tree.volume_of(taken).map(|(id, _)| id), Ok(volume));
}

#[test]
fn nothing_in_a_snapshot_can_be_changed_and_its_name_cannot_be_taken() {
    let (mut world, volume, v) = furnished();
    let taken = world.snapshot(volume, "one").expect("taken");
    let shelf = world.tree.lookup(v, SNAPSHOTS_NAME).expect("the shelf");
    let f = world.tree.lookup(taken, b"g").expect("g");
    let live = world.tree.lookup(v, b"g").expect("g");
    let before = world.tree.clone();
    let name = bytes("user.x");
    let create = |parent: Ino, name: &str| {
        let kind = Kind::Directory.to_proto() as i32;
        Command::Create(Create { parent: parent.0, name: bytes(name), kind, ..Create::default() })
    };
    let write = world.write_new(f, 0, 3);
    let allocate = Fallocate { ino: f.0, mode: 1, length: 1, ..Fallocate::default() };
    let copy = |from: Ino, to: Ino| {
        Command::CopyRange(CopyRange { from: from.0, to: to.0, length: 1, ..CopyRange::default() })
    };
    let unnamed = CreateUnnamed { parent: taken.0, ..CreateUnnamed::default() };
    let volume_in = |parent: Ino, name: &str| {
        let (parent, name) = (parent.0, bytes(name));
        Command::CreateVolume(CreateVolume { parent, name, ..CreateVolume::default() })
    };
    let exclusive = |exclusive| {
        let range = Some(LockRange { table: 2, owner: 1, start: 0, end: 1 });
        Command::Lock(Lock { ino: f.0, range, exclusive, ..Lock::default() })
    };
    let read_only = [
        create(taken, "x"),
        create(shelf, "x"),
        Command::CreateUnnamed(unnamed),
        volume_in(taken, "x"),
        link(f, v, "x"),
        link(live, taken, "x"),
        unlink(taken, "g"),
        rmdir(shelf, "one"),
        rmdir(v, ".snapshot"),
        unlink(v, ".snapshot"),
        rename((taken, "g"), (taken, "x"), 0),
        rename((taken, "g"), (v, "x"), 0),
        rename((v, "g"), (taken, "x"), 0),
        rename((shelf, "one"), (shelf, "x"), 0),
        rename((v, ".snapshot"), (v, "x"), 0),
        Command::SetAttributes(SetAttributes { ino: f.0, mode: Some(0), ..Default::default() }),
        Command::SetAttributes(SetAttributes { ino: shelf.0, size: Some(0), ..Default::default() }),
        write,
        Command::Fallocate(allocate),
        copy(live, f),
        copy(f, f),
        Command::SetXattr(SetXattr { ino: f.0, name: name.clone(), ..SetXattr::default() }),
        Command::RemoveXattr(RemoveXattr { ino: f.0, name }),
        Command::AcquireLease(AcquireLease { inos: vec![taken.0], below: 9 }),
        Command::Hold(Hold { inos: vec![f.0] }),
        exclusive(true),
    ];
    for command in read_only {
        let shown = format!("{command:?}");
        let outcome = world.run(command).map(drop);
        assert_eq!(outcome, Err(TreeError::ReadOnly), "{shown}");
    }
    assert_eq!(world.run(copy(f, live)).map(drop), Err(TreeError::Unsupported));
    world.run(exclusive(false)).expect("nobody is in the way");
    let taking = [
        create(v, ".snapshot"),
        volume_in(v, ".snapshot"),
        link(live, v, ".snapshot"),
        rename((v, "g"), (v, ".snapshot"), 0),
        rename((v, "g"), (v, ".snapshot"), 2),
        create(ROOT, ".snapshot"),
    ];
    for command in taking {
        let shown = format!("{command:?}");
        assert_eq!(world.run(command).map(drop), Err(TreeError::Exists), "{shown}");
    }
    assert_eq!(records(&before), records(&world.tree));
    // It is a name like others elsewhere.
    let d = world.tree.lookup(v, b"d").expect("d");
    world.run(create(d, ".snapshot")).expect("made");
}

#[test]
fn a_name_from_before_there_were_snapshots_stays_what_it_is() {
    let (mut world, volume, v) = furnished();
    let old = world.create(v, "x", Kind::Directory).expect("x");
    // As a former version made it.
    let Ok(inode) = world.tree.inode_mut(v) else { panic!() };
    let Body::Directory(directory) = &mut inode.body else { panic!() };
    directory.remove(b"x");
    directory.insert(SNAPSHOTS_NAME, old, Kind::Directory);
    world.snapshot(volume, "one").expect("taken");
    assert_eq!(world.tree.lookup(v, SNAPSHOTS_NAME), Ok(old));
    world.create(old, "below", Kind::Regular).expect("a directory like others");
    world.run(rename((v, ".snapshot"), (v, "x"), 0)).expect("moved out of the way");
    let shelf = world.tree.lookup(v, SNAPSHOTS_NAME).expect("the snapshots");
    assert_eq!(listed(&world.tree, shelf), ["one"]);
}

#[test]
fn names_are_checked_and_there_is_a_limit() {
    let (mut world, volume, _) = furnished();
    let long = "x".repeat(256);
    for (name, error) in [
        ("", TreeError::Invalid),
        (".", TreeError::Invalid),
        ("..", TreeError::Invalid),
        ("a/b", TreeError::Invalid),
        ("a\0", TreeError::Invalid),
        (&long, TreeError::NameTooLong),
    ] {
        assert_eq!(world.snapshot(volume, name).map(drop), Err(error));
    }
    assert_eq!(world.snapshot(VolumeId(9), "x").map(drop), Err(TreeError::Stale));
    world.snapshot(volume, &long[1..]).expect("255 bytes");
    assert_eq!(world.snapshot(volume, &long[1..]).map(drop), Err(TreeError::Exists));
    world.snapshot(ROOT_VOLUME, &long[1..]).expect("in another volume");
    assert_eq!(world.forget(volume, "x").map(drop), Err(TreeError::NotFound));
    for at in 1..limits::VOLUME_SNAPSHOTS_MAX {
        let create = CreateSnapshot { volume: volume.0, name: bytes(&at.to_string()) };
        let reply = world.tree.apply(world.now, NodeId(1), &Command::CreateSnapshot(create).into());
        assert!(outcome(&reply).is_ok());
    }
    assert_eq!(world.snapshot(volume, "more").map(drop), Err(TreeError::TooManySnapshots));
    world.forget(volume, "7").expect("deleted");
    world.snapshot(volume, "more").expect("room again");
}

#[test]
fn slots_go_around_and_no_two_snapshots_have_one() {
    let (mut world, volume, _) = furnished();
    let first = world.snapshot(volume, "first").expect("taken");
    let generation = world.tree.generation(first);
    world.tree.snapshots.last_slot = u16::MAX - 2;
    let last = world.snapshot(volume, "last").expect("taken");
    assert_eq!(last.0 >> 48, 0xfffe);
    let around = world.snapshot(volume, "around").expect("taken");
    assert_eq!(around.0 >> 48, 2, "1 is in use");
    world.forget(volume, "first").expect("deleted");
    world.tree.snapshots.last_slot = u16::MAX - 1;
    let again = world.snapshot(volume, "again").expect("taken");
    assert_eq!(again, first);
    assert_ne!(world.tree.generation(again), generation);
    let restored = super::snapshot::restore(&records(&world.tree)).expect("restored");
    assert_eq!(restored.generation(again), world.tree.generation(again));
}

#[test]
fn a_volume_with_snapshots_keeps_its_root() {
    let mut world = World::new();
    let v = world.new_volume(ROOT, "v");
    world.create(ROOT, "d", Kind::Directory).expect("d");
    let (volume, _) = world.tree.volume_of(v).expect("a volume");
    world.snapshot(volume, "one").expect("taken");
    assert_eq!(world.run(rmdir(ROOT, "v")).map(drop), Err(TreeError::HasSnapshots));
    let onto = rename((ROOT, "d"), (ROOT, "v"), 0);
    assert_eq!(world.run(onto.clone()).map(drop), Err(TreeError::HasSnapshots));
    world.run(rename((ROOT, "v"), (ROOT, "w"), 0)).expect("renamed");
    world.run(rename((ROOT, "w"), (ROOT, "v"), 0)).expect("and back");
    world.forget(volume, "one").expect("deleted");
    world.run(onto).expect("replaced");
    // Without a root there is nothing to take.
    assert_eq!(world.snapshot(volume, "two").map(drop), Err(TreeError::Stale));
}

#[test]
fn none_is_taken_while_a_write_lease_covers_anything_in_the_volume() {
    let (mut world, volume, v) = furnished();
    world.node = NodeId(2);
    let d = world.tree.lookup(v, b"d").expect("d");
    let acquire = AcquireLease { inos: vec![d.0], below: 0 };
    let leased = world.run(Command::AcquireLease(acquire)).expect("leased");
    let Outcome::Leased(leased) = leased else { panic!("{leased:?}") };
    assert_eq!(world.tree.holders_in(volume), [NodeId(2)]);
    let before = world.tree.clone();
    world.tree = super::snapshot::restore(&records(&before)).expect("restored");
    assert_eq!(world.tree.holders_in(volume), [NodeId(2)]);
    for node in [1, 2] {
        world.node = NodeId(node);
        assert_eq!(world.snapshot(volume, "one").map(drop), Err(TreeError::Held));
    }
    world.snapshot(ROOT_VOLUME, "one").expect("another volume");
    world.node = NodeId(2);
    world.run(Command::ReleaseLease(ReleaseLease { lease: leased.lease })).expect("released");
    world.snapshot(volume, "one").expect("taken");
}
