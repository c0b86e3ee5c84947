//! The loop of PID 1: owns every part and routes between them.
//!
//! Invariants: one thread; nothing in the loop waits for anything but epoll. All look-ups of paths
//! that a file server may answer happen in forked children.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use unum_proto::init::{
    Answer, Ask, Attach, Attached, CloseOutput, Continued, Done, EXIT_RECORDS_MAX, Exited,
    FRAME_SIZE_MAX, Failed, Fault, FromInit, Graft, Happened, Hello, HelloAsk, Input,
    Output as OutputEvent, PROTOCOL_VERSION, PidsLow, Programs, Request, Resize, SetBlocks, Signal,
    Spawn, Spawned, Status, Stdio, Stopped, Stream, Target,
};
use unum_sys::pids::{self, PidCursor};
use unum_sys::process::{self, Change, Exit, Heard, Rlimit, SignalFd, StartFailure, Word};
use unum_sys::{fds, mounts, pty};

use crate::blocks::{BlockError, Guard, Move};
use crate::connection::{Connection, Lost};
use crate::ends;
use crate::fault::{failed, no_such_process, start_failed, system};
use crate::kept::Keepsakes;
use crate::logfile;
use crate::poll::{EventFlags, Poll, Watched};
use crate::program::{self, Leader, Program, ReplyTo, Starting, now_ms, shown};
use crate::signals::{self, SIGCONT, SIGKILL, SIGTERM, Whom};

/// Programs that have not exited.
const RUNNING_MAX: usize = 8192;

/// Deferred answers of one connection.
const WAITS_MAX: usize = 16_384;

/// Output of exited programs that nobody has fetched, in bytes.
const UNREAD_SIZE_MAX: usize = 64 << 20;

/// Between two looks at what is not urgent.
const SLOW_TICK: Duration = Duration::from_millis(250);
/// How often an ending world is looked at: whether it is empty.
const ENDING_LOOK: Duration = Duration::from_millis(20);
/// How often an empty one is: somebody may have entered it from outside.
const EMPTY_LOOK: Duration = Duration::from_secs(2);

/// The grace of a shutdown that was asked for by a signal.
const SIGNAL_GRACE: Duration = Duration::from_secs(5);

/// Longest grace of a shutdown, in milliseconds.
const GRACE_MS_MAX: u64 = 10 * 60 * 1000;

const PROC: &str = "/proc";

/// Names a program within this run: unlike a PID, never used twice.
type Key = u64;

#[derive(Clone, Copy)]
enum Role {
    Program(Key),
    Leader(Key),
    Graft(ReplyTo),
    /// Sends a signal on a user's behalf.
    Errand {
        to: ReplyTo,
        number: u32,
        uid: u32,
    },
}

pub struct Setup {
    pub listener: UnixListener,
    pub signals: SignalFd,
    pub socket: PathBuf,
    pub state: PathBuf,
    pub missing: Vec<String>,
    /// The limit of open descriptors before PID 1 raised its own.
    pub descriptors: Rlimit,
}

pub struct World {
    poll: Poll,
    listener: Watched<UnixListener>,
    signals: Watched<SignalFd>,
    socket: PathBuf,
    state: PathBuf,
    id: [u8; 16],
    missing: Vec<String>,
    descriptors: Rlimit,
    connection: Option<Connection>,
    programs: BTreeMap<Key, Program>,
    next_key: Key,
    by_pid: HashMap<u32, Key>,
    by_token: HashMap<u64, Key>,
    children: HashMap<u32, Role>,
    starting: BTreeSet<Key>,
    /// Programs with an attachment; the front is served next.
    attached: VecDeque<Key>,
    exits: VecDeque<Key>,
    /// Programs whose descriptors must be armed anew.
    touched: BTreeSet<Key>,
    kept: Keepsakes,
    cursor: Option<PidCursor>,
    guard: Guard,
    last_pid: u32,
    counted_at: u32,
    slow_tick: Instant,
    ending: Option<Instant>,
}

