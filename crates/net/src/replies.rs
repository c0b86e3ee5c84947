//! At most once: which requests of one peer were seen, and what was answered.
//!
//! A pure state machine. A request is identified by its lane (one run of the caller) and its number
//! in it. Invariant: `begin` says `Run` at most once for each identity, as long as its lane is
//! known; what cannot be told apart from a repetition is refused, never run.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// Callers that wait for one running request: the first attempt and repetitions of it.
const WAITERS_MAX: usize = 4;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Begin<A> {
    /// Never seen: run it, then call `finish`.
    Run,
    /// It is running; the waiter will be among those that `finish` gives.
    Attached,
    Done(A),
    /// The caller said before that it needs no reply to this.
    Settled,
    /// It may have run, and its reply is no longer kept.
    Forgotten,
}

/// The requests of one peer. `A` is a reply, `W` somebody who waits for it.
#[derive(Debug)]
pub(crate) struct Replies<A, W> {
    lanes: HashMap<u64, Lane<A, W>>,
    /// Kept replies, oldest first; some of them are gone already.
    order: VecDeque<(u64, u64)>,
    kept: usize,
    kept_bytes: usize,
    clock: u64,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) replies_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) lanes_max: usize,
}

#[derive(Debug)]
struct Lane<A, W> {
    requests: BTreeMap<u64, Request<A, W>>,
    /// The caller needs nothing below it.
    settled: u64,
    /// Replies up to this one may have been dropped for want of room.
    forgotten: Option<u64>,
    last_heard: u64,
}

#[derive(Debug)]
enum Request<A, W> {
    Running(Vec<W>),
    Done { answer: A, size: usize },
}

impl<A: Clone, W> Replies<A, W> {
    pub(crate) fn new(limits: Limits) -> Self {
        Replies {
            lanes: HashMap::new(),
            order: VecDeque::new(),
            kept: 0,
            kept_bytes: 0,
            clock: 0,
            limits,
        }
    }

    pub(crate) fn begin(&mut self, lane: u64, seq: u64, settled: u64, waiter: W) -> Begin<A> {
        self.clock += 1;
        if !self.lanes.contains_key(&lane) {
            self.make_room_for_lane();
        }
        self.settle(lane, settled);
        let lane = self.lane(lane);
        match lane.requests.get_mut(&seq) {
            Some(Request::Running(waiters)) => {
                if waiters.len() == WAITERS_MAX {
                    waiters.remove(0);
                }
                waiters.push(waiter);
                Begin::Attached
            }
            Some(Request::Done { answer, .. }) => Begin::Done(answer.clone()),
            None if seq < lane.settled => Begin::Settled,
            None if lane.forgotten.is_some_and(|last| seq <= last) => Begin::Forgotten,
            None => {
                lane.requests.insert(seq, Request::Running(vec![waiter]));
                Begin::Run
            }
        }
    }

    /// Keeps the answer, of so many bytes, and says who waits for it.
    pub(crate) fn finish(&mut self, lane: u64, seq: u64, answer: A, size: usize) -> Vec<W> {
        let Some(known) = self.lanes.get_mut(&lane) else { return Vec::new() };
        let waiters = match known.requests.get_mut(&seq) {
            Some(Request::Running(waiters)) => std::mem::take(waiters),
            Some(Request::Done { .. }) | None => return Vec::new(),
        };
        if seq < known.settled {
            known.requests.remove(&seq);
            return waiters;
        }
        known.requests.insert(seq, Request::Done { answer, size });
        self.order.push_back((lane, seq));
        self.kept += 1;
        self.kept_bytes += size;
        self.drop_beyond_limits();
        waiters
    }

    fn lane(&mut self, lane: u64) -> &mut Lane<A, W> {
        let clock = self.clock;
        let lane = self.lanes.entry(lane).or_insert_with(|| Lane {
            requests: BTreeMap::new(),
            settled: 0,
            forgotten: None,
            last_heard: clock,
        });
        lane.last_heard = clock;
        lane
    }

    fn settle(&mut self, lane: u64, settled: u64) {
        let known = self.lane(lane);
        if settled <= known.settled {
            return;
        }
        known.settled = settled;
        let done = |(seq, request): (&u64, &Request<A, W>)| {
            (*seq < settled && matches!(request, Request::Done { .. })).then_some(*seq)
        };
        let needless: Vec<u64> = known.requests.range(..settled).filter_map(done).collect();
        for seq in needless {
            self.remove(lane, seq);
        }
        // Entries of the order whose replies are gone are dropped in passing.
        while self.order.front().is_some_and(|(lane, seq)| !self.is_kept(*lane, *seq)) {
            self.order.pop_front();
        }
    }

    fn is_kept(&self, lane: u64, seq: u64) -> bool {
        let request = self.lanes.get(&lane).and_then(|lane| lane.requests.get(&seq));
        matches!(request, Some(Request::Done { .. }))
    }

    fn remove(&mut self, lane: u64, seq: u64) -> bool {
        let Some(known) = self.lanes.get_mut(&lane) else { return false };
        let Some(Request::Done { size, .. }) = known.requests.get(&seq) else { return false };
        self.kept -= 1;
        self.kept_bytes -= size;
        known.requests.remove(&seq);
        true
    }

