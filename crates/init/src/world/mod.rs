//! The world of a node as PID 1 runs it: one loop that owns every part and routes between them.
//!
//! - here: the state, the loop, its pauses and its end
//! - `client`: the daemon's connection
//! - `numbers`: PIDs
//! - `start`, `changes`, `orders`: programs as they begin, as they change, as they are told to
//!
//! Invariants: one thread; nothing in the loop waits for anything but epoll. All look-ups of paths
//! that a file server may answer happen in forked children.

mod changes;
mod client;
mod numbers;
mod orders;
mod start;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use unum_proto::init::{Happened, PidsLow};
use unum_sys::pids::{self, PidCursor};
use unum_sys::process::{self, Rlimit, SignalFd};

use crate::blocks::Guard;
use crate::connection::Connection;
use crate::kept::{DEADLINE_NEAR, Keepsakes};
use crate::poll::{EventFlags, Poll, Watched};
use crate::program::{Program, ReplyTo};
use crate::signals::{SIGCONT, SIGTERM};

use numbers::open_cursor;

/// Between two looks at what is not urgent.
const SLOW_TICK: Duration = Duration::from_millis(250);
const _: () = assert!(SLOW_TICK.as_millis() < DEADLINE_NEAR.as_millis());
/// How often an ending world is looked at: whether it is empty.
const ENDING_LOOK: Duration = Duration::from_millis(20);
/// How often an empty one is: somebody may have entered it from outside.
const EMPTY_LOOK: Duration = Duration::from_secs(2);

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
    /// Something has happened since the slow tick.
    stirred: bool,
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
            stirred: false,
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
                self.stirred = true;
            }
            if self.slow_tick.elapsed() >= SLOW_TICK {
                self.slow_tick = Instant::now();
                self.stirred = false;
                self.tick();
                self.kept.look_at_deadlines();
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
        let pause = self.pause_without_caches();
        if self.kept.has_watches() { pause.min(SLOW_TICK) } else { pause }
    }

    fn pause_without_caches(&self) -> Duration {
        if self.ending.is_some() {
            return ENDING_LOOK;
        }
        let has_terminals = || self.programs.values().any(|program| program.has_terminal);
        if self.stirred || has_children() || has_terminals() {
            return self.guard.pause(self.last_pid).min(SLOW_TICK);
        }
        // Nobody is here who takes PIDs, and the slow tick has seen to what was left.
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
}

/// Whether the world has any process but PID 1: those whose parents ended are its children too.
fn has_children() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
}
