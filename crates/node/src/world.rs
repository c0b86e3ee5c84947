//! unumd's end of the connection to unum-init.
//!
//! One connection carries everything: requests with their replies, the events of attached programs,
//! and descriptors. unum-init outlives this daemon; when the connection ends, the world has ended,
//! and the daemon ends too, to be started again with a new world.
//!
//! Invariants: a subscriber that does not keep up loses its subscription, never an event in the
//! middle; nobody waits longer for a reply than the connection lives.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use unum_proto::ids::Pid;
use unum_proto::init::{
    Answer, Ask, Attach, Attached, Decoder, Failed, Fault, Fetch, FromInit, Happened, HelloAsk,
    Keep, PROTOCOL_VERSION, Release, Request, Said, StatusAsk, encode,
};
use unum_sys::world::{StartError, World as Start, start_world};

/// Frames that may wait to be written; beyond them the callers wait.
const WRITES_MAX: usize = 256;
/// Events of one program that may wait for its subscriber.
const EVENTS_MAX: usize = 8192;
/// Bytes read at a time.
const READ_SIZE: usize = 128 << 10;
/// Descriptors that may wait for the frame that announces them.
const DESCRIPTORS_MAX: usize = 16;

/// Where the world of the daemon with this run directory listens.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("init.sock")
}

/// Why unum-init did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WorldError {
    #[error("{}", .0.message)]
    Refused(Failed),
    #[error("the connection to unum-init has ended: the node's world is gone")]
    Gone,
    #[error("unum-init answered with what was not asked for")]
    Strange,
}

impl WorldError {
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Refused(failed) => Some(failed.fault()),
            Self::Gone | Self::Strange => None,
        }
    }
}

/// Why there is no world.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot connect to unum-init at {path}: {error}")]
    Connect { path: PathBuf, error: io::Error },
    #[error("unum-init at {path} does not understand this daemon: {error}")]
    Hello { path: PathBuf, error: WorldError },
}

/// The node's world. Cheap to clone.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

struct Shared {
    writes: mpsc::Sender<Frame>,
    next: AtomicU64,
    /// Protects the requests that wait for their replies. Never held across an await.
    waiting: Mutex<HashMap<u64, Waiting>>,
    /// Protects the subscribers to the events of programs. Never held across an await.
    subscribers: Mutex<HashMap<u32, Subscriber>>,
    /// unum-init's process, as this daemon sees it.
    init: i32,
    missing: Mutex<Vec<String>>,
    ended: watch::Sender<bool>,
}

type Replied = Result<(Answer, Option<OwnedFd>), WorldError>;

struct Frame {
    bytes: BytesMut,
    descriptor: Option<OwnedFd>,
}

/// A request that waits for its reply.
struct Waiting {
    reply: oneshot::Sender<Replied>,
    /// Takes the program's events from the reply on, if that is no refusal: whoever may not attach
    /// takes nothing from who did.
    subscribes: Option<(u32, Subscriber)>,
}

struct Subscriber {
    events: mpsc::Sender<Happened>,
    ended: Arc<OnceLock<Detachment>>,
}

impl Subscriber {
    fn end(self, why: Detachment) {
        // Nobody else ends it: this one is consumed.
        let _ = self.ended.set(why);
    }
}

/// Why the events of a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detachment {
    /// Somebody else attached.
    Superseded,
    /// They were not taken fast enough; whoever attaches again loses nothing.
    Behind,
    WorldEnded,
}

/// The events of one attached program. Ends when somebody else attaches, or it does not keep up.
pub struct Events {
    pid: Pid,
    events: mpsc::Receiver<Happened>,
    ended: Arc<OnceLock<Detachment>>,
}

impl Events {
    pub async fn next(&mut self) -> Option<Happened> {
        self.events.recv().await
    }

    /// To be asked when `next` gave nothing.
    pub fn why_ended(&self) -> Detachment {
        self.ended.get().copied().unwrap_or(Detachment::WorldEnded)
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }
}

