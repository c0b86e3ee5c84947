//! `unum volume`: what holds for a directory and all that is in it.
//!
//! What holds for whole volumes is the daemon's affair (`roots`). The class is an extended attribute of each
//! file and directory, which what is made in a directory gets from it. No daemon is asked: the kernel is.
//!
//! Others may change names while a tree is walked, so each one is opened without following symbolic links or
//! leaving the mount, and what was opened is what is set.
//!
//! Leaves out on purpose: directories whose path below the one that was named is longer than PATH_MAX. They
//! are told as failed, and can be named by a working directory.

mod roots;
pub mod snapshots;

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags, fstat, fstatfs, fsync, getxattr, open,
    openat, openat2, setxattr,
};
use rustix::io::Errno;
use serde::Serialize;
use unum_proto::admin::StatusRequest;
use unum_proto::tree::VolumeSettings;

use crate::args::VolumeVerb;
use crate::daemon::{Daemon, ShowStatus, block_on};
use crate::failure::{Failure, Result};
use crate::output::{Output, QUIET_TIME, Table};

use roots::VolumeRow;
pub use roots::{parse_inodes, parse_quota, parse_replicas};

/// The attribute that tells the class (docs/spec/tree.md).
const CLASS_XATTR: &CStr = c"user.unum.class";
/// What statfs(2) says of a FUSE mount.
const FUSE_MAGIC: i64 = 0x6573_5546;
/// Longest name of a class.
const CLASS_LENGTH_MAX: usize = 16;
/// Failures of one walk that are told one by one.
const FAILURES_TOLD_MAX: u64 = 10;
const SETTING: &str = "set the class of";
/// Progress is told this often.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// When a change is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Posix,
    Strict,
}

impl Class {
    fn of(word: &[u8]) -> Option<Self> {
        match word {
            b"posix" => Some(Self::Posix),
            b"strict" => Some(Self::Strict),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Posix => "posix",
            Self::Strict => "strict",
        }
    }
}

/// What can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    Class(Class),
    /// 0: the default.
    Replicas(u32),
    /// 0: none.
    Quota(u64),
    /// 0: none.
    Inodes(u64),
}

/// Reads KEY=VALUE.
pub fn parse_property(text: &str) -> Result<Property, String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE, such as class=strict")?;
    match key {
        "class" => {
            let class = Class::of(value.as_bytes());
            let unknown = || format!("there is no class \"{value}\"; there are strict and posix");
            class.map(Property::Class).ok_or_else(unknown)
        }
        "replicas" => parse_replicas(value).map(Property::Replicas),
        "quota" => parse_quota(value).map(Property::Quota),
        "inodes" => parse_inodes(value).map(Property::Inodes),
        _ => {
            let known = "class, replicas, quota, inodes";
            Err(format!("there is no \"{key}\" to set; what there is: {known}"))
        }
    }
}

/// What was asked for, for the volume and for each file.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    class: Option<Class>,
    settings: Option<VolumeSettings>,
}

impl Wanted {
    fn of(properties: &[Property]) -> Result<Self> {
        let mut wanted = Self::default();
        let mut settings = VolumeSettings::default();
        for property in properties {
            let before = match *property {
                Property::Class(class) => wanted.class.replace(class).is_some(),
                Property::Replicas(replicas) => settings.replicas.replace(replicas).is_some(),
                Property::Quota(quota) => settings.quota_bytes.replace(quota).is_some(),
                Property::Inodes(inodes) => settings.quota_inodes.replace(inodes).is_some(),
            };
            if before {
                return Err(Failure::usage("one thing is set twice: name each once"));
            }
        }
        wanted.settings = Some(settings).filter(|settings| *settings != VolumeSettings::default());
        Ok(wanted)
    }
}

#[derive(Serialize)]
struct ClassRow {
    path: String,
    class: Class,
}

/// What came of a walk.
#[derive(Debug, Default, Serialize)]
struct Walked {
    changed: u64,
    unchanged: u64,
    /// Symbolic links, special files and mount points, which have no class of this tree.
    skipped: u64,
    failed: u64,
}

