//! What a tree of many small files costs a voter: memory for each file, the size of a snapshot, and the time to
//! write it and to start from it. Without disks and network: these come on top.
//!
//!     scale [FILES]      (default: 1,000,000, a thousand in each directory)

use std::time::Instant;

use anyhow::{Context, Result, bail};
use prost::Message;
use unum_core::time::Time;
use unum_core::tree::{ROOT, Tree, TreeLoader, outcome};
use unum_proto::ids::{ChunkId, Ino, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{Create, Extent, FileKind, NewChunk, TreeRecord, Write};

const DIRECTORY_FILES: u64 = 1000;
const FILE_BYTES: u32 = 4096;
const WRITER: NodeId = NodeId(1);
const MIB: f64 = (1 << 20) as f64;

fn main() -> Result<()> {
    let files = match std::env::args().nth(1) {
        Some(text) => text.parse().context("a number of files is wanted")?,
        None => 1_000_000,
    };
    let before = resident_bytes()?;
    let start = Instant::now();
    let tree = plant(files)?;
    let planted = start.elapsed();
    let memory = resident_bytes()? - before;
    show("memory", "MiB", memory as f64 / MIB);
    show("memory for each file", "bytes", memory as f64 / files as f64);
    show("changes applied", "per second", 2.0 * files as f64 / planted.as_secs_f64());

    let start = Instant::now();
    let records: Vec<Vec<u8>> = tree.records().map(|record| record.encode_to_vec()).collect();
    show("snapshot written in", "s", start.elapsed().as_secs_f64());
    show("snapshot", "MiB", records.iter().map(Vec::len).sum::<usize>() as f64 / MIB);
    drop(tree);

    let start = Instant::now();
    let mut loader = TreeLoader::new();
    for record in &records {
        loader.absorb(&TreeRecord::decode(record.as_slice())?)?;
    }
    let tree = loader.finish()?;
    show("started from it in", "s", start.elapsed().as_secs_f64());
    show("inodes", "", tree.usage().inodes as f64);
    Ok(())
}

fn show(what: &str, unit: &str, value: f64) {
    println!("{what}\t{unit}\t{value:.1}");
}

/// Directories of small files, each in one chunk with three replicas.
fn plant(files: u64) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut directory = ROOT;
    let mut clock = 1_700_000_000_000_000_000;
    for number in 0..files {
        if number % DIRECTORY_FILES == 0 {
            directory = create(&mut tree, &mut clock, ROOT, FileKind::Directory, number)?;
        }
        let ino = create(&mut tree, &mut clock, directory, FileKind::Regular, number)?;
        let id = Some(ChunkId { lane: 1, seq: number }.into());
        let chunk =
            NewChunk { id, length: FILE_BYTES, hash: vec![7; 32].into(), replicas: vec![1, 2, 3] };
        let length = u64::from(FILE_BYTES);
        let extent = Extent { offset: 0, length, chunk: id, chunk_offset: 0 };
        let (extents, chunks) = (vec![extent], vec![chunk]);
        let write = Write { ino: ino.0, extents, chunks, ..Write::default() };
        apply(&mut tree, &mut clock, Command::Write(write))?;
        tree.take_changes();
    }
    Ok(tree)
}

fn create(
    tree: &mut Tree,
    clock: &mut u64,
    parent: Ino,
    kind: FileKind,
    number: u64,
) -> Result<Ino> {
    let name = format!("file-{number:08}.txt").into_bytes().into();
    let kind = kind as i32;
    let create =
        Create { parent: parent.0, name, kind, mode: 0o644, exclusive: true, ..Create::default() };
    match apply(tree, clock, Command::Create(create))? {
        Outcome::Inode(inode) => Ok(Ino(inode.attributes.context("no attributes")?.ino)),
        other => bail!("a create was answered by {other:?}"),
    }
}

fn apply(tree: &mut Tree, clock: &mut u64, command: Command) -> Result<Outcome> {
    *clock += 1000;
    let reply = tree.apply(Time(*clock), WRITER, &command.into());
    Ok(outcome(&reply)?.clone())
}

fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
