//! Snapshots in the registry's stream, and what a check says of them.

use super::model::see;
use super::*;
use crate::packed::ENTRIES_MAX;

/// What is restored shares as much as what it was written from.
#[test]
fn a_restart_shares_what_did_not_change() {
    let (mut world, volume, v) = furnished();
    let many = world.create(v, "many", Kind::Directory).expect("many");
    for at in 0..600 {
        let name = bytes(&format!("{at:0>255}"));
        let create = Create { parent: many.0, name, kind: 1, ..Create::default() };
        world.tree.apply(world.now, NodeId(1), &Command::Create(create).into());
    }
    let big = world.create(v, "big", Kind::Regular).expect("big");
    for at in 0..1000 {
        let write = world.write_new(big, 20 * at, 10);
        world.tree.apply(world.now, NodeId(1), &write.into());
    }
    world.snapshot(volume, "old").expect("taken");
    world.run(unlink(many, &format!("{:0>255}", 5))).expect("unlinked");
    let write = world.write_new(big, 4000, 30);
    world.run(write).expect("written");
    world.snapshot(volume, "new").expect("taken");
    let g = world.tree.lookup(v, b"g").expect("g");
    world.set(SetAttributes { ino: g.0, mode: Some(0o600), ..Default::default() }).expect("mode");
    world.run(unlink(v, "s")).expect("unlinked");

    let all = records(&world.tree);
    let restored = super::snapshot::restore(&all).expect("restored");
    assert_eq!(records(&restored), all);
    let volumes = |tree: &Tree| {
        let tables: Vec<_> = tree.snapshots_of(volume).map(|(_, s)| s.table.clone()).collect();
        (tables, tree.inodes.table().clone())
    };
    let (tables, live) = volumes(&restored);
    let [old, new] = &tables[..] else { panic!("two") };
    // The volume's root, d, f, s, many, 600 files, big; and the root of the tree. Between the two many, a file of it and
    // big were changed; since then f, s and the volume's root. The file has no name by then, and is in the first only.
    assert_eq!(live.values().filter(|inode| inode.volume == volume).count(), 606);
    assert!(old.len() / ENTRIES_MAX > 100);
    assert_eq!((old.blocks_beyond(new), new.blocks_beyond(&live)), (3, 2));
    // Names and extents were written as differences, too.
    let past = all.iter().skip_while(|record| !matches!(record.record, Some(Record::Past(_))));
    let items: usize = past
        .map(|record| match &record.record {
            Some(Record::Entries(entries)) => entries.entries.len(),
            Some(Record::Extents(extents)) => extents.extents.len(),
            Some(Record::Without(without)) => without.names.len() + without.offsets.len(),
            Some(Record::Inode(_)) => 1,
            _ => 0,
        })
        .sum();
    assert!(items < 20, "{items} items");
    for (_, snapshot) in restored.snapshots_of(volume) {
        assert!(snapshot.table.len() > 600);
        let root = Ino(u64::from(snapshot.slot) << 48 | v.0);
        assert_eq!(see(&restored, root), see(&world.tree, root));
    }
}

#[test]
fn a_stream_whose_snapshots_make_no_sense_is_refused() {
    let (mut world, volume, v) = furnished();
    world.snapshot(volume, "one").expect("taken");
    let f = world.tree.lookup(v, b"g").expect("g");
    let write = world.write_new(f, 0, 10);
    world.run(write).expect("written");
    world.run(unlink(v, "s")).expect("unlinked");
    world.snapshot(volume, "two").expect("taken");
    world.set(SetAttributes { ino: f.0, size: Some(0), ..Default::default() }).expect("emptied");
    let good = records(&world.tree);
    super::snapshot::restore(&good).expect("restored");
    let past = good.iter().position(|record| matches!(record.record, Some(Record::Past(_))));
    for missing in past.expect("differences")..good.len() {
        let mut some = good.clone();
        some.remove(missing);
        let last = some.len() as u64 - 1;
        if let Some(Record::End(end)) = &mut some[last as usize].record {
            end.records = last;
        }
        let empty = |past: &unum_proto::tree::PastRecord| past.gone.is_empty();
        let kept = matches!(&good[missing].record, Some(Record::Past(past)) if !empty(past));
        assert!(super::snapshot::restore(&some).is_err(), "without {missing}, {kept}");
    }
    type Damage = fn(&mut Record);
    let damages: [Damage; 10] = [
        |r| each_chunk(r, |chunk| chunk.dead = 0),
        |r| each_chunk(r, |chunk| chunk.dead = 1),
        |r| each_chunk(r, |chunk| chunk.birth = 2),
        |r| each_chunk(r, |chunk| chunk.birth = 0),
        |r| each_snapshot(r, |snapshot| snapshot.volume = 1),
        |r| each_snapshot(r, |snapshot| snapshot.slot = 7),
        |r| each_snapshot(r, |snapshot| snapshot.name = bytes("x")),
        |r| each_snapshot(r, |snapshot| snapshot.snapshot += 1),
        |r| {
            if let Record::Past(past) = r {
                past.snapshot = 2;
            }
        },
        |r| {
            if let Record::Header(header) = r {
                header.next_snapshot = 2;
            }
        },
    ];
    for (at, damage) in damages.iter().enumerate() {
        let mut bad = good.clone();
        bad.iter_mut().filter_map(|record| record.record.as_mut()).for_each(damage);
        assert!(super::snapshot::restore(&bad).is_err(), "damage {at}");
    }
}

