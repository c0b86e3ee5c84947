//! `unum snapshot create`, `list`, `delete`: what a volume was at one moment, to be read in `.snapshot` of its root.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;
use unum_proto::admin;

use super::plain;
use super::roots::{Tree, no_answer, not_done};
use crate::args::SnapshotVerb;
use crate::cluster::{size, timestamp};
use crate::daemon::{SnapshotCreate, SnapshotDelete, SnapshotList, block_on};
use crate::failure::{Explain, Failure, Result};
use crate::output::{Output, Table};

/// Where they are found, in the root of their volume (docs/spec/tree.md).
const SNAPSHOTS: &str = ".snapshot";
const NAME_LENGTH_MAX: usize = 255;

#[derive(Debug, Serialize)]
struct SnapshotRow {
    /// The volume's number, and where its root is.
    volume: u32,
    directory: String,
    name: String,
    /// When it was taken.
    time: Option<String>,
    /// What would go with it.
    alone_bytes: u64,
    /// Where it is read.
    path: String,
}

impl SnapshotRow {
    fn of(snapshot: &admin::Snapshot, mount: &Path) -> Self {
        let directory = match snapshot.path.is_empty() {
            true => mount.to_owned(),
            false => mount.join(OsStr::from_bytes(&snapshot.path)),
        };
        let name = OsStr::from_bytes(&snapshot.name);
        Self {
            volume: snapshot.volume,
            name: name.to_string_lossy().into_owned(),
            time: timestamp(snapshot.time_ns / 1_000_000),
            alone_bytes: snapshot.alone_bytes,
            path: directory.join(SNAPSHOTS).join(name).to_string_lossy().into_owned(),
            directory: directory.to_string_lossy().into_owned(),
        }
    }
}

pub fn run(socket: &Path, verb: SnapshotVerb, out: &Output) -> Result<()> {
    match verb {
        SnapshotVerb::Create { directory, name } => create(socket, &directory, name, out),
        SnapshotVerb::List { directory } => list(socket, directory, out),
        SnapshotVerb::Delete { directory, name } => delete(socket, &directory, name, out),
    }
}

fn create(socket: &Path, directory: &Path, name: Option<OsString>, out: &Output) -> Result<()> {
    let name = match name {
        Some(name) => valid_name(name)?,
        None => name_of(OffsetDateTime::now_utc())?.into_bytes(),
    };
    block_on(async {
        let tree = Tree::connect(socket).await?;
        let request = admin::SnapshotCreateRequest { ino: tree.number(directory)?, name };
        let reply = tree.daemon.call::<SnapshotCreate>(request).await;
        let doing = "take a snapshot of the volume of";
        let reply = reply.map_err(|failure| not_done(doing, directory, failure))?;
        let snapshot = reply.snapshot.ok_or_else(no_answer)?;
        let row = SnapshotRow::of(&snapshot, &tree.mount);
        out.one(&row, || format!("{}\n", plain(Path::new(&row.path))))
    })
}

fn list(socket: &Path, directory: Option<PathBuf>, out: &Output) -> Result<()> {
    block_on(async {
        let tree = Tree::connect(socket).await?;
        let ino = directory.as_deref().map(|directory| tree.number(directory)).transpose()?;
        let request = admin::SnapshotListRequest { ino };
        let reply = tree.daemon.call::<SnapshotList>(request).await?;
        let rows = reply.snapshots.iter().map(|snapshot| SnapshotRow::of(snapshot, &tree.mount));
        let rows: Vec<SnapshotRow> = rows.collect();
        out.list(&rows, || {
            let mut table = Table::new(&["VOLUME", "NAME", "TIME", "ALONE", "DIRECTORY"]);
            for row in &rows {
                table.row([
                    row.volume.to_string(),
                    row.name.clone(),
                    row.time.clone().unwrap_or_default(),
                    size(row.alone_bytes),
                    row.directory.clone(),
                ]);
            }
            table
        })
    })
}

fn delete(socket: &Path, directory: &Path, name: OsString, out: &Output) -> Result<()> {
    let shown = plain(Path::new(&name)).to_string();
    let name = valid_name(name)?;
    block_on(async {
        let tree = Tree::connect(socket).await?;
        let request = admin::SnapshotDeleteRequest { ino: tree.number(directory)?, name };
        let reply = tree.daemon.call::<SnapshotDelete>(request).await;
        let doing = format!("delete the snapshot {shown} of the volume of");
        reply.map_err(|failure| {
            let failure = not_done(&doing, directory, failure);
            match failure.next {
                Some(_) => failure,
                None => failure.next("`unum snapshot list` tells what there is."),
            }
        })?;
        out.say(&format!("the snapshot {shown} is deleted"));
        Ok(())
    })
}

/// By the time, as it sorts, without what some programs take for a separator.
fn name_of(time: OffsetDateTime) -> Result<String> {
    let format = format_description!("[year]-[month]-[day]T[hour]-[minute]-[second]Z");
    time.format(format).explain(|| "cannot tell the time".into())
}

fn valid_name(name: OsString) -> Result<Vec<u8>> {
    let name = name.into_vec();
    let fits = (1..=NAME_LENGTH_MAX).contains(&name.len())
        && !name.contains(&b'/')
        && name != b"."
        && name != b"..";
    match fits {
        true => Ok(name),
        false => {
            let shown = String::from_utf8_lossy(&name);
            let shown: String = shown.chars().take(40).collect();
            Err(Failure::usage(format!("\"{shown}\" cannot be the name of a snapshot"))
                .next("A name has 1 to 255 bytes, no slash, and is neither \".\" nor \"..\"."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn what_people_and_scripts_read() {
        let snapshot = admin::Snapshot {
            volume: 7,
            path: b"data/db".to_vec(),
            name: b"before".to_vec(),
            time_ns: 1_795_464_900_000_000_000,
            alone_bytes: 4096,
        };
        let row = SnapshotRow::of(&snapshot, Path::new("/unum"));
        expect![[r#"{"volume":7,"directory":"/unum/data/db","name":"before","time":"2026-11-23T20:15:00Z","alone_bytes":4096,"path":"/unum/data/db/.snapshot/before"}"#]]
            .assert_eq(&serde_json::to_string(&row).expect("plain"));
        let first = admin::Snapshot { path: Vec::new(), ..snapshot };
        assert_eq!(SnapshotRow::of(&first, Path::new("/unum")).path, "/unum/.snapshot/before");
    }

    #[test]
    fn names_are_times_or_what_a_file_can_be_called() {
        let time = OffsetDateTime::from_unix_timestamp(1_795_464_900).expect("a time");
        assert_eq!(name_of(time).expect("formatted"), "2026-11-23T20-15-00Z");
        for name in ["a", ".a", "...", &"x".repeat(255)] {
            assert!(valid_name(name.into()).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", &"x".repeat(256)] {
            assert!(valid_name(name.into()).is_err(), "{name}");
        }
    }
}
