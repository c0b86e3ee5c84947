//! Starting, reaping and signalling processes, as PID 1 of a world does it.
//!
//! Invariants: only a process with one thread forks here ([`fork`] refuses otherwise), so the child
//! may use all of Rust until it execs; a child never returns into the caller's code, it execs or
//! `_exit`s; every step that can fail in the child is reported by name through a pipe that closes at
//! exec. Path look-ups of the user's happen in the child alone: they may block on a file system whose
//! server is away, which must not stop the caller.
//!
//! Left out: choosing PIDs (the namespace's cursor does, see `pids`) and any policy.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use crate::pty;

/// A program to run.
#[derive(Clone, Debug)]
pub struct Command {
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    pub cwd: CString,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    pub rlimits: Vec<Rlimit>,
    pub nice: i32,
}

/// A limit of setrlimit(2), `u64::MAX` being no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// What becomes the program's descriptors 0, 1 and 2.
pub enum Stdio<'a> {
    /// In this order; the program leads a session of its own.
    Three([BorrowedFd<'a>; 3]),
    /// A terminal's slave. A small leader process holds the session; the program is its child in a
    /// group of its own, in the foreground: so its group has a parent in the session and Ctrl-Z
    /// stops it, which it does not do to an orphaned group.
    Terminal(BorrowedFd<'a>),
}

/// The step of a start that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    Fork = 1,
    Session,
    Terminal,
    Stdio,
    Limits,
    Priority,
    Credentials,
    Directory,
    Exec,
}

impl Step {
    const ALL: [Step; 9] = [
        Step::Fork,
        Step::Session,
        Step::Terminal,
        Step::Stdio,
        Step::Limits,
        Step::Priority,
        Step::Credentials,
        Step::Directory,
        Step::Exec,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartFailure {
    pub step: Step,
    pub errno: i32,
}

/// What a starting program or its session leader tells the process that started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The leader's child, the program.
    Child(u32),
    Failed(StartFailure),
    Stopped(u32),
    Continued,
    /// The program has ended but stays a zombie; when its leader dies it goes to PID 1.
    Ended,
}

const WORD_SIZE: usize = 12;

impl Word {
    fn encode(self) -> [u8; WORD_SIZE] {
        let (kind, a, b) = match self {
            Word::Child(pid) => (1, pid, 0),
            Word::Failed(failure) => (2, failure.step as u32, failure.errno as u32),
            Word::Stopped(signal) => (3, signal, 0),
            Word::Continued => (4, 0, 0),
            Word::Ended => (5, 0, 0),
        };
        let mut bytes = [0; WORD_SIZE];
        for (slot, value) in bytes.chunks_exact_mut(4).zip([kind, a, b]) {
            slot.copy_from_slice(&u32::to_ne_bytes(value));
        }
        bytes
    }

    fn decode(bytes: &[u8; WORD_SIZE]) -> Option<Word> {
        let mut values = bytes.chunks_exact(4).map(|c| c.try_into().map_or(0, u32::from_ne_bytes));
        let (kind, a, b) = (values.next()?, values.next()?, values.next()?);
        match kind {
            1 => Some(Word::Child(a)),
            2 => {
                let step = Step::ALL.into_iter().find(|s| *s as u32 == a)?;
                Some(Word::Failed(StartFailure { step, errno: b as i32 }))
            }
            3 => Some(Word::Stopped(a)),
            4 => Some(Word::Continued),
            5 => Some(Word::Ended),
            _ => None,
        }
    }
}

/// The reading end of a starting program's words; does not block.
pub struct Words(OwnedFd);

/// What reading words came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Word(Word),
    NothingYet,
    /// The other side is gone; for [`Start::exec`]: the program runs if no failure came before.
    End,
}

impl Words {
    pub fn hear(&self) -> io::Result<Heard> {
        let mut bytes = [0u8; WORD_SIZE];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(0) => Ok(Heard::End),
            // Words are written whole: a pipe does not split what is shorter than PIPE_BUF.
            Ok(WORD_SIZE) => Word::decode(&bytes)
                .map(Heard::Word)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO)),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EPROTO)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Heard::NothingYet),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A start under way.
pub struct Start {
    /// The direct child: the program itself, or its session leader.
    pub child: u32,
    /// Closes when the program's exec succeeded; says why before it closes otherwise.
    pub exec: Words,
    /// The leader's words, for a program with a terminal.
    pub leader: Option<Words>,
}

