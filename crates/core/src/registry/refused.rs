//! Why the registry did not do what a command asked.
//!
//! Each variant is a choice for the caller. A refusal changes nothing.

use unum_proto::ids::Epoch;
use unum_proto::registry as wire;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the command is not understood; the node that sent it may be newer than the leader")]
    NotUnderstood,
    #[error("{field} is not acceptable: {text}", field = .0, text = .1)]
    Invalid(Field, String),
    #[error("the cluster already exists")]
    AlreadyFounded,
    #[error("the cluster does not exist yet")]
    NotFounded,
    #[error(
        "fenced: the command carries an epoch that is over, the present one is {current}; \
         read the registry again and come up anew"
    )]
    Fenced { current: Epoch },
    #[error("no node has the id {0}")]
    NodeUnknown(u64),
    #[error("the node has left the cluster; let it join again with a new token")]
    NodeGone,
    #[error("the node holds the only copy of {0} pieces of files")]
    OnlyCopies(u64),
    #[error("the name {0:?} is taken by another node; choose another one")]
    NameTaken(String),
    #[error("the join token is unknown; check it, or create one with `unum token create`")]
    TokenUnknown,
    #[error("the join token has expired; create a new one with `unum token create`")]
    TokenExpired,
    #[error("the join token has been used; create a new one with `unum token create`")]
    TokenUsed,
    #[error("the join token is for the role {0}; create one for the role that you want")]
    TokenRole(String),
    #[error("a token with this hash exists")]
    TokenExists,
    #[error("the limit of {limit} {field} is reached", field = .0, limit = .1)]
    Limit(Field, u64),
    #[error("all blocks of PIDs are leased")]
    PidsExhausted,
    #[error("block {0} of PIDs is not leased to the node")]
    PidsNotLeased(u64),
    #[error("the value has another version than expected: {0} (0: there is none)")]
    VersionConflict(u64),
    #[error("there is no value with this key")]
    ValueMissing,
    #[error(
        "the request is older than the replies that are remembered: it cannot be told whether it \
         was done"
    )]
    Forgotten,
}

/// What a limit or a complaint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Field {
    Key = 1,
    Value = 2,
    Values = 3,
    NodeName = 4,
    Nodes = 5,
    Description = 6,
    ClusterName = 7,
    ClusterId = 8,
    Authorities = 9,
    Tokens = 10,
    TokenHash = 11,
    TokenTtl = 12,
    Role = 13,
    Certificate = 14,
    PidBlocks = 15,
    Reason = 16,
}

impl Field {
    const ALL: [Field; 16] = [
        Field::Key,
        Field::Value,
        Field::Values,
        Field::NodeName,
        Field::Nodes,
        Field::Description,
        Field::ClusterName,
        Field::ClusterId,
        Field::Authorities,
        Field::Tokens,
        Field::TokenHash,
        Field::TokenTtl,
        Field::Role,
        Field::Certificate,
        Field::PidBlocks,
        Field::Reason,
    ];

    fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|field| *field as u64 == number)
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Field::Key => "the key",
            Field::Value => "the value",
            Field::Values => "named values",
            Field::NodeName => "the node's name",
            Field::Nodes => "nodes",
            Field::Description => "the node's description",
            Field::ClusterName => "the cluster's name",
            Field::ClusterId => "the cluster's id",
            Field::Authorities => "the authority's certificates",
            Field::Tokens => "join tokens",
            Field::TokenHash => "the token's hash",
            Field::TokenTtl => "the token's lifetime",
            Field::Role => "the role",
            Field::Certificate => "the certificate's serial or fingerprint",
            Field::PidBlocks => "blocks of PIDs",
            Field::Reason => "the reason",
        })
    }
}

impl From<Refused> for wire::Refusal {
    fn from(refused: Refused) -> Self {
        let (code, number, text) = match refused {
            Refused::NotUnderstood => (1, 0, String::new()),
            Refused::Invalid(field, text) => (2, field as u64, text),
            Refused::AlreadyFounded => (3, 0, String::new()),
            Refused::NotFounded => (4, 0, String::new()),
            Refused::Fenced { current } => (5, current.0, String::new()),
            Refused::NodeUnknown(node) => (6, node, String::new()),
            Refused::NodeGone => (7, 0, String::new()),
            Refused::NameTaken(name) => (8, 0, name),
            Refused::TokenUnknown => (9, 0, String::new()),
            Refused::TokenExpired => (10, 0, String::new()),
            Refused::TokenUsed => (11, 0, String::new()),
            Refused::TokenRole(role) => (12, 0, role),
            Refused::TokenExists => (13, 0, String::new()),
            // The limit and what it limits share the number's two halves.
            Refused::Limit(field, limit) => (14, (field as u64) << 48 | limit, String::new()),
            Refused::PidsExhausted => (15, 0, String::new()),
            Refused::PidsNotLeased(block) => (16, block, String::new()),
            Refused::VersionConflict(version) => (17, version, String::new()),
            Refused::ValueMissing => (18, 0, String::new()),
            Refused::Forgotten => (19, 0, String::new()),
            Refused::OnlyCopies(chunks) => (20, chunks, String::new()),
        };
        wire::Refusal { code, number, text }
    }
}

impl From<&wire::Refusal> for Refused {
    /// A code from a newer node becomes `NotUnderstood`.
    fn from(refusal: &wire::Refusal) -> Self {
        let number = refusal.number;
        let text = || refusal.text.clone();
        let field = |number| Field::from_number(number).unwrap_or(Field::Description);
        match refusal.code {
            2 => Refused::Invalid(field(number), text()),
            3 => Refused::AlreadyFounded,
            4 => Refused::NotFounded,
            5 => Refused::Fenced { current: Epoch(number) },
            6 => Refused::NodeUnknown(number),
            7 => Refused::NodeGone,
            8 => Refused::NameTaken(text()),
            9 => Refused::TokenUnknown,
            10 => Refused::TokenExpired,
            11 => Refused::TokenUsed,
            12 => Refused::TokenRole(text()),
            13 => Refused::TokenExists,
            14 => Refused::Limit(field(number >> 48), number & ((1 << 48) - 1)),
            15 => Refused::PidsExhausted,
            16 => Refused::PidsNotLeased(number),
            17 => Refused::VersionConflict(number),
            18 => Refused::ValueMissing,
            19 => Refused::Forgotten,
            20 => Refused::OnlyCopies(number),
            _ => Refused::NotUnderstood,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_survive_the_wire() {
        let all = [
            Refused::NotUnderstood,
            Refused::Invalid(Field::Key, "empty".into()),
            Refused::AlreadyFounded,
            Refused::NotFounded,
            Refused::Fenced { current: Epoch(7) },
            Refused::NodeUnknown(9),
            Refused::NodeGone,
            Refused::NameTaken("n1".into()),
            Refused::TokenUnknown,
            Refused::TokenExpired,
            Refused::TokenUsed,
            Refused::TokenRole("witness".into()),
            Refused::TokenExists,
            Refused::Limit(Field::Values, 1_000_000),
            Refused::PidsExhausted,
            Refused::PidsNotLeased(3),
            Refused::VersionConflict(5),
            Refused::ValueMissing,
            Refused::Forgotten,
            Refused::OnlyCopies(12),
        ];
        for refused in all {
            let wire = wire::Refusal::from(refused.clone());
            assert_eq!(Refused::from(&wire), refused);
        }
    }

    #[test]
    fn a_code_of_the_future_is_not_understood() {
        let wire = wire::Refusal { code: 9999, number: u64::MAX, text: String::new() };
        assert_eq!(Refused::from(&wire), Refused::NotUnderstood);
    }
}
