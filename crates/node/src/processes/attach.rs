//! The streams of a program: between unum-init and whoever attached, or passed on between two
//! daemons.
//!
//! Messages are framed by a length in front of each, because a stream's pieces keep no borders.
//! Offsets and acknowledgements go end to end; this service looks at nothing but their kind.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use unum_core::registry::State;
use unum_core::time::Time;
use unum_net::{
    CallOptions, Caller, Code, Incoming, RpcError, Status, StreamReceiver, StreamSender,
};
use unum_proto::ids::{NodeId, Pid};
use unum_proto::init::{
    Ack, Ask, Attach as AttachAsk, Attached, CloseOutput, Detach, Exited, Happened, Input,
    InputState, Output, Resize, Signal, Stream as InitStream, Target,
};
use unum_proto::process::{
    AttachReply, AttachRequest, Continued, Ended, FromProgram, PIECE_SIZE_MAX, Piece, Position,
    SignalRequest, SignalScope, Stream, ToProgram, ended, from_program, to_program,
};

use super::{Attach, PEER_TIME_MAX, Processes, peer_status, to, world_status};
use crate::registry::system_clock;
use crate::world::{Detachment, Events, WorldError};

/// The longest message on the stream, in bytes.
const MESSAGE_SIZE_MAX: usize = PIECE_SIZE_MAX + 1024;

/// How long a node is down before its programs are called lost. Until then callers try again: a
/// short partition ends by itself.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// Between two looks at whether a node is lost.
const LOST_LOOK_PERIOD: Duration = Duration::from_millis(500);

impl Processes {
    pub(super) async fn attach(
        &self,
        incoming: Incoming,
        request: AttachRequest,
        sender: StreamSender,
        receiver: StreamReceiver,
    ) -> Result<AttachReply, Status> {
        let pid = Pid(request.pid);
        let node = self.owner(pid)?;
        if self.is_here(node) {
            return self.attach_here(&incoming, request, sender, receiver).await;
        }
        if incoming.caller.node.is_some() {
            return Err(super::no_such_process(pid));
        }
        let guard = HangUp::new(self, &incoming, pid);
        let mut sender = sender;
        let passed = tokio::select! {
            reply = self.pass_on(&incoming, node, request, &mut sender, receiver) => Some(reply),
            () = self.lost(node) => None,
        };
        let reply = match passed {
            Some(reply) => reply,
            None => tell_lost(&mut sender, node).await,
        };
        guard.settle(&reply);
        reply
    }

    /// Carries the stream between the caller here and the program's node.
    async fn pass_on(
        &self,
        incoming: &Incoming,
        node: NodeId,
        request: AttachRequest,
        sender: &mut StreamSender,
        mut receiver: StreamReceiver,
    ) -> Result<AttachReply, Status> {
        let name = self.node_name(node);
        let options =
            CallOptions::unlimited().caller(incoming.caller.clone()).trace(incoming.trace);
        let opened = self.shared.client.open::<Attach>(&to(node), request, &options).await;
        let opened = opened.map_err(|error| peer_status(&name, error))?;
        let (mut reply, mut there, mut here) = (opened.reply, opened.sender, opened.receiver);
        let peer_gone = |error| peer_status(&name, error);
        let forward = async {
            while let Some(bytes) = receiver.recv().await.map_err(caller_gone)? {
                there.send(bytes).await.map_err(peer_gone)?;
            }
            there.finish();
            // The caller has closed its side; the program's side goes on until it ends.
            std::future::pending::<Result<(), Status>>().await
        };
        let back = async {
            while let Some(bytes) = here.recv().await.map_err(peer_gone)? {
                sender.send(bytes).await.map_err(caller_gone)?;
            }
            Ok::<(), Status>(())
        };
        tokio::select! {
            forwarded = forward => forwarded,
            back = back => back,
        }?;
        // The reply follows the stream's end at once, unless the connection went in between.
        match tokio::time::timeout(PEER_TIME_MAX, &mut reply).await {
            Ok(replied) => replied.map_err(|error| peer_status(&name, error)),
            Err(_) => Err(peer_status(&name, RpcError::DeadlineExceeded)),
        }
    }

    /// Completes when a node's programs are given up.
    pub(super) async fn lost(&self, node: NodeId) {
        while !self.shared.registry.read(|state| is_lost(state, node, system_clock()())) {
            tokio::time::sleep(LOST_LOOK_PERIOD).await;
        }
    }

    async fn attach_here(
        &self,
        incoming: &Incoming,
        request: AttachRequest,
        sender: StreamSender,
        receiver: StreamReceiver,
    ) -> Result<AttachReply, Status> {
        let pid = Pid(request.pid);
        let guard = incoming.caller.node.is_none().then(|| HangUp::new(self, incoming, pid));
        let reply = self.serve_streams(incoming, request, sender, receiver).await;
        if let Some(guard) = guard {
            guard.settle(&reply);
        }
        reply
    }

