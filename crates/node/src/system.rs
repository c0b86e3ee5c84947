//! What the daemon asks of the machine at its start: its directories, their lock, its priority,
//! and the word to the service manager that it is ready.

use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

/// The longest name of a machine's run.
const BOOT_NAME_SIZE_MAX: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot use {path}: {error}; choose another directory or run as root")]
    Directory { path: PathBuf, error: io::Error },
    #[error("another daemon uses {path}; one data directory belongs to one daemon")]
    Locked { path: PathBuf },
}

/// Held for as long as the daemon runs. The kernel releases it when the daemon dies in any way.
#[derive(Debug)]
pub struct DirectoryLock(#[allow(dead_code)] File);

/// Makes the directory if needed, for the owner's eyes only, and locks it.
pub fn lock_directory(path: &Path) -> Result<DirectoryLock, StartError> {
    make_directory(path, 0o700)?;
    let failed = |error| StartError::Directory { path: path.into(), error };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.join("lock"))
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DirectoryLock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::Locked { path: path.into() }),
        Err(error) => Err(failed(error.into())),
    }
}

pub fn make_directory(path: &Path, mode: u32) -> Result<(), StartError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| StartError::Directory { path: path.into(), error })
}

/// Replaces a file so that after a crash there is either the old content or the new one, and the
/// new one is there once this returns.
pub fn write_durably(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("a path without a directory"))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let draft = directory.join(name);
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(directory)?.sync_all()
}

/// Counts the daemon's runs in its data directory: each gets a number greater than all before.
pub fn next_run(data_dir: &Path) -> io::Result<u64> {
    let path = data_dir.join("runs");
    let last = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let run = u64::saturating_add(last, 1);
    write_durably(&path, format!("{run}\n").as_bytes(), 0o600)?;
    Ok(run)
}

/// Names this run of the machine: the same for all daemons that run until it goes down. The kernel
/// knows when it booted; that a machine of a playground, which shares its kernel with others, went
/// down is known by the loss of its run directory.
///
/// All programs and the mount live in the world of unum-init, which listens at `world`: when that is
/// gone while the machine went on, a new run begins as after a fall of the whole machine. `None`: there
/// is no world here by choice.
pub fn boot_name(run_dir: &Path, world: Option<&Path>) -> io::Result<Vec<u8>> {
    let path = run_dir.join("boot");
    if world.is_some_and(|socket| UnixStream::connect(socket).is_err()) {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let kernel = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match std::fs::read(&path) {
        Ok(name) if name.starts_with(kernel.trim_ascii()) && name.len() < BOOT_NAME_SIZE_MAX => {
            return Ok(name);
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut name = kernel.trim_ascii().to_vec();
    name.extend_from_slice(format!(".{:016x}", rand::random::<u64>()).as_bytes());
    write_durably(&path, &name, 0o600)?;
    Ok(name)
}

/// Makes this daemon less likely to wait for a CPU behind the programs that it serves. Without the
/// right to do so it stays as it is.
pub fn raise_priority() -> bool {
    const NICENESS: i32 = -10;
    rustix::process::setpriority_process(None, NICENESS).is_ok()
}

/// One datagram to the service manager that started us, if one did.
pub fn notify_service_manager(message: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send_notification(Path::new(&address), message) {
        tracing::warn!(%error, "cannot tell the service manager `{message}`");
    }
}

fn send_notification(address: &Path, message: &str) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::SocketAddr;
    let socket = UnixDatagram::unbound()?;
    let bytes = address.as_os_str().as_bytes();
    let to = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    socket.send_to_addr(message.as_bytes(), &to).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_directory(dir.path()).unwrap();
        assert!(matches!(lock_directory(dir.path()), Err(StartError::Locked { .. })));
        drop(first);
        lock_directory(dir.path()).unwrap();
    }

    #[test]
    fn files_are_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_durably(&path, b"one", 0o600).unwrap();
        std::fs::write(dir.path().join("secret.new"), b"left by a crash").unwrap();
        write_durably(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn runs_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next_run(dir.path()).unwrap(), 1);
        assert_eq!(next_run(dir.path()).unwrap(), 2);
    }

    #[test]
    fn a_machines_run_has_one_name_until_its_run_directory_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let boot_name = |dir| boot_name(dir, None);
        let name = boot_name(dir.path()).unwrap();
        assert_eq!(boot_name(dir.path()).unwrap(), name);
        std::fs::remove_file(dir.path().join("boot")).unwrap();
        assert_ne!(boot_name(dir.path()).unwrap(), name);
        std::fs::write(dir.path().join("boot"), "another kernel's boot").unwrap();
        assert_ne!(boot_name(dir.path()).unwrap(), b"another kernel's boot");
    }

    #[test]
    fn the_end_of_the_world_ends_a_machines_run() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("init.sock");
        let name = || boot_name(dir.path(), Some(&socket)).unwrap();
        let before = name();
        let world = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let first = name();
        assert_eq!(before, first, "a world that begins finds its run begun");
        assert_eq!(name(), first);
        drop(world);
        assert_ne!(name(), first);
    }

    #[test]
    fn the_service_manager_hears_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send_notification(&path, "READY=1").unwrap();
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }
}
