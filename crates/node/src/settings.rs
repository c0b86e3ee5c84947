//! The settings of a node: one flat list of keys, each with a default, a meaning and one setter.
//!
//! A key has the same name everywhere: `data_dir = "/x"` in the TOML file, `UNUM_DATA_DIR=/x` in
//! the environment, `--data-dir /x` on the command line. Later sources win in that order. A key in
//! the file that nobody knows is an error that names the nearest known one: a misspelt setting that
//! silently does nothing is worse than a daemon that does not start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::Exports;

/// Where the settings file is looked for when nobody names one.
pub const SETTINGS_PATH: &str = "/etc/unum/unum.toml";
/// The TCP port nodes speak on.
pub const PORT: u16 = 7117;
/// The largest settings file that is read.
pub const SETTINGS_SIZE_MAX: u64 = 64 * 1024;

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub mount: PathBuf,
    pub name: String,
    pub listen: SocketAddr,
    /// `host:port` that other nodes reach this one under; the listening address when `None`.
    pub advertise: Option<String>,
    /// Members of this group may change the cluster besides root.
    pub admin_group: Option<String>,
    pub certificate_lifetime: Duration,
    pub token_lifetime: Duration,
    pub gossip_period: Duration,
    pub gossip_timeout: Duration,
    pub gossip_suspicion: Duration,
    pub raft_heartbeat: Duration,
    pub raft_election_min: Duration,
    pub raft_election_max: Duration,
    pub raft_snapshot_entries: u64,
    pub replicas: u32,
    /// The copies of a node that went down count as copies for so long.
    pub repair_after: Duration,
    /// Bytes per second that this node copies to restore or move replicas.
    pub repair_rate: u64,
    /// Bytes per second that the scrub reads.
    pub scrub_rate: u64,
    /// From the beginning of one scrub to that of the next.
    pub scrub_period: Duration,
    /// A chunk that no file uses is deleted when it is this old.
    pub garbage_after: Duration,
    /// Forget at a power cut what was not synced, as a machine does: for playgrounds.
    pub volatile_writes: bool,
    pub worker: bool,
    pub file_patience: Duration,
    /// Where the other nodes' own file systems are mounted.
    pub host_mount: PathBuf,
    /// What of this machine's own file system the other nodes see.
    pub host_export: Exports,
    /// Root of another node is root in it.
    pub host_root: bool,
    pub log: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/unum"),
            run_dir: PathBuf::from("/run/unum"),
            mount: PathBuf::from("/unum"),
            name: host_name(),
            listen: SocketAddr::from(([0, 0, 0, 0], PORT)),
            advertise: None,
            admin_group: None,
            certificate_lifetime: Duration::from_secs(24 * 3600),
            token_lifetime: Duration::from_secs(3600),
            gossip_period: Duration::from_millis(250),
            gossip_timeout: Duration::from_millis(100),
            gossip_suspicion: Duration::from_millis(750),
            raft_heartbeat: Duration::from_millis(100),
            raft_election_min: Duration::from_millis(200),
            raft_election_max: Duration::from_millis(350),
            raft_snapshot_entries: 20_000,
            replicas: 3,
            repair_after: Duration::from_secs(600),
            repair_rate: 64 << 20,
            scrub_rate: 8 << 20,
            scrub_period: Duration::from_secs(7 * 86_400),
            garbage_after: Duration::from_secs(600),
            volatile_writes: false,
            worker: true,
            file_patience: Duration::from_secs(10),
            host_mount: PathBuf::from("/n"),
            host_export: Exports::default(),
            host_root: false,
            log: "info,openraft=error".into(),
        }
    }
}

/// One key: its name, what it means, how it is set and how its value is shown.
pub struct Key {
    pub name: &'static str,
    pub help: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
    show: fn(&Settings) -> String,
}

macro_rules! key {
    ($name:ident, $parse:expr, $show:expr, $help:literal) => {
        Key {
            name: stringify!($name),
            help: $help,
            set: |settings, text| {
                settings.$name = $parse(text)?;
                Ok(())
            },
            show: |settings| $show(&settings.$name),
        }
    };
}

