//! A daemon is killed with requests in its hands; another takes its connection over.
//!
//! The first daemon is a process of its own: this test binary, started again with only
//! `first_daemon` to run. It serves until a request of the wanted kind comes, says so on its output,
//! and sits on it.
//!
//! Callers are processes too (`caller`). A file that this process had open on the mount would be
//! copied into each daemon it starts, and closed there before `exec`: a FLUSH that nobody answers.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use unum_sys::fuse::{
    Device, Ino, Negotiated, Operation, Readers, Request, Serving, Session, Takeover, Unique,
    Wishes,
};

use crate::memfs::MemFs;
use crate::support::{Mounted, eventually, fcntl_lock, make_usr1_harmless};

const DAEMON_FD: i32 = 200;
const HOLD: &str = "UNUM_TEST_FUSE_HOLD";
const AGREED: &str = "UNUM_TEST_FUSE_AGREED";
const CLONED: &str = "UNUM_TEST_FUSE_CLONED";
const CALL: &str = "UNUM_TEST_FUSE_CALL";
const PATH: &str = "UNUM_TEST_FUSE_PATH";
const ONE_READER: Readers = Readers { count: 1, pinned: false };
const SIZE: usize = 300_000;

fn tree() -> MemFs {
    MemFs::with_file(&[b'a'; SIZE])
}

fn kind(operation: &Operation) -> &'static str {
    match operation {
        Operation::Lookup { .. } => "lookup",
        Operation::Read { .. } => "read",
        Operation::Write(_) => "write",
        Operation::Setlk { .. } => "setlk",
        Operation::Release(_) => "release",
        _ => "other",
    }
}

/// Not a test: the body of the daemon process.
#[test]
fn first_daemon() {
    let Ok(hold) = std::env::var(HOLD) else { return };
    // SAFETY: whoever set HOLD has put the device there for this process alone.
    let device = Device::from_fd(unsafe { OwnedFd::from_raw_fd(DAEMON_FD) });
    let device = match std::env::var(CLONED) {
        Ok(_) => device.clone_channel().unwrap(),
        Err(_) => device,
    };
    let agreed = std::env::var(AGREED).unwrap();
    let agreed: Vec<u8> = agreed.split(' ').map(|byte| byte.parse().unwrap()).collect();
    let agreed = Negotiated::from_bytes(&agreed).unwrap();
    // A second death on the way asks for what the first one held.
    let session = Session::adopt(device, agreed, Takeover::Resend).unwrap();
    let fs = tree();
    let serve = move |request: Request| {
        if kind(&request.operation) != hold {
            return fs.serve(request);
        }
        println!("held {}", request.header.unique);
        let interrupts = request.responder.interrupts();
        interrupts.on_interrupt(|| println!("interrupted"));
        std::mem::forget(request);
    };
    session.run(ONE_READER, serve).unwrap().wait();
}

/// Not a test: the body of a caller process.
#[test]
fn caller() {
    let Ok(what) = std::env::var(CALL) else { return };
    make_usr1_harmless();
    // SAFETY: gettid has no preconditions.
    println!("thread {}", unsafe { libc::gettid() });
    let result = match call(&what, &std::env::var(PATH).unwrap()) {
        Ok(text) => text,
        Err(error) => format!("errno {}", error.raw_os_error().unwrap_or(0)),
    };
    println!("result {result}");
}

fn call(what: &str, path: &str) -> std::io::Result<String> {
    Ok(match what {
        "stat" => fs::metadata(path)?.len().to_string(),
        "write" => {
            let file = File::options().write(true).open(path)?;
            file.write_at(&[7; 200_000], 1000)?.to_string()
        }
        "read" => {
            let content = fs::read(path)?;
            assert!(content.iter().all(|byte| *byte == b'a'));
            content.len().to_string()
        }
        "open" => File::open(path).map(|_| "done".into())?,
        "lock" => {
            let file = File::options().write(true).open(path)?;
            fcntl_lock(&file, libc::F_SETLKW, libc::F_WRLCK).map(|()| "locked".into())?
        }
        other => panic!("no such call: {other}"),
    })
}

fn this_test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).stdout(Stdio::piped());
    command
}

