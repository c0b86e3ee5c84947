//! Pseudo-terminals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize};

/// A terminal: the master does not block.
pub struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

pub fn open(rows: u16, cols: u16) -> io::Result<Pty> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    resize(&master, rows, cols)?;
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    Ok(Pty { master, slave })
}

/// Sets the size; the foreground group gets SIGWINCH if it changed.
pub fn resize(terminal: impl AsFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Makes the slave the controlling terminal of the calling session leader.
pub fn acquire(slave: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(slave)?)
}

/// Gives the slave to a user, as login does, so that /dev/tty and its path can be opened.
pub fn give(slave: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    let tty = rustix::fs::fstat(slave)?.st_gid;
    // devpts was mounted with the group for terminals, if there is one.
    let gid = if tty == 0 { gid } else { tty };
    rustix::fs::fchown(slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(rustix::fs::fchmod(slave, Mode::from_raw_mode(0o620))?)
}

/// The character that means end-of-file to a reader, when the terminal is in line mode.
pub fn end_of_file(master: impl AsFd) -> Option<u8> {
    let modes = rustix::termios::tcgetattr(master).ok()?;
    let canonical = modes.local_modes.contains(LocalModes::ICANON);
    canonical.then(|| modes.special_codes[SpecialCodeIndex::VEOF]).filter(|c| *c != 0)
}

/// The process group in the foreground.
pub fn foreground(master: impl AsFd) -> io::Result<u32> {
    let mut group: libc::pid_t = 0;
    let fd = master.as_fd().as_raw_fd();
    // SAFETY: `group` is a live pid_t that the kernel fills. rustix' tcgetpgrp panics on 0, which a
    // terminal without a session has.
    if unsafe { libc::ioctl(fd, libc::TIOCGPGRP, &raw mut group) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if group > 0 { Ok(group as u32) } else { Err(io::Error::from_raw_os_error(libc::ENOTTY)) }
}
