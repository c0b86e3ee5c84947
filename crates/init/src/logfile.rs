//! The output of a program that nobody watches, in a bounded file.
//!
//! The newer half is `PID.log`, the older `PID.log.1`. Output is never a reason to stop a program: what
//! the disk refuses is lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// Each of the two files is at most so long, in bytes.
pub const LOG_HALF_SIZE_MAX: u64 = 8 << 20;

pub struct Logfile {
    path: PathBuf,
    file: File,
    size: u64,
    half_max: u64,
    uid: u32,
    gid: u32,
}

impl Logfile {
    /// A new, empty log under a name that no program has yet; [`Logfile::settle`] gives it its own.
    pub fn create(path: PathBuf, uid: u32, gid: u32) -> io::Result<Self> {
        let file = new_file(&path, uid, gid)?;
        Ok(Self { path, file, size: 0, half_max: LOG_HALF_SIZE_MAX, uid, gid })
    }

    /// Takes its final name, in place of an older log there.
    pub fn settle(&mut self, path: PathBuf) -> io::Result<()> {
        fs::rename(&self.path, &path)?;
        let _ = fs::remove_file(older(&path));
        self.path = path;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn append(&mut self, bytes: &[u8]) {
        if self.size >= self.half_max {
            let _ = self.turn();
        }
        if self.file.write_all(bytes).is_ok() {
            self.size += bytes.len() as u64;
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        fs::rename(&self.path, older(&self.path))?;
        self.file = new_file(&self.path, self.uid, self.gid)?;
        self.size = 0;
        Ok(())
    }
}

/// Where the older half of a log lies.
fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

pub fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(older(path));
}

fn new_file(path: &Path, uid: u32, gid: u32) -> io::Result<File> {
    let _ = fs::remove_file(path);
    let file = OpenOptions::new().create_new(true).append(true).mode(0o640).open(path)?;
    fchown(&file, Some(uid), Some(gid))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_newer_part() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("7.log");
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mut log = Logfile::create(directory.path().join("new"), uid, gid)?;
        log.settle(path.clone())?;
        log.half_max = 1000;
        let mut written = Vec::new();
        for n in 0..1000 {
            let line = format!("line {n}\n");
            log.append(line.as_bytes());
            written.extend_from_slice(line.as_bytes());
        }
        let mut kept = fs::read(older(&path))?;
        kept.extend(fs::read(&path)?);
        assert!(kept.len() >= 1000 && kept.len() < 2100, "{}", kept.len());
        assert!(written.ends_with(&kept));
        remove(&path);
        assert_eq!(fs::read_dir(directory.path())?.count(), 0);
        Ok(())
    }
}
