//! Files that lose their last name while open.

use unum_proto::tree::{CreateUnnamed, Hold, Reap, Reaped, Release, ReleaseNode};

use super::*;

fn reap(world: &mut World, inos: &[Ino]) -> Vec<u64> {
    let inos = inos.iter().map(|ino| ino.0).collect();
    match world.run(Command::Reap(Reap { inos })) {
        Ok(Outcome::Reaped(Reaped { inos })) => inos,
        other => panic!("{other:?}"),
    }
}

fn wait(world: &mut World) {
    world.now = world.now.after(limits::ORPHAN_GRACE);
}

#[test]
fn an_orphan_lives_through_grace_and_holders() {
    let mut world = World::new();
    let f = world.create(ROOT, "f", Kind::Regular).expect("f");
    wait(&mut world);
    assert_eq!(reap(&mut world, &[f]), [0; 0], "it has a name");
    world.run(unlink(ROOT, "f")).expect("unlink");
    assert_eq!(world.tree.orphans_after(None).collect::<Vec<_>>(), [(0, f)]);
    assert_eq!(reap(&mut world, &[f]), [0; 0], "within grace");
    world.run(Command::Hold(Hold { inos: vec![f.0] })).expect("hold");
    wait(&mut world);
    assert_eq!(world.tree.reapable(world.now, 10), []);
    assert_eq!(reap(&mut world, &[f]), [0; 0], "held");
    assert_eq!(world.tree.attributes(f).expect("still there").nlink, 0);
    world.run(Command::Release(Release { inos: vec![f.0] })).expect("release");
    assert_eq!(world.tree.reapable(world.now, 10), [f]);
    assert_eq!(reap(&mut world, &[f]), [f.0]);
    assert_eq!(world.tree.attributes(f), Err(TreeError::Stale));
    let hold = world.run(Command::Hold(Hold { inos: vec![f.0] }));
    assert_eq!(hold, Err(TreeError::Stale));
    assert_ne!(world.create(ROOT, "g", Kind::Regular), Ok(f), "numbers are not used again");
}

#[test]
fn a_dead_node_holds_nothing() {
    let mut world = World::new();
    let f = world.create(ROOT, "f", Kind::Regular).expect("f");
    for node in [1, 2] {
        world.node = NodeId(node);
        world.run(Command::Hold(Hold { inos: vec![f.0] })).expect("hold");
    }
    world.run(unlink(ROOT, "f")).expect("unlink");
    wait(&mut world);
    world.run(Command::ReleaseNode(ReleaseNode { node: 1 })).expect("release");
    assert_eq!(world.tree.holders(f), [NodeId(2)]);
    assert_eq!(reap(&mut world, &[f]), [0; 0]);
    world.run(Command::ReleaseNode(ReleaseNode { node: 2 })).expect("release");
    assert_eq!(reap(&mut world, &[f]), [f.0]);
}

#[test]
fn an_unnamed_file_may_get_one_name() {
    let mut world = World::new();
    let unnamed = |linkable| {
        Command::CreateUnnamed(CreateUnnamed {
            parent: 1,
            mode: 0o600,
            linkable,
            ..CreateUnnamed::default()
        })
    };
    let f = inode_of(&world.run(unnamed(true)).expect("created"));
    let g = inode_of(&world.run(unnamed(false)).expect("created"));
    assert_eq!(world.tree.holders(f), [NodeId(1)]);
    assert!(world.run(link(f, ROOT, "f")).is_ok());
    assert!(!world.tree.is_orphan(f));
    assert_eq!(world.run(link(g, ROOT, "g")), Err(TreeError::NotFound));
    world.run(unlink(ROOT, "f")).expect("unlink");
    assert_eq!(world.run(link(f, ROOT, "f")), Err(TreeError::NotFound));
}

#[test]
fn what_was_replaced_or_removed_is_an_orphan() {
    let mut world = World::new();
    let f = world.create(ROOT, "f", Kind::Regular).expect("f");
    let d = world.create(ROOT, "d", Kind::Directory).expect("d");
    world.create(ROOT, "g", Kind::Regular).expect("g");
    world.run(rename((ROOT, "g"), (ROOT, "f"), 0)).expect("rename");
    world.run(rmdir(ROOT, "d")).expect("rmdir");
    let orphans: Vec<Ino> = world.tree.orphans_after(None).map(|(_, ino)| ino).collect();
    assert_eq!(orphans, [f, d]);
    wait(&mut world);
    assert_eq!(reap(&mut world, &[f, d, Ino(99), ROOT]), [f.0, d.0]);
    assert_eq!(world.tree.usage().inodes, 2);
}
