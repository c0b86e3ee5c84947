//! What the journal acknowledged is there after any crash; what is damaged is told, never returned.

use std::sync::Arc;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use rustix::io::Errno;

use super::format::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, scan};
use super::*;
use crate::store::disk::{Fault, Op, RealDisk, SimDisk, read_whole};

const ROOM: u64 = 64 << 20;

fn options() -> JournalOptions {
    JournalOptions { first: 1, segment_bytes: 2000, salt: 42 }
}

fn open(sim: &SimDisk) -> Result<(Journal, Tail), JournalError> {
    Journal::open(sim.disk(), options())
}

fn body(seq: Seq, round: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![round; len];
    bytes.extend_from_slice(&seq.to_le_bytes());
    bytes
}

fn append(journal: &mut Journal, bodies: &[Vec<u8>]) -> Result<Seq, JournalError> {
    let records: Vec<_> = bodies.iter().map(|bytes| Record { kind: 7, bytes }).collect();
    journal.append(&records)
}

/// Three groups of two records with 100 bytes each, in one segment.
fn three_groups(sim: &SimDisk) -> Journal {
    let (mut journal, tail) = open(sim).unwrap();
    assert_eq!(tail, Tail::Clean);
    for round in 0..3 {
        append(&mut journal, &[vec![round; 100], vec![round; 100]]).unwrap();
    }
    journal
}

const SEGMENT: &str = "0000000000000001.journal";
const RECORD: u64 = RECORD_HEADER_BYTES as u64 + 100;

/// Where the n-th record starts, counted from 0.
fn record_at(n: u64) -> u64 {
    SEGMENT_HEADER_BYTES as u64 + n * RECORD
}

fn check_damage(damage: impl FnOnce(&SimDisk), expected: Expect) {
    let sim = SimDisk::new(1, ROOM).unwrap();
    drop(three_groups(&sim));
    sim.crash().unwrap();
    damage(&sim);
    sim.crash().unwrap();
    let outcome = match open(&sim) {
        Ok((journal, tail)) => format!("{tail:?}; next {}", journal.next()),
        Err(error) => format!("{error}"),
    };
    expected.assert_eq(&outcome);
}

fn cut_to(sim: &SimDisk, len: u64) {
    let file = sim.disk().open(SEGMENT, Open::Existing).unwrap();
    file.set_len(len).unwrap();
    file.sync().unwrap();
}

#[test]
fn damage_is_judged() {
    check_damage(|_| (), expect!["Clean; next 7"]);
    check_damage(
        |sim| cut_to(sim, record_at(6) - 1),
        expect![[
            r#"Torn { file: "sim:/0000000000000001.journal", offset: 724, bytes: 131 }; next 6"#
        ]],
    );
    check_damage(
        |sim| cut_to(sim, record_at(5) + 10),
        expect![[
            r#"Torn { file: "sim:/0000000000000001.journal", offset: 724, bytes: 10 }; next 6"#
        ]],
    );
    check_damage(|sim| cut_to(sim, record_at(5)), expect!["Clean; next 6"]);
    // In the last group: the first record bad, then the second.
    check_damage(
        |sim| assert!(sim.rot(SEGMENT, record_at(4) + 50, 1)),
        expect![[
            r#"Suspect { file: "sim:/0000000000000001.journal", offset: 592, bytes: 264, zeroed: false }; next 5"#
        ]],
    );
    check_damage(
        |sim| assert!(sim.rot(SEGMENT, record_at(5) + 9, 4)),
        expect![[
            r#"Suspect { file: "sim:/0000000000000001.journal", offset: 724, bytes: 132, zeroed: false }; next 6"#
        ]],
    );
    // A later group proves that it had been synced.
    check_damage(
        |sim| assert!(sim.rot(SEGMENT, record_at(3) + 3, 1)),
        expect![
            "sim:/0000000000000001.journal is damaged at byte 460: a record does not match its checksum, though a later group follows. The disk has lost what it had acknowledged: check it, then remove this node from the cluster and let it join again with an empty data directory"
        ],
    );
    check_damage(
        |sim| assert!(sim.rot(SEGMENT, 20, 1)),
        expect![
            "sim:/0000000000000001.journal is damaged at byte 0: its header is not sound, and there are records behind it. The disk has lost what it had acknowledged: check it, then remove this node from the cluster and let it join again with an empty data directory"
        ],
    );
}

#[test]
fn zeros_at_the_end_speak_for_a_power_cut() {
    check_damage(
        |sim| {
            let file = sim.disk().open(SEGMENT, Open::Existing).unwrap();
            file.set_len(record_at(6) + 1000).unwrap();
            file.sync().unwrap();
        },
        expect![[
            r#"Suspect { file: "sim:/0000000000000001.journal", offset: 856, bytes: 1000, zeroed: true }; next 7"#
        ]],
    );
}

