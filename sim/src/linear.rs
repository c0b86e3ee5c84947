//! Is a history linearizable? The search of Wing and Gong with Lowe's memory of where it has been.
//!
//! A history is a set of operations with the times of their invocation and return. It is
//! linearizable if they can be put into an order that respects "returned before the other was
//! invoked" and that the model allows. An operation without a known return may have taken effect at
//! any time after its invocation, or never.

use std::collections::HashSet;
use std::hash::Hash;

/// A sequential object: what an operation does to a state.
pub trait Model {
    type State: Clone + Eq + Hash;
    type Op;
    type Ret;

    fn initial(&self) -> Self::State;

    /// The state after the operation, if it may return this. `None` as the return: not known.
    fn step(
        &self,
        state: &Self::State,
        op: &Self::Op,
        ret: Option<&Self::Ret>,
    ) -> Option<Self::State>;
}

#[derive(Clone, Debug)]
pub struct Event<Op, Ret> {
    pub op: Op,
    pub invoked: u64,
    /// When it returned, and what.
    pub returned: Option<(u64, Ret)>,
}

impl<Op, Ret> Event<Op, Ret> {
    fn return_time(&self) -> u64 {
        self.returned.as_ref().map_or(u64::MAX, |(at, _)| *at)
    }
}

/// Which operations are placed already.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Placed(Vec<u64>);

impl Placed {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn flip(&mut self, at: usize) {
        self.0[at / 64] ^= 1 << (at % 64);
    }
}

pub fn is_linearizable<M: Model>(model: &M, history: &[Event<M::Op, M::Ret>]) -> bool {
    let mut events: Vec<&Event<M::Op, M::Ret>> = history.iter().collect();
    events.sort_by_key(|event| event.invoked);
    let mut placed = Placed::new(events.len());
    let mut seen = HashSet::new();
    let mut state = model.initial();
    let mut left = events.iter().filter(|event| event.returned.is_some()).count();
    // Each step of the path: which operation, and the state before it.
    let mut path: Vec<(usize, M::State)> = Vec::new();
    let mut from = 0;
    while left > 0 {
        match next(model, &events, &placed, &state, from, &mut seen) {
            Some((at, after)) => {
                placed.flip(at);
                left -= usize::from(events[at].returned.is_some());
                path.push((at, std::mem::replace(&mut state, after)));
                from = 0;
            }
            None => {
                let Some((at, before)) = path.pop() else { return false };
                placed.flip(at);
                left += usize::from(events[at].returned.is_some());
                state = before;
                from = at + 1;
            }
        }
    }
    true
}

/// The first operation from `from` on that may come next and leads somewhere new.
fn next<M: Model>(
    model: &M,
    events: &[&Event<M::Op, M::Ret>],
    placed: &Placed,
    state: &M::State,
    from: usize,
    seen: &mut HashSet<(Placed, M::State)>,
) -> Option<(usize, M::State)> {
    let open = || (0..events.len()).filter(|at| !placed.has(*at));
    // Nothing that was invoked after some unplaced operation returned may come before it.
    let horizon = open().map(|at| events[at].return_time()).min()?;
    for at in open() {
        let event = events[at];
        if event.invoked > horizon {
            break;
        }
        if at < from {
            continue;
        }
        let ret = event.returned.as_ref().map(|(_, ret)| ret);
        let Some(after) = model.step(state, &event.op, ret) else { continue };
        let mut with = placed.clone();
        with.flip(at);
        if seen.insert((with, after.clone())) {
            return Some((at, after));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: `w` writes, `r` reads.
    struct Register;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u8),
        Read,
    }

    impl Model for Register {
        type State = u8;
        type Op = Op;
        type Ret = u8;

        fn initial(&self) -> u8 {
            0
        }

        fn step(&self, state: &u8, op: &Op, ret: Option<&u8>) -> Option<u8> {
            match op {
                Op::Write(value) => Some(*value),
                Op::Read => ret.is_none_or(|ret| ret == state).then_some(*state),
            }
        }
    }

    /// "w1 0-10; r1 5-20; w2 3-?": operation and value, invocation and return.
    fn check(script: &str, expected: bool) {
        let history: Vec<Event<Op, u8>> =
            script.split(';').map(|line| event(line.trim())).collect();
        assert_eq!(is_linearizable(&Register, &history), expected, "{script}");
    }

    fn event(line: &str) -> Event<Op, u8> {
        let (what, when) = line.split_once(' ').unwrap();
        let value: u8 = what[1..].parse().unwrap();
        let op = if what.starts_with('w') { Op::Write(value) } else { Op::Read };
        let (invoked, returned) = when.split_once('-').unwrap();
        let returned = returned.parse().ok().map(|at| (at, value));
        Event { op, invoked: invoked.parse().unwrap(), returned }
    }

    #[test]
    fn sequential_histories() {
        check("w1 0-1; r1 2-3; w2 4-5; r2 6-7", true);
        check("w1 0-1; w2 2-3; r1 4-5", false);
        check("r1 0-1; w1 2-3", false);
    }

    #[test]
    fn concurrent_operations_may_go_either_way() {
        check("w1 0-10; r0 1-2; r1 3-4", true);
        check("w1 0-10; r1 1-2; r0 3-4", false);
        check("w1 0-10; w2 0-10; r1 11-12; r1 13-14", true);
        check("w1 0-10; w2 0-10; r1 11-12; r2 13-14", false);
    }

    #[test]
    fn an_unknown_outcome_may_come_late_or_never() {
        check("w1 0-?; r0 5-6; r1 7-8", true);
        check("w1 0-?; r0 5-6; r0 7-8", true);
        check("w1 0-?; r1 5-6; r0 7-8", false);
        check("r1 0-1; w1 2-?", false);
    }

    #[test]
    fn many_concurrent_writes_are_searched_quickly() {
        let mut lines: Vec<String> = (1..=12).map(|value| format!("w{value} 0-100")).collect();
        lines.push("r0 101-102".to_owned());
        check(&lines.join(";"), false);
        lines.pop();
        lines.push("r7 101-102; r7 103-104".to_owned());
        check(&lines.join(";"), true);
    }
}
