//! Says what a daemon waits for when a step takes unusually long: a disk that is busy with something else,
//! most of the time.

use std::time::{Duration, Instant};

/// A step may take so long without a word.
const QUIET_TIME: Duration = Duration::from_secs(3);

/// One step. Said to be slow while it lives, and at its end how slow it was.
pub struct Step {
    what: &'static str,
    start: Instant,
    watch: tokio::task::JoinHandle<()>,
}

impl Step {
    /// Needs a runtime with more than one thread: the step may block its own.
    pub fn begin(what: &'static str) -> Self {
        let watch = tokio::spawn(async move {
            tokio::time::sleep(QUIET_TIME).await;
            tracing::warn!(what, "this takes unusually long; is the disk busy?");
        });
        Self { what, start: Instant::now(), watch }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.watch.abort();
        let took = self.start.elapsed();
        if took > QUIET_TIME {
            tracing::warn!(what = self.what, ?took, "took unusually long");
        }
    }
}
