//! Every kind of operation through a real mount.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, RenameFlags, SeekFrom as Seeking, XattrFlags,
};
use rustix::io::Errno;
use unum_sys::fuse::{
    Attr, Cached, Capabilities, Discard, Ended, Entry, Fh, Ino, OpenFlags, Opened, Operation,
    Readers, Request, Serving, Session, Unmount, Wishes, unmount,
};

use crate::memfs::MemFs;
use crate::support::{Mounted, PATIENCE, eventually, fcntl_lock, make_usr1_harmless, send_usr1};

const READERS: Readers = Readers { count: 2, pinned: false };

struct Served {
    fs: MemFs,
    session: Session,
    serving: Serving,
    mounted: Mounted,
}

fn served() -> Option<Served> {
    served_with(Wishes::default())
}

fn served_with(wishes: Wishes) -> Option<Served> {
    let mounted = Mounted::new()?;
    let session = Session::start(mounted.device.clone(), &wishes).unwrap();
    let fs = MemFs::with_file(b"hello");
    let server = fs.clone();
    let serving = session.run(READERS, move |request| server.serve(request)).unwrap();
    Some(Served { fs, session, serving, mounted })
}

fn open_rw(path: impl AsRef<std::path::Path>) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn files_directories_links_and_names() {
    let Some(served) = served() else { return };
    let Served { mounted, .. } = &served;
    let at = |name: &str| mounted.path(name);
    assert_eq!(fs::read(at("f")).unwrap(), b"hello");

    fs::create_dir(at("d")).unwrap();
    let content: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(at("d/big"), &content).unwrap();
    assert_eq!(fs::read(at("d/big")).unwrap(), content);
    fs::rename(at("d/big"), at("big")).unwrap();
    let refused = rustix::fs::renameat_with(CWD, at("big"), CWD, at("f"), RenameFlags::NOREPLACE);
    assert_eq!(refused, Err(Errno::EXIST));

    fs::hard_link(at("big"), at("d/again")).unwrap();
    assert_eq!(fs::metadata(at("big")).unwrap().nlink(), 2);
    std::os::unix::fs::symlink("d/again", at("link")).unwrap();
    assert_eq!(fs::read_link(at("link")).unwrap().to_str(), Some("d/again"));
    assert_eq!(fs::read(at("link")).unwrap().len(), content.len());

    for number in 0..300 {
        File::create(at(&format!("d/file-{number:04}"))).unwrap();
    }
    assert_eq!(fs::read_dir(at("d")).unwrap().count(), 301);
    fs::remove_file(at("d/again")).unwrap();
    assert_eq!(fs::metadata(at("link")).unwrap_err().kind(), ErrorKind::NotFound);

    let big = open_rw(at("big"));
    big.set_len(10).unwrap();
    big.sync_all().unwrap();
    assert_eq!(fs::metadata(at("big")).unwrap().len(), 10);
    let set =
        fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(77, 5));
    big.set_times(set).unwrap();
    assert_eq!(
        (fs::metadata(at("big")).unwrap().mtime(), fs::metadata(at("big")).unwrap().mtime_nsec()),
        (77, 5)
    );
}

#[test]
fn the_kernel_reads_as_far_ahead_as_it_is_told() {
    const KIB: u32 = 1024;
    let Some(mounted) = Mounted::new() else { return };
    let session = Session::start(mounted.device.clone(), &Wishes::default()).unwrap();
    let server = MemFs::with_file(&vec![7; 8 << 20]);
    let largest = Arc::new(AtomicU32::new(0));
    let seen = largest.clone();
    let serve = move |request: Request| {
        if let Operation::Read { size, .. } = request.operation {
            seen.fetch_max(size, Ordering::Relaxed);
        }
        server.serve(request);
    };
    let _serving = session.run(READERS, serve).unwrap();
    mounted.connection.read_ahead(KIB).unwrap();
    let mut file = File::open(mounted.path("f")).unwrap();
    let mut piece = vec![0; 64 << 10];
    while file.read(&mut piece).unwrap() > 0 {}
    assert_eq!(largest.load(Ordering::Relaxed), KIB << 10);
}

