//! Access control lists, in the short form of getfacl: `u::rwx u:7:r-- g::r-x m::r-x o::---`.

use expect_test::{Expect, expect};
use proptest::prelude::*;
use unum_proto::tree::CreateUnnamed;

use super::super::acl::Acl;
use super::*;

const TAGS: [(&str, u16); 6] =
    [("u:", 0x01), ("u", 0x02), ("g:", 0x04), ("g", 0x08), ("m:", 0x10), ("o:", 0x20)];

fn value(text: &str) -> Bytes {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for entry in text.split_whitespace() {
        let [letter, id, allowed] = entry.split(':').collect::<Vec<_>>()[..] else {
            panic!("{entry}")
        };
        let named = !id.is_empty();
        let tag = if named { letter.to_owned() } else { format!("{letter}:") };
        let tag = TAGS.iter().find(|(name, _)| *name == tag).expect("a tag").1;
        let bits =
            allowed.bytes().fold(0_u16, |bits, letter| bits << 1 | u16::from(letter != b'-'));
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.parse::<u32>().unwrap_or(u32::MAX).to_le_bytes());
    }
    value.into()
}

fn shown(value: &[u8]) -> String {
    let entry = |raw: &[u8; 8]| {
        let tag = u16::from_le_bytes([raw[0], raw[1]]);
        let tag = TAGS.iter().find(|(_, number)| *number == tag).expect("a tag").0;
        let id = u32::from_le_bytes(raw[4..].try_into().expect("four bytes"));
        let id = if tag.len() == 1 { format!(":{id}") } else { String::new() };
        let bits = ["r", "w", "x"].iter().enumerate();
        let bits: String =
            bits.map(|(at, letter)| if raw[2] & 4 >> at != 0 { letter } else { "-" }).collect();
        format!("{tag}{id}:{bits}")
    };
    value[4..].as_chunks().0.iter().map(entry).collect::<Vec<_>>().join(" ")
}

struct Acls {
    world: World,
}

impl Acls {
    fn new() -> Self {
        Self { world: World::new() }
    }

    fn set(&mut self, ino: Ino, name: &[u8], text: &str) -> Result<(), TreeError> {
        let name = Bytes::copy_from_slice(name);
        let set = SetXattr { ino: ino.0, name, value: value(text), ..SetXattr::default() };
        self.world.run(Command::SetXattr(set)).map(drop)
    }

    fn make(&mut self, parent: Ino, name: &str, kind: Kind, mode: u32, umask: u32) -> Ino {
        let create = Create {
            parent: parent.0,
            name: bytes(name),
            kind: kind.to_proto() as i32,
            mode,
            umask,
            target: if kind == Kind::Symlink { bytes("target") } else { Bytes::new() },
            ..Create::default()
        };
        inode_of(&self.world.run(Command::Create(create)).expect("made"))
    }

    fn chmod(&mut self, ino: Ino, mode: u32) {
        let set = SetAttributes { ino: ino.0, mode: Some(mode), ..SetAttributes::default() };
        self.world.set(set).expect("changed");
    }

    fn show(&self, ino: Ino) -> String {
        let mode = self.world.tree.attributes(ino).expect("attributes").mode;
        let list = |name: &[u8]| match self.world.tree.xattr(ino, name) {
            Ok(value) => shown(value),
            Err(_) => "-".to_owned(),
        };
        format!("{mode:o} | {} | {}", list(ACL_ACCESS), list(ACL_DEFAULT))
    }

    fn check(&self, ino: Ino, expected: Expect) {
        expected.assert_eq(&self.show(ino));
    }
}