    async fn serve_streams(
        &self,
        incoming: &Incoming,
        request: AttachRequest,
        mut sender: StreamSender,
        mut receiver: StreamReceiver,
    ) -> Result<AttachReply, Status> {
        let pid = Pid(request.pid);
        let ask = AttachAsk {
            pid: pid.0,
            stdout: request.stdout_offset,
            stderr: request.stderr_offset,
            from_oldest: false,
        };
        let attached = self.shared.world.attach(incoming.caller.uid, ask).await;
        let (attached, events) = attached.map_err(world_status)?;
        let from = Attachment::new(&attached, events);
        tokio::select! {
            sent = from.run(&mut sender) => sent,
            taken = self.take_input(incoming, pid, &mut receiver) => taken,
        }
    }

    /// What the caller sends, until it closes its side or detaches.
    async fn take_input(
        &self,
        incoming: &Incoming,
        pid: Pid,
        receiver: &mut StreamReceiver,
    ) -> Result<AttachReply, Status> {
        let uid = incoming.caller.uid;
        let mut messages = Messages::default();
        while let Some(bytes) = receiver.recv().await.map_err(caller_gone)? {
            messages.push(&bytes);
            while let Some(message) = messages.take::<ToProgram>()? {
                let Some(kind) = message.kind else { continue };
                if matches!(kind, to_program::Kind::Detach(_)) {
                    let detach = Ask::Detach(Detach { pid: pid.0 });
                    self.shared.world.ask_for(uid, detach).await.map_err(world_status)?;
                    return Ok(AttachReply {});
                }
                let ask = to_init(pid, uid, kind);
                self.shared.world.tell_for(uid, ask).await.map_err(world_status)?;
            }
        }
        // Closed in order: nothing more comes from there, but the output is still wanted.
        std::future::pending().await
    }
}

/// The one who attached does not hear us any more.
fn caller_gone(error: RpcError) -> Status {
    Status::new(Code::Cancelled, error.to_string())
}

fn to_init(pid: Pid, uid: u32, kind: to_program::Kind) -> Ask {
    let pid = pid.0;
    match kind {
        to_program::Kind::Input(piece) => {
            let Piece { offset, bytes, end, .. } = piece;
            Ask::Input(Input { pid, offset, bytes, eof: end })
        }
        to_program::Kind::Received(position) => {
            let stream = match position.stream() {
                Stream::Stderr => InitStream::Stderr,
                Stream::Stdout | Stream::Stdin | Stream::Unspecified => InitStream::Stdout,
            };
            Ask::Ack(Ack { pid, stream: stream as i32, offset: position.offset })
        }
        to_program::Kind::Resize(size) => {
            Ask::Resize(Resize { pid, rows: size.rows, cols: size.columns })
        }
        to_program::Kind::Signal(signal) => {
            let signal = signal.unsigned_abs();
            Ask::Signal(Signal { pid, target: Target::Foreground as i32, signal, uid })
        }
        to_program::Kind::Detach(_) => Ask::Detach(Detach { pid }),
        to_program::Kind::Close(stream) => {
            let stderr = stream == Stream::Stderr as i32;
            let stream = if stderr { InitStream::Stderr } else { InitStream::Stdout };
            Ask::CloseOutput(CloseOutput { pid, stream: stream as i32 })
        }
    }
}

/// From unum-init's events to the caller's messages. The end is told after all output.
struct Attachment {
    events: Events,
    input: Option<InputState>,
    stdout: u64,
    stderr: u64,
    exited: Option<Exited>,
}

impl Attachment {
    fn new(attached: &Attached, events: Events) -> Self {
        let Attached { stdout, stderr, input } = *attached;
        Self { events, input, stdout, stderr, exited: None }
    }

    async fn run(mut self, sender: &mut StreamSender) -> Result<AttachReply, Status> {
        if let Some(state) = self.input.take() {
            send(sender, accepted(&state)).await?;
        }
        while let Some(happened) = self.events.next().await {
            if let Some(kind) = self.message(happened) {
                send(sender, kind).await?;
            }
            if let Some(exited) = self.exited.filter(|exited| self.has_all(exited)) {
                send(sender, from_program::Kind::Ended(ended_of(&exited))).await?;
                return Ok(AttachReply {});
            }
        }
        Err(match self.events.why_ended() {
            Detachment::Superseded => {
                Status::new(Code::Conflict, "the program's streams were attached to elsewhere")
            }
            Detachment::Behind => {
                Status::new(Code::Unavailable, "the output was not taken fast enough")
            }
            Detachment::WorldEnded => world_status(WorldError::Gone),
        })
    }

    fn has_all(&self, exited: &Exited) -> bool {
        self.stdout >= exited.stdout_end && self.stderr >= exited.stderr_end
    }

    fn message(&mut self, happened: Happened) -> Option<from_program::Kind> {
        match happened {
            Happened::Output(output) => Some(self.output(output)),
            Happened::InputState(state) => Some(accepted(&state)),
            Happened::Stopped(stopped) => Some(from_program::Kind::Stopped(stopped.signal as i32)),
            Happened::Continued(_) => Some(from_program::Kind::Continued(Continued {})),
            Happened::Exited(exited) => {
                self.exited = Some(exited);
                None
            }
            Happened::PidsLow(_) => None,
        }
    }