impl World {
    pub fn new(setup: Setup) -> io::Result<Self> {
        let mut poll = Poll::new()?;
        let mut listener = poll.watch(setup.listener);
        let mut signals = poll.watch(setup.signals);
        listener.want(Some(EventFlags::IN))?;
        signals.want(Some(EventFlags::IN))?;
        let mut missing = setup.missing;
        let cursor = open_cursor(&mut missing);
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self {
            poll,
            listener,
            signals,
            socket: setup.socket,
            state: setup.state,
            id,
            missing,
            descriptors: setup.descriptors,
            connection: None,
            programs: BTreeMap::new(),
            next_key: 1,
            by_pid: HashMap::new(),
            by_token: HashMap::new(),
            children: HashMap::new(),
            starting: BTreeSet::new(),
            attached: VecDeque::new(),
            exits: VecDeque::new(),
            touched: BTreeSet::new(),
            kept: Keepsakes::default(),
            cursor,
            guard: Guard::default(),
            last_pid: 1,
            counted_at: 0,
            slow_tick: Instant::now(),
            ending: None,
        })
    }

    /// Runs until the world has ended.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            self.guard_pids();
            for token in self.poll.wait(self.pause())? {
                self.guard_pids();
                self.serve(token);
            }
            if self.slow_tick.elapsed() >= SLOW_TICK {
                self.slow_tick = Instant::now();
                self.tick();
            }
            self.pump();
            self.rearm();
            if self.has_ended() {
                let _ = std::fs::remove_file(&self.socket);
                return Ok(());
            }
        }
    }

    /// How long nothing needs a look if no descriptor says otherwise.
    fn pause(&self) -> Duration {
        if self.ending.is_some() {
            return ENDING_LOOK;
        }
        if has_children() || self.programs.values().any(|program| program.has_terminal) {
            return self.guard.pause(self.last_pid).min(SLOW_TICK);
        }
        // Nobody is here who takes PIDs, or whom the slow tick looks after.
        EMPTY_LOOK
    }

    fn serve(&mut self, token: u64) {
        if token == self.listener.token() {
            self.accept();
        } else if token == self.signals.token() {
            self.take_signals();
        } else if self.connection.as_ref().is_some_and(|c| c.token() == token) {
            self.serve_connection();
        } else if let Some(key) = self.by_token.get(&token).copied() {
            self.serve_program(key, token);
        }
    }

    fn rearm(&mut self) {
        for key in std::mem::take(&mut self.touched) {
            if let Some(program) = self.programs.get_mut(&key)
                && program.streams.rearm().is_err()
            {
                // Out of memory for epoll: without events the program's streams are lost.
                program.streams.close();
            }
        }
        if let Some(Err(why)) = self.connection.as_mut().map(Connection::rearm) {
            self.disconnect(&why);
        }
    }

    // The client.

    fn accept(&mut self) {
        let Ok((socket, _)) = self.listener.get().accept() else { return };
        let own = rustix::process::getuid().as_raw();
        match fds::peer(&socket) {
            Ok(peer) if peer.uid == 0 || peer.uid == own => {}
            _ => return,
        }
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        self.detach_all();
        self.connection = Some(Connection::new(self.poll.watch(socket)));
    }

    fn disconnect(&mut self, why: &Lost) {
        if !matches!(why, Lost::Closed) {
            eprintln!("unum-init: the daemon's connection was closed: {why}");
        }
        self.connection = None;
        self.detach_all();
    }

    fn detach_all(&mut self) {
        for key in std::mem::take(&mut self.attached) {
            if let Some(program) = self.programs.get_mut(&key) {
                program.attached = false;
                program.unattended_since = Instant::now();
            }
        }
    }

    fn serve_connection(&mut self) {
        if let Err(why) = self.try_serve_connection() {
            self.disconnect(&why);
        }
    }

    fn try_serve_connection(&mut self) -> Result<(), Lost> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        connection.flush()?;
        if !connection.is_full() {
            connection.fill()?;
        }
        self.serve_requests()
    }

    fn serve_requests(&mut self) -> Result<(), Lost> {
        loop {
            let Some(connection) = &mut self.connection else { return Ok(()) };
            let Some(request) = connection.take_request()? else { return Ok(()) };
            self.answer(request);
        }
    }

    fn answer(&mut self, request: Request) {
        let id = request.id;
        match self.ask(request) {
            Ok(None) => {}
            Ok(Some(answer)) => self.reply(id, answer, None),
            Err(refusal) => self.reply(id, Answer::Failed(refusal), None),
        }
    }

    fn reply(&mut self, id: u64, answer: Answer, descriptor: Option<OwnedFd>) {
        if let Some(connection) = self.connection.as_mut().filter(|_| id != 0) {
            connection.send(&FromInit::reply(id, answer), descriptor);
        }
    }

    fn reply_to(&mut self, to: ReplyTo, answer: Answer) {
        if self.connection.as_ref().is_some_and(|c| c.token() == to.connection) {
            self.reply(to.request, answer, None);
        }
    }

    fn emit(&mut self, happened: Happened) {
        if let Some(connection) = &mut self.connection {
            connection.send(&FromInit::event(happened), None);
        }
    }

    /// `None` when the answer comes later or has been sent.
    fn ask(&mut self, request: Request) -> Result<Option<Answer>, Failed> {
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let ask = request.ask.ok_or_else(|| failed(Fault::BadRequest, 0, "unknown request"))?;
        if !connection.greeted && !matches!(ask, Ask::Hello(_)) {
            return Err(failed(Fault::Version, 0, "say Hello first"));
        }
        let to = ReplyTo { connection: connection.token(), request: request.id };
        if let (Some(user), Some(pid)) = (request.user, streams_concerned(&ask)) {
            self.may_have_streams(user, pid)?;
        }
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let done = Ok(Some(Answer::Done(Done {})));
        match ask {
            Ask::Hello(hello) => self.hello(hello).map(|h| Some(Answer::Hello(h))),
            Ask::SetBlocks(SetBlocks { blocks }) => self.set_blocks(blocks).and(done),
            Ask::Spawn(spawn) => self.spawn(spawn, to).map(|s| s.map(Answer::Spawned)),
            Ask::Attach(attach) => self.attach(attach, request.id).map(|()| None),
            Ask::Detach(detach) => self.detach(detach.pid).and(done),
            Ask::Input(input) => self.input(input).and(done),
            Ask::Ack(ack) => self.ack(ack.pid, ack.stream(), ack.offset).and(done),
            Ask::Signal(signal) => self.signal(signal, to),
            Ask::Resize(resize) => self.resize(resize).and(done),
            Ask::Hangup(hangup) => self.hang_up_by_pid(hangup.pid).and(done),
            Ask::CloseOutput(close) => self.close_output(close).and(done),
            Ask::Wait(wait) => self.wait(wait.pid, wait.forget, request.id),
            Ask::List(_) => Ok(Some(Answer::Programs(self.list()))),
            Ask::Keep(keep) => {
                let descriptor = if keep.descriptor { connection.claim_descriptor() } else { None };
                self.kept.keep(keep, descriptor).and(done)
            }
            Ask::Fetch(fetch) => {
                let (kept, descriptor) = self.kept.fetch(&fetch.name)?;
                self.reply(request.id, Answer::Kept(kept), descriptor);
                Ok(None)
            }
            Ask::Release(release) => self.kept.release(&release.name).and(done),
            Ask::Shutdown(shutdown) => {
                self.shut_down(Duration::from_millis(shutdown.grace_ms.min(GRACE_MS_MAX)));
                done
            }
            Ask::Status(_) => Ok(Some(Answer::Status(self.status()))),
            Ask::Graft(graft) => {
                let mount = connection.claim_descriptor();
                self.graft(graft, mount, to).map(|()| None)
            }
        }
    }

    fn hello(&mut self, hello: HelloAsk) -> Result<Hello, Failed> {
        if hello.version != PROTOCOL_VERSION {
            let why = format!("unum-init speaks version {PROTOCOL_VERSION}, not {}", hello.version);
            return Err(failed(Fault::Version, 0, why));
        }
        if let Some(connection) = &mut self.connection {
            connection.greeted = true;
        }
        Ok(Hello {
            version: PROTOCOL_VERSION,
            world: self.id.to_vec(),
            missing: self.missing.clone(),
        })
    }

    fn status(&mut self) -> Status {
        self.count_tasks();
        Status {
            blocks: self.guard.blocks().to_vec(),
            running: self.running() as u32,
            tasks: self.guard.tasks(),
            strayed: self.guard.strayed(),
            kept: self.kept.names(),
            missing: self.missing.clone(),
        }
    }

    fn running(&self) -> usize {
        self.programs.len() - self.exits.len().min(self.programs.len())
    }

    fn list(&self) -> Programs {
        let mut programs = Vec::new();
        let mut size = 0;
        // The running ones first: records of old exits are what a short list may lack.
        let (exited, running): (Vec<_>, Vec<_>) =
            self.programs.values().partition(|p| p.exited.is_some());
        for program in running.into_iter().chain(exited.into_iter().rev()).filter(|p| p.pid != 0) {
            let described = program.describe();
            size += program::size_of_description(&described);
            if size > FRAME_SIZE_MAX / 2 {
                return Programs { programs, truncated: true };
            }
            programs.push(described);
        }
        Programs { programs, truncated: false }
    }

    // PIDs.

    fn set_blocks(&mut self, blocks: Vec<unum_proto::init::PidBlock>) -> Result<(), Failed> {
        let Some(cursor) = &self.cursor else {
            return Err(failed(Fault::System, 0, self.missing.join("; ")));
        };
        let last = cursor.last().map_err(system("read the PID cursor"))?;
        let to = self.guard.set(blocks, last).map_err(|e| {
            let why = match e {
                BlockError::TooMany => "too many PID blocks".to_owned(),
                BlockError::BadRange(lo, hi) => {
                    format!(
                        "{lo}..{hi} is not a PID block: it must lie in 301..4194304, size 256 up"
                    )
                }
                BlockError::Overlap(lo) => format!("the block at {lo} overlaps the one before"),
            };
            failed(Fault::BadRequest, 0, why)
        })?;
        if let Some(to) = to {
            move_cursor(cursor, to).map_err(system("move the PID cursor"))?;
        }
        self.count_tasks();
        Ok(())
    }

    fn guard_pids(&mut self) {
        let Some(cursor) = &self.cursor else { return };
        let Ok(last) = cursor.last() else { return };
        self.last_pid = last;
        if let Some(to) = self.guard.look(last)
            && move_cursor(cursor, to).is_ok()
        {
            self.last_pid = to.next - 1;
        }
    }

    fn count_tasks(&mut self) {
        if let Ok(tasks) = pids::count_tasks(Path::new(PROC)) {
            self.guard.counted(tasks);
        }
        self.counted_at = self.last_pid;
    }

    // Programs: their start.

    fn spawn(&mut self, spawn: Spawn, to: ReplyTo) -> Result<Option<Spawned>, Failed> {
        if let Some(known) = self.find_tag(&spawn.tag) {
            return self.spawned_already(known, to);
        }
        self.may_spawn()?;
        let command = program::command(&spawn, self.descriptors)?;
        let stdio = spawn.stdio.clone().unwrap_or(Stdio::Null(Default::default()));
        let key = self.next_key;
        let new_log = self.state.join(format!("start-{key}.log"));
        let owner = (spawn.uid, spawn.gid);
        let (streams, child_ends) = ends::open(&stdio, &mut self.poll, &new_log, owner)
            .map_err(|e| failed(Fault::Stdio, e.raw_os_error().unwrap_or(0), e.to_string()))?;
        let start = process::start(&command, &child_ends.as_stdio()).map_err(|e| {
            logfile::remove(&new_log);
            fork_failed(&e)
        })?;
        drop(child_ends);
        self.next_key += 1;
        let exec = self.poll.watch(start.exec);
        let leader =
            start.leader.map(|words| Leader { pid: start.child, words: self.poll.watch(words) });
        let program = Program {
            pid: 0,
            tag: spawn.tag,
            command: shown(&spawn.argv),
            uid: spawn.uid,
            session: start.child,
            started_ms: now_ms(),
            starting: Some(Starting {
                reply_to: to,
                exec,
                early_exit: None,
                cwd: String::from_utf8_lossy(&spawn.cwd).into_owned(),
                name: spawn
                    .argv
                    .first()
                    .map(|a| String::from_utf8_lossy(a).into_owned())
                    .unwrap_or_default(),
            }),
            leader,
            streams,
            has_terminal: matches!(stdio, Stdio::Pty(_)),
            stopped_by: None,
            exited: None,
            attached: false,
            unattended_since: Instant::now(),
            orphan_after: (spawn.orphan_after_ms > 0)
                .then(|| Duration::from_millis(spawn.orphan_after_ms)),
            hung_up: false,
        };
        self.admit(key, program, start.child);
        Ok(None)
    }

    fn find_tag(&self, tag: &[u8]) -> Option<Key> {
        if tag.is_empty() {
            return None;
        }
        self.programs.iter().find(|(_, p)| p.tag == tag).map(|(key, _)| *key)
    }

    fn spawned_already(&mut self, key: Key, to: ReplyTo) -> Result<Option<Spawned>, Failed> {
        let Some(program) = self.programs.get_mut(&key) else { return Ok(None) };
        match &mut program.starting {
            // The one who asked first is gone, or asks again: the outcome goes to the newest.
            Some(starting) => {
                starting.reply_to = to;
                Ok(None)
            }
            None => Ok(Some(Spawned { pid: program.pid, existed: true })),
        }
    }

    fn may_spawn(&mut self) -> Result<(), Failed> {
        if self.ending.is_some() {
            return Err(failed(Fault::ShuttingDown, 0, "this node's world is ending"));
        }
        if self.running() >= RUNNING_MAX {
            return Err(failed(
                Fault::LimitReached,
                0,
                format!("{RUNNING_MAX} programs run already"),
            ));
        }
        if self.guard.total() == 0 {
            return Err(failed(Fault::OutOfPids, 0, "no PID block was set yet"));
        }
        if self.guard.is_full() {
            self.count_tasks();
        }
        if self.guard.is_full() {
            let (used, total) = (self.guard.tasks(), self.guard.total());
            let why = format!("{used} of this node's {total} PIDs are in use; lease another block");
            return Err(failed(Fault::OutOfPids, 0, why));
        }
        Ok(())
    }

    fn admit(&mut self, key: Key, program: Program, child: u32) {
        for token in program.streams.tokens() {
            self.by_token.insert(token, key);
        }
        if let Some(starting) = &program.starting {
            self.by_token.insert(starting.exec.token(), key);
        }
        let has_leader = program.leader.is_some();
        if let Some(leader) = &program.leader {
            self.by_token.insert(leader.words.token(), key);
            self.children.insert(child, Role::Leader(key));
        }
        self.programs.insert(key, program);
        self.starting.insert(key);
        self.touched.insert(key);
        self.arm_words(key);
        if !has_leader {
            self.name_program(key, child);
        }
    }

    fn arm_words(&mut self, key: Key) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        let exec = program.starting.as_mut().map(|s| s.exec.want(Some(EventFlags::IN)));
        let leader = program.leader.as_mut().map(|l| l.words.want(Some(EventFlags::IN)));
        if matches!(exec, Some(Err(_))) || matches!(leader, Some(Err(_))) {
            self.start_over(key, Err(None));
        }
    }

    /// The program's own PID is known now.
    fn name_program(&mut self, key: Key, pid: u32) {
        // An old record of that number has had its time.
        if let Some(old) = self.by_pid.get(&pid).copied() {
            self.forget(old);
        }
        self.by_pid.insert(pid, key);
        self.children.insert(pid, Role::Program(key));
        let log = self.state.join(format!("{pid}.log"));
        if let Some(program) = self.programs.get_mut(&key) {
            program.pid = pid;
            // Under its first name it is found just as well.
            let _ = program.streams.settle_log(&log);
        }
    }

    fn serve_program(&mut self, key: Key, token: u64) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        self.touched.insert(key);
        if program.starting.as_ref().is_some_and(|s| s.exec.token() == token) {
            self.hear_start(key);
        } else if program.leader.as_ref().is_some_and(|l| l.words.token() == token) {
            self.hear_leader(key);
        } else {
            program.streams.ready(token);
        }
    }

    fn hear_start(&mut self, key: Key) {
        // Who the program is, is said before its start is over.
        self.hear_leader(key);
        let Some(program) = self.programs.get(&key) else { return };
        let Some(starting) = &program.starting else { return };
        match starting.exec.get().hear() {
            Ok(Heard::NothingYet) => {}
            Ok(Heard::Word(Word::Failed(failure))) => self.start_over(key, Err(Some(failure))),
            Ok(Heard::End) if program.pid != 0 => self.start_over(key, Ok(())),
            Ok(Heard::Word(_) | Heard::End) | Err(_) => self.start_over(key, Err(None)),
        }
    }

    /// The start has an outcome.
    fn start_over(&mut self, key: Key, outcome: Result<(), Option<StartFailure>>) {
        self.starting.remove(&key);
        let Some(program) = self.programs.get_mut(&key) else { return };
        let Some(starting) = program.starting.take() else { return };
        self.by_token.remove(&starting.exec.token());
        let pid = program.pid;
        match outcome {
            Ok(()) => {
                self.reply_to(starting.reply_to, Answer::Spawned(Spawned { pid, existed: false }));
                if let Some(exit) = starting.early_exit {
                    self.finish(key, exit);
                }
            }
            Err(failure) => {
                let refusal = match failure {
                    Some(failure) => start_failed(failure, &starting.name, &starting.cwd),
                    None => failed(Fault::System, 0, "the program died before it began"),
                };
                let leader = program.leader.as_ref().map(|l| l.pid);
                for child in [leader, Some(pid).filter(|p| *p != 0)].into_iter().flatten() {
                    if self.children.contains_key(&child) {
                        let _ = process::signal_child(child, SIGKILL);
                    }
                }
                self.forget(key);
                self.reply_to(starting.reply_to, Answer::Failed(refusal));
            }
        }
    }

    fn hear_leader(&mut self, key: Key) {
        loop {
            let Some(program) = self.programs.get_mut(&key) else { return };
            let Some(leader) = &mut program.leader else { return };
            match leader.words.get().hear() {
                Ok(Heard::Word(Word::Child(pid))) => self.name_program(key, pid),
                Ok(Heard::Word(Word::Stopped(signal))) => self.stopped(key, signal),
                Ok(Heard::Word(Word::Continued)) => self.continued(key),
                Ok(Heard::Word(Word::Ended)) => {
                    program.streams.take_last_words();
                    // Its child, the zombie, becomes ours and is reaped with its true status.
                    let _ = process::signal_child(leader.pid, SIGKILL);
                }
                Ok(Heard::NothingYet) => return,
                Ok(Heard::Word(Word::Failed(_)) | Heard::End) | Err(_) => {
                    // It is dead or dying; SIGCHLD tells the rest.
                    let _ = leader.words.want(None);
                    return;
                }
            }
        }
    }

    // Programs: changes of state.

    fn take_signals(&mut self) {
        while let Some(arrived) = self.signals.get().take() {
            // A world's own processes do not end it by a signal; the machine may.
            if arrived.signal == SIGTERM && arrived.sender == 0 {
                self.shut_down(SIGNAL_GRACE);
            }
        }
        for key in self.starting.clone() {
            self.hear_leader(key);
        }
        while let Some((pid, change)) = process::reap() {
            self.child_changed(pid, change);
        }
    }

    fn child_changed(&mut self, pid: u32, change: Change) {
        let role = self.children.get(&pid).copied();
        match (role, change) {
            (Some(Role::Program(key)), Change::Stopped(signal)) => self.stopped(key, signal),
            (Some(Role::Program(key)), Change::Continued) => self.continued(key),
            (_, Change::Stopped(_) | Change::Continued) => {}
            (Some(role), Change::Exited(exit)) => {
                self.children.remove(&pid);
                self.child_exited(role, exit);
            }
            // An orphan of some program, which nobody asked for.
            (None, Change::Exited(_)) => {}
        }
    }

    fn child_exited(&mut self, role: Role, exit: Exit) {
        match role {
            Role::Program(key) => {
                let Some(program) = self.programs.get_mut(&key) else { return };
                match &mut program.starting {
                    Some(starting) => starting.early_exit = Some(exit),
                    None => self.finish(key, exit),
                }
            }
            Role::Leader(key) => {
                self.hear_leader(key);
                if let Some(program) = self.programs.get_mut(&key)
                    && let Some(leader) = program.leader.take()
                {
                    self.by_token.remove(&leader.words.token());
                }
                self.touched.insert(key);
            }
            Role::Graft(to) => {
                let answer = match errno_of(&exit) {
                    0 => Answer::Done(Done {}),
                    errno => {
                        let error = io::Error::from_raw_os_error(errno);
                        let why = format!("cannot attach the mount in the world: {error}");
                        Answer::Failed(failed(Fault::System, errno, why))
                    }
                };
                self.reply_to(to, answer);
            }
            Role::Errand { to, number, uid } => {
                let answer = match errno_of(&exit) {
                    0 => Answer::Done(Done {}),
                    errno => Answer::Failed(signals::refusal(errno, number, uid)),
                };
                self.reply_to(to, answer);
            }
        }
    }

    fn stopped(&mut self, key: Key, signal: u32) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.stopped_by = Some(signal);
        if program.attached {
            let pid = program.pid;
            self.emit(Happened::Stopped(Stopped { pid, signal }));
        }
    }

    fn continued(&mut self, key: Key) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.stopped_by = None;
        if program.attached {
            let pid = program.pid;
            self.emit(Happened::Continued(Continued { pid }));
        }
    }

    fn finish(&mut self, key: Key, exit: Exit) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        let exited = program.record(exit);
        self.touched.insert(key);
        self.exits.push_back(key);
        if program.attached {
            self.emit(Happened::Exited(exited));
        }
        self.answer_waits(key, exited);
        while self.exits.len() > EXIT_RECORDS_MAX {
            if let Some(oldest) = self.exits.front().copied() {
                self.forget(oldest);
            }
        }
    }

    fn answer_waits(&mut self, key: Key, exited: Exited) {
        let Some(connection) = &mut self.connection else { return };
        let mut forget = false;
        let (due, rest) = std::mem::take(&mut connection.waits)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, pid, _)| *pid == exited.pid);
        connection.waits = rest;
        for (id, _, and_forget) in due {
            forget |= and_forget;
            self.reply(id, Answer::Exited(exited), None);
        }
        if forget {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: Key) {
        let Some(program) = self.programs.remove(&key) else { return };
        for token in program.streams.tokens() {
            self.by_token.remove(&token);
        }
        if self.by_pid.get(&program.pid) == Some(&key) {
            self.by_pid.remove(&program.pid);
        }
        if let Some(leader) = &program.leader {
            self.by_token.remove(&leader.words.token());
        }
        self.starting.remove(&key);
        self.attached.retain(|k| *k != key);
        self.exits.retain(|k| *k != key);
        if let Some(log) = program.streams.log() {
            logfile::remove(Path::new(log));
        }
    }

    fn wait(&mut self, pid: u32, forget: bool, id: u64) -> Result<Option<Answer>, Failed> {
        let key = self.key_of(pid)?;
        let exited = self.programs.get(&key).and_then(|p| p.exited);
        if let Some(exited) = exited {
            if forget {
                self.forget(key);
            }
            return Ok(Some(Answer::Exited(exited)));
        }
        let Some(connection) = &mut self.connection else { return Ok(None) };
        if connection.waits.len() >= WAITS_MAX {
            return Err(failed(
                Fault::LimitReached,
                0,
                format!("{WAITS_MAX} requests wait already"),
            ));
        }
        connection.waits.push((id, pid, forget));
        Ok(None)
    }

    // Programs: what is done to them.

    fn key_of(&self, pid: u32) -> Result<Key, Failed> {
        self.by_pid.get(&pid).copied().ok_or_else(|| no_such_process(pid))
    }

    fn program_of(&mut self, pid: u32) -> Result<&mut Program, Failed> {
        let key = self.key_of(pid)?;
        self.touched.insert(key);
        self.programs.get_mut(&key).ok_or_else(|| no_such_process(pid))
    }

    /// What the program has become since, by a setuid program, plays no part; nor does who has its
    /// PID now.
    fn may_have_streams(&self, user: u32, pid: u32) -> Result<(), Failed> {
        let owner = self.programs.get(&self.key_of(pid)?).map(|program| program.uid);
        if user == 0 || owner == Some(user) {
            return Ok(());
        }
        let why = format!("program {pid} was not started by user {user}");
        Err(failed(Fault::NotPermitted, rustix::io::Errno::PERM.raw_os_error(), why))
    }

    fn attach(&mut self, attach: Attach, id: u64) -> Result<(), Failed> {
        let key = self.key_of(attach.pid)?;
        let program = self.program_of(attach.pid)?;
        let wanted = |offset| (!attach.from_oldest).then_some(offset);
        let gone = |e: crate::stream::NotHeld| {
            let why = format!("only the bytes {} to {} are held", e.oldest, e.end);
            failed(Fault::OffsetGone, 0, why)
        };
        let stdout = program.streams.stdout.start_at(wanted(attach.stdout)).map_err(gone)?;
        let stderr = program.streams.stderr.start_at(wanted(attach.stderr)).map_err(gone)?;
        program.attached = true;
        program.streams.input.forget_told();
        let input = Some(program.input_state());
        let (exited, stopped) = (program.exited, program.stopped_by);
        if !self.attached.contains(&key) {
            self.attached.push_back(key);
        }
        self.reply(id, Answer::Attached(Attached { stdout, stderr, input }), None);
        // What happened before is told again: this client may not have heard it.
        if let Some(signal) = stopped {
            self.emit(Happened::Stopped(Stopped { pid: attach.pid, signal }));
        }
        if let Some(exited) = exited {
            self.emit(Happened::Exited(exited));
        }
        Ok(())
    }

    fn detach(&mut self, pid: u32) -> Result<(), Failed> {
        let key = self.key_of(pid)?;
        let program = self.program_of(pid)?;
        program.attached = false;
        program.unattended_since = Instant::now();
        self.attached.retain(|k| *k != key);
        Ok(())
    }

    fn input(&mut self, input: Input) -> Result<(), Failed> {
        let streams = &mut self.program_of(input.pid)?.streams;
        streams.input.offer(input.offset, &input.bytes, input.eof);
        streams.push_input();
        Ok(())
    }

    fn ack(&mut self, pid: u32, stream: Stream, offset: u64) -> Result<(), Failed> {
        match self.program_of(pid)?.streams.output(stream) {
            Some(output) => output.ack(offset),
            None => return Err(failed(Fault::BadRequest, 0, "input is not acknowledged")),
        }
        Ok(())
    }

    fn close_output(&mut self, close: CloseOutput) -> Result<(), Failed> {
        let stream = close.stream();
        let program = self.program_of(close.pid)?;
        let tokens = program.streams.tokens();
        program.streams.close_output(stream);
        let left = program.streams.tokens();
        for token in tokens.into_iter().filter(|token| !left.contains(token)) {
            self.by_token.remove(&token);
        }
        Ok(())
    }

    fn signal(&mut self, signal: Signal, to: ReplyTo) -> Result<Option<Answer>, Failed> {
        let Signal { pid, signal: number, uid, .. } = signal;
        let whom = self.whom(pid, signal.target())?;
        signals::check(whom, number)?;
        if whom.is_direct(uid) {
            let refuse =
                |e: io::Error| signals::refusal(e.raw_os_error().unwrap_or(0), whom.number(), uid);
            signals::send(whom, number).map_err(refuse)?;
            return Ok(Some(Answer::Done(Done {})));
        }
        match process::fork().map_err(|e| fork_failed(&e))? {
            process::Fork::Parent(child) => {
                let errand = Role::Errand { to, number: whom.number(), uid };
                self.children.insert(child, errand);
                Ok(None)
            }
            process::Fork::Child(child) => {
                child.run_as(|child| signals::run_errand(child, whom, number, uid))
            }
        }
    }

    fn whom(&mut self, pid: u32, target: Target) -> Result<Whom, Failed> {
        match target {
            Target::Process => Ok(Whom::Process(pid)),
            Target::Group => Ok(Whom::Group(pid)),
            Target::Session => {
                let program = self.program_of(pid)?;
                let leader = program.leader.as_ref().map(|l| l.pid);
                Ok(Whom::Session { session: program.session, leader })
            }
            Target::Foreground => {
                let terminal = self.program_of(pid)?.streams.terminal();
                Ok(Whom::Group(terminal.and_then(|t| pty::foreground(t).ok()).unwrap_or(pid)))
            }
        }
    }

    fn resize(&mut self, resize: Resize) -> Result<(), Failed> {
        let size = |n| u16::try_from(n).map_err(|_| failed(Fault::BadRequest, 0, "no such size"));
        let (rows, cols) = (size(resize.rows)?, size(resize.cols)?);
        let program = self.program_of(resize.pid)?;
        let terminal = program.streams.terminal().ok_or_else(|| {
            failed(Fault::NoTerminal, 0, format!("program {} has no terminal", resize.pid))
        })?;
        pty::resize(terminal, rows, cols).map_err(system("resize the terminal"))
    }

    fn hang_up_by_pid(&mut self, pid: u32) -> Result<(), Failed> {
        let key = self.key_of(pid)?;
        self.program_of(pid)?;
        self.hang_up(key);
        Ok(())
    }

    fn hang_up(&mut self, key: Key) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.hung_up = true;
        if program.exited.is_none() {
            let leader = program.leader.as_ref().map(|l| l.pid);
            let session = program.session;
            match process::fork() {
                // Reaped as any orphan.
                Ok(process::Fork::Parent(_)) => {}
                Ok(process::Fork::Child(child)) => {
                    child.run(|| signals::exit_with(signals::hang_up(session, leader)))
                }
                // Without a child to look for the session's other groups, at least its own.
                Err(_) => signals::hang_up_group(program.pid),
            }
        }
        for token in program.streams.tokens() {
            self.by_token.remove(&token);
        }
        program.streams.close();
    }

    fn graft(&mut self, graft: Graft, mount: Option<OwnedFd>, to: ReplyTo) -> Result<(), Failed> {
        use std::os::unix::ffi::OsStringExt;
        let mount = mount.ok_or_else(|| failed(Fault::BadRequest, 0, "no mount came along"))?;
        self.may_spawn()?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(graft.path));
        match process::fork().map_err(|e| fork_failed(&e))? {
            process::Fork::Parent(child) => {
                self.children.insert(child, Role::Graft(to));
                Ok(())
            }
            // In a child because the look-up of the path may block.
            process::Fork::Child(never) => never.run(|| {
                use std::os::fd::AsFd;
                signals::exit_with(mounts::graft(mount.as_fd(), &path));
            }),
        }
    }

    /// What exited programs said and nobody fetched is kept for the newest of them.
    fn bound_unread(&mut self) {
        let held = |p: &Program| p.streams.held();
        let mut total: usize =
            self.exits.iter().filter_map(|k| self.programs.get(k)).map(held).sum();
        for key in &self.exits {
            if total <= UNREAD_SIZE_MAX {
                return;
            }
            if let Some(program) = self.programs.get_mut(key).filter(|p| !p.attached) {
                total -= program.streams.held();
                program.streams.forget_unread();
            }
        }
    }

    // Time.

    fn tick(&mut self) {
        self.bound_unread();
        let overdue: Vec<Key> =
            self.programs.iter().filter(|(_, p)| p.is_overdue()).map(|(key, _)| *key).collect();
        for key in overdue {
            self.hang_up(key);
        }
        for (key, program) in self.programs.iter_mut().filter(|(_, p)| p.has_terminal) {
            program.streams.wake();
            self.touched.insert(*key);
        }
        if self.last_pid != self.counted_at && self.guard.total() > 0 {
            self.count_tasks();
            if self.guard.is_low() {
                let (used, total) = (self.guard.tasks(), self.guard.total());
                self.emit(Happened::PidsLow(PidsLow { used, total }));
            }
        }
    }

    fn shut_down(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        // A second call may shorten the grace.
        self.ending = Some(self.ending.map_or(deadline, |e| e.min(deadline)));
        for signal in [SIGTERM, SIGCONT] {
            // Nobody to signal is an empty world.
            let _ = process::signal_world(signal);
        }
    }

    /// With PID 1 the kernel ends all that is left.
    fn has_ended(&self) -> bool {
        let Some(deadline) = self.ending else { return false };
        Instant::now() >= deadline
            || pids::all(Path::new(PROC)).is_ok_and(|all| all.iter().all(|pid| *pid == 1))
    }

    // Output and news to the client.

    /// Moves pieces of the attached programs' output to the queue in turns, while it is short.
    fn pump(&mut self) {
        self.tell_input_news();
        let mut idle = 0;
        while idle < self.attached.len() {
            let Some(connection) = self.connection.as_mut().filter(|c| c.wants_pieces()) else {
                break;
            };
            let Some(key) = self.attached.pop_front() else { break };
            self.attached.push_back(key);
            idle += 1;
            let Some(program) = self.programs.get_mut(&key) else { continue };
            let pid = program.pid;
            for stream in [Stream::Stdout, Stream::Stderr] {
                let piece = program.streams.output(stream).and_then(|o| o.take_piece());
                if let Some(piece) = piece {
                    idle = 0;
                    let event = OutputEvent {
                        pid,
                        stream: stream as i32,
                        offset: piece.offset,
                        bytes: piece.bytes,
                        eof: piece.eof,
                    };
                    connection.send(&FromInit::event(Happened::Output(event)), None);
                }
            }
        }
        // A request may have waited for the queue to shrink.
        let sent = match &mut self.connection {
            Some(connection) => connection.flush(),
            None => Ok(()),
        };
        if let Err(why) = sent.and_then(|()| self.serve_requests()) {
            self.disconnect(&why);
        }
    }

    fn tell_input_news(&mut self) {
        for key in &self.attached {
            let Some(program) = self.programs.get_mut(key) else { continue };
            if program.streams.input.news().is_some()
                && let Some(connection) = &mut self.connection
            {
                let state = program.input_state();
                connection.send(&FromInit::event(Happened::InputState(state)), None);
            }
        }
    }
}

