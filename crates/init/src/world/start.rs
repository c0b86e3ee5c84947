//! Programs from the order to start them until they run or could not.

use std::time::{Duration, Instant};

use unum_proto::init::{Answer, Failed, Fault, Spawn, Spawned, Stdio};
use unum_sys::process::{self, Heard, StartFailure, Word};

use super::{Key, Role, World};
use crate::ends;
use crate::fault::{failed, fork_failed, start_failed};
use crate::logfile;
use crate::poll::EventFlags;
use crate::program::{self, Leader, Program, ReplyTo, Starting, now_ms, shown};
use crate::signals::SIGKILL;

/// Programs that have not exited.
const RUNNING_MAX: usize = 8192;

impl World {
    pub(super) fn spawn(&mut self, spawn: Spawn, to: ReplyTo) -> Result<Option<Spawned>, Failed> {
        if let Some(known) = self.find_tag(&spawn.tag) {
            return self.spawned_already(known, to);
        }
        self.may_spawn()?;
        let command = program::command(&spawn, self.descriptors)?;
        let stdio = spawn.stdio.clone().unwrap_or(Stdio::Null(Default::default()));
        let key = self.next_key;
        let new_log = self.state.join(format!("start-{key}.log"));
        let owner = (spawn.uid, spawn.gid);
        let (streams, child_ends) = ends::open(&stdio, &mut self.poll, &new_log, owner)
            .map_err(|e| failed(Fault::Stdio, e.raw_os_error().unwrap_or(0), e.to_string()))?;
        let start = process::start(&command, &child_ends.as_stdio()).map_err(|e| {
            logfile::remove(&new_log);
            fork_failed(&e)
        })?;
        drop(child_ends);
        self.next_key += 1;
        let exec = self.poll.watch(start.exec);
        let leader =
            start.leader.map(|words| Leader { pid: start.child, words: self.poll.watch(words) });
        let program = Program {
            pid: 0,
            tag: spawn.tag,
            command: shown(&spawn.argv),
            uid: spawn.uid,
            session: start.child,
            started_ms: now_ms(),
            starting: Some(Starting {
                reply_to: to,
                exec,
                early_exit: None,
                cwd: String::from_utf8_lossy(&spawn.cwd).into_owned(),
                name: spawn
                    .argv
                    .first()
                    .map(|a| String::from_utf8_lossy(a).into_owned())
                    .unwrap_or_default(),
            }),
            leader,
            streams,
            has_terminal: matches!(stdio, Stdio::Pty(_)),
            stopped_by: None,
            exited: None,
            attached: false,
            unattended_since: Instant::now(),
            orphan_after: (spawn.orphan_after_ms > 0)
                .then(|| Duration::from_millis(spawn.orphan_after_ms)),
            hung_up: false,
        };
        self.admit(key, program, start.child);
        Ok(None)
    }

    fn find_tag(&self, tag: &[u8]) -> Option<Key> {
        if tag.is_empty() {
            return None;
        }
        self.programs.iter().find(|(_, p)| p.tag == tag).map(|(key, _)| *key)
    }

    fn spawned_already(&mut self, key: Key, to: ReplyTo) -> Result<Option<Spawned>, Failed> {
        let Some(program) = self.programs.get_mut(&key) else { return Ok(None) };
        match &mut program.starting {
            // The one who asked first is gone, or asks again: the outcome goes to the newest.
            Some(starting) => {
                starting.reply_to = to;
                Ok(None)
            }
            None => Ok(Some(Spawned { pid: program.pid, existed: true })),
        }
    }

    pub(super) fn may_spawn(&mut self) -> Result<(), Failed> {
        if self.ending.is_some() {
            return Err(failed(Fault::ShuttingDown, 0, "this node's world is ending"));
        }
        if self.running() >= RUNNING_MAX {
            return Err(failed(
                Fault::LimitReached,
                0,
                format!("{RUNNING_MAX} programs run already"),
            ));
        }
        if self.guard.total() == 0 {
            return Err(failed(Fault::OutOfPids, 0, "no PID block was set yet"));
        }
        if self.guard.is_full() {
            self.count_tasks();
        }
        if self.guard.is_full() {
            let (used, total) = (self.guard.tasks(), self.guard.total());
            let why = format!("{used} of this node's {total} PIDs are in use; lease another block");
            return Err(failed(Fault::OutOfPids, 0, why));
        }
        Ok(())
    }