#[test]
fn rot_is_told_in_sealed_segments_and_by_readers() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (mut journal, _) = open(&sim).unwrap();
    for round in 0..10 {
        append(&mut journal, &[vec![round; 900]]).unwrap();
    }
    assert!(sim.rot(SEGMENT, record_at(0) + 40, 1));
    let reader = journal.reader();
    assert!(matches!(reader.read(1), Err(JournalError::Rotten { offset: 64, .. })));
    assert_eq!(reader.read(2).unwrap().bytes, vec![1; 900]);
    drop(journal);
    sim.crash().unwrap();
    assert!(matches!(open(&sim), Err(JournalError::Rotten { offset: 64, .. })));
}

#[test]
fn a_missing_segment_is_told() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (mut journal, _) = open(&sim).unwrap();
    for round in 0..10 {
        append(&mut journal, &[vec![round; 900]]).unwrap();
    }
    sim.disk().remove("0000000000000003.journal").unwrap();
    assert!(matches!(open(&sim), Err(JournalError::Rotten { offset: 0, .. })));
}

#[test]
fn ranges_cross_segments_and_respect_their_limit() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (mut journal, _) = open(&sim).unwrap();
    for seq in 1..=40 {
        append(&mut journal, &[body(seq, 1, 300)]).unwrap();
    }
    let reader = journal.reader();
    let all = reader.read_range(1, 100, usize::MAX).unwrap();
    assert_eq!(all.iter().map(|entry| entry.seq).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    assert!(all.iter().all(|entry| entry.bytes == body(entry.seq, 1, 300) && entry.kind == 7));
    assert_eq!(reader.read_range(5, 41, 1).unwrap().len(), 1);
    assert_eq!(reader.read_range(5, 41, 1100).unwrap().len(), 3);
    assert!(reader.read_range(41, 41, 10).unwrap().is_empty());
    assert!(matches!(reader.read(41), Err(JournalError::OutOfRange { first: 1, next: 41, .. })));
    journal.release(30).unwrap();
    assert!(journal.first() > 20 && journal.first() <= 30);
    assert!(matches!(reader.read(1), Err(JournalError::OutOfRange { .. })));
    journal.restart(1000).unwrap();
    assert_eq!(append(&mut journal, &[body(1000, 1, 3)]).unwrap(), 1000);
    sim.crash().unwrap();
    let (journal, _) = open(&sim).unwrap();
    assert_eq!((journal.first(), journal.next()), (1000, 1001));
    assert_eq!(sim.disk().list().unwrap().len(), 1);
}

#[test]
fn a_failed_sync_stops_the_journal_until_it_is_opened_again() {
    for seed in 0..30 {
        let sim = SimDisk::new(seed, ROOM).unwrap();
        let mut journal = three_groups(&sim);
        let fault = |op| Fault { op, path_contains: "journal".into(), after: 0, errno: Errno::IO };
        sim.fail(fault(Op::Sync));
        assert!(matches!(
            append(&mut journal, &[body(7, 9, 700)]),
            Err(JournalError::Poisoned { .. })
        ));
        assert!(matches!(
            append(&mut journal, &[body(7, 9, 5)]),
            Err(JournalError::Poisoned { .. })
        ));
        // The kernel still shows what the disk never got: opening must make it true.
        let (journal, _) = open(&sim).unwrap();
        let next = journal.next();
        sim.crash().unwrap();
        let (journal, tail) = open(&sim).unwrap();
        assert_eq!((journal.next(), tail), (next, Tail::Clean), "seed {seed}");
    }
}

#[test]
fn a_failed_write_stops_the_journal_too() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let mut journal = three_groups(&sim);
    sim.fail(Fault { op: Op::Write, path_contains: "journal".into(), after: 0, errno: Errno::IO });
    assert!(matches!(append(&mut journal, &[body(7, 9, 70)]), Err(JournalError::Poisoned { .. })));
}

#[test]
fn a_full_disk_costs_the_append_and_nothing_else() {
    let sim = SimDisk::new(5, 20_000).unwrap();
    let (mut journal, _) = open(&sim).unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        match append(&mut journal, &[body(0, 1, 700)]) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, JournalError::Full(_)), "{refused}");
    sim.set_total_bytes(ROOM);
    append(&mut journal, &[body(0, 2, 700)]).unwrap();
    sim.crash().unwrap();
    let (journal, tail) = open(&sim).unwrap();
    assert_eq!((journal.next(), tail), (acknowledged + 2, Tail::Clean));
}

