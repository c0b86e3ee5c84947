//! What a voter may do that perhaps forgot what it acknowledged, and how that ends.
//!
//! A voter whose log lost its end cannot tell whether a majority counts on it for a committed
//! entry. So it is suspect: it takes entries, but does not stand for election, and it votes for
//! nobody until one of two things restores what a vote rests on.
//!
//! - A leader confirms an index, and this node has everything up to it.
//! - All voters, this one included, say how far their logs reach (a *roll call*). The furthest is
//!   the *bar*: whoever reaches it has all that was ever committed, as long as fewer voters than a
//!   majority lost what they had acknowledged. A suspect votes for those who reach its bar; one
//!   that reaches it itself is suspect no longer.
//!
//! The second way is for the power cut that strikes all at once: it tears the logs of many, but
//! what it tears was never acknowledged. Invariants: a bar is never made of less than all voters
//! of all memberships that any of them knows; the mark on the disk goes only when what this node
//! has caught up with is durable. Left out: what to do when a majority lost what it acknowledged,
//! or a voter is gone for good. Only an operator can say that less will do, and is told how.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join, join_all};
use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;

use super::limits::FORWARD_TIMEOUT;
use super::mutation::Mutation;
use super::shell::Core;
use super::transport::{Answer, Call};
use super::types::{
    LogId, Malformed, log_id_from_wire, log_id_to_wire, membership_from_wire, membership_to_wire,
};
use crate::store::disk::{Disk, DiskError, Open, replace_whole};

/// The name of the mark on the disk.
const MARK: &str = "suspect";
const MARK_TORN: &[u8] = b"torn: catch up before voting, or reach what all voters have\n";
const MARK_LOST: &[u8] = b"lost: catch up before voting, or reach what all voters have\n";
/// Bytes of the mark that tell its kind.
const MARK_KIND_BYTES: usize = 5;

/// Between two attempts to end the suspicion.
const PAUSE: Duration = Duration::from_millis(200);
/// What one voter has to answer the roll.
const ROLL_TIMEOUT: Duration = Duration::from_secs(1);
/// Times that a roll call learns of further voters from those who answered.
const ROLL_ROUNDS_MAX: usize = 4;

/// What a node may have forgotten; the later, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    None,
    /// The log's end reads as what a power cut tears, which was never acknowledged. Rot that looks
    /// the same is rare.
    Torn,
    /// Something that may have been acknowledged is gone.
    Lost,
}

/// What the mark on the disk says.
pub fn read_mark(disk: &dyn Disk) -> Result<Doubt, DiskError> {
    let mut kind = [0; MARK_KIND_BYTES];
    match disk.open(MARK, Open::Existing).and_then(|file| file.read_at(&mut kind, 0)) {
        Ok(_) if MARK_TORN.starts_with(&kind) => Ok(Doubt::Torn),
        Ok(_) => Ok(Doubt::Lost),
        Err(DiskError::NotFound { .. }) => Ok(Doubt::None),
        Err(error) => Err(error),
    }
}

pub fn write_mark(disk: &dyn Disk, doubt: Doubt) -> Result<(), DiskError> {
    match doubt {
        Doubt::None => remove_mark(disk),
        Doubt::Torn => replace_whole(disk, MARK, MARK_TORN),
        Doubt::Lost => replace_whole(disk, MARK, MARK_LOST),
    }
}

fn remove_mark(disk: &dyn Disk) -> Result<(), DiskError> {
    match disk.remove(MARK) {
        Ok(()) | Err(DiskError::NotFound { .. }) => disk.sync_dir(),
        Err(error) => Err(error),
    }
}

/// A log that reaches less far is elected by no suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bar(Option<LogId>);

/// Whether this life of the node is suspect, and for whom it votes meanwhile.
pub struct Suspicion {
    suspect: AtomicBool,
    doubt: Doubt,
    /// How far the log reached when it was recovered: so far it is durable.
    recovered: Option<LogId>,
    bar: Mutex<Option<Bar>>,
}

impl Suspicion {
    pub fn new(doubt: Doubt, recovered: Option<LogId>) -> Self {
        let suspect = AtomicBool::new(doubt != Doubt::None);
        Self { suspect, doubt, recovered, bar: Mutex::new(None) }
    }

    pub fn is_on(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    pub fn has_lost(&self) -> bool {
        self.is_on() && self.doubt == Doubt::Lost
    }

    /// Whether this node may help a candidate whose log ends there.
    pub fn may_elect(&self, last: Option<LogId>) -> bool {
        let bar = *self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_on() || bar.is_some_and(|bar| last >= bar.0)
    }

    fn set_bar(&self, bar: Option<LogId>) {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(Bar(bar));
    }
}

/// What a member says when the roll is called.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    last: Option<LogId>,
    lost: bool,
    /// Each set of voters of the membership that it knows.
    sets: Vec<BTreeSet<NodeId>>,
}

/// What the answers to a roll call come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody can tell without them.
    Unheard(BTreeSet<NodeId>),
    /// So many of these voters lost something that an entry may be gone from all who had it.
    LostByMost { lost: BTreeSet<NodeId>, of: BTreeSet<NodeId> },
    /// Whoever reaches this has all that was committed.
    Bar(Option<LogId>),
}

