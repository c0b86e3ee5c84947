//! The simulated network: messages between nodes get lost, late, repeated and out of order, and
//! links are cut, all as the seed says.
//!
//! Each call is two messages, and each has a fate of its own. A message that arrives is executed
//! even if its sender has stopped waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use rand::Rng;
use rand::rngs::StdRng;
use unum_node::registry::transport::{Answer, Call, Transport, Unreached};
use unum_proto::ids::NodeId;

use crate::world::World;

/// How badly the network behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    pub loss: f64,
    pub repeat: f64,
    /// Share of messages that are very late.
    pub late: f64,
}

impl Weather {
    pub const CALM: Self = Self { loss: 0.0, repeat: 0.0, late: 0.0 };

    pub fn draw(rng: &mut StdRng) -> Self {
        Self {
            loss: rng.random_range(0.0..0.08),
            repeat: rng.random_range(0.0..0.05),
            late: rng.random_range(0.0..0.05),
        }
    }
}

/// Who can reach whom: nodes in the same group can.
#[derive(Clone, Debug, Default)]
pub struct Groups(pub BTreeMap<NodeId, u8>);

impl Groups {
    pub fn joined(&self, a: NodeId, b: NodeId) -> bool {
        self.0.get(&a) == self.0.get(&b)
    }
}

/// What happens to one message.
pub struct Fate {
    pub lost: bool,
    pub delay: Duration,
    /// It arrives again, this much later.
    pub repeated: Option<Duration>,
}

/// A message that takes longer is late.
const LATE_MIN: Duration = Duration::from_millis(20);

impl Fate {
    pub fn is_late(&self) -> bool {
        self.delay >= LATE_MIN
    }

    pub fn draw(rng: &mut StdRng, weather: Weather) -> Self {
        let late = rng.random_bool(weather.late);
        let micros = match late {
            true => rng.random_range(20_000..400_000),
            false => rng.random_range(50..1_500),
        };
        let repeated = rng
            .random_bool(weather.repeat)
            .then(|| Duration::from_micros(rng.random_range(100..200_000)));
        let lost = rng.random_bool(weather.loss);
        Self { lost, delay: Duration::from_micros(micros), repeated }
    }
}

/// One node's way to the others, for one life of the node.
pub struct Port {
    pub world: Arc<World>,
    pub own: NodeId,
    pub life: u64,
}

impl Transport for Port {
    fn call(
        &self,
        to: NodeId,
        call: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answer, Unreached>> {
        let (world, own, life) = (self.world.clone(), self.own, self.life);
        async move {
            if !world.is_alive(own, life) {
                return Err(Unreached::Unreachable(to, "the sender is dead".into()));
            }
            world.saw_call(own, to, &call);
            let trip = trip(world, own, life, to, call);
            match SimRuntime::timeout(within, trip).await {
                Ok(answer) => answer,
                Err(_) => Err(Unreached::Timeout(to)),
            }
        }
        .boxed()
    }
}

/// There and back.
async fn trip(
    world: Arc<World>,
    own: NodeId,
    life: u64,
    to: NodeId,
    call: Call,
) -> Result<Answer, Unreached> {
    let there = world.fate();
    if let Some(later) = there.repeated {
        let (world, call) = (world.clone(), call.clone());
        drop(SimRuntime::spawn(async move {
            SimRuntime::sleep(there.delay + later).await;
            // Nobody waits for the answer to a repetition.
            let _ = deliver(&world, own, to, call).await;
        }));
    }
    SimRuntime::sleep(there.delay).await;
    if there.lost {
        return std::future::pending().await;
    }
    let answer = deliver(&world, own, to, call).await;
    let back = world.fate();
    SimRuntime::sleep(back.delay).await;
    if back.lost || !world.is_joined(own, to) || !world.is_alive(own, life) {
        return std::future::pending().await;
    }
    answer
}

async fn deliver(
    world: &Arc<World>,
    own: NodeId,
    to: NodeId,
    call: Call,
) -> Result<Answer, Unreached> {
    if !world.is_joined(own, to) {
        return Err(Unreached::Unreachable(to, "the line is cut".into()));
    }
    let Some(peer) = world.registry(to) else {
        return Err(Unreached::Unreachable(to, "it is down".into()));
    };
    // The receiver works on, whether the sender waits or not.
    let work = SimRuntime::spawn(async move { peer.answer(own, call).await });
    match work.await {
        Ok(answer) => answer.map_err(|error| Unreached::Refused(to, error.to_string())),
        Err(error) => {
            world.violated(format!("{to} panicked while it answered: {error}"));
            Err(Unreached::Refused(to, "panic".into()))
        }
    }
}
