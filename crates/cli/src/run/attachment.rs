//! The streams between this process and its program elsewhere.
//!
//! Input is kept until the far side has taken it over, output is acknowledged once it is written
//! here; after a break both go on at their offsets. Reading standard input and writing the outputs
//! block, so each has a thread; the two queues between are bounded and give back-pressure.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use rustix::process::{Signal, getpid, kill_current_process_group, kill_process};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc;
use unum_net::{CallOptions, Client, Code, RpcError, StreamReceiver, StreamSender};
use unum_proto::process::{
    AttachRequest, Ended, FromProgram, PIECE_SIZE_MAX, Piece, Position, Stream, ToProgram,
    from_program, to_program,
};

use super::terminal::Terminal;
use super::{DAEMON_PATIENCE, RETRY_PERIOD, is_lasting, lost};
use crate::daemon::{local, process};
use crate::failure::{Explain, Failure, Result};

/// Input that was read here and not yet taken over there, in bytes, at most.
const INPUT_PENDING_MAX: usize = 256 * 1024;
const INPUT_PIECE_SIZE: usize = 32 * 1024;
/// Pieces of output that wait to be written, at most.
const OUTPUT_QUEUE_MAX: usize = 16;
const MESSAGE_SIZE_MAX: usize = PIECE_SIZE_MAX + 1024;

/// Handed on to the program when this process gets them.
const FORWARDED: [Signal; 6] =
    [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP, Signal::USR1, Signal::USR2];

/// How long a stop that was asked for may take to come. It does not come to a group that nobody
/// would continue.
const STOP_TIME_MAX: Duration = Duration::from_millis(200);

/// Serves the program's streams until it has ended.
pub async fn attend(
    socket: &Path,
    client: Client,
    pid: u32,
    terminal: Option<Terminal>,
) -> Result<Ended> {
    let mut client = Some(client);
    let mut signals = Signals::new(terminal.is_some()).explain(|| "cannot watch signals".into())?;
    let mut session = Session::new(pid, terminal);
    if let Some(terminal) = &mut session.terminal {
        terminal.make_raw().explain(|| "cannot switch the terminal".into())?;
    }
    let mut give_up = Instant::now() + DAEMON_PATIENCE;
    loop {
        let outcome = match connected(client.take(), socket).await {
            Ok(client) => session.serve_once(&client, &mut signals).await,
            Err(error) => Err(error),
        };
        if std::mem::take(&mut session.heard) {
            give_up = Instant::now() + DAEMON_PATIENCE;
        }
        match outcome {
            Ok(ended) => return session.finish(ended).await,
            Err(Break::Fatal(failure)) => return Err(failure),
            Err(Break::Retry(why)) if Instant::now() > give_up => {
                return Err(Failure::new(format!(
                    "the connection to process {pid} is lost: {why}"
                ))
                .next(format!("It may still run. Look: unum where {pid}")));
            }
            Err(Break::Retry(_)) => tokio::time::sleep(RETRY_PERIOD).await,
        }
    }
}

/// Why an attachment ended before the program.
enum Break {
    /// The daemon died or the way to the program's node broke.
    Retry(String),
    Fatal(Failure),
}

impl From<RpcError> for Break {
    fn from(error: RpcError) -> Self {
        match error.code() {
            // It was started, so it went with its world.
            Some(Code::NotFound) => {
                Self::Fatal(lost("the program was lost: its node was started anew".into()))
            }
            _ if is_lasting(&error) => Self::Fatal(Failure::new(error.to_string())),
            _ => Self::Retry(error.to_string()),
        }
    }
}

async fn connected(client: Option<Client>, socket: &Path) -> Result<Client, Break> {
    match client {
        Some(client) => Ok(client),
        None => Client::unix(socket).await.map_err(|error| Break::Retry(error.to_string())),
    }
}

