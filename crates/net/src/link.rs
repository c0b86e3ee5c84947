//! One dialled connection: calls out, replies in.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rustls::AlertDescription;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use unum_core::time::next_beat;
use unum_proto::rpc::{CallHeader, CastHeader, Hello, PingHeader, ReplyHeader, RequestHeader};

use crate::{
    Class, RpcError, Settings, StreamReceiver, StreamSender, TurnedAway,
    directory::Name,
    frame::{Frame, FrameError, Kind},
    limits::{CALLS_IN_FLIGHT_MAX, PROTOCOL_VERSION},
    reader::{FrameReader, Input},
    stream::StreamCore,
    tasks::Tasks,
    writer::{Body, EncodeBody, Flush, Output, Writer},
};

/// From so many calls under way on, a request waits for others to leave with it.
const CROWD: usize = 3;
/// Looks at a connection with calls under way in the time after which a silent peer is dead.
const LOOKS: u32 = 5;

/// Why a call got no reply from a connection.
#[derive(Clone, Debug)]
pub(crate) enum LinkError {
    Broken { why: Arc<str> },
    Overloaded,
}

type Outcome = Result<(ReplyHeader, Bytes), LinkError>;

struct Pending {
    reply: oneshot::Sender<Outcome>,
    stream: Option<Arc<StreamCore>>,
}

#[derive(Default)]
struct Calls {
    pending: HashMap<u64, Pending>,
    last: u64,
    broken: Option<Arc<str>>,
}

pub(crate) struct Link {
    writer: Arc<Writer>,
    calls: Mutex<Calls>,
    to: Name,
    class: Class,
    /// The run of the daemon at the other end.
    pub(crate) run: u64,
    /// When the certificates that it was made with end.
    expires: Option<Instant>,
    /// No new calls: it ends with the last of its pending ones.
    retired: AtomicBool,
    /// Counts what was read.
    heard: AtomicU64,
    /// The monitor sleeps long, until woken.
    dozing: AtomicBool,
    wake: Notify,
}

impl Link {
    /// Says hello and waits for the answer; then the connection is ready. The caller limits the time.
    pub(crate) async fn establish(
        input: Input,
        output: Output,
        class: Class,
        to: Name,
        run: u64,
        expires: Option<Instant>,
    ) -> Result<(Arc<Self>, FrameReader), NoLink> {
        let writer = Arc::new(Writer::new(output));
        let hello = Hello { version: PROTOCOL_VERSION, class: class.to_wire(), run };
        let _ = writer.send(Kind::Hello, &hello, Body::None, Flush::Now);
        let mut frames = FrameReader::new(input);
        let frame = loop {
            if let Some(frame) = frames.next_arrived().map_err(|e| e.to_string())? {
                break frame;
            }
            if !frames.fill().await.map_err(|error| NoLink::from_io(&error))? {
                return Err("it closed the connection before its hello".into());
            }
        };
        let Frame::Hello(hello) = frame else {
            return Err("it does not begin with a hello".into());
        };
        if hello.version != PROTOCOL_VERSION {
            let version = hello.version;
            let why = format!("it speaks protocol {version}, this daemon {PROTOCOL_VERSION}");
            return Err(why.into());
        }
        let link = Link {
            writer,
            calls: Mutex::default(),
            to,
            class,
            run: hello.run,
            expires,
            retired: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            dozing: AtomicBool::new(false),
            wake: Notify::new(),
        };
        Ok((Arc::new(link), frames))
    }

    pub(crate) fn start(self: &Arc<Self>, frames: FrameReader, tasks: &Tasks, settings: &Settings) {
        let writer = self.writer.clone();
        tasks.spawn(async move { writer.run().await });
        tasks.spawn(self.clone().read(frames));
        tasks.spawn(self.clone().watch_over(settings.clone()));
    }

    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        !self.retired.load(Ordering::Acquire)
            && !self.writer.is_closed()
            && self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether anything came from the peer after its hello.
    pub(crate) fn was_useful(&self) -> bool {
        self.heard.load(Ordering::Relaxed) > 0
    }