/// Every setting there is, in the order of the sample file.
pub const KEYS: &[Key] = &[
    key!(name, node_name, quoted, "The node's name, unique in the cluster. Default: the host name"),
    key!(data_dir, path, quoted_path, "What must survive: the registry's log, chunks, credentials"),
    key!(run_dir, path, quoted_path, "Sockets and what may be lost at a reboot"),
    key!(mount, path, quoted_path, "Where the cluster's file tree is mounted"),
    key!(listen, address, shown, "The address and port this node listens on"),
    key!(
        advertise,
        optional,
        quoted_optional,
        "The host:port that other nodes use to reach this one. Default: the address it listens on, \
         or the one it reached the cluster from"
    ),
    key!(
        admin_group,
        optional,
        quoted_optional,
        "Members of this group may change the cluster (tokens, join, leave, remove, down), besides \
         root"
    ),
    key!(
        certificate_lifetime,
        lifetime,
        shown_duration,
        "How long a node's certificate is valid; it is renewed at two thirds of that"
    ),
    key!(token_lifetime, lifetime, shown_duration, "How long a join token is valid"),
    key!(
        gossip_period,
        short_time,
        shown_duration,
        "One other node is probed this often, rounded up to 64 ms"
    ),
    key!(
        gossip_timeout,
        short_time,
        shown_duration,
        "Others are asked to probe a node that did not answer in this time"
    ),
    key!(
        gossip_suspicion,
        short_time,
        shown_duration,
        "A suspected node that does not refute in this time is dead"
    ),
    key!(
        raft_heartbeat,
        short_time,
        shown_duration,
        "The leader is heard this often, rounded up to 64 ms"
    ),
    key!(raft_election_min, short_time, shown_duration, "A silent leader is replaced after this"),
    key!(raft_election_max, short_time, shown_duration, "or at the latest after this"),
    key!(raft_snapshot_entries, positive_u64, shown, "Log entries between two snapshots"),
    key!(replicas, replicas, shown, "Copies of each piece of file content (1 to 7)"),
    key!(
        repair_after,
        lifetime,
        shown_duration,
        "What a dead node held is copied anew after this: until then it may come back"
    ),
    key!(
        repair_rate,
        parse_bytes,
        shown_bytes,
        "Bytes per second that this node copies at most to restore or move what nodes hold, as 64M"
    ),
    key!(
        scrub_rate,
        parse_bytes,
        shown_bytes,
        "Bytes per second that this node reads at most to look for rot in what it holds"
    ),
    key!(
        scrub_period,
        lifetime,
        shown_duration,
        "Everything that this node holds is checked this often; longer if the rate asks for it"
    ),
    key!(
        garbage_after,
        lifetime,
        shown_duration,
        "The room of deleted files is freed after this (not sooner than 30s). It must be longer \
         than any node's file_patience"
    ),
    key!(
        volatile_writes,
        boolean,
        shown,
        "Forget unsynced bytes when the daemon dies, as a power cut does. For playgrounds only"
    ),
    key!(
        worker,
        boolean,
        shown,
        "Mount the file tree and run programs on this node. Needs root and /dev/fuse"
    ),
    key!(
        file_patience,
        short_time,
        shown_duration,
        "How long a call on the file tree waits for a majority of the voters before it fails with \
         ETIMEDOUT"
    ),
    key!(
        host_mount,
        path,
        quoted_path,
        "Where the other nodes' own file systems are mounted, each under its name"
    ),
    key!(
        host_export,
        Exports::parse,
        shown,
        "What of this machine's own file system the other nodes see: / , none, or paths with commas \
         between them. Never what the kernel makes up (/proc, /sys, /dev), nor what Unum keeps"
    ),
    key!(
        host_root,
        root_elsewhere,
        shown_root_elsewhere,
        "Who root of another node is in this machine's own file system: \"squash\" (nobody, 65534) \
         or \"allow\" (root)"
    ),
    key!(log, text, quoted, "What is logged: error, warn, info, debug, trace, or per module"),
];

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the settings file {path}: {error}; name another with --config")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("the settings file {path} is not valid TOML: {why}")]
    Syntax { path: PathBuf, why: String },
    #[error("there is no setting `{key}`{}", suggestion(.nearest))]
    Unknown { key: String, nearest: Option<&'static str> },
    #[error("the setting `{key}` cannot be `{value}`: {why}")]
    Value { key: String, value: String, why: String },
}

fn suggestion(nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; see the sample settings file for those there are".into(),
    }
}