fn judge(accounts: &BTreeMap<NodeId, Account>) -> Verdict {
    let sets = || accounts.values().flat_map(|account| &account.sets);
    let unheard: BTreeSet<NodeId> =
        sets().flatten().filter(|voter| !accounts.contains_key(voter)).copied().collect();
    if !unheard.is_empty() || sets().all(BTreeSet::is_empty) {
        return Verdict::Unheard(unheard);
    }
    let has_lost = |voter: &&NodeId| accounts.get(voter).is_some_and(|account| account.lost);
    for set in sets() {
        let lost: BTreeSet<NodeId> = set.iter().filter(has_lost).copied().collect();
        if lost.len() * 2 > set.len() {
            return Verdict::LostByMost { lost, of: set.clone() };
        }
    }
    Verdict::Bar(accounts.values().map(|account| account.last).max().flatten())
}

impl<RT: AsyncRuntime> Core<RT> {
    /// This member's answer to a roll call.
    pub fn account(&self) -> wire::RollReply {
        let membership = self.raft.metrics().borrow_watched().membership_config.clone();
        wire::RollReply {
            last: self.log.last().map(log_id_to_wire),
            lost: self.suspicion.has_lost(),
            membership: Some(membership_to_wire(membership.membership())),
        }
    }
}

fn account_from_wire(reply: wire::RollReply) -> Result<Account, Malformed> {
    let membership = reply.membership.as_ref().ok_or(Malformed("membership"))?;
    let sets = membership_from_wire(membership)?.get_joint_config().clone();
    Ok(Account { last: reply.last.map(log_id_from_wire), lost: reply.lost, sets })
}

/// Works until this node may vote like any other.
pub async fn end<RT: AsyncRuntime>(core: Arc<Core<RT>>, disk: Arc<dyn Disk>) {
    let mut told = None;
    // Both at once: a leader that died answers late.
    while let (false, false) = join(has_caught_up(&core), reaches_bar(&core, &mut told)).await {
        if core.raft.metrics().borrow_watched().running_state.is_err() {
            return;
        }
        RT::sleep(PAUSE).await;
    }
    let removed = core.offload.run(move || remove_mark(&*disk)).await;
    if let Err(error) = removed {
        tracing::error!(%error, "this node keeps from voting: its mark cannot be removed");
        return;
    }
    core.suspicion.suspect.store(false, Ordering::Relaxed);
    core.raft.runtime_config().elect(true);
    tracing::info!("caught up: voting again");
}

/// Whether this node has, durably, what a leader confirmed after the start, or nobody else counts.
async fn has_caught_up<RT: AsyncRuntime>(core: &Core<RT>) -> bool {
    let membership = core.raft.metrics().borrow_watched().membership_config.clone();
    let voters: BTreeSet<NodeId> = membership.membership().voter_ids().collect();
    if voters == BTreeSet::from([core.own]) {
        tracing::error!("this node is the only voter: it goes on with what its log still has");
        return true;
    }
    match confirmed_elsewhere(core).await {
        // What is applied is in the log's queue, but not yet on the disk.
        Some(index) => {
            let reached = RT::timeout(FORWARD_TIMEOUT, core.shared.reached(index)).await;
            reached.is_ok() && core.log.flushed().await
        }
        None => false,
    }
}

async fn confirmed_elsewhere<RT: AsyncRuntime>(core: &Core<RT>) -> Option<u64> {
    let leader = core.leader().filter(|leader| *leader != core.own)?;
    let call = Call::Barrier(wire::BarrierRequest {});
    let Ok(Answer::Barrier(reply)) = core.ask_leader(leader, call).await else {
        return None;
    };
    match reply.outcome() {
        wire::ShellOutcome::Ok => Some(reply.index),
        _ => None,
    }
}

/// Calls the roll, sets the bar, and tells whether this node's own durable log reaches it.
async fn reaches_bar<RT: AsyncRuntime>(core: &Core<RT>, told: &mut Option<Verdict>) -> bool {
    let verdict = call_roll(core).await;
    let reaches = match verdict {
        Verdict::Bar(bar) => {
            core.suspicion.set_bar(bar);
            durable(core) >= bar
        }
        Verdict::Unheard(_) | Verdict::LostByMost { .. } => false,
    };
    if told.as_ref() != Some(&verdict) {
        tell(&verdict);
        *told = Some(verdict);
    }
    reaches
}

fn durable<RT: AsyncRuntime>(core: &Core<RT>) -> Option<LogId> {
    let flushed = core.raft.watch_log_progress().get();
    core.suspicion.recovered.max(flushed.and_then(|point| point.last_log_id))
}

fn tell(verdict: &Verdict) {
    match verdict {
        Verdict::Bar(bar) => tracing::info!(?bar, "all voters are heard: one of them can lead"),
        Verdict::Unheard(unheard) => tracing::warn!(
            ?unheard,
            "this node's log lost its end. It votes again when a leader is there or all voters \
             are heard: start those that are missing"
        ),
        Verdict::LostByMost { lost, of } => tracing::error!(
            ?lost,
            ?of,
            "a majority of the voters lost what it had acknowledged, so the last changes may be \
             gone for good, and nobody votes. To go on without them, stop the daemons, remove \
             the file `suspect` from the registry's directory on the voters, and start them"
        ),
    }
}

