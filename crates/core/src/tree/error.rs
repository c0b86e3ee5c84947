//! Why a command of the tree was refused. Each variant is a choice for the caller; the errno that
//! each becomes at the FUSE edge is listed in `docs/spec/tree.md`.

use unum_proto::tree::TreeErrorCode;

macro_rules! tree_errors {
    ($($(#[$doc:meta])* $name:ident $text:literal)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum TreeError {
            $($(#[$doc])* #[error($text)] $name,)*
        }

        impl TreeError {
            pub fn code(self) -> TreeErrorCode {
                match self { $(Self::$name => TreeErrorCode::$name,)* }
            }

            /// A code that this version does not know reads as `Invalid`.
            pub fn from_code(code: i32) -> Self {
                match TreeErrorCode::try_from(code) {
                    $(Ok(TreeErrorCode::$name) => Self::$name,)*
                    Ok(TreeErrorCode::Unspecified) | Err(_) => Self::Invalid,
                }
            }
        }
    };
}

tree_errors! {
    /// The name does not exist, or its directory was removed.
    NotFound "no such file or directory"
    Exists "the name exists already"
    NotDirectory "not a directory"
    IsDirectory "is a directory"
    NotEmpty "the directory is not empty"
    NameTooLong "the name is longer than 255 bytes, or the link's target longer than 4095"
    TooManyLinks "the file has as many names as a file can have (65000)"
    /// A field outside of what the command allows; also what a newer node sent and this one cannot
    /// understand.
    Invalid "the request makes no sense: a field is missing or out of its range"
    CrossesItself "a directory cannot be moved into itself or below itself"
    Unsupported "this file system does not support the operation"
    NoAttribute "no such extended attribute"
    FileTooBig "the file would grow beyond 8 TiB"
    /// A limit of the tree: inodes, chunks, extents of a file.
    NoSpace "a limit of the file tree is reached: remove files, or split very fragmented ones"
    /// The inode, or the version that the command expected, is gone: look it up again.
    Stale "the file is gone or has changed since it was looked up: look it up again"
    Deadlock "waiting for this lock would wait for oneself"
    TooManyLocks "the file has as many locks or waiting requests as a file can have"
    NotPermitted "a directory cannot have a second name"
    AttributeTooBig "the extended attributes of the file would be larger than allowed"
    /// A search for data or a hole that starts at or behind the end.
    /// Ask the holder of the write lease to give it back.
    Held "another node is changing this and has not given it back"
    BeyondEnd "the offset is behind the end of the file or of its data"
    /// Remove files of the volume, or raise its limit.
    QuotaExceeded "the limit of the volume is reached: remove files, or have root raise it with `unum volume set`"
    ReadOnly "a snapshot cannot be changed"
    HasSnapshots "the volume has snapshots: delete them first, `unum snapshot list DIR` shows them"
    TooManySnapshots "the volume has 256 snapshots, or the whole tree 4096: delete some, `unum snapshot list` shows them"
    /// Copy it, and remove the original.
    CrossesVolumes "the two are in different volumes: copy the file and remove the original"
}
