//! A rate that background work keeps to.
//!
//! Invariant: what is taken over any time is at most the rate times that time, and the piece that
//! began it.

use std::time::Duration;

/// Bytes per second. Time is counted from any one moment.
#[derive(Clone, Debug)]
pub struct Throttle {
    rate: u64,
    /// When what was taken so far is paid for.
    due: Duration,
}

impl Throttle {
    /// A rate of 0 is taken for 1.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { rate: bytes_per_second.max(1), due: Duration::ZERO }
    }

    /// How long to wait before `bytes` may be worked on.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let start = self.due.max(now);
        self.due = start + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        start - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_no_credit_is_saved() {
        let mut throttle = Throttle::new(1000);
        let at = Duration::from_millis;
        assert_eq!(throttle.take(at(0), 500), at(0));
        assert_eq!(throttle.take(at(0), 500), at(500));
        assert_eq!(throttle.take(at(0), 1), at(1000));
        // After a rest, the next piece comes at once and the one behind it does not.
        assert_eq!(throttle.take(at(60_000), 2000), at(0));
        assert_eq!(throttle.take(at(60_000), 1), at(2000));
        assert_eq!(Throttle::new(0).take(at(5), 10), at(0));
    }
}
