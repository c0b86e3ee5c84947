//! `unum fsck`: the cluster checks its file tree and the contents of all files.
//!
//! The exit status is the sum that fsck(8) gives: 1 something was mended, 4 something is left, 8 not
//! everything could be checked.

use std::path::Path;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use prost::Message;
use serde::Serialize;
use unum_net::{CallOptions, StreamReceiver};
use unum_proto::admin::fsck_event::Kind;
use unum_proto::admin::{FsckEvent, FsckFinding, FsckProgress, FsckReply, FsckRequest};

use crate::cluster::size;
use crate::daemon::{Daemon, Fsck, block_on, local};
use crate::failure::{Failure, Result};
use crate::output::{Output, QUIET_TIME, Tone};

const EXIT_MENDED: u8 = 1;
const EXIT_LEFT: u8 = 4;
const EXIT_UNCHECKED: u8 = 8;
/// Longest event; what is longer is no event.
const EVENT_SIZE_MAX: usize = 1 << 20;

#[derive(Serialize)]
struct Report {
    clean: bool,
    inodes: u64,
    chunks: u64,
    replicas: u64,
    bytes: u64,
    found: u64,
    mended: u64,
    left: u64,
    unchecked_nodes: u64,
    dead_nodes: Vec<String>,
    unused_chunks: u64,
    unused_bytes: u64,
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    kind: &'static str,
    what: String,
    node: Option<String>,
    chunk: Option<String>,
    ino: Option<u64>,
    path: Option<String>,
    mended: bool,
}

impl From<&FsckFinding> for Finding {
    fn from(finding: &FsckFinding) -> Self {
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            kind: finding.kind().word(),
            what: finding.what.clone(),
            node: text(finding.node.clone()),
            chunk: text(finding.chunk.clone()),
            ino: Some(finding.ino).filter(|ino| *ino != 0),
            path: text(String::from_utf8_lossy(&finding.path).into_owned()),
            mended: finding.mended,
        }
    }
}

impl Report {
    fn new(reply: &FsckReply, findings: &[FsckFinding]) -> Self {
        Self {
            clean: reply.found == 0,
            inodes: reply.inodes,
            chunks: reply.chunks,
            replicas: reply.replicas,
            bytes: reply.bytes,
            found: reply.found,
            mended: reply.mended,
            left: reply.found.saturating_sub(reply.mended).saturating_sub(reply.unchecked),
            unchecked_nodes: reply.unchecked,
            dead_nodes: reply.dead.clone(),
            unused_chunks: reply.young_garbage,
            unused_bytes: reply.young_garbage_bytes,
            findings: findings.iter().map(Finding::from).collect(),
        }
    }

    fn exit(&self) -> u8 {
        let when = |is: bool, exit: u8| if is { exit } else { 0 };
        when(self.mended > 0, EXIT_MENDED)
            + when(self.left > 0, EXIT_LEFT)
            + when(self.unchecked_nodes > 0, EXIT_UNCHECKED)
    }