#[test]
fn what_does_not_fit_is_refused() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (mut journal, _) = open(&sim).unwrap();
    let large = vec![vec![0; RECORD_BYTES_MAX + 1]];
    assert!(matches!(append(&mut journal, &large), Err(JournalError::TooLarge { .. })));
    assert_eq!(append(&mut journal, &[vec![0; 9000]]).unwrap(), 1);
    assert_eq!(journal.append(&[]).unwrap(), 2);
}

#[tokio::test]
async fn the_queue_groups_and_keeps_the_order() {
    let sim = SimDisk::new(1, ROOM).unwrap();
    let (journal, _) = Journal::open(sim.disk(), JournalOptions::default()).unwrap();
    let queue = JournalQueue::start(journal).unwrap();
    let one = |i: u8| vec![OwnedRecord { kind: i, bytes: vec![i; 50].into() }];
    let mut pending = Vec::new();
    for i in 0..100 {
        pending.push(queue.append(one(i)).await.unwrap());
    }
    for (i, pending) in pending.into_iter().enumerate() {
        assert_eq!(pending.done().await.unwrap(), i as u64 + 1);
    }
    queue.truncate(51).await.unwrap().done().await.unwrap();
    assert_eq!(queue.append(one(200)).await.unwrap().done().await.unwrap(), 51);
    assert_eq!(queue.reader().read(51).unwrap().kind, 200);
    let too_large = vec![OwnedRecord { kind: 0, bytes: vec![0; RECORD_BYTES_MAX + 1].into() }];
    let refused = queue.append(too_large).await.unwrap().done().await;
    assert!(matches!(refused, Err(JournalError::TooLarge { .. })));
}

#[test]
fn a_real_full_disk() {
    let Some(mount) = crate::store::disk::tests::TinyMount::new("journal", 2) else { return };
    let disk = Arc::new(RealDisk::open(mount.path()).unwrap());
    let options = JournalOptions { first: 1, segment_bytes: 500_000, salt: 1 };
    let (mut journal, _) = Journal::open(disk.clone(), options).unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        match append(&mut journal, &[vec![3; 30_000]]) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, JournalError::Full(_)), "{refused}");
    assert!(acknowledged > 40);
    // A small one may still fit; the large one is refused again, and released room helps.
    assert!(append(&mut journal, &[vec![3; 30_000]]).is_err());
    journal.release(acknowledged).unwrap();
    append(&mut journal, &[vec![4; 30_000]]).unwrap();
    let (first, next) = (journal.first(), journal.next());
    drop(journal);
    let (journal, tail) = Journal::open(disk, options).unwrap();
    assert_eq!((journal.first(), journal.next(), tail), (first, next, Tail::Clean));
    assert_eq!(journal.reader().read(next - 1).unwrap().bytes, vec![4; 30_000]);
}

#[derive(Clone, Debug)]
enum Step {
    Append { records: u8, len: u16 },
    Truncate(u8),
    Release(u8),
    Restart(u8),
    Fail { op: Op, after: u8, full: bool },
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
        12 => (0..5u8, 0..900u16).prop_map(|(records, len)| Step::Append { records, len }),
        3 => (0..20u8).prop_map(Step::Truncate),
        2 => (0..20u8).prop_map(Step::Release),
        1 => (0..50u8).prop_map(Step::Restart),
        3 => (op, 0..6u8, any::<bool>())
            .prop_map(|(op, after, full)| Step::Fail { op, after, full }),
        4 => Just(Step::Crash),
    ]
}

/// What may be in the journal: for each number, what was acknowledged or tried there.
#[derive(Default)]
struct Model {
    /// First number that must be there and the records from there on, all acknowledged.
    first_max: Seq,
    sure: Vec<Vec<u8>>,
    /// Records behind the sure ones that may be there, as one of these runs or a prefix of it.
    maybe: Vec<Vec<Vec<u8>>>,
    /// Another shape that the journal may have had since, if a change of it failed.
    restarts: Vec<Seq>,
}

impl Model {
    fn next(&self) -> Seq {
        self.first_max + self.sure.len() as u64
    }
}

/// Compares and then believes what the journal has.
fn settle(model: &mut Model, journal: &Journal) -> Result<(), TestCaseError> {
    let (first, next) = (journal.first(), journal.next());
    let entries = journal.reader().read_range(first, next, usize::MAX).unwrap();
    let found: Vec<Vec<u8>> = entries.iter().map(|entry| entry.bytes.to_vec()).collect();
    if model.restarts.contains(&first) && found.is_empty() {
        *model = Model { first_max: first, ..Model::default() };
        return Ok(());
    }
    prop_assert!(first <= model.first_max, "lost the beginning: {first} > {}", model.first_max);
    prop_assert!(next >= model.next(), "lost the end: {next} < {}", model.next());
    let (sure, maybe) = found[(model.first_max - first) as usize..].split_at(model.sure.len());
    prop_assert_eq!(sure, &model.sure[..]);
    let explained = maybe.is_empty() || model.maybe.iter().any(|run| run.starts_with(maybe));
    prop_assert!(explained, "records that nobody appended");
    *model = Model { first_max: first, sure: found, ..Model::default() };
    Ok(())
}

