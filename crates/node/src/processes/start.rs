//! Where a program shall run, and its start there.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio::sync::oneshot;
use unum_core::placement::programs::{Candidate, choose};
use unum_net::{CallOptions, Caller, Code, Incoming, Status};
use unum_proto::ids::{NodeId, Pid};
use unum_proto::init::{Answer, Ask, Fault, LogStdio, PipeStdio, PtyStdio, Rlimit, Spawn, Stdio};
use unum_proto::process::{
    ARGUMENTS_SIZE_MAX, Program, StartFailure, StartReply, StartRequest, StartStep,
};

use super::{PEER_TIME_MAX, Processes, Start, peer_status, to, world_status};
use crate::world::WorldError;

/// How long a program may wait for somebody to attach again before it is hung up.
const ORPHAN_AFTER: Duration = Duration::from_secs(120);

/// How long a placement is counted before gossip has surely brought the node's new load.
const PLACED_MEMORY: Duration = Duration::from_secs(2);

/// Programs sent to a node lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    count: u32,
    since: Instant,
}

/// Programs that were started for a caller on this node and wait for it to attach. An entry lives
/// no longer than the caller's connection, nor than [`ORPHAN_AFTER`].
#[derive(Debug, Default)]
pub(super) struct Unattended {
    /// By PID and user, for another user's attempt changes nothing. Dropped when the caller attaches.
    /// Never held across an await.
    programs: Mutex<BTreeMap<(u32, u32), oneshot::Sender<()>>>,
}

impl Unattended {
    fn add(&self, pid: u32, user: u32) -> oneshot::Receiver<()> {
        let (attached, wait) = oneshot::channel();
        self.lock().insert((pid, user), attached);
        wait
    }

