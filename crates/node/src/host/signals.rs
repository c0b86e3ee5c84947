//! Signals to the callers of the kernel's requests.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::Notify;
use unum_sys::fuse::Responder;

/// A signal that the caller of a request may get.
pub struct Signal {
    came: Arc<Notify>,
}

impl Signal {
    pub fn of(responder: &Responder) -> Self {
        let came = Arc::new(Notify::new());
        let notify = came.clone();
        responder.on_interrupt(move || notify.notify_one());
        Self { came }
    }

    /// The work's result, or EINTR if a signal came and the grace went by.
    pub async fn or<T>(
        &self,
        grace: Duration,
        work: impl Future<Output = Result<T, Errno>>,
    ) -> Result<T, Errno> {
        let given_up = async {
            self.came.notified().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            biased;
            result = work => result,
            () = given_up => Err(Errno::INTR),
        }
    }
}
