//! What a person does with a cluster: asks, waits until something holds, lets machines in.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Playground, cannot_run, text};

/// Longer than anything here takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long a script on a machine may take, in seconds: /unum may wait for ever.
const SCRIPT_TIME_MAX: &str = "60";
const PAUSE: Duration = Duration::from_millis(100);

/// As [`cannot_run`], for tests that need daemons with a mount.
pub fn cannot_run_daemons() -> bool {
    let fuse = std::path::Path::new("/dev/fuse").exists();
    if !fuse {
        println!("skipped: there is no /dev/fuse");
    }
    !fuse || cannot_run()
}

impl Playground {
    /// Machines with power and without daemons.
    pub fn machines(count: u32, options: &[&str]) -> Self {
        let count = count.to_string();
        Self::up(&[&["--bare", "--nodes", &count], options].concat())
    }

    pub fn tries(&self, machine: &str, script: &str) -> Output {
        let words = ["timeout", SCRIPT_TIME_MAX, "sh", "-c", script];
        self.on(machine, &words).output().expect("unum dev exec runs")
    }

    /// The standard output of a script that must succeed.
    pub fn does(&self, machine: &str, script: &str) -> String {
        let output = self.tries(machine, script);
        assert!(output.status.success(), "{machine}: {script}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The standard error of a script that must fail.
    pub fn is_refused(&self, machine: &str, script: &str) -> String {
        let output = self.tries(machine, script);
        assert!(!output.status.success(), "{machine}: {script}: {}", text(&output.stdout));
        let told = text(&output.stderr);
        assert!(!told.contains("panicked"), "{told}");
        told
    }

    /// The standard output of a script that succeeds at last.
    pub fn does_at_last(&self, machine: &str, script: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.tries(machine, script);
            if output.status.success() {
                return text(&output.stdout);
            }
            let told = || text(&output.stderr);
            assert!(Instant::now() < deadline, "{machine}: {script}: {}", told());
            std::thread::sleep(PAUSE);
        }
    }

    /// What `unum COMMAND --json` prints.
    pub fn json(&self, machine: &str, command: &str) -> Value {
        let shown = self.does(machine, &format!("unum {command} --json"));
        serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{command}: {error}: {shown}"))
    }

    /// The status of a machine's node once it is as wanted.
    pub fn status_when(&self, machine: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.json_when(machine, "status", what, wanted)
    }

    pub fn json_when(
        &self,
        machine: &str,
        command: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A daemon that just starts does not answer yet.
            let output = self.tries(machine, &format!("unum {command} --json"));
            let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if output.status.success() && wanted(&shown) {
                return shown;
            }
            let told = || text(&output.stderr);
            let late = Instant::now() >= deadline;
            assert!(!late, "{machine} never shows {what}: {shown:#} {}", told());
            std::thread::sleep(PAUSE);
        }
    }

    /// The names of the nodes for which `wanted` holds, as a machine sees them.
    pub fn nodes_that(&self, machine: &str, wanted: impl Fn(&Value) -> bool) -> BTreeSet<String> {
        let nodes = self.json(machine, "nodes");
        let nodes = nodes.as_array().expect("an array").iter();
        nodes.filter(|node| wanted(node)).map(|node| word(&node["name"])).collect()
    }

    pub fn voters(&self, machine: &str) -> BTreeSet<String> {
        self.nodes_that(machine, |node| node["voter"] == true)
    }

    /// The name of the node that leads, once there is one.
    pub fn leader(&self, machine: &str) -> String {
        let leads = |node: &Value| node["leader"] == true;
        let any = |nodes: &Value| nodes.as_array().is_some_and(|nodes| nodes.iter().any(leads));
        self.json_when(machine, "nodes", "a leader", any);
        self.nodes_that(machine, leads).pop_first().expect("a leader")
    }

    /// The first machine's cluster.
    pub fn found(&self, machine: &str) {
        self.does(machine, "unum up");
    }

    /// Lets `machine` in with a new token made on `via`.
    pub fn join(&self, machine: &str, via: &str, token_options: &str) {
        let made = self.json(via, &format!("token create {token_options}"));
        self.does(machine, &word(&made["command"]));
    }

    /// Bytes that a machine keeps on its disk for the contents of files.
    pub fn chunk_bytes(&self, machine: &str) -> u64 {
        let shown = self.does(machine, "du -sB1 /var/lib/unum/chunks 2>/dev/null || echo 0");
        let number = shown.split_whitespace().next().unwrap_or_default();
        number.parse().unwrap_or_else(|error| panic!("{error}: {shown}"))
    }
}

pub fn word(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_string()
}
