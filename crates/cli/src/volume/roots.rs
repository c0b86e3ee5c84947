//! `unum volume create`, `list`, `usage`, `delete`, and settings of whole volumes: what the daemon keeps for the
//! volume and not for each file.
//!
//! The daemon knows directories by their inode numbers. A path is opened here, by the rights of the caller, and must be
//! on the daemon's own mount.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, open, stat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;
use unum_proto::admin::{self, StatusRequest};
use unum_proto::tree::VolumeSettings;

use super::{open_volume, plain, refused};
use crate::cluster::size;
use crate::daemon::{Daemon, ShowStatus, VolumeCreate, VolumeList, VolumeSet, block_on};
use crate::failure::{Failure, Result};
use crate::output::{Output, Table};

/// Where the file tree is, unless the daemon knows better.
const MOUNT: &str = "/unum";
/// Replicas that can be asked for (docs/spec/tree.md).
const REPLICAS_MAX: u32 = 7;

/// `1` to `7`, or `default`: as many as the cluster's setting says.
pub fn parse_replicas(text: &str) -> Result<u32, String> {
    if text == "default" {
        return Ok(0);
    }
    let replicas = text.parse().ok().filter(|replicas| (1..=REPLICAS_MAX).contains(replicas));
    replicas.ok_or_else(|| format!("replicas are 1 to {REPLICAS_MAX}, or \"default\""))
}

/// `10G`, or `none`.
pub fn parse_quota(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        text => unum_node::settings::parse_bytes(text)
            .map_err(|why| format!("a quota is a number of bytes such as 10G, or \"none\": {why}")),
    }
}

/// `100000`, or `none`.
pub fn parse_inodes(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let inodes = text.parse().ok().filter(|inodes| *inodes > 0);
    inodes.ok_or_else(|| "inodes are a number of files and directories, or \"none\"".into())
}

#[derive(Debug, Serialize)]
pub struct VolumeRow {
    id: u32,
    path: String,
    replicas: u32,
    /// Those are the cluster's setting.
    replicas_default: bool,
    used_bytes: u64,
    quota_bytes: Option<u64>,
    used_inodes: u64,
    quota_inodes: Option<u64>,
    snapshots: u32,
    /// What only these need.
    snapshot_bytes: u64,
}

impl VolumeRow {
    fn of(volume: &admin::Volume, mount: &Path) -> Self {
        let path = match volume.path.is_empty() {
            true => mount.to_owned(),
            false => mount.join(OsStr::from_bytes(&volume.path)),
        };
        let limit = |quota: u64| Some(quota).filter(|quota| *quota > 0);
        Self {
            id: volume.id,
            path: path.to_string_lossy().into_owned(),
            replicas: volume.replicas,
            replicas_default: volume.replicas_usual,
            used_bytes: volume.used_bytes,
            quota_bytes: limit(volume.quota_bytes),
            used_inodes: volume.used_inodes,
            quota_inodes: limit(volume.quota_inodes),
            snapshots: volume.snapshots,
            snapshot_bytes: volume.snapshot_bytes,
        }
    }

    fn shown_replicas(&self) -> String {
        let usual = if self.replicas_default { " (default)" } else { "" };
        format!("{}{usual}", self.replicas)
    }

    fn shown_quota(&self) -> String {
        self.quota_bytes.map_or("-".into(), size)
    }

    fn shown_inode_quota(&self) -> String {
        self.quota_inodes.map_or("-".into(), |quota| quota.to_string())
    }

    /// Several lines.
    pub fn told(&self) -> String {
        let of = |quota: Option<String>, share: Option<u64>| match (quota, share) {
            (Some(quota), Some(share)) => format!(" of {quota} ({share} %)"),
            _ => ", no limit".into(),
        };
        let share = |used: u64, quota: Option<u64>| {
            quota.map(|quota| (u128::from(used) * 100 / u128::from(quota.max(1))) as u64)
        };
        let bytes = of(self.quota_bytes.map(size), share(self.used_bytes, self.quota_bytes));
        let inodes = self.quota_inodes.map(|quota| quota.to_string());
        let inodes = of(inodes, share(self.used_inodes, self.quota_inodes));
        let snapshots = match self.snapshots {
            0 => String::new(),
            count => format!("snapshots {count}, which keep {} more\n", size(self.snapshot_bytes)),
        };
        format!(
            "volume    {} at {}\nbytes     {}{bytes}\ninodes    {}{inodes}\nreplicas  {}\n{snapshots}",
            self.id,
            plain(Path::new(&self.path)),
            size(self.used_bytes),
            self.used_inodes,
            self.shown_replicas(),
        )
    }
}