/// Forks and lets the child become the program. Returns at once: the outcome comes through
/// [`Start::exec`].
pub fn start(command: &Command, stdio: &Stdio<'_>) -> io::Result<Start> {
    let (exec, exec_tell) = word_pipe()?;
    match stdio {
        Stdio::Three(fds) => match fork()? {
            Fork::Parent(child) => Ok(Start { child, exec, leader: None }),
            Fork::Child(never) => never.run(|| {
                fail(&exec_tell, run_in_own_session(command, fds, &exec_tell));
            }),
        },
        Stdio::Terminal(slave) => {
            let (leader, leader_tell) = word_pipe()?;
            match fork()? {
                Fork::Parent(child) => Ok(Start { child, exec, leader: Some(leader) }),
                Fork::Child(never) => never.run(|| {
                    lead(command, *slave, exec_tell, leader_tell);
                }),
            }
        }
    }
}

fn word_pipe() -> io::Result<(Words, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((Words(read), write))
}

fn tell(to: &OwnedFd, word: Word) {
    // Nobody to tell means that PID 1 is gone, and the kernel is killing us.
    let _ = rustix::io::write(to, &word.encode());
}

fn fail(to: &OwnedFd, failure: StartFailure) {
    tell(to, Word::Failed(failure));
}

fn at<E: Into<io::Error>>(step: Step) -> impl Fn(E) -> StartFailure {
    move |e| StartFailure { step, errno: e.into().raw_os_error().unwrap_or(libc::EIO) }
}

