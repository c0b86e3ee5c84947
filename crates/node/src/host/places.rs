//! What is exported, and how it is found again.
//!
//! Invariants: a mount is entered only after it was judged; what is never exported is known by device and inode,
//! so it is refused under every name and mount. A descriptor on a mount other than the root's is let go
//! when it was not used for a while, so that the machine's own umount succeeds.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx};
use rustix::io::Errno;

use crate::settings::Settings;

/// For so long a mount is kept open that nobody asks for.
const ANCHOR_IDLE_MAX: Duration = Duration::from_secs(3);
/// `STATX_MNT_ID_UNIQUE`: a number that no other mount ever gets (Linux 6.8; before it, the other one
/// comes).
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
/// Paths in the setting.
const EXPORTS_MAX: usize = 64;

/// File systems that the kernel makes up, whose files act on this machine.
const NEVER_TYPES: [&str; 24] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.unum",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
const NEVER_PATHS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Which trees others see. Empty: none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exports(Vec<PathBuf>);

impl Default for Exports {
    fn default() -> Self {
        Self(vec![PathBuf::from("/")])
    }
}

impl Exports {
    /// `/`, `none`, or absolute paths with commas between them.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim() == "none" {
            return Ok(Self(Vec::new()));
        }
        let mut paths = Vec::new();
        for word in text.split(',').map(str::trim) {
            let path = Path::new(word);
            let normal =
                |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
            if !path.is_absolute() || !path.components().all(normal) {
                return Err(
                    "write it as /, as none, or as /home,/srv: absolute paths without ..".into()
                );
            }
            paths.push(path.components().collect::<PathBuf>());
        }
        if paths.len() > EXPORTS_MAX {
            return Err(format!("it may hold {EXPORTS_MAX} paths at most"));
        }
        if paths.iter().any(|path| path == Path::new("/")) {
            paths = vec![PathBuf::from("/")];
        }
        Ok(Self(paths))
    }

    fn covers(&self, path: &Path) -> bool {
        self.0.iter().any(|export| path.starts_with(export))
    }

    fn leads_on(&self, path: &Path) -> bool {
        self.0.iter().any(|export| export.starts_with(path))
    }

    /// The names below a directory above the exports.
    fn below(&self, path: &Path) -> Vec<Vec<u8>> {
        let next = |export: &PathBuf| {
            let rest = export.strip_prefix(path).ok()?;
            Some(rest.components().next()?.as_os_str().as_bytes().to_vec())
        };
        let mut names: Vec<_> = self.0.iter().filter_map(next).collect();
        names.sort();
        names.dedup();
        names
    }
}

impl fmt::Display for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let paths: Vec<_> = self.0.iter().map(|path| path.to_string_lossy()).collect();
        f.write_str(&paths.join(","))
    }
}

/// What others may do here.
#[derive(Clone, Debug)]
pub struct Policy {
    pub exports: Exports,
    /// Root of another node is root here.
    pub root_allowed: bool,
    /// Besides what the kernel makes up.
    pub never: Vec<PathBuf>,
}

impl Policy {
    pub fn of(settings: &Settings) -> Self {
        let own = [&settings.data_dir, &settings.run_dir, &settings.mount, &settings.host_mount];
        Self {
            exports: settings.host_export.clone(),
            root_allowed: settings.host_root,
            never: own.into_iter().cloned().collect(),
        }
    }
}

/// The file's number on this machine.
pub type Identity = (u64, u64);

/// Where a path in the direction of the exports leads.
pub enum Way {
    Above,
    Exported(OwnedFd),
}

pub struct Places {
    policy: Policy,
    /// Directories that are never exported.
    never: HashSet<Identity>,
    /// Mounts that are open, by their number. Never held across a call that may wait.
    anchors: Mutex<HashMap<u64, Anchor>>,
}

struct Anchor {
    descriptor: Arc<OwnedFd>,
    used: Instant,
}

impl Places {
    pub fn new(policy: Policy) -> Self {
        let paths =
            NEVER_PATHS.iter().map(Path::new).chain(policy.never.iter().map(PathBuf::as_path));
        let never = paths.filter_map(identity_of).collect();
        Self { policy, never, anchors: Mutex::default() }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// A directory above the exports, or one of them.
    pub fn way(&self, path: &Path) -> Result<Way, Errno> {
        let exports = &self.policy.exports;
        if exports.covers(path) {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
            self.judge_mount(&fd)?;
            return Ok(Way::Exported(fd));
        }
        match exports.leads_on(path) {
            true => Ok(Way::Above),
            false if exports.0.is_empty() => Err(Errno::ACCESS),
            false => Err(Errno::NOENT),
        }
    }

    pub fn names_above(&self, path: &Path) -> Vec<Vec<u8>> {
        self.policy.exports.below(path)
    }

    /// Refuses what is never exported.
    pub fn judge(&self, identity: Identity) -> Result<(), Errno> {
        if self.never.contains(&identity) { Err(Errno::ACCESS) } else { Ok(()) }
    }

    /// Whether the mount that `fd` is on may be entered. Asks nothing of its file system.
    pub fn judge_mount(&self, fd: impl AsFd) -> Result<(), Errno> {
        let id = mount_id(&fd, StatxFlags::MNT_ID)?;
        let mount = mounts()?.into_iter().find(|mount| mount.id == id).ok_or(Errno::ACCESS)?;
        self.judge_entry(&mount)
    }

    fn judge_entry(&self, mount: &MountEntry) -> Result<(), Errno> {
        let never = NEVER_PATHS.iter().map(Path::new);
        let mut never = never.chain(self.policy.never.iter().map(PathBuf::as_path));
        let refused = NEVER_TYPES.contains(&mount.kind.as_str())
            || never.any(|path| mount.point.starts_with(path));
        if refused { Err(Errno::ACCESS) } else { Ok(()) }
    }

    /// A descriptor on the mount, for opening by handle. ESTALE: it is not mounted here any more.
    pub fn anchor(&self, mount: u64) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(anchor) = self.anchors().get_mut(&mount) {
            anchor.used = Instant::now();
            return Ok(anchor.descriptor.clone());
        }
        for entry in mounts()? {
            if self.judge_entry(&entry).is_err() {
                continue;
            }
            let Ok(descriptor) = open_mount(&entry.point) else { continue };
            if mount_id(&descriptor, MOUNT_ID_UNIQUE) == Ok(mount) {
                let descriptor = Arc::new(descriptor);
                let anchor = Anchor { descriptor: descriptor.clone(), used: Instant::now() };
                self.anchors().insert(mount, anchor);
                return Ok(descriptor);
            }
        }
        Err(Errno::STALE)
    }

