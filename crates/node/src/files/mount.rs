//! The mount: made afresh, or taken over from a daemon that died.
//!
//! unum-init keeps a copy of the FUSE descriptor and, beside it, a note: what was agreed with the
//! kernel, the lane of the connection's commands, and where it is mounted. With both, a new daemon
//! goes on: the kernel sends again whatever the dead one had read and not answered.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::runtime::Handle;
use unum_proto::ids::Lane;
use unum_sys::fuse::{
    Capabilities, ConnectionId, Device, MountOptions, Negotiated, Notifier, Readers, Request,
    Serving, Session, StartError, Takeover, Unmount, Wishes, mount, unmount,
};

use super::Files;

/// Under this name unum-init keeps the descriptor.
pub const KEPT_NAME: &str = "fuse";

/// How long the readers may take to stop.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);

/// How far the kernel reads ahead of who reads a file in order, in KiB: one chunk, of which two are then on
/// their way at a time. What is mapped and used here and there is read in pieces of it, so more would be too much.
const READ_AHEAD_KIB: u32 = 1024;

/// Threads that read requests. The answers are made elsewhere, so few are enough.
const READERS: usize = 2;

/// What the next daemon needs to know of the connection.
#[derive(Clone, PartialEq, Message)]
pub struct Note {
    #[prost(bytes = "bytes", tag = "1")]
    pub negotiated: Bytes,
    #[prost(fixed64, tag = "2")]
    pub lane: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub path: Bytes,
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{0}; the file tree needs root's rights and the kernel's FUSE module (modprobe fuse)")]
    Mount(io::Error),
    #[error("the kernel and this daemon do not agree on FUSE: {0}")]
    Start(#[from] StartError),
    #[error("cannot prepare the mount point {path}: {error}")]
    MountPoint { path: PathBuf, error: io::Error },
}

/// A connection to the kernel that is ready to be served.
pub struct Connection {
    session: Session,
    /// Of the commands that the kernel's calls become.
    pub lane: Lane,
    /// Nothing was open on it before.
    pub fresh: bool,
    path: PathBuf,
}

impl Connection {
    /// Mounts on `path`, which is made if it does not exist. A dead mount that is left there is
    /// taken away first.
    pub fn establish(path: &Path, lane: Lane) -> Result<Self, MountError> {
        Self::establish_as(path, lane, &MountOptions::default(), &wishes())
    }

    /// The same for another file system than the tree.
    pub fn establish_as(
        path: &Path,
        lane: Lane,
        options: &MountOptions,
        wishes: &Wishes,
    ) -> Result<Self, MountError> {
        clear(path);
        std::fs::create_dir_all(path)
            .map_err(|error| MountError::MountPoint { path: path.to_owned(), error })?;
        let device = mount(path, options).map_err(MountError::Mount)?;
        let session = Session::start(device, wishes)?;
        Ok(Self { session, lane, fresh: true, path: path.to_owned() })
    }

    /// Goes on with what unum-init kept. None: the note is not understood, or the mount is gone.
    pub fn take_over(descriptor: OwnedFd, note: &[u8], path: &Path) -> Option<Self> {
        let note = Note::decode(note).ok()?;
        let negotiated = Negotiated::from_bytes(&note.negotiated)?;
        if note.path != path_bytes(path) || ConnectionId::of_mount(path).ok()?.is_none() {
            return None;
        }
        let device = Device::from_fd(descriptor);
        let session = Session::adopt(device, negotiated, Takeover::Resend).ok()?;
        Some(Self { session, lane: Lane(note.lane), fresh: false, path: path.to_owned() })
    }

    /// Whether the kernel can drop all names that it caches at once (Linux 6.16).
    pub fn drops_names(&self) -> bool {
        self.session.negotiated().expires_all_entries()
    }

    /// Its kernel obeys access control lists, and leaves it to them or to the umask what new files are born
    /// with. A connection that an older daemon made may be without.
    pub fn obeys_acls(&self) -> bool {
        let both = Capabilities::POSIX_ACL | Capabilities::DONT_MASK;
        self.session.negotiated().capabilities.contains(both)
    }

