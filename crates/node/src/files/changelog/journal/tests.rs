//! What the journal promises to the next daemon.

use std::fs::File;

use proptest::prelude::*;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{Done, NewChunk, Unlink, Write as WriteContent};

use super::*;
use crate::store::disk::tests::TinyMount;

const LEASE: LeaseId = LeaseId(3);
const LARGE: usize = 1 << 20;

fn id(seq: u64) -> ChunkId {
    ChunkId { lane: 7, seq }
}

fn record(number: u64, command: Command) -> Record {
    Record {
        lease: LEASE,
        number,
        call: 100 + number,
        time: Time(1_000 + number),
        command: command.into(),
        reply: TreeReply { outcome: Some(Outcome::Done(Done {})), granted: Vec::new() },
    }
}

fn unlink(number: u64) -> Record {
    let name = format!("file {number}").into_bytes();
    record(number, Command::Unlink(Unlink { parent: 1, name: name.into() }))
}

/// A change that names these chunks.
fn write(number: u64, chunks: &[u64]) -> Record {
    let new = |seq: &u64| NewChunk { id: Some(id(*seq).into()), ..Default::default() };
    let chunks = chunks.iter().map(new).collect();
    record(number, Command::Write(WriteContent { ino: 9, chunks, ..Default::default() }))
}

fn fresh(dir: &Path) -> Journal {
    Journal::open(dir, true).unwrap().0
}

fn reopen(dir: &Path) -> (Journal, Vec<Record>) {
    Journal::open(dir, false).unwrap()
}

fn data(seq: u64, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u64 * 31 + seq) as u8).collect()
}

fn put(journal: &mut Journal, seq: u64, length: usize) {
    journal.put_chunk(id(seq), &data(seq, length)).unwrap();
}

/// One mebibyte in a change of its own.
fn put_large(journal: &mut Journal, number: u64) {
    put(journal, number, LARGE);
    journal.append(&write(number, &[number])).unwrap();
}

fn holds(journal: &Journal, seq: u64, length: usize) -> bool {
    let Some(kept) = journal.chunk(id(seq)) else { return false };
    kept.read(0, length as u32).unwrap() == data(seq, length)
}

fn numbers(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.number).collect()
}

fn last_segment(dir: &Path) -> PathBuf {
    let last = *segment_numbers(dir).unwrap().last().unwrap();
    dir.join(format::segment_name(last))
}

fn size_on_disk(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn the_next_daemon_finds_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/on demand");
    let mut journal = fresh(&path);
    put(&mut journal, 1, 3000);
    let kept = [write(1, &[1]), unlink(2)];
    kept.iter().for_each(|record| journal.append(record).unwrap());
    assert!(holds(&journal, 1, 3000));
    let bytes = journal.bytes();
    drop(journal);

    let (mut journal, records) = reopen(&path);
    assert_eq!(records, kept);
    assert!(holds(&journal, 1, 3000));
    assert_eq!((journal.bytes(), size_on_disk(&path)), (bytes, bytes));
    journal.append(&unlink(3)).unwrap();
    assert_eq!(numbers(&reopen(&path).1), [1, 2, 3]);
}

#[test]
fn a_part_of_a_chunk_is_read_and_no_more_than_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    put(&mut journal, 1, 100);
    put(&mut journal, 2, 100);
    let kept = journal.chunk(id(1)).unwrap();
    assert_eq!(kept.read(90, 10).unwrap(), data(1, 100)[90..]);
    assert_eq!(kept.read(100, 0).unwrap().len(), 0);
    assert!(kept.read(90, 11).is_err());
    assert!(kept.read(u32::MAX, 2).is_err());
    assert!(journal.chunk(id(3)).is_none());
    journal.clear().unwrap();
    assert_eq!(kept.read(0, 100).unwrap(), data(1, 100), "who holds it can read it");
}