    fn output(&mut self, output: Output) -> from_program::Kind {
        // What was written by the exit and dropped when the output was closed does not come.
        let end = match output.eof {
            true => u64::MAX,
            false => output.offset + output.bytes.len() as u64,
        };
        let stream = match output.stream() {
            InitStream::Stderr => {
                self.stderr = end;
                Stream::Stderr
            }
            InitStream::Stdout | InitStream::Stdin => {
                self.stdout = end;
                Stream::Stdout
            }
        };
        let Output { offset, bytes, eof, .. } = output;
        from_program::Kind::Output(Piece { stream: stream as i32, offset, bytes, end: eof })
    }
}

fn accepted(state: &InputState) -> from_program::Kind {
    // A program that reads no more takes everything, as far as its caller is concerned.
    let (offset, window) =
        if state.closed { (u64::MAX, u64::MAX) } else { (state.accepted, state.window) };
    from_program::Kind::Accepted(Position { stream: Stream::Stdin as i32, offset, window })
}

pub(super) fn ended_of(exited: &Exited) -> Ended {
    let how = match exited.signal {
        0 => ended::How::Exited(exited.code as i32),
        signal => ended::How::Signalled(signal as i32),
    };
    Ended {
        how: Some(how),
        core_dumped: exited.core,
        user_cpu_us: exited.user_us,
        system_cpu_us: exited.system_us,
        peak_memory_bytes: exited.max_rss_kib * 1024,
        elapsed_us: exited.ended_ms.saturating_sub(exited.started_ms) * 1000,
    }
}

/// Whether a node's programs are given up: it is no member any more, or has been down for a while.
fn is_lost(state: &State, node: NodeId, now: Time) -> bool {
    state.nodes().get(node).is_none_or(|node| {
        let given_up = now.since(node.since) >= LOST_AFTER;
        !node.is_member() || (!node.is_up() && given_up)
    })
}

pub(super) fn lost_with(node: NodeId) -> Ended {
    Ended { how: Some(ended::How::Lost(node.0)), ..Ended::default() }
}

async fn tell_lost(sender: &mut StreamSender, node: NodeId) -> Result<AttachReply, Status> {
    send(sender, from_program::Kind::Ended(lost_with(node))).await?;
    Ok(AttachReply {})
}

async fn send(sender: &mut StreamSender, kind: from_program::Kind) -> Result<(), Status> {
    let message = FromProgram { kind: Some(kind) };
    let mut bytes = BytesMut::with_capacity(4 + message.encoded_len());
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
    sender.send(bytes.freeze()).await.map_err(caller_gone)
}

/// Cuts a stream's bytes into messages.
#[derive(Default)]
struct Messages {
    bytes: BytesMut,
}

impl Messages {
    fn push(&mut self, bytes: &Bytes) {
        self.bytes.extend_from_slice(bytes);
    }

    fn take<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_be_bytes(*head) as usize;
        if size > MESSAGE_SIZE_MAX {
            return Err(Status::new(Code::Invalid, "a message on the stream is too long"));
        }
        if self.bytes.len() < 4 + size {
            return Ok(None);
        }
        self.bytes.advance(4);
        let message = M::decode(self.bytes.split_to(size).freeze());
        message.map(Some).map_err(|error| Status::new(Code::Invalid, error.to_string()))
    }
}

/// Hangs a program up when its caller on this node has gone without a word: a closed terminal or a
/// killed `unum run`. It does nothing when the daemon dies, for then the caller attaches again.
struct HangUp {
    service: Processes,
    caller: Caller,
    pid: Pid,
    armed: bool,
}

impl HangUp {
    fn new(service: &Processes, incoming: &Incoming, pid: Pid) -> Self {
        // From now on the caller is missed here.
        service.shared.unattended.remove(pid.0, incoming.caller.uid);
        let (service, caller) = (service.clone(), incoming.caller.clone());
        Self { service, caller, pid, armed: true }
    }

    /// The attachment was answered: the caller is there to hear it, and decides by itself.
    fn settle(mut self, reply: &Result<AttachReply, Status>) {
        let gone = matches!(reply, Err(status) if status.code == Code::Cancelled);
        self.armed = gone;
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (service, caller, pid) = (self.service.clone(), self.caller.clone(), self.pid);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        drop(runtime.spawn(async move { service.hang_up(caller, pid).await }));
    }
}

impl Processes {
    /// As the kernel does when a terminal is closed.
    pub(super) async fn hang_up(&self, caller: Caller, pid: Pid) {
        let scope = SignalScope::Session as i32;
        let request = SignalRequest { pid: pid.0, signal: 0, scope };
        let options = CallOptions::within(PEER_TIME_MAX).caller(caller);
        if let Err(error) = self.signal_as(&options, request).await {
            tracing::info!(%pid, %error, "a program whose caller has gone was not hung up");
        }
    }
}