/// A child with its output; killed when dropped.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(mut command: Command) -> Process {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Process { child, lines }
    }

    /// The rest of the first output line that contains `start`.
    fn says(&mut self, start: &str) -> String {
        let rest = |line: std::io::Result<String>| {
            line.unwrap().split_once(start).map(|(_, rest)| rest.trim().to_owned())
        };
        let found = self.lines.find_map(rest);
        found.unwrap_or_else(|| panic!("the process ended without saying {start:?}"))
    }

    fn is_gone(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    /// Waits for a moment only: a caller whose request was read dies when the mount does.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let deadline = Instant::now() + Duration::from_secs(1);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

struct Daemon(Process);

impl Daemon {
    fn start(device: &Device, agreed: &Negotiated, hold: &str, cloned: bool) -> Daemon {
        let agreed: Vec<String> = agreed.to_bytes().iter().map(u8::to_string).collect();
        let mut command = this_test("takeover::first_daemon");
        command.env(HOLD, hold).env(AGREED, agreed.join(" "));
        if cloned {
            command.env(CLONED, "1");
        }
        let fd = device.as_fd().as_raw_fd();
        // SAFETY: dup2 is async-signal-safe and touches nothing of ours; `fd` outlives the spawn.
        unsafe {
            command.pre_exec(move || match libc::dup2(fd, DAEMON_FD) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        Daemon(Process::start(command))
    }

    fn held(&mut self) -> Unique {
        Unique(self.0.says("held").parse().unwrap())
    }

    fn kill(mut self) {
        self.0.child.kill().unwrap();
        self.0.child.wait().unwrap();
    }
}

struct Caller {
    thread: i32,
    process: Process,
}

impl Caller {
    fn start(what: &str, path: &Path) -> Caller {
        let mut command = this_test("takeover::caller");
        command.env(CALL, what).env(PATH, path);
        let mut process = Process::start(command);
        let thread = process.says("thread").parse().unwrap();
        Caller { thread, process }
    }

    fn result(mut self) -> String {
        self.process.says("result")
    }

    fn interrupt(&self) {
        let pid = self.process.child.id() as libc::pid_t;
        // SAFETY: the process is ours and not reaped; its handler for the signal does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, pid, self.thread, libc::SIGUSR1) };
    }

    fn kill(&mut self) {
        self.process.child.kill().unwrap();
    }
}

type Seen = Arc<Mutex<Vec<(Unique, bool, &'static str)>>>;

/// Mount, agreement and keeper of the descriptor: all that outlives a daemon.
struct Stage {
    agreed: Negotiated,
    fs: MemFs,
    seen: Seen,
    serving: Option<Serving>,
    mounted: Mounted,
}

impl Stage {
    fn new() -> Option<Stage> {
        let mounted = Mounted::new()?;
        let session = Session::start(mounted.device.clone(), &Wishes::default()).unwrap();
        let agreed = *session.negotiated();
        Some(Stage { agreed, fs: tree(), seen: Seen::default(), serving: None, mounted })
    }

    fn daemon(&self, hold: &str) -> Daemon {
        Daemon::start(&self.mounted.device, &self.agreed, hold, false)
    }

    fn call(&self, what: &str) -> Caller {
        Caller::start(what, &self.mounted.path("f"))
    }

    fn adopt(&mut self) {
        let device = self.mounted.second_descriptor();
        let session = Session::adopt(device, self.agreed, Takeover::Resend).unwrap();
        let (fs, seen) = (self.fs.clone(), self.seen.clone());
        let serve = move |request: Request| {
            let header = &request.header;
            let seen_now = (header.unique, header.resent, kind(&request.operation));
            seen.lock().unwrap().push(seen_now);
            fs.serve(request);
        };
        self.serving = Some(session.run(ONE_READER, serve).unwrap());
    }

    fn resent(&self) -> Vec<(Unique, &'static str)> {
        let seen = self.seen.lock().unwrap();
        let resent = seen.iter().filter(|(_, resent, _)| *resent);
        resent.map(|(unique, _, kind)| (*unique, *kind)).collect()
    }
}

#[test]
fn a_name_being_looked_up_is_found_by_the_next_daemon() {
    let Some(mut stage) = Stage::new() else { return };
    let mut daemon = stage.daemon("lookup");
    let mut caller = stage.call("stat");
    let held = daemon.held();
    daemon.kill();
    assert!(!caller.process.is_gone());
    stage.adopt();
    assert_eq!(caller.result(), SIZE.to_string());
    assert_eq!(stage.resent(), [(held, "lookup")]);
}

#[test]
fn a_write_comes_again_with_its_payload() {
    let Some(mut stage) = Stage::new() else { return };
    let mut daemon = stage.daemon("write");
    let caller = stage.call("write");
    let held = daemon.held();
    daemon.kill();
    stage.adopt();
    assert_eq!(caller.result(), "200000");
    assert_eq!(stage.resent(), [(held, "write")]);
    let content = stage.fs.content(Ino(2));
    assert!(content[1000..201_000].iter().all(|byte| *byte == 7));
    assert_eq!((content[999], content[201_000]), (b'a', b'a'));
}

#[test]
fn reads_ahead_come_again() {
    let Some(mut stage) = Stage::new() else { return };
    let mut daemon = stage.daemon("read");
    let caller = stage.call("read");
    let held = daemon.held();
    daemon.kill();
    stage.adopt();
    assert_eq!(caller.result(), SIZE.to_string());
    assert!(stage.resent().contains(&(held, "read")));
}

#[test]
fn a_release_comes_again_though_nobody_waits_for_it() {
    let Some(mut stage) = Stage::new() else { return };
    let mut daemon = stage.daemon("release");
    assert_eq!(stage.call("open").result(), "done");
    let held = daemon.held();
    daemon.kill();
    stage.adopt();
    eventually("the release comes again", || stage.resent() == [(held, "release")]);
}

#[test]
fn an_interrupt_survives_the_daemon_that_read_it() {
    let Some(mut stage) = Stage::new() else { return };
    stage.fs.lock_for_a_stranger(Ino(2));
    let mut daemon = stage.daemon("setlk");
    let caller = stage.call("lock");
    let held = daemon.held();
    caller.interrupt();
    daemon.0.says("interrupted");
    daemon.kill();
    stage.adopt();
    assert_eq!(caller.result(), format!("errno {}", libc::EINTR));
    assert_eq!(stage.resent(), [(held, "setlk")]);
    assert_eq!((stage.fs.waiting(), stage.fs.locks()), (0, 1));
}

#[test]
fn a_signal_without_any_daemon_is_not_lost() {
    let Some(mut stage) = Stage::new() else { return };
    stage.fs.lock_for_a_stranger(Ino(2));
    let mut daemon = stage.daemon("setlk");
    let mut caller = stage.call("lock");
    daemon.held();
    daemon.kill();
    caller.interrupt();
    thread::sleep(Duration::from_millis(20));
    assert!(!caller.process.is_gone());
    stage.adopt();
    assert_eq!(caller.result(), format!("errno {}", libc::EINTR));
}

#[test]
fn a_second_death_changes_nothing() {
    let Some(mut stage) = Stage::new() else { return };
    let mut first = stage.daemon("write");
    let caller = stage.call("write");
    let held = first.held();
    first.kill();
    let mut second = stage.daemon("write");
    assert_eq!(second.held(), held);
    second.kill();
    stage.adopt();
    assert_eq!(caller.result(), "200000");
    assert_eq!(stage.resent(), [(held, "write")]);
}

#[test]
fn calls_made_while_nobody_serves_wait_for_the_next_daemon() {
    let Some(mut stage) = Stage::new() else { return };
    let mut callers: Vec<Caller> = (0..4).map(|_| stage.call("stat")).collect();
    thread::sleep(Duration::from_millis(20));
    assert!(callers.iter_mut().all(|caller| !caller.process.is_gone()));
    stage.adopt();
    for caller in callers {
        assert_eq!(caller.result(), SIZE.to_string());
    }
    assert_eq!(stage.resent(), []);
}

#[test]
fn killing_callers_while_nobody_serves() {
    let Some(mut stage) = Stage::new() else { return };
    let mut queued = stage.call("stat");
    thread::sleep(Duration::from_millis(30));
    queued.kill();
    eventually("an unread request dies with its caller", || queued.process.is_gone());

    let mut daemon = stage.daemon("write");
    let mut held = stage.call("write");
    daemon.held();
    daemon.kill();
    held.kill();
    thread::sleep(Duration::from_millis(30));
    assert!(!held.process.is_gone(), "a request that was read holds its caller");
    stage.adopt();
    eventually("the answer lets the killed caller go", || held.process.is_gone());
}

#[test]
fn what_a_clone_has_read_dies_with_the_clone() {
    let Some(stage) = Stage::new() else { return };
    let mut daemon = Daemon::start(&stage.mounted.device, &stage.agreed, "lookup", true);
    let caller = stage.call("stat");
    daemon.held();
    daemon.kill();
    assert_eq!(caller.result(), format!("errno {}", libc::ECONNABORTED));
}
