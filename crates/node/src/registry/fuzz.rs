//! Whatever bytes a disk hands back: reading a snapshot or replaying a log ends with a value or an
//! error. And what a rotten log end must not take with it.

use std::sync::Arc;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft_rt_tokio::TokioRuntime;
use proptest::prelude::*;
use prost::Message;
use unum_core::registry::State;
use unum_core::time::Time;
use unum_proto::registry as wire;
use unum_proto::registry::command::Kind;

use super::log::{LogStore, Replayed};
use super::offload::Offload;
use super::room::Room;
use super::snapshots::Snapshots;
use super::types::vote_from_wire;
use super::writer::Writer;
use crate::store::disk::{Disk, Open, SimDisk};
use crate::store::journal::{Journal, JournalOptions, Record, Tail};

const ROOM: u64 = 64 << 20;
const OPTIONS: JournalOptions = JournalOptions { first: 1, segment_bytes: 4096, salt: 7 };

fn disk() -> Arc<dyn Disk> {
    SimDisk::new(1, ROOM).unwrap().disk()
}

/// The bytes of a sound snapshot with something of everything simple.
fn sound() -> Vec<u8> {
    let mut state = State::default();
    let found = wire::Found {
        cluster: vec![7; 16].into(),
        name: "lab".into(),
        authorities_pem: vec!["pem".into()],
        node_name: "n1".into(),
        description: None,
    };
    state.apply(Time(1), &Kind::Found(found).into());
    for key in 0..4u8 {
        let put = wire::PutValue { key: vec![b'k', key].into(), value: vec![key; 100].into() };
        state.apply(Time(2), &Kind::PutValue(put).into());
    }
    let disk = disk();
    let head = wire::SnapshotHead::default();
    let file = Snapshots::new(disk).write(&head, &state).unwrap();
    file.read(0, usize::MAX).unwrap().to_vec()
}

/// Whether a snapshot with these bytes is taken for sound.
fn is_taken(bytes: &[u8]) -> bool {
    let disk = disk();
    disk.open("snapshot-1", Open::New).unwrap().write_at(bytes, 0).unwrap();
    let (found, rotten) = Snapshots::new(disk).latest().unwrap();
    assert_eq!(rotten, usize::from(found.is_none()));
    found.is_some()
}

/// Frames records as a snapshot does, so that their content is looked at.
fn framed(records: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"UNUMSNAP\x01\0\0\0\0\0\0\0".to_vec();
    for record in records {
        bytes.extend((record.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(record).to_le_bytes());
        bytes.extend(record);
    }
    let whole = crc32fast::hash(&bytes);
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(whole.to_le_bytes());
    bytes
}

/// The records of a snapshot, without their frames.
fn records_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut at = 16;
    loop {
        let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        if len == 0 {
            return records;
        }
        records.push(bytes[at + 8..at + 8 + len].to_vec());
        at += 8 + len;
    }
}

#[test]
fn framing_a_snapshot_again_gives_the_same_bytes() {
    let bytes = sound();
    assert!(framed(&records_of(&bytes)) == bytes && is_taken(&bytes));
}

fn replay(records: &[(u8, Vec<u8>)]) {
    let mut journal = Journal::open(disk(), OPTIONS).unwrap().0;
    for (kind, bytes) in records {
        journal.append(&[Record { kind: *kind, bytes }]).unwrap();
    }
    // Sound or refused, as long as it comes to something.
    let _ = Replayed::read(&journal).map(|replayed| replayed.found());
}

fn position() -> impl Strategy<Value = wire::LogId> {
    let index = prop_oneof![0..6u64, (u64::MAX - 3)..=u64::MAX];
    (0..3u64, index).prop_map(|(term, index)| wire::LogId { term, index })
}

/// Records that can be decoded, in an order that means nothing.
fn record() -> impl Strategy<Value = (u8, Vec<u8>)> {
    prop_oneof![
        position()
            .prop_map(|id| (1, wire::Entry { id: Some(id), ..Default::default() }.encode_to_vec())),
        position().prop_map(|id| (3, id.encode_to_vec())),
        proptest::option::of(position())
            .prop_map(|last| (4, wire::LogPosition { last }.encode_to_vec())),
        position().prop_map(|id| (5, id.encode_to_vec())),
        (0..8u8, proptest::collection::vec(any::<u8>(), 0..40)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_no_snapshot(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(!is_taken(&bytes));
    }

    #[test]
    fn a_changed_snapshot_is_refused(at in any::<prop::sample::Index>(), bits in 1..=255u8) {
        let mut bytes = sound();
        // The four bytes after the version say nothing, but the last checksum covers them.
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        prop_assert!(!is_taken(&bytes));
    }

    #[test]
    fn a_snapshot_cut_short_is_refused(at in any::<prop::sample::Index>()) {
        let bytes = sound();
        prop_assert!(!is_taken(&bytes[..at.index(bytes.len())]));
    }

    #[test]
    fn records_with_good_checksums_and_bad_content_do_not_panic(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bits in 1..=255u8,
        twice in any::<bool>(),
    ) {
        let mut records = records_of(&sound());
        let which = which.index(records.len());
        if twice {
            records.push(records[which].clone());
        }
        let record = &mut records[which];
        let at = at.index(record.len().max(1));
        if let Some(byte) = record.get_mut(at) {
            *byte ^= bits;
        }
        is_taken(&framed(&records));
    }

    #[test]
    fn any_log_replays_to_something(records in proptest::collection::vec(record(), 0..12)) {
        replay(&records);
    }
}

#[test]
fn a_vote_outlives_the_rot_of_the_last_group() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (journal, _) = Journal::open(sim.disk(), OPTIONS).unwrap();
    let replayed = Replayed::read(&journal).unwrap();
    let vote = vote_from_wire(Some(wire::Vote { term: 5, node: 2, committed: false })).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let room = Arc::new(Room::new(sim.disk(), 0));
        let (writer, ended) = Writer::<TokioRuntime>::start(journal, room, Offload::Threads);
        let mut log = LogStore::new(replayed, writer);
        log.save_vote(&vote).await.unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(vote));
        drop(log);
        let _ = ended.await;
    });
    sim.crash().unwrap();
    let name = "0000000000000001.journal";
    let size = sim.disk().open(name, Open::Existing).unwrap().size().unwrap();
    assert!(sim.rot(name, size - 1, 1));
    let (journal, tail) = Journal::open(sim.disk(), OPTIONS).unwrap();
    assert!(matches!(tail, Tail::Suspect { .. }), "{tail:?}");
    assert_eq!(Replayed::read(&journal).unwrap().found().vote, Some(vote));
}
