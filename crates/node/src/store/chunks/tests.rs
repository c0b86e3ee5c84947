//! What the chunk store acknowledged is there after any crash; damaged content is never returned.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rustix::io::Errno;

use super::format::decode_segment_header;
use super::*;
use crate::store::disk::tests::TinyMount;
use crate::store::disk::{Fault, Op, Open, RealDisk, SimDisk};

const ROOM: u64 = 64 << 20;
const SEGMENT: &str = "0000000000000001.chunks";

fn options() -> ChunkOptions {
    ChunkOptions { segment_bytes: 20_000, reserve_bytes: 0, compact_dead_percent: 30, salt: 9 }
}

fn open(sim: &SimDisk) -> (ChunkStore, Vec<Damage>) {
    ChunkStore::open(sim.disk(), options()).unwrap()
}

fn id(seq: u64) -> ChunkId {
    ChunkId { lane: 5, seq }
}

/// The content of a chunk follows from its id and length, as chunks never change.
fn content(seq: u64, len: usize) -> Bytes {
    let mut bytes = vec![(seq as u8).wrapping_add(1); len];
    bytes.iter_mut().step_by(7).zip(0u32..).for_each(|(byte, i)| *byte = i as u8);
    bytes.into()
}

fn put(store: &ChunkStore, seq: u64, len: usize) -> Result<(), ChunkError> {
    let bytes = content(seq, len);
    store.put(id(seq), bytes.clone(), &blake3::hash(&bytes))
}

fn whole(store: &ChunkStore, seq: u64) -> Result<Bytes, ChunkError> {
    let size = store.size(id(seq)).unwrap_or(0);
    store.get(id(seq), 0, size as usize)
}

#[test]
fn parts_of_chunks_are_read_and_checked() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    let len = CHUNK_SIZE_MAX;
    put(&store, 1, len).unwrap();
    put(&store, 2, 0).unwrap();
    let all = content(1, len);
    for (from, len) in [(0, len), (65_535, 2), (65_536, 1), (200_000, 70_000), (len - 1, 1), (7, 0)]
    {
        let part = store.get(id(1), from as u64, len).unwrap();
        assert_eq!(part, all.slice(from..from + len));
    }
    assert_eq!(store.get(id(2), 0, 0).unwrap(), Bytes::new());
    assert!(matches!(store.get(id(1), 5, len), Err(ChunkError::OutOfRange { .. })));
    assert!(matches!(store.get(id(1), u64::MAX, 2), Err(ChunkError::OutOfRange { .. })));
    assert!(matches!(store.get(id(3), 0, 0), Err(ChunkError::NotFound { .. })));
    let hash = blake3::hash(b"another");
    assert!(matches!(store.put(id(3), all, &hash), Err(ChunkError::Mismatch { .. })));
    put(&store, 2, 0).unwrap();
    assert!(matches!(put(&store, 2, 1), Err(ChunkError::Conflict { .. })));
    assert!(matches!(put(&store, 4, CHUNK_SIZE_MAX + 1), Err(ChunkError::TooLarge { .. })));
    let listed: Vec<_> = store.list(Some(id(1)), 10).iter().map(|listed| listed.chunk).collect();
    assert_eq!(listed, [id(2)]);
}

#[test]
fn large_chunks_are_not_kept_in_memory_and_small_ones_are() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    put(&store, 1, 4096).unwrap();
    assert_eq!(sim.dropped_bytes(SEGMENT), 0);
    let options = ChunkOptions { segment_bytes: 8 << 20, ..options() };
    let store = ChunkStore::open(sim.disk(), options).unwrap().0;
    put(&store, 2, CHUNK_SIZE_MAX).unwrap();
    assert!(sim.dropped_bytes(SEGMENT) >= CHUNK_SIZE_MAX as u64);
    assert_eq!(whole(&store, 2).unwrap(), content(2, CHUNK_SIZE_MAX));
}

