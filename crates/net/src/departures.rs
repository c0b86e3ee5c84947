//! What has to be done before anything leaves this daemon for another one.
//!
//! A service may have promised others to tell them of changes on this machine before whoever made a
//! change can cause anything elsewhere. So each call, reply and piece of a stream between nodes passes here before it
//! is written. While nothing was promised that costs next to nothing.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

/// Keeps the promises.
pub trait Guard: Send + Sync + 'static {
    /// Nothing was promised to anybody.
    fn is_idle(&self) -> bool;

    /// This method carries nothing that a program could have caused, or must not wait.
    fn is_free(&self, method: &str) -> bool;

    /// Completes when everything is told that happened before the call, after a bounded time.
    fn settle(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Where everything passes. All clones are the same; without a guard nothing waits.
#[derive(Clone, Default)]
pub struct Departures {
    guard: Arc<OnceLock<Arc<dyn Guard>>>,
}

impl Departures {
    /// The first one stays.
    pub fn set_guard(&self, guard: Arc<dyn Guard>) {
        let _ = self.guard.set(guard);
    }

    /// To be awaited before a message of this method is written.
    pub async fn pass(&self, method: &str) {
        if let Some(guard) = self.guard.get()
            && !guard.is_idle()
            && !guard.is_free(method)
        {
            guard.settle().await;
        }
    }

    /// Whether anything of this method might ever wait.
    pub(crate) fn may_hold(&self, method: &str) -> bool {
        self.guard.get().is_some_and(|guard| !guard.is_free(method))
    }
}

impl fmt::Debug for Departures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guarded = if self.guard.get().is_some() { "guarded" } else { "free" };
        write!(f, "Departures({guarded})")
    }
}