    /// Lets go of mounts that nobody asked for lately. To be called now and then.
    pub fn let_go(&self) {
        self.anchors().retain(|_, anchor| anchor.used.elapsed() < ANCHOR_IDLE_MAX);
    }

    fn anchors(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Anchor>> {
        self.anchors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that is to be known of a file that is open in whatever way, with its mount's lasting number.
pub fn status(fd: impl AsFd) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | MOUNT_ID_UNIQUE;
    statx(fd, c"", AtFlags::EMPTY_PATH, wanted)
}

pub fn identity(status: &Statx) -> Identity {
    (device(status), status.stx_ino)
}

pub fn device(status: &Statx) -> u64 {
    u64::from(status.stx_dev_major) << 32 | u64::from(status.stx_dev_minor)
}

/// Without asking the file system, which may be one that this daemon serves.
fn mount_id(fd: impl AsFd, which: StatxFlags) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(fd, c"", flags, which)?.stx_mnt_id)
}

fn identity_of(path: &Path) -> Option<Identity> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    statx(CWD, path, flags, StatxFlags::INO).ok().as_ref().map(identity)
}

/// A handle is opened by a descriptor that was opened in earnest.
fn open_mount(point: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat2(CWD, point, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct MountEntry {
    id: u64,
    point: PathBuf,
    kind: String,
}

fn mounts() -> Result<Vec<MountEntry>, Errno> {
    let table = std::fs::read("/proc/thread-self/mountinfo").map_err(|_| Errno::IO)?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(mount_entry).collect())
}

/// `36 35 0:51 / /mnt rw,.. - ext4 /dev/x rw,..`
fn mount_entry(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let point = unum_sys::fuse::unescape(fields.nth(3)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let kind = String::from_utf8_lossy(kind).into_owned();
    let point = PathBuf::from(std::ffi::OsStr::from_bytes(&point));
    Some(MountEntry { id, point, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn exports_are_written_as_they_are_read() {
        let read = |text: &str| Exports::parse(text).map(|exports| exports.to_string());
        let texts =
            ["/", "none", "/home, /srv/", "/home,/", "home", "/a/../b", "", "/a//b", "/a/./b"];
        let told: Vec<_> = texts.iter().map(|text| format!("{text:?}: {:?}", read(text))).collect();
        expect![[r#"
            "/": Ok("/")
            "none": Ok("none")
            "/home, /srv/": Ok("/home,/srv")
            "/home,/": Ok("/")
            "home": Err("write it as /, as none, or as /home,/srv: absolute paths without ..")
            "/a/../b": Err("write it as /, as none, or as /home,/srv: absolute paths without ..")
            "": Err("write it as /, as none, or as /home,/srv: absolute paths without ..")
            "/a//b": Ok("/a/b")
            "/a/./b": Ok("/a/b")"#]]
        .assert_eq(&told.join("\n"));
    }

    #[test]
    fn above_the_exports_only_the_way_is_shown() {
        let exports = Exports::parse("/srv/a/b,/srv/c,/home").unwrap();
        let below = |path: &str| {
            let names = exports.below(Path::new(path)).into_iter();
            names.map(|name| String::from_utf8(name).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(below("/"), ["home", "srv"]);
        assert_eq!(below("/srv"), ["a", "c"]);
        assert!(exports.covers(Path::new("/home/x")) && !exports.covers(Path::new("/homes")));
        assert!(exports.leads_on(Path::new("/srv/a")) && !exports.leads_on(Path::new("/sr")));
    }

    #[test]
    fn mounts_are_judged_by_type_and_place() {
        let policy = Policy {
            exports: Exports::default(),
            root_allowed: false,
            never: vec![PathBuf::from("/var/lib/unum")],
        };
        let places = Places::new(policy);
        let may = |line: &str| {
            let entry = mount_entry(line.as_bytes()).expect(line);
            places.judge_entry(&entry).is_ok()
        };
        assert!(may("36 35 98:0 / / rw,relatime shared:1 - ext4 /dev/root rw"));
        assert!(may(r"36 35 98:0 / /a\040b rw - tmpfs t rw"));
        assert!(!may("36 35 0:5 / /jail/proc rw - proc proc rw"));
        assert!(!may("36 35 0:5 / /dev rw - tmpfs tmpfs rw"));
        assert!(!may("36 35 0:5 / /dev/shm rw - tmpfs tmpfs rw"));
        assert!(!may("36 35 0:5 / /unum rw - fuse.unum unum rw"));
        assert!(!may("36 35 0:5 / /var/lib/unum/chunks rw - xfs /dev/b rw"));
        assert_eq!(mount_entry(b"36 35"), None);
        assert_eq!(mount_entry(b""), None);
    }
}