#[test]
fn a_rotten_chunk_is_told_and_replaced() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    put(&store, 1, 150_000).unwrap();
    put(&store, 2, 100).unwrap();
    assert!(sim.rot(SEGMENT, 64 + 100 + 100_000, 1));
    assert_eq!(store.get(id(1), 0, 65_536).unwrap(), content(1, 150_000).slice(..65_536));
    assert!(matches!(store.get(id(1), 65_536, 1), Err(ChunkError::Rotten { .. })));
    assert!(!store.contains(id(1)));
    assert!(store.list(None, 1)[0].rotten);
    assert!(matches!(store.verify(id(1)), Err(ChunkError::Rotten { .. })));
    put(&store, 1, 150_000).unwrap();
    sim.crash().unwrap();
    let (store, damage) = open(&sim);
    assert_eq!(damage, []);
    assert_eq!(whole(&store, 1).unwrap(), content(1, 150_000));
    store.verify(id(1)).unwrap();
}

#[test]
fn who_puts_a_chunk_keeps_it_from_expiring() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    put(&store, 1, 1000).unwrap();
    put(&store, 2, 1000).unwrap();
    sim.crash().unwrap();
    let (store, _) = open(&sim);
    let mark = store.stamp();
    // It is there, so nothing is written; but somebody wants it.
    put(&store, 1, 1000).unwrap();
    put(&store, 3, 1000).unwrap();
    assert!(!store.expire(id(1), mark).unwrap());
    assert!(store.expire(id(2), mark).unwrap());
    assert!(!store.expire(id(3), mark).unwrap());
    assert!(store.expire(id(9), mark).unwrap(), "what is not there is gone");
    // A move does not make a chunk younger, nor older.
    let stamps = |store: &ChunkStore| [1, 3].map(|seq| store.list_one(id(seq)).map(|l| l.stamp));
    let before = stamps(&store);
    (4..40).for_each(|seq| put(&store, seq, 1000).unwrap());
    (4..40).for_each(|seq| store.delete(id(seq)).unwrap());
    while store.compact(5_000).unwrap() != Compacted::Nothing {}
    assert_eq!(stamps(&store), before);
    let now = store.stamp();
    assert!(store.expire(id(1), now).unwrap() && store.expire(id(3), now).unwrap());
    sim.crash().unwrap();
    let (store, _) = open(&sim);
    assert_eq!(store.list(None, 10), []);
}

#[test]
fn outlines_tell_what_content_should_be() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    put(&store, 1, 150_000).unwrap();
    let outline = Outline { len: 150_000, hash: *blake3::hash(&content(1, 150_000)).as_bytes() };
    assert_eq!(store.outline(id(1)), Ok(outline));
    assert_eq!(store.verify(id(1)), Ok(outline));
    assert_eq!(store.get_known(id(1), Some(&outline.hash), 9, 5), store.get(id(1), 9, 5));
    put(&store, 3, 1000).unwrap();
    let another = store.get_known(id(3), Some(&outline.hash), 9, 5);
    assert!(matches!(another, Err(ChunkError::Rotten { .. })), "{another:?}");
    put(&store, 3, 1001).unwrap();
    assert!(sim.rot(SEGMENT, 64 + 100 + 100_000, 1));
    assert_eq!(store.outline(id(1)), Ok(outline));
    assert!(matches!(store.verify(id(1)), Err(ChunkError::Rotten { .. })));
    assert!(matches!(store.outline(id(1)), Err(ChunkError::Rotten { .. })));
    assert!(matches!(store.outline(id(2)), Err(ChunkError::NotFound { .. })));
}

#[test]
fn a_rotten_head_costs_its_chunk_alone() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    for seq in 0..3 {
        put(&store, seq, 1000).unwrap();
    }
    let at = store.read_index().chunks[&id(1)].at;
    assert!(sim.rot(SEGMENT, u64::from(at) + 20, 1));
    sim.crash().unwrap();
    let (store, damage) = open(&sim);
    assert_eq!(damage.len(), 1);
    assert!(damage[0].acknowledged && damage[0].offset == u64::from(at), "{damage:?}");
    assert!(matches!(whole(&store, 1), Err(ChunkError::NotFound { .. })));
    assert_eq!(whole(&store, 0).unwrap(), content(0, 1000));
    assert_eq!(whole(&store, 2).unwrap(), content(2, 1000));
}

