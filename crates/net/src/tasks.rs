//! The tasks of a server or client, so that all can be ended and waited for.

use std::sync::{Mutex, PoisonError};

use tokio::task::JoinSet;

#[derive(Debug, Default)]
pub(crate) struct Tasks {
    /// None: shut down; nothing is spawned any more.
    set: Mutex<Option<JoinSet<()>>>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Tasks { set: Mutex::new(Some(JoinSet::new())) }
    }

    /// Spawns unless shut down.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(set) = &mut *self.set.lock().unwrap_or_else(PoisonError::into_inner) {
            // Those that ended are dropped here, so the set is as large as what runs.
            while set.try_join_next().is_some() {}
            set.spawn(task);
        }
    }

    /// Ends all tasks at their next `.await`, and waits for that.
    pub(crate) async fn shutdown(&self) {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut set) = set {
            set.shutdown().await;
        }
    }
}