struct Session {
    pid: u32,
    terminal: Option<Terminal>,
    input: Input,
    /// What was read from standard input; empty bytes: its end.
    read: mpsc::Receiver<Bytes>,
    write: Option<mpsc::Sender<Written>>,
    written: mpsc::Receiver<Result<Written, (Stream, ErrorKind)>>,
    stdout: u64,
    stderr: u64,
    /// What is written here, of stdout and of stderr.
    done: [u64; 2],
    /// Outputs that nobody reads here any more.
    closed: Vec<Stream>,
    /// We were told to stop, and stop when the program has.
    stop_asked: bool,
    /// The program's node spoke on this attachment: patience begins when that breaks.
    heard: bool,
}

/// A piece of output on its way to, or back from, the writing thread.
struct Written {
    stream: Stream,
    end: u64,
    bytes: Bytes,
}

impl Session {
    fn new(pid: u32, terminal: Option<Terminal>) -> Self {
        let (read_sender, read) = mpsc::channel(1);
        let (write, write_receiver) = mpsc::channel(OUTPUT_QUEUE_MAX);
        // One place more than there are pieces, so the writer never waits for us.
        let (written_sender, written) = mpsc::channel(OUTPUT_QUEUE_MAX + 1);
        std::thread::spawn(move || read_input(&read_sender));
        std::thread::spawn(move || write_output(write_receiver, &written_sender));
        let input = Input::default();
        Self {
            pid,
            terminal,
            input,
            read,
            write: Some(write),
            written,
            stdout: 0,
            stderr: 0,
            done: [0; 2],
            closed: Vec::new(),
            stop_asked: false,
            heard: false,
        }
    }

    async fn serve_once(&mut self, client: &Client, signals: &mut Signals) -> Result<Ended, Break> {
        let request =
            AttachRequest { pid: self.pid, stdout_offset: self.stdout, stderr_offset: self.stderr };
        let options = CallOptions::unlimited().fail_fast();
        let mut opened = client.open::<process::Attach>(&local(), request, &options).await?;
        let mut messages = Incoming::new(opened.receiver);
        self.input.rewind();
        if let Some(terminal) = &self.terminal {
            send(&mut opened.sender, to_program::Kind::Resize(terminal.size())).await?;
        }
        // What was told before a break may have got lost in it, and the far side keeps no more than
        // a buffer full for us: without this both would wait for the other.
        for (stream, offset) in [Stream::Stdout, Stream::Stderr].into_iter().zip(self.done) {
            if offset > 0 {
                send(&mut opened.sender, received(stream, offset)).await?;
            }
        }
        for stream in &self.closed {
            send(&mut opened.sender, to_program::Kind::Close((*stream).into())).await?;
        }
        loop {
            if let Some(piece) = self.input.next() {
                send(&mut opened.sender, to_program::Kind::Input(piece)).await?;
                continue;
            }
            let may_read = self.input.has_room();
            tokio::select! {
                message = messages.next(self.write.as_ref()) => match message? {
                    None => return Err(broken(&mut opened.reply).await),
                    Some(kind) => {
                        self.heard = true;
                        if let Some(ended) = self.take(kind, &mut opened.sender, signals).await? {
                            return Ok(ended);
                        }
                    }
                },
                bytes = self.read.recv(), if may_read => {
                    self.input.push(bytes.unwrap_or_default());
                }
                Some(done) = self.written.recv() => {
                    self.acknowledge(done, &mut opened.sender).await?;
                }
                received = signals.next() => {
                    self.hand_on(received, &mut opened.sender).await?;
                }
            }
        }
    }

    async fn take(
        &mut self,
        kind: from_program::Kind,
        sender: &mut StreamSender,
        signals: &mut Signals,
    ) -> Result<Option<Ended>, Break> {
        match kind {
            from_program::Kind::Output(piece) => self.output(piece).await,
            from_program::Kind::Accepted(position) => {
                self.input.accept(position.offset, position.window)
            }
            from_program::Kind::Stopped(_) => {
                // Without a terminal only a stop that was asked for here is ours as well: nobody
                // would know to continue us after another one.
                if self.terminal.is_some() || std::mem::take(&mut self.stop_asked) {
                    self.stop_with_it(sender, signals).await?;
                }
            }
            from_program::Kind::Continued(_) => {}
            from_program::Kind::Ended(ended) => return Ok(Some(ended)),
        }
        Ok(None)
    }

