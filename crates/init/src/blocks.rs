//! Keeps the kernel's PID cursor inside the blocks that this node was leased.
//!
//! The kernel gives PIDs upward from its cursor and, at pid_max, begins again at 300: outside every
//! block. So pid_max is the end of the block in use, and the cursor is moved to the start of the next
//! block (or of the same one) well before it gets there. Free PIDs are found by the kernel: it skips
//! those in use.
//!
//! [`Guard`] is pure: it is told where the cursor is and says what to do; `PidCursor` in sys does it.

use std::time::Duration;

use unum_proto::init::PidBlock;
use unum_sys::pids::PID_LIMIT;

/// The cursor turns back when fewer PIDs than this are left in the block, or half the block.
const MARGIN_PIDS: u32 = 8192;

/// Forks and threads in a millisecond that a node is trusted not to exceed.
const FORKS_PER_MS_MAX: u32 = 25;

/// Bounds of the time between two looks at the cursor.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_secs(1);
/// The longest pause while the PIDs ahead may all be in use.
const LOOK_CROWDED: Duration = Duration::from_millis(20);

/// The kernel reserves the PIDs below; it never gives them once past.
const FIRST_PID: u32 = 301;

/// Smallest useful block.
const BLOCK_SIZE_MIN: u32 = 256;

/// Most blocks of one node.
pub const BLOCKS_MAX: usize = 256;

/// Spawns are refused from this share of the PIDs in use on, and the client is told from the other on.
const FULL_PERCENT: u64 = 90;
const LOW_PERCENT: u64 = 50;

/// What the cursor needs, in this order of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Raise pid_max to this first, so that the cursor is never above it: at or above pid_max the
    /// next PID would be 300.
    pub limit_before: u32,
    pub next: u32,
    pub limit_after: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    TooMany,
    /// Not within the PIDs that Linux can give, or smaller than 256.
    BadRange(u32, u32),
    Overlap(u32),
}

#[derive(Default)]
pub struct Guard {
    blocks: Vec<PidBlock>,
    current: usize,
    /// The namespace's pid_max as it was last set, 0 before.
    limit: u32,
    strayed: u64,
    tasks: u32,
}

impl Guard {
    /// Takes the new set over and says how to enter it. The block in use stays in use when it is in
    /// the new set too.
    pub fn set(
        &mut self,
        mut blocks: Vec<PidBlock>,
        last: u32,
    ) -> Result<Option<Move>, BlockError> {
        check(&mut blocks)?;
        self.blocks = blocks;
        let within = self.blocks.iter().position(|b| (b.lo..b.hi).contains(&last));
        match within {
            Some(index) if self.blocks.get(index).is_some_and(|b| b.hi == self.limit) => {
                self.current = index;
                Ok(None)
            }
            Some(index) => Ok(self.enter(index, last, last + 1)),
            None => {
                let start = self.blocks.first().map_or(0, |b| b.lo);
                Ok(self.enter(0, last, start))
            }
        }
    }

    fn enter(&mut self, index: usize, last: u32, next: u32) -> Option<Move> {
        let to = *self.blocks.get(index)?;
        self.current = index;
        self.limit = to.hi;
        Some(Move {
            limit_before: to.hi.max(last.saturating_add(2)).min(PID_LIMIT),
            next,
            limit_after: to.hi,
        })
    }

    pub fn blocks(&self) -> &[PidBlock] {
        &self.blocks
    }

    /// How often the cursor was seen outside the blocks.
    pub fn strayed(&self) -> u64 {
        self.strayed
    }

    /// `last` is the PID given last.
    pub fn look(&mut self, last: u32) -> Option<Move> {
        let block = *self.blocks.get(self.current)?;
        // Just after a move the cursor is lo - 1.
        let inside = last + 1 >= block.lo && last < block.hi;
        if inside && block.hi - last > margin(block) {
            return None;
        }
        if !inside {
            self.strayed += 1;
        }
        let next = (self.current + 1) % self.blocks.len();
        let start = self.blocks.get(next)?.lo;
        self.enter(next, last, start)
    }

    /// When to look again.
    pub fn pause(&self, last: u32) -> Duration {
        let Some(block) = self.blocks.get(self.current) else { return LOOK_MAX };
        let left = block.hi.saturating_sub(last + 1);
        // Half of the time that they last: the wake-up may be late by as much again.
        let lasting = |left: u32| Duration::from_millis(u64::from(left / FORKS_PER_MS_MAX / 2));
        // The cursor skips what is in use, at worst all at once; crowded blocks are looked at often
        // anyway.
        let free = lasting(left.saturating_sub(self.tasks));
        free.max(lasting(left).min(LOOK_CROWDED)).clamp(LOOK_MIN, LOOK_MAX)
    }

