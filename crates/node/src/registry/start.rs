//! Starting the registry on a node: recovery from disk, then the tasks around consensus.
//!
//! Directories: `log` (the journal), `snapshots`. The file `suspect` stands as long as this node
//! may have forgotten what it acknowledged (see `suspicion`).

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::{AsyncRuntime, Config, Raft, SnapshotPolicy};
use tokio::sync::mpsc;
use unum_core::time::Time;
use unum_net::Departures;
use unum_proto::ids::{Epoch, NodeId};

use super::RegistryOn;
use super::barrier;
use super::control;
use super::error::StartError;
use super::leases::{Leases, ask_for_stability};
use super::limits::{
    APPEND_ENTRIES_MAX, BARRIER_QUEUE_MAX, DISK_RESERVE_BYTES, LOG_KEPT_ENTRIES, PROPOSE_QUEUE_MAX,
};
use super::log::{LogStore, Replayed};
use super::machine::{Applied, Machine, Observe, Shared, applied_from};
use super::mutation::Mutation;
use super::network::Network;
use super::offload::Offload;
use super::pace::{Pace, keep_pace};
use super::pipeline::Pipeline;
use super::room::Room;
use super::shell::{Clock, Core};
use super::snapshots::Snapshots;
use super::suspicion::{self, Doubt, Suspicion};
use super::transport::Transport;
use super::types::Types;
use super::writer::Writer;
use crate::beats;
use crate::store::disk::Disk;
use crate::store::journal::{Journal, JournalOptions, Tail};

/// The times of consensus. All nodes of a cluster should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for a random time between these stands for election.
    pub election_min_ms: u64,
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 100, election_min_ms: 300, election_max_ms: 500 }
    }
}

pub struct Options {
    pub own: NodeId,
    /// The registry's directory, which it has for itself.
    pub disk: Arc<dyn Disk>,
    pub transport: Arc<dyn Transport>,
    pub clock: Clock,
    pub timing: Timing,
    /// How long the grid of the daemon's timers has run.
    pub grid: fn() -> Duration,
    pub offload: Offload,
    /// Entries since the last snapshot that call for a new one.
    pub snapshot_entries: u64,
    pub reserve_bytes: u64,
    pub journal: JournalOptions,
    /// Sees each entry as it is applied.
    pub observe: Option<Observe>,
    /// How fast the clock goes that read leases are measured by. Clocks' speeds may differ by 5 %.
    pub lease_clock_speed: f64,
    pub mutation: Mutation,
}

impl Options {
    /// As the daemon runs it.
    pub fn new(own: NodeId, disk: Arc<dyn Disk>, transport: Arc<dyn Transport>) -> Self {
        Self {
            own,
            disk,
            transport,
            clock: system_clock(),
            timing: Timing::default(),
            grid: beats::elapsed,
            offload: Offload::Threads,
            snapshot_entries: 20_000,
            reserve_bytes: DISK_RESERVE_BYTES,
            journal: JournalOptions::default(),
            observe: None,
            lease_clock_speed: 1.0,
            mutation: Mutation::None,
        }
    }
}

/// The machine's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    })
}

/// What the disk held.
struct Recovered {
    journal: Journal,
    replayed: Replayed,
    applied: Applied,
    current: Option<(super::types::SnapshotMeta, super::snapshots::SnapshotFile)>,
    snapshots: Snapshots,
    doubt: Doubt,
}

fn recover(disk: &dyn Disk, options: JournalOptions) -> Result<Recovered, StartError> {
    let (mut journal, tail) = Journal::open(disk.dir("log")?, options)?;
    let snapshots = Snapshots::new(disk.dir("snapshots")?);
    let mut replayed = Replayed::read(&journal)?;
    let (latest, rotten) = snapshots.latest()?;
    let marked = suspicion::read_mark(disk)?;
    let mut doubt = marked.max(doubt_of(&tail));
    let (applied, current) = match latest {
        Some((file, loaded)) => {
            let (applied, meta) = applied_from(&loaded.head, loaded.state)?;
            (applied, Some((meta, file)))
        }
        None => (Applied::default(), None),
    };
    let hole = replayed.found().purged > applied.last;
    if hole || rotten > 0 {
        tracing::error!(rotten, "a snapshot is lost: all will be fetched from the leader");
        doubt = Doubt::Lost;
    }
    if doubt > marked {
        suspicion::write_mark(disk, doubt)?;
    }
    if hole {
        replayed.forget_entries(&mut journal)?;
    }
    Ok(Recovered { journal, replayed, applied, current, snapshots, doubt })
}

