//! `unum registry`: named values.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use serde::Serialize;
use unum_proto::admin::{
    Value, ValueDeleteRequest, ValueGetRequest, ValueListRequest, ValuePutRequest,
};

use crate::args::ValueVerb;
use crate::daemon::{Daemon, ValueDelete, ValueGet, ValueList, ValuePut, block_on};
use crate::failure::{Explain, Failure, Result};
use crate::output::{Output, Table};

/// What `registry put` reads from standard input at most.
const VALUE_SIZE_MAX: u64 = 1 << 20;

#[derive(Serialize)]
struct ValueRow {
    name: String,
    version: u64,
    size_bytes: u64,
    /// Only where one value was asked for and it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

#[derive(Serialize)]
struct Versioned {
    name: String,
    version: u64,
}

pub fn run(socket: &Path, verb: ValueVerb, out: &Output) -> Result<()> {
    block_on(async {
        let daemon = Daemon::connect(socket).await?;
        match verb {
            ValueVerb::Get { name } => get(&daemon, name, out).await,
            ValueVerb::Put { name, value, if_version } => {
                put(&daemon, name, value, if_version, out).await
            }
            ValueVerb::List { prefix } => list(&daemon, prefix, out).await,
            ValueVerb::Delete { name, if_version } => delete(&daemon, name, if_version).await,
        }
    })
}

async fn get(daemon: &Daemon, name: String, out: &Output) -> Result<()> {
    let reply = daemon.call::<ValueGet>(ValueGetRequest { name: name.clone() }).await?;
    let value = reply.value.ok_or_else(|| no_such_name(&name))?;
    if out.json {
        return out.one(&row(&value, true), String::new);
    }
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(&value.content)
        .and_then(|()| stdout.flush())
        .explain(|| "cannot write to standard output".into())
}

async fn put(
    daemon: &Daemon,
    name: String,
    value: OsString,
    if_version: Option<u64>,
    out: &Output,
) -> Result<()> {
    let content = if value == "-" { read_input()? } else { value.into_vec() };
    let request = ValuePutRequest { name: name.clone(), content, if_version };
    let reply = daemon.call::<ValuePut>(request).await?;
    if !reply.done {
        return Err(other_version(&name, reply.version));
    }
    let version = reply.version;
    out.one(&Versioned { name, version }, || format!("version {version}\n"))
}

async fn list(daemon: &Daemon, prefix: String, out: &Output) -> Result<()> {
    let reply = daemon.call::<ValueList>(ValueListRequest { prefix }).await?;
    let rows: Vec<ValueRow> = reply.values.iter().map(|value| row(value, false)).collect();
    out.list(&rows, || {
        let mut table = Table::new(&["NAME", "VERSION", "BYTES"]);
        for row in &rows {
            table.row([row.name.clone(), row.version.to_string(), row.size_bytes.to_string()]);
        }
        table
    })
}

async fn delete(daemon: &Daemon, name: String, if_version: Option<u64>) -> Result<()> {
    let request = ValueDeleteRequest { name: name.clone(), if_version };
    let reply = daemon.call::<ValueDelete>(request).await?;
    match (reply.done, reply.version) {
        (true, _) => Ok(()),
        (false, 0) => Err(no_such_name(&name)),
        (false, version) => Err(other_version(&name, version)),
    }
}

fn row(value: &Value, with_content: bool) -> ValueRow {
    ValueRow {
        name: value.name.clone(),
        version: value.version,
        size_bytes: value.size_bytes.max(value.content.len() as u64),
        value: with_content.then(|| String::from_utf8_lossy(&value.content).into_owned()),
    }
}

fn read_input() -> Result<Vec<u8>> {
    let mut content = Vec::new();
    std::io::stdin()
        .take(VALUE_SIZE_MAX + 1)
        .read_to_end(&mut content)
        .explain(|| "cannot read standard input".into())?;
    if content.len() as u64 > VALUE_SIZE_MAX {
        return Err(Failure::new("the value is larger than 1 MiB").next("Keep it in a file."));
    }
    Ok(content)
}

fn no_such_name(name: &str) -> Failure {
    Failure::new(format!("the registry has no value named {name}"))
        .next("See those it has: unum registry list")
}

fn other_version(name: &str, version: u64) -> Failure {
    match version {
        0 => Failure::new(format!("{name} does not exist, so it has no version to match")),
        version => Failure::new(format!("{name} is at version {version}, not at the one named"))
            .next(format!("Read it again: unum registry get {name}")),
    }
}