    fn admit(&mut self, key: Key, program: Program, child: u32) {
        for token in program.streams.tokens() {
            self.by_token.insert(token, key);
        }
        if let Some(starting) = &program.starting {
            self.by_token.insert(starting.exec.token(), key);
        }
        let has_leader = program.leader.is_some();
        if let Some(leader) = &program.leader {
            self.by_token.insert(leader.words.token(), key);
            self.children.insert(child, Role::Leader(key));
        }
        self.programs.insert(key, program);
        self.starting.insert(key);
        self.touched.insert(key);
        self.arm_words(key);
        if !has_leader {
            self.name_program(key, child);
        }
    }

    fn arm_words(&mut self, key: Key) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        let exec = program.starting.as_mut().map(|s| s.exec.want(Some(EventFlags::IN)));
        let leader = program.leader.as_mut().map(|l| l.words.want(Some(EventFlags::IN)));
        if matches!(exec, Some(Err(_))) || matches!(leader, Some(Err(_))) {
            self.start_over(key, Err(None));
        }
    }

    /// The program's own PID is known now.
    fn name_program(&mut self, key: Key, pid: u32) {
        // An old record of that number has had its time.
        if let Some(old) = self.by_pid.get(&pid).copied() {
            self.forget(old);
        }
        self.by_pid.insert(pid, key);
        self.children.insert(pid, Role::Program(key));
        let log = self.state.join(format!("{pid}.log"));
        if let Some(program) = self.programs.get_mut(&key) {
            program.pid = pid;
            // Under its first name it is found just as well.
            let _ = program.streams.settle_log(&log);
        }
    }

    pub(super) fn serve_program(&mut self, key: Key, token: u64) {
        let Some(program) = self.programs.get_mut(&key) else { return };
        self.touched.insert(key);
        if program.starting.as_ref().is_some_and(|s| s.exec.token() == token) {
            self.hear_start(key);
        } else if program.leader.as_ref().is_some_and(|l| l.words.token() == token) {
            self.hear_leader(key);
        } else {
            program.streams.ready(token);
        }
    }

    fn hear_start(&mut self, key: Key) {
        // Who the program is, is said before its start is over.
        self.hear_leader(key);
        let Some(program) = self.programs.get(&key) else { return };
        let Some(starting) = &program.starting else { return };
        match starting.exec.get().hear() {
            Ok(Heard::NothingYet) => {}
            Ok(Heard::Word(Word::Failed(failure))) => self.start_over(key, Err(Some(failure))),
            Ok(Heard::End) if program.pid != 0 => self.start_over(key, Ok(())),
            Ok(Heard::Word(_) | Heard::End) | Err(_) => self.start_over(key, Err(None)),
        }
    }

    /// The start has an outcome.
    fn start_over(&mut self, key: Key, outcome: Result<(), Option<StartFailure>>) {
        self.starting.remove(&key);
        let Some(program) = self.programs.get_mut(&key) else { return };
        let Some(starting) = program.starting.take() else { return };
        self.by_token.remove(&starting.exec.token());
        let pid = program.pid;
        match outcome {
            Ok(()) => {
                self.reply_to(starting.reply_to, Answer::Spawned(Spawned { pid, existed: false }));
                if let Some(exit) = starting.early_exit {
                    self.finish(key, exit);
                }
            }
            Err(failure) => {
                let refusal = match failure {
                    Some(failure) => start_failed(failure, &starting.name, &starting.cwd),
                    None => failed(Fault::System, 0, "the program died before it began"),
                };
                let leader = program.leader.as_ref().map(|l| l.pid);
                for child in [leader, Some(pid).filter(|p| *p != 0)].into_iter().flatten() {
                    if self.children.contains_key(&child) {
                        let _ = process::signal_child(child, SIGKILL);
                    }
                }
                self.forget(key);
                self.reply_to(starting.reply_to, Answer::Failed(refusal));
            }
        }
    }

    pub(super) fn hear_leader(&mut self, key: Key) {
        loop {
            let Some(program) = self.programs.get_mut(&key) else { return };
            let Some(leader) = &mut program.leader else { return };
            match leader.words.get().hear() {
                Ok(Heard::Word(Word::Child(pid))) => self.name_program(key, pid),
                Ok(Heard::Word(Word::Stopped(signal))) => self.stopped(key, signal),
                Ok(Heard::Word(Word::Continued)) => self.continued(key),
                Ok(Heard::Word(Word::Ended)) => {
                    program.streams.take_last_words();
                    // Its child, the zombie, becomes ours and is reaped with its true status.
                    let _ = process::signal_child(leader.pid, SIGKILL);
                }
                Ok(Heard::NothingYet) => return,
                Ok(Heard::Word(Word::Failed(_)) | Heard::End) | Err(_) => {
                    // It is dead or dying; SIGCHLD tells the rest.
                    let _ = leader.words.want(None);
                    return;
                }
            }
        }
    }
}