/// What a power cut tears has parts that read as zeros; rot has not.
fn doubt_of(tail: &Tail) -> Doubt {
    match tail {
        Tail::Clean | Tail::Torn { .. } => Doubt::None,
        Tail::Suspect { file, offset, bytes, zeroed } => {
            tracing::warn!(file, offset, bytes, zeroed, "the log's end was not sound: not voting");
            if *zeroed { Doubt::Torn } else { Doubt::Lost }
        }
    }
}

fn config(options: &Options, suspect: bool) -> Config {
    Config {
        cluster_name: "unum".into(),
        heartbeat_interval: options.timing.heartbeat_ms,
        election_timeout_min: options.timing.election_min_ms,
        election_timeout_max: options.timing.election_max_ms,
        install_snapshot_timeout: 60_000,
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_entries),
        max_in_snapshot_log_to_keep: LOG_KEPT_ENTRIES.min(options.snapshot_entries),
        enable_elect: !suspect,
        enable_pre_vote: Some(true),
        // A leader restored without an election would confirm reads by the commit position that it
        // happened to have saved, which may be older than what it acknowledged.
        enable_leader_restore: Some(false),
        // A follower that lost its log's end is not the leader's end.
        allow_log_reversion: Some(true),
        ..Config::default()
    }
}

impl<RT: AsyncRuntime> RegistryOn<RT> {
    /// Recovers the registry from its directory and takes part in consensus.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let disk = options.disk.clone();
        let journal_options = options.journal;
        let mut recovered = options.offload.run(move || recover(&*disk, journal_options)).await?;
        if options.mutation == Mutation::IgnoreSuspicion {
            recovered.doubt = Doubt::None;
        }
        let (disk, reserve) = (options.disk.clone(), options.reserve_bytes);
        let room = options.offload.run(move || Arc::new(Room::new(disk, reserve))).await;

        let found = recovered.replayed.found();
        let (writer, ended) = Writer::<RT>::start(recovered.journal, room.clone(), options.offload);
        let log = LogStore::new(recovered.replayed, writer);
        let view = log.view();
        let shared = Arc::new(Shared::new(recovered.applied));
        let leases = Arc::new(Leases::new(
            options.own,
            options.mutation,
            options.lease_clock_speed,
            (options.clock)().as_nanos(),
            shared.index(),
        ));
        let machine = Machine {
            leases: leases.clone(),
            shared: shared.clone(),
            snapshots: recovered.snapshots.clone(),
            current: Arc::new(Mutex::new(recovered.current)),
            room: room.clone(),
            offload: options.offload,
            observe: options.observe.clone(),
            mutation: options.mutation,
        };
        let network = Network {
            own: options.own,
            transport: options.transport.clone(),
            offload: options.offload,
            leases: leases.clone(),
        };
        let suspicion = Suspicion::new(recovered.doubt, found.last);
        let config = config(&options, suspicion.is_on());
        let config = config.validate().map_err(|error| StartError::Consensus(error.to_string()))?;
        let raft = Raft::<Types<RT>, Machine<RT>>::new(
            options.own,
            Arc::new(config),
            network,
            log,
            machine,
        );
        let raft = raft.await.map_err(|error| StartError::Consensus(error.to_string()))?;
        tracing::debug!(?found, doubt = ?recovered.doubt, "the registry's log is recovered");

        let (proposals, proposal_queue) = mpsc::channel(PROPOSE_QUEUE_MAX);
        let (readers, reader_queue) = mpsc::channel(BARRIER_QUEUE_MAX);
        let (confirmations, confirmation_queue) = mpsc::channel(BARRIER_QUEUE_MAX);
        let core = Arc::new(Core {
            own: options.own,
            raft,
            shared,
            transport: options.transport,
            clock: options.clock,
            room,
            pace: Pace::new(&options.timing, (options.grid)()),
            leases,
            offload: options.offload,
            snapshots: recovered.snapshots,
            mutation: options.mutation,
            log: view,
            suspicion,
            proposals: proposals.downgrade(),
            confirmations: confirmations.downgrade(),
            incoming: Mutex::new(None),
            log_ended: Mutex::new(Some(ended)),
        });
        drop(RT::spawn(Pipeline::new(core.clone(), proposal_queue).run()));
        drop(RT::spawn(barrier::serve_readers(core.clone(), reader_queue)));
        drop(RT::spawn(barrier::confirm_leadership(core.clone(), confirmation_queue)));
        drop(RT::spawn(ask_for_stability(core.clone())));
        drop(RT::spawn(keep_pace(core.clone(), options.timing)));
        drop(RT::spawn(control::control_members(core.clone())));
        drop(RT::spawn(control::keep_house(core.clone())));
        if core.suspicion.is_on() {
            drop(RT::spawn(suspicion::end(core.clone(), options.disk)));
        }
        Ok(Self {
            core,
            proposals,
            readers,
            departures: Departures::default(),
            _confirmations: confirmations,
            epoch: Arc::new(Mutex::new(Epoch(0))),
        })
    }
}