#[test]
fn a_torn_group_is_dropped_and_does_not_look_like_rot_later() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    put(&store, 0, 1000).unwrap();
    let changes: Vec<_> = (1..4)
        .map(|seq| {
            let bytes = content(seq, 1000);
            let hash = blake3::hash(&bytes);
            write::Change::Put(Draft::new(id(seq), bytes, &hash).unwrap())
        })
        .collect();
    assert!(store.commit(&changes).iter().all(Result::is_ok));
    let at = u64::from(store.read_index().chunks[&id(2)].at);
    assert!(sim.rot(SEGMENT, at + 500, 1));
    sim.crash().unwrap();
    let (store, damage) = open(&sim);
    assert!(damage.len() == 1 && !damage[0].acknowledged, "{damage:?}");
    assert!(matches!(whole(&store, 2), Err(ChunkError::NotFound { .. })));
    assert_eq!(whole(&store, 3).unwrap(), content(3, 1000));
    put(&store, 9, 1000).unwrap();
    sim.crash().unwrap();
    let (store, damage) = open(&sim);
    assert_eq!(damage, []);
    assert_eq!(store.list(None, 10).len(), 4);
}

#[test]
fn compaction_frees_what_is_dead_and_keeps_the_rest() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    for seq in 0..40 {
        put(&store, seq, 3000).unwrap();
    }
    for seq in (0..40).filter(|seq| seq % 4 != 0) {
        store.delete(id(seq)).unwrap();
    }
    store.delete(id(999)).unwrap();
    let before = store.usage().unwrap();
    let mut steps = 0;
    while store.compact(4000).unwrap() != Compacted::Nothing {
        steps += 1;
        assert!(steps < 200);
    }
    let after = store.usage().unwrap();
    assert_eq!(before.live_bytes, after.live_bytes);
    assert!(after.dead_bytes < before.dead_bytes / 3, "{before:?} {after:?}");
    sim.crash().unwrap();
    let (store, damage) = open(&sim);
    assert_eq!(damage, []);
    let left: Vec<_> = store.list(None, 100).iter().map(|listed| listed.chunk.seq).collect();
    assert_eq!(left, (0..40).step_by(4).collect::<Vec<_>>());
    left.iter().for_each(|seq| assert_eq!(whole(&store, *seq).unwrap(), content(*seq, 3000)));
}

#[test]
fn what_is_dead_in_the_last_segment_is_freed_too() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    let compact = |store: &ChunkStore| {
        let mut steps = 0;
        while store.compact(4000).unwrap() != Compacted::Nothing {
            steps += 1;
            assert!(steps < 20);
        }
    };
    // A little is not worth a new segment.
    put(&store, 0, 3000).unwrap();
    store.delete(id(0)).unwrap();
    compact(&store);
    let files = sim.disk().list().unwrap();
    for seq in 1..5 {
        put(&store, seq, 3000).unwrap();
    }
    assert_eq!(sim.disk().list().unwrap(), files, "all is in one segment");
    for seq in 1..4 {
        store.delete(id(seq)).unwrap();
    }
    compact(&store);
    let freed = sim.disk().list().unwrap();
    assert!(freed.len() == 1 && freed != files, "{freed:?}");
    assert!(store.usage().unwrap().dead_bytes < 2000);
    sim.crash().unwrap();
    let (store, damage) = open(&sim);
    assert_eq!(damage, []);
    assert_eq!(store.list(None, 100).len(), 1);
    assert_eq!(whole(&store, 4).unwrap(), content(4, 3000));
    put(&store, 5, 3000).unwrap();
    assert_eq!(whole(&store, 5).unwrap(), content(5, 3000));
}