    /// Gives the writer what it does not have yet.
    async fn output(&mut self, piece: Piece) {
        let stream = piece.stream();
        let have = if stream == Stream::Stderr { &mut self.stderr } else { &mut self.stdout };
        let end = piece.offset + piece.bytes.len() as u64;
        let skip = have.saturating_sub(piece.offset).min(piece.bytes.len() as u64) as usize;
        let bytes = piece.bytes.slice(skip..);
        if bytes.is_empty() {
            return;
        }
        *have = end;
        if let Some(write) = &self.write {
            // The writer lives as long as its queue.
            let _ = write.send(Written { stream, end, bytes }).await;
        }
    }

    async fn acknowledge(
        &mut self,
        done: Result<Written, (Stream, ErrorKind)>,
        sender: &mut StreamSender,
    ) -> Result<(), Break> {
        match done {
            Ok(Written { stream, end, .. }) => {
                self.done[usize::from(stream == Stream::Stderr)] = end;
                send(sender, received(stream, end)).await
            }
            // Nobody reads our output any more; the program shall learn it as it would here.
            Err((stream, ErrorKind::BrokenPipe)) => {
                self.closed.push(stream);
                send(sender, to_program::Kind::Close(stream.into())).await
            }
            Err((_, kind)) => Err(Break::Fatal(Failure::new(format!(
                "cannot write the program's output: {kind}"
            )))),
        }
    }

    async fn hand_on(&mut self, got: Got, sender: &mut StreamSender) -> Result<(), Break> {
        match got {
            Got::Signal(signal) => send(sender, to_program::Kind::Signal(signal.as_raw())).await,
            Got::Resized => match &self.terminal {
                Some(terminal) => send(sender, to_program::Kind::Resize(terminal.size())).await,
                None => Ok(()),
            },
            Got::StopKey => {
                self.stop_asked = true;
                // Not TSTP, which does nothing to it: the shell that would continue it is not in its
                // session.
                send(sender, to_program::Kind::Signal(Signal::STOP.as_raw())).await
            }
        }
    }

    /// The program is stopped: the shell that started us gets its terminal back until it continues
    /// us.
    async fn stop_with_it(
        &mut self,
        sender: &mut StreamSender,
        signals: &mut Signals,
    ) -> Result<(), Break> {
        if let Some(terminal) = &mut self.terminal {
            terminal.restore();
            // As the key would have done here: all that the shell runs as one job.
            // One that came before is none of what is waited for.
            let _ = tokio::time::timeout(Duration::ZERO, signals.continued.recv()).await;
            let _ = kill_current_process_group(Signal::TSTP);
            let _ = tokio::time::timeout(STOP_TIME_MAX, signals.continued.recv()).await;
        } else {
            // The others of the job got the key themselves. Returns when somebody continued us.
            let _ = kill_process(getpid(), Signal::STOP);
        }
        if let Some(terminal) = &mut self.terminal {
            terminal.make_raw().map_err(|error| Break::Retry(error.to_string()))?;
            send(sender, to_program::Kind::Resize(terminal.size())).await?;
        }
        send(sender, to_program::Kind::Signal(Signal::CONT.as_raw())).await
    }

    /// Waits until all output is written.
    async fn finish(mut self, ended: Ended) -> Result<Ended> {
        self.write = None;
        while let Some(done) = self.written.recv().await {
            if matches!(done, Err((_, kind)) if kind != ErrorKind::BrokenPipe) {
                return Err(Failure::new("cannot write the program's output"));
            }
        }
        Ok(ended)
    }
}

async fn broken<F: Future<Output = Result<unum_proto::process::AttachReply, RpcError>> + Unpin>(
    reply: F,
) -> Break {
    match reply.await {
        Ok(_) => Break::Retry("the stream ended early".into()),
        Err(error) => error.into(),
    }
}

fn received(stream: Stream, offset: u64) -> to_program::Kind {
    to_program::Kind::Received(Position { stream: stream.into(), offset, window: 0 })
}

