//! A client that blocks: for tests and for a daemon's first words. The daemon's own lives on its
//! runtime, from the same codec ([`unum_proto::init`]) and the same calls for descriptors
//! ([`unum_sys::fds`]).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use unum_proto::init::{
    Answer, Ask, Decoder, Failed, FrameError, FromInit, Happened, Hello, HelloAsk,
    PROTOCOL_VERSION, Request, Said, encode,
};
use unum_sys::fds;

/// One read from the socket, in bytes.
const READ_SIZE: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the connection to unum-init failed: {0}")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("unum-init closed the connection: another client took over, or the world ended")]
    Closed,
    #[error("unum-init did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("{}", .0.message)]
    Refused(Failed),
    #[error("unum-init gave an answer of another kind")]
    Unexpected,
}

pub struct Client {
    socket: UnixStream,
    decoder: Decoder,
    next_id: u64,
    events: VecDeque<Happened>,
    descriptors: Vec<OwnedFd>,
    patience: Duration,
}

impl Client {
    /// Connects and says Hello.
    pub fn connect(path: &Path) -> Result<(Self, Hello), ClientError> {
        let mut client = Self {
            socket: UnixStream::connect(path)?,
            decoder: Decoder::default(),
            next_id: 1,
            events: VecDeque::new(),
            descriptors: Vec::new(),
            patience: Duration::from_secs(20),
        };
        match client.call(Ask::Hello(HelloAsk { version: PROTOCOL_VERSION }))? {
            Answer::Hello(hello) => Ok((client, hello)),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks and waits for the answer; events that come first are kept for [`Client::event`].
    pub fn call(&mut self, ask: Ask) -> Result<Answer, ClientError> {
        self.call_with(ask, None)
    }

    /// The same on behalf of a user.
    pub fn call_for(&mut self, user: u32, ask: Ask) -> Result<Answer, ClientError> {
        self.exchange(Request { user: Some(user), ..Request::from(ask) }, None)
    }

    pub fn call_with(
        &mut self,
        ask: Ask,
        descriptor: Option<OwnedFd>,
    ) -> Result<Answer, ClientError> {
        self.exchange(Request::from(ask), descriptor)
    }

    fn exchange(
        &mut self,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> Result<Answer, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&Request { id, ..request }, descriptor)?;
        let deadline = Instant::now() + self.patience;
        loop {
            match self.receive(deadline)?.ok_or(ClientError::TimedOut(self.patience))? {
                Said::Reply(reply) if reply.id == id => {
                    return match reply.answer {
                        Some(Answer::Failed(refusal)) => Err(ClientError::Refused(refusal)),
                        Some(answer) => Ok(answer),
                        None => Err(ClientError::Unexpected),
                    };
                }
                Said::Reply(_) => {}
                Said::Event(event) => self.events.extend(event.happened),
            }
        }
    }

    /// Sends without asking for an answer.
    pub fn cast(&mut self, ask: Ask) -> Result<(), ClientError> {
        self.send(&Request::from(ask), None)
    }

    /// The next event, or `None` after `patience`.
    pub fn event(&mut self, patience: Duration) -> Result<Option<Happened>, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.receive(deadline)? {
                Some(Said::Event(event)) => self.events.extend(event.happened),
                Some(Said::Reply(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// The descriptor that came with the last answer.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop()
    }

    fn send(&mut self, request: &Request, descriptor: Option<OwnedFd>) -> Result<(), ClientError> {
        let mut bytes = BytesMut::new();
        encode(request, &mut bytes)?;
        let sent = fds::send_with(&self.socket, &bytes, descriptor.as_ref().map(AsFd::as_fd))?;
        self.socket.write_all(bytes.get(sent..).unwrap_or_default())?;
        Ok(())
    }

    fn receive(&mut self, deadline: Instant) -> Result<Option<Said>, ClientError> {
        loop {
            if let Some(message) = self.decoder.take::<FromInit>()? {
                return message.said.map(Some).ok_or(ClientError::Unexpected);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut bytes = [0u8; READ_SIZE];
            match fds::receive_with(&self.socket, &mut bytes, &mut self.descriptors) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(n) => self.decoder.push(bytes.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
