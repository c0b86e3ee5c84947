//! Names: scripts over paths.

use std::fmt::Write as _;

use expect_test::{Expect, expect};

use super::*;

fn split(tree: &Tree, path: &str) -> Result<(Ino, String), TreeError> {
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((resolve(tree, parents)?, name.to_owned()))
}

fn resolve(tree: &Tree, path: &str) -> Result<Ino, TreeError> {
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.into_iter().try_fold(ROOT, |at, part| tree.lookup(at, part.as_bytes()))
}

fn step(world: &mut World, words: &[&str]) -> Result<String, TreeError> {
    let at = |index: usize| words.get(index).copied().unwrap_or("");
    let (parent, name) = split(&world.tree, at(1))?;
    let created = |ino: Ino| format!("{}", ino.0);
    match at(0) {
        "mkdir" => world.create(parent, &name, Kind::Directory).map(created),
        "create" => world.create(parent, &name, Kind::Regular).map(created),
        "fifo" => world.create(parent, &name, Kind::Fifo).map(created),
        "symlink" => world.create(parent, &name, Kind::Symlink).map(created),
        "ln" => {
            let ino = resolve(&world.tree, at(1))?;
            let (parent, name) = split(&world.tree, at(2))?;
            world.run(link(ino, parent, &name)).map(|_| "ok".into())
        }
        "rm" => world.run(unlink(parent, &name)).map(|_| "ok".into()),
        "rmdir" => world.run(rmdir(parent, &name)).map(|_| "ok".into()),
        "mv" | "mv-noreplace" | "mv-exchange" | "mv-whiteout" => {
            let flags = match at(0) {
                "mv-noreplace" => 1,
                "mv-exchange" => 2,
                "mv-whiteout" => 4,
                _ => 0,
            };
            let (to, new_name) = split(&world.tree, at(2))?;
            world.run(rename((parent, &name), (to, &new_name), flags)).map(|_| "ok".into())
        }
        other => panic!("unknown step {other}"),
    }
}

/// Every path with inode, link count and, for a directory, what `..` is.
fn dump(tree: &Tree, at: Ino, path: &str, out: &mut String) {
    for listed in tree.read_directory(at, COOKIE_PARENT).expect("a directory") {
        let path = format!("{path}/{}", String::from_utf8_lossy(&listed.name));
        let attributes = tree.attributes(listed.ino).expect("an inode");
        let _ = write!(out, "{path} {:?} {} n{}", listed.kind, listed.ino.0, attributes.nlink);
        if listed.kind == Kind::Directory {
            let _ = writeln!(out, " ..={}", tree.parent(listed.ino).expect("a parent").0);
            dump(tree, listed.ino, &path, out);
        } else {
            out.push('\n');
        }
    }
}

fn check(script: &str, expected: Expect) {
    let mut world = World::new();
    let mut out = String::new();
    for line in script.split(';').map(str::trim) {
        let words: Vec<&str> = line.split(' ').collect();
        match step(&mut world, &words) {
            Ok(shown) if shown == "ok" || shown.parse::<u64>().is_ok() => {}
            Ok(shown) => {
                let _ = writeln!(out, "{line}: {shown}");
            }
            Err(error) => {
                let _ = writeln!(out, "{line}: {error:?}");
            }
        }
    }
    let _ = writeln!(out, "/ n{}", world.tree.attributes(ROOT).expect("the root").nlink);
    dump(&world.tree, ROOT, "", &mut out);
    expected.assert_eq(&out);
}