async fn send(sender: &mut StreamSender, kind: to_program::Kind) -> Result<(), Break> {
    let message = ToProgram { kind: Some(kind) };
    let size = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(size + 4);
    bytes.put_u32(u32::try_from(size).unwrap_or(u32::MAX));
    // The buffer grows as needed, so encoding cannot fail.
    let _ = message.encode(&mut bytes);
    sender.send(bytes.freeze()).await.map_err(Break::from)
}

/// Standard input between having been read here and having been taken over there.
#[derive(Default)]
struct Input {
    pending: VecDeque<Piece>,
    /// The first of `pending` that was not sent on this attachment.
    unsent: usize,
    /// Where the next byte that is read belongs.
    end: u64,
    /// There is room for it up to here; what is sent beyond is dropped.
    window: u64,
    size: usize,
    closed: bool,
}

impl Input {
    fn has_room(&self) -> bool {
        !self.closed && self.size < INPUT_PENDING_MAX
    }

    /// Empty bytes are the end.
    fn push(&mut self, bytes: Bytes) {
        let (offset, end) = (self.end, bytes.is_empty());
        self.end += bytes.len() as u64;
        self.size += bytes.len();
        self.closed |= end;
        self.pending.push_back(Piece { stream: Stream::Stdin.into(), offset, bytes, end });
    }

    fn next(&mut self) -> Option<Piece> {
        let piece = self.pending.get(self.unsent)?;
        if piece.offset + piece.bytes.len() as u64 > self.window {
            return None;
        }
        self.unsent += 1;
        Some(piece.clone())
    }

    /// A new attachment: nothing was sent on it, and how much room there is will be told.
    fn rewind(&mut self) {
        self.unsent = 0;
        self.window = 0;
    }

    /// The end itself stays pending: only the bytes before it are confirmed, and telling it again
    /// after a break does no harm.
    fn accept(&mut self, offset: u64, window: u64) {
        self.window = window;
        while let Some(first) = self.pending.front() {
            let len = first.bytes.len();
            if first.end || first.offset + len as u64 > offset {
                return;
            }
            self.size -= len;
            self.pending.pop_front();
            self.unsent = self.unsent.saturating_sub(1);
        }
    }
}

/// The messages of one attachment.
struct Incoming {
    stream: StreamReceiver,
    bytes: BytesMut,
}

impl Incoming {
    fn new(stream: StreamReceiver) -> Self {
        Self { stream, bytes: BytesMut::new() }
    }

