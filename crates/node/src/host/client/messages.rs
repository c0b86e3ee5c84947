//! From the words of the kernel to those of the nodes, and back.

use bytes::Bytes;
use rustix::io::Errno;
use unum_proto::host as wire;
use unum_proto::ids::NodeId;
use unum_sys::fuse::{Attr, AttrFlags, Ino, SetTime, Timestamp};
use unum_sys::pids::Status;

pub(super) fn attr(node: NodeId, of: &wire::Attributes) -> Attr {
    Attr {
        ino: Ino(file_number(node, of.device, of.inode)),
        size: of.size,
        blocks: of.blocks,
        atime: time(of.atime),
        mtime: time(of.mtime),
        ctime: time(of.ctime),
        mode: of.mode,
        nlink: of.nlink,
        uid: of.uid,
        gid: of.gid,
        rdev: of.rdev,
        blksize: of.block_size,
        flags: AttrFlags::NONE,
    }
}

/// What stat(2) shows as the inode's number: the same for the same file, whoever asks and whenever; another for
/// every other file of its file system, and most likely for those of all others and all nodes.
pub(super) fn file_number(node: NodeId, device: u64, inode: u64) -> u64 {
    inode ^ spread(spread(node.0) ^ device)
}

/// The same for a node's root, whatever that is.
pub(super) fn root_number(node: NodeId) -> u64 {
    spread(spread(node.0) ^ u64::MAX)
}

/// The finalizer of SplitMix64: it tells every two numbers apart, and near ones far.
pub(super) fn spread(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

pub(super) fn time(time: Option<wire::Timestamp>) -> Timestamp {
    let time = time.unwrap_or_default();
    Timestamp { secs: time.secs, nanos: time.nanos.min(999_999_999) }
}

pub(super) fn new_time(time: SetTime) -> wire::NewTime {
    match time {
        SetTime::Now => wire::NewTime { at: None },
        SetTime::At(at) => {
            wire::NewTime { at: Some(wire::Timestamp { secs: at.secs, nanos: at.nanos }) }
        }
    }
}

/// The errno that a home answered with.
pub(super) fn check(errno: u32) -> Result<(), Errno> {
    match i32::try_from(errno) {
        Ok(0) => Ok(()),
        // The kernel refuses an answer with a number that is none.
        Ok(number @ 1..=511) => Err(Errno::from_raw_os_error(number)),
        _ => Err(Errno::PROTO),
    }
}

pub(super) fn accepted(answer: wire::Answer) -> Result<wire::Answer, Errno> {
    check(answer.errno)?;
    Ok(answer)
}

pub(super) fn check_handle(bytes: &[u8]) -> Result<(), Errno> {
    let fits = !bytes.is_empty() && bytes.len() <= wire::HANDLE_SIZE_MAX;
    if fits { Ok(()) } else { Err(Errno::PROTO) }
}

pub(super) fn journal_failed(error: &std::io::Error) -> Errno {
    tracing::error!(%error, "the journal of what the kernel knows of host trees cannot be written");
    Errno::IO
}

pub(super) fn fits(bytes: Bytes, size: u32) -> Result<Bytes, Errno> {
    if size != 0 && bytes.len() > size as usize { Err(Errno::RANGE) } else { Ok(bytes) }
}

/// The supplementary groups of a process, or of a thread. None, if it is gone.
pub(super) fn groups_of(pid: u32) -> Vec<u32> {
    let status = Status::of(pid);
    let groups = status.as_ref().and_then(|status| status.value("Groups")).unwrap_or_default();
    groups.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_homes_errno_is_one_or_nothing() {
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(2), Err(Errno::NOENT));
        assert_eq!(check(512), Err(Errno::PROTO));
        assert_eq!(check(u32::MAX), Err(Errno::PROTO));
    }

    #[test]
    fn groups_are_those_of_the_process() {
        let own: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(groups_of(std::process::id()), own);
        assert_eq!(groups_of(0), Vec::<u32>::new());
    }
}
