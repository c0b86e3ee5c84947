//! `unum nodes`, `status`, `token`, `leave` and `remove`: the cluster as its members see it.
//!
//! The field names of the JSON are an interface, described in docs/spec/cli-json.md.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use unum_proto::admin::{
    DaemonState, LeaveRequest, Node, NodeRole, NodeState, NodesRequest, RemoveRequest, Scrub,
    StatusReply, StatusRequest, Token as TokenMessage, TokenCreateRequest, TokenListRequest,
    TokenRevokeRequest, Upkeep, Work,
};

use crate::args::{Role, TokenVerb};
use crate::daemon::{
    Daemon, Leave, ListNodes, Remove, ShowStatus, TokenCreate, TokenList, TokenRevoke, block_on,
};
use crate::failure::Result;
use crate::output::{Output, Table, Tone};

const MIB: u64 = 1 << 20;
/// Who leaves hands over what it holds; the daemon itself gives up earlier.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1300);

#[derive(Serialize)]
struct NodeRow {
    id: u64,
    name: String,
    state: &'static str,
    role: &'static str,
    voter: bool,
    leader: bool,
    address: String,
    cores: u32,
    load: f64,
    memory_bytes: u64,
    memory_free_bytes: u64,
    processes: u32,
    epoch: u64,
    version: String,
    arch: String,
    joined: Option<String>,
    heard: Option<String>,
}

impl From<&Node> for NodeRow {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id,
            name: node.name.clone(),
            state: node.state().word(),
            role: node.role().word(),
            voter: node.voter,
            leader: node.leader,
            address: node.address.clone(),
            cores: node.cores,
            load: f64::from(node.load_milli) / 1000.0,
            memory_bytes: node.memory_bytes,
            memory_free_bytes: node.memory_free_bytes,
            processes: node.processes,
            epoch: node.epoch,
            version: node.version.clone(),
            arch: node.arch.clone(),
            joined: timestamp(node.joined_ms),
            heard: timestamp(node.heard_ms),
        }
    }
}

/// RFC 3339 in UTC; nothing for 0.
pub fn timestamp(ms: u64) -> Option<String> {
    let nanoseconds = i128::from(ms) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?;
    (ms != 0).then(|| time.format(&Rfc3339).ok()).flatten()
}

pub fn nodes(socket: &Path, out: &Output) -> Result<()> {
    let reply = block_on(async {
        Daemon::connect(socket).await?.call::<ListNodes>(NodesRequest {}).await
    })?;
    if reply.no_quorum {
        out.note("no majority of the voters answers: this is what this node knew last");
    }
    let rows: Vec<NodeRow> = reply.nodes.iter().map(NodeRow::from).collect();
    out.list(&rows, || nodes_table(&reply.nodes, &rows, out))
}

fn nodes_table(nodes: &[Node], rows: &[NodeRow], out: &Output) -> Table {
    let mut table = Table::new(&[
        "ID", "NAME", "STATE", "ROLE", "VOTE", "CORES", "LOAD", "FREE", "PROCS", "ADDRESS",
    ]);
    for (node, row) in nodes.iter().zip(rows) {
        let vote = match (row.leader, row.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "-",
        };
        // A node that has not told its load yet.
        let told = row.memory_free_bytes > 0;
        table.row([
            row.id.to_string(),
            row.name.clone(),
            row.state.into(),
            row.role.into(),
            vote.into(),
            row.cores.to_string(),
            if told { format!("{:.2}", row.load) } else { "-".into() },
            if told { format!("{}M", row.memory_free_bytes / MIB) } else { "-".into() },
            row.processes.to_string(),
            row.address.clone(),
        ]);
        table.tone(2, tone_of(node.state()), out);
    }
    table
}

fn tone_of(state: NodeState) -> Tone {
    match state {
        NodeState::Alive => Tone::Good,
        NodeState::Joining | NodeState::Suspect | NodeState::Leaving => Tone::Warning,
        NodeState::Dead => Tone::Bad,
        NodeState::Unspecified => Tone::Faint,
    }
}

