//! Snapshots of volumes. Everybody may look; root alone takes and deletes them.

use std::sync::Arc;

use unum_core::tree::{Tree, TreeError};
use unum_net::{Code, Incoming, Status};
use unum_proto::admin::{
    self, SnapshotCreateReply, SnapshotCreateRequest, SnapshotDeleteReply, SnapshotDeleteRequest,
    SnapshotListReply, SnapshotListRequest,
};
use unum_proto::ids::{Ino, SnapshotId, VolumeId};

use super::volumes::{file_status, files_of};
use super::{Api, registry_status, time_left};
use crate::cluster::running::Parts;
use crate::files::errno::FileError;

pub async fn create(
    api: Arc<Api>,
    incoming: Incoming,
    request: SnapshotCreateRequest,
) -> Result<SnapshotCreateReply, Status> {
    api.access.require_root(&incoming.caller, "take a snapshot")?;
    let parts = api.parts()?;
    let files = files_of(&parts)?;
    let volume = volume_of(&parts, &incoming, request.ino).await?;
    let taken = files.create_snapshot(volume, request.name).await.map_err(status)?;
    let mut snapshots = shown(&parts, |id, _| id == taken).await?;
    Ok(SnapshotCreateReply { snapshot: snapshots.pop() })
}

pub async fn delete(
    api: Arc<Api>,
    incoming: Incoming,
    request: SnapshotDeleteRequest,
) -> Result<SnapshotDeleteReply, Status> {
    api.access.require_root(&incoming.caller, "delete a snapshot")?;
    let parts = api.parts()?;
    let files = files_of(&parts)?;
    let volume = volume_of(&parts, &incoming, request.ino).await?;
    files.delete_snapshot(volume, request.name).await.map_err(status)?;
    Ok(SnapshotDeleteReply {})
}

pub async fn list(
    api: Arc<Api>,
    incoming: Incoming,
    request: SnapshotListRequest,
) -> Result<SnapshotListReply, Status> {
    let parts = api.parts()?;
    let snapshots = match request.ino {
        Some(ino) => {
            let volume = volume_of(&parts, &incoming, ino).await?;
            shown(&parts, |_, of| of == volume).await?
        }
        None => {
            parts.registry.barrier(time_left(&incoming)).await.map_err(registry_status)?;
            shown(&parts, |_, _| true).await?
        }
    };
    Ok(SnapshotListReply { snapshots })
}

/// The volume that an inode is in, as everybody knows it.
async fn volume_of(parts: &Parts, incoming: &Incoming, ino: u64) -> Result<VolumeId, Status> {
    parts.registry.barrier(time_left(incoming)).await.map_err(registry_status)?;
    let found = parts.registry.read_tree(|tree| tree.volume_of(Ino(ino)).map(|(id, _)| id));
    found.map_err(|error| file_status(error.into()))
}

/// By volume, the oldest first. Paths are looked for beside everything else.
async fn shown(
    parts: &Parts,
    wanted: impl Fn(SnapshotId, VolumeId) -> bool,
) -> Result<Vec<admin::Snapshot>, Status> {
    let tree = parts.registry.read_tree(Tree::clone);
    let mut snapshots = Vec::new();
    for (volume, _) in tree.volumes() {
        let of_volume = tree.snapshots_of(volume).filter(|(id, _)| wanted(*id, volume));
        snapshots.extend(of_volume.map(|(id, snapshot)| admin::Snapshot {
            volume: volume.0,
            path: Vec::new(),
            name: snapshot.name.to_vec(),
            time_ns: snapshot.time.0,
            alone_bytes: tree.alone_bytes(id),
        }));
    }
    if snapshots.is_empty() {
        return Ok(snapshots);
    }
    let paths = tokio::task::spawn_blocking(move || tree.volume_paths()).await;
    let paths = paths.map_err(|error| Status::internal(error.to_string()))?;
    for snapshot in &mut snapshots {
        let path = paths.get(&VolumeId(snapshot.volume));
        snapshot.path = path.map(|path| path.join(&b'/')).unwrap_or_default();
    }
    Ok(snapshots)
}

/// Why a snapshot was not taken or deleted. The caller names it.
fn status(error: FileError) -> Status {
    match error {
        FileError::Tree(TreeError::Exists) => {
            Status::new(Code::Exists, "the volume has a snapshot of this name")
        }
        FileError::Tree(TreeError::NotFound) => {
            Status::new(Code::NotFound, "the volume has no snapshot of this name")
        }
        FileError::Tree(TreeError::Stale) => {
            Status::new(Code::NotFound, "the volume is gone: look at `unum volume list`")
        }
        FileError::Tree(TreeError::Invalid | TreeError::NameTooLong) => {
            let why = "a name has 1 to 255 bytes, no slash, and is neither \".\" nor \"..\"";
            Status::new(Code::Invalid, why)
        }
        FileError::Tree(TreeError::TooManySnapshots) => {
            Status::new(Code::NoSpace, TreeError::TooManySnapshots.to_string())
        }
        error => file_status(error),
    }
}