/// Runs in the child. Returns only on failure.
fn run_in_own_session(
    command: &Command,
    fds: &[BorrowedFd<'_>; 3],
    exec_tell: &OwnedFd,
) -> StartFailure {
    let prepared = rustix::process::setsid().map_err(at(Step::Session));
    match prepared.and_then(|_| install_stdio(fds)) {
        Ok(()) => become_program(command, exec_tell),
        Err(failure) => failure,
    }
}

/// Runs in the session leader: starts the program, then relays its stops until it has ended.
fn lead(command: &Command, slave: BorrowedFd<'_>, exec_tell: OwnedFd, leader_tell: OwnedFd) {
    block_all_signals();
    set_name(c"unum-session");
    let acquired = rustix::process::setsid()
        .map_err(at(Step::Session))
        .and_then(|_| pty::acquire(slave).map_err(at(Step::Terminal)))
        .and_then(|()| pty::give(slave, command.uid, command.gid).map_err(at(Step::Terminal)));
    if let Err(failure) = acquired {
        return fail(&exec_tell, failure);
    }
    let program = match fork() {
        Ok(Fork::Parent(pid)) => pid,
        Ok(Fork::Child(never)) => never.run(|| {
            fail(&exec_tell, run_in_foreground(command, slave, &exec_tell));
        }),
        Err(e) => return fail(&exec_tell, at(Step::Fork)(e)),
    };
    tell(&leader_tell, Word::Child(program));
    // The terminal must not be held open here: its end is seen when the program's side closes it.
    // `exec_tell` must not either: its end means that the program runs.
    keep_only(&leader_tell);
    relay_stops(program, &leader_tell);
}

fn run_in_foreground(
    command: &Command,
    slave: BorrowedFd<'_>,
    exec_tell: &OwnedFd,
) -> StartFailure {
    let prepared = rustix::process::setpgid(None, None)
        .map_err(at(Step::Session))
        // SIGTTOU, which a background group earns by this call, is blocked as all signals are.
        .and_then(|()| {
            rustix::termios::tcsetpgrp(slave, rustix::process::getpgrp())
                .map_err(at(Step::Terminal))
        })
        .and_then(|()| install_stdio(&[slave; 3]));
    match prepared {
        Ok(()) => become_program(command, exec_tell),
        Err(failure) => failure,
    }
}

fn relay_stops(program: u32, to: &OwnedFd) {
    loop {
        match wait_for_change(program, true) {
            Ok(Some(Word::Ended)) => {
                tell(to, Word::Ended);
                // PID 1 first takes what the terminal still holds, then kills this process: a
                // leader's exit hangs the terminal up and would drop it.
                loop {
                    std::thread::sleep(std::time::Duration::from_secs(3600));
                }
            }
            Ok(Some(word)) => tell(to, word),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// Waits for a change of the child and consumes it, but an end, which is left for PID 1 to reap.
fn wait_for_change(program: u32, first: bool) -> io::Result<Option<Word>> {
    let mut options = libc::WSTOPPED | libc::WCONTINUED;
    if first {
        options |= libc::WEXITED | libc::WNOWAIT;
    } else {
        options |= libc::WNOHANG;
    }
    // SAFETY: all-zero bytes are a valid siginfo_t, a plain C struct.
    let mut said: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `said` is a live siginfo_t that the kernel fills. rustix' waitid cannot tell which
    // child a WNOHANG call without a result was about.
    let rc = unsafe { libc::waitid(libc::P_PID, program, &raw mut said, options) };
    if rc != 0 {
        let e = io::Error::last_os_error();
        return if e.raw_os_error() == Some(libc::EINTR) { Ok(None) } else { Err(e) };
    }
    // SAFETY: waitid fills these members of the union for SIGCHLD.
    let (pid, status) = unsafe { (said.si_pid(), said.si_status()) };
    match (pid, said.si_code) {
        (0, _) => Ok(None),
        (_, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) => Ok(Some(Word::Ended)),
        _ if first => wait_for_change(program, false),
        (_, libc::CLD_STOPPED | libc::CLD_TRAPPED) => Ok(Some(Word::Stopped(status as u32))),
        (_, libc::CLD_CONTINUED) => Ok(Some(Word::Continued)),
        _ => Ok(None),
    }
}

fn install_stdio(fds: &[BorrowedFd<'_>; 3]) -> Result<(), StartFailure> {
    // First out of the way of 0, 1 and 2, then onto them.
    let mut moved: Vec<OwnedFd> = Vec::with_capacity(3);
    for fd in fds {
        moved.push(rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(at(Step::Stdio))?);
    }
    for (number, fd) in moved.iter().enumerate() {
        // SAFETY: dup2 onto 0, 1 and 2 of a child that is about to exec: nothing in it owns them any
        // more. rustix' dup2 wants an OwnedFd of the target, which nobody has for these.
        if unsafe { libc::dup2(fd.as_raw_fd(), number as RawFd) } < 0 {
            return Err(at(Step::Stdio)(io::Error::last_os_error()));
        }
    }
    Ok(())
}

fn become_program(command: &Command, exec_tell: &OwnedFd) -> StartFailure {
    // Before anything that may block: a child that hangs in a look-up must not hold the ends of other
    // programs' pipes, the client's socket or a kept descriptor.
    close_all_but(exec_tell);
    reset_signals();
    let outcome = set_limits(command)
        .and_then(|()| set_identity(command))
        .and_then(|()| rustix::process::chdir(&*command.cwd).map_err(at(Step::Directory)));
    if let Err(failure) = outcome {
        return failure;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(command.umask & 0o777));
    at(Step::Exec)(exec(command))
}

fn set_limits(command: &Command) -> Result<(), StartFailure> {
    // PID 1 protects itself from the OOM killer and runs early; its children do not inherit that.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    rustix::process::setpriority_process(None, command.nice.clamp(-20, 19))
        .map_err(at(Step::Priority))?;
    for limit in &command.rlimits {
        let mut value = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
        if command.uid != 0 {
            // The kernel would not let this user raise them either; here root sets them for him.
            value.rlim_max = value.rlim_max.min(hard_limit(limit.resource)?);
            value.rlim_cur = value.rlim_cur.min(value.rlim_max);
        }
        // SAFETY: `value` is a live rlimit64. rustix has no call that takes any resource number,
        // which limits from another machine need.
        if unsafe { libc::setrlimit64(limit.resource as _, &raw const value) } != 0 {
            return Err(at(Step::Limits)(io::Error::last_os_error()));
        }
    }
    Ok(())
}

fn hard_limit(resource: u32) -> Result<u64, StartFailure> {
    let mut own = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `own` is a live rlimit64. rustix has no call that takes any resource number.
    if unsafe { libc::getrlimit64(resource as _, &raw mut own) } != 0 {
        return Err(at(Step::Limits)(io::Error::last_os_error()));
    }
    Ok(own.rlim_max)
}

fn set_identity(command: &Command) -> Result<(), StartFailure> {
    let groups: Vec<libc::gid_t> = command.groups.clone();
    // SAFETY: `groups` is a live array of its length; the three calls change this process alone,
    // which has one thread. The order matters: the user last, for it takes the right to the others.
    let ok = unsafe {
        libc::setgroups(groups.len(), groups.as_ptr()) == 0
            && libc::setresgid(command.gid, command.gid, command.gid) == 0
            && libc::setresuid(command.uid, command.uid, command.uid) == 0
    };
    if ok { Ok(()) } else { Err(at(Step::Credentials)(io::Error::last_os_error())) }
}

/// Becomes the user for good, in a child that acts for him: the kernel then judges what he may do.
pub fn become_user(_: &InChild, uid: u32) -> io::Result<()> {
    // SAFETY: changes this process alone, which has one thread; rustix' call asks for the same care.
    if unsafe { libc::setresuid(uid, uid, uid) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// As execvpe(3), with PATH taken from the program's own environment.
fn exec(command: &Command) -> io::Error {
    let Some(name) = command.argv.first() else {
        return io::Error::from_raw_os_error(libc::ENOENT);
    };
    if name.is_empty() {
        return io::Error::from_raw_os_error(libc::ENOENT);
    }
    if name.as_bytes().contains(&b'/') {
        return exec_file(name, command);
    }
    let path = command.env.iter().find_map(|e| e.as_bytes().strip_prefix(b"PATH="));
    let mut answer = io::Error::from_raw_os_error(libc::ENOENT);
    for directory in path.unwrap_or(DEFAULT_PATH).split(|b| *b == b':') {
        let mut file = if directory.is_empty() { b".".to_vec() } else { directory.to_vec() };
        file.push(b'/');
        file.extend_from_slice(name.as_bytes());
        let Ok(file) = CString::new(file) else { continue };
        if is_directory(&file) {
            continue;
        }
        let error = exec_file(&file, command);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ETIMEDOUT | libc::ESTALE) => {}
            Some(libc::EACCES) => answer = error,
            _ => return error,
        }
    }
    answer
}

const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

fn is_directory(path: &CStr) -> bool {
    std::fs::metadata(std::ffi::OsStr::from_bytes(path.to_bytes())).is_ok_and(|m| m.is_dir())
}

fn exec_file(file: &CStr, command: &Command) -> io::Error {
    let env = pointers(&command.env);
    let argv = pointers(&command.argv);
    // SAFETY: `argv` and `env` are NULL-terminated arrays of strings that outlive the call. rustix
    // has no stable execve.
    unsafe { libc::execve(file.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOEXEC) {
        return error;
    }
    // A file without a first line that names its interpreter is the shell's, as in every shell.
    let mut argv = vec![c"sh".as_ptr(), file.as_ptr()];
    argv.extend(command.argv.iter().skip(1).map(|a| a.as_ptr()));
    argv.push(std::ptr::null());
    // SAFETY: as above.
    unsafe { libc::execve(c"/bin/sh".as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

fn reset_signals() {
    // The kernel's sigaction with all zero is SIG_DFL without flags, on every architecture.
    let default = [0u64; 8];
    let set_size = 8usize;
    for signal in 1..=64 {
        // SAFETY: `default` is larger than the structure that the kernel reads, and SIG_DFL runs no
        // code of ours; numbers that cannot be set only fail. The C library refuses the two signals
        // that it keeps for itself, which a starter may have left ignored.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                set_size,
            );
        }
    }
    set_mask(libc::SIG_SETMASK, &empty_set());
}

fn block_all_signals() {
    set_mask(libc::SIG_BLOCK, &full_set());
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}

fn full_set() -> libc::sigset_t {
    // SAFETY: sigfillset initialises the set it is given.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        set
    }
}

fn set_mask(how: libc::c_int, set: &libc::sigset_t) {
    // SAFETY: `set` is an initialised set; the old one is not asked for. A thread's mask is not
    // memory: changing it breaks no Rust rule. rustix leaves masks to libc.
    unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) };
}

fn set_name(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

/// Makes 0, 1 and 2 /dev/null and closes all else but `fd`.
fn keep_only(fd: &OwnedFd) {
    if let Ok(null) = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, 0.into()) {
        let _ = install_stdio(&[null.as_fd(); 3]);
        // Closed below with all the others.
        std::mem::forget(null);
    }
    close_all_but(fd);
}

/// Closes every descriptor from 3 on but `fd`.
fn close_all_but(fd: &OwnedFd) {
    let kept = fd.as_raw_fd() as u32;
    // SAFETY: this forked process never returns to the code that owns those descriptors; it only
    // uses `fd` and 0, 1, 2 from here on and ends by exec or _exit. No safe call closes a range.
    unsafe {
        if kept > 3 {
            libc::syscall(libc::SYS_close_range, 3u32, kept - 1, 0u32);
        }
        libc::syscall(libc::SYS_close_range, kept + 1, u32::MAX, 0u32);
    }
}

/// The two sides of a fork.
pub enum Fork {
    Parent(u32),
    Child(InChild),
}

/// Proof of being in a forked child; the only thing to do with it is to run to the end.
pub struct InChild(());

impl InChild {
    /// Runs `work` and exits with 127 if it returns or panics: the parent's code never goes on here.
    pub fn run(self, work: impl FnOnce()) -> ! {
        self.run_as(|_| work())
    }

    /// As [`InChild::run`], for work that must show where it runs.
    pub fn run_as(self, work: impl FnOnce(&InChild)) -> ! {
        let _exit = ExitOnDrop;
        work(&self);
        exit_now(127)
    }
}

struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        exit_now(127);
    }
}

/// Ends this process without running exit hooks, which belong to the process it was forked from.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(status) }
}

/// Forks a process that has one thread; refuses (EBUSY) when there are more, because locks held by
/// the others would stay locked in the child.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the only thread forks, so no lock is held by anybody else and the child is an exact
    // copy that may go on. std::process::Command cannot do what the children here need (leaders,
    // terminals, steps by name).
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child(InChild(()))),
        pid => Ok(Fork::Parent(pid as u32)),
    }
}

