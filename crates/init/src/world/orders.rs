//! What is done to running programs: their streams, signals, terminals; and mounts for them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use unum_proto::init::{
    Answer, Attach, Attached, CloseOutput, Done, Failed, Fault, Graft, Happened, Input, Resize,
    Signal, Stopped, Stream, Target,
};
use unum_sys::mounts;
use unum_sys::process;
use unum_sys::pty;

use super::{Key, Role, World};
use crate::fault::{failed, fork_failed, no_such_process, system};
use crate::program::{Program, ReplyTo};
use crate::signals::{self, Whom};

/// Output of exited programs that nobody has fetched, in bytes.
const UNREAD_SIZE_MAX: usize = 64 << 20;

impl World {
    pub(super) fn key_of(&self, pid: u32) -> Result<Key, Failed> {
        self.by_pid.get(&pid).copied().ok_or_else(|| no_such_process(pid))
    }

    fn program_of(&mut self, pid: u32) -> Result<&mut Program, Failed> {
        let key = self.key_of(pid)?;
        self.touched.insert(key);
        self.programs.get_mut(&key).ok_or_else(|| no_such_process(pid))
    }

    /// What the program has become since, by a setuid program, plays no part; nor does who has its
    /// PID now.
    pub(super) fn may_have_streams(&self, user: u32, pid: u32) -> Result<(), Failed> {
        let owner = self.programs.get(&self.key_of(pid)?).map(|program| program.uid);
        if user == 0 || owner == Some(user) {
            return Ok(());
        }
        let why = format!("program {pid} was not started by user {user}");
        Err(failed(Fault::NotPermitted, rustix::io::Errno::PERM.raw_os_error(), why))
    }

    pub(super) fn attach(&mut self, attach: Attach, id: u64) -> Result<(), Failed> {
        let key = self.key_of(attach.pid)?;
        let program = self.program_of(attach.pid)?;
        let wanted = |offset| (!attach.from_oldest).then_some(offset);
        let gone = |e: crate::stream::NotHeld| {
            let why = format!("only the bytes {} to {} are held", e.oldest, e.end);
            failed(Fault::OffsetGone, 0, why)
        };
        let stdout = program.streams.stdout.start_at(wanted(attach.stdout)).map_err(gone)?;
        let stderr = program.streams.stderr.start_at(wanted(attach.stderr)).map_err(gone)?;
        program.attached = true;
        program.streams.input.forget_told();
        let input = Some(program.input_state());
        let (exited, stopped) = (program.exited, program.stopped_by);
        if !self.attached.contains(&key) {
            self.attached.push_back(key);
        }
        self.reply(id, Answer::Attached(Attached { stdout, stderr, input }), None);
        // What happened before is told again: this client may not have heard it.
        if let Some(signal) = stopped {
            self.emit(Happened::Stopped(Stopped { pid: attach.pid, signal }));
        }
        if let Some(exited) = exited {
            self.emit(Happened::Exited(exited));
        }
        Ok(())
    }

    pub(super) fn detach(&mut self, pid: u32) -> Result<(), Failed> {
        let key = self.key_of(pid)?;
        let program = self.program_of(pid)?;
        program.attached = false;
        program.unattended_since = Instant::now();
        self.attached.retain(|k| *k != key);
        Ok(())
    }

    pub(super) fn input(&mut self, input: Input) -> Result<(), Failed> {
        let streams = &mut self.program_of(input.pid)?.streams;
        streams.input.offer(input.offset, &input.bytes, input.eof);
        streams.push_input();
        Ok(())
    }

    pub(super) fn ack(&mut self, pid: u32, stream: Stream, offset: u64) -> Result<(), Failed> {
        match self.program_of(pid)?.streams.output(stream) {
            Some(output) => output.ack(offset),
            None => return Err(failed(Fault::BadRequest, 0, "input is not acknowledged")),
        }
        Ok(())
    }

    pub(super) fn close_output(&mut self, close: CloseOutput) -> Result<(), Failed> {
        let stream = close.stream();
        let program = self.program_of(close.pid)?;
        let tokens = program.streams.tokens();
        program.streams.close_output(stream);
        let left = program.streams.tokens();
        for token in tokens.into_iter().filter(|token| !left.contains(token)) {
            self.by_token.remove(&token);
        }
        Ok(())
    }

