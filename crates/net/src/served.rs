//! One accepted connection: its requests, from arrival to reply.
//!
//! The reader polls each answer once itself; most are ready then, and leave with all others of the
//! same batch in one write. An answer that waits goes on in a task of its own, ended by its
//! deadline, a cancellation, or (unless its execution must not be repeated) the connection's end.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::poll_fn,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};
use unum_proto::{
    ids::NodeId,
    rpc::{CastHeader, GoAwayHeader, Hello, PingHeader, ReplyHeader, RequestHeader},
};

use crate::{
    Caller, Class, Code, IdentityStore, Incoming, Router, Settings, Status, TraceContext,
    frame::{Frame, FrameError, Kind},
    limits::{
        CALLS_IN_FLIGHT_MAX, FRAME_HEADER_SIZE_MAX, LANES_PER_PEER_MAX, MESSAGE_SIZE_MAX,
        PROTOCOL_VERSION, REPLIES_KEPT_MAX, REPLY_BYTES_KEPT_MAX, REQUEST_BYTES_IN_FLIGHT_MAX,
        STATUS_MESSAGE_SIZE_MAX,
    },
    reader::{FrameReader, Input},
    replies::{Begin, Limits, Replies},
    router::{Act, Answer, Route},
    stream::StreamCore,
    tasks::Tasks,
    writer::{Body, Flush, Output, Writer},
};

/// From so many running calls on, a reply waits for others to leave with it.
const CROWD: usize = 3;

type Outcome = Result<Bytes, Status>;
type PeerReplies = Arc<Mutex<Replies<Outcome, Waiter>>>;

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) router: Arc<Router>,
    pub(crate) identity: Option<Arc<IdentityStore>>,
    pub(crate) settings: Settings,
    pub(crate) tasks: Tasks,
    /// Random: tells this run of the daemon from others.
    run: u64,
    /// By peer; peers are the cluster's nodes, so their number is bounded.
    replies: Mutex<HashMap<NodeId, PeerReplies>>,
}

impl Shared {
    pub(crate) fn new(
        router: Arc<Router>,
        identity: Option<Arc<IdentityStore>>,
        settings: Settings,
    ) -> Self {
        Shared {
            router,
            identity,
            settings,
            tasks: Tasks::new(),
            run: rand::random(),
            replies: Mutex::default(),
        }
    }

    fn replies_of(&self, node: NodeId) -> PeerReplies {
        let limits = Limits {
            replies_max: REPLIES_KEPT_MAX,
            bytes_max: REPLY_BYTES_KEPT_MAX,
            lanes_max: LANES_PER_PEER_MAX,
        };
        let fresh = || Arc::new(Mutex::new(Replies::new(limits)));
        lock(&self.replies).entry(node).or_insert_with(fresh).clone()
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Node {
        node: NodeId,
        expires: SystemTime,
    },
    /// A program of this machine, as the kernel describes it.
    Local(Caller),
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Node { node, .. } => node.fmt(f),
            Peer::Local(caller) => write!(f, "a local program of uid {}", caller.uid),
        }
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it speaks protocol {0}, this daemon {PROTOCOL_VERSION}")]
    Version(u32),
    #[error("it was removed from the cluster")]
    Removed,
    #[error("it closed the connection")]
    Closed,
}

struct Running {
    cancel: watch::Sender<bool>,
    stream: Option<Arc<StreamCore>>,
    /// Repetitions may come over another connection: it outlives this one.
    outlives: bool,
    size: usize,
}

#[derive(Default)]
struct Calls {
    running: HashMap<u64, Running>,
    bytes: usize,
}

struct Served {
    shared: Arc<Shared>,
    writer: Arc<Writer>,
    peer: Peer,
    class: Class,
    replies: Option<PeerReplies>,
    calls: Mutex<Calls>,
    /// The peer's certificate and its grace are over: what runs goes on, nothing begins.
    expired: AtomicBool,
}

/// Where a reply goes.
struct Waiter {
    served: Arc<Served>,
    call: u64,
}

/// How a request is known to `Replies`.
#[derive(Clone, Copy)]
struct Identity {
    lane: u64,
    seq: u64,
}