#[test]
fn readdir_without_plus_agrees() {
    let plus = Wishes {
        capabilities: Wishes::default().capabilities | Capabilities::READDIRPLUS,
        ..Wishes::default()
    };
    for wishes in [Wishes::default(), plus] {
        let Some(served) = served_with(wishes) else { return };
        let Served { mounted, .. } = &served;
        fs::create_dir(mounted.path("sub")).unwrap();
        let mut names: Vec<_> = fs::read_dir(mounted.root())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.file_type().unwrap().is_dir()))
            .collect();
        names.sort();
        assert_eq!(names, [("f".into(), false), ("sub".into(), true)]);
    }
}

#[test]
fn extended_attributes() {
    let Some(served) = served() else { return };
    let Served { mounted, .. } = &served;
    let path = mounted.path("f");
    let value = vec![7; 3000];
    rustix::fs::setxattr(&path, "user.one", &value, XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&path, "user.two", b"2", XattrFlags::empty()).unwrap();
    let mut buffer = vec![0; 4000];
    assert_eq!(rustix::fs::getxattr(&path, "user.one", &mut buffer).unwrap(), 3000);
    assert_eq!(buffer[..3000], value);
    assert_eq!(rustix::fs::getxattr(&path, "user.one", &mut buffer[..10]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&path, "user.no", &mut buffer), Err(Errno::NODATA));
    let len = rustix::fs::listxattr(&path, &mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"user.one\0user.two\0");
    rustix::fs::removexattr(&path, "user.one").unwrap();
    let len = rustix::fs::listxattr(&path, &mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"user.two\0");
}

