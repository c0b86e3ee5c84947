//! What root asks of whole volumes, and how much room a program is told of.
//!
//! Making a volume and setting it are commands of the daemon itself: no call of the kernel stands behind them,
//! so that this node's kernel hears of a new name as all others do.

use tokio::time::Instant;
use unum_core::tree::{TreeError, Usage, Volume};
use unum_proto::ids::{Ino, VolumeId};
use unum_proto::registry::command;
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{CreateVolume, SetVolume, TreeCommand, VolumeSettings};

use super::errno::FileError;
use super::{Files, left, tree_outcome};

/// The root of a new volume belongs to root, who gives it away.
const ROOT_MODE: u32 = 0o755;

impl Files {
    /// Makes an empty directory that is the root of a new volume. All nodes show it when this returns.
    pub async fn create_volume(
        &self,
        parent: Ino,
        name: Vec<u8>,
        settings: Option<VolumeSettings>,
    ) -> Result<Ino, FileError> {
        let create = CreateVolume {
            parent: parent.0,
            name: name.into(),
            mode: ROOT_MODE,
            uid: 0,
            gid: 0,
            settings,
        };
        match self.change_volumes(Command::CreateVolume(create)).await? {
            Outcome::Inode(reply) => Ok(Ino(reply.attributes.ok_or(FileError::Strange)?.ino)),
            _ => Err(FileError::Strange),
        }
    }

    /// All nodes keep to the settings when this returns.
    pub async fn set_volume(
        &self,
        volume: VolumeId,
        settings: Option<VolumeSettings>,
    ) -> Result<(), FileError> {
        let set = SetVolume { volume: volume.0, settings };
        self.change_volumes(Command::SetVolume(set)).await.map(drop)
    }

    async fn change_volumes(&self, command: Command) -> Result<Outcome, FileError> {
        let deadline = self.deadline();
        loop {
            match self.change_heard_by_all(&command, deadline).await {
                Err(FileError::Tree(TreeError::Held)) if Instant::now() < deadline => {
                    self.reclaim_for(&command, deadline).await?;
                }
                outcome => return outcome,
            }
        }
    }

    pub(super) async fn change_heard_by_all(
        &self,
        command: &Command,
        deadline: Instant,
    ) -> Result<Outcome, FileError> {
        let registry = &self.parts.registry;
        let _pass = self.log.pass(deadline).await?;
        let command = command::Kind::Tree(TreeCommand::from(command.clone()));
        let (reply, index) = self.parts.proposer.propose_indexed(command, left(deadline)).await?;
        registry.reached(index, left(deadline)).await?;
        let outcome = tree_outcome(reply)?;
        registry.settle(index, left(deadline)).await?;
        Ok(outcome)
    }
}

/// What statfs tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub used_bytes: u64,
    pub free_bytes: u64,
    pub used_inodes: u64,
    pub inodes_max: u64,
}

/// The room in a volume: its limits where they are closer than the disk and the tree are.
pub(super) fn room(usage: &Usage, volume: Option<&Volume>, disk_free: u64) -> Room {
    let mut room = Room {
        used_bytes: usage.stored,
        free_bytes: disk_free,
        used_inodes: usage.inodes,
        inodes_max: usage.inodes_max,
    };
    let Some(volume) = volume else { return room };
    if let Some(quota) = volume.quota_bytes {
        room.used_bytes = volume.used_bytes;
        room.free_bytes = disk_free.min(quota.saturating_sub(volume.used_bytes));
    }
    if let Some(quota) = volume.quota_inodes {
        room.used_inodes = volume.used_inodes;
        room.inodes_max = quota;
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_where_they_are_closer() {
        let usage = Usage {
            inodes: 10,
            inodes_max: 1000,
            allocated: 500,
            chunks: 3,
            stored: 400,
            name_length_max: 255,
        };
        let shown = |volume: Option<&Volume>, disk_free| {
            let room = room(&usage, volume, disk_free);
            (room.used_bytes, room.free_bytes, room.used_inodes, room.inodes_max)
        };
        assert_eq!(shown(None, 700), (400, 700, 10, 1000));
        let plain = Volume {
            root: Ino(2),
            replicas: None,
            quota_bytes: None,
            quota_inodes: None,
            used_bytes: 60,
            used_inodes: 4,
        };
        assert_eq!(shown(Some(&plain), 700), (400, 700, 10, 1000));
        let limited = Volume { quota_bytes: Some(100), quota_inodes: Some(9), ..plain };
        assert_eq!(shown(Some(&limited), 700), (60, 40, 4, 9));
        assert_eq!(shown(Some(&limited), 7), (60, 7, 4, 9), "the disk is nearly full");
        let over = Volume { used_bytes: 130, used_inodes: 12, ..limited };
        assert_eq!(shown(Some(&over), 700), (130, 0, 12, 9));
    }
}
