//! A world of its own for each test, gone when the test ends however it ends.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use unum_init::client::{Client, ClientError};
use unum_proto::init::{
    Ack, Answer, Ask, Attach, Exited, Fault, Happened, Input, PidBlock, PipeStdio, PtyStdio,
    SetBlocks, Shutdown, Signal, Spawn, Stdio, Stream, Target, Wait,
};
use unum_sys::world::{StartError, World, start_world};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const BLOCK: PidBlock = PidBlock { lo: 50_000, hi: 54_000 };

pub struct TestWorld {
    directory: tempfile::TempDir,
}

impl TestWorld {
    /// `None`, with one line that says why, where a world cannot be made.
    pub fn start() -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            println!("SKIPPED: a world needs root");
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let world = Self { directory };
        match start_world(&world.options()) {
            Ok(()) => Some(world),
            Err(StartError::Failed { message }) if message.contains("not permitted") => {
                println!("SKIPPED: no namespaces here: {message}");
                None
            }
            Err(e) => panic!("{e}"),
        }
    }

    pub fn options(&self) -> World {
        World {
            program: env!("CARGO_BIN_EXE_unum-init").into(),
            prefix: Vec::new(),
            socket: self.socket(),
            state: self.directory.path().join("state"),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("init.sock")
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.socket()).expect("connect").0
    }

    /// A client, with PID blocks set.
    pub fn ready(&self) -> Client {
        let mut client = self.connect();
        set_blocks(&mut client, &[BLOCK]);
        client
    }
}

