//! How often runs met what they are meant to meet: a fault that never strikes finds nothing.

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Met {
    Partition,
    LeaderCutOff,
    SidesChanged,
    PowerLost,
    Blackout,
    PowerCut,
    CrashInSync,
    DiskError,
    DiskFull,
    LogRots,
    SnapshotRots,
    Amnesia,
    Storm,
    MessageLost,
    MessageLate,
    MessageRepeated,
    DeclaredDown,
    HandedOver,
    /// A node came back suspect: its log's end was torn.
    TornEnd,
    /// A node came back suspect: something acknowledged may be gone.
    LostEnd,
    /// As many nodes as a majority of the voters were suspect at once.
    MostSuspect,
    /// Consensus on a node ended because its disk failed.
    ConsensusEnded,
    /// A node could not start because its disk was full.
    NoRoomToStart,
    SnapshotSent,
    RequestInLogTwice,
    Fenced,
    CalledDead,
    GossipJudged,
    Expelled,
    WitnessPresent,
    ReadFromCache,
    /// A read lease ended on a node that lives, and what its kernel had cached went.
    LeaseLapsed,
    /// A new leader waited until the leases that former ones gave were over.
    FormerLeasesAwaited,
    /// A reader waited until what it saw was stable.
    SettledForReader,
    /// A write was stable sooner than the next heartbeat could tell.
    SettledAtOnce,
    /// A write was stable later than that, for whatever reason.
    SettledLate,
}

pub const ALL: [Met; 36] = [
    Met::Partition,
    Met::LeaderCutOff,
    Met::SidesChanged,
    Met::PowerLost,
    Met::Blackout,
    Met::PowerCut,
    Met::CrashInSync,
    Met::DiskError,
    Met::DiskFull,
    Met::LogRots,
    Met::SnapshotRots,
    Met::Amnesia,
    Met::Storm,
    Met::MessageLost,
    Met::MessageLate,
    Met::MessageRepeated,
    Met::DeclaredDown,
    Met::HandedOver,
    Met::TornEnd,
    Met::LostEnd,
    Met::MostSuspect,
    Met::ConsensusEnded,
    Met::NoRoomToStart,
    Met::SnapshotSent,
    Met::RequestInLogTwice,
    Met::Fenced,
    Met::CalledDead,
    Met::GossipJudged,
    Met::Expelled,
    Met::WitnessPresent,
    Met::ReadFromCache,
    Met::LeaseLapsed,
    Met::FormerLeasesAwaited,
    Met::SettledForReader,
    Met::SettledAtOnce,
    Met::SettledLate,
];

/// Counts over one run or many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<Met, u64>);

impl Coverage {
    pub fn count(&mut self, met: Met, times: u64) {
        *self.0.entry(met).or_default() += times;
    }

    pub fn add(&mut self, other: &Coverage) {
        other.0.iter().for_each(|(met, times)| self.count(*met, *times));
    }

    pub fn of(&self, met: Met) -> u64 {
        self.0.get(&met).copied().unwrap_or(0)
    }

    pub fn never_met(&self) -> Vec<Met> {
        ALL.into_iter().filter(|met| self.of(*met) == 0).collect()
    }
}
