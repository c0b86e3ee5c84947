//! Faults that the simulator plants to see whether its checks bite. None of them is ever set by
//! the daemon.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    #[default]
    None,
    /// Replies are not remembered: a repeated request runs again.
    ForgetReplies,
    /// A barrier does not ask the leader or a quorum.
    BarrierWithoutQuorum,
    /// A node votes though it may have lost what it acknowledged.
    IgnoreSuspicion,
    /// A suspect node asks whom it reaches how far the logs go, and takes that for all.
    BarOfSome,
    /// A suspect node waits for a leader, even if all voters are suspect.
    NoRollCall,
    /// A new leader does not wait for the read leases that former ones gave.
    ForgetFormerLeases,
    /// A new leader takes one voter's word for when former ones were heard last.
    TrustOne,
    /// For a while after a majority answered it, a leader gives whole leases, as if none could follow it.
    OutliveProof,
    /// A leader renews read leases though no majority answers it.
    RenewWithoutQuorum,
    /// A reader does not wait until what it shows is stable.
    ShowUnsettled,
}