pub fn create(
    socket: &Path,
    directory: &Path,
    settings: VolumeSettings,
    out: &Output,
) -> Result<()> {
    // `a/..` has no name that could be made.
    let Some(name) = directory.file_name() else {
        return Err(Failure::usage(format!("{} is no new directory's name", plain(directory))));
    };
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    block_on(async {
        let tree = Tree::connect(socket).await?;
        let ino = tree.number(parent)?;
        let (name, settings) = (name.as_bytes().to_vec(), Some(settings));
        let request = admin::VolumeCreateRequest { parent: ino, name, settings };
        let reply = tree.daemon.call::<VolumeCreate>(request).await;
        let reply = reply.map_err(|failure| not_done("make the volume", directory, failure))?;
        let row = tree.row(reply.volume)?;
        out.one(&row, || row.told())
    })
}

pub fn list(socket: &Path, out: &Output) -> Result<()> {
    block_on(async {
        let tree = Tree::connect(socket).await?;
        let request = admin::VolumeListRequest { ino: None };
        let reply = tree.daemon.call::<VolumeList>(request).await?;
        let rows = reply.volumes.iter().map(|volume| VolumeRow::of(volume, &tree.mount));
        let rows: Vec<VolumeRow> = rows.collect();
        out.list(&rows, || {
            let mut table =
                Table::new(&["ID", "REPLICAS", "USED", "QUOTA", "INODES", "LIMIT", "DIRECTORY"]);
            for row in &rows {
                table.row([
                    row.id.to_string(),
                    row.shown_replicas(),
                    size(row.used_bytes),
                    row.shown_quota(),
                    row.used_inodes.to_string(),
                    row.shown_inode_quota(),
                    row.path.clone(),
                ]);
            }
            table
        })
    })
}

/// Of the volume that a directory is in.
pub fn usage(socket: &Path, directory: Option<&Path>, out: &Output) -> Result<()> {
    block_on(async {
        let tree = Tree::connect(socket).await?;
        let directory = directory.unwrap_or(&tree.mount);
        let row = tree.row(Some(tree.volume_of(directory).await?.0))?;
        out.one(&row, || row.told())
    })
}

pub fn set(socket: &Path, directory: &Path, settings: VolumeSettings) -> Result<VolumeRow> {
    block_on(async {
        let tree = Tree::connect(socket).await?;
        let (volume, ino) = tree.volume_of(directory).await?;
        if volume.root != ino {
            return Err(no_root(directory, &VolumeRow::of(&volume, &tree.mount)));
        }
        let request = admin::VolumeSetRequest { root: ino, settings: Some(settings) };
        let reply = tree.daemon.call::<VolumeSet>(request).await;
        let reply = reply.map_err(|failure| not_done("set the volume", directory, failure))?;
        tree.row(reply.volume)
    })
}

pub fn delete(socket: &Path, directory: &Path, out: &Output) -> Result<()> {
    let volume = block_on(async {
        let tree = Tree::connect(socket).await?;
        let (volume, ino) = tree.volume_of(directory).await?;
        if volume.root == ino && volume.snapshots > 0 {
            return Err(has_snapshots(directory, volume.snapshots));
        }
        match volume.root == ino {
            true => Ok(VolumeRow::of(&volume, &tree.mount)),
            false => Err(no_root(directory, &VolumeRow::of(&volume, &tree.mount))),
        }
    })?;
    // The kernel checks the caller's rights, and that nothing is in it.
    let removed = unlinkat(rustix::fs::CWD, directory, AtFlags::REMOVEDIR);
    removed.map_err(|why| match why {
        Errno::NOTEMPTY => Failure::new(format!("the volume {} is not empty", plain(directory)))
            .next("Remove what is in it first; the limits go with the volume."),
        Errno::BUSY => Failure::new(format!("{} cannot be removed", plain(directory)))
            .next("The root of the file tree stays, and what is mounted or in use as such."),
        Errno::ACCESS | Errno::PERM => {
            let what = format!("you may not remove {}", plain(directory));
            Failure::new(what).next("It takes the right to write to the directory that it is in.")
        }
        why => refused(directory, "remove", why),
    })?;
    out.one(&volume, || format!("volume {} is removed\n", volume.id))
}

fn has_snapshots(directory: &Path, count: u32) -> Failure {
    let what = match count {
        1 => "a snapshot".to_owned(),
        count => format!("{count} snapshots"),
    };
    let what = format!("the volume {} cannot be removed: it has {what}", plain(directory));
    let directory = plain(directory);
    Failure::new(what).next(format!(
        "`unum snapshot list {directory}` tells them, `unum snapshot delete {directory} NAME` deletes one."
    ))
}

fn no_root(directory: &Path, volume: &VolumeRow) -> Failure {
    Failure::new(format!(
        "{} is not the root of a volume: it is in volume {} at {}",
        plain(directory),
        volume.id,
        plain(Path::new(&volume.path))
    ))
    .next("`unum volume list` tells all volumes, `unum volume create` makes one.")
}

pub(super) fn not_done(doing: &str, directory: &Path, failure: Failure) -> Failure {
    Failure { what: format!("cannot {doing} {}: {}", plain(directory), failure.what), ..failure }
}

/// The file tree that a daemon keeps.
pub(super) struct Tree {
    pub daemon: Daemon,
    pub mount: PathBuf,
    mounted: bool,
}