#[derive(Serialize)]
struct SetReport {
    path: String,
    #[serde(flatten)]
    classed: Option<Classed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<VolumeRow>,
}

#[derive(Serialize)]
struct Classed {
    class: Class,
    #[serde(flatten)]
    walked: Walked,
}

pub fn run(socket: &Path, verb: VolumeVerb, out: &Output) -> Result<()> {
    match verb {
        VolumeVerb::Create { directory, replicas, quota, inodes } => {
            let settings = VolumeSettings { replicas, quota_bytes: quota, quota_inodes: inodes };
            roots::create(socket, &directory, settings, out)
        }
        VolumeVerb::List => roots::list(socket, out),
        VolumeVerb::Usage { directory } => roots::usage(socket, directory.as_deref(), out),
        VolumeVerb::Delete { directory } => roots::delete(socket, &directory, out),
        VolumeVerb::Set { directory, properties, only } => {
            set(socket, &directory, &Wanted::of(&properties)?, only, out)
        }
        VolumeVerb::Show { directories } if directories.is_empty() => show(&[mount(socket)?], out),
        VolumeVerb::Show { directories } => show(&directories, out),
    }
}

/// Where this node has the file tree.
fn mount(socket: &Path) -> Result<PathBuf> {
    let status = block_on(async {
        Daemon::connect(socket).await?.call::<ShowStatus>(StatusRequest {}).await
    })?;
    if status.mount.is_empty() {
        return Err(Failure::new("this node has no file tree mounted").next("See `unum status`."));
    }
    Ok(status.mount.into())
}

fn show(directories: &[PathBuf], out: &Output) -> Result<()> {
    let row = |path: &PathBuf| {
        let (_, class) = open_volume(path)?;
        Ok(ClassRow { path: path.to_string_lossy().into_owned(), class })
    };
    let rows: Vec<ClassRow> = directories.iter().map(row).collect::<Result<_>>()?;
    out.list(&rows, || {
        let mut table = Table::new(&["CLASS", "DIRECTORY"]);
        for row in &rows {
            table.row([row.class.word().into(), row.path.clone()]);
        }
        table
    })
}

fn set(socket: &Path, path: &Path, wanted: &Wanted, only: bool, out: &Output) -> Result<()> {
    if only && wanted.class.is_none() {
        return Err(Failure::usage("--only is about the class, and none is set"));
    }
    open_volume(path)?;
    let volume = wanted.settings.map(|settings| roots::set(socket, path, settings)).transpose()?;
    let classed = wanted.class.map(|class| set_below(path, class, only, out)).transpose()?;
    let failed = classed.as_ref().map_or(0, |classed| classed.walked.failed);
    let report = SetReport { path: path.to_string_lossy().into_owned(), classed, volume };
    out.one(&report, || report.to_string())?;
    match failed {
        0 => Ok(()),
        count => Err(Failure::new(format!(
            "the class of {count} files or directories below {} could not be set",
            plain(path)
        ))
        .next("The others have it. Do it again when the reason is gone; what is set stays so.")),
    }
}

fn set_below(path: &Path, class: Class, only: bool, out: &Output) -> Result<Classed> {
    let (directory, _) = open_volume(path)?;
    let told = set_class(directory.as_fd(), class).map_err(|why| refused(path, SETTING, why))?;
    let mut walk = Walk::new(path, class, out);
    walk.count(told);
    if !only {
        walk.directory(directory.as_fd(), Path::new("."));
        walk.rest(directory.as_fd());
    }
    let walked = walk.end();
    // What was set a moment ago may still wait to be drained.
    sync(directory.as_fd()).map_err(|why| refused(path, "make durable", why))?;
    Ok(Classed { class, walked })
}