#[test]
fn puts_leave_the_reserve_and_deletions_use_it() {
    let sim = SimDisk::new(1, 100_000).unwrap();
    let options = ChunkOptions { reserve_bytes: 30_000, ..options() };
    let (store, _) = ChunkStore::open(sim.disk(), options).unwrap();
    let mut stored = 0;
    let refused = loop {
        match put(&store, stored, 3000) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ChunkError::Full(_)), "{refused}");
    assert!(store.usage().unwrap().disk.free_bytes >= 30_000);
    for seq in 0..stored {
        store.delete(id(seq)).unwrap();
    }
    while store.compact(10_000).unwrap() != Compacted::Nothing {}
    put(&store, 77, 3000).unwrap();
}

#[test]
fn a_failed_sync_stops_the_store_until_it_is_opened_again() {
    for seed in 0..30 {
        let sim = SimDisk::new(seed, ROOM).unwrap();
        let (store, _) = open(&sim);
        put(&store, 1, 1000).unwrap();
        let fault =
            Fault { op: Op::Sync, path_contains: "chunks".into(), after: 0, errno: Errno::IO };
        sim.fail(fault);
        assert!(matches!(put(&store, 2, 5000), Err(ChunkError::Poisoned { .. })));
        assert!(matches!(put(&store, 3, 10), Err(ChunkError::Poisoned { .. })));
        assert_eq!(whole(&store, 1).unwrap(), content(1, 1000));
        assert!(!store.contains(id(2)));
        // The kernel still shows what the disk never got: opening must make it true.
        let (store, _) = open(&sim);
        let listed = store.list(None, 10);
        sim.crash().unwrap();
        let (store, _) = open(&sim);
        assert_eq!(store.list(None, 10), listed, "seed {seed}");
        for listed in &listed {
            store.verify(listed.chunk).unwrap();
        }
    }
}

#[tokio::test]
async fn the_queue_serves_many_at_once() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = ChunkStore::open(sim.disk(), ChunkOptions::default()).unwrap();
    let queue = ChunkQueue::start(Arc::new(store)).unwrap();
    let hash_and_put = |seq: u64, len: usize| {
        let (queue, bytes) = (queue.clone(), content(seq, len));
        tokio::spawn(async move {
            let hash = blake3::hash(&bytes);
            queue.put(id(seq), bytes, hash).await
        })
    };
    // Without the default reserve this disk has too little room.
    let refused = hash_and_put(0, 10).await.unwrap();
    assert!(matches!(refused, Err(ChunkError::Full(_))), "{refused:?}");
    sim.set_total_bytes(1 << 30);
    let puts: Vec<_> = (0..100).map(|seq| hash_and_put(seq, seq as usize * 3000)).collect();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    assert!(queue.store().stamp() < 100, "puts that wait share a group");
    queue.delete(id(3)).await.unwrap();
    assert!(matches!(queue.get(id(3), 0, 1).await, Err(ChunkError::NotFound { .. })));
    let part = queue.get(id(99), 100_000, 50).await.unwrap();
    assert_eq!(part, content(99, 99 * 3000).slice(100_000..100_050));
    queue.verify(id(50)).await.unwrap();
    assert_eq!(queue.compact(1 << 20).await.unwrap(), Compacted::Nothing);
}

