//! Closed loops: so many clients, each with one request on its way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Requests before the clock starts, as a share of the time.
const WARM_UP: f64 = 0.2;

pub struct Figures {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
}

impl Figures {
    pub fn print(&self, what: &str) {
        println!("{what}\tthroughput\tputs/s\t{:.0}", self.per_second);
        println!("{what}\tp50\tms\t{:.3}", self.p50.as_secs_f64() * 1e3);
        println!("{what}\tp99\tms\t{:.3}", self.p99.as_secs_f64() * 1e3);
    }
}

/// Has every caller call in a loop; what ends within `time`, after a warm-up, counts.
pub async fn run<C, A>(callers: Vec<C>, time: Duration) -> Result<Figures>
where
    C: FnMut() -> A + Send + 'static,
    A: Future<Output = Result<()>> + Send + 'static,
{
    let begin = Instant::now() + time.mul_f64(WARM_UP);
    let end = begin + time;
    let mut tasks = tokio::task::JoinSet::new();
    for mut call in callers {
        tasks.spawn(async move {
            let mut times = Vec::with_capacity(1 << 12);
            loop {
                let before = Instant::now();
                call().await?;
                let after = Instant::now();
                if after >= end {
                    return anyhow::Ok(times);
                }
                if after >= begin {
                    times.push(after - before);
                }
            }
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    figures(times, time)
}

pub fn figures(mut times: Vec<Duration>, span: Duration) -> Result<Figures> {
    times.sort();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
    Ok(Figures {
        per_second: times.len() as f64 / span.as_secs_f64(),
        p50: at(0.50).context("no request ended in time")?,
        p99: at(0.99).context("no request ended in time")?,
    })
}
