//! Content: extents against plain bytes.

use std::collections::HashMap;

use expect_test::{Expect, expect};
use proptest::collection::vec;
use proptest::prelude::*;
use unum_proto::tree::{FallocateMode, NewTime, Timestamp};

use super::*;

/// One file, the bytes of its chunks, and what a plain file would have.
struct File {
    world: World,
    ino: Ino,
    chunks: HashMap<ChunkId, Vec<u8>>,
    plain: Vec<u8>,
    next_byte: u8,
}

impl File {
    fn new() -> Self {
        let mut world = World::new();
        let ino = world.create(ROOT, "f", Kind::Regular).expect("f");
        Self { world, ino, chunks: HashMap::new(), plain: Vec::new(), next_byte: 1 }
    }

    /// A chunk of `length` fresh bytes.
    fn chunk(&mut self, length: usize) -> (NewChunk, Vec<u8>) {
        let bytes: Vec<u8> = (0..length).map(|_| self.fresh_byte()).collect();
        let id = ChunkId { lane: 7, seq: self.world.next_chunk };
        self.world.next_chunk += 1;
        self.chunks.insert(id, bytes.clone());
        let chunk = NewChunk {
            id: Some(id.into()),
            length: length as u32,
            hash: Bytes::from_static(&[3; 32]),
            replicas: vec![1, 2, 3],
        };
        (chunk, bytes)
    }

    fn fresh_byte(&mut self) -> u8 {
        self.next_byte = self.next_byte % 250 + 1;
        self.next_byte
    }

    fn write(&mut self, offset: usize, length: usize, append: bool) -> Result<u64, TreeError> {
        let (chunk, bytes) = self.chunk(length);
        let extent = extent(offset as u64, length as u64, chunk.id, 0);
        let write = Write {
            ino: self.ino.0,
            extents: vec![extent],
            chunks: vec![chunk],
            append,
            ..Write::default()
        };
        let Outcome::Written(written) = self.world.run(Command::Write(write))? else {
            panic!("not written");
        };
        let at = offset + written.base as usize;
        self.plain.resize(self.plain.len().max(at + length), 0);
        self.plain[at..at + length].copy_from_slice(&bytes);
        Ok(written.base)
    }

    fn truncate(&mut self, size: usize) {
        let set =
            SetAttributes { ino: self.ino.0, size: Some(size as u64), ..SetAttributes::default() };
        self.world.set(set).expect("truncated");
        self.plain.resize(size, 0);
    }

    fn fallocate(&mut self, mode: FallocateMode, offset: usize, length: usize, keep_size: bool) {
        let command = Fallocate {
            ino: self.ino.0,
            mode: mode as i32,
            offset: offset as u64,
            length: length as u64,
            keep_size,
            kill_privileges: false,
        };
        self.world.run(Command::Fallocate(command)).expect("allocated");
        let end = offset + length;
        if !keep_size && mode != FallocateMode::PunchHole {
            self.plain.resize(self.plain.len().max(end), 0);
        }
        if mode != FallocateMode::Allocate {
            let end = end.min(self.plain.len());
            self.plain[offset.min(end)..end].fill(0);
        }
    }

    /// The whole content in one new chunk, as a writer does with a ragged file.
    fn lay_out_anew(&mut self) {
        if self.plain.is_empty() {
            return;
        }
        let (mut chunk, _) = self.chunk(self.plain.len());
        let id = chunk.id.expect("an id").into();
        self.chunks.insert(id, self.plain.clone());
        chunk.length = self.plain.len() as u32;
        let before = self.world.tree.attributes(self.ino).expect("attributes");
        let write = Write {
            ino: self.ino.0,
            extents: vec![extent(0, self.plain.len() as u64, chunk.id, 0)],
            chunks: vec![chunk],
            if_version: Some(before.version),
            relayout: true,
            ..Write::default()
        };
        self.world.run(Command::Write(write)).expect("laid out");
        let after = self.world.tree.attributes(self.ino).expect("attributes");
        assert_eq!((before.mtime, before.ctime), (after.mtime, after.ctime));
        assert_eq!(self.world.tree.usage().chunks, 1);
    }

    fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let size = self.world.tree.attributes(self.ino).expect("attributes").size;
        let end = (offset + length).min(size);
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        for extent in self.world.tree.extents(self.ino, offset, length).expect("extents") {
            let Some(source) = extent.source else { continue };
            let from = &self.chunks[&source.chunk][source.offset as usize..];
            let at = (extent.offset - offset) as usize;
            let length = extent.length as usize;
            bytes[at..at + length].copy_from_slice(&from[..length]);
        }
        bytes
    }

    fn show(&self) -> String {
        let mut out = String::new();
        let attributes = self.world.tree.attributes(self.ino).expect("attributes");
        for extent in self.world.tree.extents(self.ino, 0, u64::MAX).expect("extents") {
            let source = extent.source.map_or("zeros".to_owned(), |source| {
                format!("chunk {} at {}", source.chunk.seq, source.offset)
            });
            out += &format!("{}..{} {source}\n", extent.offset, extent.end());
        }
        let chunks = self.world.tree.chunks_after(None);
        let live: Vec<String> = chunks.map(|(id, c)| format!("{}:{}", id.seq, c.live)).collect();
        let allocated = self.world.tree.usage().allocated;
        out + &format!("size {}, {allocated} bytes, live {}\n", attributes.size, live.join(" "))
    }

    fn check(&self, expected: Expect) {
        expected.assert_eq(&self.show());
    }
}

fn extent(
    offset: u64,
    length: u64,
    chunk: Option<unum_proto::tree::ChunkKey>,
    chunk_offset: u32,
) -> unum_proto::tree::Extent {
    unum_proto::tree::Extent { offset, length, chunk, chunk_offset }
}

