//! Where blocking disk work runs: on a thread of its own in unumd, in place in the simulator,
//! where the disk is memory and time is virtual.

use tokio::sync::oneshot;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    Threads,
    Inline,
}

impl Offload {
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Offload::Inline => work(),
            Offload::Threads => {
                let (done, outcome) = oneshot::channel();
                // Whoever asked may be gone; then nobody wants the outcome.
                std::thread::spawn(move || drop(done.send(work())));
                match outcome.await {
                    Ok(outcome) => outcome,
                    // The work panicked, which has been printed: there is no outcome to go on with.
                    Err(_) => std::future::pending().await,
                }
            }
        }
    }
}
