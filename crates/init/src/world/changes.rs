//! What becomes of programs: they stop, go on, exit, are waited for and forgotten.

use std::io;
use std::path::Path;
use std::time::Duration;

use unum_proto::init::{
    Answer, Continued, Done, EXIT_RECORDS_MAX, Exited, Failed, Fault, Happened, Stopped,
};
use unum_sys::process::{self, Change, Exit};

use super::{Key, Role, World};
use crate::fault::failed;
use crate::logfile;
use crate::signals::{self, SIGTERM};

/// Deferred answers of one connection.
const WAITS_MAX: usize = 16_384;

/// The grace of a shutdown that was asked for by a signal.
const SIGNAL_GRACE: Duration = Duration::from_secs(5);

impl World {
    pub(super) fn take_signals(&mut self) {
        while let Some(arrived) = self.signals.get().take() {
            // A world's own processes do not end it by a signal; the machine may.
            if arrived.signal == SIGTERM && arrived.sender == 0 {
                self.shut_down(SIGNAL_GRACE);
            }
        }
        for key in self.starting.clone() {
            self.hear_leader(key);
        }
        while let Some((pid, change)) = process::reap() {
            self.child_changed(pid, change);
        }
    }

    fn child_changed(&mut self, pid: u32, change: Change) {
        let role = self.children.get(&pid).copied();
        match (role, change) {
            (Some(Role::Program(key)), Change::Stopped(signal)) => self.stopped(key, signal),
            (Some(Role::Program(key)), Change::Continued) => self.continued(key),
            (_, Change::Stopped(_) | Change::Continued) => {}
            (Some(role), Change::Exited(exit)) => {
                self.children.remove(&pid);
                self.child_exited(role, exit);
            }
            // An orphan of some program, which nobody asked for.
            (None, Change::Exited(_)) => {}
        }
    }

    fn child_exited(&mut self, role: Role, exit: Exit) {
        match role {
            Role::Program(key) => {
                let Some(program) = self.programs.get_mut(&key) else { return };
                match &mut program.starting {
                    Some(starting) => starting.early_exit = Some(exit),
                    None => self.finish(key, exit),
                }
            }
            Role::Leader(key) => {
                self.hear_leader(key);
                if let Some(program) = self.programs.get_mut(&key)
                    && let Some(leader) = program.leader.take()
                {
                    self.by_token.remove(&leader.words.token());
                }
                self.touched.insert(key);
            }
            Role::Graft(to) => {
                let answer = match errno_of(&exit) {
                    0 => Answer::Done(Done {}),
                    errno => {
                        let error = io::Error::from_raw_os_error(errno);
                        let why = format!("cannot attach the mount in the world: {error}");
                        Answer::Failed(failed(Fault::System, errno, why))
                    }
                };
                self.reply_to(to, answer);
            }
            Role::Errand { to, number, uid } => {
                let answer = match errno_of(&exit) {
                    0 => Answer::Done(Done {}),
                    errno => Answer::Failed(signals::refusal(errno, number, uid)),
                };
                self.reply_to(to, answer);
            }
        }
    }

    pub(super) fn stopped(&mut self, key: Key, signal: u32) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.stopped_by = Some(signal);
        if program.attached {
            let pid = program.pid;
            self.emit(Happened::Stopped(Stopped { pid, signal }));
        }
    }

    pub(super) fn continued(&mut self, key: Key) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        program.stopped_by = None;
        if program.attached {
            let pid = program.pid;
            self.emit(Happened::Continued(Continued { pid }));
        }
    }

    pub(super) fn finish(&mut self, key: Key, exit: Exit) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        let exited = program.record(exit);
        self.touched.insert(key);
        self.exits.push_back(key);
        if program.attached {
            self.emit(Happened::Exited(exited));
        }
        self.answer_waits(key, exited);
        while self.exits.len() > EXIT_RECORDS_MAX {
            if let Some(oldest) = self.exits.front().copied() {
                self.forget(oldest);
            }
        }
    }

    fn answer_waits(&mut self, key: Key, exited: Exited) {
        let Some(connection) = &mut self.connection else { return };
        let mut forget = false;
        let (due, rest) = std::mem::take(&mut connection.waits)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, pid, _)| *pid == exited.pid);
        connection.waits = rest;
        for (id, _, and_forget) in due {
            forget |= and_forget;
            self.reply(id, Answer::Exited(exited), None);
        }
        if forget {
            self.forget(key);
        }
    }

    pub(super) fn forget(&mut self, key: Key) {
        let Some(program) = self.programs.remove(&key) else { return };
        for token in program.streams.tokens() {
            self.by_token.remove(&token);
        }
        if self.by_pid.get(&program.pid) == Some(&key) {
            self.by_pid.remove(&program.pid);
        }
        if let Some(leader) = &program.leader {
            self.by_token.remove(&leader.words.token());
        }
        self.starting.remove(&key);
        self.attached.retain(|k| *k != key);
        self.exits.retain(|k| *k != key);
        if let Some(log) = program.streams.log() {
            logfile::remove(Path::new(log));
        }
    }

    pub(super) fn wait(
        &mut self,
        pid: u32,
        forget: bool,
        id: u64,
    ) -> Result<Option<Answer>, Failed> {
        let key = self.key_of(pid)?;
        let exited = self.programs.get(&key).and_then(|p| p.exited);
        if let Some(exited) = exited {
            if forget {
                self.forget(key);
            }
            return Ok(Some(Answer::Exited(exited)));
        }
        let Some(connection) = &mut self.connection else { return Ok(None) };
        if connection.waits.len() >= WAITS_MAX {
            return Err(failed(
                Fault::LimitReached,
                0,
                format!("{WAITS_MAX} requests wait already"),
            ));
        }
        connection.waits.push((id, pid, forget));
        Ok(None)
    }
}

/// What a forked child ended with; dying otherwise is an input/output error.
fn errno_of(exit: &Exit) -> i32 {
    let died = exit.signal != 0;
    if died { rustix::io::Errno::IO.raw_os_error() } else { exit.code as i32 }
}
