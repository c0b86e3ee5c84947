//! One named value of the registry as a sequential object, for the linearizability checker.

use crate::linear::Model;

/// What a client does to one key. Each written value is unique in the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put(u64),
    Delete,
    CompareAndSet { expected: u64, value: u64 },
    Get,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ret {
    /// The value has this version now.
    Version(u64),
    Deleted,
    Missing,
    /// The value had this version (0: there was none).
    Conflict(u64),
    Found {
        value: u64,
        version: u64,
    },
    Nothing,
}

/// A value and its version; 0 while the version is not known, because the reply that told it was
/// lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    value: u64,
    version: u64,
}

pub struct Key;

fn same(known: u64, told: u64) -> bool {
    known == 0 || known == told
}

impl Model for Key {
    type State = Option<Stored>;
    type Op = Op;
    type Ret = Ret;

    fn initial(&self) -> Option<Stored> {
        None
    }

    fn step(&self, state: &Option<Stored>, op: &Op, ret: Option<&Ret>) -> Option<Option<Stored>> {
        match (op, ret) {
            (Op::Put(value), None) => Some(Some(Stored { value: *value, version: 0 })),
            (Op::Put(value), Some(Ret::Version(version))) => {
                Some(Some(Stored { value: *value, version: *version }))
            }
            (Op::Delete, None) => Some(None),
            (Op::Delete, Some(Ret::Deleted)) => state.as_ref().map(|_| None),
            (Op::Delete, Some(Ret::Missing)) => state.is_none().then_some(None),
            (Op::CompareAndSet { expected, value }, ret) => {
                compare_and_set(state, *expected, *value, ret)
            }
            (Op::Get, Some(Ret::Nothing)) => state.is_none().then_some(None),
            (Op::Get, Some(Ret::Found { value, version })) => {
                let stored = state.as_ref()?;
                let fits = stored.value == *value && same(stored.version, *version);
                // Whoever reads learns the version that a lost reply had told.
                fits.then_some(Some(Stored { value: *value, version: *version }))
            }
            (Op::Get, None) => Some(state.clone()),
            (Op::Put(_) | Op::Delete | Op::Get, Some(_)) => None,
        }
    }
}

fn compare_and_set(
    state: &Option<Stored>,
    expected: u64,
    value: u64,
    ret: Option<&Ret>,
) -> Option<Option<Stored>> {
    let matches = match state {
        None => expected == 0,
        Some(stored) => expected != 0 && same(stored.version, expected),
    };
    match ret {
        Some(Ret::Version(version)) => matches.then_some(Some(Stored { value, version: *version })),
        Some(Ret::Conflict(found)) => {
            let fits = match state {
                None => *found == 0,
                Some(stored) => *found != 0 && same(stored.version, *found),
            };
            (fits && *found != expected).then(|| state.clone())
        }
        None if matches => Some(Some(Stored { value, version: 0 })),
        None => Some(state.clone()),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{Event, is_linearizable};

    fn done(op: Op, invoked: u64, returned: u64, ret: Ret) -> Event<Op, Ret> {
        Event { op, invoked, returned: Some((returned, ret)) }
    }

    #[test]
    fn a_lost_acknowledged_write_is_noticed() {
        let history = [
            done(Op::Put(1), 0, 1, Ret::Version(1)),
            done(Op::Put(2), 2, 3, Ret::Version(2)),
            done(Op::Get, 4, 5, Ret::Found { value: 1, version: 1 }),
        ];
        assert!(!is_linearizable(&Key, &history));
        assert!(is_linearizable(&Key, &history[..2]));
    }

    #[test]
    fn a_write_that_ran_twice_is_noticed() {
        let history = [
            done(Op::Put(1), 0, 1, Ret::Version(1)),
            done(Op::CompareAndSet { expected: 1, value: 2 }, 2, 3, Ret::Version(2)),
            done(Op::Get, 4, 5, Ret::Found { value: 1, version: 3 }),
        ];
        assert!(!is_linearizable(&Key, &history));
    }

    #[test]
    fn a_lost_reply_leaves_both_outcomes_open() {
        let lost = Event { op: Op::Put(9), invoked: 0, returned: None };
        let nothing = done(Op::Get, 5, 6, Ret::Nothing);
        let found = done(Op::Get, 7, 8, Ret::Found { value: 9, version: 4 });
        let other = done(Op::Get, 9, 10, Ret::Found { value: 9, version: 5 });
        assert!(is_linearizable(&Key, &[lost.clone(), nothing, found.clone()]));
        assert!(
            !is_linearizable(&Key, &[lost, found, other]),
            "versions do not change by themselves"
        );
    }
}