    fn text(&self, out: &Output) -> String {
        let mut lines: Vec<String> =
            self.findings.iter().map(|finding| finding.line(out)).collect();
        let untold = self.found.saturating_sub(self.findings.len() as u64);
        if untold > 0 {
            lines.push(format!("... and {untold} more"));
        }
        lines.push(format!(
            "checked {} inodes, {} chunks, {} replicas ({})",
            self.inodes,
            self.chunks,
            self.replicas,
            size(self.bytes)
        ));
        if self.unused_chunks > 0 {
            let (chunks, bytes) = (self.unused_chunks, size(self.unused_bytes));
            lines.push(format!("{chunks} chunks ({bytes}) are not used and will be deleted"));
        }
        if !self.dead_nodes.is_empty() {
            lines.push(format!("not asked, since dead: {}", self.dead_nodes.join(", ")));
        }
        let verdict = match (self.found, self.left + self.unchecked_nodes) {
            (0, _) => out.tone(Tone::Good, "clean"),
            (found, 0) => out.tone(Tone::Good, &format!("{found} found, all mended")),
            (found, left) => {
                let told = format!("{found} found, {} mended, {left} left", self.mended);
                out.tone(Tone::Bad, &told)
            }
        };
        lines.push(verdict);
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl Finding {
    fn line(&self, out: &Output) -> String {
        let file = match (&self.path, self.ino) {
            (Some(path), _) => format!("{path}: "),
            (None, Some(ino)) => format!("inode {ino}: "),
            (None, None) => String::new(),
        };
        let (tone, mended) =
            if self.mended { (Tone::Warning, " (mended)") } else { (Tone::Bad, "") };
        // A file's name may hold anything.
        let plain: String = format!("{file}{}{mended}", self.what)
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        format!("{} {plain}", out.tone(tone, &format!("{:<9}", self.kind)))
    }
}

pub fn run(socket: &Path, deep: bool, repair: bool, out: &Output) -> Result<u8> {
    let checked = block_on(check(socket, FsckRequest { deep, repair }, out));
    let (reply, findings) = checked.map_err(|failure| failure.exit(EXIT_UNCHECKED))?;
    let report = Report::new(&reply, &findings);
    out.one(&report, || report.text(out))?;
    Ok(report.exit())
}

async fn check(
    socket: &Path,
    request: FsckRequest,
    out: &Output,
) -> Result<(FsckReply, Vec<FsckFinding>)> {
    let daemon = Daemon::connect(socket).await?;
    let options = CallOptions::unlimited().fail_fast();
    let told = |error: unum_net::RpcError| Failure::new(error.to_string());
    let opened = daemon.client().open::<Fsck>(&local(), request, &options).await.map_err(told)?;
    let mut events = Events { stream: opened.receiver, bytes: BytesMut::new() };
    let began = Instant::now();
    let mut findings = Vec::new();
    let mut shown = false;
    while let Some(event) = events.next().await? {
        match event {
            Kind::Finding(finding) => findings.push(finding),
            Kind::Progress(progress) if began.elapsed() >= QUIET_TIME => {
                out.progress_line(&progress_text(&progress));
                shown = true;
            }
            Kind::Progress(_) => {}
        }
    }
    if shown {
        out.progress_line("");
    }
    let reply = opened.reply.await.map_err(told)?;
    Ok((reply, findings))
}

fn progress_text(progress: &FsckProgress) -> String {
    match progress.total {
        0 => progress.what.clone(),
        total => format!("{}: {} of {total} replicas", progress.what, progress.done),
    }
}

struct Events {
    stream: StreamReceiver,
    bytes: BytesMut,
}

impl Events {
    /// The next one that this version knows.
    async fn next(&mut self) -> Result<Option<Kind>> {
        loop {
            while let Some(event) = self.take()? {
                if event.kind.is_some() {
                    return Ok(event.kind);
                }
            }
            match self.stream.recv().await {
                Ok(Some(bytes)) => self.bytes.extend_from_slice(&bytes),
                // The reply says why.
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }

    fn take(&mut self) -> Result<Option<FsckEvent>> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_be_bytes(*head) as usize;
        if size > EVENT_SIZE_MAX {
            return Err(Failure::new(
                "the daemon sent what is no event; is it of another version?",
            ));
        }
        if self.bytes.len() < 4 + size {
            return Ok(None);
        }
        self.bytes.advance(4);
        let event = FsckEvent::decode(self.bytes.split_to(size));
        event.map(Some).map_err(|error| Failure::new(format!("unreadable event: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use unum_proto::admin::FindingKind;

    fn reply(found: u64, mended: u64, unchecked: u64) -> FsckReply {
        FsckReply {
            inodes: 7,
            chunks: 5,
            replicas: 15,
            bytes: 3 << 20,
            found,
            mended,
            unchecked,
            ..FsckReply::default()
        }
    }

    #[test]
    fn the_exit_status_is_that_of_fsck() {
        let exit =
            |found, mended, unchecked| Report::new(&reply(found, mended, unchecked), &[]).exit();
        assert_eq!(exit(0, 0, 0), 0);
        assert_eq!(exit(2, 2, 0), 1);
        assert_eq!(exit(2, 0, 0), 4);
        assert_eq!(exit(2, 1, 0), 5);
        assert_eq!(exit(1, 0, 1), 8);
        assert_eq!(exit(3, 1, 1), 13);
    }

    #[test]
    fn what_people_read() {
        let rotten = FsckFinding {
            kind: FindingKind::Rotten.into(),
            what: "chunk a.1 on n2: it is damaged".into(),
            node: "n2".into(),
            chunk: "a.1".into(),
            ino: 9,
            path: b"d/a\x1b[31m".to_vec(),
            mended: true,
        };
        let reply = FsckReply {
            young_garbage: 2,
            young_garbage_bytes: 10,
            dead: vec!["n4".into()],
            ..reply(9, 1, 0)
        };
        let report = Report::new(&reply, &[rotten]);
        expect![[r#"
            rotten    d/a?[31m: chunk a.1 on n2: it is damaged (mended)
            ... and 8 more
            checked 7 inodes, 5 chunks, 15 replicas (3.0 MiB)
            2 chunks (10 bytes) are not used and will be deleted
            not asked, since dead: n4
            9 found, 1 mended, 8 left
        "#]]
        .assert_eq(&report.text(&Output::new(true)));
        expect![[r#"{"kind":"rotten","what":"chunk a.1 on n2: it is damaged","node":"n2","chunk":"a.1","ino":9,"path":"d/a\u001b[31m","mended":true}"#]]
        .assert_eq(&serde_json::to_string(&report.findings[0]).expect("it is plain"));
    }
}