/// A connection through its hello, ready to be served.
pub(crate) struct Greeted {
    frames: FrameReader,
    writer: Arc<Writer>,
    class: Class,
}

/// Exchanges hellos. The caller limits its time.
pub(crate) async fn greet(shared: &Shared, input: Input, output: Output) -> Result<Greeted, End> {
    let mut frames = FrameReader::new(input);
    let writer = Arc::new(Writer::new(output));
    let hello = loop {
        if let Some(frame) = frames.next_arrived()? {
            break frame;
        }
        if !frames.fill().await? {
            return Err(End::Closed);
        }
    };
    let Frame::Hello(hello) = hello else { return Err(FrameError::OutOfPlace("first").into()) };
    let class = Class::from_wire(hello.class).ok_or(FrameError::Field(Kind::Hello))?;
    let answer = Hello { version: PROTOCOL_VERSION, class: hello.class, run: shared.run };
    // A peer of another version learns ours before it is refused.
    let _ = writer.send(Kind::Hello, &answer, Body::None, Flush::Now);
    if hello.version != PROTOCOL_VERSION {
        return Err(End::Version(hello.version));
    }
    Ok(Greeted { frames, writer, class })
}

/// Serves until the connection ends.
pub(crate) async fn serve(shared: Arc<Shared>, greeted: Greeted, peer: Peer) {
    let Greeted { frames, writer, class } = greeted;
    let replies = match &peer {
        Peer::Node { node, .. } => Some(shared.replies_of(*node)),
        Peer::Local(_) => None,
    };
    let served = Arc::new(Served {
        shared,
        writer,
        peer,
        class,
        replies,
        calls: Mutex::default(),
        expired: AtomicBool::new(false),
    });
    let heard = Arc::new(AtomicU64::new(0));
    let writing = served.writer.clone();
    served.shared.tasks.spawn(async move { writing.run().await });
    served.shared.tasks.spawn(watch_over(served.clone(), heard.clone()));
    let end = served.read(frames, &heard).await;
    match end {
        Err(End::Closed) | Ok(()) => {}
        // Such a program was killed, or ended before it had read all.
        Err(End::Io(why)) if matches!(served.peer, Peer::Local(_)) => {
            tracing::debug!("the {class} connection of {} ended: {why}", served.peer);
        }
        Err(why) => tracing::warn!("closing the {class} connection of {}: {why}", served.peer),
    }
    served.writer.end();
    served.abandon_calls();
}

/// Ends a connection that went silent, or whose certificate is too old or refused by now.
async fn watch_over(served: Arc<Served>, heard: Arc<AtomicU64>) {
    let settings = &served.shared.settings;
    let mut ending = served.writer.ending();
    let expiry = match &served.peer {
        Peer::Node { expires, .. } => Some(*expires + settings.certificate_grace),
        Peer::Local(_) => None,
    };
    let mut last = heard.load(Ordering::Relaxed);
    let mut silent = Duration::ZERO;
    let mut drain_until = None;
    loop {
        let left = expiry.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let nap = match (left, drain_until) {
            (_, Some(until)) => settings.idle_ping.min(until - Instant::now().min(until)),
            (Some(left), None) => left.min(settings.idle_ping),
            (None, None) => settings.idle_ping,
        };
        tokio::select! {
            _ = ending.wait_for(|ending| *ending) => return,
            () = tokio::time::sleep(nap) => {}
        }
        if served.is_refused() {
            tracing::info!("{} was removed; its connection ends", served.peer);
            return served.writer.end();
        }
        if drain_until.is_some_and(|until| until <= Instant::now()) {
            tracing::info!("{}'s certificate ended; so does its connection", served.peer);
            return served.writer.end();
        }
        if drain_until.is_none() && left.is_some_and(|left| left <= nap) {
            drain_until = Some(Instant::now() + settings.drain);
            served.expired.store(true, Ordering::Release);
            let header = GoAwayHeader { reason: "the certificate has expired".into() };
            let _ = served.writer.send(Kind::GoAway, &header, Body::None, Flush::Now);
            continue;
        }
        let now = heard.load(Ordering::Relaxed);
        silent = if now == last { silent + nap } else { Duration::ZERO };
        last = now;
        // Programs on the local socket do not vanish without the kernel saying so.
        if expiry.is_some() && silent >= settings.idle_ping * 4 {
            tracing::info!("nothing heard of {} for {silent:?}; closing", served.peer);
            return served.writer.end();
        }
    }
}

