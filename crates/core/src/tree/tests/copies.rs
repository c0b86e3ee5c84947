//! Copies by reference: what several files take from one chunk.

use std::collections::{BTreeMap, BTreeSet};

use expect_test::{Expect, expect};
use proptest::collection::vec;
use proptest::prelude::*;
use unum_proto::tree::{Extent, FallocateMode, Reap};

use super::*;

/// Files with the bytes that each should have, and the bytes of all chunks.
struct Files {
    world: World,
    inos: Vec<Ino>,
    plain: Vec<Vec<u8>>,
    chunks: BTreeMap<ChunkId, Vec<u8>>,
    next_byte: u8,
}

impl Files {
    fn new(names: &[&str]) -> Self {
        let mut world = World::new();
        let make = |name: &&str| world.create(ROOT, name, Kind::Regular).expect("a file");
        let inos = names.iter().map(make).collect();
        let plain = vec![Vec::new(); names.len()];
        Self { world, inos, plain, chunks: BTreeMap::new(), next_byte: 0 }
    }

    fn write(&mut self, file: usize, offset: usize, length: usize) {
        let id = ChunkId { lane: 1, seq: self.world.next_chunk };
        self.world.next_chunk += 1;
        self.next_byte = self.next_byte % 250 + 1;
        let bytes: Vec<u8> = (0..length).map(|at| self.next_byte ^ (at as u8) << 3).collect();
        let chunk = NewChunk {
            id: Some(id.into()),
            length: length as u32,
            hash: Bytes::from_static(&[3; 32]),
            replicas: vec![1, 2, 3],
        };
        let extent = Extent {
            offset: offset as u64,
            length: length as u64,
            chunk: chunk.id,
            chunk_offset: 0,
        };
        let write = Write {
            ino: self.inos[file].0,
            extents: vec![extent],
            chunks: vec![chunk],
            ..Write::default()
        };
        self.world.run(Command::Write(write)).expect("written");
        put(&mut self.plain[file], offset, &bytes);
        self.chunks.insert(id, bytes);
    }

    fn fallocate(&mut self, file: usize, mode: FallocateMode, offset: usize, length: usize) {
        let command = Fallocate {
            ino: self.inos[file].0,
            mode: mode as i32,
            offset: offset as u64,
            length: length as u64,
            ..Fallocate::default()
        };
        self.world.run(Command::Fallocate(command)).expect("allocated");
        let plain = &mut self.plain[file];
        let end = offset + length;
        if mode != FallocateMode::PunchHole {
            plain.resize(plain.len().max(end), 0);
        }
        if mode != FallocateMode::Allocate {
            let end = end.min(plain.len());
            plain[offset.min(end)..end].fill(0);
        }
    }

    fn truncate(&mut self, file: usize, size: usize) {
        let ino = self.inos[file].0;
        let set = SetAttributes { ino, size: Some(size as u64), ..SetAttributes::default() };
        self.world.set(set).expect("truncated");
        self.plain[file].resize(size, 0);
    }

    fn copy(
        &mut self,
        from: (usize, usize),
        to: (usize, usize),
        n: usize,
    ) -> Result<u64, TreeError> {
        let command = CopyRange {
            from: self.inos[from.0].0,
            from_offset: from.1 as u64,
            to: self.inos[to.0].0,
            to_offset: to.1 as u64,
            length: n as u64,
            kill_privileges: false,
        };
        let Outcome::Copied(copied) = self.world.run(Command::CopyRange(command))? else {
            panic!("not copied");
        };
        let source = &self.plain[from.0];
        let start = from.1.min(source.len());
        let bytes = source[start..(start + n).min(source.len())].to_vec();
        assert_eq!(copied.bytes, bytes.len() as u64);
        if !bytes.is_empty() {
            put(&mut self.plain[to.0], to.1, &bytes);
        }
        Ok(copied.bytes)
    }

    fn remove(&mut self, name: &str, file: usize) {
        self.world.run(unlink(ROOT, name)).expect("unlinked");
        self.world.now = Time(self.world.now.0 + 10_000_000_000);
        let reap = Reap { inos: vec![self.inos[file].0] };
        self.world.run(Command::Reap(reap)).expect("reaped");
    }

