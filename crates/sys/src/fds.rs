//! Unix-socket messages with descriptors (SCM_RIGHTS), and who is on the other side.
//!
//! Invariants: a received descriptor is close-on-exec from its first moment; what was received is
//! owned by the caller or closed, never leaked.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Most descriptors that one call receives.
pub const DESCRIPTORS_MAX: usize = 8;

/// The process at the other end of a Unix socket, as it was when it connected; its PID as seen from
/// the caller's PID namespace (0 when it is not in it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Sends `bytes`, with `descriptor` on the first of them. Returns how many bytes were taken; the
/// descriptor went along if that is at least one.
pub fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let list;
    if let Some(fd) = descriptor {
        list = [fd];
        control.push(SendAncillaryMessage::ScmRights(&list));
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}

/// Receives into `bytes` and appends descriptors that came along to `descriptors`. 0 is the end of
/// the stream. Does not wait longer than the socket's mode says.
pub fn receive_with(
    socket: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut slices, &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    Ok(received.bytes)
}

/// Who connected this Unix socket (SO_PEERCRED). From outside a world, the peer of its socket is the
/// world's PID 1 by its number out there.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd());
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `cred` is a live ucred and `size` its size; the kernel writes at most that much.
    // rustix' own wrapper refuses a PID of 0, which is what a peer in another PID namespace has.
    let rc = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut size,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer { pid: cred.pid as u32, uid: cred.uid, gid: cred.gid })
}
