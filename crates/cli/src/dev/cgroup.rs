//! The share of the processor that a machine may use, by control groups of either version.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};

const PERIOD_US: u64 = 100_000;
/// The kernel refuses quotas below 1 ms.
const CPUS_MIN: f64 = 0.01;

/// A control group of one machine, made when the machine is planned and removed with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuGroup {
    pub path: PathBuf,
}

enum Hierarchy {
    V1(PathBuf),
    V2(PathBuf),
}

impl CpuGroup {
    pub fn create(playground: &str, machine: &str, cpus: f64) -> Result<Self> {
        let hierarchy = find_hierarchy(&read_mounts(), |root| {
            std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        });
        let Some(hierarchy) = hierarchy else {
            return Err(Failure::new(
                "this machine has no cpu control group, so --cpus cannot be kept",
            )
            .next("Start without --cpus: every machine then may use all cores."));
        };
        let parent = format!("unum-dev-{playground}");
        let quota_us = quota_us(cpus);
        let made = match &hierarchy {
            Hierarchy::V1(root) => create_v1(&root.join(parent), machine, quota_us),
            Hierarchy::V2(root) => create_v2(root, &root.join(parent), machine, quota_us),
        };
        made.map(|path| Self { path }).map_err(|error| {
            Failure::new(format!("this machine does not let us limit the cpu: {error}"))
                .next("Start without --cpus: every machine then may use all cores.")
        })
    }

    /// Moves the calling process in; its children follow.
    pub fn enter(&self) -> io::Result<()> {
        std::fs::write(self.path.join("cgroup.procs"), "0")
    }

    /// Removes the group and, when it was the last, the playground's. Gone already is as good.
    pub fn remove(&self) -> io::Result<()> {
        remove_emptied(&self.path)?;
        if let Some(parent) = self.path.parent() {
            // The siblings may still be there.
            let _ = std::fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// A process leaves its group a moment after it can be seen to have ended.
fn remove_emptied(path: &Path) -> io::Result<()> {
    const ATTEMPTS_MAX: u32 = 100;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
    for _ in 0..ATTEMPTS_MAX {
        match std::fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                std::thread::sleep(PAUSE);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result,
        }
    }
    Err(io::Error::other(format!("{} still holds processes", path.display())))
}

fn quota_us(cpus: f64) -> u64 {
    (cpus.max(CPUS_MIN) * PERIOD_US as f64).round() as u64
}

fn create_v1(parent: &Path, machine: &str, quota_us: u64) -> io::Result<PathBuf> {
    let path = parent.join(machine);
    std::fs::create_dir_all(&path)?;
    std::fs::write(path.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
    std::fs::write(path.join("cpu.cfs_quota_us"), quota_us.to_string())?;
    Ok(path)
}

fn create_v2(root: &Path, parent: &Path, machine: &str, quota_us: u64) -> io::Result<PathBuf> {
    let path = parent.join(machine);
    std::fs::create_dir_all(&path)?;
    std::fs::write(root.join("cgroup.subtree_control"), "+cpu")?;
    std::fs::write(parent.join("cgroup.subtree_control"), "+cpu")?;
    std::fs::write(path.join("cpu.max"), format!("{quota_us} {PERIOD_US}"))?;
    Ok(path)
}

fn read_mounts() -> String {
    std::fs::read_to_string("/proc/self/mounts").unwrap_or_default()
}

/// The hierarchy that has the cpu controller: version 1 if it is mounted, else version 2.
fn find_hierarchy(mounts: &str, controllers: impl Fn(&Path) -> String) -> Option<Hierarchy> {
    let mut unified = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = PathBuf::from(path);
        if kind == "cgroup" && options.split(',').any(|option| option == "cpu") {
            return Some(Hierarchy::V1(path));
        }
        if kind == "cgroup2" && controllers(&path).split_whitespace().any(|name| name == "cpu") {
            unified = Some(Hierarchy::V2(path));
        }
    }
    unified
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(mounts: &str, controllers: &str, expected: Expect) {
        let found = match find_hierarchy(mounts, |_| controllers.into()) {
            Some(Hierarchy::V1(path)) => format!("v1 {}", path.display()),
            Some(Hierarchy::V2(path)) => format!("v2 {}", path.display()),
            None => "none".into(),
        };
        expected.assert_eq(&found);
    }

    #[test]
    fn the_cpu_controller_is_found_in_either_version() {
        let v1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n";
        let cpuset = "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n";
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        check(&format!("{v2}{cpuset}{v1}"), "", expect!["v1 /sys/fs/cgroup/cpu,cpuacct"]);
        check(v2, "cpuset cpu io", expect!["v2 /sys/fs/cgroup"]);
        check(v2, "cpuset io", expect!["none"]);
        check(cpuset, "", expect!["none"]);
        check("garbage", "", expect!["none"]);
    }

    #[test]
    fn a_share_becomes_a_quota() {
        assert_eq!(quota_us(0.5), 50_000);
        assert_eq!(quota_us(2.0), 200_000);
        assert_eq!(quota_us(0.0), 1_000);
    }
}