    fn read(&self, file: usize) -> Vec<u8> {
        let ino = self.inos[file];
        let size = self.world.tree.attributes(ino).expect("attributes").size;
        let mut bytes = vec![0; size as usize];
        for extent in self.world.tree.extents(ino, 0, u64::MAX).expect("extents") {
            let Some(source) = extent.source else { continue };
            let from = &self.chunks[&source.chunk][source.offset as usize..];
            let length = extent.length as usize;
            bytes[extent.offset as usize..][..length].copy_from_slice(&from[..length]);
        }
        bytes
    }

    fn show(&self, file: usize) -> String {
        let mut out = String::new();
        let ino = self.inos[file];
        for extent in self.world.tree.extents(ino, 0, u64::MAX).expect("extents") {
            let source = extent.source.map_or("zeros".to_owned(), |source| {
                format!("chunk {} at {}", source.chunk.seq, source.offset)
            });
            out += &format!("{}..{} {source}\n", extent.offset, extent.end());
        }
        out + &format!("size {}\n", self.world.tree.attributes(ino).expect("attributes").size)
    }

    fn live(&self) -> String {
        let chunks = self.world.tree.chunks_after(None);
        let live: Vec<String> = chunks.map(|(id, c)| format!("{}:{}", id.seq, c.live)).collect();
        let usage = self.world.tree.usage();
        format!("live {}, {} allocated, {} stored", live.join(" "), usage.allocated, usage.stored)
    }

    fn check(&self, file: usize, expected: Expect) {
        expected.assert_eq(&self.show(file));
        assert_eq!(self.read(file), self.plain[file]);
    }
}

