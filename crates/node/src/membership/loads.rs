//! What each node has to offer: read here, spread by gossip, newest report kept for each member.

use super::codec::Identity;
use prost::Message as _;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use unum_proto::cluster::Load;
use unum_proto::ids::NodeId;

/// The newest report of each member. Shared between gossip's machine and the broadcasts inside it,
/// which run on one task: the lock is never waited for.
#[derive(Clone, Default)]
pub struct LoadTable(Arc<Mutex<BTreeMap<NodeId, Option<Load>>>>);

impl LoadTable {
    pub fn keep_only(&self, members: impl IntoIterator<Item = NodeId>) {
        let mut table = self.lock();
        let mut old = std::mem::take(&mut *table);
        *table = members.into_iter().map(|node| (node, old.remove(&node).flatten())).collect();
    }

    pub fn of(&self, node: NodeId) -> Option<Load> {
        self.lock().get(&node).copied().flatten()
    }

    /// Keeps a report if it is of a member and newer than what is known.
    fn learn(&self, load: Load) -> bool {
        let mut table = self.lock();
        let Some(slot) = table.get_mut(&NodeId(load.node)) else { return false };
        let newer = slot.is_none_or(|old| (load.run, load.sequence) > (old.run, old.sequence));
        if newer {
            *slot = Some(load);
        }
        newer
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Option<Load>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Load reports as gossip's broadcasts.
pub struct Loads(pub LoadTable);

/// A newer report of a node replaces the older one in the queue.
pub struct LoadOf(u64);

impl foca::Invalidates for LoadOf {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl foca::BroadcastHandler<Identity> for Loads {
    type Key = LoadOf;
    type Error = prost::DecodeError;

    fn receive_item(
        &mut self,
        bytes: &[u8],
        _sender: Option<&Identity>,
    ) -> Result<Option<LoadOf>, prost::DecodeError> {
        let load = Load::decode(bytes)?;
        Ok(self.0.learn(load).then_some(LoadOf(load.node)))
    }
}

/// What this machine, with so many processors, has to offer now. Values the kernel does not tell stay
/// 0.
pub fn read_machine(cores: u32) -> Load {
    let average = read_start("/proc/loadavg");
    let memory = read_start("/proc/meminfo");
    let (load_milli, runnable) = parse_load_average(&average);
    Load {
        cores,
        load_milli,
        runnable,
        memory_total: parse_memory(&memory, "MemTotal:"),
        memory_free: parse_memory(&memory, "MemAvailable:"),
        ..Load::default()
    }
}

/// Processors that this daemon's control group may use.
pub fn read_cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

/// The start of a small file, with one read: enough for what is looked for here.
fn read_start(path: &str) -> String {
    let mut start = [0; 1024];
    let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    String::from_utf8_lossy(start.get(..read).unwrap_or_default()).into_owned()
}

/// `0.52 0.42 0.35 2/123 4567`: the first minute's average, and the tasks running now without the
/// one that reads.
fn parse_load_average(text: &str) -> (u32, u32) {
    let mut fields = text.split_ascii_whitespace();
    let average: f64 = fields.next().and_then(|field| field.parse().ok()).unwrap_or(0.0);
    let running = fields.nth(2).and_then(|field| field.split('/').next()?.parse::<u32>().ok());
    ((average * 1000.0) as u32, running.unwrap_or(1).saturating_sub(1))
}

fn parse_memory(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_ascii_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_understood() {
        assert_eq!(parse_load_average("0.52 0.42 0.35 3/123 4567\n"), (520, 2));
        assert_eq!(parse_load_average("nonsense"), (0, 0));
        assert_eq!(parse_memory("MemTotal: 10 kB\nMemAvailable:   7 kB\n", "MemAvailable:"), 7168);
        let machine = read_machine(read_cores());
        assert!(machine.cores > 0 && machine.memory_free > 0);
        assert!(machine.memory_free <= machine.memory_total);
    }

    #[test]
    fn only_newer_reports_of_members_are_kept() {
        let table = LoadTable::default();
        table.keep_only([NodeId(1)]);
        let load = |node, run, sequence| Load { node, run, sequence, ..Load::default() };
        assert!(table.learn(load(1, 5, 2)));
        assert!(!table.learn(load(1, 5, 2)) && !table.learn(load(1, 4, 9)));
        assert!(table.learn(load(1, 6, 1)));
        assert!(!table.learn(load(2, 6, 1)), "a stranger");
        table.keep_only([NodeId(2)]);
        assert_eq!(table.of(NodeId(1)), None);
    }
}