#[tokio::test]
async fn chunks_that_are_put_at_once_are_one_group() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = ChunkStore::open(sim.disk(), options()).unwrap();
    let queue = ChunkQueue::start(Arc::new(store)).unwrap();
    let offered = |seq: u64, len: usize| {
        let bytes = content(seq, len);
        (id(seq), bytes.clone(), blake3::hash(&bytes))
    };
    let all = || (0..500).map(|seq| offered(seq, 2000)).collect::<Vec<_>>();
    assert!(queue.put_all(all()).await.iter().all(Result::is_ok));
    assert_eq!(queue.store().stamp(), 1, "one sync");

    let written = sim.disk().list().unwrap();
    let size = |name: &String| sim.disk().open(name, Open::Existing).unwrap().size().unwrap();
    let bytes: u64 = written.iter().map(size).sum();
    assert!(queue.put_all(all()).await.iter().all(Result::is_ok), "once more is no error");
    assert_eq!(written.iter().map(size).sum::<u64>(), bytes, "nothing is written again");

    let mut mixed = vec![offered(1, 2000), offered(2, 1999), offered(600, 10), offered(601, 10)];
    mixed[3].1 = content(602, 10);
    let outcomes = queue.put_all(mixed).await;
    assert_eq!(outcomes[0], Ok(()));
    assert_eq!(outcomes[1], Err(ChunkError::Conflict { chunk: id(2) }));
    assert_eq!(outcomes[2], Ok(()));
    assert_eq!(outcomes[3], Err(ChunkError::Mismatch { chunk: id(601) }));
    assert!(queue.store().contains(id(600)) && !queue.store().contains(id(601)));
    assert_eq!(queue.put_all(Vec::new()).await, []);

    let large: Vec<_> = (700..740).map(|seq| offered(seq, 1 << 20)).collect();
    let outcomes = queue.put_all(large).await;
    assert!(outcomes.iter().all(Result::is_ok), "more than may wait at once: {outcomes:?}");
}

#[test]
fn a_real_full_disk() {
    let Some(mount) = TinyMount::new("chunks", 2) else { return };
    let disk = Arc::new(RealDisk::open(mount.path()).unwrap());
    let options = ChunkOptions { segment_bytes: 300_000, ..options() };
    let (store, _) = ChunkStore::open(disk.clone(), options).unwrap();
    let mut stored = 0;
    let refused = loop {
        match put(&store, stored, 90_000) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ChunkError::Full(_)), "{refused}");
    assert!(stored > 15);
    for seq in (0..stored).filter(|seq| seq % 2 == 0) {
        store.delete(id(seq)).unwrap();
    }
    for _ in 0..100 {
        if let Ok(Compacted::Nothing) | Err(_) = store.compact(100_000) {
            break;
        }
    }
    let reopened = ChunkStore::open(disk, options).unwrap().0;
    for seq in (0..stored).filter(|seq| seq % 2 == 1) {
        assert_eq!(whole(&reopened, seq).unwrap(), content(seq, 90_000));
    }
}

/// Four segments: the first with a deleted chunk and a living one; the second with the most dead bytes
/// and the tombstone of the first's chunk; the third all dead; and the one that is written to.
fn with_a_needed_tombstone(sim: &SimDisk) -> ChunkStore {
    let (store, _) = open(sim);
    let put_both = |from: u64, len| (from..from + 2).for_each(|seq| put(&store, seq, len).unwrap());
    put_both(0, 9_000);
    put_both(2, 9_000);
    store.delete(id(0)).unwrap();
    put_both(4, 8_000);
    put_both(6, 5_000);
    (2..6).for_each(|seq| store.delete(id(seq)).unwrap());
    store
}

#[test]
fn a_full_disk_keeps_needed_tombstones_and_frees_what_needs_no_room() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let store = with_a_needed_tombstone(&sim);
    let compact_without_room = || {
        let (op, path_contains, errno) = (Op::Write, String::new(), Errno::NOSPC);
        sim.fail(Fault { op, path_contains, after: 0, errno });
        store.compact(100_000)
    };
    assert!(matches!(compact_without_room(), Ok(Compacted::Freed { .. })));
    let segments: Vec<u64> = store.read_index().segments.keys().copied().collect();
    assert_eq!(segments, [1, 2, 4]);
    assert!(matches!(compact_without_room(), Err(ChunkError::Full(_))));
    sim.crash().unwrap();
    let (store, _) = open(&sim);
    assert!(!store.contains(id(0)), "a deleted chunk came back");
    // With room again, all goes that can.
    while store.compact(100_000).unwrap() != Compacted::Nothing {}
    sim.crash().unwrap();
    let (store, _) = open(&sim);
    let left: Vec<_> = store.list(None, 10).iter().map(|listed| listed.chunk.seq).collect();
    assert_eq!(left, [1, 6, 7]);
}