/// The program with whose streams the request has to do.
fn streams_concerned(ask: &Ask) -> Option<u32> {
    match ask {
        Ask::Attach(attach) => Some(attach.pid),
        Ask::Detach(detach) => Some(detach.pid),
        Ask::Input(input) => Some(input.pid),
        Ask::Ack(ack) => Some(ack.pid),
        Ask::Resize(resize) => Some(resize.pid),
        Ask::Hangup(hangup) => Some(hangup.pid),
        _ => None,
    }
}

/// What a forked child ended with; dying otherwise is an input/output error.
fn errno_of(exit: &Exit) -> i32 {
    let died = exit.signal != 0;
    if died { rustix::io::Errno::IO.raw_os_error() } else { exit.code as i32 }
}

fn fork_failed(e: &io::Error) -> Failed {
    let why = format!("cannot start a process: {e}; the machine is short of memory or processes");
    failed(Fault::OutOfResources, e.raw_os_error().unwrap_or(0), why)
}

fn open_cursor(missing: &mut Vec<String>) -> Option<PidCursor> {
    match PidCursor::open(Path::new(PROC)) {
        Ok(cursor) => {
            if !cursor.has_limit() {
                missing.push(
                    "Linux before 6.14 has one pid_max for the whole machine: more than 25 forks in a \
                     millisecond may leave this node's PID blocks"
                        .to_owned(),
                );
            }
            Some(cursor)
        }
        Err(e) => {
            missing.push(format!("PIDs cannot be chosen here: {e}"));
            None
        }
    }
}

/// Whether the world has any process but PID 1: those whose parents ended are its children too.
fn has_children() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
}

fn move_cursor(cursor: &PidCursor, to: Move) -> io::Result<()> {
    cursor.set_limit(to.limit_before)?;
    cursor.set_next(to.next)?;
    cursor.set_limit(to.limit_after)
}
