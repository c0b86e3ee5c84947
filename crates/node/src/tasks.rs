//! Tasks that belong to the daemon: every one is named, told to stop, and joined.
//!
//! A task that panics, or ends while it was not asked to, ends the daemon: half a daemon is worse
//! than none, for a daemon that died is started again and takes over what it left.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinHandle};

/// How long tasks may take to end after they were told to.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(5);
/// Deaths that are remembered before the daemon reads the first.
const DEATHS_MAX: usize = 8;

/// Tells when to stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Completes when the daemon stops, or is gone.
    pub async fn requested(&self) {
        // An error means that the sender is gone, which is the strongest request to stop.
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }
}

/// Why the daemon cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the task `{task}` {why}")]
pub struct TaskDeath {
    pub task: &'static str,
    pub why: String,
}

/// Spawns and joins. Cheap to clone; all clones speak of the same tasks.
#[derive(Clone)]
pub struct Tasks {
    stop: Arc<watch::Sender<bool>>,
    deaths: mpsc::Sender<TaskDeath>,
    /// The watchers of running tasks, and how to abort each task. Ended ones are cleared at spawns.
    running: Arc<Mutex<Vec<Running>>>,
}

struct Running {
    name: &'static str,
    abort: AbortHandle,
    watcher: JoinHandle<()>,
}

impl Tasks {
    pub fn new() -> (Self, mpsc::Receiver<TaskDeath>) {
        let (deaths, dead) = mpsc::channel(DEATHS_MAX);
        let stop = Arc::new(watch::Sender::new(false));
        (Self { stop, deaths, running: Arc::default() }, dead)
    }

    pub fn stop(&self) -> Stop {
        Stop(self.stop.subscribe())
    }

    /// A task for as long as the daemon lives: its end before the stop is the daemon's end.
    pub fn spawn_lasting(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_kind(name, task, true);
    }

    /// A task that may end whenever it is done. Its panic still is the daemon's end.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_kind(name, task, false);
    }

    /// Watches what the daemon cannot live without: its end, told with the reason, is the
    /// daemon's.
    pub fn spawn_watch(
        &self,
        name: &'static str,
        ended: impl Future<Output = String> + Send + 'static,
    ) {
        let (stop, deaths) = (self.stop(), self.deaths.clone());
        self.spawn(name, async move {
            tokio::select! {
                () = stop.requested() => {}
                why = ended => {
                    let _ = deaths.try_send(TaskDeath { task: name, why: format!("ended: {why}") });
                }
            }
        });
    }

    fn spawn_kind(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        lasting: bool,
    ) {
        let handle = tokio::spawn(task);
        let abort = handle.abort_handle();
        let (stop, deaths) = (self.stop(), self.deaths.clone());
        let watcher = tokio::spawn(async move {
            let end = handle.await;
            if let Some(why) = cause_of_death(end, lasting && !stop.is_requested()) {
                let _ = deaths.try_send(TaskDeath { task: name, why });
            }
        });
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|task| !task.watcher.is_finished());
        running.push(Running { name, abort, watcher });
    }

    /// Tells all tasks to stop and waits for them; those that do not listen are aborted.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let deadline = tokio::time::Instant::now() + STOP_TIME_MAX;
        loop {
            let running =
                std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
            if running.is_empty() {
                return;
            }
            for mut task in running {
                if tokio::time::timeout_at(deadline, &mut task.watcher).await.is_err() {
                    tracing::warn!(task = task.name, "did not stop in time and was aborted");
                    task.abort.abort();
                    let _ = task.watcher.await;
                }
            }
        }
    }
}

fn cause_of_death(end: Result<(), JoinError>, wanted: bool) -> Option<String> {
    match end {
        Ok(()) if wanted => Some("ended, which it never should".into()),
        Ok(()) => None,
        Err(error) if error.is_panic() => {
            let panic = error.into_panic();
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| text.to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            Some(format!("panicked: {}", text.unwrap_or_else(|| "no message".into())))
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_and_an_end_in_time_is_not() {
        let (tasks, mut deaths) = Tasks::new();
        tasks.spawn("short", async {});
        let stop = tasks.stop();
        tasks.spawn_lasting("loop", async move { stop.requested().await });
        tasks.spawn("bad", async { panic!("on purpose") });
        assert_eq!(deaths.recv().await.unwrap().to_string(), "the task `bad` panicked: on purpose");
        tasks.shutdown().await;
        assert!(deaths.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_lasting_task_must_last() {
        let (tasks, mut deaths) = Tasks::new();
        tasks.spawn_lasting("heart", async {});
        assert_eq!(deaths.recv().await.unwrap().task, "heart");
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn the_end_of_what_is_watched_is_told_with_its_reason() {
        let (tasks, mut deaths) = Tasks::new();
        tasks.spawn_watch("calm", std::future::pending());
        tasks.spawn_watch("consensus", async { "the disk is broken".to_string() });
        let told = deaths.recv().await.unwrap().to_string();
        assert_eq!(told, "the task `consensus` ended: the disk is broken");
        tasks.shutdown().await;
        assert!(deaths.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deaf_task_is_aborted() {
        let (tasks, _deaths) = Tasks::new();
        tasks.spawn_lasting("deaf", std::future::pending());
        tasks.shutdown().await;
        assert!(tasks.running.lock().unwrap().is_empty());
    }
}