#[test]
fn writes_split_what_they_cover() {
    let mut file = File::new();
    file.write(0, 100, false).expect("written");
    file.write(40, 20, false).expect("written");
    file.write(200, 10, false).expect("written");
    file.check(expect![[r#"
        0..40 chunk 1 at 0
        40..60 chunk 2 at 0
        60..100 chunk 1 at 60
        200..210 chunk 3 at 0
        size 210, 110 bytes, live 1:80 2:20 3:10
    "#]]);
    file.write(0, 100, false).expect("written");
    file.truncate(205);
    file.truncate(300);
    file.check(expect![[r#"
        0..100 chunk 4 at 0
        200..205 chunk 3 at 0
        size 300, 105 bytes, live 3:5 4:100
    "#]]);
    file.truncate(0);
    file.check(expect![[r#"
        size 0, 0 bytes, live 
    "#]]);
}

#[test]
fn appends_go_to_the_end_as_it_is_at_apply() {
    let mut file = File::new();
    assert_eq!(file.write(0, 10, true), Ok(0));
    assert_eq!(file.write(0, 10, true), Ok(10));
    file.truncate(15);
    assert_eq!(file.write(0, 10, true), Ok(15));
    assert_eq!(file.read(0, 100), file.plain);
}

#[test]
fn fallocate_allocates_punches_and_zeroes() {
    let mut file = File::new();
    file.write(10, 20, false).expect("written");
    file.fallocate(FallocateMode::Allocate, 0, 40, true);
    file.fallocate(FallocateMode::PunchHole, 15, 5, true);
    file.fallocate(FallocateMode::ZeroRange, 25, 35, false);
    file.check(expect![[r#"
        0..10 zeros
        10..15 chunk 1 at 0
        20..25 chunk 1 at 10
        25..60 zeros
        size 60, 55 bytes, live 1:10
    "#]]);
    assert_eq!(file.read(0, 60), file.plain);
}

#[test]
fn seek_finds_data_and_holes() {
    let mut file = File::new();
    file.write(10, 10, false).expect("written");
    file.write(20, 10, false).expect("written");
    file.fallocate(FallocateMode::Allocate, 40, 10, false);
    file.truncate(60);
    let seek = |at, what| file.world.tree.seek(file.ino, at, what);
    assert_eq!(seek(0, Seek::Data), Ok(10));
    assert_eq!(seek(15, Seek::Data), Ok(15));
    assert_eq!(seek(15, Seek::Hole), Ok(30));
    assert_eq!(seek(0, Seek::Hole), Ok(0));
    assert_eq!(seek(30, Seek::Data), Err(TreeError::BeyondEnd));
    assert_eq!(seek(45, Seek::Hole), Ok(45));
    assert_eq!(seek(60, Seek::Hole), Err(TreeError::BeyondEnd));
}

#[test]
fn writes_are_checked() {
    let mut file = File::new();
    file.write(0, 10, false).expect("written");
    let other = file.world.create(ROOT, "other", Kind::Regular).expect("other");
    let (chunk, _) = file.chunk(10);
    let base = Write { ino: file.ino.0, ..Write::default() };
    let known = Some(ChunkId { lane: 7, seq: 1 }.into());
    let id = chunk.id;
    let with = |extent, chunk: &NewChunk| Write {
        extents: vec![extent],
        chunks: vec![chunk.clone()],
        ..base.clone()
    };
    let wrong_hash = NewChunk { hash: Bytes::from_static(b"short"), ..chunk.clone() };
    let no_replica = NewChunk { replicas: vec![], ..chunk.clone() };
    let twice = NewChunk { replicas: vec![2, 2], ..chunk.clone() };
    let cases = [
        (with(extent(0, 0, id, 0), &chunk), TreeError::Invalid),
        (with(extent(0, 11, id, 0), &chunk), TreeError::Invalid),
        (with(extent(0, 10, id, 1), &chunk), TreeError::Invalid),
        (with(extent(0, 10, id, u32::MAX), &chunk), TreeError::Invalid),
        (with(extent(0, 10, None, 0), &chunk), TreeError::Invalid),
        (with(extent(u64::MAX, 10, id, 0), &chunk), TreeError::FileTooBig),
        (with(extent(limits::FILE_SIZE_MAX - 9, 10, id, 0), &chunk), TreeError::FileTooBig),
        (with(extent(0, 10, id, 0), &wrong_hash), TreeError::Invalid),
        (with(extent(0, 10, id, 0), &no_replica), TreeError::Invalid),
        (with(extent(0, 10, id, 0), &twice), TreeError::Invalid),
        (Write { extents: vec![extent(0, 10, id, 0)], ..base.clone() }, TreeError::Stale),
        (
            Write { ino: other.0, extents: vec![extent(0, 1, known, 0)], ..base.clone() },
            TreeError::Invalid,
        ),
        (Write { if_version: Some(1), ..base.clone() }, TreeError::Stale),
        (Write { relayout: true, ..base.clone() }, TreeError::Invalid),
        (Write { ino: 1, ..base.clone() }, TreeError::IsDirectory),
        (Write { ino: 99, ..base.clone() }, TreeError::Stale),
    ];
    for (write, error) in cases {
        let shown = format!("{write:?}");
        assert_eq!(file.world.run(Command::Write(write)), Err(error), "{shown}");
    }
}

#[test]
fn a_chunk_that_is_taken_up_again_in_the_same_write_stays() {
    let mut file = File::new();
    file.write(0, 10, false).expect("written");
    let (cover, _) = file.chunk(10);
    let known = Some(ChunkId { lane: 7, seq: 1 }.into());
    let write = Write {
        ino: file.ino.0,
        extents: vec![extent(0, 10, cover.id, 0), extent(10, 10, known, 0)],
        chunks: vec![cover],
        ..Write::default()
    };
    file.world.run(Command::Write(write)).expect("written");
    file.check(expect![[r#"
        0..10 chunk 2 at 0
        10..20 chunk 1 at 0
        size 20, 20 bytes, live 1:10 2:10
    "#]]);
}

#[test]
fn mtime_grows_with_content_even_if_the_clock_or_a_user_sets_it_back() {
    let mut file = File::new();
    let mtime = |file: &File| {
        let a = file.world.tree.attributes(file.ino).expect("attributes");
        (a.mtime.expect("mtime"), a.content_time)
    };
    file.write(0, 1, false).expect("written");
    let first = mtime(&file);
    file.world.now = Time::from_secs(10);
    file.write(0, 1, false).expect("written");
    let second = mtime(&file);
    assert!(second > first, "{second:?} {first:?}");
    let back = NewTime { value: Some(Timestamp { secs: -5, nanos: 1 }) };
    let set = SetAttributes { ino: file.ino.0, mtime: Some(back), ..SetAttributes::default() };
    assert_eq!(file.world.set(set).expect("set").mtime, back.value);
    file.write(0, 1, false).expect("written");
    let third = mtime(&file);
    assert!(third > second, "{third:?} {second:?}");
}

#[test]
fn privileges_end_with_writes_and_new_owners() {
    let mut file = File::new();
    let ino = file.ino.0;
    let set = |file: &mut File, set| file.world.set(set).map(|a| format!("{:o}", a.mode));
    let mode = SetAttributes { ino, mode: Some(0o6755), ..SetAttributes::default() };
    let kill = SetAttributes { ino, kill_privileges: true, size: Some(1), ..Default::default() };
    let owner = SetAttributes { ino, uid: Some(5), ..SetAttributes::default() };
    let locking = SetAttributes { ino, mode: Some(0o6745), ..SetAttributes::default() };
    assert_eq!(set(&mut file, mode.clone()), Ok("6755".into()));
    assert_eq!(set(&mut file, kill.clone()), Ok("755".into()));
    assert_eq!(set(&mut file, mode), Ok("6755".into()));
    assert_eq!(set(&mut file, owner), Ok("755".into()));
    assert_eq!(set(&mut file, locking), Ok("6745".into()));
    assert_eq!(set(&mut file, kill), Ok("2745".into()));
}

#[test]
fn extended_attributes() {
    let mut world = World::new();
    let set = |world: &mut World, name: &str, value: &str, mode| {
        let (name, value) = (bytes(name), bytes(value));
        let command = SetXattr { ino: 1, name, value, mode, kill_setgid: false };
        world.run(Command::SetXattr(command)).map(|_| ())
    };
    assert_eq!(set(&mut world, "user.a", "1", 2), Err(TreeError::NoAttribute));
    assert_eq!(set(&mut world, "user.a", "1", 1), Ok(()));
    assert_eq!(set(&mut world, "user.a", "1", 1), Err(TreeError::Exists));
    assert_eq!(set(&mut world, "user.a", "2", 2), Ok(()));
    assert_eq!(set(&mut world, "user.a", "2", 9), Err(TreeError::Invalid));
    assert_eq!(set(&mut world, "", "2", 0), Err(TreeError::Invalid));
    assert_eq!(set(&mut world, "system.other", "", 0), Err(TreeError::Unsupported));
    let large = "x".repeat(limits::XATTR_VALUE_SIZE_MAX);
    assert_eq!(set(&mut world, "user.b", &large, 0), Ok(()));
    assert_eq!(set(&mut world, "user.c", &large, 0), Err(TreeError::AttributeTooBig));
    assert_eq!(set(&mut world, "user.b", &(large + "x"), 0), Err(TreeError::AttributeTooBig));
    assert_eq!(world.tree.xattr(ROOT, b"user.a"), Ok(&b"2"[..]));
    assert_eq!(world.tree.xattr_names(ROOT).expect("names").count(), 2);
    let remove = |name| Command::RemoveXattr(RemoveXattr { ino: 1, name: bytes(name) });
    assert!(world.run(remove("user.a")).is_ok());
    assert_eq!(world.run(remove("user.a")), Err(TreeError::NoAttribute));
}

#[test]
fn replicas_change_only_from_what_is_expected() {
    let mut file = File::new();
    file.write(0, 10, false).expect("written");
    let id = ChunkId { lane: 7, seq: 1 };
    let mut set = |expected: &[u64], replicas: &[u64]| {
        let command = unum_proto::tree::SetReplicas {
            chunk: Some(id.into()),
            expected: expected.to_vec(),
            replicas: replicas.to_vec(),
        };
        file.world.run(Command::SetReplicas(command)).map(|_| ())
    };
    assert_eq!(set(&[1, 2], &[4]), Err(TreeError::Stale));
    assert_eq!(set(&[1, 2, 3], &[]), Err(TreeError::Invalid));
    assert_eq!(set(&[3, 1, 2], &[1, 4]), Ok(()));
    let live = [NodeId(1), NodeId(2), NodeId(4)].into();
    let lacking = file.world.tree.chunks_lacking(&live, 3, None, 10);
    assert_eq!(lacking.found[0].live, [NodeId(1), NodeId(4)]);
    assert_eq!(lacking.next, None);
    assert_eq!(file.world.tree.chunks_on(NodeId(2), None, 10).found, []);
    let two = [NodeId(1), NodeId(4)].into();
    assert_eq!(file.world.tree.chunks_lacking(&two, 3, None, 10).found, []);
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize, bool),
    Truncate(usize),
    Fallocate(u8, usize, usize, bool),
    LayOut,
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..160_usize;
    let length = || 1..60_usize;
    prop_oneof![
        4 => (at(), length(), any::<bool>()).prop_map(|(a, l, p)| Op::Write(a, l, p && a < 5)),
        1 => at().prop_map(Op::Truncate),
        3 => (0..3_u8, at(), length(), any::<bool>())
            .prop_map(|(m, a, l, k)| Op::Fallocate(m, a, l, k)),
        1 => Just(Op::LayOut),
    ]
}

proptest! {
    #![proptest_config(property(500))]

    #[test]
    fn content_is_as_plain_bytes_have_it(ops in vec(op(), 1..40), at in 0..200_u64, n in 0..99_u64) {
        let mut file = File::new();
        let mut last = 0;
        for op in ops {
            match op {
                Op::Write(at, length, append) => {
                    file.write(at, length, append).expect("written");
                }
                Op::Truncate(size) => file.truncate(size),
                Op::Fallocate(mode, at, length, keep) => {
                    let mode = FallocateMode::try_from(i32::from(mode) + 1).expect("a mode");
                    file.fallocate(mode, at, length, keep);
                }
                Op::LayOut => file.lay_out_anew(),
            }
            prop_assert_eq!(file.read(0, 10_000), file.plain.clone());
            let content_time = file.world.tree.attributes(file.ino).expect("attributes").content_time;
            prop_assert!(content_time >= last);
            last = content_time;
        }
        let end = file.plain.len().min((at + n) as usize);
        let start = (at as usize).min(end);
        prop_assert_eq!(file.read(at, n), file.plain[start..end].to_vec());
        for (id, _) in file.world.tree.chunks_after(None) {
            prop_assert!(file.chunks.contains_key(&id));
        }
    }
}
