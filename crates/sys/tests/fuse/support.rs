//! A private mount namespace per test, a mount in it, and its certain end.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use unum_sys::fuse::{ConnectionId, Device, MountOptions, Unmount, mount, unmount};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A mount that this thread's namespace alone sees. Its end frees every caller, whatever happened.
pub struct Mounted {
    pub device: Device,
    pub connection: ConnectionId,
    dir: tempfile::TempDir,
}

impl Mounted {
    /// `None`, with a line that says why, where the machine does not allow it.
    pub fn new() -> Option<Mounted> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            eprintln!("skipped: /dev/fuse cannot be opened ({error})");
            return None;
        }
        if let Err(error) = enter_private_namespace() {
            eprintln!("skipped: no private mount namespace ({error})");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let options = MountOptions { default_permissions: false, ..MountOptions::default() };
        let device = mount(dir.path(), &options).unwrap();
        let connection = ConnectionId::of_mount(dir.path()).unwrap().unwrap();
        Some(Mounted { device, connection, dir })
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As another process would get it from whoever keeps the descriptor.
    pub fn second_descriptor(&self) -> Device {
        Device::from_fd(self.device.as_fd().try_clone_to_owned().unwrap())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.dir.path(), Unmount::Lazy);
        let _ = self.connection.abort();
    }
}

fn enter_private_namespace() -> rustix::io::Result<()> {
    // SAFETY: only the mount namespace (and with it this thread's cwd) is unshared, no descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// Waits for a condition that must come true.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Lets SIGUSR1 interrupt system calls without ending the process.
pub fn make_usr1_harmless() {
    extern "C" fn nothing(_: libc::c_int) {}
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        // SAFETY: a zeroed sigaction is valid, the handler touches nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as libc::sighandler_t;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
    });
}

pub fn send_usr1<T>(thread: &JoinHandle<T>) {
    use std::os::unix::thread::JoinHandleExt;
    // SAFETY: the thread is not joined.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
}

/// A lock call of the fcntl family over the whole file.
pub fn fcntl_lock(file: &File, command: libc::c_int, kind: libc::c_int) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: a zeroed flock is valid and is filled below; the kernel reads it during the call.
    let result = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = kind as libc::c_short;
        libc::fcntl(file.as_raw_fd(), command, &lock)
    };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
