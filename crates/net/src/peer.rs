//! One peer as seen by the client: its two connections and the numbers of the calls to it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwapOption;
use tokio::{sync::watch, time::Instant};

use crate::{
    limits::{REDIAL_BACKOFF_MAX, REDIAL_BACKOFF_MIN},
    link::Link,
    tasks::Tasks,
};

pub(crate) type Dialled = Result<Arc<Link>, Arc<str>>;

/// The place of one connection: at most one in use, at most one being dialled.
#[derive(Default)]
pub(crate) struct Slot {
    link: ArcSwapOption<Link>,
    dialling: Mutex<Dialling>,
}

#[derive(Default)]
struct Dialling {
    under_way: Option<watch::Receiver<Option<Dialled>>>,
    /// Failures in a row.
    failures: u32,
    not_before: Option<Instant>,
    last_error: Option<Arc<str>>,
}

impl Slot {
    pub(crate) fn current(&self, now: Instant) -> Option<Arc<Link>> {
        self.link.load_full().filter(|link| link.is_usable(now))
    }

    /// The connection in use, or a new one. Dialling goes on when this future is dropped, so that
    /// impatient callers get there, too.
    pub(crate) async fn link<D>(
        self: &Arc<Self>,
        tasks: &Tasks,
        fail_fast: bool,
        dial: D,
    ) -> Dialled
    where
        D: Future<Output = Result<Arc<Link>, String>> + Send + 'static,
    {
        let mut dial = Some(dial);
        loop {
            if let Some(link) = self.current(Instant::now()) {
                return Ok(link);
            }
            let mut under_way = match self.join_or_wait(tasks, &mut dial) {
                Step::Join(under_way) => under_way,
                Step::Wait { error, .. } if fail_fast => return Err(error),
                Step::Wait { until, .. } => {
                    tokio::time::sleep_until(until).await;
                    continue;
                }
            };
            return match under_way.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(dialled)) => dialled.clone(),
                Ok(None) | Err(_) => Err("shutting down".into()),
            };
        }
    }

    fn join_or_wait<D>(self: &Arc<Self>, tasks: &Tasks, dial: &mut Option<D>) -> Step
    where
        D: Future<Output = Result<Arc<Link>, String>> + Send + 'static,
    {
        let mut dialling = self.lock();
        if let Some(under_way) = &dialling.under_way {
            return Step::Join(under_way.clone());
        }
        self.put_away_old(&mut dialling);
        if let Some(until) = dialling.not_before.filter(|until| *until > Instant::now()) {
            let error = dialling.last_error.clone().unwrap_or_else(|| "it just broke".into());
            return Step::Wait { until, error };
        }
        let (done, under_way) = watch::channel(None);
        dialling.under_way = Some(under_way.clone());
        drop(dialling);
        if let Some(dial) = dial.take() {
            let slot = self.clone();
            tasks.spawn(async move { slot.dial(dial, done).await });
        }
        Step::Join(under_way)
    }

    async fn dial<D>(&self, dial: D, done: watch::Sender<Option<Dialled>>)
    where
        D: Future<Output = Result<Arc<Link>, String>> + Send + 'static,
    {
        let dialled: Dialled = dial.await.map_err(Into::into);
        let mut dialling = self.lock();
        match &dialled {
            Ok(link) => self.link.store(Some(link.clone())),
            Err(why) => dialling.fail(why.clone()),
        }
        dialling.under_way = None;
        drop(dialling);
        done.send_replace(Some(dialled));
    }

    /// Lets a connection that takes no more calls end with its last one.
    fn put_away_old(&self, dialling: &mut Dialling) {
        if let Some(old) = self.link.swap(None) {
            if old.was_useful() {
                dialling.failures = 0;
            } else {
                dialling.fail("the connection broke at once".into());
            }
            old.retire();
        }
    }

    pub(crate) fn retire(&self) {
        if let Some(link) = self.link.swap(None) {
            link.retire();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Dialling> {
        self.dialling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Step {
    Join(watch::Receiver<Option<Dialled>>),
    Wait { until: Instant, error: Arc<str> },
}

impl Dialling {
    fn fail(&mut self, why: Arc<str>) {
        let backoff = REDIAL_BACKOFF_MIN.saturating_mul(1 << self.failures.min(10));
        let backoff = backoff.min(REDIAL_BACKOFF_MAX);
        // Between half and all of it, so that a cluster does not redial in step.
        let jittered = backoff.mul_f64(rand::random_range(0.5..=1.0));
        self.failures += 1;
        self.not_before = Some(Instant::now() + jittered);
        self.last_error = Some(why);
    }
}

/// Numbers calls for at-most-once execution, and knows below which all are over.
pub(crate) struct Numbers {
    pub(crate) lane: u64,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    /// Number of the oldest call that is not over.
    base: u64,
    over: VecDeque<bool>,
}

impl Numbers {
    pub(crate) fn new() -> Self {
        // 0 says that a call has no number.
        Numbers { lane: rand::random_range(1..=u64::MAX), window: Mutex::default() }
    }

    pub(crate) fn take(self: &Arc<Self>) -> Number {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = window.base + window.over.len() as u64;
        window.over.push_back(false);
        Number { seq, numbers: self.clone() }
    }

    pub(crate) fn settled(&self) -> u64 {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).base
    }
}

/// A call's number; dropping it says that the call is over.
pub(crate) struct Number {
    pub(crate) seq: u64,
    pub(crate) numbers: Arc<Numbers>,
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut window = self.numbers.window.lock().unwrap_or_else(PoisonError::into_inner);
        let index = self.seq.wrapping_sub(window.base) as usize;
        if let Some(over) = window.over.get_mut(index) {
            *over = true;
        }
        while window.over.front() == Some(&true) {
            window.over.pop_front();
            window.base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_is_the_oldest_number_still_out() {
        let numbers = Arc::new(Numbers::new());
        let (a, b, c) = (numbers.take(), numbers.take(), numbers.take());
        assert_eq!((a.seq, b.seq, c.seq), (0, 1, 2));
        drop(b);
        assert_eq!(numbers.settled(), 0);
        drop(a);
        assert_eq!(numbers.settled(), 2);
        assert_eq!(numbers.take().seq, 3);
        drop(c);
        assert_eq!(numbers.settled(), 4);
    }
}
