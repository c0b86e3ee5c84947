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
}
