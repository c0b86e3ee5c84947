//! Identifiers. A bare integer does not cross a function boundary; messages carry the integer and
//! convert at their edge.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }

        impl From<$name> for $int {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id!(
    /// A node of the cluster. Given by the registry at join, never reused. 0 is no node.
    NodeId(u64), "node-"
);
id!(
    /// A fencing number: it grows whenever ownership of something moves.
    Epoch(u64), "epoch "
);
id!(
    /// A process ID, unique in the cluster.
    Pid(u32), ""
);
id!(
    /// An inode of a replicated volume, never reused. 1 is the root.
    Ino(u64), "inode "
);
id!(
    /// A node's write lease on parts of the file tree. Given in order by the registry, never reused. 0 is
    /// none.
    LeaseId(u64), "lease "
);
id!(
    /// A part of the file tree with settings and limits of its own, never reused. 1 is what belongs to no other,
    /// 0 is none.
    VolumeId(u32), "volume "
);
id!(
    /// What a volume was at one moment. Given in order by the registry over all volumes, never reused. 0 is none.
    SnapshotId(u32), "snapshot "
);
id!(
    /// One issuer of registry commands: a run of a daemon or a FUSE connection. Random.
    Lane(u64), "lane "
);

/// Identifies a command for at-most-once execution: `seq` grows by the issuer's own rule and is
/// never used twice within a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    pub lane: Lane,
    pub seq: u64,
}

/// A chunk of file content: the lane of the writer that made it and a counter of that writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    pub lane: u64,
    pub seq: u64,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{:x}", self.lane, self.seq)
    }
}