impl Served {
    async fn read(self: &Arc<Self>, mut frames: FrameReader, heard: &AtomicU64) -> Result<(), End> {
        let mut ending = self.writer.ending();
        loop {
            while let Some(frame) = frames.next_arrived()? {
                self.take(frame).await?;
                // Small requests may have large replies.
                if self.writer.is_full() {
                    self.writer.flush_now();
                    self.writer.wait_for_room().await;
                }
            }
            self.writer.flush_now();
            self.writer.wait_for_room().await;
            let open = tokio::select! {
                biased;
                filled = frames.fill() => filled?,
                _ = ending.wait_for(|ending| *ending) => return Ok(()),
            };
            if !open {
                return Err(End::Closed);
            }
            heard.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn take(self: &Arc<Self>, frame: Frame) -> Result<(), End> {
        match frame {
            Frame::Request(header, body) => self.request(header, body).await?,
            Frame::Cast(header, body) => self.cast(header, body)?,
            Frame::Cancel(call) => {
                if let Some(running) = lock(&self.calls).running.get(&call) {
                    running.cancel.send_replace(true);
                }
            }
            Frame::Data(call, bytes) => {
                if let Some(stream) = self.stream(call) {
                    stream.arrived(bytes)?;
                }
            }
            Frame::End(call) => {
                if let Some(stream) = self.stream(call) {
                    stream.finished();
                }
            }
            Frame::Credit(credit) => {
                if let Some(stream) = self.stream(credit.call) {
                    stream.credited(credit.credit)?;
                }
            }
            // Whoever pings and reads nothing gets no answer; others hear what is queued.
            Frame::Ping(_) if self.writer.is_full() => {}
            Frame::Ping(nonce) => {
                let _ =
                    self.writer.send(Kind::Pong, &PingHeader { nonce }, Body::None, Flush::Later);
            }
            Frame::Pong(_) | Frame::GoAway(_) => {}
            Frame::Hello(_) => return Err(FrameError::OutOfPlace("second hello").into()),
            Frame::Reply(..) => return Err(FrameError::OutOfPlace("reply").into()),
        }
        Ok(())
    }

    /// None: the call is over, and what was under way for it is of no use.
    fn stream(&self, call: u64) -> Option<Arc<StreamCore>> {
        lock(&self.calls).running.get(&call)?.stream.clone()
    }

    fn caller(&self, user: Option<unum_proto::rpc::User>) -> Result<Caller, End> {
        match &self.peer {
            Peer::Local(caller) => Ok(caller.clone()),
            Peer::Node { .. } if self.is_refused() => Err(End::Removed),
            Peer::Node { node, .. } => Ok(Caller::from_wire(Some(*node), user)),
        }
    }

    fn is_refused(&self) -> bool {
        match (&self.peer, &self.shared.identity) {
            (Peer::Node { node, .. }, Some(identity)) => identity.is_revoked(*node),
            (Peer::Node { .. }, None) | (Peer::Local(_), _) => false,
        }
    }

    fn cast(&self, header: CastHeader, body: Bytes) -> Result<(), End> {
        let trace = TraceContext::from_wire(&header.trace).unwrap_or_default();
        let caller = self.caller(header.user)?;
        if self.expired.load(Ordering::Acquire) {
            return Ok(());
        }
        let ending = self.writer.ending();
        let incoming = Incoming { caller, deadline: None, trace, cancelled: None, ending };
        let taken = self.shared.router.route(&header.method).and_then(|route| match &route.act {
            Act::Cast(act) => act(incoming, body),
            Act::Call(_) | Act::Stream(_) => Err(wrong_shape(&header.method)),
        });
        if let Err(status) = taken {
            tracing::debug!("dropped a message of {}: {status}", self.peer);
        }
        Ok(())
    }

    async fn request(self: &Arc<Self>, header: RequestHeader, body: Bytes) -> Result<(), End> {
        let caller = self.caller(header.user)?;
        let call = header.call;
        let size = body.len();
        if let Err(status) = self.admit(call, size)? {
            self.reply(call, &Err(status), Flush::Later);
            return Ok(());
        }
        let timeout = (header.timeout_us > 0).then(|| Duration::from_micros(header.timeout_us));
        let (cancel, cancelled) = watch::channel(false);
        let incoming = Incoming {
            caller,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            trace: TraceContext::from_wire(&header.trace).unwrap_or_default(),
            cancelled: Some(cancelled.clone()),
            ending: self.writer.ending(),
        };
        let deadline = incoming.deadline;
        let route = match self.route(&header.method) {
            Ok(route) => route,
            Err(status) => {
                self.reply(call, &Err(status), Flush::Later);
                return Ok(());
            }
        };
        let (started, stream, identity) = match &route.act {
            Act::Call(act) if !header.streams => {
                let wanted = !route.idempotent && header.lane != 0;
                let identity = wanted.then_some(Identity { lane: header.lane, seq: header.seq });
                let identity = identity.filter(|_| self.replies.is_some());
                if let Some(identity) = identity
                    && !self.begin(identity, header.settled, call)
                {
                    return Ok(());
                }
                (act(incoming, body), None, identity)
            }
            Act::Stream(act) if header.streams => {
                let (core, mut sender, receiver) =
                    StreamCore::open(route.class, call, &self.writer);
                if let Peer::Node { .. } = self.peer {
                    sender.depart_through(&self.shared.settings.departures, &header.method);
                }
                (act(incoming, body, sender, receiver), Some(core), None)
            }
            Act::Call(_) | Act::Stream(_) | Act::Cast(_) => {
                (Err(wrong_shape(&header.method)), None, None)
            }
        };
        let mut answer = match started {
            Ok(answer) => self.departing(&header.method, answer),
            Err(status) => {
                self.complete(call, identity, Err(status), Flush::Later);
                return Ok(());
            }
        };
        if stream.is_none()
            && let Poll::Ready(outcome) = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await
        {
            self.complete(call, identity, outcome, Flush::Later);
            return Ok(());
        }
        let running = Running { cancel, stream, outlives: identity.is_some(), size };
        self.insert(call, running);
        let run = self.clone().run(call, answer, identity, deadline, cancelled);
        self.shared.tasks.spawn(run);
        Ok(())
    }

    /// An answer to another node leaves only when it may.
    fn departing(&self, method: &str, answer: Answer) -> Answer {
        let departures = &self.shared.settings.departures;
        if matches!(self.peer, Peer::Local(_)) || !departures.may_hold(method) {
            return answer;
        }
        let (departures, method) = (departures.clone(), method.to_owned());
        Box::pin(async move {
            let outcome = answer.await;
            departures.pass(&method).await;
            outcome
        })
    }

    fn route(&self, method: &str) -> Result<&Route, Status> {
        let route = self.shared.router.route(method)?;
        if route.class == self.class {
            return Ok(route);
        }
        let why = format!("{method} travels on {} connections, not on {}", route.class, self.class);
        Err(Status::new(Code::Invalid, why))
    }

    /// Whether there is room for one more call.
    fn admit(&self, call: u64, size: usize) -> Result<Result<(), Status>, End> {
        let mut calls = lock(&self.calls);
        let count = calls.running.len();
        let bytes = calls.bytes + size;
        if let Entry::Occupied(_) = calls.running.entry(call) {
            return Err(FrameError::CallInUse(call).into());
        }
        if self.expired.load(Ordering::Acquire) {
            let why = "the certificate of this connection has expired; connect anew";
            return Ok(Err(Status::new(Code::Unavailable, why)));
        }
        if count >= CALLS_IN_FLIGHT_MAX {
            let why = format!("{count} calls of this connection are running already");
            return Ok(Err(Status::overloaded(why)));
        }
        if bytes > REQUEST_BYTES_IN_FLIGHT_MAX {
            let why = format!("the running calls of this connection hold {bytes} bytes");
            return Ok(Err(Status::overloaded(why)));
        }
        Ok(Ok(()))
    }

    fn insert(&self, call: u64, running: Running) {
        let mut calls = lock(&self.calls);
        calls.bytes += running.size;
        calls.running.insert(call, running);
    }

    /// True: the request is to be executed. Otherwise its reply comes from elsewhere.
    fn begin(self: &Arc<Self>, identity: Identity, settled: u64, call: u64) -> bool {
        let Some(replies) = &self.replies else { return true };
        let waiter = Waiter { served: self.clone(), call };
        let begin = lock(replies).begin(identity.lane, identity.seq, settled, waiter);
        match begin {
            Begin::Run => return true,
            Begin::Attached => {}
            Begin::Done(outcome) => self.reply(call, &outcome, Flush::Later),
            Begin::Settled => {
                let status = Status::new(Code::Cancelled, "the caller has settled this call");
                self.reply(call, &Err(status), Flush::Later);
            }
            Begin::Forgotten => {
                let why = "the request may have been executed, and its reply is no longer kept";
                self.reply(call, &Err(Status::new(Code::Forgotten, why)), Flush::Later);
            }
        }
        false
    }

    async fn run(
        self: Arc<Self>,
        call: u64,
        answer: Answer,
        identity: Option<Identity>,
        deadline: Option<Instant>,
        mut cancelled: watch::Receiver<bool>,
    ) {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = answer => outcome,
            Ok(_) = cancelled.wait_for(|cancelled| *cancelled) => {
                Err(Status::new(Code::Cancelled, "cancelled by the caller"))
            }
            () = late => Err(Status::new(Code::DeadlineExceeded, "the deadline has passed")),
        };
        self.writer.wait_for_room().await;
        self.complete(call, identity, outcome, Flush::Now);
    }

    fn complete(&self, call: u64, identity: Option<Identity>, outcome: Outcome, flush: Flush) {
        let crowded = self.remove(call) >= CROWD;
        let flush = if flush == Flush::Now && crowded { Flush::Soon } else { flush };
        let (Some(identity), Some(replies)) = (identity, &self.replies) else {
            return self.reply(call, &outcome, flush);
        };
        let size = outcome.as_ref().map_or(0, Bytes::len);
        let Identity { lane, seq } = identity;
        let waiters = lock(replies).finish(lane, seq, outcome.clone(), size);
        for waiter in waiters {
            let here = std::ptr::eq(Arc::as_ptr(&waiter.served), self);
            waiter.served.reply(waiter.call, &outcome, if here { flush } else { Flush::Now });
        }
    }

    /// How many calls go on.
    fn remove(&self, call: u64) -> usize {
        let mut calls = lock(&self.calls);
        if let Some(running) = calls.running.remove(&call) {
            calls.bytes -= running.size;
            if let Some(stream) = running.stream {
                stream.end(None);
            }
        }
        calls.running.len()
    }

    fn reply(&self, call: u64, outcome: &Outcome, flush: Flush) {
        let (header, body) = match outcome {
            Ok(bytes) => {
                let header = ReplyHeader { call, ..Default::default() };
                (header, bytes.clone())
            }
            Err(status) => {
                let mut message = status.message.clone();
                truncate(&mut message, STATUS_MESSAGE_SIZE_MAX);
                let detail = status.detail.slice(..status.detail.len().min(MESSAGE_SIZE_MAX));
                let code = status.code as u32;
                let moved = status.hint.map(Into::into);
                (ReplyHeader { call, code, message, moved }, detail)
            }
        };
        // A caller whose connection is closed asks again over another, or not at all.
        let _ = self.writer.send(Kind::Reply, &header, Body::Raw(body), flush);
    }

    /// The connection is gone: ends what nobody can ask for again.
    fn abandon_calls(&self) {
        let mut calls = lock(&self.calls);
        for running in calls.running.values() {
            if let Some(stream) = &running.stream {
                stream.end(Some(crate::RpcError::Cancelled));
            }
            if !running.outlives {
                running.cancel.send_replace(true);
            }
        }
        calls.running.clear();
        calls.bytes = 0;
    }
}

fn wrong_shape(method: &str) -> Status {
    Status::new(Code::Invalid, format!("{method} was called in the wrong way (call, stream, cast)"))
}

fn truncate(text: &mut String, size: usize) {
    let end = text.floor_char_boundary(size);
    text.truncate(end);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = assert!(MESSAGE_SIZE_MAX + FRAME_HEADER_SIZE_MAX <= crate::limits::FRAME_SIZE_MAX);