/// Connects to the world that runs, or starts one. The future must be polled for as long as the
/// world is used; it completes when the world has ended.
pub async fn connect(start: Start) -> Result<(World, impl Future<Output = ()>), ConnectError> {
    let path = start.socket.clone();
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(_) => {
            tokio::task::spawn_blocking(move || start_unless_running(&start)).await.map_err(
                |_| ConnectError::Start(StartError::Failed { message: "panic".into() }),
            )??;
            let connected = UnixStream::connect(&path).await;
            connected.map_err(|error| ConnectError::Connect { path: path.clone(), error })?
        }
    };
    greet(stream, path).await
}

fn start_unless_running(start: &Start) -> Result<(), StartError> {
    match start_world(start) {
        Ok(()) | Err(StartError::AlreadyRunning { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn greet(
    stream: UnixStream,
    path: PathBuf,
) -> Result<(World, impl Future<Output = ()>), ConnectError> {
    let connect_error = |error| ConnectError::Connect { path: path.clone(), error };
    let init = stream.peer_cred().map_err(connect_error)?.pid().unwrap_or(0);
    let (writes, queue) = mpsc::channel(WRITES_MAX);
    let shared = Arc::new(Shared {
        writes,
        next: AtomicU64::new(1),
        waiting: Mutex::default(),
        subscribers: Mutex::default(),
        init,
        missing: Mutex::default(),
        ended: watch::Sender::new(false),
    });
    let world = World { shared: shared.clone() };
    let mut driver = Box::pin(drive(stream, queue, shared));
    let hello = world.ask(Ask::Hello(HelloAsk { version: PROTOCOL_VERSION }));
    let greeted = tokio::select! {
        greeted = hello => greeted,
        () = &mut driver => Err(WorldError::Gone),
    };
    match greeted {
        Ok(Answer::Hello(hello)) => *lock(&world.shared.missing) = hello.missing,
        Ok(_) => {
            return Err(ConnectError::Hello { path, error: WorldError::Strange });
        }
        Err(error) => return Err(ConnectError::Hello { path, error }),
    }
    Ok((world, driver))
}

impl World {
    /// Asks and waits for the answer; a refusal is an error.
    pub async fn ask(&self, ask: Ask) -> Result<Answer, WorldError> {
        self.exchange(ask.into(), None, None).await.map(|(answer, _)| answer)
    }

    /// Asks on behalf of a user, who may only have to do with the streams of his own programs.
    pub async fn ask_for(&self, user: u32, ask: Ask) -> Result<Answer, WorldError> {
        self.exchange(on_behalf(user, ask), None, None).await.map(|(answer, _)| answer)
    }

    /// Tells without waiting for an answer, on behalf of a user.
    pub async fn tell_for(&self, user: u32, ask: Ask) -> Result<(), WorldError> {
        self.write(&on_behalf(user, ask), None).await
    }

    /// Turns on the events of a program for a user. Whoever had them has them no longer.
    pub async fn attach(
        &self,
        user: u32,
        attach: Attach,
    ) -> Result<(Attached, Events), WorldError> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let ended = Arc::new(OnceLock::new());
        let subscriber = Subscriber { events: sender, ended: ended.clone() };
        let subscribes = Some((attach.pid, subscriber));
        let request = on_behalf(user, Ask::Attach(attach));
        match self.exchange(request, None, subscribes).await? {
            (Answer::Attached(attached), _) => {
                Ok((attached, Events { pid: Pid(attach.pid), events, ended }))
            }
            _ => Err(WorldError::Strange),
        }
    }

    /// Gives unum-init a note and a FUSE descriptor to hold for the next daemon, with the path of the
    /// list of what the kernel may cache.
    pub async fn keep(
        &self,
        name: &str,
        note: Vec<u8>,
        descriptor: OwnedFd,
        ledger: &Path,
    ) -> Result<(), WorldError> {
        let ledger = Bytes::copy_from_slice(ledger.as_os_str().as_bytes());
        let keep = Keep { name: name.to_owned(), note: note.into(), descriptor: true, ledger };
        self.exchange(Ask::Keep(keep).into(), Some(descriptor), None).await.map(drop)
    }

    /// What an earlier daemon left under the name.
    pub async fn fetch(&self, name: &str) -> Result<Option<(Bytes, OwnedFd)>, WorldError> {
        let fetch = Fetch { name: name.to_owned() };
        match self.exchange(Ask::Fetch(fetch).into(), None, None).await {
            Ok((Answer::Kept(kept), Some(descriptor))) => Ok(Some((kept.note, descriptor))),
            Ok((Answer::Kept(_), None)) => Ok(None),
            Ok(_) => Err(WorldError::Strange),
            Err(error) if error.fault() == Some(Fault::NotKept) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets go of what was kept under the name.
    pub async fn release(&self, name: &str) -> Result<(), WorldError> {
        let release = Release { name: name.to_owned() };
        self.exchange(Ask::Release(release).into(), None, None).await.map(drop)
    }

    /// The names under which something is kept.
    pub async fn kept(&self) -> Result<Vec<String>, WorldError> {
        match self.ask(Ask::Status(StatusAsk {})).await? {
            Answer::Status(status) => Ok(status.kept),
            _ => Err(WorldError::Strange),
        }
    }

    /// What the world's processes see as /proc.
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/proc", self.shared.init))
    }

    /// What this kernel or machine cannot do for the world, a sentence each.
    pub fn missing(&self) -> Vec<String> {
        lock(&self.shared.missing).clone()
    }

    /// Completes when the connection, and with it the world, has ended.
    pub async fn ended(&self) {
        let _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    async fn exchange(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
        subscribes: Option<(u32, Subscriber)>,
    ) -> Replied {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (reply, replied) = oneshot::channel();
        lock(&self.shared.waiting).insert(id, Waiting { reply, subscribes });
        let _forget = Forget { shared: &self.shared, id };
        self.write(&Request { id, ..request }, descriptor).await?;
        match replied.await.map_err(|_| WorldError::Gone)?? {
            (Answer::Failed(failed), _) => Err(WorldError::Refused(failed)),
            replied => Ok(replied),
        }
    }

    async fn write(
        &self,
        request: &Request,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), WorldError> {
        let mut bytes = BytesMut::new();
        encode(request, &mut bytes).map_err(|error| {
            WorldError::Refused(Failed {
                fault: Fault::LimitReached as i32,
                errno: 0,
                message: error.to_string(),
            })
        })?;
        let sent = self.shared.writes.send(Frame { bytes, descriptor }).await;
        sent.map_err(|_| WorldError::Gone)
    }
}

fn on_behalf(user: u32, ask: Ask) -> Request {
    Request { user: Some(user), ..Request::from(ask) }
}

/// Removes a request whose asker has gone.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.shared.waiting).remove(&self.id);
    }
}

async fn drive(stream: UnixStream, queue: mpsc::Receiver<Frame>, shared: Arc<Shared>) {
    let ended = tokio::select! {
        ended = write_frames(&stream, queue) => ended,
        ended = read_frames(&stream, &shared) => ended,
    };
    if let Err(error) = ended {
        tracing::error!(%error, "the connection to unum-init broke");
    }
    lock(&shared.waiting).clear();
    lock(&shared.subscribers).clear();
    shared.ended.send_replace(true);
}

async fn write_frames(stream: &UnixStream, mut queue: mpsc::Receiver<Frame>) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        let mut rest: &[u8] = &frame.bytes;
        let mut descriptor = frame.descriptor;
        while !rest.is_empty() {
            let send = || send_some(stream.as_fd(), rest, descriptor.as_ref());
            match stream.async_io(Interest::WRITABLE, send).await {
                Ok(sent) => {
                    rest = &rest[sent..];
                    descriptor = None;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<&OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(|fd| fd.as_fd()).collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

async fn read_frames(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let receive = || receive_some(stream.as_fd(), &mut buffer, &mut descriptors);
        let received = stream.async_io(Interest::READABLE, receive).await?;
        if received == 0 {
            return Ok(());
        }
        decoder.push(&buffer[..received]);
        while let Some(message) = decoder.take::<FromInit>().map_err(io::Error::other)? {
            deliver(shared, message, &mut descriptors);
        }
    }
}

fn receive_some(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
            descriptors.truncate(DESCRIPTORS_MAX);
        }
    }
    Ok(received.bytes)
}

fn deliver(shared: &Shared, message: FromInit, descriptors: &mut Vec<OwnedFd>) {
    match message.said {
        Some(Said::Reply(reply)) => {
            let announced = matches!(&reply.answer, Some(Answer::Kept(kept)) if kept.descriptor);
            let descriptor = if announced && !descriptors.is_empty() {
                Some(descriptors.remove(0))
            } else {
                None
            };
            if let Some(waiting) = lock(&shared.waiting).remove(&reply.id) {
                if let (Some(Answer::Attached(_)), Some((pid, subscriber))) =
                    (&reply.answer, waiting.subscribes)
                    && let Some(before) = lock(&shared.subscribers).insert(pid, subscriber)
                {
                    before.end(Detachment::Superseded);
                }
                let answer = reply.answer.ok_or(WorldError::Strange);
                let _ = waiting.reply.send(answer.map(|answer| (answer, descriptor)));
            }
        }
        Some(Said::Event(event)) => {
            if let Some(happened) = event.happened {
                publish(shared, happened);
            }
        }
        None => {}
    }
}

fn publish(shared: &Shared, happened: Happened) {
    let pid = match &happened {
        Happened::Output(output) => output.pid,
        Happened::InputState(state) => state.pid,
        Happened::Stopped(stopped) => stopped.pid,
        Happened::Continued(continued) => continued.pid,
        Happened::Exited(exited) => exited.pid,
        Happened::PidsLow(low) => {
            tracing::warn!(used = low.used, total = low.total, "PIDs of this node run low");
            return;
        }
    };
    let mut subscribers = lock(&shared.subscribers);
    if let Some(subscriber) = subscribers.get(&pid)
        && subscriber.events.try_send(happened).is_err()
        && let Some(subscriber) = subscribers.remove(&pid)
    {
        subscriber.end(Detachment::Behind);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use unum_proto::init::{Hello, Output};

    use super::*;

    /// Answers as unum-init does: one user may attach, then another may not.
    async fn init(mut stream: UnixStream) {
        let mut decoder = Decoder::default();
        let mut asked = 0;
        let mut buffer = vec![0; 4096];
        loop {
            let read = stream.read(&mut buffer).await.unwrap();
            if read == 0 {
                return;
            }
            decoder.push(&buffer[..read]);
            while let Some(request) = decoder.take::<Request>().unwrap() {
                asked += 1;
                let hello = Hello { version: PROTOCOL_VERSION, ..Hello::default() };
                let denied = Failed { fault: Fault::NotPermitted as i32, ..Failed::default() };
                let answer = match asked {
                    1 => Answer::Hello(hello),
                    2 => Answer::Attached(Attached::default()),
                    _ => Answer::Failed(denied),
                };
                let mut bytes = BytesMut::new();
                encode(&FromInit::reply(request.id, answer), &mut bytes).unwrap();
                if asked > 2 {
                    let output = Output { pid: 7, ..Output::default() };
                    encode(&FromInit::event(Happened::Output(output)), &mut bytes).unwrap();
                }
                stream.write_all(&bytes).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn whoever_may_not_attach_takes_nothing_from_whoever_is_attached() {
        let (here, there) = UnixStream::pair().unwrap();
        let init = tokio::spawn(init(there));
        let (world, driver) = greet(here, PathBuf::from("test")).await.unwrap();
        let driver = tokio::spawn(driver);
        let attach = Attach { pid: 7, ..Attach::default() };
        let (_, mut events) = world.attach(1000, attach).await.unwrap();
        let denied = world.attach(1001, attach).await.err().and_then(|error| error.fault());
        assert_eq!(denied, Some(Fault::NotPermitted));
        assert!(matches!(events.next().await, Some(Happened::Output(_))));
        driver.abort();
        init.abort();
    }
}
