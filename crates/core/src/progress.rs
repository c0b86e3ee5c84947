//! How far a piece of work is whose amount may grow while it is done, and how long it will take.
//!
//! Invariant: memory is bounded by [`SAMPLES_MAX`].

use std::collections::VecDeque;
use std::time::Duration;

/// The rate is that of the last so many samples, at least [`SAMPLE_PERIOD`] apart.
const SAMPLES_MAX: usize = 20;
const SAMPLE_PERIOD: Duration = Duration::from_secs(1);

/// Chunks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub chunks: u64,
    pub bytes: u64,
}

impl Amount {
    pub fn add(&mut self, bytes: u64) {
        self.chunks += 1;
        self.bytes += bytes;
    }

    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Fed with what is left to do, time and again. Time is counted from any one moment.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    left: Amount,
    done_bytes: u64,
    /// When, and how much was done by then.
    samples: VecDeque<(Duration, u64)>,
    began: Option<Duration>,
}

impl Progress {
    /// Returns how long the work took, when it just ended.
    pub fn note(&mut self, now: Duration, left: Amount) -> Option<Duration> {
        let before = std::mem::replace(&mut self.left, left);
        if left.is_none() {
            self.done_bytes = 0;
            self.samples.clear();
            return self.began.take().map(|began| now.saturating_sub(began));
        }
        self.began.get_or_insert(now);
        self.done_bytes += before.bytes.saturating_sub(left.bytes);
        let is_due = |(at, _): &(Duration, u64)| now.saturating_sub(*at) >= SAMPLE_PERIOD;
        if self.samples.back().is_none_or(is_due) {
            if self.samples.len() >= SAMPLES_MAX {
                self.samples.pop_front();
            }
            self.samples.push_back((now, self.done_bytes));
        }
        None
    }

    pub fn left(&self) -> Amount {
        self.left
    }

    /// Bytes done since nothing was left to do.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes
    }

    /// Bytes per second; 0 while nothing moves.
    pub fn rate(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.samples.front(), self.samples.back())
        else {
            return 0;
        };
        let time = to.saturating_sub(*from).as_millis();
        if time == 0 {
            return 0;
        }
        let rate = u128::from(after - before) * 1000 / time;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    pub fn time_left(&self) -> Option<Duration> {
        let rate = self.rate();
        (rate > 0).then(|| Duration::from_secs(self.left.bytes.div_ceil(rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn amount(bytes: u64) -> Amount {
        Amount { chunks: bytes.div_ceil(100), bytes }
    }

    #[test]
    fn work_that_grows_has_a_rate_and_an_end() {
        let mut progress = Progress::default();
        assert_eq!(progress.note(at(5), amount(0)), None);
        progress.note(at(10), amount(1000));
        assert_eq!((progress.rate(), progress.time_left()), (0, None));
        progress.note(at(12), amount(800));
        assert_eq!((progress.rate(), progress.time_left()), (100, Some(at(8))));
        // Another node is lost: nothing that was done is forgotten.
        progress.note(at(13), amount(2000));
        progress.note(at(14), amount(1800));
        assert_eq!((progress.done_bytes(), progress.rate()), (400, 100));
        assert_eq!(progress.time_left(), Some(at(18)));
        assert_eq!(progress.note(at(30), amount(0)), Some(at(20)));
        assert_eq!((progress.done_bytes(), progress.rate()), (0, 0));
        assert_eq!(progress.note(at(31), amount(0)), None);
    }

    #[test]
    fn an_old_rate_is_forgotten() {
        let mut progress = Progress::default();
        for second in 0..200 {
            let left = if second < 100 { 10_000 - second * 50 } else { 5_000 };
            progress.note(at(second), amount(left));
        }
        assert_eq!(progress.rate(), 0);
        assert!(progress.samples.len() <= SAMPLES_MAX);
    }
}
