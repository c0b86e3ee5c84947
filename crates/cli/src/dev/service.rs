//! What a machine's PID 1 decides about the daemon it supervises, as a service manager would:
//! started when enabled, started again when it failed, left alone when it ended on purpose.

use std::time::Duration;

/// The first wait before a failed daemon is started again; it doubles up to the largest.
pub const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
pub const RESTART_DELAY_MAX: Duration = Duration::from_secs(2);
/// A daemon that lived this long is forgiven its earlier failures.
pub const LIFE_FORGIVEN_MIN: Duration = Duration::from_secs(5);

/// Time since the machine's start.
pub type Time = Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Enable,
    Disable,
    /// The daemon has ended; `failed` unless with status 0.
    Ended {
        failed: bool,
    },
    /// Time has passed.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start,
    /// Ask the daemon to end.
    Terminate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Down,
    Running { since: Time },
    Stopping,
    Waiting { until: Time },
}

#[derive(Debug)]
pub struct Service {
    phase: Phase,
    delay: Duration,
}

impl Default for Service {
    fn default() -> Self {
        Self { phase: Phase::Down, delay: RESTART_DELAY_MIN }
    }
}

impl Service {
    pub fn step(&mut self, now: Time, event: Event) -> Option<Action> {
        match (self.phase, event) {
            (Phase::Down | Phase::Waiting { .. }, Event::Enable) => {
                self.delay = RESTART_DELAY_MIN;
                self.start(now)
            }
            (Phase::Running { .. }, Event::Disable) => {
                self.phase = Phase::Stopping;
                Some(Action::Terminate)
            }
            (Phase::Waiting { .. }, Event::Disable) => self.rest(),
            (Phase::Running { since }, Event::Ended { failed: true }) => self.retry(now, since),
            (Phase::Running { .. }, Event::Ended { failed: false })
            | (Phase::Stopping, Event::Ended { .. }) => self.rest(),
            (Phase::Waiting { until }, Event::Tick) if now >= until => self.start(now),
            (Phase::Running { .. } | Phase::Stopping, Event::Enable | Event::Tick)
            | (Phase::Down, Event::Disable | Event::Ended { .. } | Event::Tick)
            | (Phase::Stopping, Event::Disable)
            | (Phase::Waiting { .. }, Event::Ended { .. } | Event::Tick) => None,
        }
    }

    /// When `Event::Tick` is due.
    pub fn wakes_at(&self) -> Option<Time> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Down | Phase::Running { .. } | Phase::Stopping => None,
        }
    }

    pub fn is_down(&self) -> bool {
        self.phase == Phase::Down
    }

    fn start(&mut self, now: Time) -> Option<Action> {
        self.phase = Phase::Running { since: now };
        Some(Action::Start)
    }

    fn rest(&mut self) -> Option<Action> {
        self.phase = Phase::Down;
        None
    }

    fn retry(&mut self, now: Time, since: Time) -> Option<Action> {
        if now.saturating_sub(since) >= LIFE_FORGIVEN_MIN {
            self.delay = RESTART_DELAY_MIN;
        }
        self.phase = Phase::Waiting { until: now + self.delay };
        self.delay = (self.delay * 2).min(RESTART_DELAY_MAX);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    /// One "MS EVENT" a line; prints what the service does about each.
    fn check(script: &str, expected: Expect) {
        let mut service = Service::default();
        let told: Vec<String> = script
            .lines()
            .map(|line| {
                let (ms, event) = line.trim().split_once(' ').expect("MS EVENT");
                let event = match event {
                    "enable" => Event::Enable,
                    "disable" => Event::Disable,
                    "fails" => Event::Ended { failed: true },
                    "ends" => Event::Ended { failed: false },
                    "tick" => Event::Tick,
                    other => panic!("no event {other}"),
                };
                let now = Duration::from_millis(ms.parse().expect("a number"));
                let action = service.step(now, event);
                format!("{}: {action:?}, wakes {:?}", line.trim(), service.wakes_at())
            })
            .collect();
        expected.assert_eq(&told.join("\n"));
    }

    #[test]
    fn a_killed_daemon_comes_back_ever_more_slowly() {
        check(
            "0 enable
             10 fails
             110 tick
             120 fails
             200 tick
             320 tick
             9000 fails",
            expect![[r#"
                0 enable: Some(Start), wakes None
                10 fails: None, wakes Some(110ms)
                110 tick: Some(Start), wakes None
                120 fails: None, wakes Some(320ms)
                200 tick: None, wakes Some(320ms)
                320 tick: Some(Start), wakes None
                9000 fails: None, wakes Some(9.1s)"#]],
        );
    }

    #[test]
    fn a_daemon_that_ends_on_purpose_stays_down() {
        check(
            "0 enable
             5 ends
             900 tick
             1000 enable
             1001 enable
             1100 disable
             1200 fails
             1300 tick",
            expect![[r#"
                0 enable: Some(Start), wakes None
                5 ends: None, wakes None
                900 tick: None, wakes None
                1000 enable: Some(Start), wakes None
                1001 enable: None, wakes None
                1100 disable: Some(Terminate), wakes None
                1200 fails: None, wakes None
                1300 tick: None, wakes None"#]],
        );
    }

    #[test]
    fn disabling_while_waiting_cancels_the_restart() {
        check(
            "0 enable
             10 fails
             20 disable
             500 tick",
            expect![[r#"
                0 enable: Some(Start), wakes None
                10 fails: None, wakes Some(110ms)
                20 disable: None, wakes None
                500 tick: None, wakes None"#]],
        );
    }
}
