//! A machine's kernel as far as it caches files: without time-out, as the read lease allows.
//!
//! It follows the changes of the file tree as the daemon's file service does, but slowly. Invariant:
//! looking at the tree and keeping what was seen are one step for whoever drops changes.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use rand::Rng;
use unum_core::tree::What;
use unum_node::registry::Changed;
use unum_proto::ids::{Ino, NodeId};

use crate::coverage::Met;
use crate::run::Flaw;
use crate::world::{Registry, World};

/// Microseconds until the kernel has dropped what changed.
const DROP_MICROS: std::ops::Range<u64> = 20..8_000;
/// Now and then it takes milliseconds that a lease may not survive.
const SLOW_DROP_MILLIS: std::ops::Range<u64> = 100..2_500;
const SLOW_DROP_SHARE: f64 = 0.002;
/// Between two looks for a lease where there is none.
const LEASE_LOOK: Duration = Duration::from_millis(40);

/// One life of a daemon, with what the kernel caches for it.
pub struct Kernel {
    pub node: NodeId,
    pub life: u64,
    pub registry: Registry,
    flaw: Flaw,
    owners: Mutex<BTreeMap<Ino, u32>>,
}

/// A look at the tree.
pub struct Look {
    pub owner: u32,
    /// What must be stable before it may be shown; 0 if it may be shown.
    pub unsettled: u64,
    pub leased: bool,
}

impl Kernel {
    pub fn start(world: &Arc<World>, node: NodeId, life: u64, registry: Registry) -> Arc<Self> {
        let flaw = world.plan.flaw;
        let kernel = Arc::new(Self { node, life, registry, flaw, owners: Mutex::default() });
        drop(SimRuntime::spawn(follow(world.clone(), kernel.clone())));
        drop(SimRuntime::spawn(end_with_lease(world.clone(), kernel.clone())));
        kernel
    }

    fn owners(&self) -> MutexGuard<'_, BTreeMap<Ino, u32>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn cached(&self, ino: Ino) -> Option<u32> {
        let lasts = self.flaw == Flaw::KeepAfterLease || self.registry.holds_lease();
        self.owners().get(&ino).copied().filter(|_| lasts)
    }

    /// Kernels forget when they like.
    pub fn forget(&self, ino: Ino) {
        self.owners().remove(&ino);
    }

    /// Looks at the tree, and keeps what may be shown and was `seen`, if that matters.
    pub fn look(&self, ino: Ino, seen: Option<u32>) -> Option<Look> {
        let mut owners = self.owners();
        let owner = self.registry.read(|state| state.tree().inode(ino).ok().map(|i| i.uid))?;
        let unsettled = self.registry.unsettled(&[ino]);
        let leased = self.registry.holds_lease();
        if leased && unsettled == 0 && seen.is_none_or(|seen| seen == owner) {
            owners.insert(ino, owner);
        }
        Some(Look { owner, unsettled, leased })
    }

    fn drop_changed(&self, changed: &Changed) {
        let mut owners = self.owners();
        if changed.all {
            owners.clear();
        }
        for change in &changed.changes {
            if let What::Inode(ino) = change.what {
                owners.remove(&ino);
            }
        }
    }

    fn clear(&self) -> bool {
        !std::mem::take(&mut *self.owners()).is_empty()
    }
}

/// As long as the daemon lives.
async fn follow(world: Arc<World>, kernel: Arc<Kernel>) {
    let feed = kernel.registry.feed();
    let mut ended = pin!(kernel.registry.ended());
    loop {
        let changed = match select(pin!(feed.next()), &mut ended).await {
            Either::Left((changed, _)) => changed,
            Either::Right(_) => return,
        };
        let delay = world.draw(|rng| match rng.random_bool(SLOW_DROP_SHARE) {
            true => Duration::from_millis(rng.random_range(SLOW_DROP_MILLIS)),
            false => Duration::from_micros(rng.random_range(DROP_MICROS)),
        });
        if kernel.flaw == Flaw::ConfirmBeforeDrop {
            feed.dropped(changed.index);
        }
        SimRuntime::sleep(delay).await;
        kernel.drop_changed(&changed);
        feed.dropped(changed.index);
    }
}

/// Empties the cache when the lease ends.
async fn end_with_lease(world: Arc<World>, kernel: Arc<Kernel>) {
    let mut held = false;
    while world.is_alive(kernel.node, kernel.life) {
        match kernel.registry.lease_until().filter(|_| kernel.registry.holds_lease()) {
            Some(until) => {
                held = true;
                SimRuntime::sleep_until(until).await;
            }
            None => {
                if kernel.flaw != Flaw::KeepAfterLease && kernel.clear() && held {
                    world.met(Met::LeaseLapsed);
                }
                held = false;
                SimRuntime::sleep(LEASE_LOOK).await;
            }
        }
    }
}
