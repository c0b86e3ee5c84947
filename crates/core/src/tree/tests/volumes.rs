//! Volumes: what crosses them, what their limits refuse, and that what is in use is exact. Each step of a
//! `World` is checked, so the numbers are counted anew after each.

use expect_test::expect;
use unum_proto::tree::tree_record::Record;
use unum_proto::tree::{
    AcquireLease, CopyRange, CreateUnnamed, CreateVolume, Drain, Extent, FallocateMode, Hold,
    LoggedChange, Reap, Release, SetVolume, VolumeSettings,
};

use super::*;

fn settings(bytes: u64, inodes: u64) -> Option<VolumeSettings> {
    let (quota_bytes, quota_inodes) = (Some(bytes), Some(inodes));
    Some(VolumeSettings { replicas: None, quota_bytes, quota_inodes })
}

impl World {
    fn volume(
        &mut self,
        parent: Ino,
        name: &str,
        settings: Option<VolumeSettings>,
    ) -> Result<Ino, TreeError> {
        let create = CreateVolume {
            parent: parent.0,
            name: bytes(name),
            mode: 0o755,
            uid: 0,
            gid: 0,
            settings,
        };
        self.run(Command::CreateVolume(create)).map(|outcome| inode_of(&outcome))
    }

    fn adjust(&mut self, ino: Ino, settings: VolumeSettings) -> Result<Outcome, TreeError> {
        let (id, _) = self.tree.volume_of(ino).expect("a volume");
        self.run(Command::SetVolume(SetVolume { volume: id.0, settings: Some(settings) }))
    }

    /// Writes `length` bytes at each of these offsets, as one command.
    fn put(&mut self, ino: Ino, at: &[u64], length: u32) -> Result<Outcome, TreeError> {
        let command = self.writing(ino, at, length);
        self.run(command)
    }

    fn writing(&mut self, ino: Ino, at: &[u64], length: u32) -> Command {
        let id = Some(ChunkId { lane: 9, seq: self.next_chunk }.into());
        self.next_chunk += 1;
        let chunk = NewChunk { id, length, hash: vec![1; 32].into(), replicas: vec![1] };
        let extent =
            |&offset: &u64| Extent { offset, length: length.into(), chunk: id, chunk_offset: 0 };
        Command::Write(Write {
            ino: ino.0,
            extents: at.iter().map(extent).collect(),
            chunks: vec![chunk],
            ..Write::default()
        })
    }

    fn allocate(
        &mut self,
        ino: Ino,
        offset: u64,
        length: u64,
        mode: FallocateMode,
    ) -> Result<Outcome, TreeError> {
        let (ino, mode) = (ino.0, mode as i32);
        self.run(Command::Fallocate(Fallocate {
            ino,
            mode,
            offset,
            length,
            ..Fallocate::default()
        }))
    }

    fn used(&self, ino: Ino) -> (u64, u64) {
        let (_, volume) = self.tree.volume_of(ino).expect("a volume");
        (volume.used_inodes, volume.used_bytes)
    }

    fn reap_all(&mut self) {
        self.now = Time(self.now.0 + 10_000_000_000);
        let inos = self.tree.reapable(self.now, 100).into_iter().map(|ino| ino.0).collect();
        self.run(Command::Reap(Reap { inos })).expect("reaped");
    }

    fn told(&self) -> String {
        let paths = self.tree.volume_paths();
        let lines = self.tree.volumes().map(|(id, volume)| {
            let path = paths.get(&id).map(|path| {
                path.iter().map(|name| format!("/{}", String::from_utf8_lossy(name))).collect()
            });
            let path: String = path.unwrap_or_else(|| "removed".into());
            format!("{id} [{path}] {} inodes, {} bytes\n", volume.used_inodes, volume.used_bytes)
        });
        lines.collect()
    }
}

