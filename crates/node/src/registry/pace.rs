//! When consensus needs waking: openraft looks at its timers every fifth of a heartbeat, which costs
//! an idle node more than all else. Here its tick runs only while a look can find something.
//!
//! - The leader has one timer, for heartbeats, and they are sent from here.
//! - Elsewhere the tick rests as long as the leader was heard so lately that no election can be due.
//!   Whether one is due, openraft alone decides.
//!
//! Invariant: the tick runs at least one period before an election timeout can end. Whoever never
//! heard of a leader ticks.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use openraft::async_runtime::WatchReceiver;
use openraft::{AsyncRuntime, Instant};
use unum_core::time::next_beat;

use super::shell::Core;
use super::start::Timing;
use crate::beats::in_slots;

/// When this node last heard from a leader that it follows, and the beat that the leader's timers
/// share.
pub struct Pace<RT: AsyncRuntime> {
    started: RT::Instant,
    beat: Duration,
    /// Held only to copy it.
    heard: Mutex<Option<RT::Instant>>,
}

impl<RT: AsyncRuntime> Pace<RT> {
    /// For a daemon whose timers' grid has run for `elapsed`.
    pub fn new(timing: &Timing, elapsed: Duration) -> Self {
        let started = RT::Instant::now() - elapsed;
        Self { started, beat: beat(timing), heard: Mutex::new(None) }
    }

    /// A leader's message that was followed came at `at`.
    pub fn heard(&self, at: RT::Instant) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        *heard = (*heard).max(Some(at));
    }

    fn silence(&self) -> Option<Duration> {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|at| at.elapsed())
    }

    /// Until the next multiple of so many beats since the start: timers that need no exact moment
    /// end together and wake this node once.
    pub async fn beats(&self, count: u32) {
        let period = self.beat * count.max(1);
        RT::sleep_until(self.started + next_beat(self.started.elapsed(), period)).await;
    }
}

/// Between two heartbeats: whole slots, if that leaves a third of the shortest election timeout for one
/// that comes late.
fn beat(timing: &Timing) -> Duration {
    let heartbeat = Duration::from_millis(timing.heartbeat_ms);
    let (slots, least) = (in_slots(heartbeat), Duration::from_millis(timing.election_min_ms));
    if slots * 3 <= least * 2 { slots } else { heartbeat }
}

/// How long after the leader was heard the tick may rest: with one tick (a fifth of a heartbeat) and
/// a late timer to spare before the shortest election timeout.
fn rest(timing: &Timing) -> Duration {
    Duration::from_millis(timing.election_min_ms.saturating_sub(timing.heartbeat_ms / 2))
}

/// What is left of the rest of a follower that has heard nothing for `silence`.
fn rest_left(rest: Duration, silence: Option<Duration>) -> Option<Duration> {
    rest.checked_sub(silence?).filter(|left| !left.is_zero())
}

/// Runs until consensus ends.
pub async fn keep_pace<RT: AsyncRuntime>(core: Arc<Core<RT>>, timing: Timing) {
    let rest = rest(&timing);
    let mut metrics = core.raft.server_metrics();
    loop {
        let leads = metrics.borrow_watched().state.is_leader();
        let left = rest_left(rest, core.pace.silence());
        core.raft.runtime_config().tick(!leads && left.is_none());
        match leads {
            true => core.lead(),
            false => core.leases.follow(),
        }
        if leads && core.raft.trigger().heartbeat().await.is_err() {
            return;
        }
        let pause = async {
            match leads {
                true => core.pace.beats(1).await,
                false => RT::sleep(left.unwrap_or(rest)).await,
            }
        };
        if let Either::Right((Err(_), _)) = select(pin!(pause), pin!(metrics.changed())).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn heartbeats_keep_to_slots_where_elections_have_time() {
        let beat = |heartbeat_ms, election_min_ms| {
            beat(&Timing { heartbeat_ms, election_min_ms, election_max_ms: 500 })
        };
        assert_eq!([beat(100, 200), beat(100, 191), beat(50, 150)], [MS * 128, MS * 100, MS * 50]);
    }

    #[test]
    fn the_tick_runs_before_an_election_can_be_due() {
        for (heartbeat_ms, election_min_ms) in [(100, 200), (100, 300), (50, 150), (10, 20)] {
            let timing = Timing { heartbeat_ms, election_min_ms, election_max_ms: 500 };
            let tick = Duration::from_millis(heartbeat_ms) * 13 / 64;
            let rest = rest(&timing);
            assert!(
                beat(&timing) + tick < Duration::from_millis(election_min_ms) || heartbeat_ms < 20
            );
            assert!(beat(&timing) >= Duration::from_millis(heartbeat_ms));
            assert!(rest + tick < Duration::from_millis(election_min_ms));
            assert_eq!(rest_left(rest, None), None, "never heard of a leader");
            assert_eq!(rest_left(rest, Some(rest)), None);
            assert_eq!(rest_left(rest, Some(rest + MS)), None);
            assert_eq!(rest_left(rest, Some(rest - MS)), Some(MS));
        }
    }
}