#[test]
fn a_chunk_deleted_while_it_is_being_moved_stays_deleted() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (store, _) = open(&sim);
    (0..4).for_each(|seq| put(&store, seq, 4_000).unwrap());
    put(&store, 4, 9_000).unwrap();
    (0..2).for_each(|seq| store.delete(id(seq)).unwrap());
    // The move of the last out of the first segment; the segment stays, for there is more in it.
    assert!(matches!(store.compact(1), Ok(Compacted::Moved { .. })));
    let moved_to = store.read_index().chunks[&id(3)].segment;
    assert_eq!(moved_to, 2);
    store.delete(id(3)).unwrap();
    store.delete(id(4)).unwrap();
    put(&store, 5, 9_000).unwrap();
    sim.crash().unwrap();
    // Now the second segment goes, in which the deleted chunk was last.
    let (store, _) = open(&sim);
    assert!(matches!(store.compact(1), Ok(Compacted::Freed { .. })));
    assert!(!store.read_index().segments.contains_key(&moved_to));
    sim.crash().unwrap();
    let (store, _) = open(&sim);
    assert!(!store.contains(id(3)), "a deleted chunk came back");
    while store.compact(100_000).unwrap() != Compacted::Nothing {}
    assert_eq!(store.read_index().stale.len(), 0);
    assert!(store.contains(id(2)) && store.contains(id(5)));
}

#[derive(Clone, Debug)]
enum Step {
    /// Puts that share a group, if they can.
    Put {
        from: u8,
        count: u8,
        len: u16,
    },
    Delete(u8),
    Compact(u16),
    Fail {
        op: Op,
        after: u8,
        full: bool,
    },
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        Just(Op::Write),
        Just(Op::Sync),
        Just(Op::SyncDir),
        Just(Op::Create),
        Just(Op::Remove),
        Just(Op::SetLen)
    ];
    prop_oneof![
        10 => (0..20u8, 1..4u8, 0..6000u16)
            .prop_map(|(from, count, len)| Step::Put { from, count, len }),
        6 => (0..24u8).prop_map(Step::Delete),
        6 => (1..9000u16).prop_map(Step::Compact),
        3 => (op, 0..6u8, any::<bool>())
            .prop_map(|(op, after, full)| Step::Fail { op, after, full }),
        4 => Just(Step::Crash),
    ]
}

/// What a chunk may be.
#[derive(Clone, Debug)]
struct Expected {
    len: usize,
    present: Option<bool>,
}