#[derive(Serialize)]
struct StatusObject {
    state: &'static str,
    cluster: Option<String>,
    id: Option<u64>,
    name: String,
    address: String,
    leader: Option<u64>,
    term: u64,
    applied: u64,
    nodes: u32,
    nodes_alive: u32,
    voters: u32,
    voters_alive: u32,
    losses_survivable: u32,
    losses_reason: String,
    chunks_degraded: u64,
    certificate_expires: Option<String>,
    mount: Option<String>,
    version: String,
    daemon_pid: u32,
    started: Option<String>,
    warnings: Vec<String>,
    upkeep: Option<UpkeepObject>,
}

#[derive(Serialize)]
struct UpkeepObject {
    repair: Option<WorkObject>,
    moving: Option<WorkObject>,
    chunks_without_source: u64,
    scrub: Option<ScrubObject>,
}

#[derive(Serialize)]
struct WorkObject {
    chunks: u64,
    bytes: u64,
    done_bytes: u64,
    bytes_per_second: Option<u64>,
    seconds_left: Option<u64>,
}

#[derive(Serialize)]
struct ScrubObject {
    running: bool,
    checked_bytes: u64,
    total_bytes: u64,
    finished: Option<String>,
    found: u64,
    mended: u64,
    unmended: u64,
}

impl From<&Upkeep> for UpkeepObject {
    fn from(upkeep: &Upkeep) -> Self {
        let scrub = upkeep.scrub.as_ref().map(|scrub| ScrubObject {
            running: scrub.began_ms != 0,
            checked_bytes: scrub.checked_bytes,
            total_bytes: scrub.total_bytes,
            finished: timestamp(scrub.finished_ms),
            found: scrub.found,
            mended: scrub.mended,
            unmended: scrub.unmended,
        });
        Self {
            repair: upkeep.repair.as_ref().map(WorkObject::from),
            moving: upkeep.moving.as_ref().map(WorkObject::from),
            chunks_without_source: upkeep.chunks_without_source,
            scrub,
        }
    }
}

impl From<&Work> for WorkObject {
    fn from(work: &Work) -> Self {
        Self {
            chunks: work.chunks,
            bytes: work.bytes,
            done_bytes: work.done_bytes,
            bytes_per_second: Some(work.rate).filter(|rate| *rate != 0),
            seconds_left: Some(work.left_ms.div_ceil(1000)).filter(|left| *left != 0),
        }
    }
}

impl From<&StatusReply> for StatusObject {
    fn from(status: &StatusReply) -> Self {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let id = |id: u64| Some(id).filter(|id| *id != 0);
        Self {
            state: status.state().word(),
            cluster: text(&status.cluster),
            id: id(status.node),
            name: status.name.clone(),
            address: status.address.clone(),
            leader: id(status.leader),
            term: status.term,
            applied: status.applied,
            nodes: status.nodes,
            nodes_alive: status.nodes_alive,
            voters: status.voters,
            voters_alive: status.voters_alive,
            losses_survivable: status.losses_survivable,
            losses_reason: status.losses_reason.clone(),
            chunks_degraded: status.chunks_degraded,
            certificate_expires: timestamp(status.certificate_expires_ms),
            mount: text(&status.mount),
            version: status.version.clone(),
            daemon_pid: status.daemon_pid,
            started: timestamp(status.started_ms),
            warnings: status.warnings.clone(),
            upkeep: status.upkeep.as_ref().map(UpkeepObject::from),
        }
    }
}

pub fn status(socket: &Path, out: &Output) -> Result<()> {
    let reply = block_on(async {
        Daemon::connect(socket).await?.call::<ShowStatus>(StatusRequest {}).await
    })?;
    out.one(&StatusObject::from(&reply), || status_text(&reply, out))
}

