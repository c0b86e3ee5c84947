//! Read leases: who may answer from its own copy of the registry, and how long a change waits for those
//! who may.
//!
//! A node that holds a lease reads without asking anybody, and lets its kernel cache what it read. So a
//! change may be acknowledged only when no holder can show what was before it: when it is *stable*. Each
//! holder *confirms* an entry of the log when it has applied it and dropped what its caches held of it;
//! an entry is stable when all holders have confirmed it. Whoever sees a change that is not stable yet
//! waits until it is, or a reader elsewhere, later, might still see what was before. (Leases for
//! reading at replicas: Moraru, Andersen, Kaminsky, "Paxos Quorum Leases", SoCC 2014; holding back what is
//! not everywhere yet: Terrace, Freedman, "Object Storage on CRAQ", USENIX ATC 2009.)
//!
//! The leader is the *lessor*. The messages are those of consensus: each answer of a follower carries a
//! [`Mark`], a reading of its own clock; the leader's next message brings the mark back and so renews the
//! lease for [`LEASE`] from that reading. If the mark is younger than the leader's proof that it leads (the
//! time Q when it sent the messages that a majority has answered), it is set back by the difference. The
//! lessor counts from when the mark came, so it is never the first to hold the lease for ended.
//!
//! Why it is safe:
//! - *A leader that is none any more* gives nothing beyond `Q + LEASE`, however late it notices, and
//!   however late what it sent arrives: the end of a lease follows from readings of clocks that were
//!   taken before.
//! - *A new leader* holds nothing stable until every member that may hold a lease of a former leader has
//!   answered it, and so has one of its own, or until all such leases are over: see below.
//! - *A newcomer*, or a node that was away, gets a lease only once it has confirmed whatever was stable
//!   when it was admitted.
//!
//! # When the leases of former leaders are over
//!
//! Each voter that follows the new leader, of term T, tells how long ago it last heard a leader of an
//! earlier term ([`Heard`]). Let H be a time by which a majority of the voters, the new leader among them,
//! had heard the last of these ([`Former`]). Then no lease of theirs lasts longer than `H + LEASE`:
//! - A former leader's Q rests on a majority, which has a member F in common with those who told. F
//!   heard that leader no earlier than Q, and what F told covers it: a message counts from before consensus
//!   may follow it, and what F heard of earlier leaders once it follows T it does not follow. So `Q <= H`.
//! - *F is the former leader itself*: it counts as heard by itself until it stopped to give leases, which it
//!   did before it tells this, or votes.
//! - *F voted, but followed nobody*: then it is not in any former leader's majority, and another member is
//!   F. *Several short-lived leaders*: H is about all earlier terms at once.
//! - *F started anew*: its former life heard nothing after this one began, so its word is the beginning of its
//!   life. That it does not follow T and an earlier leader afterwards rests on its vote, which is durable.
//! - *Other voters than now*: two configurations next to each other in the log have a set of voters in common,
//!   and thereby an F. Between others there is one next to the former leader's that was committed before the
//!   last one was written. A majority of the set that these two share had followed a later term by then, or
//!   the former leader wrote it and stopped to count by an older one. The new leader knew the last one to be
//!   committed when it was elected, so it heard of that, and all this was before, by H. This is why its own word
//!   always counts, why its voters are those of its election, and why a leader counts by a
//!   configuration from when it first sends it. If the new leader's configuration is not committed, or is of its own
//!   term already, H is not used.
//! - *A hand-over* is an election like others. *A learner's* word does not count. *A voter that is not
//!   heard* counts as one that heard a former leader just now.
//!
//! Without H, T's election serves instead: F had voted for T, or had followed it, before that. So nobody waits
//! longer than `LEASE` from the election.
//!
//! Clocks: only durations are compared, each measured by one clock, and of any two clocks one is at most 5 %
//! faster. A duration that is told is subtracted from the time when it comes, so messages and
//! programs may stand still anywhere for any time. The times up to a lease's end are measured by four clocks: the
//! voter's, the new and the former leader's and the holder's. Where one after the other measures, the error is
//! that of the whole only once; by the voter's clock, which measures what has gone by before
//! the rest, at most a little more: 5.1 % of [`LEASE`] together, while [`DRIFT_MAX`] is 6.25 %.
//! A clock that stands still (a virtual machine that is suspended and goes on) breaks the assumption.
//!
//! Left out: a node that is removed is no member that a new leader waits for. For as long as its lease
//! lasts it may show what was before.
//!
//! Times are durations since any fixed moment of the node's own monotonic clock.

mod former;
mod holder;
mod lessor;

use std::time::Duration;

pub use former::{Former, Heard};
pub use holder::Holder;
pub use lessor::Lessor;

/// How long a lease lasts from the reading of the holder's clock that renews it.
pub const LEASE: Duration = Duration::from_millis(832);
/// What the lessor adds, for clocks that do not go at one speed.
pub const DRIFT_MAX: Duration = Duration::from_millis(52);
/// Entries that a node without a lease may lag behind and still be waited for while it catches up. Whoever
/// is further behind comes nearer first.
pub const ADMISSION_LAG_MAX: u64 = 1024;

/// A reading of a holder's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which life of the holder's caches: a new daemon knows nothing of what its predecessor's held.
    /// Later lives have larger numbers.
    pub life: u64,
    pub at: Duration,
}