#[test]
fn what_is_made_in_a_volume_belongs_to_it() {
    let mut world = World::new();
    let d = world.create(ROOT, "d", Kind::Directory).expect("d");
    let v = world.volume(d, "v", None).expect("v");
    let below = world.create(v, "below", Kind::Directory).expect("below");
    let inner = world.volume(below, "inner", None).expect("inner");
    let file = world.create(below, "file", Kind::Regular).expect("file");
    world.put(file, &[0], 100).expect("written");
    world.create(inner, "link", Kind::Symlink).expect("link");
    expect![[r#"
        volume 1 [] 2 inodes, 0 bytes
        volume 2 [/d/v] 3 inodes, 100 bytes
        volume 3 [/d/v/below/inner] 2 inodes, 0 bytes
    "#]]
    .assert_eq(&world.told());
    assert_eq!(world.volume(d, "v", None), Err(TreeError::Exists));
    assert_eq!(world.volume(file, "x", None), Err(TreeError::NotDirectory));
    let many = Some(VolumeSettings { replicas: Some(8), ..VolumeSettings::default() });
    assert_eq!(world.volume(d, "w", many), Err(TreeError::Invalid));
}

#[test]
fn no_name_leads_from_one_volume_into_another_but_that_of_a_root() {
    let mut world = World::new();
    let d = world.create(ROOT, "d", Kind::Directory).expect("d");
    let v = world.volume(ROOT, "v", None).expect("v");
    let w = world.volume(v, "w", None).expect("w");
    let f = world.create(v, "f", Kind::Regular).expect("f");
    world.create(ROOT, "g", Kind::Regular).expect("g");
    let crosses = Err(TreeError::CrossesVolumes);
    for flags in [0, 1] {
        assert_eq!(world.run(rename((v, "f"), (ROOT, "f"), flags)).map(drop), crosses);
        assert_eq!(world.run(rename((ROOT, "d"), (v, "d"), flags)).map(drop), crosses);
        assert_eq!(world.run(rename((v, "w"), (ROOT, "w"), flags)).map(drop), crosses);
    }
    assert_eq!(world.run(rename((v, "f"), (ROOT, "g"), 2)).map(drop), crosses);
    assert_eq!(world.run(rename((v, "f"), (ROOT, "g"), 0)).map(drop), crosses);
    assert_eq!(world.run(link(f, ROOT, "h")).map(drop), crosses);
    let g = world.tree.lookup(ROOT, b"g").expect("g");
    let copy = CopyRange { from: f.0, to: g.0, length: 1, ..CopyRange::default() };
    assert_eq!(world.run(Command::CopyRange(copy)).map(drop), crosses);
    assert_eq!(world.run(rename((ROOT, "v"), (w, "v"), 0)).map(drop), crosses, "below itself");
    // Roots move as other directories do, within the volume that their names are in.
    world.run(rename((ROOT, "v"), (d, "v"), 0)).expect("moved");
    world.run(link(f, v, "h")).expect("linked");
    world.create(v, "e", Kind::Directory).expect("e");
    world.run(rename((v, "w"), (v, "e"), 2)).expect("exchanged");
    let unnamed = CreateUnnamed { parent: v.0, mode: 0o600, linkable: true, ..Default::default() };
    let unnamed = inode_of(&world.run(Command::CreateUnnamed(unnamed)).expect("made"));
    assert_eq!(world.run(link(unnamed, d, "u")).map(drop), crosses);
    world.run(link(unnamed, v, "u")).expect("named");
    expect![[r#"
        volume 1 [] 3 inodes, 0 bytes
        volume 2 [/d/v] 4 inodes, 0 bytes
        volume 3 [/d/v/e] 1 inodes, 0 bytes
    "#]]
    .assert_eq(&world.told());
}

#[test]
fn a_volume_is_gone_with_its_last_inode_and_its_number_too() {
    let mut world = World::new();
    let v = world.volume(ROOT, "v", None).expect("v");
    let f = world.create(v, "f", Kind::Regular).expect("f");
    world.put(f, &[0], 10).expect("written");
    assert_eq!(world.run(rmdir(ROOT, "v")).map(drop), Err(TreeError::NotEmpty));
    world.run(Command::Hold(Hold { inos: vec![f.0] })).expect("held");
    world.run(unlink(v, "f")).expect("unlinked");
    world.run(rmdir(ROOT, "v")).expect("removed");
    world.reap_all();
    expect![[r#"
        volume 1 [] 1 inodes, 0 bytes
        volume 2 [removed] 1 inodes, 10 bytes
    "#]]
    .assert_eq(&world.told());
    super::snapshot::restore(&records(&world.tree)).expect("a volume without a root");
    world.run(Command::Release(Release { inos: vec![f.0] })).expect("closed");
    world.reap_all();
    let set = SetVolume { volume: 2, settings: settings(1, 1) };
    assert_eq!(world.run(Command::SetVolume(set)).map(drop), Err(TreeError::Stale));
    world.volume(ROOT, "v", None).expect("again");
    expect![[r#"
        volume 1 [] 1 inodes, 0 bytes
        volume 3 [/v] 1 inodes, 0 bytes
    "#]]
    .assert_eq(&world.told());
}

#[test]
fn limits_refuse_what_adds_and_nothing_else() {
    let mut world = World::new();
    let v = world.volume(ROOT, "v", settings(100, 3)).expect("v");
    let f = world.create(v, "f", Kind::Regular).expect("f");
    let full = Err(TreeError::QuotaExceeded);

    // Bytes: only what was a hole counts, whatever a write covers twice.
    world.put(f, &[0], 60).expect("60");
    assert_eq!(world.put(f, &[60], 41).map(drop), full);
    world.put(f, &[30], 60).expect("90");
    world.put(f, &[0, 10, 20], 60).expect("the same places");
    assert_eq!(world.used(f), (2, 90));
    world.put(f, &[90, 90], 10).expect("100");
    world.put(f, &[0], 100).expect("what takes no more room");
    assert_eq!(world.allocate(f, 90, 20, FallocateMode::Allocate).map(drop), full);
    assert_eq!(world.allocate(f, 90, 20, FallocateMode::ZeroRange).map(drop), full);
    world.allocate(f, 0, 100, FallocateMode::ZeroRange).expect("zeros");
    world.allocate(f, 0, 50, FallocateMode::PunchHole).expect("a hole");
    world.allocate(f, 0, 40, FallocateMode::Allocate).expect("90");
    assert_eq!(world.put(f, &[200], 11).map(drop), full);
    world.put(f, &[200], 10).expect("100");
    world.set(SetAttributes { ino: f.0, size: Some(1 << 40), ..Default::default() }).expect("long");
    world.set(SetAttributes { ino: f.0, size: Some(10), ..Default::default() }).expect("short");
    assert_eq!(world.used(f), (2, 10));

    // Inodes.
    world.create(v, "d", Kind::Directory).expect("the third");
    for kind in [Kind::Regular, Kind::Directory, Kind::Symlink, Kind::Fifo] {
        assert_eq!(world.create(v, "x", kind).map(drop), full);
    }
    let unnamed = CreateUnnamed { parent: v.0, ..Default::default() };
    assert_eq!(world.run(Command::CreateUnnamed(unnamed)).map(drop), full);
    world.run(link(f, v, "g")).expect("a name is no inode");
    world.volume(v, "w", None).expect("a volume in it counts for itself");
    // What has no name counts until it is reaped.
    world.run(rmdir(v, "d")).expect("removed");
    assert_eq!(world.create(v, "x", Kind::Regular).map(drop), full);
    world.reap_all();
    world.create(v, "x", Kind::Regular).expect("room again");

    // Limits below what is in use, and none.
    world.adjust(v, VolumeSettings { quota_bytes: Some(5), ..Default::default() }).expect("5");
    world.put(f, &[0], 10).expect("what is there");
    assert_eq!(world.put(f, &[10], 1).map(drop), full);
    assert_eq!(world.create(v, "y", Kind::Regular).map(drop), full, "the other limit stays");
    let none = VolumeSettings { quota_bytes: Some(0), quota_inodes: Some(0), replicas: None };
    world.adjust(v, none).expect("lifted");
    world.put(f, &[10], 1000).expect("written");
    world.create(v, "y", Kind::Regular).expect("made");
}

#[test]
fn the_number_of_replicas_is_that_of_the_volume_or_the_usual_one() {
    let mut world = World::new();
    let one = VolumeSettings { replicas: Some(1), ..Default::default() };
    let first = world.create(ROOT, "first", Kind::Regular).expect("first");
    assert_eq!(world.tree.wanted_replicas(first, 3), 3);
    world.adjust(ROOT, VolumeSettings { replicas: Some(5), ..Default::default() }).expect("5");
    assert_eq!(world.tree.wanted_replicas(first, 3), 5);
    let v = world.volume(ROOT, "v", Some(one)).expect("v");
    let f = world.create(v, "f", Kind::Regular).expect("f");
    let w = world.volume(v, "w", None).expect("w");
    assert_eq!(world.tree.wanted_replicas(f, 3), 1);
    assert_eq!(world.tree.wanted_replicas(first, 3), 5);
    assert_eq!(world.tree.wanted_replicas(w, 3), 3, "nothing is inherited");
    assert_eq!(world.tree.wanted_replicas(Ino(999), 3), 3);

    world.put(f, &[0], 10).expect("written");
    world.put(first, &[0], 10).expect("written");
    let live: BTreeSet<NodeId> = (1..=3).map(NodeId).collect();
    let lacking = |world: &World| {
        let found = world.tree.chunks_lacking(&live, 3, None, 100).found;
        found.iter().map(|lacking| lacking.chunk.volume.0).collect::<Vec<_>>()
    };
    assert_eq!(lacking(&world), [1]);
    world.adjust(v, VolumeSettings { replicas: Some(0), ..Default::default() }).expect("usual");
    assert_eq!(lacking(&world), [2, 1]);
}

#[test]
fn a_tree_from_before_there_were_volumes_is_the_first_one() {
    let mut world = World::new();
    let d = world.create(ROOT, "d", Kind::Directory).expect("d");
    let f = world.create(d, "f", Kind::Regular).expect("f");
    world.put(f, &[0, 500], 100).expect("written");
    let mut old = records(&world.tree);
    old.retain(|record| !matches!(record.record, Some(Record::Volume(_))));
    let before = old.len() as u64 - 1;
    for record in &mut old {
        match &mut record.record {
            Some(Record::Header(header)) => header.next_volume = 0,
            Some(Record::Inode(inode)) => inode.volume = 0,
            Some(Record::Chunks(chunks)) => chunks.chunks.iter_mut().for_each(|c| c.volume = 0),
            Some(Record::End(end)) => end.records = before,
            _ => {}
        }
    }
    let restored = super::snapshot::restore(&old).expect("restored");
    assert_eq!(records(&restored), records(&world.tree));
    let (id, volume) = restored.volume_of(f).expect("a volume");
    assert_eq!((id, volume.used_inodes, volume.used_bytes), (ROOT_VOLUME, 3, 200));
}

#[test]
fn a_snapshot_whose_volumes_make_no_sense_is_refused() {
    let mut world = World::new();
    let v = world.volume(ROOT, "v", settings(100, 9)).expect("v");
    world.create(v, "f", Kind::Regular).expect("f");
    let good = records(&world.tree);
    let restored = super::snapshot::restore(&good).expect("restored");
    assert_eq!(restored.volume_of(v), world.tree.volume_of(v));
    type Damage = fn(&mut Record);
    let damages: [Damage; 5] = [
        |record| {
            if let Record::Inode(inode) = record {
                inode.volume = 3;
            }
        },
        |record| {
            if let Record::Inode(inode) = record {
                inode.volume = 2;
            }
        },
        |record| {
            if let Record::Volume(volume) = record {
                volume.root = 1;
            }
        },
        |record| {
            if let Record::Volume(volume) = record {
                volume.volume = 2;
            }
        },
        |record| {
            if let Record::Header(header) = record {
                header.next_volume = 2;
            }
        },
    ];
    for (at, damage) in damages.iter().enumerate() {
        let mut bad = good.clone();
        bad.iter_mut().filter_map(|record| record.record.as_mut()).for_each(damage);
        assert!(super::snapshot::restore(&bad).is_err(), "damage {at}");
    }
}

/// Two nodes fill one volume under write leases of their own, unheard by each other.
#[test]
fn what_was_promised_is_drained_beyond_the_limit_and_then_nobody_gets_more() {
    let mut world = World::new();
    let v = world.volume(ROOT, "v", settings(100, 100)).expect("v");
    let files = ["a", "b"].map(|name| world.create(v, name, Kind::Regular).expect("made"));
    let mut locals = Vec::new();
    for (node, file) in (1..).map(NodeId).zip(files) {
        world.node = node;
        let acquire = AcquireLease { inos: vec![file.0], below: 0 };
        world.run(Command::AcquireLease(acquire)).expect("leased");
    }
    for (node, file) in (1..).map(NodeId).zip(files) {
        let mut local = Local::resume(&world.tree, node, []).expect("a lease");
        let write = world.writing(file, &[0], 90);
        let (reply, pending) = local.change(world.now, write).expect("covered");
        assert!(outcome(&reply).is_ok() && pending.is_some());
        // Its own view tells each when it is full.
        let write = world.writing(file, &[90], 11);
        let (reply, pending) = local.change(world.now, write).expect("covered");
        assert_eq!((outcome(&reply), pending), (Err(TreeError::QuotaExceeded), None));
        // How much a fallocate takes is not bounded by the log.
        let allocate = |mode| {
            let (mode, length) = (mode as i32, 1);
            Command::Fallocate(Fallocate { ino: file.0, mode, length, ..Fallocate::default() })
        };
        assert!(!local.tree().may_change_unheard(node, &allocate(FallocateMode::Allocate)));
        assert!(local.tree().may_change_unheard(node, &allocate(FallocateMode::PunchHole)));
        // Nor is what a write takes that brings less along.
        let twice = world.writing(file, &[0, 100], 5);
        assert!(!local.tree().may_change_unheard(node, &twice));
        locals.push(local);
    }
    world.tree.record(true);
    for local in &locals {
        world.node = local.node();
        let changes = local.pending().iter().map(Pending::to_proto).collect();
        let drain = Drain { lease: local.lease().0, first: 1, changes };
        let Ok(Outcome::Drained(drained)) = world.run(Command::Drain(drain)) else { panic!() };
        assert_eq!(drained.refused, []);
    }
    let executed = world.tree.take_executed();
    assert_eq!(world.used(v), (3, 180));
    for (local, file) in locals.iter_mut().zip(files) {
        assert!(local.follow(&world.tree, executed.clone()));
        assert_eq!(local.tree().volume_of(v), world.tree.volume_of(v));
        let write = world.writing(file, &[90], 1);
        let (reply, _) = local.change(world.now, write).expect("covered");
        assert_eq!(outcome(&reply), Err(TreeError::QuotaExceeded));
    }
}

#[test]
fn a_rename_across_volumes_is_refused_before_anybody_hears_of_it() {
    let mut world = World::new();
    let v = world.volume(ROOT, "v", None).expect("v");
    let d = world.create(ROOT, "d", Kind::Directory).expect("d");
    let f = world.create(v, "f", Kind::Regular).expect("f");
    let acquire = AcquireLease { inos: vec![v.0, d.0], below: 9 };
    world.run(Command::AcquireLease(acquire)).expect("leased");
    let mut local = Local::resume(&world.tree, world.node, []).expect("a lease");
    for command in [rename((v, "f"), (d, "f"), 0), link(f, d, "f")] {
        let (reply, pending) = local.change(world.now, command.clone()).expect("covered");
        assert_eq!((outcome(&reply), pending), (Err(TreeError::CrossesVolumes), None));
        let change =
            LoggedChange { time_ns: 1, command: Some(command.into()), ..LoggedChange::default() };
        let (lease, state) = world.tree.lease_of(world.node).expect("a lease");
        let drain = Drain { lease: lease.0, first: state.drained + 1, changes: vec![change] };
        let Ok(Outcome::Drained(drained)) = world.run(Command::Drain(drain)) else { panic!() };
        assert_eq!(TreeError::from_code(drained.refused[0].why), TreeError::CrossesVolumes);
    }
    // Neither is a volume made nor set unheard.
    let create = CreateVolume { parent: d.0, name: bytes("x"), ..CreateVolume::default() };
    assert!(!local.tree().may_change_unheard(world.node, &Command::CreateVolume(create)));
    let set = SetVolume { volume: 2, settings: settings(1, 1) };
    assert!(!local.tree().may_change_unheard(world.node, &Command::SetVolume(set)));
}