fn status_text(status: &StatusReply, out: &Output) -> String {
    let state = status.state();
    let tone = match state {
        DaemonState::Ready => Tone::Good,
        DaemonState::Solitary | DaemonState::Starting | DaemonState::Stopping => Tone::Warning,
        DaemonState::NoQuorum => Tone::Bad,
        DaemonState::Unspecified => Tone::Faint,
    };
    let mut lines = vec![format!("state     {}", out.tone(tone, state.word()))];
    if status.cluster.is_empty() {
        lines.push("cluster   none: `unum up` makes one, `unum join` joins one".into());
    } else {
        lines.extend(member_lines(status));
    }
    for text in &status.warnings {
        let wrapped = wrap("!", text, " ");
        lines.extend(wrapped.iter().map(|line| out.tone(Tone::Warning, line)));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn member_lines(status: &StatusReply) -> Vec<String> {
    let leader = match status.leader {
        0 => "unknown".into(),
        leader if leader == status.node => "this node".into(),
        leader => format!("node {leader}"),
    };
    let mut lines = vec![
        format!("node      {} (id {}) at {}", status.name, status.node, status.address),
        format!("cluster   {}", status.cluster),
        format!("nodes     {} of {} alive", status.nodes_alive, status.nodes),
        format!("voters    {} of {} alive, leader: {leader}", status.voters_alive, status.voters),
    ];
    lines.extend(survival_lines(status));
    lines.extend(files_lines(status));
    if !status.mount.is_empty() {
        lines.push(format!("mount     {}", status.mount));
    }
    if let Some(expires) = timestamp(status.certificate_expires_ms) {
        lines.push(format!("identity  valid until {expires}"));
    }
    lines
}

/// What is done for the contents of files, where there is something to say.
fn files_lines(status: &StatusReply) -> Vec<String> {
    let upkeep = status.upkeep.clone().unwrap_or_default();
    let mut lines = Vec::new();
    if let Some(work) = &upkeep.repair {
        let chunks = status.chunks_degraded.max(work.chunks);
        lines.push(format!("files     {chunks} chunks lack replicas; {}", copying(work)));
    } else if status.chunks_degraded > 0 {
        let when = "copied anew when a dead node stays away or is removed";
        lines.push(format!("files     {} chunks lack replicas; {when}", status.chunks_degraded));
    }
    if upkeep.chunks_without_source > 0 {
        let chunks = upkeep.chunks_without_source;
        lines.push(format!("files     {chunks} chunks are on no node that lives: see `unum fsck`"));
    }
    if let Some(work) = &upkeep.moving {
        let chunks = work.chunks;
        lines.push(format!("files     {chunks} chunks move to other nodes; {}", copying(work)));
    }
    lines.extend(upkeep.scrub.as_ref().and_then(scrub_line));
    lines
}

fn copying(work: &Work) -> String {
    let (done, all) = (size(work.done_bytes), size(work.done_bytes + work.bytes));
    let rate = match work.rate {
        0 => String::new(),
        rate => format!(", {}/s", size(rate)),
    };
    let left = match work.left_ms {
        0 => String::new(),
        ms => format!(", {} left", time_text(Duration::from_millis(ms))),
    };
    format!("{done} of {all} copied{rate}{left}")
}

fn scrub_line(scrub: &Scrub) -> Option<String> {
    let mut told = Vec::new();
    if scrub.began_ms != 0 && scrub.total_bytes > 0 {
        told.push(format!(
            "{} of {} checked here",
            size(scrub.checked_bytes),
            size(scrub.total_bytes)
        ));
    }
    if scrub.found > 0 {
        told.push(format!("{} damaged replicas found, {} mended", scrub.found, scrub.mended));
    }
    if scrub.unmended > 0 {
        told.push(format!("{} without a good copy", scrub.unmended));
    }
    (!told.is_empty()).then(|| format!("scrub     {}", told.join("; ")))
}

/// Bytes as people like to read them.
pub fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

fn time_text(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// What the daemon says of it, as a sentence, wrapped; else the bare number.
fn survival_lines(status: &StatusReply) -> Vec<String> {
    let told = status.losses_reason.strip_prefix("survives ").unwrap_or(&status.losses_reason);
    let text = match told.is_empty() {
        true => format!("the loss of {}", count_of(status.losses_survivable, "more node")),
        false => told.to_string(),
    };
    wrap("survives ", &text, "         ")
}

/// Text in lines that fit, the first after `first`, the others after `next`.
fn wrap(first: &str, text: &str, next: &str) -> Vec<String> {
    let mut lines = vec![String::from(first)];
    for word in text.split_whitespace() {
        let length = lines.last().map_or(0, |line| line.chars().count());
        if length + 1 + word.chars().count() > crate::output::TABLE_WIDTH_MAX {
            lines.push(String::from(next));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines
}

fn count_of(count: u32, what: &str) -> String {
    match count {
        0 => format!("no {what}"),
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    }
}

#[derive(Serialize)]
struct NewToken {
    token: String,
    id: String,
    addresses: Vec<String>,
    expires: Option<String>,
    command: String,
}

#[derive(Serialize)]
struct TokenRow {
    id: String,
    role: &'static str,
    created: Option<String>,
    expires: Option<String>,
}

impl From<&TokenMessage> for TokenRow {
    fn from(token: &TokenMessage) -> Self {
        Self {
            id: token.id.clone(),
            role: token.role().word(),
            created: timestamp(token.created_ms),
            expires: timestamp(token.expires_ms),
        }
    }
}

pub fn token(socket: &Path, verb: TokenVerb, out: &Output) -> Result<()> {
    block_on(async {
        let daemon = Daemon::connect(socket).await?;
        match verb {
            TokenVerb::Create { ttl, role } => {
                let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                create_token(&daemon, ttl_ms, role, out).await
            }
            TokenVerb::List => list_tokens(&daemon, out).await,
            TokenVerb::Revoke { id } => {
                daemon.call::<TokenRevoke>(TokenRevokeRequest { id }).await.map(drop)
            }
        }
    })
}

async fn create_token(daemon: &Daemon, ttl_ms: u64, role: Role, out: &Output) -> Result<()> {
    let role = match role {
        Role::Node => NodeRole::Node,
        Role::Witness => NodeRole::Witness,
    };
    let request = TokenCreateRequest { ttl_ms, role: role.into() };
    let reply = daemon.call::<TokenCreate>(request).await?;
    let token = NewToken {
        command: format!("unum join {} {}", reply.token, reply.addresses.join(" ")),
        token: reply.token,
        id: reply.id,
        addresses: reply.addresses,
        expires: timestamp(reply.expires_ms),
    };
    out.one(&token, || {
        let left = minutes_from_now(reply.expires_ms);
        format!("On the new machine, once, within {left} minutes:\n\n    {}\n", token.command)
    })
}

fn minutes_from_now(ms: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let left_ms = u128::from(ms).saturating_sub(now);
    u64::try_from(left_ms.div_ceil(60_000)).unwrap_or(u64::MAX)
}

async fn list_tokens(daemon: &Daemon, out: &Output) -> Result<()> {
    let reply = daemon.call::<TokenList>(TokenListRequest {}).await?;
    let rows: Vec<TokenRow> = reply.tokens.iter().map(TokenRow::from).collect();
    out.list(&rows, || {
        let mut table = Table::new(&["ID", "ROLE", "CREATED", "EXPIRES"]);
        for row in &rows {
            let created = row.created.clone().unwrap_or_default();
            let expires = row.expires.clone().unwrap_or_default();
            table.row([row.id.clone(), row.role.into(), created, expires]);
        }
        table
    })
}

pub fn leave(socket: &Path, force: bool, out: &Output) -> Result<()> {
    block_on(async {
        let daemon = Daemon::connect(socket).await?;
        daemon.call_within::<Leave>(LeaveRequest { force }, LEAVE_PATIENCE).await
    })?;
    out.say("this machine has left its cluster");
    Ok(())
}

pub fn remove(socket: &Path, node: String, force: bool, out: &Output) -> Result<()> {
    let reply = block_on(async {
        Daemon::connect(socket).await?.call::<Remove>(RemoveRequest { node, force }).await
    })?;
    out.say(&format!("node {} (id {}) is no longer a member", reply.name, reply.node));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn node() -> Node {
        Node {
            id: 1,
            name: "n1".into(),
            state: NodeState::Alive.into(),
            role: NodeRole::Node.into(),
            voter: true,
            leader: true,
            address: "10.117.0.1:7117".into(),
            cores: 2,
            load_milli: 1250,
            memory_bytes: 8 << 30,
            memory_free_bytes: 3 << 30,
            epoch: 4,
            version: "0.1.0".into(),
            joined_ms: 1_700_000_000_000,
            heard_ms: 0,
            processes: 12,
            arch: "x86_64".into(),
        }
    }

    #[test]
    fn the_json_of_a_node_is_stable() {
        let text = serde_json::to_string_pretty(&NodeRow::from(&node())).expect("it is plain");
        expect![[r#"
            {
              "id": 1,
              "name": "n1",
              "state": "alive",
              "role": "node",
              "voter": true,
              "leader": true,
              "address": "10.117.0.1:7117",
              "cores": 2,
              "load": 1.25,
              "memory_bytes": 8589934592,
              "memory_free_bytes": 3221225472,
              "processes": 12,
              "epoch": 4,
              "version": "0.1.0",
              "arch": "x86_64",
              "joined": "2023-11-14T22:13:20Z",
              "heard": null
            }"#]]
        .assert_eq(&text);
    }

    #[test]
    fn the_table_of_nodes_fits_a_line() {
        let out = Output::new(true);
        let long = Node { name: "n".repeat(63), address: "a".repeat(200), ..node() };
        let nodes = [node(), long];
        let rows: Vec<NodeRow> = nodes.iter().map(NodeRow::from).collect();
        let text = nodes_table(&nodes, &rows, &out).render(crate::output::TABLE_WIDTH_MAX);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn what_is_done_for_files_is_told_in_lines_that_fit() {
        let status = |chunks_degraded, upkeep| {
            let status =
                StatusReply { chunks_degraded, upkeep: Some(upkeep), ..Default::default() };
            let lines = files_lines(&status);
            assert!(lines.iter().all(|line| line.chars().count() <= 100), "{lines:?}");
            lines.join("\n")
        };
        assert_eq!(status(0, Upkeep::default()), "");
        let rest = Scrub { checked_bytes: 5, total_bytes: 5, ..Scrub::default() };
        assert_eq!(status(0, Upkeep { scrub: Some(rest), ..Upkeep::default() }), "");
        let work = |chunks, rate, left_ms| {
            Some(Work { chunks, bytes: 36 << 20, done_bytes: 12 << 20, rate, left_ms })
        };
        let busy = Upkeep {
            repair: work(36, 2 << 20, 18_000),
            moving: work(1_000_000, 0, 0),
            chunks_without_source: 3,
            scrub: Some(Scrub {
                began_ms: 1,
                checked_bytes: 5 << 30,
                total_bytes: 7 << 40,
                found: 3,
                mended: 2,
                unmended: 1,
                ..Scrub::default()
            }),
        };
        expect![[r#"
            files     36 chunks lack replicas; 12.0 MiB of 48.0 MiB copied, 2.0 MiB/s, 18 s left
            files     3 chunks are on no node that lives: see `unum fsck`
            files     1000000 chunks move to other nodes; 12.0 MiB of 48.0 MiB copied
            scrub     5.0 GiB of 7.0 TiB checked here; 3 damaged replicas found, 2 mended; 1 without a good copy"#]]
        .assert_eq(&status(36, busy));
        expect![[r#"
            files     7 chunks lack replicas; copied anew when a dead node stays away or is removed"#]]
        .assert_eq(&status(7, Upkeep::default()));
    }

    #[test]
    fn a_solitary_daemon_says_what_to_do() {
        let status = StatusReply { state: DaemonState::Solitary.into(), ..Default::default() };
        expect![[r#"
            state     solitary
            cluster   none: `unum up` makes one, `unum join` joins one
        "#]]
        .assert_eq(&status_text(&status, &Output::new(true)));
    }
}