fn run(seed: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let sim = SimDisk::new(seed, ROOM).unwrap();
    let mut model = Model { first_max: 1, ..Model::default() };
    let mut journal = None;
    for (round, step) in steps.iter().enumerate() {
        if journal.is_none() {
            match open(&sim) {
                Ok((opened, _)) => {
                    settle(&mut model, &opened)?;
                    journal = Some(opened);
                }
                Err(JournalError::Rotten { file, offset, what }) => {
                    return Err(TestCaseError::fail(format!("{file} {offset} {what}")));
                }
                // An ordered fault; each strikes once.
                Err(_) => {}
            }
        }
        let Some(open) = &mut journal else { continue };
        let outcome = match step {
            Step::Append { records, len } => {
                let next = open.next();
                let run: Vec<_> = (0..u64::from(*records))
                    .map(|i| body(next + i, round as u8, *len as usize))
                    .collect();
                let outcome = append(open, &run).map(drop);
                match &outcome {
                    Ok(()) => model.sure.extend(run),
                    Err(JournalError::Full(_)) => {}
                    Err(_) => model.maybe.push(run),
                }
                outcome
            }
            Step::Truncate(back) => {
                let next = model.next().saturating_sub(u64::from(*back)).max(model.first_max);
                let keep = next.saturating_sub(model.first_max) as usize;
                let gone = model.sure.split_off(keep.min(model.sure.len()));
                let outcome = open.truncate(next);
                if outcome.is_err() {
                    model.maybe.push(gone);
                }
                outcome
            }
            Step::Release(on) => {
                let below = (open.first() + u64::from(*on)).min(open.next());
                let outcome = open.release(below).map(drop);
                let gone = below.saturating_sub(model.first_max).min(model.sure.len() as u64);
                model.sure.drain(..gone as usize);
                model.first_max += gone;
                outcome
            }
            Step::Restart(on) => {
                let next = open.next() + u64::from(*on);
                let outcome = open.restart(next);
                match &outcome {
                    Ok(()) => model = Model { first_max: next, ..Model::default() },
                    Err(_) => model.restarts.push(next),
                }
                outcome
            }
            Step::Fail { op, after, full } => {
                let errno = if *full { Errno::NOSPC } else { Errno::IO };
                let after = u32::from(*after);
                sim.fail(Fault { op: *op, path_contains: String::new(), after, errno });
                Ok(())
            }
            Step::Crash => {
                sim.crash().unwrap();
                journal = None;
                Ok(())
            }
        };
        match outcome {
            Err(JournalError::Poisoned { .. }) => journal = None,
            Err(JournalError::Full(_) | JournalError::Disk(_)) | Ok(()) => {
                if let Some(open) = &journal
                    && model.maybe.is_empty()
                    && model.restarts.is_empty()
                {
                    prop_assert_eq!(open.next(), model.next());
                }
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }
    sim.crash().unwrap();
    let (journal, _) = open(&sim).map_err(|error| TestCaseError::fail(error.to_string()))?;
    settle(&mut model, &journal)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 1500,
        ..ProptestConfig::default()
    })]

    /// Under power cuts, failing and full disks at any point.
    #[test]
    fn nothing_acknowledged_is_lost(seed: u64, steps in prop::collection::vec(step(), 1..60)) {
        run(seed, &steps)?;
    }

    /// Any bytes may stand in a segment.
    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        flips in prop::collection::vec((0..900usize, any::<u8>()), 0..6),
        len in 0..1000usize,
    ) {
        let header = SegmentHeader { number: 1, first: u64::MAX - 1, salt: 0, restart: false };
        let scanned = scan(&bytes, &header);
        prop_assert!(scanned.end as usize <= bytes.len().max(SEGMENT_HEADER_BYTES));
        let sim = SimDisk::new(1, ROOM).unwrap();
        drop(three_groups(&sim));
        let mut damaged = read_whole(&*sim.disk(), SEGMENT, 1 << 20).unwrap();
        for (at, byte) in flips {
            if let Some(place) = damaged.get_mut(at) {
                *place ^= byte;
            }
        }
        damaged.truncate(len);
        for content in [damaged, bytes] {
            let file = sim.disk().open(SEGMENT, Open::Any).unwrap();
            file.set_len(0).unwrap();
            file.write_at(&content, 0).unwrap();
            if let Ok((journal, _)) = open(&sim) {
                journal.reader().read_range(journal.first(), journal.next(), usize::MAX).unwrap();
            }
        }
    }
}