async fn call_roll<RT: AsyncRuntime>(core: &Core<RT>) -> Verdict {
    let mut accounts = BTreeMap::new();
    if core.mutation == Mutation::NoRollCall {
        return judge(&accounts);
    }
    if let Ok(own) = account_from_wire(core.account()) {
        accounts.insert(core.own, own);
    }
    let mut verdict = judge(&accounts);
    for _ in 0..ROLL_ROUNDS_MAX {
        let Verdict::Unheard(unheard) = &verdict else { break };
        let answers = join_all(unheard.iter().map(|voter| ask(core, *voter))).await;
        let before = accounts.len();
        accounts.extend(answers.into_iter().flatten());
        if accounts.len() == before {
            break;
        }
        verdict = judge(&accounts);
    }
    match verdict {
        Verdict::Unheard(_) if core.mutation == Mutation::BarOfSome => {
            Verdict::Bar(accounts.values().map(|account| account.last).max().flatten())
        }
        verdict => verdict,
    }
}

async fn ask<RT: AsyncRuntime>(core: &Core<RT>, voter: NodeId) -> Option<(NodeId, Account)> {
    let call = Call::Roll(wire::RollRequest {});
    match core.transport.call(voter, call, ROLL_TIMEOUT).await {
        Ok(Answer::Roll(reply)) => Some((voter, account_from_wire(reply).ok()?)),
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::SimDisk;

    fn id(term: u64, index: u64) -> Option<LogId> {
        Some(log_id_from_wire(wire::LogId { term, index }))
    }

    fn voters(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn account(last: Option<LogId>, lost: bool, set: &[u64]) -> Account {
        Account { last, lost, sets: vec![voters(set)] }
    }

    fn heard(accounts: &[(u64, Account)]) -> BTreeMap<NodeId, Account> {
        accounts.iter().map(|(id, account)| (NodeId(*id), account.clone())).collect()
    }

    #[test]
    fn the_furthest_log_of_all_voters_is_the_bar() {
        let three = [1, 2, 3];
        let mut accounts =
            heard(&[(1, account(id(2, 9), false, &three)), (2, account(id(3, 7), false, &three))]);
        assert_eq!(judge(&accounts), Verdict::Unheard(voters(&[3])));
        accounts.insert(NodeId(3), account(None, false, &three));
        assert_eq!(judge(&accounts), Verdict::Bar(id(3, 7)));
    }

    #[test]
    fn voters_that_only_one_knows_of_are_heard_too() {
        let accounts = heard(&[
            (1, account(id(2, 9), false, &[1, 2])),
            (2, account(id(2, 12), false, &[2, 3, 4])),
        ]);
        assert_eq!(judge(&accounts), Verdict::Unheard(voters(&[3, 4])));
    }

    #[test]
    fn a_minority_may_have_lost_something_and_a_majority_may_not() {
        let three = [1, 2, 3];
        let mut accounts = heard(&[
            (1, account(id(2, 9), true, &three)),
            (2, account(id(2, 8), false, &three)),
            (3, account(id(2, 8), false, &three)),
        ]);
        assert_eq!(judge(&accounts), Verdict::Bar(id(2, 9)));
        accounts.insert(NodeId(2), account(None, true, &three));
        let (lost, of) = (voters(&[1, 2]), voters(&three));
        assert_eq!(judge(&accounts), Verdict::LostByMost { lost, of });
    }

    #[test]
    fn who_knows_no_voters_sets_no_bar() {
        let nothing = Account { last: None, lost: true, sets: vec![] };
        assert_eq!(judge(&heard(&[(1, nothing)])), Verdict::Unheard(voters(&[])));
    }

    #[test]
    fn a_suspect_elects_only_who_reaches_its_bar() {
        let suspicion = Suspicion::new(Doubt::Torn, id(2, 5));
        assert!(!suspicion.may_elect(id(9, 9)), "no bar yet");
        suspicion.set_bar(id(2, 7));
        assert!(!suspicion.may_elect(id(2, 6)));
        assert!(suspicion.may_elect(id(2, 7)));
        assert!(suspicion.may_elect(id(3, 1)));
        assert!(Suspicion::new(Doubt::None, None).may_elect(None));
    }

    #[test]
    fn the_mark_is_remembered_and_an_older_one_counts_as_a_loss() {
        let machine = SimDisk::new(1, 1 << 20).unwrap();
        let disk = machine.disk();
        for doubt in [Doubt::None, Doubt::Torn, Doubt::Lost, Doubt::None] {
            write_mark(&*disk, doubt).unwrap();
            assert_eq!(read_mark(&*disk).unwrap(), doubt);
        }
        replace_whole(&*disk, MARK, b"catch up before voting\n").unwrap();
        assert_eq!(read_mark(&*disk).unwrap(), Doubt::Lost);
    }
}
