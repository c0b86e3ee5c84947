//! Listing, signalling, waiting, logs and whereabouts.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use unum_net::{CallOptions, Code, Incoming, Status};
use unum_proto::ids::{NodeId, Pid};
use unum_proto::init::{
    Answer, Ask, Fault, Hangup, List as ListAsk, Program, Signal as SignalAsk, State, Target,
    Wait as WaitAsk,
};
use unum_proto::process::{
    ListReply, ListRequest, LogsReply, LogsRequest, PIECE_SIZE_MAX, Process, SignalReply,
    SignalRequest, SignalScope, WaitReply, WaitRequest, WhereReply, WhereRequest,
};

use super::attach::{ended_of, lost_with};
use super::{
    List, Logs, PEER_TIME_MAX, Processes, Signal, Wait, Where, no_such_process, peer_status, table,
    to, world_status,
};

/// How long a node may take to list its processes before it is called silent.
const LIST_TIME_MAX: Duration = Duration::from_secs(2);

/// The largest number of a signal: SIGRTMAX.
const SIGNAL_MAX: i32 = 64;

impl Processes {
    pub(super) async fn list(
        &self,
        incoming: Incoming,
        request: ListRequest,
    ) -> Result<ListReply, Status> {
        let mut all = self.list_here().await?;
        let mut silent: Vec<NodeId> = Vec::new();
        if !request.local {
            let others = self.shared.registry.read(|state| {
                let workers = state.nodes().members().filter(|node| node.is_worker());
                let others = workers.filter(|node| !self.is_here(node.id));
                others.map(|node| (node.id, node.is_up())).collect::<Vec<_>>()
            });
            silent = others.iter().filter(|(_, up)| !up).map(|(node, _)| *node).collect();
            let others = others.iter().filter(|(_, up)| *up).map(|(node, _)| *node);
            let options = CallOptions::within(LIST_TIME_MAX).caller(incoming.caller).fail_fast();
            let answers = others.map(|node| {
                let options = &options;
                async move {
                    let request = ListRequest { local: true };
                    (node, self.shared.client.call::<List>(&to(node), request, options).await)
                }
            });
            for (node, answer) in join_all(answers).await {
                match answer {
                    Ok(reply) => all.extend(reply.processes),
                    Err(_) => silent.push(node),
                }
            }
        }
        all.sort_by_key(|process| process.pid);
        silent.sort_unstable();
        let silent_names = silent.iter().map(|node| self.node_name(*node)).collect();
        let silent = silent.iter().map(|node| node.0).collect();
        Ok(ListReply { processes: all, silent, silent_names })
    }

    async fn list_here(&self) -> Result<Vec<Process>, Status> {
        let programs = self.programs().await?;
        let proc_path = self.shared.world.proc_path();
        let (node, name) = (self.shared.node, self.node_name(self.shared.node));
        let read = tokio::task::spawn_blocking(move || table::read(&proc_path)).await;
        let mut processes = read.map_err(|error| Status::internal(error.to_string()))?;
        for process in &mut processes {
            process.node = node.0;
            process.node_name.clone_from(&name);
            if let Some(program) = programs.iter().find(|program| program.pid == process.pid) {
                process.root = true;
                process.detached = !program.log.is_empty();
            }
        }
        Ok(processes)
    }

    async fn programs(&self) -> Result<Vec<Program>, Status> {
        match self.shared.world.ask(Ask::List(ListAsk {})).await.map_err(world_status)? {
            Answer::Programs(programs) => Ok(programs.programs),
            _ => Err(Status::internal("unum-init answered with what was not asked for")),
        }
    }

    pub(super) async fn signal(
        &self,
        incoming: Incoming,
        request: SignalRequest,
    ) -> Result<SignalReply, Status> {
        if !(0..=SIGNAL_MAX).contains(&request.signal) {
            return Err(Status::new(
                Code::Invalid,
                format!("there is no signal {}", request.signal),
            ));
        }
        let node = self.owner(Pid(request.pid))?;
        if incoming.caller.node.is_some() && !self.is_here(node) {
            return Err(no_such_process(Pid(request.pid)));
        }
        let options = CallOptions::within(PEER_TIME_MAX).caller(incoming.caller);
        self.signal_as(&options, request).await
    }

    pub(super) async fn signal_as(
        &self,
        options: &CallOptions,
        request: SignalRequest,
    ) -> Result<SignalReply, Status> {
        let pid = Pid(request.pid);
        let node = self.owner(pid)?;
        if !self.is_here(node) {
            let sent = self.shared.client.call::<Signal>(&to(node), request, options).await;
            return sent.map_err(|error| peer_status(&self.node_name(node), error));
        }
        let (uid, signal) = (options.caller.uid, request.signal as u32);
        let ask = |target, signal| {
            Ask::Signal(SignalAsk { pid: pid.0, target: target as i32, signal, uid })
        };
        match request.scope() {
            SignalScope::Process => self.tell_init(pid, uid, ask(Target::Process, signal)).await?,
            SignalScope::Group => self.tell_init(pid, uid, ask(Target::Group, signal)).await?,
            SignalScope::Session => {
                self.tell_init(pid, uid, Ask::Hangup(Hangup { pid: pid.0 })).await?;
            }
        }
        Ok(SignalReply {})
    }