    pub fn notifier(&self) -> Notifier {
        self.session.notifier()
    }

    /// What unum-init shall keep.
    pub fn to_keep(&self) -> io::Result<(OwnedFd, Vec<u8>)> {
        let note = Note {
            negotiated: self.session.negotiated().to_bytes().into(),
            lane: self.lane.0,
            path: path_bytes(&self.path),
        };
        let descriptor = self.session.device().as_fd().try_clone_to_owned()?;
        Ok((descriptor, note.encode_to_vec()))
    }

    /// Answers the kernel's calls from now on.
    pub fn serve(self, files: Arc<Files>, runtime: &Handle) -> io::Result<Mounted> {
        if !self.fresh {
            files.recall_lock_owners();
        }
        self.read_ahead();
        self.serve_by(runtime, move |request| files.clone().answer(request))
    }

    fn read_ahead(&self) {
        let connection = ConnectionId::of_mount(&self.path).ok().flatten();
        if let Some(connection) = connection
            && let Err(error) = connection.read_ahead(READ_AHEAD_KIB)
        {
            tracing::debug!(%error, "the kernel reads ahead no further than everywhere");
        }
    }

    /// The same by whoever answers.
    pub fn serve_by<A>(
        self,
        runtime: &Handle,
        answer: impl Fn(Request) -> A + Send + Sync + 'static,
    ) -> io::Result<Mounted>
    where
        A: Future<Output = ()> + Send + 'static,
    {
        let runtime = runtime.clone();
        let readers = Readers { count: READERS, pinned: false };
        let serving = self.session.run(readers, move |request| {
            let _entered = runtime.enter();
            answer_or_spawn(&runtime, answer(request));
        })?;
        Ok(Mounted { serving, path: self.path })
    }
}

/// What needs nobody else is answered by the thread that read it, without waking another.
fn answer_or_spawn(runtime: &Handle, answer: impl Future<Output = ()> + Send + 'static) {
    let mut answer = Box::pin(answer);
    let mut nobody = Context::from_waker(Waker::noop());
    if answer.as_mut().poll(&mut nobody).is_pending() {
        // Polled again at once, it leaves its waker with whom it waits for.
        drop(runtime.spawn(answer));
    }
}

fn wishes() -> Wishes {
    let wishes = Wishes::default();
    let capabilities = wishes.capabilities
        | Capabilities::AUTO_INVAL_DATA
        | Capabilities::CACHE_SYMLINKS
        | Capabilities::HANDLE_KILLPRIV_V2
        | Capabilities::DIRECT_IO_ALLOW_MMAP
        | Capabilities::DONT_MASK
        | Capabilities::POSIX_ACL;
    let required = Capabilities::POSIX_LOCKS | Capabilities::FLOCK_LOCKS;
    Wishes { capabilities, required, ..wishes }
}

/// A mount that is served.
pub struct Mounted {
    serving: Serving,
    path: PathBuf,
}

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops reading and leaves the mount for the next daemon.
    pub fn leave(self) {
        let _ = self.serving.stop(STOP_TIME_MAX);
    }

    /// Unmounts: at once if nothing is open there, else as soon as nothing is any more. What is
    /// still open fails from now on.
    pub fn unmount(self) {
        let connection = ConnectionId::of_mount(&self.path).ok().flatten();
        let _ = unmount(&self.path, Unmount::Lazy);
        if let Some(connection) = connection {
            let _ = connection.abort();
        }
        let _ = self.serving.stop(STOP_TIME_MAX);
    }
}

/// Takes away FUSE mounts that nobody serves any more.
fn clear(path: &Path) {
    while let Ok(Some(connection)) = ConnectionId::of_mount(path) {
        let _ = connection.abort();
        if unmount(path, Unmount::Lazy).is_err() {
            break;
        }
    }
}

fn path_bytes(path: &Path) -> Bytes {
    use std::os::unix::ffi::OsStrExt;
    Bytes::copy_from_slice(path.as_os_str().as_bytes())
}
