//! All kinds of disks behave alike; what was not synced is lost or torn, never invented.

use super::*;
use proptest::prelude::*;

const ROOM: u64 = 64 << 20;

fn check_kind(disk: &dyn Disk) {
    assert!(matches!(disk.open("a", Open::Existing), Err(DiskError::NotFound { .. })));
    let file = disk.open("a", Open::New).unwrap();
    assert!(matches!(disk.open("a", Open::New), Err(DiskError::Exists { .. })));
    file.write_parts_at(&[b"one", b"", b"two"], 3).unwrap();
    let mut buf = [9; 20];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 9);
    assert_eq!(&buf[..9], b"\0\0\0onetwo");
    file.set_len(5).unwrap();
    file.set_len(8).unwrap();
    assert_eq!(file.read_at(&mut buf, 2).unwrap(), 6);
    assert_eq!(&buf[..6], b"\0on\0\0\0");
    file.sync().unwrap();
    disk.rename("a", "b").unwrap();
    disk.open("c", Open::Any).unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(disk.list().unwrap(), ["b", "c"]);
    disk.remove("c").unwrap();
    assert!(matches!(disk.remove("c"), Err(DiskError::NotFound { .. })));
    assert!(matches!(disk.open("x/y", Open::Any), Err(DiskError::BadName { .. })));
    let dir = disk.dir("d").unwrap();
    replace_whole(&*dir, "small", b"first").unwrap();
    replace_whole(&*dir, "small", b"2nd").unwrap();
    assert_eq!(read_whole(&*disk.dir("d").unwrap(), "small", 10).unwrap(), b"2nd");
    assert!(read_whole(&*dir, "small", 2).is_err());
    assert_eq!(disk.list().unwrap(), ["b"]);
    let lock = disk.lock("lock").unwrap();
    assert!(matches!(disk.lock("lock"), Err(DiskError::Locked { .. })));
    drop(lock);
    drop(disk.lock("lock").unwrap());
    assert!(disk.space().unwrap().total_bytes > 0);
}

#[test]
fn kinds_behave_alike() {
    let dir = tempfile::tempdir().unwrap();
    check_kind(&RealDisk::open(dir.path().join("real")).unwrap());
    let below = Arc::new(RealDisk::open(dir.path().join("volatile")).unwrap());
    check_kind(&VolatileDisk::over(below, 1).unwrap());
    check_kind(&*SimDisk::new(1, ROOM).unwrap().disk());
}

#[test]
fn a_lock_names_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let _lock = disk.lock("lock").unwrap();
    let refused = disk.lock("lock").unwrap_err().to_string();
    assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
}

#[test]
fn a_new_life_on_a_real_directory_has_what_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let boot = |seed| {
        let below = Arc::new(RealDisk::open(dir.path()).unwrap());
        VolatileDisk::over(below, seed).unwrap()
    };
    let disk = boot(1);
    replace_whole(&disk, "kept", b"kept").unwrap();
    disk.open("nameless", Open::New).unwrap().sync().unwrap();
    let disk = boot(2);
    assert_eq!(read_whole(&disk, "kept", 10).unwrap(), b"kept");
    // A name may reach the disk early, but nothing hidden stays.
    assert!(disk.list().unwrap().iter().all(|name| name == "kept" || name == "nameless"));
    let hidden = RealDisk::open(dir.path()).unwrap().list().unwrap();
    assert!(hidden.iter().all(|name| !name.starts_with('.')), "{hidden:?}");
}

#[test]
fn a_full_disk_says_so_at_the_write() {
    let sim = SimDisk::new(3, 10_000).unwrap();
    let file = sim.disk().open("a", Open::New).unwrap();
    file.write_at(&[1; 9000], 0).unwrap();
    assert!(file.write_at(&[1; 9000], 9000).unwrap_err().is_full());
    file.sync().unwrap();
    sim.set_total_bytes(100_000);
    file.write_at(&[1; 9000], 9000).unwrap();
    file.sync().unwrap();
}