#[test]
fn an_access_list_and_the_mode_go_together() {
    let mut acls = Acls::new();
    let f = acls.make(ROOT, "f", Kind::Regular, 0o6644, 0o22);
    acls.check(f, expect!["6644 | - | -"]);
    acls.set(f, ACL_ACCESS, "u::rwx u:7:rw- g::r-- m::rw- o::---").expect("set");
    acls.check(f, expect!["6760 | u::rwx u:7:rw- g::r-- m::rw- o::--- | -"]);
    // chmod changes the mask, not what the owning group has.
    acls.chmod(f, 0o640);
    acls.check(f, expect!["640 | u::rw- u:7:rw- g::r-- m::r-- o::--- | -"]);
    acls.chmod(f, 0o777);
    acls.check(f, expect!["777 | u::rwx u:7:rw- g::r-- m::rwx o::rwx | -"]);
    // A mask without names is kept, too.
    acls.set(f, ACL_ACCESS, "u::rw- g::r-x m::r-- o::---").expect("set");
    acls.check(f, expect!["640 | u::rw- g::r-x m::r-- o::--- | -"]);
    // What the mode can say is the mode.
    acls.set(f, ACL_ACCESS, "u::rw- g::r-x o::--x").expect("set");
    acls.check(f, expect!["651 | - | -"]);
    acls.set(f, ACL_ACCESS, "u::rwx g::r-- g:8:-w- m::rwx o::---").expect("set");
    let remove = |name: &[u8]| {
        Command::RemoveXattr(RemoveXattr { ino: f.0, name: Bytes::copy_from_slice(name) })
    };
    acls.world.run(remove(ACL_ACCESS)).expect("removed");
    acls.check(f, expect!["770 | - | -"]);
    assert_eq!(acls.world.run(remove(ACL_ACCESS)), Err(TreeError::NoAttribute));
}

#[test]
fn who_is_not_in_the_group_loses_setgid_with_an_access_list() {
    let mut acls = Acls::new();
    let f = acls.make(ROOT, "f", Kind::Regular, 0o6755, 0);
    let mut set = |name: &[u8], kill_setgid| {
        let (ino, value) = (f.0, value("u::rwx u:7:rw- g::r-x m::r-x o::---"));
        let name = Bytes::copy_from_slice(name);
        let set = SetXattr { ino, name, value, mode: 0, kill_setgid };
        let done = acls.world.run(Command::SetXattr(set)).map(drop);
        (done, format!("{:o}", acls.world.tree.attributes(f).expect("attributes").mode))
    };
    assert_eq!(set(ACL_ACCESS, false), (Ok(()), "6750".into()));
    assert_eq!(set(b"user.x", true), (Ok(()), "6750".into()));
    assert_eq!(set(ACL_ACCESS, true), (Ok(()), "4750".into()));
}

#[test]
fn a_default_list_goes_before_the_umask() {
    let mut acls = Acls::new();
    let d = acls.make(ROOT, "d", Kind::Directory, 0o755, 0);
    acls.set(d, ACL_DEFAULT, "u::rwx u:7:rwx g::r-x m::rwx o::---").expect("set");
    acls.check(d, expect!["755 | - | u::rwx u:7:rwx g::r-x m::rwx o::---"]);
    let f = acls.make(d, "f", Kind::Regular, 0o666, 0o77);
    acls.check(f, expect!["660 | u::rw- u:7:rwx g::r-x m::rw- o::--- | -"]);
    let e = acls.make(d, "e", Kind::Directory, 0o1777, 0o77);
    acls.check(
        e,
        expect!["1770 | u::rwx u:7:rwx g::r-x m::rwx o::--- | u::rwx u:7:rwx g::r-x m::rwx o::---"],
    );
    let g = acls.make(e, "g", Kind::Fifo, 0o604, 0);
    acls.check(g, expect!["600 | u::rw- u:7:rwx g::r-x m::--- o::--- | -"]);
    let s = acls.make(e, "s", Kind::Symlink, 0o777, 0o77);
    acls.check(s, expect!["777 | - | -"]);
    let unnamed = CreateUnnamed { parent: e.0, mode: 0o640, umask: 0o77, ..Default::default() };
    let unnamed = acls.world.run(Command::CreateUnnamed(unnamed)).expect("made");
    acls.check(inode_of(&unnamed), expect!["640 | u::rw- u:7:rwx g::r-x m::r-- o::--- | -"]);
    // One that a mode can say leaves no list behind, but goes on to directories.
    acls.set(d, ACL_DEFAULT, "u::rwx g::r-x o::--x").expect("set");
    let h = acls.make(d, "h", Kind::Regular, 0o666, 0o77);
    acls.check(h, expect!["640 | - | -"]);
    let i = acls.make(d, "i", Kind::Directory, 0o777, 0o77);
    acls.check(i, expect!["751 | - | u::rwx g::r-x o::--x"]);
    // Without one there is the umask.
    let j = acls.make(ROOT, "j", Kind::Regular, 0o4666, 0o7027);
    acls.check(j, expect!["4640 | - | -"]);
    // With set-group-ID both are passed on.
    acls.chmod(e, 0o2770);
    let k = acls.make(e, "k", Kind::Directory, 0o755, 0o22);
    acls.check(
        k,
        expect!["2750 | u::rwx u:7:rwx g::r-x m::r-x o::--- | u::rwx u:7:rwx g::r-x m::rwx o::---"],
    );
}

