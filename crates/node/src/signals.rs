//! Signals to the callers of the kernel's requests.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::Notify;
use unum_sys::fuse::Responder;

/// A call was given up for a signal.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

impl From<Interrupted> for Errno {
    fn from(_: Interrupted) -> Self {
        Self::INTR
    }
}

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

    pub async fn came(&self) {
        self.came.notified().await;
    }

    /// The work's result, or `Interrupted` if a signal came and the grace went by.
    pub async fn or<T, E: From<Interrupted>>(
        &self,
        grace: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let given_up = async {
            self.came().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            biased;
            result = work => result,
            () = given_up => Err(Interrupted.into()),
        }
    }
}