impl Settings {
    /// Defaults, then the file, then the environment. The command line is laid over by the caller
    /// with [`Settings::set`]. A file that was not named and does not exist is no error.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        match file {
            Some(path) => settings.read_file(path)?,
            None if Path::new(SETTINGS_PATH).exists() => {
                settings.read_file(Path::new(SETTINGS_PATH))?;
            }
            None => {}
        }
        settings.read_environment(|name| std::env::var(name).ok())?;
        Ok(settings)
    }

    pub fn read_file(&mut self, path: &Path) -> Result<(), SettingsError> {
        let read = |error| SettingsError::Read { path: path.into(), error };
        if std::fs::metadata(path).map_err(read)?.len() > SETTINGS_SIZE_MAX {
            return Err(read(std::io::Error::other("it is larger than 64 KiB")));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        self.read_toml(&text, path)
    }

    pub fn read_toml(&mut self, text: &str, path: &Path) -> Result<(), SettingsError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            SettingsError::Syntax { path: path.into(), why: error.message().into() }
        })?;
        for (key, value) in &table {
            self.set(key, &scalar(key, value)?)?;
        }
        Ok(())
    }

    pub fn read_environment(
        &mut self,
        get: impl Fn(&str) -> Option<String>,
    ) -> Result<(), SettingsError> {
        for key in KEYS {
            if let Some(value) = get(&key.environment()) {
                self.set(key.name, &value)?;
            }
        }
        Ok(())
    }

    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingsError> {
        let Some(known) = KEYS.iter().find(|known| known.name == key) else {
            return Err(SettingsError::Unknown { key: key.into(), nearest: nearest(key) });
        };
        (known.set)(self, value).map_err(|why| SettingsError::Value {
            key: key.into(),
            value: value.into(),
            why,
        })
    }

    /// A settings file that says all that these settings say, with the meaning of each key.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# Unum's settings on this node. Every key may be left out.\n");
        for key in KEYS {
            text.push_str(&format!("\n# {}.\n", key.help));
            let value = (key.show)(self);
            match value.is_empty() {
                true => text.push_str(&format!("#{} = \"\"\n", key.name)),
                false => text.push_str(&format!("{} = {value}\n", key.name)),
            }
        }
        text
    }

    /// The local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("unumd.sock")
    }
}

impl Key {
    pub fn environment(&self) -> String {
        format!("UNUM_{}", self.name.to_uppercase())
    }

    pub fn option(&self) -> String {
        self.name.replace('_', "-")
    }
}

fn scalar(key: &str, value: &toml::Value) -> Result<String, SettingsError> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        toml::Value::Table(_) => {
            Err(SettingsError::Unknown { key: format!("[{key}]"), nearest: nearest(key) })
        }
        other => Err(SettingsError::Value {
            key: key.into(),
            value: other.to_string(),
            why: "it must be text, a whole number, true or false".into(),
        }),
    }
}

fn nearest(key: &str) -> Option<&'static str> {
    let (distance, name) =
        KEYS.iter().map(|known| (edit_distance(key, known.name), known.name)).min()?;
    (distance <= key.len().max(4) / 2).then_some(name)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// `90s`, `15m`, `1h`, `2d`, `250ms`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| "write it as 90s, 15m, 1h, 2d or 250ms")?;
    let milliseconds = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("the unit must be ms, s, m, h or d".into()),
    };
    let total = number.checked_mul(milliseconds).ok_or("it is too long")?;
    Ok(Duration::from_millis(total))
}

/// The shortest text that [`parse_duration`] reads back as the same time.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let (size, unit) = units
        .iter()
        .find(|(size, _)| ms >= *size && ms.is_multiple_of(*size))
        .unwrap_or(&(1, "ms"));
    format!("{}{unit}", ms / size)
}

fn within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration < least || duration > most {
        let (least, most) = (format_duration(least), format_duration(most));
        return Err(format!("it must be between {least} and {most}"));
    }
    Ok(duration)
}

fn lifetime(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_secs(1), Duration::from_secs(3650 * 86_400))
}

fn short_time(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_millis(10), Duration::from_secs(60))
}

fn path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("it must be an absolute path".into()) }
}

/// A node's name is also a host name and a file name.
pub fn node_name(text: &str) -> Result<String, String> {
    const NODE_NAME_LENGTH_MAX: usize = 63;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = text.starts_with('-') || text.ends_with('-');
    if text.is_empty() || text.len() > NODE_NAME_LENGTH_MAX || edges || !text.chars().all(fits) {
        return Err("a name has 1 to 63 of a-z, 0-9 and inner hyphens".into());
    }
    Ok(text.into())
}

fn text(text: &str) -> Result<String, String> {
    Ok(text.into())
}

fn optional(text: &str) -> Result<Option<String>, String> {
    Ok(Some(text.to_string()).filter(|text| !text.is_empty()))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let ip: std::net::IpAddr =
        text.parse().map_err(|_| "write it as 0.0.0.0:7117, 10.0.0.5 or [::]:7117")?;
    Ok(SocketAddr::new(ip, PORT))
}

fn positive_u64(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("it must be a positive whole number".into()),
    }
}

fn replicas(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (1..=7).contains(&number) => Ok(number),
        _ => Err("it must be between 1 and 7".into()),
    }
}

fn root_elsewhere(text: &str) -> Result<bool, String> {
    match text {
        "allow" => Ok(true),
        "squash" => Ok(false),
        _ => Err("it must be squash or allow".into()),
    }
}

fn shown_root_elsewhere(allowed: &bool) -> String {
    quoted(if *allowed { "allow" } else { "squash" })
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("it must be true or false".into()),
    }
}