impl Drop for TestWorld {
    fn drop(&mut self) {
        if let Ok((mut client, _)) = Client::connect(&self.socket()) {
            let _ = client.call(Ask::Shutdown(Shutdown { grace_ms: 0 }));
        }
        let deadline = Instant::now() + PATIENCE;
        while self.socket().exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

pub fn set_blocks(client: &mut Client, blocks: &[PidBlock]) {
    let ask = Ask::SetBlocks(SetBlocks { blocks: blocks.to_vec() });
    assert!(matches!(client.call(ask), Ok(Answer::Done(_))));
}

pub fn command(words: &[&str]) -> Spawn {
    Spawn {
        argv: words.iter().map(|w| w.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/usr/bin:/bin".to_vec(), b"LANG=C".to_vec()],
        cwd: b"/".to_vec(),
        umask: 0o022,
        ..Spawn::default()
    }
}

pub fn with_pipes(words: &[&str]) -> Spawn {
    let all = PipeStdio { stdin: true, stdout: true, stderr: true };
    Spawn { stdio: Some(Stdio::Pipes(all)), ..command(words) }
}

pub fn with_terminal(words: &[&str]) -> Spawn {
    let pty = PtyStdio { rows: 24, cols: 80, term: b"xterm".to_vec() };
    Spawn { stdio: Some(Stdio::Pty(pty)), ..command(words) }
}

pub fn spawn(client: &mut Client, spawn: Spawn) -> u32 {
    match client.call(Ask::Spawn(spawn)) {
        Ok(Answer::Spawned(spawned)) => spawned.pid,
        other => panic!("not spawned: {other:?}"),
    }
}

pub fn refusal(client: &mut Client, ask: Ask) -> (Fault, String) {
    match client.call(ask) {
        Err(ClientError::Refused(failed)) => (failed.fault(), failed.message),
        other => panic!("not refused: {other:?}"),
    }
}

pub fn wait(client: &mut Client, pid: u32) -> Exited {
    match client.call(Ask::Wait(Wait { pid, forget: false })) {
        Ok(Answer::Exited(exited)) => exited,
        other => panic!("not exited: {other:?}"),
    }
}

pub fn signal(client: &mut Client, pid: u32, number: u32, target: Target) {
    let ask = Ask::Signal(Signal { pid, target: target as i32, signal: number, uid: 0 });
    let answer = client.call(ask);
    assert!(matches!(answer, Ok(Answer::Done(_))), "{answer:?}");
}

/// An attached reader and writer that can lose its connection and go on.
pub struct Session {
    pub pid: u32,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    pub ended: [bool; 2],
    /// Streams that were closed by this end: what was held of them is dropped.
    pub given_up: [bool; 2],
    pub stopped: Vec<u32>,
    pub continued: usize,
    pub exited: Option<Exited>,
    pub accepted: u64,
    pub window: u64,
    pub input_closed: bool,
    sent: u64,
}

impl Session {
    pub fn attach(client: &mut Client, pid: u32) -> Self {
        let mut session = Session {
            pid,
            out: Vec::new(),
            err: Vec::new(),
            ended: [false; 2],
            given_up: [false; 2],
            stopped: Vec::new(),
            continued: 0,
            exited: None,
            accepted: 0,
            window: 0,
            input_closed: false,
            sent: 0,
        };
        session.attach_again(client);
        session
    }

    pub fn attach_again(&mut self, client: &mut Client) {
        let attach = Attach {
            pid: self.pid,
            stdout: self.out.len() as u64,
            stderr: self.err.len() as u64,
            from_oldest: false,
        };
        match client.call(Ask::Attach(attach)) {
            Ok(Answer::Attached(attached)) => {
                let state = attached.input.expect("input state");
                self.accepted = state.accepted;
                self.window = state.window;
                self.input_closed = state.closed;
                self.sent = state.accepted;
            }
            other => panic!("not attached: {other:?}"),
        }
    }

    /// Sends of `all` what the window allows, in pieces.
    pub fn feed(&mut self, client: &mut Client, all: &[u8]) {
        let end = (all.len() as u64).min(self.window);
        while self.sent < end && !self.input_closed {
            let to = end.min(self.sent + 32_768);
            let bytes = all[self.sent as usize..to as usize].to_vec().into();
            let eof = to == all.len() as u64;
            let input = Input { pid: self.pid, offset: self.sent, bytes, eof };
            client.cast(Ask::Input(input)).expect("send input");
            self.sent = to;
        }
    }

    /// Takes one event in. False after `patience` without one.
    pub fn step(&mut self, client: &mut Client, patience: Duration) -> bool {
        let Some(event) = client.event(patience).expect("an event") else { return false };
        match event {
            Happened::Output(output) => {
                assert_eq!(output.pid, self.pid);
                let stream = output.stream();
                let index = (stream == Stream::Stderr) as usize;
                if self.given_up[index] {
                    self.ended[index] |= output.eof;
                    return true;
                }
                let held = [&mut self.out, &mut self.err].into_iter().nth(index).expect("stream");
                assert_eq!(output.offset, held.len() as u64, "output lost or doubled");
                held.extend_from_slice(&output.bytes);
                self.ended[index] |= output.eof;
                let ack = Ack { pid: self.pid, stream: stream as i32, offset: held.len() as u64 };
                client.cast(Ask::Ack(ack)).expect("send an ack");
            }
            Happened::InputState(state) => {
                self.accepted = state.accepted;
                self.window = state.window;
                self.input_closed = state.closed;
            }
            Happened::Stopped(stopped) => self.stopped.push(stopped.signal),
            Happened::Continued(_) => self.continued += 1,
            Happened::Exited(exited) => self.exited = Some(exited),
            Happened::PidsLow(_) => {}
        }
        true
    }

    /// Until `done`.
    pub fn until(&mut self, client: &mut Client, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            let went_on = self.step(client, Duration::from_millis(200));
            assert!(
                went_on || Instant::now() < deadline,
                "waited in vain; out so far: {:?}",
                String::from_utf8_lossy(&self.out[self.out.len().saturating_sub(500)..])
            );
        }
    }

    pub fn until_over(&mut self, client: &mut Client) -> Exited {
        self.until(client, |s| s.exited.is_some() && s.ended == [true; 2]);
        self.exited.expect("exited")
    }

    pub fn typed(&mut self, client: &mut Client, bytes: &[u8]) {
        let input =
            Input { pid: self.pid, offset: self.sent, bytes: bytes.to_vec().into(), eof: false };
        client.cast(Ask::Input(input)).expect("send input");
        self.sent += bytes.len() as u64;
    }

    pub fn until_shown(&mut self, client: &mut Client, text: &str) {
        let needle = text.as_bytes();
        self.until(client, |s| s.out.windows(needle.len()).any(|w| w == needle));
    }
}