    pub(super) fn remove(&self, pid: u32, user: u32) {
        self.lock().remove(&(pid, user));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u32, u32), oneshot::Sender<()>>> {
        self.programs.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Processes {
    pub(super) async fn start(
        &self,
        incoming: Incoming,
        request: StartRequest,
    ) -> Result<StartReply, Status> {
        let detached = request.program.as_ref().is_some_and(|program| program.detached);
        if detached || incoming.caller.node.is_some() {
            return self.start_somewhere(&incoming, request).await;
        }
        // Goes on by itself: a caller that is killed before it heard of its program cannot attach to
        // it, and so must be missed here.
        let (service, (tell, told)) = (self.clone(), oneshot::channel());
        drop(tokio::spawn(async move {
            let started = service.start_somewhere(&incoming, request).await;
            let pid = started.as_ref().ok().map(|started| started.pid);
            let user = incoming.caller.uid;
            let unattended = pid.map(|pid| (pid, service.shared.unattended.add(pid, user)));
            // Nobody to tell: the connection has ended, as is seen below.
            let _ = tell.send(started);
            if let Some((pid, attached)) = unattended {
                service.expect_caller(&incoming, pid, attached).await;
            }
        }));
        told.await.unwrap_or_else(|_| Err(Status::internal("the start was given up")))
    }

    /// Hangs a program up if its caller goes before it has attached.
    async fn expect_caller(&self, caller: &Incoming, pid: u32, attached: oneshot::Receiver<()>) {
        let gone = tokio::select! {
            _ = attached => return,
            // Its node's unum-init gives it up now.
            () = tokio::time::sleep(ORPHAN_AFTER) => false,
            () = caller.disconnected() => true,
        };
        self.shared.unattended.remove(pid, caller.caller.uid);
        if gone {
            self.hang_up(caller.caller.clone(), Pid(pid)).await;
        }
    }

    /// Starts the program on its node, here or elsewhere.
    async fn start_somewhere(
        &self,
        incoming: &Incoming,
        request: StartRequest,
    ) -> Result<StartReply, Status> {
        let program = request.program.as_ref().ok_or_else(|| invalid("no program was named"))?;
        check(program)?;
        let node = match request.node.as_str() {
            "" => self.place()?,
            wanted => self.find(wanted)?,
        };
        if self.is_here(node) {
            return self.start_here(&incoming.caller, &request, program).await;
        }
        if incoming.caller.node.is_some() {
            return Err(failure(StartStep::Place, 0, "this node was asked to start it elsewhere"));
        }
        let name = self.node_name(node);
        let request = StartRequest { node: node.0.to_string(), ..request };
        let mut options = CallOptions::on_behalf(incoming);
        let limit = tokio::time::Instant::now() + PEER_TIME_MAX;
        options.deadline = Some(options.deadline.map_or(limit, |deadline| deadline.min(limit)));
        let started = self.shared.client.call::<Start>(&to(node), request, &options).await;
        started.map_err(|error| peer_status(&name, error))
    }

    /// A name or a number of a node that may run programs.
    fn find(&self, wanted: &str) -> Result<NodeId, Status> {
        self.shared.registry.read(|state| {
            let by_number = || wanted.parse().ok().and_then(|id| state.nodes().get(NodeId(id)));
            let node = state.nodes().by_name(wanted).or_else(by_number);
            match node {
                None => {
                    let text = format!("there is no node {wanted}; see `unum nodes`");
                    Err(failure(StartStep::Place, 0, text))
                }
                Some(node) if !node.is_worker() => {
                    let text = format!("node {} does not run programs: it is a witness", node.name);
                    Err(failure(StartStep::Place, 0, text))
                }
                Some(node) if !node.is_up() => {
                    let text = format!("node {} is down; see `unum nodes`", node.name);
                    Err(failure(StartStep::Place, 0, text))
                }
                Some(node) => Ok(node.id),
            }
        })
    }

    fn place(&self) -> Result<NodeId, Status> {
        let mut placed = self.shared.placed.lock().unwrap_or_else(|poison| poison.into_inner());
        let now = Instant::now();
        placed.retain(|_, placed| now.duration_since(placed.since) < PLACED_MEMORY);
        let candidates: Vec<Candidate> = self.shared.nodes.candidates();
        let candidates = candidates.into_iter().map(|candidate| {
            let sent = placed.get(&candidate.node).map_or(0, |placed| placed.count);
            Candidate { recent: candidate.recent + sent, ..candidate }
        });
        let candidates: Vec<Candidate> = candidates.collect();
        let chosen = choose(&candidates, rand::random()).ok_or_else(|| {
            failure(StartStep::Place, 0, "no node of the cluster can run programs now")
        })?;
        placed.entry(chosen).or_insert(Placed { count: 0, since: now }).count += 1;
        Ok(chosen)
    }

    async fn start_here(
        &self,
        caller: &Caller,
        request: &StartRequest,
        program: &Program,
    ) -> Result<StartReply, Status> {
        let spawn = spawn(caller, &request.key, program);
        match self.shared.world.ask(Ask::Spawn(spawn)).await {
            Ok(Answer::Spawned(spawned)) => Ok(StartReply {
                pid: spawned.pid,
                node: self.shared.node.0,
                node_name: self.node_name(self.shared.node),
            }),
            Ok(_) => Err(Status::internal("unum-init answered with what was not asked for")),
            Err(error) => Err(start_status(error)),
        }
    }
}

fn spawn(caller: &Caller, key: &[u8], program: &Program) -> Spawn {
    let (stdio, orphan_after) = match program.terminal {
        _ if program.detached => (Stdio::Log(LogStdio {}), Duration::ZERO),
        Some(size) => {
            let pty = PtyStdio { rows: size.rows, cols: size.columns, term: Vec::new() };
            (Stdio::Pty(pty), ORPHAN_AFTER)
        }
        None => {
            let pipes = PipeStdio { stdin: true, stdout: true, stderr: true };
            (Stdio::Pipes(pipes), ORPHAN_AFTER)
        }
    };
    let limit = |limit: &unum_proto::process::Limit| Rlimit {
        resource: limit.resource,
        soft: limit.soft,
        hard: limit.hard,
    };
    Spawn {
        tag: key.to_vec(),
        argv: vectors(&program.arguments),
        env: vectors(&program.environment),
        cwd: program.directory.to_vec(),
        uid: caller.uid,
        gid: caller.gid,
        groups: caller.groups.clone(),
        umask: program.umask & 0o777,
        rlimits: program.limits.iter().map(limit).collect(),
        nice: program.nice.max(if caller.uid == 0 { -20 } else { 0 }),
        stdio: Some(stdio),
        orphan_after_ms: orphan_after.as_millis() as u64,
    }
}

fn vectors(parts: &[Bytes]) -> Vec<Vec<u8>> {
    parts.iter().map(|part| part.to_vec()).collect()
}

fn check(program: &Program) -> Result<(), Status> {
    let size: usize = program.arguments.iter().chain(&program.environment).map(Bytes::len).sum();
    if program.arguments.is_empty() {
        return Err(invalid("no command was given"));
    }
    if size > ARGUMENTS_SIZE_MAX {
        return Err(invalid(&format!(
            "arguments and environment have {size} bytes; the most is {ARGUMENTS_SIZE_MAX}"
        )));
    }
    let zero = |part: &Bytes| part.contains(&0);
    if program.arguments.iter().chain(&program.environment).any(zero) {
        return Err(invalid("an argument or a variable has a zero byte in it"));
    }
    if !program.directory.starts_with(b"/") {
        return Err(invalid("the working directory is not an absolute path"));
    }
    Ok(())
}

fn invalid(text: &str) -> Status {
    Status::new(Code::Invalid, text)
}

fn start_status(error: WorldError) -> Status {
    let step = match error.fault() {
        Some(Fault::Directory) => StartStep::Directory,
        Some(Fault::CommandNotFound) => StartStep::Find,
        Some(Fault::NotExecutable) => StartStep::Execute,
        Some(
            Fault::OutOfPids
            | Fault::OutOfResources
            | Fault::Stdio
            | Fault::Credentials
            | Fault::LimitReached,
        ) => StartStep::Resources,
        _ => return world_status(error),
    };
    let errno = match &error {
        WorldError::Refused(failed) => failed.errno,
        WorldError::Gone | WorldError::Strange => 0,
    };
    failure(step, errno, error.to_string())
}

fn failure(step: StartStep, errno: i32, text: impl Into<String>) -> Status {
    let detail = StartFailure { step: step as i32, errno };
    Status::new(Code::Service, text).with_detail(detail.encode_to_vec())
}