    pub(super) fn signal(&mut self, signal: Signal, to: ReplyTo) -> Result<Option<Answer>, Failed> {
        let Signal { pid, signal: number, uid, .. } = signal;
        let whom = self.whom(pid, signal.target())?;
        signals::check(whom, number)?;
        if whom.is_direct(uid) {
            let refuse =
                |e: io::Error| signals::refusal(e.raw_os_error().unwrap_or(0), whom.number(), uid);
            signals::send(whom, number).map_err(refuse)?;
            return Ok(Some(Answer::Done(Done {})));
        }
        match process::fork().map_err(|e| fork_failed(&e))? {
            process::Fork::Parent(child) => {
                let errand = Role::Errand { to, number: whom.number(), uid };
                self.children.insert(child, errand);
                Ok(None)
            }
            process::Fork::Child(child) => {
                child.run_as(|child| signals::run_errand(child, whom, number, uid))
            }
        }
    }

    fn whom(&mut self, pid: u32, target: Target) -> Result<Whom, Failed> {
        match target {
            Target::Process => Ok(Whom::Process(pid)),
            Target::Group => Ok(Whom::Group(pid)),
            Target::Session => {
                let program = self.program_of(pid)?;
                let leader = program.leader.as_ref().map(|l| l.pid);
                Ok(Whom::Session { session: program.session, leader })
            }
            Target::Foreground => {
                let terminal = self.program_of(pid)?.streams.terminal();
                Ok(Whom::Group(terminal.and_then(|t| pty::foreground(t).ok()).unwrap_or(pid)))
            }
        }
    }

    pub(super) fn resize(&mut self, resize: Resize) -> Result<(), Failed> {
        let size = |n| u16::try_from(n).map_err(|_| failed(Fault::BadRequest, 0, "no such size"));
        let (rows, cols) = (size(resize.rows)?, size(resize.cols)?);
        let program = self.program_of(resize.pid)?;
        let terminal = program.streams.terminal().ok_or_else(|| {
            failed(Fault::NoTerminal, 0, format!("program {} has no terminal", resize.pid))
        })?;
        pty::resize(terminal, rows, cols).map_err(system("resize the terminal"))
    }

    pub(super) fn hang_up_by_pid(&mut self, pid: u32) -> Result<(), Failed> {
        let key = self.key_of(pid)?;
        self.program_of(pid)?;
        self.hang_up(key);
        Ok(())
    }

    pub(super) fn hang_up(&mut self, key: Key) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.hung_up = true;
        if program.exited.is_none() {
            let leader = program.leader.as_ref().map(|l| l.pid);
            let session = program.session;
            match process::fork() {
                // Reaped as any orphan.
                Ok(process::Fork::Parent(_)) => {}
                Ok(process::Fork::Child(child)) => {
                    child.run(|| signals::exit_with(signals::hang_up(session, leader)))
                }
                // Without a child to look for the session's other groups, at least its own.
                Err(_) => signals::hang_up_group(program.pid),
            }
        }
        for token in program.streams.tokens() {
            self.by_token.remove(&token);
        }
        program.streams.close();
    }

    pub(super) fn graft(
        &mut self,
        graft: Graft,
        mount: Option<OwnedFd>,
        to: ReplyTo,
    ) -> Result<(), Failed> {
        use std::os::unix::ffi::OsStringExt;
        let mount = mount.ok_or_else(|| failed(Fault::BadRequest, 0, "no mount came along"))?;
        self.may_spawn()?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(graft.path));
        match process::fork().map_err(|e| fork_failed(&e))? {
            process::Fork::Parent(child) => {
                self.children.insert(child, Role::Graft(to));
                Ok(())
            }
            // In a child because the look-up of the path may block.
            process::Fork::Child(never) => never.run(|| {
                use std::os::fd::AsFd;
                signals::exit_with(mounts::graft(mount.as_fd(), &path));
            }),
        }
    }

    /// What exited programs said and nobody fetched is kept for the newest of them.
    pub(super) fn bound_unread(&mut self) {
        let held = |p: &Program| p.streams.held();
        let mut total: usize =
            self.exits.iter().filter_map(|k| self.programs.get(k)).map(held).sum();
        for key in &self.exits {
            if total <= UNREAD_SIZE_MAX {
                return;
            }
            if let Some(program) = self.programs.get_mut(key).filter(|p| !p.attached) {
                total -= program.streams.held();
                program.streams.forget_unread();
            }
        }
    }
}