    async fn tell_init(&self, pid: Pid, uid: u32, ask: Ask) -> Result<(), Status> {
        match self.shared.world.ask_for(uid, ask).await {
            Ok(_) => Ok(()),
            Err(error) if error.fault() == Some(Fault::NoSuchProcess) => Err(no_such_process(pid)),
            Err(error) => Err(world_status(error)),
        }
    }

    pub(super) async fn wait(
        &self,
        incoming: Incoming,
        request: WaitRequest,
    ) -> Result<WaitReply, Status> {
        let node = self.owner(Pid(request.pid))?;
        if !self.is_here(node) {
            let options = CallOptions::on_behalf(&incoming);
            let name = to(node);
            let waited = self.shared.client.call::<Wait>(&name, request, &options);
            return tokio::select! {
                waited = waited => {
                    waited.map_err(|error| peer_status(&self.node_name(node), error))
                }
                () = self.lost(node) => Ok(WaitReply { ended: Some(lost_with(node)) }),
            };
        }
        let ask = Ask::Wait(WaitAsk { pid: request.pid, forget: false });
        match self.shared.world.ask(ask).await {
            Ok(Answer::Exited(exited)) => Ok(WaitReply { ended: Some(ended_of(&exited)) }),
            Ok(_) => Err(Status::internal("unum-init answered with what was not asked for")),
            Err(error) if error.fault() == Some(Fault::NoSuchProcess) => {
                let text = format!("no program {} was started by `unum run`", request.pid);
                Err(Status::new(Code::NotFound, text))
            }
            Err(error) => Err(world_status(error)),
        }
    }

    pub(super) async fn logs(
        &self,
        incoming: Incoming,
        request: LogsRequest,
    ) -> Result<LogsReply, Status> {
        let pid = Pid(request.pid);
        let node = self.owner(pid)?;
        if !self.is_here(node) {
            let options = CallOptions::on_behalf(&incoming);
            let read = self.shared.client.call::<Logs>(&to(node), request, &options).await;
            return read.map_err(|error| peer_status(&self.node_name(node), error));
        }
        let programs = self.programs().await?;
        let program = programs.into_iter().find(|program| program.pid == pid.0);
        let program = program.ok_or_else(|| no_such_process(pid))?;
        if incoming.caller.uid != 0 && incoming.caller.uid != program.uid {
            return Err(Status::denied(format!("process {pid} belongs to another user")));
        }
        if program.log.is_empty() {
            let text = format!("process {pid} has no log: it was not started with --detach");
            return Err(Status::new(Code::Invalid, text));
        }
        let ended = program.state() == State::Exited;
        let (log, offset) = (program.log, request.offset);
        let read = tokio::task::spawn_blocking(move || read_log(Path::new(&log), offset)).await;
        let read = read.map_err(|error| Status::internal(error.to_string()))?;
        let (offset, bytes) = read.map_err(|error| {
            Status::internal(format!("the log of process {pid} cannot be read: {error}"))
        })?;
        Ok(LogsReply { offset, complete: ended && bytes.is_empty(), bytes: bytes.into() })
    }

    pub(super) async fn locate(
        &self,
        incoming: Incoming,
        request: WhereRequest,
    ) -> Result<WhereReply, Status> {
        let here = |node: NodeId| WhereReply { node: node.0, node_name: self.node_name(node) };
        if request.pid == 0 {
            return Ok(here(self.shared.node));
        }
        let pid = Pid(request.pid);
        let node = self.owner(pid)?;
        if !self.is_here(node) {
            let options = CallOptions::within(PEER_TIME_MAX).caller(incoming.caller).fail_fast();
            let asked = self.shared.client.call::<Where>(&to(node), request, &options).await;
            return asked.map_err(|error| peer_status(&self.node_name(node), error));
        }
        let known = self.shared.world.proc_path().join(pid.0.to_string()).exists();
        if known { Ok(here(node)) } else { Err(no_such_process(pid)) }
    }
}

/// A piece of a log whose older half may lie beside it with `.1` appended.
fn read_log(path: &Path, offset: u64) -> io::Result<(u64, Vec<u8>)> {
    let older = path.with_added_extension("1");
    let older_size = older.metadata().map_or(0, |metadata| metadata.len());
    let (file, at) = match offset < older_size {
        true => (older.as_path(), offset),
        false => (path, offset - older_size),
    };
    let mut file = std::fs::File::open(file)?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(PIECE_SIZE_MAX as u64).read_to_end(&mut bytes)?;
    Ok((offset, bytes))
}
