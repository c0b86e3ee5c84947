//! How often strangers are spoken of in the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one window.
const LINES_MAX: u64 = 5;
const WINDOW: Duration = Duration::from_secs(10);

/// Admits some lines in each window and counts the others. Held only to count.
#[derive(Debug, Default)]
pub(crate) struct Complaints(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    since: Option<Instant>,
    said: u64,
    unsaid: u64,
}

impl Complaints {
    /// Whether a line may be logged now, and if so, how many were not since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = counts.since.is_none_or(|since| now.duration_since(since) >= WINDOW);
        if over {
            counts.since = Some(now);
            counts.said = 0;
        }
        if counts.said >= LINES_MAX {
            counts.unsaid += 1;
            return None;
        }
        counts.said += 1;
        Some(std::mem::take(&mut counts.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_in_few_lines() {
        let complaints = Complaints::default();
        let start = Instant::now();
        let said = (0..1000).filter(|_| complaints.admit(start).is_some()).count();
        assert_eq!(said as u64, LINES_MAX);
        assert_eq!(complaints.admit(start + WINDOW), Some(1000 - LINES_MAX));
        assert_eq!(complaints.admit(start + WINDOW), Some(0));
    }
}