    /// Takes no new calls, and ends with the last pending one.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.close_if_done();
    }

    /// Sends a request; `header.call` is set here.
    pub(crate) async fn call(
        self: &Arc<Self>,
        mut header: RequestHeader,
        body: &dyn EncodeBody,
    ) -> Result<PendingCall, LinkError> {
        if self.writer.is_full() {
            self.writer.wait_for_room().await;
        }
        let (pending, _) = self.begin(&mut header, None)?;
        self.send(&header, body, &pending);
        Ok(pending)
    }

    /// Sends a request with streams.
    pub(crate) async fn open(
        self: &Arc<Self>,
        mut header: RequestHeader,
        body: &dyn EncodeBody,
    ) -> Result<(PendingCall, StreamSender, StreamReceiver), LinkError> {
        self.writer.wait_for_room().await;
        header.streams = true;
        let (pending, streams) = self.begin(&mut header, Some(self.class))?;
        let Some((sender, receiver)) = streams else { return Err(self.broken()) };
        self.send(&header, body, &pending);
        Ok((pending, sender, receiver))
    }

    pub(crate) async fn cast(&self, header: CastHeader, body: &dyn EncodeBody) -> bool {
        self.writer.wait_for_room().await;
        self.writer.send(Kind::Cast, &header, Body::Message(body), Flush::Now).is_ok()
    }

    #[allow(clippy::type_complexity)]
    fn begin(
        self: &Arc<Self>,
        header: &mut RequestHeader,
        streams: Option<Class>,
    ) -> Result<(PendingCall, Option<(StreamSender, StreamReceiver)>), LinkError> {
        let (reply, outcome) = oneshot::channel();
        let mut calls = self.lock();
        if let Some(why) = &calls.broken {
            return Err(LinkError::Broken { why: why.clone() });
        }
        if calls.pending.len() >= CALLS_IN_FLIGHT_MAX {
            return Err(LinkError::Overloaded);
        }
        calls.last += 1;
        header.call = calls.last;
        let opened = streams.map(|class| StreamCore::open(class, header.call, &self.writer));
        let (stream, halves) = match opened {
            Some((core, sender, receiver)) => (Some(core), Some((sender, receiver))),
            None => (None, None),
        };
        calls.pending.insert(header.call, Pending { reply, stream });
        let crowd = calls.pending.len();
        drop(calls);
        if self.dozing.load(Ordering::Relaxed) && self.dozing.swap(false, Ordering::Relaxed) {
            self.wake.notify_one();
        }
        Ok((PendingCall { link: self.clone(), call: header.call, outcome, crowd }, halves))
    }

    fn send(&self, header: &RequestHeader, body: &dyn EncodeBody, pending: &PendingCall) {
        let flush = if pending.crowd >= CROWD { Flush::Soon } else { Flush::Now };
        // If it is closed, the reader's end tells the pending call.
        let _ = self.writer.send(Kind::Request, header, Body::Message(body), flush);
    }

    async fn read(self: Arc<Self>, mut frames: FrameReader) {
        let mut ending = self.writer.ending();
        let why: String = loop {
            match self.take_all(&mut frames) {
                Ok(()) => self.writer.flush_now(),
                Err(error) => {
                    tracing::warn!("closing the {} connection to {}: {error}", self.class, self.to);
                    break error.to_string();
                }
            }
            let filled = tokio::select! {
                biased;
                filled = frames.fill() => filled,
                _ = ending.wait_for(|ending| *ending) => break "the connection was closed".into(),
            };
            match filled {
                Ok(true) => {
                    self.heard.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => break "the other side closed the connection".into(),
                Err(error) => break describe(&error),
            }
        };
        self.break_off(&why);
    }

    fn take_all(&self, frames: &mut FrameReader) -> Result<(), FrameError> {
        while let Some(frame) = frames.next_arrived()? {
            self.take(frame)?;
        }
        Ok(())
    }

    fn take(&self, frame: Frame) -> Result<(), FrameError> {
        match frame {
            Frame::Reply(header, body) => self.reply(header, body),
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
            Frame::Pong(_) => {}
            Frame::GoAway(reason) => {
                tracing::debug!("{} takes no more calls on this connection: {reason}", self.to);
                self.retire();
            }
            Frame::Hello(_) => return Err(FrameError::OutOfPlace("second hello")),
            Frame::Request(..) => return Err(FrameError::OutOfPlace("request")),
            Frame::Cancel(_) => return Err(FrameError::OutOfPlace("cancel")),
            Frame::Cast(..) => return Err(FrameError::OutOfPlace("cast")),
        }
        Ok(())
    }

    fn reply(&self, header: ReplyHeader, body: Bytes) {
        // None: its caller gave up.
        let Some(pending) = self.remove(header.call) else { return };
        if let Some(stream) = &pending.stream {
            let failed = header.code != 0;
            stream.end(failed.then(|| crate::client::status(&header, Bytes::new()).into()));
        }
        let _ = pending.reply.send(Ok((header, body)));
        self.close_if_done();
    }

    fn stream(&self, call: u64) -> Option<Arc<StreamCore>> {
        self.lock().pending.get(&call)?.stream.clone()
    }

    fn remove(&self, call: u64) -> Option<Pending> {
        self.lock().pending.remove(&call)
    }

    fn close_if_done(&self) {
        if self.retired.load(Ordering::Acquire) && self.lock().pending.is_empty() {
            self.writer.close();
        }
    }

    fn break_off(&self, why: &str) {
        let why: Arc<str> = why.into();
        let mut calls = self.lock();
        calls.broken = Some(why.clone());
        let pending = std::mem::take(&mut calls.pending);
        drop(calls);
        self.writer.end();
        for (_, pending) in pending {
            if let Some(stream) = pending.stream {
                let (to, why) = (self.to.clone(), why.to_string());
                stream.end(Some(RpcError::OutcomeUnknown { to, why }));
            }
            let _ = pending.reply.send(Err(LinkError::Broken { why: why.clone() }));
        }
    }

    fn broken(&self) -> LinkError {
        let why = self.lock().broken.clone().unwrap_or_else(|| "the connection was closed".into());
        LinkError::Broken { why }
    }

    /// Pings, and ends a connection whose peer went silent.
    async fn watch_over(self: Arc<Self>, settings: Settings) {
        let mut ending = self.writer.ending();
        let dead = match self.class {
            Class::Control => settings.dead_peer,
            Class::Bulk => settings.dead_peer_bulk,
        };
        let watching = async {
            loop {
                self.watch_calls(dead, settings.grid).await?;
                self.doze(settings.idle_ping, dead).await?;
            }
        };
        tokio::select! {
            silent = watching => {
                let Err(Silent(time)): Result<std::convert::Infallible, Silent> = silent;
                tracing::warn!("{} is silent for {time:?}; closing the {} connection", self.to, self.class);
                self.break_off(&format!("nothing heard for {time:?}"));
            }
            _ = ending.wait_for(|ending| *ending) => {}
        }
    }

    /// Looks often while calls are pending, and a while after.
    async fn watch_calls(&self, dead: Duration, grid: Instant) -> Result<(), Silent> {
        let tick = (dead / LOOKS).max(Duration::from_millis(1));
        let mut heard = self.heard.load(Ordering::Relaxed);
        let mut last_call = self.lock().last;
        let mut silent = Duration::ZERO;
        let mut quiet_ticks = 0;
        while quiet_ticks < LOOKS {
            let before = Instant::now();
            tokio::time::sleep_until(grid + next_beat(grid.elapsed(), tick)).await;
            let (pending, newest) = self.activity();
            let quiet = !pending && newest == last_call;
            quiet_ticks = if quiet { quiet_ticks + 1 } else { 0 };
            last_call = newest;
            let now = self.heard.load(Ordering::Relaxed);
            // A look that comes late says that this machine stood still, not that the peer did.
            let passed = before.elapsed();
            let late = passed > tick * 3;
            silent =
                if now != heard || !pending || late { Duration::ZERO } else { silent + passed };
            heard = now;
            if silent >= dead {
                return Err(Silent(silent));
            }
            if !silent.is_zero() {
                self.ping();
            }
        }
        Ok(())
    }

    /// Nothing to do: one ping now and then, until there is a call.
    async fn doze(&self, idle_ping: Duration, dead: Duration) -> Result<(), Silent> {
        self.dozing.store(true, Ordering::Relaxed);
        if self.activity().0 {
            self.dozing.store(false, Ordering::Relaxed);
            return Ok(());
        }
        loop {
            if tokio::time::timeout(idle_ping, self.wake.notified()).await.is_ok() {
                return Ok(());
            }
            let heard = self.heard.load(Ordering::Relaxed);
            self.ping();
            if tokio::time::timeout(dead * 2, self.wake.notified()).await.is_ok() {
                return Ok(());
            }
            if heard == self.heard.load(Ordering::Relaxed) {
                return Err(Silent(dead * 2));
            }
        }
    }

    fn activity(&self) -> (bool, u64) {
        let calls = self.lock();
        (!calls.pending.is_empty(), calls.last)
    }

    fn ping(&self) {
        let header = PingHeader { nonce: self.heard.load(Ordering::Relaxed) };
        let _ = self.writer.send(Kind::Ping, &header, Body::None, Flush::Now);
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Silent(Duration);

/// A call under way. Dropping it cancels the call at the far side.
pub(crate) struct PendingCall {
    link: Arc<Link>,
    call: u64,
    pub(crate) outcome: oneshot::Receiver<Outcome>,
    crowd: usize,
}

impl PendingCall {
    pub(crate) async fn outcome(&mut self) -> Outcome {
        match (&mut self.outcome).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.link.broken()),
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        let Some(pending) = self.link.remove(self.call) else { return };
        if let Some(stream) = pending.stream {
            stream.end(Some(RpcError::Cancelled));
        }
        let header = CallHeader { call: self.call };
        let _ = self.link.writer.send(Kind::Cancel, &header, Body::None, Flush::Now);
        self.link.close_if_done();
    }
}

/// Why a connection was not made.
#[derive(Debug)]
pub(crate) struct NoLink {
    pub(crate) why: String,
    /// Set when a member of the cluster does not take this node for one.
    pub(crate) turned_away: Option<TurnedAway>,
}

impl<S: Into<String>> From<S> for NoLink {
    fn from(why: S) -> Self {
        Self { why: why.into(), turned_away: None }
    }
}

impl NoLink {
    /// An alert can be trusted: it comes from a peer whose own certificate was good.
    pub(crate) fn from_io(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let turned_away = match inner {
            Some(rustls::Error::AlertReceived(AlertDescription::CertificateRevoked)) => {
                Some(TurnedAway::Removed)
            }
            Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => {
                Some(TurnedAway::Expired)
            }
            _ => None,
        };
        Self { why: describe(error), turned_away }
    }
}

/// An I/O error with its cause, which for TLS says what the peer disliked.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            format!("its certificate was refused: {}", other.0)
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked)) => {
            "its certificate was refused: it was removed from the cluster".into()
        }
        Some(rustls::Error::InvalidCertificate(why)) => {
            format!("its certificate was refused: {why}")
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("it refused this node in the TLS handshake: {alert:?}")
        }
        Some(tls) => format!("no TLS with it: {tls}"),
        None => error.to_string(),
    }
}