#[test]
fn a_new_mount_forgets() {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path()).append(&unlink(1)).unwrap();
    let (journal, records) = Journal::open(dir.path(), true).unwrap();
    assert_eq!((records, journal.bytes()), (Vec::new(), 0));
    assert_eq!(size_on_disk(dir.path()), 0);
}

#[test]
fn everything_can_be_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    (1..=20).for_each(|number| put_large(&mut journal, number));
    journal.clear().unwrap();
    assert_eq!((journal.bytes(), size_on_disk(dir.path())), (0, 0));
    assert!(journal.chunk(id(20)).is_none());
    journal.append(&unlink(1)).unwrap();
    assert_eq!(reopen(dir.path()).1, [unlink(1)]);
}

#[test]
fn users_contents_are_for_the_daemon_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changes");
    fresh(&path).append(&unlink(1)).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&last_segment(&path))), (0o700, 0o600));
}

#[test]
fn a_record_that_a_kill_cut_short_is_dropped_wherever_it_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    journal.append(&unlink(1)).unwrap();
    let whole = journal.bytes();
    put(&mut journal, 1, 50);
    let with_chunk = journal.bytes();
    journal.append(&write(2, &[1])).unwrap();
    let all = std::fs::read(last_segment(dir.path())).unwrap();
    for end in whole..all.len() as u64 {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format::segment_name(4)), &all[..end as usize]).unwrap();
        let (mut journal, records) = reopen(dir.path());
        assert_eq!(numbers(&records), [1], "cut at {end}");
        assert_eq!(journal.chunk(id(1)).is_some(), end >= with_chunk);
        put(&mut journal, 2, 60);
        journal.append(&write(2, &[2])).unwrap();
        let (journal, records) = reopen(dir.path());
        assert_eq!(records, [unlink(1), write(2, &[2])], "cut at {end}");
        assert!(holds(&journal, 2, 60));
    }
}

#[test]
fn nothing_is_believed_from_damage_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    (1..=3).for_each(|number| journal.append(&unlink(number)).unwrap());
    let all = std::fs::read(last_segment(dir.path())).unwrap();
    let per_record = all.len() / 3;
    for at in per_record..2 * per_record {
        let mut bad = all.clone();
        bad[at] ^= 0x10;
        std::fs::write(last_segment(dir.path()), &bad).unwrap();
        let (mut journal, records) = reopen(dir.path());
        assert_eq!(numbers(&records), [1], "damaged at {at}");
        journal.append(&unlink(2)).unwrap();
        assert_eq!(numbers(&reopen(dir.path()).1), [1, 2]);
    }
}

#[test]
fn damage_in_an_old_segment_leaves_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    (1..=40).for_each(|number| put_large(&mut journal, number));
    drop(journal);
    let first = dir.path().join(format::segment_name(1));
    File::options().write(true).open(&first).unwrap().write_all_at(b"damaged", 5 << 20).unwrap();
    let (mut journal, records) = reopen(dir.path());
    assert_eq!(numbers(&records), [1, 2, 3, 4]);
    assert!(holds(&journal, 4, LARGE) && journal.chunk(id(20)).is_none());
    put_large(&mut journal, 5);
    let (journal, records) = reopen(dir.path());
    assert_eq!(numbers(&records), [1, 2, 3, 4, 5]);
    assert_eq!(size_on_disk(dir.path()), journal.bytes());
}

#[test]
fn drained_segments_go_but_the_newest_two() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    (1..=64).for_each(|number| put_large(&mut journal, number));
    let before = journal.bytes();
    journal.drained(LEASE, 10).unwrap();
    assert_eq!(journal.bytes(), before, "a segment is needed as long as one of its changes is");
    journal.drained(LEASE, 40).unwrap();
    assert!(journal.chunk(id(1)).is_none() && holds(&journal, 41, LARGE));
    assert_eq!(size_on_disk(dir.path()), journal.bytes());

    journal.drained(LEASE, 64).unwrap();
    let (kept, most) = (journal.bytes(), SEGMENTS_KEPT as u64 * SEGMENT_BYTES);
    assert!(kept <= most && kept >= SEGMENT_BYTES / 2, "{kept} bytes are kept");
    let records = reopen(dir.path()).1;
    assert_eq!(records.last(), Some(&write(64, &[64])), "answers to repeated calls are kept");
    assert!(records.len() > 14 && records.is_sorted_by_key(|record| record.number));
}

