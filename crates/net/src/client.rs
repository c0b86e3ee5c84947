//! Calls by name: resolving, connecting, repeating safely, following what moved.

use std::{
    collections::HashMap,
    fmt, io,
    marker::PhantomData,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use tokio::time::{Instant, Sleep};
use unum_proto::{
    ids::NodeId,
    rpc::{CastHeader, ReplyHeader, RequestHeader},
};

use crate::{
    CallOptions, Class, Code, Directory, IdentityStore, Method, Name, RpcError, Settings, Status,
    StreamReceiver, StreamSender,
    dial::{Dialler, Way},
    limits::{CALLER_GROUPS_MAX, MESSAGE_SIZE_MAX, MOVED_HOPS_MAX},
    link::{Link, LinkError, PendingCall},
    method::RequestBody,
    peer::{Number, Numbers, Slot},
    tasks::Tasks,
};

/// How often a name that nobody knows is looked up again.
const RESOLVE_INTERVAL: Duration = Duration::from_millis(50);
/// How long a local daemon may be silent.
const LOCAL_PATIENCE: Duration = Duration::from_secs(60);
/// The node number under which the daemon behind a local socket is kept.
const LOCAL: NodeId = NodeId(0);

/// Calls other daemons by name. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    dialler: Arc<Dialler>,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

struct Peer {
    control: Arc<Slot>,
    bulk: Arc<Slot>,
    numbers: Arc<Numbers>,
}

/// A call with streams under way.
#[derive(Debug)]
pub struct Opened<M: Method> {
    /// Dropping it cancels the call.
    pub reply: ReplyFuture<M>,
    pub sender: StreamSender,
    pub receiver: StreamReceiver,
}

/// The reply to come.
pub struct ReplyFuture<M: Method> {
    pending: PendingCall,
    late: Option<Pin<Box<Sleep>>>,
    to: Name,
    method: PhantomData<fn() -> M>,
}

/// What a call has come to know before it failed.
#[derive(Default)]
struct Progress {
    /// The connection, or the name's place, cannot be had.
    unreachable: Option<String>,
    /// Where the request was sent, with the run of the daemon there.
    sent: Option<(NodeId, u64)>,
    number: Option<(NodeId, Number)>,
    hops: u32,
}

impl Client {
    pub fn new(
        identity: Arc<IdentityStore>,
        directory: Arc<Directory>,
        settings: Settings,
    ) -> Self {
        Self::with_way(Way::Nodes { identity, directory }, settings)
    }

    /// The daemon behind a local socket answers to every name.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        // A local daemon does not vanish without the kernel saying so; it may be busy or stopped.
        let patient = Settings {
            dead_peer: LOCAL_PATIENCE,
            dead_peer_bulk: LOCAL_PATIENCE,
            ..Settings::default()
        };
        let client = Self::with_way(Way::Local(path.to_owned()), patient);
        let slot = client.peer(LOCAL).slot(Class::Control);
        match client.link(&slot, LOCAL, Class::Control, true).await {
            Ok(_) => Ok(client),
            Err(why) => {
                client.shutdown().await;
                Err(io::Error::new(io::ErrorKind::NotConnected, why.to_string()))
            }
        }
    }

    fn with_way(way: Way, settings: Settings) -> Self {
        let run = rand::random();
        let dialler = Arc::new(Dialler { way, settings, run, tasks: Tasks::new() });
        Client { inner: Arc::new(Inner { dialler, peers: Mutex::default() }) }
    }

    /// Calls, and repeats the request over a new connection when one breaks: at most one execution
    /// unless the method is idempotent.
    pub async fn call<M: Method>(
        &self,
        to: &Name,
        request: M::Request,
        options: &CallOptions,
    ) -> Result<M::Reply, RpcError> {
        let mut progress = Progress::default();
        let attempts = self.attempt::<M>(to, &request, options, &mut progress);
        let (header, body) = match options.deadline {
            None => attempts.await?,
            Some(deadline) => match tokio::time::timeout_at(deadline, attempts).await {
                Ok(outcome) => outcome?,
                Err(_) => return Err(progress.out_of_time(to)),
            },
        };
        read_reply::<M>(header, body)
    }

    /// Calls a method with streams. Never repeated after it was sent.
    pub async fn open<M: Method>(
        &self,
        to: &Name,
        request: M::Request,
        options: &CallOptions,
    ) -> Result<Opened<M>, RpcError> {
        check_size::<M>(&request)?;
        let opening = self.open_link::<M>(to, &request, options);
        let opened = match options.deadline {
            None => opening.await,
            Some(deadline) => tokio::time::timeout_at(deadline, opening)
                .await
                .unwrap_or(Err(RpcError::DeadlineExceeded)),
        };
        let (pending, sender, receiver) = opened?;
        let late = options.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        let reply = ReplyFuture { pending, late, to: to.clone(), method: PhantomData };
        Ok(Opened { reply, sender, receiver })
    }

    /// One-way; may be lost. Waits for a connection if there is none, but not for any answer.
    pub async fn cast<M: Method>(&self, to: &Name, message: M::Request) -> Result<(), RpcError> {
        check_size::<M>(&message)?;
        let lost = |why: &str| RpcError::Unreachable { to: to.clone(), why: why.to_owned() };
        let node = self.resolve(to).ok_or_else(|| lost("nobody knows where it is"))?;
        let slot = self.peer(node).slot(M::CLASS);
        let link = self.link(&slot, node, M::CLASS, true).await.map_err(|why| lost(&why))?;
        let header = CastHeader { method: M::NAME.to_owned(), trace: Vec::new(), user: None };
        match link.cast(header, &RequestBody::<M>(&message)).await {
            true => Ok(()),
            false => Err(lost("the connection was closed")),
        }
    }

    /// Closes what is connected to a node, after its pending calls: it was removed or has moved.
    pub fn disconnect(&self, node: NodeId) {
        let peer = self.peers().remove(&node);
        if let Some(peer) = peer {
            peer.control.retire();
            peer.bulk.retire();
        }
    }

    /// Closes all connections; calls under way and later ones fail.
    pub async fn shutdown(&self) {
        self.inner.dialler.tasks.shutdown().await;
        self.peers().clear();
    }

    async fn attempt<M: Method>(
        &self,
        to: &Name,
        request: &M::Request,
        options: &CallOptions,
        progress: &mut Progress,
    ) -> Result<(ReplyHeader, Bytes), RpcError> {
        check_size::<M>(request)?;
        self.inner.dialler.settings.departures.pass(M::NAME).await;
        loop {
            let Some(node) = self.resolve(to) else {
                progress.unresolved(to, options)?;
                tokio::time::sleep(RESOLVE_INTERVAL).await;
                continue;
            };
            let peer = self.peer(node);
            let slot = peer.slot(M::CLASS);
            let link = match self.link(&slot, node, M::CLASS, options.fail_fast).await {
                Ok(link) => link,
                Err(why) => {
                    progress.not_connected(to, &why, options)?;
                    continue;
                }
            };
            if !M::IDEMPOTENT {
                progress.check_repeatable(to, node, link.run)?;
            }
            let header = self.header::<M>(node, &peer, options, progress);
            let outcome = match link.call(header, &RequestBody::<M>(request)).await {
                Ok(mut pending) => {
                    progress.sent = Some((node, link.run));
                    pending.outcome().await
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok((header, body)) => {
                    if !self.follow(to, &header, progress) {
                        return Ok((header, body));
                    }
                }
                Err(LinkError::Overloaded) => return Err(overloaded(to)),
                Err(LinkError::Broken { why }) => progress.broken(to, &why, options)?,
            }
        }
    }

    fn header<M: Method>(
        &self,
        node: NodeId,
        peer: &Peer,
        options: &CallOptions,
        progress: &mut Progress,
    ) -> RequestHeader {
        let (mut lane, mut seq, mut settled) = (0, 0, 0);
        if !M::IDEMPOTENT && node != LOCAL {
            if progress.number.as_ref().is_none_or(|(at, _)| *at != node) {
                progress.number = Some((node, peer.numbers.take()));
            }
            if let Some((_, number)) = &progress.number {
                (lane, seq) = (number.numbers.lane, number.seq);
                settled = number.numbers.settled();
            }
        }
        RequestHeader { lane, seq, settled, ..plain_header::<M>(options) }
    }

    /// True: the name has moved, and the call shall go on at its new place.
    fn follow(&self, to: &Name, header: &ReplyHeader, progress: &mut Progress) -> bool {
        let Way::Nodes { directory, .. } = &self.inner.dialler.way else { return false };
        let (Code::Moved, Some(hint)) = (Code::from_wire(header.code), header.moved) else {
            return false;
        };
        if header.code == 0 || !directory.learn(to, hint.into()) {
            return false;
        }
        progress.hops += 1;
        // It was not executed where it was sent, so it may be sent elsewhere.
        progress.sent = None;
        progress.number = None;
        progress.hops <= MOVED_HOPS_MAX
    }

    async fn open_link<M: Method>(
        &self,
        to: &Name,
        request: &M::Request,
        options: &CallOptions,
    ) -> Result<(PendingCall, StreamSender, StreamReceiver), RpcError> {
        let mut progress = Progress::default();
        self.inner.dialler.settings.departures.pass(M::NAME).await;
        loop {
            let Some(node) = self.resolve(to) else {
                progress.unresolved(to, options)?;
                tokio::time::sleep(RESOLVE_INTERVAL).await;
                continue;
            };
            let slot = self.peer(node).slot(M::CLASS);
            let link = match self.link(&slot, node, M::CLASS, options.fail_fast).await {
                Ok(link) => link,
                Err(why) => {
                    progress.not_connected(to, &why, options)?;
                    continue;
                }
            };
            match link.open(plain_header::<M>(options), &RequestBody::<M>(request)).await {
                Ok((pending, mut sender, receiver)) => {
                    if node != LOCAL {
                        let departures = &self.inner.dialler.settings.departures;
                        sender.depart_through(departures, M::NAME);
                    }
                    return Ok((pending, sender, receiver));
                }
                Err(LinkError::Overloaded) => return Err(overloaded(to)),
                Err(LinkError::Broken { why }) => progress.broken(to, &why, options)?,
            }
        }
    }

    fn resolve(&self, to: &Name) -> Option<NodeId> {
        match &self.inner.dialler.way {
            Way::Nodes { directory, .. } => directory.resolve(to),
            Way::Local(_) => Some(LOCAL),
        }
    }

    fn peer(&self, node: NodeId) -> Arc<Peer> {
        self.peers().entry(node).or_insert_with(|| Arc::new(Peer::new())).clone()
    }

    async fn link(
        &self,
        slot: &Arc<Slot>,
        node: NodeId,
        class: Class,
        fail_fast: bool,
    ) -> Result<Arc<Link>, Arc<str>> {
        if let Some(link) = slot.current(Instant::now()) {
            return Ok(link);
        }
        let dialler = self.inner.dialler.clone();
        let dial = dialler.clone().dial(node, class);
        slot.link(&dialler.tasks, fail_fast, dial).await
    }

    fn peers(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Arc<Peer>>> {
        self.inner.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Peer {
    fn new() -> Self {
        Peer { control: Arc::default(), bulk: Arc::default(), numbers: Arc::new(Numbers::new()) }
    }

    fn slot(&self, class: Class) -> Arc<Slot> {
        match class {
            Class::Control => self.control.clone(),
            Class::Bulk => self.bulk.clone(),
        }
    }
}

impl Progress {
    fn unresolved(&mut self, to: &Name, options: &CallOptions) -> Result<(), RpcError> {
        self.not_connected(to, "nobody knows where it is", options)
    }

    fn not_connected(
        &mut self,
        to: &Name,
        why: &str,
        options: &CallOptions,
    ) -> Result<(), RpcError> {
        if options.fail_fast || why == "shutting down" {
            return Err(self.failed(to, why));
        }
        self.unreachable = Some(why.to_owned());
        Ok(())
    }

    fn broken(&mut self, to: &Name, why: &str, options: &CallOptions) -> Result<(), RpcError> {
        if options.fail_fast { Err(self.failed(to, why)) } else { Ok(()) }
    }

    /// A request that may have arrived is only repeated where it would be recognised.
    fn check_repeatable(&self, to: &Name, node: NodeId, run: u64) -> Result<(), RpcError> {
        match self.sent {
            None => Ok(()),
            Some(sent) if sent == (node, run) && node != LOCAL => Ok(()),
            Some(_) => {
                let why = "the daemon that was asked has been restarted, or cannot be asked again";
                Err(RpcError::OutcomeUnknown { to: to.clone(), why: why.into() })
            }
        }
    }

    fn failed(&self, to: &Name, why: &str) -> RpcError {
        let (to, why) = (to.clone(), why.to_owned());
        match self.sent {
            None => RpcError::Unreachable { to, why },
            Some(_) => RpcError::OutcomeUnknown { to, why },
        }
    }

    fn out_of_time(self, to: &Name) -> RpcError {
        match (self.sent, self.unreachable) {
            (None, Some(why)) => RpcError::Unreachable { to: to.clone(), why },
            _ => RpcError::DeadlineExceeded,
        }
    }
}

impl<M: Method> Future for ReplyFuture<M> {
    type Output = Result<M::Reply, RpcError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(outcome) = Pin::new(&mut this.pending.outcome).poll(cx) {
            return Poll::Ready(match outcome {
                Ok(Ok((header, body))) => read_reply::<M>(header, body),
                Ok(Err(LinkError::Broken { why })) => Err(this.broken(&why)),
                Ok(Err(LinkError::Overloaded)) => Err(overloaded(&this.to)),
                Err(_) => Err(this.broken("the connection was closed")),
            });
        }
        match &mut this.late {
            Some(late) => {
                ready!(late.as_mut().poll(cx));
                Poll::Ready(Err(RpcError::DeadlineExceeded))
            }
            None => Poll::Pending,
        }
    }
}

impl<M: Method> ReplyFuture<M> {
    fn broken(&self, why: &str) -> RpcError {
        RpcError::OutcomeUnknown { to: self.to.clone(), why: why.to_owned() }
    }
}

impl<M: Method> fmt::Debug for ReplyFuture<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyFuture({})", M::NAME)
    }
}

fn plain_header<M: Method>(options: &CallOptions) -> RequestHeader {
    let left = options.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let mut user = options.caller.to_wire();
    if let Some(user) = &mut user {
        user.groups.truncate(CALLER_GROUPS_MAX);
    }
    RequestHeader {
        method: M::NAME.to_owned(),
        // 0 stands for "no deadline".
        timeout_us: left.map_or(0, |left| u64::try_from(left.as_micros()).unwrap_or(0).max(1)),
        trace: options.trace.to_wire(),
        user,
        ..Default::default()
    }
}

fn check_size<M: Method>(request: &M::Request) -> Result<(), RpcError> {
    let size = request.encoded_len();
    if size <= MESSAGE_SIZE_MAX {
        return Ok(());
    }
    let name = M::NAME;
    Err(RpcError::Protocol(format!(
        "a request of {size} bytes to {name} exceeds {MESSAGE_SIZE_MAX}"
    )))
}

fn overloaded(to: &Name) -> RpcError {
    RpcError::Overloaded(format!("too many calls to {to} are under way from here"))
}

fn read_reply<M: Method>(header: ReplyHeader, body: Bytes) -> Result<M::Reply, RpcError> {
    if header.code != 0 {
        return Err(status(&header, body).into());
    }
    M::Reply::decode(body)
        .map_err(|error| RpcError::Protocol(format!("unreadable reply of {}: {error}", M::NAME)))
}

pub(crate) fn status(header: &ReplyHeader, detail: Bytes) -> Status {
    Status {
        code: Code::from_wire(header.code),
        message: header.message.clone(),
        detail,
        hint: header.moved.map(Into::into),
    }
}