#[test]
fn names_come_and_go() {
    check(
        "mkdir a; mkdir a/b; create a/f; create a/f; ln a/f g; ln a h; rm a/f; rm a/f; rm a; \
         rmdir g; rmdir a; symlink s; fifo p; mkdir p/x",
        expect![[r#"
            create a/f: Exists
            ln a h: NotPermitted
            rm a/f: NotFound
            rm a: IsDirectory
            rmdir g: NotDirectory
            rmdir a: NotEmpty
            mkdir p/x: NotDirectory
            / n3
            /a Directory 2 n3 ..=1
            /a/b Directory 3 n2 ..=2
            /g Regular 4 n1
            /s Symlink 5 n1
            /p Fifo 6 n1
        "#]],
    );
}

#[test]
fn names_are_checked() {
    let mut world = World::new();
    for (name, error) in [
        ("", TreeError::Invalid),
        (".", TreeError::Invalid),
        ("..", TreeError::Invalid),
        ("a/b", TreeError::Invalid),
        ("a\0b", TreeError::Invalid),
        (&"x".repeat(256), TreeError::NameTooLong),
    ] {
        assert_eq!(world.create(ROOT, name, Kind::Regular), Err(error), "{name:?}");
    }
    world.create(ROOT, &"x".repeat(255), Kind::Regular).expect("255 bytes are a name");
    assert_eq!(world.create(Ino(99), "a", Kind::Regular), Err(TreeError::Stale));
}

#[test]
fn rename_moves_directories_with_their_links() {
    check(
        "mkdir a; mkdir a/b; mkdir c; mv a/b c/d; mv a a; mv c c/d/e; mv c c/e; mv c/d a",
        expect![[r#"
            mv c c/d/e: CrossesItself
            mv c c/e: CrossesItself
            / n4
            /a Directory 3 n2 ..=1
            /c Directory 4 n2 ..=1
        "#]],
    );
}

#[test]
fn rename_replaces_only_its_like() {
    check(
        "create f; create g; mkdir d; mkdir e; create e/x; mv f d; mv d f; mv d e; mv e d; mv f g; \
         mv d d/x; mv d/x d; mv missing g",
        expect![[r#"
            mv f d: IsDirectory
            mv d f: NotDirectory
            mv d e: NotEmpty
            mv d d/x: CrossesItself
            mv d/x d: NotEmpty
            mv missing g: NotFound
            / n3
            /g Regular 2 n1
            /d Directory 5 n2 ..=1
            /d/x Regular 6 n1
        "#]],
    );
}

#[test]
fn rename_of_one_inode_onto_itself_does_nothing() {
    check(
        "create f; ln f g; mv f g; mv-noreplace f g; mv-exchange f g",
        expect![[r#"
            mv-noreplace f g: Exists
            / n2
            /f Regular 2 n2
            /g Regular 2 n2
        "#]],
    );
}

#[test]
fn rename_flags() {
    check(
        "create f; mkdir d; mkdir d/s; mkdir e; mv-noreplace f d; mv-noreplace f h; \
         mv-exchange h missing; mv-exchange h d/s; mv-exchange d d/s; mv-exchange d/s d; \
         mv-exchange d e; mv-exchange e/s d; mv-whiteout h x",
        expect![[r#"
            mv-noreplace f d: Exists
            mv-exchange h missing: NotFound
            mv-exchange d d/s: CrossesItself
            mv-exchange d/s d: CrossesItself
            mv-whiteout h x: Invalid
            / n4
            /d Regular 2 n1
            /e Directory 3 n3 ..=1
            /e/s Directory 5 n2 ..=3
            /h Directory 4 n2 ..=1
        "#]],
    );
}

#[test]
fn open_or_create_says_which() {
    let mut world = World::new();
    let open = |world: &mut World, name: &str| {
        let create = Create {
            parent: 1,
            name: bytes(name),
            kind: Kind::Regular.to_proto() as i32,
            ..Create::default()
        };
        match world.run(Command::Create(create)) {
            Ok(Outcome::Inode(reply)) => Ok(reply.created),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    };
    world.create(ROOT, "d", Kind::Directory).expect("d");
    assert_eq!(open(&mut world, "f"), Ok(true));
    assert_eq!(open(&mut world, "f"), Ok(false));
    assert_eq!(open(&mut world, "d"), Err(TreeError::IsDirectory));
}

#[test]
fn set_group_id_is_inherited() {
    let mut world = World::new();
    let d = world.create_as(ROOT, "d", Kind::Directory, 0o2775, 5, 50).expect("d");
    let sub = world.create_as(d, "sub", Kind::Directory, 0o755, 6, 60).expect("sub");
    let file = world.create_as(sub, "file", Kind::Regular, 0o644, 6, 60).expect("file");
    let show = |ino| {
        let a = world.tree.attributes(ino).expect("attributes");
        format!("{:o} {}:{}", a.mode, a.uid, a.gid)
    };
    assert_eq!(show(sub), "2755 6:50");
    assert_eq!(show(file), "644 6:50");
}

#[test]
fn link_counts_have_an_end() {
    let mut tree = Tree::new();
    let mut world = World::new();
    let file = world.create(ROOT, "f", Kind::Regular).expect("f");
    std::mem::swap(&mut tree, &mut world.tree);
    for count in 1..limits::LINKS_MAX {
        let reply =
            tree.apply(world.now, world.node, &link(file, ROOT, &format!("l{count}")).into());
        assert!(outcome(&reply).is_ok(), "{count}");
    }
    let reply = tree.apply(world.now, world.node, &link(file, ROOT, "more").into());
    assert_eq!(outcome(&reply), Err(TreeError::TooManyLinks));
    assert_eq!(tree.check(), Vec::<String>::new());
}

#[test]
fn readdir_goes_on_where_it_was_while_names_change() {
    let mut world = World::new();
    for name in ["a", "b", "c", "d"] {
        world.create(ROOT, name, Kind::Regular).expect("created");
    }
    let list = |world: &World, after, max| -> (Vec<String>, u64) {
        let listed: Vec<_> =
            world.tree.read_directory(ROOT, after).expect("root").take(max).collect();
        let names = listed.iter().map(|l| String::from_utf8_lossy(&l.name).into_owned());
        (names.collect(), listed.last().map_or(after, |l| l.cookie))
    };
    let (names, cookie) = list(&world, 0, 4);
    assert_eq!(names, [".", "..", "a", "b"]);
    world.run(unlink(ROOT, "b")).expect("b");
    world.run(unlink(ROOT, "c")).expect("c");
    world.create(ROOT, "c", Kind::Regular).expect("c again");
    world.run(rename((ROOT, "a"), (ROOT, "d"), 0)).expect("replace d");
    let (names, _) = list(&world, cookie, 10);
    assert_eq!(names, ["d", "c"]);
}

#[test]
fn a_removed_directory_takes_no_names() {
    let mut world = World::new();
    let d = world.create(ROOT, "d", Kind::Directory).expect("d");
    let f = world.create(ROOT, "f", Kind::Regular).expect("f");
    world.run(rmdir(ROOT, "d")).expect("rmdir");
    assert_eq!(world.create(d, "x", Kind::Regular), Err(TreeError::NotFound));
    assert_eq!(world.run(link(f, d, "x")), Err(TreeError::NotFound));
    assert_eq!(world.run(rename((ROOT, "f"), (d, "x"), 0)), Err(TreeError::NotFound));
    assert_eq!(world.tree.lookup(d, b".."), Err(TreeError::NotFound));
}

#[test]
fn times_follow_names() {
    let mut world = World::new();
    let d = world.create(ROOT, "d", Kind::Directory).expect("d");
    let f = world.create(d, "f", Kind::Regular).expect("f");
    let times = |world: &World, ino| {
        let a = world.tree.attributes(ino).expect("attributes");
        let secs = |t: Option<unum_proto::tree::Timestamp>| t.expect("time").secs;
        (secs(a.atime), secs(a.mtime), secs(a.ctime), secs(a.btime))
    };
    assert_eq!(times(&world, d), (1001, 1002, 1002, 1001));
    world.run(link(f, ROOT, "g")).expect("link");
    assert_eq!(times(&world, f), (1002, 1002, 1003, 1002));
    assert_eq!(times(&world, d), (1001, 1002, 1002, 1001));
    world.run(unlink(d, "f")).expect("unlink");
    assert_eq!(times(&world, d), (1001, 1004, 1004, 1001));
    assert_eq!(times(&world, f), (1002, 1002, 1004, 1002));
    world.run(rename((ROOT, "g"), (d, "h"), 0)).expect("rename");
    assert_eq!(times(&world, f), (1002, 1002, 1005, 1002));
    assert_eq!(times(&world, ROOT).1, 1005);
}

#[test]
fn what_is_made_in_a_directory_gets_its_class() {
    let class = |world: &World, ino| world.tree.xattr(ino, b"user.unum.class").map(<[u8]>::to_vec);
    let mut world = World::new();
    let d = world.create(ROOT, "d", Kind::Directory).unwrap();
    assert_eq!(class(&world, d), Ok(b"posix".to_vec()));
    let set = |value: &str| {
        let (name, value) = (bytes("user.unum.class"), bytes(value));
        Command::SetXattr(SetXattr { ino: d.0, name, value, ..SetXattr::default() })
    };
    assert_eq!(world.run(set("loose")), Err(TreeError::Invalid));
    world.run(set("strict")).unwrap();
    let below = world.create(d, "below", Kind::Directory).unwrap();
    let file = world.create(below, "file", Kind::Regular).unwrap();
    assert_eq!(class(&world, file), Ok(b"strict".to_vec()));
    assert_eq!(
        world.tree.xattr_names(file).unwrap().count(),
        0,
        "copied files keep their own class"
    );
    let remove = RemoveXattr { ino: file.0, name: bytes("user.unum.class") };
    world.run(Command::RemoveXattr(remove)).unwrap();
    assert_eq!(class(&world, file), Ok(b"posix".to_vec()));
}