#[test]
fn a_lease_that_is_lost_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    put_large(&mut journal, 1);
    for number in 1..=64 {
        put(&mut journal, 100 + number, LARGE);
        let lease = LeaseId(4);
        journal.append(&Record { lease, ..write(number, &[100 + number]) }).unwrap();
    }
    journal.drained(LeaseId(4), 64).unwrap();
    assert!(holds(&journal, 1, LARGE), "it is not drained yet");
    journal.drained(LEASE, u64::MAX).unwrap();
    assert!(journal.chunk(id(1)).is_none());
}

#[test]
fn a_chunk_is_kept_for_a_change_in_the_next_segment() {
    for repeated in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = fresh(dir.path());
        put(&mut journal, 1, LARGE);
        // Chunks fill two segments before the change that names them all comes.
        (2..=24).for_each(|seq| put(&mut journal, seq, LARGE));
        let named: Vec<u64> = (1..=24).collect();
        journal.append(&write(1, &named)).unwrap();
        (2..=64).for_each(|number| journal.append(&large_unlink(number)).unwrap());
        if repeated {
            drop(journal);
            journal = reopen(dir.path()).0;
        }
        journal.drained(LEASE, 0).unwrap();
        assert!((1..=24).all(|seq| holds(&journal, seq, LARGE)));
        journal.drained(LEASE, 1).unwrap();
        assert!(journal.chunk(id(1)).is_none());
    }
}

/// A change that takes room.
fn large_unlink(number: u64) -> Record {
    let name = vec![b'n'; LARGE].into();
    record(number, Command::Unlink(Unlink { parent: 1, name }))
}

#[test]
fn a_chunk_is_kept_for_a_change_that_another_overtook() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    put(&mut journal, 1, LARGE);
    journal.append(&unlink(1)).unwrap();
    (2..=20).for_each(|number| journal.append(&large_unlink(number)).unwrap());
    journal.append(&write(21, &[1])).unwrap();
    (22..=64).for_each(|number| journal.append(&large_unlink(number)).unwrap());
    journal.drained(LEASE, 20).unwrap();
    assert!(holds(&journal, 1, LARGE));
    journal.drained(LEASE, 21).unwrap();
    assert!(journal.chunk(id(1)).is_none());
}

#[test]
fn chunks_of_refused_changes_go_with_their_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    (1..=40).for_each(|seq| put(&mut journal, seq, LARGE));
    journal.drained(LEASE, 0).unwrap();
    assert!(holds(&journal, 1, LARGE), "its change may still come");
    journal.append(&unlink(1)).unwrap();
    journal.drained(LEASE, 1).unwrap();
    assert!(journal.bytes() <= 2 * SEGMENT_BYTES);
    assert!(journal.chunk(id(1)).is_none());
}

#[test]
fn a_chunk_that_is_put_again_goes_with_the_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    put(&mut journal, 1, 500);
    journal.append(&unlink(1)).unwrap();
    (2..=20).for_each(|number| journal.append(&large_unlink(number)).unwrap());
    put(&mut journal, 1, 500);
    journal.append(&write(21, &[1])).unwrap();
    (22..=64).for_each(|number| journal.append(&large_unlink(number)).unwrap());
    journal.drained(LEASE, 20).unwrap();
    assert!(holds(&journal, 1, 500));
    assert!(segment_numbers(dir.path()).unwrap()[0] > 1);
}