/// How a process ended and what it used, its reaped children included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: u32,
    /// The signal that killed it, or 0.
    pub signal: u32,
    pub core: bool,
    pub user_us: u64,
    pub system_us: u64,
    pub max_rss_kib: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Stopped(u32),
    Continued,
    Exited(Exit),
}

/// Takes one change of any child, adopted ones included, without waiting.
pub fn reap() -> Option<(u32, Change)> {
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid rusage, a plain C struct.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    let options = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
    // SAFETY: both pointers are to live variables that the kernel fills. rustix has no wait4, and
    // the rusage of one child is had in no other way.
    let pid = unsafe { libc::wait4(-1, &raw mut status, options, &raw mut used) };
    if pid <= 0 {
        return None;
    }
    let change = if libc::WIFSTOPPED(status) {
        Change::Stopped(libc::WSTOPSIG(status) as u32)
    } else if libc::WIFCONTINUED(status) {
        Change::Continued
    } else {
        Change::Exited(exit_of(status, &used))
    };
    Some((pid as u32, change))
}

fn exit_of(status: i32, used: &libc::rusage) -> Exit {
    let signalled = libc::WIFSIGNALED(status);
    Exit {
        code: if signalled { 0 } else { libc::WEXITSTATUS(status) as u32 },
        signal: if signalled { libc::WTERMSIG(status) as u32 } else { 0 },
        core: signalled && libc::WCOREDUMP(status),
        user_us: micros(used.ru_utime),
        system_us: micros(used.ru_stime),
        max_rss_kib: used.ru_maxrss.max(0) as u64,
    }
}