fn compare(store: &ChunkStore, model: &BTreeMap<u64, Expected>) -> Result<(), TestCaseError> {
    for (seq, expected) in model {
        match whole(store, *seq) {
            Ok(bytes) => {
                prop_assert_eq!(bytes, content(*seq, expected.len));
                prop_assert_ne!(expected.present, Some(false), "chunk {} came back", seq);
            }
            Err(ChunkError::NotFound { .. }) => {
                prop_assert_ne!(expected.present, Some(true), "chunk {} is lost", seq);
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }
    Ok(())
}

fn run(seed: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let sim = SimDisk::new(seed, ROOM).unwrap();
    let mut model: BTreeMap<u64, Expected> = BTreeMap::new();
    let mut store = None;
    // Ids are not reused: the n-th life of a number is another chunk.
    let mut lives = [0u64; 24];
    for step in steps {
        if store.is_none() {
            match ChunkStore::open(sim.disk(), options()) {
                Ok((opened, damage)) => {
                    let rot = damage.iter().any(|damage| damage.acknowledged);
                    prop_assert!(!rot, "rot where there is none: {:?}", damage);
                    compare(&opened, &model)?;
                    // What is there is durable now, and what is not stays away.
                    for (seq, expected) in &mut model {
                        expected.present = Some(opened.contains(id(*seq)));
                    }
                    store = Some(opened);
                }
                // An ordered fault; each strikes once.
                Err(_) => continue,
            }
        }
        let Some(open) = &store else { continue };
        let number = |n: u8, lives: &[u64; 24]| u64::from(n) + 24 * lives[n as usize];
        let mut poisoned = false;
        match step {
            Step::Put { from, count, len } => {
                let seqs: Vec<_> = (*from..from + count).map(|n| number(n, &lives)).collect();
                let changes: Vec<_> = seqs
                    .iter()
                    .map(|seq| {
                        let len = model.get(seq).map_or(*len as usize, |known| known.len);
                        let bytes = content(*seq, len);
                        let hash = blake3::hash(&bytes);
                        write::Change::Put(Draft::new(id(*seq), bytes, &hash).unwrap())
                    })
                    .collect();
                for (seq, outcome) in seqs.into_iter().zip(open.commit(&changes)) {
                    let expected = model
                        .entry(seq)
                        .or_insert(Expected { len: *len as usize, present: Some(false) });
                    match outcome {
                        Ok(()) => expected.present = Some(true),
                        Err(ChunkError::Full(_) | ChunkError::Disk(_)) => {}
                        Err(ChunkError::Poisoned { .. }) => {
                            poisoned = true;
                            if expected.present == Some(false) {
                                expected.present = None;
                            }
                        }
                        Err(error) => return Err(TestCaseError::fail(error.to_string())),
                    }
                }
            }
            Step::Delete(n) => {
                let seq = number(*n, &lives);
                lives[*n as usize] += 1;
                let stamp = open.stamp();
                let outcome = open.delete(id(seq));
                poisoned = matches!(outcome, Err(ChunkError::Poisoned { .. }));
                if let Some(expected) = model.get_mut(&seq) {
                    let durable = outcome.is_ok() && open.stamp() > stamp;
                    if expected.present == Some(true) {
                        expected.present = if durable { Some(false) } else { None };
                    }
                }
            }
            Step::Compact(bytes) => {
                let outcome = open.compact(u64::from(*bytes));
                poisoned = matches!(outcome, Err(ChunkError::Poisoned { .. }));
                if let Ok(Compacted::Freed { rotten, .. }) = outcome {
                    prop_assert_eq!(rotten, []);
                }
            }
            Step::Fail { op, after, full } => {
                let errno = if *full { Errno::NOSPC } else { Errno::IO };
                let after = u32::from(*after);
                sim.fail(Fault { op: *op, path_contains: String::new(), after, errno });
            }
            Step::Crash => {
                sim.crash().unwrap();
                poisoned = true;
            }
        }
        if poisoned {
            store = None;
        } else {
            compare(open, &model)?;
        }
    }
    sim.crash().unwrap();
    let (store, _) = open(&sim);
    compare(&store, &model)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 400,
        ..ProptestConfig::default()
    })]

    /// Under power cuts, failing and full disks at any point.
    #[test]
    fn nothing_acknowledged_is_lost(seed: u64, steps in prop::collection::vec(step(), 1..50)) {
        run(seed, &steps)?;
    }

    /// Any bytes may stand in a segment.
    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        flips in prop::collection::vec((0..4000usize, any::<u8>()), 0..6),
        len in 0..4500usize,
    ) {
        Head::decode(&bytes, 0);
        decode_segment_header(&bytes, 0);
        let sim = SimDisk::new(1, ROOM).unwrap();
        let (store, _) = open(&sim);
        for seq in 0..4 {
            put(&store, seq, 900).unwrap();
        }
        store.delete(id(2)).unwrap();
        let mut damaged = crate::store::disk::read_whole(&*sim.disk(), SEGMENT, 1 << 20).unwrap();
        for (at, byte) in flips {
            if let Some(place) = damaged.get_mut(at) {
                *place ^= byte;
            }
        }
        damaged.truncate(len);
        for content_bytes in [damaged, bytes] {
            let file = sim.disk().open(SEGMENT, Open::Any).unwrap();
            file.set_len(0).unwrap();
            file.write_at(&content_bytes, 0).unwrap();
            let (store, _) = open(&sim);
            for listed in store.list(None, 100) {
                if let Ok(found) = store.get(listed.chunk, 0, listed.len as usize) {
                    prop_assert_eq!(found, content(listed.chunk.seq, 900));
                }
            }
        }
    }
}