/// `65536`, `512K`, `64M`, `1G` or `2T`: a positive number, in powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| "write it as 65536, 512K, 64M or 1G")?;
    let shift = match unit.trim() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("the unit must be K, M, G or T".into()),
    };
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) => Err("it must be more than nothing".into()),
        None => Err("it is too much".into()),
    }
}

fn shown_bytes(bytes: &u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    match units.iter().find(|(shift, _)| bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => quoted(&format!("{}{unit}", bytes >> shift)),
        None => bytes.to_string(),
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn quoted_optional(text: &Option<String>) -> String {
    text.as_deref().map(quoted).unwrap_or_default()
}

fn shown<T: std::fmt::Display + 'static>(value: &T) -> String {
    let text = value.to_string();
    let bare = text.parse::<i64>().is_ok() || text.parse::<bool>().is_ok();
    if bare { text } else { quoted(&text) }
}

fn shown_duration(duration: &Duration) -> String {
    quoted(&format_duration(*duration))
}

/// The machine's name up to the first dot, as far as a node's name can hold it.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let full = uname.nodename().to_string_lossy().into_owned();
    let short = full.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let clean: String = short
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(63)
        .collect();
    let clean = clean.trim_matches('-');
    if clean.is_empty() { "node".into() } else { clean.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn read(text: &str) -> Result<Settings, String> {
        let mut settings = Settings { name: "n".into(), ..Settings::default() };
        settings
            .read_toml(text, Path::new("unum.toml"))
            .map(|()| settings)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut settings = Settings { name: "n7".into(), ..Settings::default() };
        settings.set("advertise", "lab-7:9000").unwrap();
        settings.set("certificate_lifetime", "9s").unwrap();
        settings.set("volatile_writes", "true").unwrap();
        assert_eq!(read(&settings.to_toml()).unwrap(), settings);
        assert_eq!(read("").unwrap().replicas, 3);
        for (text, bytes) in [("512K", 512 << 10), ("3M", 3 << 20), ("2G", 2 << 30), ("1001", 1001)]
        {
            settings.set("scrub_rate", text).unwrap();
            assert_eq!(settings.scrub_rate, bytes);
            assert_eq!(read(&settings.to_toml()).unwrap(), settings);
        }
    }

    #[test]
    fn later_sources_win() {
        let mut settings = read("data_dir = '/a'\nlisten = '10.0.0.5'\nreplicas = 2").unwrap();
        assert_eq!(settings.listen, "10.0.0.5:7117".parse().unwrap());
        settings
            .read_environment(|name| (name == "UNUM_DATA_DIR").then(|| "/b".to_string()))
            .unwrap();
        assert_eq!((settings.data_dir.as_path(), settings.replicas), (Path::new("/b"), 2));
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = [
            "date_dir = '/x'",
            "frobnicate_everything = 1",
            "[raft]\nheartbeat = 3",
            "data_dir = 'x'",
            "certificate_lifetime = '9 fortnights'",
            "gossip_period = '5m'",
            "replicas = 9",
            "repair_rate = '7P'",
            "repair_rate = '0M'",
            "scrub_rate = '99999999999G'",
            "replicas = [1]",
            "host_root = true",
            "host_export = 'home'",
            "name = 'a b'",
            "name = ",
        ];
        let told: Vec<String> = wrong.iter().map(|text| read(text).unwrap_err()).collect();
        expect![[r#"
            there is no setting `date_dir`; did you mean `data_dir`?
            there is no setting `frobnicate_everything`; see the sample settings file for those there are
            there is no setting `[raft]`; see the sample settings file for those there are
            the setting `data_dir` cannot be `x`: it must be an absolute path
            the setting `certificate_lifetime` cannot be `9 fortnights`: the unit must be ms, s, m, h or d
            the setting `gossip_period` cannot be `5m`: it must be between 10ms and 1m
            the setting `replicas` cannot be `9`: it must be between 1 and 7
            the setting `repair_rate` cannot be `7P`: the unit must be K, M, G or T
            the setting `repair_rate` cannot be `0M`: it must be more than nothing
            the setting `scrub_rate` cannot be `99999999999G`: it is too much
            the setting `replicas` cannot be `[1]`: it must be text, a whole number, true or false
            the setting `host_root` cannot be `true`: it must be squash or allow
            the setting `host_export` cannot be `home`: write it as /, as none, or as /home,/srv: absolute paths without ..
            the setting `name` cannot be `a b`: a name has 1 to 63 of a-z, 0-9 and inner hyphens
            the settings file unum.toml is not valid TOML: string values must be quoted, expected literal string"#]]
        .assert_eq(&told.join("\n"));
    }

    #[test]
    fn durations_keep_their_value() {
        for text in ["250ms", "90s", "15m", "1h", "2d", "1500ms"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert!(parse_duration("99999999999999999999d").is_err());
        assert!(parse_duration("18446744073709551615d").is_err());
    }
}