impl fmt::Display for SetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(volume) = &self.volume {
            f.write_str(&volume.told())?;
        }
        match &self.classed {
            Some(classed) => writeln!(f, "{classed}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Classed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Walked { changed, unchanged, skipped, failed: _ } = self.walked;
        let class = self.class.word();
        write!(f, "{changed} files and directories are now {class}")?;
        if unchanged > 0 {
            write!(f, ", {unchanged} were before")?;
        }
        if skipped > 0 {
            write!(f, "; skipped {skipped} without a class")?;
        }
        Ok(())
    }
}

/// Opens a directory of the file tree, and tells its class.
fn open_volume(path: &Path) -> Result<(OwnedFd, Class)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open(path, flags, Mode::empty()).map_err(|why| refused(path, "open", why))?;
    let statfs = fstatfs(&opened).map_err(|why| refused(path, "open", why))?;
    #[allow(clippy::unnecessary_cast, reason = "its type depends on the architecture")]
    if statfs.f_type as i64 != FUSE_MAGIC {
        return Err(elsewhere(path));
    }
    let class = class_of(opened.as_fd()).map_err(|why| refused(path, "see the class of", why))?;
    Ok((opened, class.ok_or_else(|| elsewhere(path))?))
}

/// Attributes cannot be reached by a descriptor that gives no right to read or write.
fn by_descriptor(opened: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", opened.as_raw_fd())
}

fn class_of(opened: BorrowedFd<'_>) -> Result<Option<Class>, Errno> {
    let mut word = [0; CLASS_LENGTH_MAX];
    match getxattr(by_descriptor(opened), CLASS_XATTR, &mut word[..]) {
        Ok(length) => Ok(Class::of(&word[..length.min(CLASS_LENGTH_MAX)])),
        Err(Errno::RANGE) => Ok(None),
        Err(why) => Err(why),
    }
}

/// False: it had the class before.
fn set_class(opened: BorrowedFd<'_>, class: Class) -> Result<bool, Errno> {
    // Whoever may write need not be allowed to read.
    if class_of(opened) == Ok(Some(class)) {
        return Ok(false);
    }
    let word = class.word().as_bytes();
    setxattr(by_descriptor(opened), CLASS_XATTR, word, XattrFlags::empty())?;
    Ok(true)
}

fn sync(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fsync(openat(directory, c".", flags, Mode::empty())?)
}