    /// The next message, once the writer has room for output. Cancel safe.
    async fn next(
        &mut self,
        write: Option<&mpsc::Sender<Written>>,
    ) -> Result<Option<from_program::Kind>, Break> {
        if let Some(write) = write {
            let _ = write.reserve().await;
        }
        loop {
            if let Some(message) = self.parse()? {
                return Ok(Some(message));
            }
            match self.stream.recv().await? {
                Some(bytes) => self.bytes.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    fn parse(&mut self) -> Result<Option<from_program::Kind>, Break> {
        let garbled = || Break::Fatal(Failure::new("the daemon sent something unintelligible"));
        loop {
            let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
            let size = u32::from_be_bytes(*head) as usize;
            if size > MESSAGE_SIZE_MAX {
                return Err(garbled());
            }
            if self.bytes.len() < 4 + size {
                return Ok(None);
            }
            self.bytes.advance(4);
            let message = FromProgram::decode(self.bytes.split_to(size).freeze());
            // A kind that this version does not know is skipped.
            if let Some(kind) = message.map_err(|_| garbled())?.kind {
                return Ok(Some(kind));
            }
        }
    }
}

enum Got {
    Signal(Signal),
    Resized,
    /// Ctrl-Z where the program has no terminal of its own.
    StopKey,
}

struct Signals {
    forwarded: [SignalStream; FORWARDED.len()],
    /// Only where the program has no terminal: otherwise the key is a byte of its input, and the
    /// signal keeps its meaning for this process.
    stop: Option<SignalStream>,
    continued: SignalStream,
    resized: SignalStream,
}

impl Signals {
    fn new(terminal: bool) -> std::io::Result<Self> {
        let watch = |s: Signal| signal(SignalKind::from_raw(s.as_raw()));
        let [a, b, c, d, e, f] = FORWARDED.map(watch);
        Ok(Self {
            forwarded: [a?, b?, c?, d?, e?, f?],
            stop: if terminal { None } else { Some(watch(Signal::TSTP)?) },
            continued: watch(Signal::CONT)?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Got {
        let forwarded = &mut self.forwarded;
        let any = std::future::poll_fn(|context| {
            for (stream, signal) in forwarded.iter_mut().zip(FORWARDED) {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(signal);
                }
            }
            std::task::Poll::Pending
        });
        let stop = async {
            match &mut self.stop {
                Some(stop) => stop.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = any => Got::Signal(signal),
            _ = stop => Got::StopKey,
            _ = self.resized.recv() => Got::Resized,
        }
    }
}

fn read_input(sender: &mpsc::Sender<Bytes>) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; INPUT_PIECE_SIZE];
    loop {
        let read = match stdin.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // An input that cannot be read is at its end.
            Err(_) => 0,
        };
        let bytes = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
        if sender.blocking_send(bytes).is_err() || read == 0 {
            return;
        }
    }
}

fn write_output(
    mut pieces: mpsc::Receiver<Written>,
    done: &mpsc::Sender<Result<Written, (Stream, ErrorKind)>>,
) {
    let mut broken: Vec<Stream> = Vec::new();
    while let Some(piece) = pieces.blocking_recv() {
        // After a stream's first failure its rest is dropped: the program is being told.
        let result = if broken.contains(&piece.stream) { Ok(()) } else { write_piece(&piece) };
        if result.is_err() {
            broken.push(piece.stream);
        }
        let told = result.map_err(|error| (piece.stream, error.kind())).map(|()| piece);
        if done.blocking_send(told).is_err() {
            return;
        }
    }
}

fn write_piece(piece: &Written) -> std::io::Result<()> {
    // Past the buffers of the standard library: they know nothing of what was acknowledged.
    let mut rest: &[u8] = &piece.bytes;
    while !rest.is_empty() {
        let written = match piece.stream {
            Stream::Stderr => std::io::stderr().lock().write(rest),
            Stream::Stdout | Stream::Stdin | Stream::Unspecified => {
                rustix::io::write(std::io::stdout(), rest).map_err(std::io::Error::from)
            }
        };
        match written {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(input: &mut Input) -> Vec<(u64, usize, bool)> {
        std::iter::from_fn(|| input.next()).map(|p| (p.offset, p.bytes.len(), p.end)).collect()
    }

    #[test]
    fn input_is_kept_until_it_is_taken_over() {
        let mut input = Input::default();
        input.accept(0, 100);
        input.push(Bytes::from_static(b"abc"));
        input.push(Bytes::from_static(b"de"));
        assert_eq!(offsets(&mut input), [(0, 3, false), (3, 2, false)]);
        input.accept(3, 100);
        input.push(Bytes::new());
        assert_eq!(offsets(&mut input), [(5, 0, true)]);
        // The daemon died: what was not taken over is told again, the end included.
        input.rewind();
        assert_eq!(offsets(&mut input), []);
        input.accept(3, 4);
        assert_eq!(offsets(&mut input), []);
        input.accept(3, 5);
        assert_eq!(offsets(&mut input), [(3, 2, false), (5, 0, true)]);
        input.rewind();
        input.accept(u64::MAX, u64::MAX);
        assert_eq!(offsets(&mut input), [(5, 0, true)]);
        assert!(!input.has_room());
    }

    #[test]
    fn input_has_a_limit() {
        let mut input = Input::default();
        while input.has_room() {
            input.push(Bytes::from(vec![0; INPUT_PIECE_SIZE]));
        }
        assert!(input.size < INPUT_PENDING_MAX + INPUT_PIECE_SIZE);
        input.accept(INPUT_PIECE_SIZE as u64, u64::MAX);
        assert!(input.has_room());
    }
}
