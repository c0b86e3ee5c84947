//! Time as the decisions see it: always an argument, never a clock.

use std::fmt;
use std::time::Duration;

/// Nanoseconds since the Unix epoch, as the leader stamped them into a log entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    pub const ZERO: Self = Self(0);

    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(NANOS_PER_SEC))
    }

    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Stops at the end of time instead of wrapping.
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / NANOS_PER_SEC, self.0 % NANOS_PER_SEC)
    }
}

pub const NANOS_PER_SEC: u64 = 1_000_000_000;

/// The first multiple of `period` after `elapsed`, for loops that keep to a grid.
pub fn next_beat(elapsed: Duration, period: Duration) -> Duration {
    let periods = elapsed.as_nanos() / period.as_nanos().max(1) + 1;
    period.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_multiples_of_their_period() {
        let ms = Duration::from_millis(1);
        assert_eq!(next_beat(Duration::ZERO, ms * 128), ms * 128);
        assert_eq!(next_beat(ms * 127, ms * 128), ms * 128);
        assert_eq!(next_beat(ms * 128, ms * 128), ms * 256);
    }
}
