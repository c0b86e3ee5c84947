//! Snapshots: there and back, and every way to be refused.

use unum_proto::tree::tree_record::Record;

use super::*;

pub fn restore(records: &[TreeRecord]) -> Result<Tree, SnapshotError> {
    let mut loader = TreeLoader::new();
    for record in records {
        let encoded = encode(record);
        assert!(encoded.len() <= limits::RECORD_SIZE_MAX, "a record of {} bytes", encoded.len());
        let decoded = TreeRecord::decode(encoded.as_slice()).expect("decodes");
        loader.absorb(&decoded)?;
    }
    loader.finish()
}

fn populated() -> World {
    let mut world = World::new();
    let d = world.create(ROOT, "d", Kind::Directory).expect("d");
    for at in 0..600 {
        let name = format!("{at:0>255}");
        world.tree.apply(world.now, world.node, &create(d, &name).into());
    }
    world.create(ROOT, "s", Kind::Symlink).expect("s");
    world.run(unlink(d, &format!("{:0>255}", 5))).expect("unlink");
    let value = Bytes::from(vec![9; limits::XATTR_VALUE_SIZE_MAX]);
    for name in ["user.a", "user.b"] {
        let value = value.slice(name.len()..);
        let set = SetXattr { ino: d.0, name: bytes(name), value, ..SetXattr::default() };
        world.run(Command::SetXattr(set)).expect("xattr");
    }
    world
}

fn create(parent: Ino, name: &str) -> Command {
    let kind = Kind::Regular.to_proto() as i32;
    Command::Create(Create { parent: parent.0, name: bytes(name), kind, ..Create::default() })
}

#[test]
fn a_large_directory_and_attributes_come_back() {
    let world = populated();
    let before = records(&world.tree);
    let after = restore(&before).expect("restored");
    assert_eq!(before, records(&after));
    assert_eq!(after.usage(), world.tree.usage());
}

#[test]
fn a_clone_is_a_snapshot_while_the_tree_goes_on() {
    let mut world = populated();
    let frozen = world.tree.clone();
    let before = records(&frozen);
    world.create(ROOT, "later", Kind::Regular).expect("created");
    world.run(unlink(ROOT, "s")).expect("unlink");
    assert_eq!(records(&frozen), before);
}

#[test]
fn a_cut_or_changed_snapshot_is_refused() {
    let all = records(&populated().tree);
    for keep in 0..all.len() {
        assert!(restore(&all[..keep]).is_err(), "{keep} of {}", all.len());
    }
    for missing in 0..all.len() {
        let mut some = all.clone();
        some.remove(missing);
        assert!(restore(&some).is_err(), "without {:?}", missing);
    }
    let mut foreign = all.clone();
    let Some(Record::Header(header)) = &mut foreign[0].record else { panic!("no header") };
    header.format = 3;
    assert!(matches!(restore(&foreign), Err(SnapshotError::Format(3))));
}

#[test]
fn a_false_link_count_is_refused() {
    let mut all = records(&populated().tree);
    // Behind the header and the first volume.
    let Some(Record::Inode(inode)) = &mut all[2].record else { panic!("no inode") };
    inode.attributes.as_mut().expect("attributes").nlink = 7;
    assert!(matches!(restore(&all), Err(SnapshotError::Inconsistent(_))));
}