    pub fn counted(&mut self, tasks: u32) {
        self.tasks = tasks;
    }

    pub fn tasks(&self) -> u32 {
        self.tasks
    }

    pub fn total(&self) -> u32 {
        self.blocks.iter().map(|b| b.hi - b.lo).sum()
    }

    pub fn is_low(&self) -> bool {
        self.used_percent() >= LOW_PERCENT
    }

    pub fn is_full(&self) -> bool {
        self.used_percent() >= FULL_PERCENT
    }

    fn used_percent(&self) -> u64 {
        match u64::from(self.total()) {
            0 => 100,
            total => u64::from(self.tasks) * 100 / total,
        }
    }
}

fn margin(block: PidBlock) -> u32 {
    ((block.hi - block.lo) / 2).min(MARGIN_PIDS)
}

fn check(blocks: &mut [PidBlock]) -> Result<(), BlockError> {
    if blocks.len() > BLOCKS_MAX {
        return Err(BlockError::TooMany);
    }
    blocks.sort_by_key(|b| b.lo);
    for b in blocks.iter() {
        if b.lo < FIRST_PID || b.hi > PID_LIMIT || b.hi.saturating_sub(b.lo) < BLOCK_SIZE_MIN {
            return Err(BlockError::BadRange(b.lo, b.hi));
        }
    }
    match blocks.windows(2).find(|w| matches!(w, [a, b] if a.hi > b.lo)) {
        Some([_, b]) => Err(BlockError::Overlap(b.lo)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(lo: u32, hi: u32) -> PidBlock {
        PidBlock { lo, hi }
    }

    #[test]
    fn blocks_are_checked() {
        let mut guard = Guard::default();
        assert_eq!(guard.set(vec![block(300, 900)], 1), Err(BlockError::BadRange(300, 900)));
        assert_eq!(guard.set(vec![block(900, 800)], 1), Err(BlockError::BadRange(900, 800)));
        assert_eq!(guard.set(vec![block(9000, 9010)], 1), Err(BlockError::BadRange(9000, 9010)));
        let two = vec![block(2000, 3000), block(1000, 2001)];
        assert_eq!(guard.set(two, 1), Err(BlockError::Overlap(2000)));
        assert_eq!(
            guard.set(vec![block(1000, 1000 + BLOCK_SIZE_MIN); 257], 1),
            Err(BlockError::TooMany)
        );
    }

    #[test]
    fn a_block_in_use_is_not_left_when_more_come() {
        let mut guard = Guard::default();
        assert!(guard.set(vec![block(5000, 6000)], 1).is_ok_and(|m| m.is_some()));
        assert_eq!(guard.set(vec![block(1000, 2000), block(5000, 6000)], 5100), Ok(None));
        assert_eq!(guard.look(5100), None);
    }

    /// A kernel that allocates as Linux does.
    struct Kernel {
        last: u32,
        limit: u32,
    }

    impl Kernel {
        fn fork(&mut self) -> u32 {
            self.last = if self.last + 1 >= self.limit { 300 } else { self.last + 1 };
            self.last
        }

        fn apply(&mut self, to: Move) {
            self.limit = to.limit_before;
            self.last = to.next - 1;
            self.limit = to.limit_after;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Under the fork rate that the guard trusts, no PID is outside the blocks.
        #[test]
        fn no_pid_strays(
            sizes in prop::collection::vec((0u32..5000, BLOCK_SIZE_MIN..40_000), 1..5),
            rates in prop::collection::vec(0u32..=FORKS_PER_MS_MAX, 1..200),
        ) {
            let mut at = FIRST_PID;
            let mut blocks = Vec::new();
            for (gap, size) in sizes {
                blocks.push(block(at + gap, at + gap + size));
                at += gap + size;
            }
            let mut guard = Guard::default();
            let mut kernel = Kernel { last: 1, limit: PID_LIMIT };
            let entered = guard.set(blocks.clone(), kernel.last);
            let Ok(Some(entered)) = entered else { return Err(TestCaseError::fail("not entered")) };
            kernel.apply(entered);
            for rate in rates {
                let ms = guard.pause(kernel.last).as_millis() as u32;
                // Late by as much as is trusted.
                for _ in 0..rate * ms * 2 {
                    let pid = kernel.fork();
                    prop_assert!(blocks.iter().any(|b| (b.lo..b.hi).contains(&pid)), "{pid}");
                }
                if let Some(to) = guard.look(kernel.last) {
                    kernel.apply(to);
                }
            }
            prop_assert_eq!(guard.strayed(), 0);
        }
    }
}