    fn drop_beyond_limits(&mut self) {
        while self.kept > self.limits.replies_max
            || self.kept_bytes > self.limits.bytes_max
            || self.order.len() > 2 * self.limits.replies_max
        {
            let Some((lane, seq)) = self.order.pop_front() else { return };
            if self.remove(lane, seq)
                && let Some(lane) = self.lanes.get_mut(&lane)
            {
                lane.forgotten = lane.forgotten.max(Some(seq));
            }
        }
    }

    fn make_room_for_lane(&mut self) {
        while self.lanes.len() >= self.limits.lanes_max {
            let oldest = self.lanes.iter().min_by_key(|(_, lane)| lane.last_heard);
            let Some((&oldest, _)) = oldest else { return };
            let seqs: Vec<u64> = self
                .lanes
                .get(&oldest)
                .into_iter()
                .flat_map(|l| l.requests.keys().copied())
                .collect();
            for seq in seqs {
                self.remove(oldest, seq);
            }
            self.lanes.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { replies_max: 3, bytes_max: 100, lanes_max: 2 };

    /// Steps: "begin LANE SEQ SETTLED", "finish LANE SEQ SIZE".
    fn check(script: &str, outcome: Expect) {
        let mut replies: Replies<String, usize> = Replies::new(LIMITS);
        let mut log = String::new();
        for (step, line) in script.lines().map(str::trim).filter(|l| !l.is_empty()).enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |i: usize| words[i].parse::<u64>().unwrap();
            let result = match words[0] {
                "begin" => format!("{:?}", replies.begin(number(1), number(2), number(3), step)),
                _ => {
                    let answer = format!("r{}", words[2]);
                    let size = number(3) as usize;
                    format!("{:?}", replies.finish(number(1), number(2), answer, size))
                }
            };
            log += &format!("{step} {line}: {result}\n");
        }
        outcome.assert_eq(&log);
    }

    #[test]
    fn a_repeated_request_attaches_or_gets_the_first_reply() {
        check(
            "begin 1 1 0
             begin 1 1 0
             finish 1 1 5
             begin 1 1 0
             begin 1 2 2
             begin 1 1 2",
            expect![[r#"
                0 begin 1 1 0: Run
                1 begin 1 1 0: Attached
                2 finish 1 1 5: [0, 1]
                3 begin 1 1 0: Done("r1")
                4 begin 1 2 2: Run
                5 begin 1 1 2: Settled
            "#]],
        );
    }

    #[test]
    fn what_was_dropped_for_want_of_room_is_not_run_again() {
        check(
            "begin 1 1 0
             begin 1 2 0
             finish 1 1 60
             finish 1 2 60
             begin 1 1 0
             begin 1 2 0
             begin 1 3 0",
            expect![[r#"
                0 begin 1 1 0: Run
                1 begin 1 2 0: Run
                2 finish 1 1 60: [0]
                3 finish 1 2 60: [1]
                4 begin 1 1 0: Forgotten
                5 begin 1 2 0: Done("r2")
                6 begin 1 3 0: Run
            "#]],
        );
    }

    #[test]
    fn the_largest_number_is_a_number_like_others() {
        check(
            &format!(
                "begin 1 {max} 0
                 finish 1 {max} 101
                 begin 1 {max} 0",
                max = u64::MAX
            ),
            expect![[r#"
                0 begin 1 18446744073709551615 0: Run
                1 finish 1 18446744073709551615 101: [0]
                2 begin 1 18446744073709551615 0: Forgotten
            "#]],
        );
    }

    #[test]
    fn a_new_run_of_the_peer_replaces_the_oldest() {
        check(
            "begin 1 1 0
             finish 1 1 1
             begin 2 1 0
             begin 3 1 0
             begin 2 1 0
             finish 1 1 1",
            expect![[r#"
                0 begin 1 1 0: Run
                1 finish 1 1 1: [0]
                2 begin 2 1 0: Run
                3 begin 3 1 0: Run
                4 begin 2 1 0: Attached
                5 finish 1 1 1: []
            "#]],
        );
    }

    proptest! {
        #[test]
        fn nothing_runs_twice_and_nothing_grows(
            steps in prop::collection::vec((0u64..12, 0u64..4, any::<bool>(), 0usize..60), 1..200)
        ) {
            let mut replies: Replies<u64, ()> = Replies::new(LIMITS);
            let mut runs = std::collections::HashMap::new();
            let mut settled = 0;
            for (seq, advance, finish, size) in steps {
                if finish {
                    replies.finish(1, seq, seq, size);
                } else {
                    settled = if advance == 0 { settled + 1 } else { settled };
                    if replies.begin(1, seq + settled, settled, ()) == Begin::Run {
                        *runs.entry(seq + settled).or_insert(0) += 1;
                    }
                }
                prop_assert!(replies.kept <= LIMITS.replies_max);
                prop_assert!(replies.kept_bytes <= LIMITS.bytes_max);
                prop_assert!(replies.order.len() <= 2 * LIMITS.replies_max);
            }
            prop_assert!(runs.values().all(|count| *count == 1), "{:?}", runs);
        }
    }
}
