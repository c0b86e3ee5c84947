//! Volumes of the file tree. Everybody may look; root alone makes and sets them.

use super::{Api, registry_status, time_left};
use crate::cluster::running::Parts;
use crate::files::Files;
use crate::files::errno::FileError;
use std::collections::BTreeMap;
use std::sync::Arc;
use unum_core::tree::{ROOT_VOLUME, Tree, TreeError, Volume};
use unum_net::{Code, Incoming, Status};
use unum_proto::admin::{
    self, VolumeCreateReply, VolumeCreateRequest, VolumeListReply, VolumeListRequest,
    VolumeSetReply, VolumeSetRequest,
};
use unum_proto::ids::{Ino, VolumeId};

pub async fn create(
    api: Arc<Api>,
    incoming: Incoming,
    request: VolumeCreateRequest,
) -> Result<VolumeCreateReply, Status> {
    api.access.require_root(&incoming.caller, "make a volume")?;
    let parts = api.parts()?;
    let files = files_of(&parts)?;
    let made = files.create_volume(Ino(request.parent), request.name, request.settings).await;
    let root = made.map_err(file_status)?;
    Ok(VolumeCreateReply { volume: Some(shown_one(&parts, root).await?) })
}

pub async fn set(
    api: Arc<Api>,
    incoming: Incoming,
    request: VolumeSetRequest,
) -> Result<VolumeSetReply, Status> {
    api.access.require_root(&incoming.caller, "set what holds for a volume")?;
    let parts = api.parts()?;
    let files = files_of(&parts)?;
    parts.registry.barrier(time_left(&incoming)).await.map_err(registry_status)?;
    let root = Ino(request.root);
    let found = parts.registry.read_tree(|tree| tree.volume_of(root).map(|(id, v)| (id, v.root)));
    match found {
        Ok((id, of)) if of == root => {
            files.set_volume(id, request.settings).await.map_err(file_status)?;
        }
        Ok(_) => return Err(Status::new(Code::NotFound, "the directory is no volume's root")),
        Err(error) => return Err(file_status(error.into())),
    }
    Ok(VolumeSetReply { volume: Some(shown_one(&parts, root).await?) })
}

pub async fn list(
    api: Arc<Api>,
    incoming: Incoming,
    request: VolumeListRequest,
) -> Result<VolumeListReply, Status> {
    let parts = api.parts()?;
    parts.registry.barrier(time_left(&incoming)).await.map_err(registry_status)?;
    let volumes = match request.ino {
        Some(ino) => vec![shown_one(&parts, Ino(ino)).await?],
        None => shown(&parts, |_, _| true).await?,
    };
    Ok(VolumeListReply { volumes })
}

pub(super) fn files_of(parts: &Parts) -> Result<&Arc<Files>, Status> {
    parts.services.files().ok_or_else(|| {
        let why = "this node has no file tree; ask a node that has it mounted, see `unum nodes`";
        Status::new(Code::Unavailable, why)
    })
}

/// The volume that an inode is in.
async fn shown_one(parts: &Parts, ino: Ino) -> Result<admin::Volume, Status> {
    let found = parts.registry.read_tree(|tree| tree.volume_of(ino).map(|(id, _)| id));
    let id = found.map_err(|error| file_status(error.into()))?;
    let mut volumes = shown(parts, |other, _| other == id).await?;
    volumes.pop().ok_or_else(|| file_status(TreeError::Stale.into()))
}

/// Volumes with a root, with their paths. These are looked for beside everything else: directories on the way
/// may be large.
async fn shown(
    parts: &Parts,
    wanted: impl Fn(VolumeId, &Volume) -> bool,
) -> Result<Vec<admin::Volume>, Status> {
    let tree = parts.registry.read_tree(Tree::clone);
    let usual = parts.services.replicas.factor();
    let volumes: Vec<(VolumeId, Volume)> = tree
        .volumes()
        .filter(|(id, volume)| wanted(*id, volume))
        .map(|(id, volume)| (id, *volume))
        .collect();
    let kept = volumes.iter().map(|(id, _)| {
        let count = tree.snapshots_of(*id).count() as u32;
        (*id, (count, tree.kept_bytes(*id)))
    });
    let kept: BTreeMap<VolumeId, (u32, u64)> = kept.collect();
    let paths = tokio::task::spawn_blocking(move || tree.volume_paths()).await;
    let paths = paths.map_err(|error| Status::internal(error.to_string()))?;
    let shown = volumes.into_iter().filter_map(|(id, volume)| {
        let path = paths.get(&id).filter(|path| id == ROOT_VOLUME || !path.is_empty())?;
        Some(admin::Volume {
            id: id.0,
            root: volume.root.0,
            path: path.join(&b'/'),
            replicas: volume.replicas.map_or(usual as u32, u32::from),
            replicas_usual: volume.replicas.is_none(),
            quota_bytes: volume.quota_bytes.unwrap_or(0),
            quota_inodes: volume.quota_inodes.unwrap_or(0),
            used_bytes: volume.used_bytes,
            used_inodes: volume.used_inodes,
            snapshots: kept.get(&id).map_or(0, |(count, _)| *count),
            snapshot_bytes: kept.get(&id).map_or(0, |(_, bytes)| *bytes),
        })
    });
    Ok(shown.collect())
}

/// Why a volume could not be made or set, as a caller of the API sees it.
pub(super) fn file_status(error: FileError) -> Status {
    let code = match &error {
        FileError::Registry(_) | FileError::Content(_) => Code::Unavailable,
        FileError::Tree(TreeError::Exists) => Code::Exists,
        FileError::Tree(TreeError::NotFound | TreeError::Stale) => Code::NotFound,
        FileError::Tree(TreeError::NoSpace) => Code::NoSpace,
        FileError::Tree(TreeError::Held) => Code::Unavailable,
        FileError::Tree(_) => Code::Invalid,
        FileError::Interrupted | FileError::Errno(_) | FileError::Strange => Code::Internal,
    };
    Status::new(code, error.to_string())
}