#[test]
fn what_is_too_large_is_refused_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = fresh(dir.path());
    let refused = journal.put_chunk(id(1), &vec![0; RECORD_BYTES_MAX]).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    journal.append(&unlink(1)).unwrap();
    assert!(journal.chunk(id(1)).is_none());
    assert_eq!(reopen(dir.path()).1, [unlink(1)]);
}

#[test]
fn a_full_file_system_refuses_and_the_journal_goes_on() {
    let Some(mount) = TinyMount::new("the journal of changes", 2) else { return };
    let dir = mount.path().join("changes");
    let mut journal = fresh(&dir);
    let mut number = 1;
    let refused = loop {
        put(&mut journal, number, 5_000);
        match journal.append(&Record { number, ..large_name(number) }) {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert!(journal.put_chunk(id(999), &vec![1; LARGE]).is_err());
    assert_eq!(size_on_disk(&dir), journal.bytes(), "nothing is left of what was refused");
    assert!(journal.chunk(id(999)).is_none());

    assert_eq!(numbers(&reopen(&dir).1), (1..number).collect::<Vec<_>>());
    // There is room for a small one still, or again.
    while let Err(error) = journal.append(&unlink(number)) {
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mount = std::ffi::CString::new("size=3m").unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount_remount(mount_path(&dir), flags, mount.as_c_str()).unwrap();
    }
    let (journal, records) = reopen(&dir);
    assert_eq!(numbers(&records), (1..=number).collect::<Vec<_>>());
    assert!((1..=number).all(|seq| holds(&journal, seq, 5_000)));
    drop(journal);
}

fn mount_path(dir: &Path) -> &Path {
    dir.parent().unwrap()
}

/// A change of some 100 KB.
fn large_name(number: u64) -> Record {
    let name = vec![b'n'; 100_000].into();
    record(number, Command::Unlink(Unlink { parent: 1, name }))
}

#[test]
fn files_of_others_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["README", "1.log", "000000001.log", "-0000001.log", "00000001.log.bak"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    let mut journal = fresh(dir.path());
    journal.append(&unlink(1)).unwrap();
    assert_eq!(reopen(dir.path()).1, [unlink(1)]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 6);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    /// Bytes that may be anything, behind a sound frame half of the time.
    #[test]
    fn any_bytes_give_records_or_none(
        pieces in proptest::collection::vec(
            (0..4u32, proptest::collection::vec(any::<u8>(), 0..120)), 0..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = Vec::new();
        for (kind, bytes) in &pieces {
            match kind {
                0 => segment.extend(bytes),
                1 => segment.extend(framed(Kind::Change, bytes)),
                2 => segment.extend(framed(Kind::Chunk, bytes)),
                _ => segment.extend(framed(Kind::Change, &format::encode_change(&unlink(7)))),
            }
        }
        std::fs::write(dir.path().join(format::segment_name(1)), &segment).unwrap();
        let (mut journal, records) = reopen(dir.path());
        journal.append(&unlink(8)).unwrap();
        let again = reopen(dir.path()).1;
        prop_assert_eq!(&again[..records.len()], &records[..]);
        prop_assert_eq!(again.last(), Some(&unlink(8)));
    }

    #[test]
    fn a_change_reads_back(
        fields in proptest::array::uniform4(any::<u64>()),
        name in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let [lease, number, call, time] = fields;
        let command = Command::Unlink(Unlink { parent: 1, name: name.into() });
        let (lease, time) = (LeaseId(lease), Time(time));
        let record = Record { lease, call, time, ..record(number, command) };
        let dir = tempfile::tempdir().unwrap();
        fresh(dir.path()).append(&record).unwrap();
        prop_assert_eq!(reopen(dir.path()).1, [record]);
    }
}

fn framed(kind: Kind, body: &[u8]) -> Vec<u8> {
    [&format::frame(kind, &[body]), body].concat()
}
