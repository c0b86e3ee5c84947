//! Acting for a user on one thread.
//!
//! Invariants: a thread that acts for somebody goes back to what it was before anything else runs on it,
//! whatever happens in between; if it cannot, the process ends, since a thread with the wrong rights must not
//! serve the next call. Only the calling thread changes. A user other than root acts without any capability:
//! the ids for file systems alone would leave CAP_SYS_ADMIN and CAP_SETFCAP, with which everybody could
//! give a program root's rights.
//!
//! Left out: real and effective ids (nobody signals or traces while acting), and securebits.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;

use rustix::fs::Mode;
use rustix::process::Gid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
};

/// Linux knows no more supplementary groups.
pub const GROUPS_MAX: usize = 65_536;

/// For whom to act.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// While it lives, the thread that made it acts for somebody.
struct Acting {
    before: CapabilitySets,
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    mask: Mode,
    /// It must end on the thread that it began on.
    _here: PhantomData<*const ()>,
}

thread_local! {
    /// Whether this thread has a umask of its own.
    static APART: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with the rights of `user` and this umask. The caller is root.
pub fn act_for<T>(user: &User, umask: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let acting = Acting::begin(user, umask)?;
    let done = work();
    drop(acting);
    Ok(done)
}

impl Acting {
    fn begin(user: &User, umask: u32) -> io::Result<Self> {
        part_from_others()?;
        let acting = Self {
            before: capabilities(None)?,
            uid: fsuid(),
            gid: fsgid(),
            groups: own_groups()?,
            mask: rustix::process::umask(Mode::from_bits_truncate(umask & 0o777)),
            _here: PhantomData,
        };
        // From here on, a failure drops `acting`, which takes everything back.
        acting.become_user(user)?;
        Ok(acting)
    }

    fn become_user(&self, user: &User) -> io::Result<()> {
        let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_thread_groups(&groups)?;
        set_fsgid(user.gid)?;
        set_fsuid(user.uid)?;
        if user.uid != 0 {
            let none = CapabilitySets { effective: CapabilitySet::empty(), ..self.before };
            set_capabilities(None, none)?;
        }
        Ok(())
    }

    fn end(&self) -> io::Result<()> {
        rustix::process::umask(self.mask);
        // First the capabilities: the ids cannot be changed back without them. The kernel takes some away and
        // gives some with the user's id, so they come last as well.
        set_capabilities(None, self.before)?;
        set_fsuid(self.uid)?;
        set_fsgid(self.gid)?;
        set_thread_groups(&self.groups)?;
        Ok(set_capabilities(None, self.before)?)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("a thread cannot give up the rights that it acted with: {error}");
            std::process::abort();
        }
    }
}

/// Threads share one umask unless they say otherwise.
fn part_from_others() -> io::Result<()> {
    if APART.get() {
        return Ok(());
    }
    // SAFETY: CLONE_FS gives this thread its own copy of umask, working and root directory; no memory and no
    // descriptor is touched. rustix has the call only as an unsafe one, for the sake of CLONE_FILES.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
    APART.set(true);
    Ok(())
}

fn own_groups() -> io::Result<Vec<Gid>> {
    Ok(rustix::process::getgroups()?)
}

/// No user: setfsuid and setfsgid then change nothing and tell what is.
const NOBODY: u32 = u32::MAX;

fn fsuid() -> u32 {
    // SAFETY: a system call on plain numbers; glibc's is the bare call, which changes the calling thread alone. No
    // other crate has it.
    unsafe { libc::setfsuid(NOBODY) as u32 }
}

fn fsgid() -> u32 {
    // SAFETY: as for `fsuid`.
    unsafe { libc::setfsgid(NOBODY) as u32 }
}

/// The call itself does not tell whether it was obeyed.
fn set_fsuid(uid: u32) -> io::Result<()> {
    // SAFETY: as for `fsuid`.
    unsafe { libc::setfsuid(uid) };
    if fsuid() == uid { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

fn set_fsgid(gid: u32) -> io::Result<()> {
    // SAFETY: as for `fsuid`.
    unsafe { libc::setfsgid(gid) };
    if fsgid() == gid { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::path::Path;

    fn root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("skipped: acting for others needs root");
        }
        root
    }

    fn status(field: &str) -> String {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        text.lines().find(|line| line.starts_with(field)).unwrap_or_default().to_owned()
    }

    fn user(uid: u32, groups: &[u32]) -> User {
        User { uid, gid: uid, groups: groups.to_vec() }
    }

    #[test]
    fn rights_and_owners_are_the_users_and_end_with_the_work() {
        if !root() {
            return;
        }
        let before = ["Uid", "Gid", "Groups", "CapEff", "Umask"].map(status);
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "x").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o640)).unwrap();
        chown(&secret, Some(0), Some(4242)).unwrap();

        let read = |user: &User, path: &Path| act_for(user, 0o22, || std::fs::read(path)).unwrap();
        assert!(read(&user(1000, &[]), &secret).is_err());
        assert!(read(&user(1000, &[4242]), &secret).is_ok());
        let made = dir.path().join("made");
        act_for(&user(1000, &[]), 0o77, || std::fs::write(&made, "y")).unwrap().unwrap();
        let made = std::fs::metadata(&made).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (1000, 1000, 0o600));
        assert_eq!(["Uid", "Gid", "Groups", "CapEff", "Umask"].map(status), before);
    }

    #[test]
    fn a_panic_gives_the_rights_back() {
        if !root() {
            return;
        }
        let before = ["Uid", "Gid", "Groups", "CapEff", "Umask"].map(status);
        let work = || act_for(&user(1000, &[7]), 0, || panic!("on purpose"));
        assert!(std::panic::catch_unwind(work).is_err());
        assert_eq!(["Uid", "Gid", "Groups", "CapEff", "Umask"].map(status), before);
    }

    #[test]
    fn nobody_but_root_acts_with_capabilities_and_no_other_thread_notices() {
        if !root() {
            return;
        }
        let before = status("Groups");
        let (seen, other) = act_for(&user(1000, &[4242]), 0, || {
            let other = std::thread::scope(|scope| {
                // A thread that is born now inherits; one that lived before is not touched, which is what
                // the shape of a pool relies on.
                scope.spawn(|| status("CapEff")).join().unwrap()
            });
            (status("CapEff"), other)
        })
        .unwrap();
        assert_eq!(seen.split_whitespace().last().unwrap().trim_start_matches('0'), "");
        assert_eq!(other, seen);
        assert_eq!(status("Groups"), before);
        let root_acts = act_for(&user(0, &[]), 0, || status("CapEff")).unwrap();
        assert_eq!(root_acts, status("CapEff"));
    }
}