fn put(plain: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    plain.resize(plain.len().max(offset + bytes.len()), 0);
    plain[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn a_copy_takes_its_bytes_from_the_same_chunks() {
    let mut files = Files::new(&["a", "b"]);
    files.write(0, 0, 100);
    files.write(0, 120, 30);
    files.fallocate(0, FallocateMode::Allocate, 150, 10);
    files.write(1, 0, 40);
    assert_eq!(files.copy((0, 10), (1, 20), 200), Ok(150));
    files.check(
        1,
        expect![[r#"
        0..20 chunk 3 at 0
        20..110 chunk 1 at 10
        130..160 chunk 2 at 0
        160..170 zeros
        size 170
    "#]],
    );
    expect!["live 1:190 2:60 3:20, 290 allocated, 170 stored"].assert_eq(&files.live());
    // Neither harms the other.
    files.write(0, 0, 100);
    files.write(1, 130, 10);
    files.check(
        1,
        expect![[r#"
        0..20 chunk 3 at 0
        20..110 chunk 1 at 10
        130..140 chunk 5 at 0
        140..160 chunk 2 at 10
        160..170 zeros
        size 170
    "#]],
    );
    files.remove("a", 0);
    files.check(
        1,
        expect![[r#"
        0..20 chunk 3 at 0
        20..110 chunk 1 at 10
        130..140 chunk 5 at 0
        140..160 chunk 2 at 10
        160..170 zeros
        size 170
    "#]],
    );
    expect!["live 1:90 2:20 3:20 5:10, 150 allocated, 180 stored"].assert_eq(&files.live());
    files.remove("b", 1);
    expect!["live , 0 allocated, 0 stored"].assert_eq(&files.live());
}

#[test]
fn a_file_may_be_copied_within_itself_where_nothing_overlaps() {
    let mut files = Files::new(&["a"]);
    files.write(0, 0, 30);
    assert_eq!(files.copy((0, 0), (0, 29), 30), Err(TreeError::Invalid));
    assert_eq!(files.copy((0, 10), (0, 0), 11), Err(TreeError::Invalid));
    assert_eq!(files.copy((0, 10), (0, 0), 10), Ok(10));
    assert_eq!(files.copy((0, 0), (0, 30), 100), Ok(30));
    // What there is of the source does not reach the target.
    assert_eq!(files.copy((0, 50), (0, 60), 50), Ok(10));
    files.check(
        0,
        expect![[r#"
        0..10 chunk 1 at 10
        10..30 chunk 1 at 10
        30..40 chunk 1 at 10
        40..60 chunk 1 at 10
        60..70 chunk 1 at 20
        size 70
    "#]],
    );
    expect!["live 1:70, 70 allocated, 30 stored"].assert_eq(&files.live());
}

#[test]
fn what_is_not_there_is_not_copied() {
    let mut files = Files::new(&["a", "b"]);
    files.write(0, 0, 10);
    files.fallocate(0, FallocateMode::Allocate, 0, 20);
    files.truncate(0, 15);
    let before = records(&files.world.tree);
    assert_eq!(files.copy((0, 15), (1, 7), 10), Ok(0));
    assert_eq!(files.copy((0, 99), (1, 7), 10), Ok(0));
    assert_eq!(files.copy((0, 0), (1, 7), 0), Ok(0));
    assert_eq!(before, records(&files.world.tree), "nothing was copied, but something changed");
    // A hole at the end of the source makes the target longer.
    files.truncate(0, 5);
    files.truncate(0, 25);
    assert_eq!(files.copy((0, 0), (1, 3), 100), Ok(25));
    files.check(
        1,
        expect![[r#"
        3..8 chunk 1 at 0
        size 28
    "#]],
    );
    let mut copy = |from: u64, to: u64, at: u64| {
        let command =
            CopyRange { from, from_offset: 0, to, to_offset: at, length: 9, ..Default::default() };
        files.world.run(Command::CopyRange(command)).map(drop)
    };
    let (a, b) = (files.inos[0].0, files.inos[1].0);
    assert_eq!(copy(1, b, 0), Err(TreeError::IsDirectory));
    assert_eq!(copy(a, 1, 0), Err(TreeError::IsDirectory));
    assert_eq!(copy(99, b, 0), Err(TreeError::Stale));
    assert_eq!(copy(a, b, limits::FILE_SIZE_MAX - 8), Err(TreeError::FileTooBig));
    assert_eq!(copy(a, b, u64::MAX - 3), Err(TreeError::FileTooBig));
    assert_eq!(copy(a, b, limits::FILE_SIZE_MAX - 9), Ok(()));
}

#[test]
fn one_command_copies_a_bounded_number_of_extents() {
    let mut files = Files::new(&["a", "b"]);
    for at in 0..limits::COPY_EXTENTS_MAX + 2 {
        let write = Write {
            ino: files.inos[0].0,
            extents: vec![Extent {
                offset: 10 * at as u64 + 5,
                length: 2,
                chunk: Some(ChunkId { lane: 1, seq: at as u64 }.into()),
                chunk_offset: 0,
            }],
            chunks: vec![NewChunk {
                id: Some(ChunkId { lane: 1, seq: at as u64 }.into()),
                length: 2,
                hash: Bytes::from_static(&[3; 32]),
                replicas: vec![1],
            }],
            ..Write::default()
        };
        files.world.tree.apply(files.world.now, NodeId(1), &Command::Write(write).into());
    }
    let size = files.world.tree.attributes(files.inos[0]).expect("attributes").size;
    let mut done = 0;
    let mut steps = Vec::new();
    while done < size {
        let copy = CopyRange {
            from: files.inos[0].0,
            from_offset: done,
            to: files.inos[1].0,
            to_offset: done,
            length: size - done,
            kill_privileges: false,
        };
        let Ok(Outcome::Copied(copied)) = files.world.run(Command::CopyRange(copy)) else {
            panic!("not copied");
        };
        done += copied.bytes;
        steps.push(copied.bytes);
    }
    // The hole before the first extent that is left comes along.
    assert_eq!(steps, [10 * limits::COPY_EXTENTS_MAX as u64 + 5, 12]);
    let extents =
        |ino| files.world.tree.extents(ino, 0, size).expect("extents").collect::<Vec<_>>();
    assert_eq!(extents(files.inos[0]), extents(files.inos[1]));
}

#[test]
fn a_write_takes_nothing_from_a_chunk_that_only_others_use() {
    let mut files = Files::new(&["a", "b"]);
    files.write(0, 0, 10);
    let take = Command::Write(Write {
        ino: files.inos[1].0,
        extents: vec![Extent {
            offset: 0,
            length: 10,
            chunk: Some(ChunkId { lane: 1, seq: 1 }.into()),
            chunk_offset: 0,
        }],
        ..Write::default()
    });
    assert_eq!(files.world.run(take.clone()), Err(TreeError::Invalid));
    files.copy((0, 0), (1, 5), 3).expect("copied");
    assert!(files.world.run(take).is_ok());
    assert_eq!(
        files.world.tree.users_of(&BTreeSet::from([ChunkId { lane: 1, seq: 1 }])),
        BTreeMap::from([(ChunkId { lane: 1, seq: 1 }, files.inos.clone())])
    );
}

#[test]
fn a_copy_changes_times_and_privileges_of_its_target_alone() {
    let mut files = Files::new(&["a", "b"]);
    files.write(0, 0, 10);
    files.write(1, 0, 10);
    for file in [0, 1] {
        let ino = files.inos[file].0;
        let set = SetAttributes { ino, mode: Some(0o6755), ..SetAttributes::default() };
        files.world.set(set).expect("set");
    }
    let attributes = |files: &Files| {
        let each = files.inos.iter().map(|ino| files.world.tree.attributes(*ino).expect("a file"));
        each.collect::<Vec<Attributes>>()
    };
    let before = attributes(&files);
    let copy = CopyRange {
        from: files.inos[0].0,
        to: files.inos[1].0,
        length: 10,
        kill_privileges: true,
        ..CopyRange::default()
    };
    files.world.run(Command::CopyRange(copy)).expect("copied");
    let after = attributes(&files);
    assert_eq!(before[0], after[0]);
    assert!(after[1].mtime > before[1].mtime && after[1].ctime == after[1].mtime);
    assert!(after[1].content_time > before[1].content_time);
    assert_eq!(format!("{:o}", after[1].mode), "755");
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize, usize),
    Copy((usize, usize), (usize, usize), usize),
    Truncate(usize, usize),
    Fallocate(usize, u8, usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let file = || 0..3_usize;
    let at = || 0..160_usize;
    let length = || 1..60_usize;
    prop_oneof![
        3 => (file(), at(), length()).prop_map(|(f, a, l)| Op::Write(f, a, l)),
        5 => ((file(), at()), (file(), at()), length()).prop_map(|(f, t, l)| Op::Copy(f, t, l)),
        1 => (file(), at()).prop_map(|(f, a)| Op::Truncate(f, a)),
        2 => (file(), 0..3_u8, at(), length()).prop_map(|(f, m, a, l)| Op::Fallocate(f, m, a, l)),
    ]
}

proptest! {
    #![proptest_config(property(300))]

    /// However files share chunks, each reads as plain bytes would, and the sums are right (which `World`
    /// checks at each step).
    #[test]
    fn files_that_share_chunks_read_as_plain_bytes_do(ops in vec(op(), 1..50)) {
        let mut files = Files::new(&["a", "b", "c"]);
        for op in ops {
            match op {
                Op::Write(file, at, length) => files.write(file, at, length),
                Op::Truncate(file, size) => files.truncate(file, size),
                Op::Fallocate(file, mode, at, length) => {
                    let mode = FallocateMode::try_from(i32::from(mode) + 1).expect("a mode");
                    files.fallocate(file, mode, at, length);
                }
                Op::Copy(from, to, length) => {
                    let left = files.plain[from.0].len().saturating_sub(from.1).min(length);
                    let overlaps = from.0 == to.0 && from.1.abs_diff(to.1) < left;
                    let copied = files.copy(from, to, length);
                    prop_assert_eq!(copied.is_err(), overlaps);
                }
            }
            for file in 0..3 {
                prop_assert_eq!(&files.read(file), &files.plain[file]);
            }
        }
        let restored = super::snapshot::restore(&records(&files.world.tree)).expect("restored");
        prop_assert_eq!(records(&restored), records(&files.world.tree));
    }
}