/// Below `root`, never out of it.
fn open_below(root: BorrowedFd<'_>, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(root, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

/// A walk through everything below a directory.
struct Walk<'a> {
    root: &'a Path,
    class: Class,
    walked: Walked,
    /// Directories that were set and not yet looked into, by their paths below the root. Paths and not
    /// descriptors, of which a program has few.
    left: Vec<PathBuf>,
    out: &'a Output,
    began: Instant,
    told: Option<Instant>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Path, class: Class, out: &'a Output) -> Self {
        let (walked, left) = (Walked::default(), Vec::new());
        Self { root, class, walked, left, out, began: Instant::now(), told: None }
    }

    /// Looks into all directories that are left.
    fn rest(&mut self, root: BorrowedFd<'_>) {
        while let Some(path) = self.left.pop() {
            match open_below(root, &path, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(directory) => self.directory(directory.as_fd(), &path),
                Err(why) => self.gone_or_failed(&path, why),
            }
        }
    }

    /// Sets everything in a directory.
    fn directory(&mut self, directory: BorrowedFd<'_>, path: &Path) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listing = openat(directory, c".", flags, Mode::empty()).and_then(Dir::new);
        let listing = match listing {
            Ok(listing) => listing,
            Err(why) => return self.gone_or_failed(path, why),
        };
        for entry in listing {
            match entry {
                Ok(entry) => self.entry(directory, path, entry.file_name(), entry.file_type()),
                Err(why) => return self.gone_or_failed(path, why),
            }
        }
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, path: &Path, name: &CStr, kind: FileType) {
        if name == c"." || name == c".." {
            return;
        }
        let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let path = path.join(name);
        if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Unknown) {
            return self.skip();
        }
        match self.set_below(parent, name) {
            Ok(Some((FileType::Directory, changed))) => {
                self.count(changed);
                self.left.push(path);
            }
            Ok(Some((_, changed))) => self.count(changed),
            // A symbolic link by now, or a mount point.
            Ok(None) | Err(Errno::LOOP | Errno::XDEV) => self.skip(),
            Err(why) => self.gone_or_failed(&path, why),
        }
    }

    /// None: it can have no class.
    fn set_below(
        &self,
        parent: BorrowedFd<'_>,
        name: &Path,
    ) -> Result<Option<(FileType, bool)>, Errno> {
        let opened = open_below(parent, name, OFlags::PATH)?;
        let kind = FileType::from_raw_mode(fstat(&opened)?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Ok(None);
        }
        Ok(Some((kind, set_class(opened.as_fd(), self.class)?)))
    }

    fn count(&mut self, changed: bool) {
        match changed {
            true => self.walked.changed += 1,
            false => self.walked.unchanged += 1,
        }
        self.progress();
    }

    fn skip(&mut self) {
        self.walked.skipped += 1;
        self.progress();
    }

    fn gone_or_failed(&mut self, path: &Path, why: Errno) {
        // Others may remove what was listed.
        if matches!(why, Errno::NOENT | Errno::STALE) {
            return;
        }
        self.walked.failed += 1;
        let untold = self.walked.failed.saturating_sub(FAILURES_TOLD_MAX);
        if untold > 1 {
            return;
        }
        self.clear_progress();
        if untold == 1 {
            return self.out.note("more is not told one by one");
        }
        let path = self.root.join(path.strip_prefix(".").unwrap_or(path));
        self.out.note(&refused(&path, SETTING, why).what);
    }

    fn progress(&mut self) {
        let due = self.told.map_or(self.began + QUIET_TIME, |told| told + PROGRESS_PAUSE);
        if Instant::now() >= due {
            let seen = self.walked.changed + self.walked.unchanged;
            self.out.progress_line(&format!("{seen} files and directories"));
            self.told = Some(Instant::now());
        }
    }

    fn clear_progress(&self) {
        if self.told.is_some() {
            self.out.progress_line("");
        }
    }

    fn end(self) -> Walked {
        self.clear_progress();
        self.walked
    }
}

fn elsewhere(path: &Path) -> Failure {
    Failure::new(format!("{} is not in the cluster's file tree", plain(path)))
        .next("Name a directory below its mount, which `unum status` tells.")
}

fn refused(path: &Path, doing: &str, why: Errno) -> Failure {
    let why_told = std::io::Error::from(why);
    let failure = Failure::new(format!("cannot {doing} {}: {why_told}", plain(path)));
    match why {
        Errno::NODATA | Errno::OPNOTSUPP => elsewhere(path),
        Errno::ACCESS | Errno::PERM => failure.next(
            "It takes the right to write to a file or directory to set its class, and to read a \
             directory to set what is in it; ask its owner or root.",
        ),
        Errno::NOTDIR => failure.next(
            "A volume is a directory; a file's class: setfattr -n user.unum.class -v strict FILE",
        ),
        Errno::NOTCONN => failure.next("Nobody is behind the mount. Start the daemon: unum up"),
        Errno::TIMEDOUT | Errno::IO => failure.next("See how the cluster is: unum status"),
        _ => failure,
    }
}

