//! Who waits until the log is stable, and how the leader is told and asked.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use openraft::{AsyncRuntime, Instant};
use tokio::sync::Semaphore;
use unum_proto::ids::{Ino, NodeId};
use unum_proto::registry as wire;

use super::{Leases, Mutation};
use crate::registry::limits::{FORWARD_TIMEOUT, RETRY_PAUSE};
use crate::registry::shell::Core;
use crate::registry::transport::{Answer, Call};

/// How long a node that goes waits for the leader to hear of it.
const RESIGN_TIMEOUT: Duration = Duration::from_millis(200);
/// Questions to the leader whether an entry is stable that are on their way at once.
const QUESTIONS_IN_FLIGHT_MAX: usize = 8;

/// What the leader is to be told, and asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The newest entry that somebody here wants stable.
    pub index: u64,
    /// What this node confirms.
    pub confirmed: u64,
}

impl<RT: AsyncRuntime> Leases<RT> {
    pub(super) fn want(&self, wanted: Due) {
        self.due.send_if_modified(|due| {
            let before = *due;
            due.index = wanted.index.max(due.index);
            due.confirmed = wanted.confirmed.max(due.confirmed);
            *due != before
        });
    }

    /// Whether the leader will be asked as soon as the caches have dropped what they are at.
    fn will_ask(&self, index: u64) -> bool {
        let inner = self.inner();
        !inner.feed.is_idle() && inner.holder.confirmed().is_some_and(|confirmed| confirmed < index)
    }

    /// The entry that must be stable before what is applied here of these inodes may be shown; 0 if
    /// it may be shown.
    pub fn unsettled(&self, inodes: &[Ino]) -> u64 {
        if self.mutation == Mutation::ShowUnsettled {
            return 0;
        }
        let newest = self.inner().unsettled.newest_of(inodes);
        if newest <= self.stable.get() { 0 } else { newest }
    }

    /// The entry that must be stable before this node's write lease may be used; 0 if it may.
    pub fn ungranted(&self) -> u64 {
        let granted = self.inner().granted;
        if granted <= self.stable.get() { 0 } else { granted }
    }

    /// Returns when the log is known to be stable up to this entry.
    pub async fn settle(&self, index: u64) {
        loop {
            let risen = pin!(self.stable.risen());
            if self.stable.get() >= index {
                return;
            }
            if !self.will_ask(index) {
                self.want(Due { index, confirmed: 0 });
            }
            // A question that went unanswered is asked again.
            let again = pin!(RT::sleep(FORWARD_TIMEOUT));
            if let Either::Left(_) = select(again, risen).await {
                self.due.send_modify(|due| due.index = index.max(due.index));
            }
        }
    }

    /// Looks whether time has made more of the log stable, and tells when it may do so next. None:
    /// this node is no lessor.
    fn look(&self, index: u64) -> Option<Option<RT::Instant>> {
        let mut inner = self.inner();
        self.advance(&mut inner);
        let leading = inner.leading.as_ref()?;
        let behind: Vec<NodeId> = leading.lessor.behind(index).collect();
        if !behind.is_empty() {
            tracing::trace!(index, ?behind, "an entry is not stable yet");
        }
        Some(leading.lessor.next(self.now()).map(|next| self.instant(next)))
    }
}

/// Tells the leader what this node has confirmed and asks what is stable, whenever something is
/// wanted.
pub async fn ask_for_stability<RT: AsyncRuntime>(core: Arc<Core<RT>>) {
    let mut due = core.leases.due.subscribe();
    let in_flight = Arc::new(Semaphore::new(QUESTIONS_IN_FLIGHT_MAX));
    while due.changed().await.is_ok() {
        let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
        let index = due.borrow_and_update().index;
        let core = core.clone();
        // It is not joined: it ends by itself, bounded by its time-out.
        drop(RT::spawn(async move {
            ask_until_stable(&core, index).await;
            drop(permit);
        }));
    }
}

async fn ask_until_stable<RT: AsyncRuntime>(core: &Core<RT>, index: u64) {
    let give_up = RT::Instant::now() + FORWARD_TIMEOUT;
    while core.leases.stable.get() < index && RT::Instant::now() < give_up {
        let stable = match core.leader() {
            Some(leader) if leader == core.own => stable_here(core, index).await,
            Some(leader) => stable_there(core, leader, index).await,
            None => None,
        };
        match stable {
            Some(stable) => {
                let mut inner = core.leases.inner();
                core.leases.settled(&mut inner, stable);
            }
            None => RT::sleep(RETRY_PAUSE).await,
        }
    }
}

/// Gives this node's lease back and tells the leader.
pub async fn resign<RT: AsyncRuntime>(core: &Core<RT>) {
    core.leases.resign();
    if let Some(leader) = core.leader().filter(|leader| *leader != core.own) {
        // A leader that does not hear of it waits for the lease's end.
        let _ = RT::timeout(RESIGN_TIMEOUT, stable_there(core, leader, 0)).await;
    }
}

async fn stable_there<RT: AsyncRuntime>(
    core: &Core<RT>,
    leader: NodeId,
    index: u64,
) -> Option<u64> {
    let request = {
        let inner = core.leases.inner();
        let mark = inner.holder.mark(Duration::ZERO);
        wire::StableRequest {
            life: mark.map_or(0, |mark| mark.life),
            confirmed: inner.holder.confirmed().unwrap_or(0),
            index,
        }
    };
    match core.ask_leader(leader, Call::Stable(request)).await {
        Ok(Answer::Stable(reply)) if reply.outcome() == wire::ShellOutcome::Ok => Some(reply.index),
        Ok(_) | Err(_) => None,
    }
}

/// Answers another node's question.
pub async fn answer<RT: AsyncRuntime>(
    core: &Core<RT>,
    from: NodeId,
    request: wire::StableRequest,
) -> wire::StableReply {
    core.leases.confirmed(from, request.life, request.confirmed);
    let mut reply = wire::StableReply::default();
    match stable_here(core, request.index).await {
        Some(index) => {
            reply.index = index;
            reply.set_outcome(wire::ShellOutcome::Ok);
        }
        None => reply.set_outcome(wire::ShellOutcome::NotLeader),
    }
    reply
}

/// On the leader: waits for an entry to be stable, but not for long. None: this node does not lead.
async fn stable_here<RT: AsyncRuntime>(core: &Core<RT>, index: u64) -> Option<u64> {
    let give_up = RT::Instant::now() + FORWARD_TIMEOUT / 2;
    loop {
        if core.leader() != Some(core.own) {
            return None;
        }
        let risen = pin!(core.leases.stable.risen());
        let next = core.leases.look(index)?;
        let known = core.leases.stable.get();
        if known >= index || RT::Instant::now() >= give_up {
            return Some(known);
        }
        let until = next.map_or(give_up, |next| next.min(give_up));
        select(risen, pin!(RT::sleep_until(until))).await;
    }
}