fn micros(t: libc::timeval) -> u64 {
    (t.tv_sec.max(0) as u64) * 1_000_000 + t.tv_usec.max(0) as u64
}

/// Sends `signal` to every member of a process group.
pub fn signal_group(group: u32, signal: u32) -> io::Result<()> {
    if group <= 1 || group > i32::MAX as u32 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    kill(-(group as i32), signal)
}

/// Sends `signal` to every process of the namespace but PID 1, which must be the caller.
pub fn signal_world(signal: u32) -> io::Result<()> {
    if std::process::id() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    kill(-1, signal)
}

/// Sends `signal` to a child that this process has not reaped, so the number is still its own.
pub fn signal_child(child: u32, signal: u32) -> io::Result<()> {
    if child <= 1 || child > i32::MAX as u32 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    kill(child as i32, signal)
}

fn kill(to: i32, signal: u32) -> io::Result<()> {
    let signal = i32::try_from(signal).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: kill touches no memory of this process. rustix' enum has no real-time signals.
    if unsafe { libc::kill(to, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process held by descriptor: the number may be reused, this may not.
pub struct PidFd(OwnedFd);

impl PidFd {
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        Ok(Self(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?))
    }

    pub fn signal(&self, signal: u32) -> io::Result<()> {
        // SAFETY: a null siginfo means what kill(2) would send. rustix' enum has neither signal 0
        // nor the real-time ones.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0u32,
            )
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Signals as a readable descriptor.
pub struct SignalFd(OwnedFd);

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    pub signal: u32,
    /// Sender, 0 when it is outside this PID namespace or the kernel.
    pub sender: u32,
}

impl SignalFd {
    /// Blocks `signals` for this thread and makes them readable instead.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = empty_set();
        for signal in signals {
            // SAFETY: `set` is initialised; a bad number only fails.
            unsafe { libc::sigaddset(&raw mut set, *signal) };
        }
        set_mask(libc::SIG_BLOCK, &set);
        // SAFETY: `set` is initialised; the result is a new descriptor or -1. rustix has no
        // signalfd.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn take(&self) -> Option<Arrived> {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        let mut bytes = [0u8; SIZE];
        if rustix::io::read(&self.0, &mut bytes) != Ok(SIZE) {
            return None;
        }
        // SAFETY: signalfd_siginfo is plain integers, and the kernel filled all of its bytes.
        let said: libc::signalfd_siginfo =
            unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
        Some(Arrived { signal: said.ssi_signo, sender: said.ssi_pid })
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