/// A name may hold anything.
fn plain(path: &Path) -> String {
    path.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser;
    use expect_test::expect;

    fn parsed(words: &[&str]) -> Result<VolumeVerb, String> {
        let words = ["unum", "volume"].iter().chain(words);
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.verb {
            Verb::Volume(verb) => Ok(verb),
            other => panic!("not volume: {other:?}"),
        }
    }

    #[test]
    fn a_class_is_set_for_a_directory_and_what_is_in_it_or_for_it_alone() {
        for (words, wanted, alone) in [
            (&["set", "d", "class=strict"][..], Class::Strict, false),
            (&["set", "d", "class=posix", "--only"], Class::Posix, true),
            (&["set", "--only", "d", "class=strict"], Class::Strict, true),
        ] {
            let VolumeVerb::Set { directory, properties, only } = parsed(words).expect("it parses")
            else {
                panic!("not set")
            };
            assert_eq!((directory, properties), ("d".into(), vec![Property::Class(wanted)]));
            assert_eq!(only, alone);
        }
    }

    #[test]
    fn several_things_are_set_at_once_and_each_once() {
        let words = &["set", "d", "replicas=default", "quota=1G", "inodes=none", "class=posix"];
        let VolumeVerb::Set { properties, .. } = parsed(words).expect("it parses") else {
            panic!("not set")
        };
        let wanted = Wanted::of(&properties).expect("each once");
        let settings =
            VolumeSettings { replicas: Some(0), quota_bytes: Some(1 << 30), quota_inodes: Some(0) };
        assert_eq!(wanted, Wanted { class: Some(Class::Posix), settings: Some(settings) });
        let twice = [Property::Quota(1), Property::Quota(0)];
        assert_eq!(Wanted::of(&twice).expect_err("twice").exit, crate::failure::EXIT_USAGE);
    }

    #[test]
    fn what_cannot_be_set_is_refused_with_what_can() {
        assert_eq!(parse_property("class=strict"), Ok(Property::Class(Class::Strict)));
        let told: Vec<String> =
            ["strict", "class=", "class=Strict", "quota=-1", "size=1G", "=posix", ""]
                .iter()
                .map(|text| parse_property(text).expect_err(text))
                .collect();
        expect![[r#"
            write it as KEY=VALUE, such as class=strict
            there is no class ""; there are strict and posix
            there is no class "Strict"; there are strict and posix
            a quota is a number of bytes such as 10G, or "none": write it as 65536, 512K, 64M or 1G
            there is no "size" to set; what there is: class, replicas, quota, inodes
            there is no "" to set; what there is: class, replicas, quota, inodes
            write it as KEY=VALUE, such as class=strict"#]]
        .assert_eq(&told.join("\n"));
        assert!(parsed(&["set", "d"]).is_err());
        assert!(parsed(&["set", "d", "class=fast"]).is_err());
    }

    #[test]
    fn the_words_are_those_of_the_tree() {
        for class in [Class::Posix, Class::Strict] {
            assert_eq!(Class::of(class.word().as_bytes()), Some(class));
            assert_eq!(serde_json::to_value(class).expect("plain"), class.word());
        }
    }

    #[test]
    fn what_is_elsewhere_is_told_so_and_left_alone() {
        let elsewhere = tempfile::tempdir().expect("a directory");
        std::fs::write(elsewhere.path().join("file"), "").expect("a file");
        let out = Output::new(false);
        for path in [elsewhere.path(), Path::new("/proc")] {
            let wanted = Wanted { class: Some(Class::Strict), settings: None };
            let nobody = Path::new("/nonexistent");
            let told = set(nobody, path, &wanted, false, &out).expect_err("it is elsewhere");
            assert!(told.what.ends_with("is not in the cluster's file tree"), "{told}");
            assert_eq!((told.exit, told.next.is_some()), (1, true));
        }
        let told = open_volume(&elsewhere.path().join("file")).expect_err("it is a file");
        assert!(told.what.contains("Not a directory"), "{told}");
        let told = open_volume(&elsewhere.path().join("none")).expect_err("there is none");
        assert!(told.what.contains("No such file"), "{told}");
    }

    #[test]
    fn what_people_and_scripts_read() {
        let walked = Walked { changed: 12, unchanged: 3, skipped: 1, failed: 0 };
        let classed = Some(Classed { class: Class::Strict, walked });
        let report = SetReport { path: "/unum/db".into(), classed, volume: None };
        expect![[r#"
            12 files and directories are now strict, 3 were before; skipped 1 without a class
        "#]]
        .assert_eq(&report.to_string());
        expect![[r#"{"path":"/unum/db","class":"strict","changed":12,"unchanged":3,"skipped":1,"failed":0}"#]]
            .assert_eq(&serde_json::to_string(&report).expect("plain"));
    }
}