fn each_chunk(record: &mut Record, change: fn(&mut unum_proto::tree::ChunkRecord)) {
    if let Record::Chunks(chunks) = record {
        chunks.chunks.iter_mut().for_each(change);
    }
}

fn each_snapshot(record: &mut Record, change: fn(&mut unum_proto::tree::SnapshotRecord)) {
    if let Record::Snapshot(snapshot) = record {
        change(snapshot);
    }
}

/// What `unum fsck` says of each kind of inconsistency.
#[test]
fn what_is_wrong_with_snapshots_is_told() {
    let (mut world, volume, v) = furnished();
    let taken = world.snapshot(volume, "one").expect("taken");
    let f = world.tree.lookup(v, b"g").expect("g");
    world.set(SetAttributes { ino: f.0, size: Some(100), ..Default::default() }).expect("cut");
    let id = world.tree.snapshots.newest(volume);
    let told = |damage: fn(&mut Tree, SnapshotId, Ino)| {
        let mut tree = world.tree.clone();
        damage(&mut tree, id, f);
        let told: String = tree.check().iter().map(|fault| format!("{fault}\n")).collect();
        told
    };
    assert_eq!(told(|_, _, _| {}), "");
    let lost = told(|tree, _, _| {
        let dead = *tree.dead_chunks().keys().next().expect("one");
        tree.chunks.remove(dead);
    });
    expect![[r#"
        chunk 0000000000000009.2 is kept for snapshot 1, but unknown
        snapshot 1: 10 bytes kept, 0 in chunks
        snapshot 1: inode 4: chunk 0000000000000009.2 is unknown, too short, or not its
    "#]]
    .assert_eq(&lost);
    let leaked = told(|tree, id, _| {
        tree.snapshots.all.get_mut(&id).expect("it").dead = Default::default();
    });
    expect![[r#"
        chunk 0000000000000009.2: 0 bytes live, 0 used
        chunk 0000000000000009.2: kept for None, Some(SnapshotId(1)) is the last to use it
    "#]]
    .assert_eq(&leaked);
    let unlinked = told(|tree, id, f| {
        tree.snapshots.all.get_mut(&id).expect("it").table.remove(&f);
    });
    expect![[r#"
        chunk 0000000000000009.1: born after snapshot 0, should be snapshot 1
        chunk 0000000000000009.2: born after snapshot 0, should be snapshot 1
        chunk 0000000000000009.2: kept for Some(SnapshotId(1)), None is the last to use it
        snapshot 1: a name leads to inode 4, which is missing
    "#]]
    .assert_eq(&unlinked);
    let rootless = told(|tree, id, _| {
        tree.snapshots.all.get_mut(&id).expect("it").table = Default::default();
    });
    expect![[r#"
        snapshot 1: volume 2 has no root in it
        chunk 0000000000000009.1: born after snapshot 0, should be snapshot 1
        chunk 0000000000000009.2: born after snapshot 0, should be snapshot 1
        chunk 0000000000000009.2: kept for Some(SnapshotId(1)), None is the last to use it
        snapshot 1: a name leads to inode 2, which is missing
    "#]]
    .assert_eq(&rootless);
    let strange = told(|tree, id, f| {
        let table = &mut tree.snapshots.all.get_mut(&id).expect("it").table;
        let inode = table.get_mut(&f).expect("f");
        inode.nlink = 7;
    });
    expect![[r#"
        snapshot 1: inode 4: nlink is 7, should be 2
    "#]]
    .assert_eq(&strange);
    assert!(is_past(taken));
}
