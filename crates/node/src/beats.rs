//! The grid of the daemon's timers: an idle daemon costs what its wake-ups cost, so those that need no
//! exact moment come together.
//!
//! The runtime keeps timers that are further away than a slot in coarser wheels, and wakes at a slot's
//! beginning to sort what is in it. Hence multiples of the slot, counted from where the runtime counts:
//! others wake the daemon twice. That is all that depends on the runtime's inner workings.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;
use unum_core::time::next_beat;

/// Of the runtime's timer wheel.
const SLOT: Duration = Duration::from_millis(64);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Where the grid begins. To be asked first just before the runtime is built, whose timers count from
/// then.
pub fn start() -> Instant {
    *START
}

/// How long the grid has run.
pub fn elapsed() -> Duration {
    START.elapsed()
}

/// Until the next multiple of `period`, which is rounded up to slots.
pub async fn beat(period: Duration) {
    tokio::time::sleep_until(*START + next_beat(START.elapsed(), in_slots(period))).await;
}

/// The time rounded up to slots; what is shorter than one has to be exact.
pub fn in_slots(time: Duration) -> Duration {
    due(Duration::ZERO, time)
}

/// When a timer that is set at `now` is due, by the same rule.
pub fn due(now: Duration, after: Duration) -> Duration {
    if after < SLOT { now + after } else { to_slot(now + after) }
}

/// The first slot that does not begin before `at`.
pub fn to_slot(at: Duration) -> Duration {
    let slots = at.as_nanos().div_ceil(SLOT.as_nanos());
    SLOT.saturating_mul(u32::try_from(slots).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn times_are_rounded_up_to_slots() {
        assert_eq!([MS * 63, MS * 64, MS * 100].map(in_slots), [MS * 63, MS * 64, MS * 128]);
        assert_eq!([Duration::ZERO, MS, MS * 64].map(to_slot), [Duration::ZERO, SLOT, SLOT]);
        assert_eq!([due(MS * 65, MS * 63), due(MS * 65, MS * 64)], [MS * 128, MS * 192]);
    }
}
