//! The daemon's connection: who may speak, what is asked, and what is told in return.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use unum_proto::init::{
    Answer, Ask, Done, FRAME_SIZE_MAX, Failed, Fault, FromInit, Happened, Hello, HelloAsk,
    Output as OutputEvent, PROTOCOL_VERSION, Programs, Request, SetBlocks, Status, Stream,
};
use unum_sys::fds;

use super::World;
use crate::connection::{Connection, Lost};
use crate::fault::failed;
use crate::program::{self, ReplyTo};

/// Longest grace of a shutdown, in milliseconds.
const GRACE_MS_MAX: u64 = 10 * 60 * 1000;

impl World {
    pub(super) fn accept(&mut self) {
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

    pub(super) fn disconnect(&mut self, why: &Lost) {
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

    pub(super) fn serve_connection(&mut self) {
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

    pub(super) fn reply(&mut self, id: u64, answer: Answer, descriptor: Option<OwnedFd>) {
        if let Some(connection) = self.connection.as_mut().filter(|_| id != 0) {
            connection.send(&FromInit::reply(id, answer), descriptor);
        }
    }

    pub(super) fn reply_to(&mut self, to: ReplyTo, answer: Answer) {
        if self.connection.as_ref().is_some_and(|c| c.token() == to.connection) {
            self.reply(to.request, answer, None);
        }
    }

    pub(super) fn emit(&mut self, happened: Happened) {
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

    pub(super) fn running(&self) -> usize {
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

    /// Moves pieces of the attached programs' output to the queue in turns, while it is short.
    pub(super) fn pump(&mut self) {
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