#[test]
fn holes_allocation_copies_unnamed_files_and_statfs() {
    let Some(served) = served() else { return };
    let Served { mounted, .. } = &served;
    let file = open_rw(mounted.path("sparse"));
    file.write_all_at(b"end", 100_000).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 8192).unwrap();
    assert_eq!(rustix::fs::seek(&file, Seeking::Hole(0)), Ok(8192));
    assert_eq!(rustix::fs::seek(&file, Seeking::Data(8192)), Ok(98304));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 4096).unwrap();
    assert_eq!(rustix::fs::seek(&file, Seeking::Hole(0)), Ok(0));

    let copy = open_rw(mounted.path("copy"));
    let mut from = 99_998;
    let copied = rustix::fs::copy_file_range(&file, Some(&mut from), &copy, None, 100).unwrap();
    assert_eq!((copied, fs::read(mounted.path("copy")).unwrap()), (5, b"\0\0end".to_vec()));

    let mut unnamed = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(mounted.root())
        .unwrap();
    unnamed.write_all(b"no name").unwrap();
    unnamed.seek(SeekFrom::Start(3)).unwrap();
    let mut rest = String::new();
    unnamed.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), unnamed.metadata().unwrap().nlink()), ("name", 0));
    let by_fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&unnamed));
    rustix::fs::linkat(CWD, by_fd, CWD, mounted.path("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(fs::read(mounted.path("named")).unwrap(), b"no name");

    let stat = rustix::fs::statvfs(mounted.root()).unwrap();
    assert_eq!((stat.f_blocks, stat.f_bavail, stat.f_bsize), (1000, 500, 4096));
    assert_eq!((stat.f_frsize, stat.f_files, stat.f_namemax), (512, 70, 200));
}

#[test]
fn shared_mappings_reach_the_file() {
    let Some(served) = served() else { return };
    let Served { fs, mounted, .. } = &served;
    let file = open_rw(mounted.path("f"));
    file.set_len(8192).unwrap();
    // SAFETY: a fresh mapping of 8192 bytes of a file that is as long; it is unmapped below and
    // not used after.
    unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let map = libc::mmap(std::ptr::null_mut(), 8192, prot, libc::MAP_SHARED, fd, 0);
        assert_ne!(map, libc::MAP_FAILED);
        let bytes = std::slice::from_raw_parts_mut(map.cast::<u8>(), 8192);
        assert_eq!(&bytes[..5], b"hello");
        bytes[8000] = 42;
        assert_eq!(libc::msync(map, 8192, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(map, 8192), 0);
    }
    assert_eq!(fs.content(Ino(2))[8000], 42);
}

#[test]
fn flock_and_fcntl_locks_do_not_see_each_other() {
    let Some(served) = served() else { return };
    let Served { fs, mounted, .. } = &served;
    let (one, two) = (open_rw(mounted.path("f")), open_rw(mounted.path("f")));
    rustix::fs::flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    let again = rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(again, Err(Errno::AGAIN));
    fcntl_lock(&two, libc::F_OFD_SETLK, libc::F_WRLCK).unwrap();
    let other = fcntl_lock(&one, libc::F_OFD_SETLK, libc::F_RDLCK).unwrap_err();
    assert_eq!(other.raw_os_error(), Some(libc::EAGAIN));
    assert_eq!(fs.locks(), 2);
    drop(one);
    eventually("the flock ends with its file", || {
        rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    drop(two);
    eventually("all locks end with their files", || fs.locks() == 0);
}

#[test]
fn a_signal_ends_the_wait_for_a_lock() {
    let Some(served) = served() else { return };
    let Served { fs, session, mounted, .. } = &served;
    make_usr1_harmless();
    let holder = open_rw(mounted.path("f"));
    fcntl_lock(&holder, libc::F_OFD_SETLK, libc::F_WRLCK).unwrap();
    for _ in 0..20 {
        let file = open_rw(mounted.path("f"));
        let waiter = thread::spawn(move || fcntl_lock(&file, libc::F_OFD_SETLKW, libc::F_WRLCK));
        eventually("the lock is waited for", || fs.waiting() == 1);
        send_usr1(&waiter);
        let error = waiter.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINTR));
        assert_eq!(fs.waiting(), 0);
    }
    let file = open_rw(mounted.path("f"));
    let waiter = thread::spawn(move || fcntl_lock(&file, libc::F_OFD_SETLKW, libc::F_WRLCK));
    eventually("the lock is waited for", || fs.waiting() == 1);
    fcntl_lock(&holder, libc::F_OFD_SETLK, libc::F_UNLCK).unwrap();
    waiter.join().unwrap().unwrap();
    eventually("nothing is left in flight", || session.in_flight() == 0);
}

#[test]
fn panics_and_dropped_responders_answer_eio() {
    let Some(mounted) = Mounted::new() else { return };
    let session = Session::start(mounted.device.clone(), &Wishes::default()).unwrap();
    let fs = MemFs::with_file(b"x");
    let serving = session
        .run(READERS, move |request: Request| match &request.operation {
            Operation::Lookup { name } if name == b"panic" => panic!("asked to"),
            Operation::Lookup { name } if name == b"drop" => drop(request),
            _ => fs.serve(request),
        })
        .unwrap();
    for _ in 0..3 {
        for name in ["panic", "drop"] {
            let error = fs::metadata(mounted.path(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}");
        }
    }
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"x");
    assert_eq!(session.in_flight(), 0);
    assert!(!serving.is_finished());
}

#[test]
fn readers_end_at_unmount_and_on_order() {
    let Some(Served { serving, mounted, fs: _, session: _ }) = served() else { return };
    assert_eq!(serving.stop(PATIENCE).ok(), Some(Ended::Stopped));
    drop(mounted);

    let Some(Served { serving, mounted, fs: _, session: _ }) = served() else { return };
    let open = File::open(mounted.path("f")).unwrap();
    assert!(unmount(mounted.root(), Unmount::IfUnused).is_err());
    drop(open);
    unmount(mounted.root(), Unmount::IfUnused).unwrap();
    assert_eq!(serving.wait(), Ended::Unmounted);
}

#[test]
fn a_busy_handler_does_not_hold_up_the_order_to_stop_for_ever() {
    let Some(mounted) = Mounted::new() else { return };
    let session = Session::start(mounted.device.clone(), &Wishes::default()).unwrap();
    let busy = Arc::new(AtomicBool::new(true));
    let still = busy.clone();
    let serving = session
        .run(READERS, move |request| {
            while still.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            request.responder.error(Errno::NOENT);
        })
        .unwrap();
    let path = mounted.path("any");
    let caller = thread::spawn(move || fs::metadata(path).unwrap_err().kind());
    eventually("the handler is busy", || session.in_flight() == 1);
    let Err(serving) = serving.stop(std::time::Duration::from_millis(20)) else {
        panic!("stopped under a busy handler")
    };
    busy.store(false, Ordering::SeqCst);
    assert_eq!(serving.stop(PATIENCE).ok(), Some(Ended::Stopped));
    assert_eq!(caller.join().unwrap(), ErrorKind::NotFound);
}

#[test]
fn an_aborted_connection_frees_its_callers() {
    let Some(mounted) = Mounted::new() else { return };
    let session = Session::start(mounted.device.clone(), &Wishes::default()).unwrap();
    let path = mounted.path("any");
    let caller = thread::spawn(move || fs::metadata(path).unwrap_err().raw_os_error());
    thread::sleep(std::time::Duration::from_millis(20));
    mounted.connection.abort().unwrap();
    let errno = caller.join().unwrap();
    assert!(matches!(errno, Some(libc::ECONNABORTED | libc::ENOTCONN)), "{errno:?}");
    let serving = session.run(READERS, |_| ()).unwrap();
    assert_eq!(serving.wait(), Ended::Unmounted);
}

#[test]
fn notifications_tell_whether_there_was_something_to_drop() {
    let Some(served) = served() else { return };
    let Served { session, mounted, .. } = &served;
    let notifier = session.notifier();
    assert_eq!(notifier.inval_inode(Ino(99), 0, 0), Ok(Cached::No));
    let file = File::open(mounted.path("f")).unwrap();
    assert_eq!(notifier.inval_inode(Ino(2), 0, 0), Ok(Cached::Yes));
    assert_eq!(notifier.inval_entry(Ino::ROOT, b"f", Discard::Expire), Ok(Cached::Yes));
    assert_eq!(notifier.inval_entry(Ino::ROOT, b"f", Discard::Now), Ok(Cached::Yes));
    assert_eq!(notifier.inval_entry(Ino::ROOT, b"nothing", Discard::Now), Ok(Cached::No));
    assert_eq!(notifier.store(Ino(2), 0, b"HELLO"), Ok(Cached::Yes));
    assert_eq!(notifier.delete(Ino::ROOT, Ino(2), b"f"), Ok(Cached::No));
    notifier.expire_all_entries().unwrap();
    drop(file);
}

#[test]
fn passthrough_reads_the_backing_file() {
    let Some(mounted) = Mounted::new() else { return };
    let wishes = Wishes {
        capabilities: Wishes::default().capabilities | Capabilities::PASSTHROUGH,
        max_stack_depth: 1,
        ..Wishes::default()
    };
    let session = Session::start(mounted.device.clone(), &wishes).unwrap();
    if !session.negotiated().capabilities.contains(Capabilities::PASSTHROUGH) {
        eprintln!("skipped: this kernel has no FUSE passthrough");
        return;
    }
    let backing = tempfile::tempfile().unwrap();
    backing.write_all_at(b"from below", 0).unwrap();
    let id = session.device().backing_open(backing.as_fd()).unwrap();
    let attr =
        Attr { ino: Ino(2), mode: libc::S_IFREG | 0o644, nlink: 1, size: 10, ..Attr::default() };
    let serving = session
        .run(READERS, move |request: Request| {
            let to = request.responder;
            let ttl = std::time::Duration::ZERO;
            match request.operation {
                Operation::Lookup { .. } => to.entry(&Entry {
                    ino: Ino(2),
                    generation: 0,
                    attr,
                    entry_ttl: ttl,
                    attr_ttl: ttl,
                }),
                Operation::Getattr { .. } => to.attr(&attr, ttl),
                Operation::Open { .. } => to.opened(&Opened {
                    fh: Fh(1),
                    flags: OpenFlags::PASSTHROUGH,
                    backing: Some(id),
                }),
                Operation::Release(_) | Operation::Flush { .. } => to.ok(),
                _ => to.error(Errno::NOSYS),
            };
        })
        .unwrap();
    let file = open_existing(&mounted);
    let mut content = [0; 10];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"from below");
    file.write_all_at(b"FROM", 0).unwrap();
    backing.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"FROM below");
    session.device().backing_close(id).unwrap();
    assert!(session.device().backing_close(id).is_err());
    assert!(!serving.is_finished());
}

fn open_existing(mounted: &Mounted) -> File {
    OpenOptions::new().read(true).write(true).open(mounted.path("f")).unwrap()
}