#[test]
fn lists_are_where_they_belong() {
    let mut acls = Acls::new();
    let basic = "u::rw- g::r-- o::---";
    let f = acls.make(ROOT, "f", Kind::Regular, 0o644, 0);
    let s = acls.make(ROOT, "s", Kind::Symlink, 0o777, 0);
    let p = acls.make(ROOT, "p", Kind::Socket, 0o644, 0);
    assert_eq!(acls.set(f, ACL_DEFAULT, basic), Err(TreeError::Invalid));
    assert_eq!(acls.set(s, ACL_ACCESS, basic), Err(TreeError::Unsupported));
    assert_eq!(acls.set(s, ACL_DEFAULT, basic), Err(TreeError::Unsupported));
    assert_eq!(acls.set(p, ACL_ACCESS, "u::rw- u:3:r-- g::r-- m::r-- o::---"), Ok(()));
    assert_eq!(acls.set(Ino(99), ACL_ACCESS, basic), Err(TreeError::Stale));
    let names = acls.world.tree.xattr_names(p).expect("names");
    assert_eq!(names.collect::<Vec<_>>(), [ACL_ACCESS]);
}

#[test]
fn malformed_lists_are_refused() {
    let good = [
        "u::--- g::--- o::---",
        "u::rwx g::rwx m::--- o::rwx",
        "u::r-- u:0:r-- g::r-- m::r-- o::---",
        "u::r-- u:9:r-- u:4:rwx u:9:--- g::r-- g:5:r-- g:5:-w- m::r-- o::---",
    ];
    for text in good {
        let list = Acl::parse(&value(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(shown(&list.encode()), text);
    }
    let bad = [
        "",
        "u::r--",
        "g::r-- u::r-- o::---",
        "u::r-- g::r--",
        "u::r-- o::---",
        "u::r-- g::r-- o::--- o::---",
        "u::r-- u::r-- g::r-- o::---",
        "u::r-- g::r-- g::r-- o::---",
        "u::r-- u:7:r-- g::r-- o::---",
        "u::r-- g::r-- g:7:r-- o::---",
        "u::r-- g::r-- g:7:r-- m::r-- m::r-- o::---",
        "u::r-- g::r-- u:7:r-- m::r-- o::---",
        "u::r-- u:4294967295:r-- g::r-- m::r-- o::---",
        "u::r-- g::r-- g:4294967295:r-- m::r-- o::---",
    ];
    for text in bad {
        assert_eq!(Acl::parse(&value(text)), Err(TreeError::Invalid), "{text}");
    }
    let mut raw = value(good[0]).to_vec();
    for (at, byte) in [(0, 1), (0, 3), (1, 1), (4, 3), (4, 0x40), (5, 1), (6, 8), (7, 1)] {
        let old = std::mem::replace(&mut raw[at], byte);
        assert_eq!(Acl::parse(&raw), Err(TreeError::Invalid), "byte {at} is {byte}");
        raw[at] = old;
    }
    for length in 0..raw.len() {
        assert_eq!(Acl::parse(&raw[..length]), Err(TreeError::Invalid));
    }
    let users: String = (0..limits::ACL_ENTRIES_MAX).map(|id| format!("u:{id}:r-- ")).collect();
    let many = |left: usize| format!("u::r-- {}g::r-- m::r-- o::---", &users[..left]);
    let fits = users.find("u:507:").expect("the last that fits");
    assert!(Acl::parse(&value(&many(fits))).is_ok());
    let too_many = users.find("u:508:").expect("one more");
    assert_eq!(Acl::parse(&value(&many(too_many))), Err(TreeError::AttributeTooBig));
}

proptest! {
    #![proptest_config(property(5_000))]

    #[test]
    fn no_bytes_harm_the_parser(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(list) = Acl::parse(&raw) {
            prop_assert_eq!(Acl::parse(&list.encode()), Ok(list));
        }
    }
}