impl Tree {
    pub async fn connect(socket: &Path) -> Result<Self> {
        let daemon = Daemon::connect(socket).await?;
        let status = daemon.call::<ShowStatus>(StatusRequest {}).await?;
        let mounted = !status.mount.is_empty();
        let mount = if mounted { status.mount } else { MOUNT.into() };
        Ok(Self { daemon, mount: mount.into(), mounted })
    }

    /// The inode number of a directory of the tree.
    pub fn number(&self, directory: &Path) -> Result<u64> {
        if !self.mounted {
            return Err(
                Failure::new("this node has no file tree mounted").next("See `unum status`.")
            );
        }
        let (opened, _) = open_volume(directory)?;
        let found: Stat = fstat(opened.as_fd()).map_err(|why| refused(directory, "open", why))?;
        let mount = self.mount_device()?;
        if found.st_dev != mount {
            return Err(Failure::new(format!(
                "{} is in another file tree than that of the daemon that was asked",
                plain(directory)
            ))
            .next(format!("Its file tree is mounted on {}.", plain(&self.mount))));
        }
        Ok(found.st_ino)
    }

    fn mount_device(&self) -> Result<u64> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(&self.mount, flags, Mode::empty());
        let seen = opened.and_then(fstat).or_else(|_| stat(&self.mount));
        Ok(seen.map_err(|why| refused(&self.mount, "open", why))?.st_dev)
    }

    /// The volume that a directory is in, and the directory's number.
    async fn volume_of(&self, directory: &Path) -> Result<(admin::Volume, u64)> {
        let ino = self.number(directory)?;
        let request = admin::VolumeListRequest { ino: Some(ino) };
        let reply = self.daemon.call::<VolumeList>(request).await;
        let reply = reply.map_err(|failure| not_done("see the volume of", directory, failure))?;
        let volume = reply.volumes.into_iter().next().ok_or_else(no_answer)?;
        Ok((volume, ino))
    }

    fn row(&self, volume: Option<admin::Volume>) -> Result<VolumeRow> {
        Ok(VolumeRow::of(&volume.ok_or_else(no_answer)?, &self.mount))
    }
}

pub(super) fn no_answer() -> Failure {
    Failure::new("unumd answered without telling what was asked for")
        .next("Is it of another version?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn row(quota_bytes: u64, quota_inodes: u64) -> VolumeRow {
        let volume = admin::Volume {
            id: 7,
            root: 99,
            path: b"data/db".to_vec(),
            replicas: 3,
            replicas_usual: quota_bytes == 0,
            quota_bytes,
            quota_inodes,
            used_bytes: 3 << 19,
            used_inodes: 12,
            snapshots: u32::from(quota_bytes > 0) * 2,
            snapshot_bytes: 1 << 20,
        };
        VolumeRow::of(&volume, Path::new("/unum"))
    }

    #[test]
    fn what_people_and_scripts_read() {
        expect![[r#"
            volume    7 at /unum/data/db
            bytes     1.5 MiB, no limit
            inodes    12, no limit
            replicas  3 (default)
        "#]]
        .assert_eq(&row(0, 0).told());
        expect![[r#"
            volume    7 at /unum/data/db
            bytes     1.5 MiB of 6.0 MiB (25 %)
            inodes    12 of 10 (120 %)
            replicas  3
            snapshots 2, which keep 1.0 MiB more
        "#]]
        .assert_eq(&row(6 << 20, 10).told());
        expect![[r#"{"id":7,"path":"/unum/data/db","replicas":3,"replicas_default":true,"used_bytes":1572864,"quota_bytes":null,"used_inodes":12,"quota_inodes":null,"snapshots":0,"snapshot_bytes":1048576}"#]]
            .assert_eq(&serde_json::to_string(&row(0, 0)).expect("plain"));
    }

    #[test]
    fn settings_are_read() {
        assert_eq!((parse_replicas("1"), parse_replicas("default")), (Ok(1), Ok(0)));
        assert_eq!((parse_quota("2T"), parse_quota("none")), (Ok(2 << 40), Ok(0)));
        assert_eq!((parse_inodes("5"), parse_inodes("none")), (Ok(5), Ok(0)));
        let refused = [
            parse_replicas("0").expect_err("0"),
            parse_replicas("8").expect_err("8"),
            parse_quota("0").expect_err("0"),
            parse_quota("1X").expect_err("1X"),
            parse_inodes("0").expect_err("0"),
            parse_inodes("1K").expect_err("1K"),
        ];
        expect![[r#"
            replicas are 1 to 7, or "default"
            replicas are 1 to 7, or "default"
            a quota is a number of bytes such as 10G, or "none": it must be more than nothing
            a quota is a number of bytes such as 10G, or "none": the unit must be K, M, G or T
            inodes are a number of files and directories, or "none"
            inodes are a number of files and directories, or "none""#]]
        .assert_eq(&refused.join("\n"));
    }
}