#[test]
fn a_failed_sync_is_not_mended_by_the_next() {
    let mut lost = 0;
    for seed in 0..20 {
        let sim = SimDisk::new(seed, ROOM).unwrap();
        let disk = sim.disk();
        let file = disk.open("a", Open::New).unwrap();
        disk.sync_dir().unwrap();
        file.write_at(&[7; 600], 0).unwrap();
        let fault = Fault { op: Op::Sync, path_contains: "a".into(), after: 0, errno: Errno::IO };
        sim.fail(fault);
        assert!(file.sync().is_err());
        file.sync().unwrap();
        let mut buf = [0; 600];
        file.read_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [7; 600], "the page cache still has it");
        sim.crash().unwrap();
        assert!(file.sync().is_err(), "the old life is over");
        lost += u32::from(read_whole(&*sim.disk(), "a", 600).unwrap() != [7; 600]);
    }
    assert!(lost > 0);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let sim = SimDisk::new(11, ROOM).unwrap();
        let file = sim.disk().open("a", Open::New).unwrap();
        sim.disk().sync_dir().unwrap();
        file.write_at(&[5; 100_000], 0).unwrap();
        sim.crash().unwrap();
        read_whole(&*sim.disk(), "a", 100_000).unwrap()
    };
    assert_eq!(run(), run());
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u32, len: u16, byte: u8 },
    SetLen(u32),
    Sync,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..20_000u32, 1..9000u16, 1..=255u8)
            .prop_map(|(offset, len, byte)| Step::Write { offset, len, byte }),
        2 => (0..25_000u32).prop_map(Step::SetLen),
        2 => Just(Step::Sync),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A file reads as its model. After a crash each byte is one that it had since the last sync,
    /// or zero where it was never written or cut.
    #[test]
    fn a_file_keeps_what_was_synced(seed: u64, steps in prop::collection::vec(step(), 1..40)) {
        let sim = SimDisk::new(seed, ROOM).unwrap();
        let mut file = sim.disk().open("f", Open::New).unwrap();
        sim.disk().sync_dir().unwrap();
        let mut model: Vec<u8> = Vec::new();
        let mut history: Vec<Vec<u8>> = vec![Vec::new()];
        for step in steps {
            match step {
                Step::Write { offset, len, byte } => {
                    file.write_at(&vec![byte; len as usize], offset as u64).unwrap();
                    let end = offset as usize + len as usize;
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].fill(byte);
                    history.push(model.clone());
                }
                Step::SetLen(len) => {
                    file.set_len(len as u64).unwrap();
                    model.resize(len as usize, 0);
                    history.push(model.clone());
                }
                Step::Sync => {
                    file.sync().unwrap();
                    history = vec![model.clone()];
                }
                Step::Crash => {
                    sim.crash().unwrap();
                    file = sim.disk().open("f", Open::Existing).unwrap();
                    let found = read_whole(&*sim.disk(), "f", 1 << 20).unwrap();
                    for (at, byte) in found.iter().enumerate() {
                        let once = |h: &Vec<u8>| h.get(at).copied().unwrap_or(0) == *byte;
                        prop_assert!(history.iter().any(once), "byte {at} is {byte}");
                    }
                    if history.len() == 1 {
                        prop_assert_eq!(&found, &model);
                    }
                    model = found;
                    history = vec![model.clone()];
                }
            }
            let found = read_whole(&*sim.disk(), "f", 1 << 20).unwrap();
            prop_assert_eq!(&found, &model);
        }
    }
}

/// A file system of a few MiB in memory. It is unmounted when this is dropped.
pub(crate) struct TinyMount {
    dir: tempfile::TempDir,
}

impl TinyMount {
    /// `None`, and a line that says so, where this process may not mount.
    pub fn new(test: &str, mib: u32) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let size = std::ffi::CString::new(format!("size={mib}m")).unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), size.as_c_str()) {
            Ok(()) => Some(Self { dir }),
            Err(error) => {
                eprintln!("skipped: {test} on a full disk: cannot mount a tmpfs ({error})");
                None
            }
        }
    }

    pub fn path(&self) -> &std::path::Path {
        self.dir.path()
    }
}

impl Drop for TinyMount {
    fn drop(&mut self) {
        use rustix::mount::{UnmountFlags, unmount};
        unmount(self.dir.path(), UnmountFlags::DETACH).unwrap();
    }
}
