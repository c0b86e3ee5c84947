//! From names to nodes to addresses.
//!
//! What is known here are hints: a wrong one costs a hop, never a wrong result, for whoever is
//! asked answers `Moved` when it does not own the name. A hint with a smaller epoch never replaces
//! one with a larger. The daemon fills in nodes and services from the registry.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{PoisonError, RwLock},
};

use unum_proto::ids::{NodeId, Pid};

use crate::{
    error::Hint,
    limits::{ADDRESSES_PER_NODE_MAX, HINTS_MAX},
};

/// What a call is addressed to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    Node(NodeId),
    Service(Cow<'static, str>),
    Process(Pid),
}

impl Name {
    pub const fn service(name: &'static str) -> Self {
        Name::Service(Cow::Borrowed(name))
    }
}

impl From<NodeId> for Name {
    fn from(node: NodeId) -> Self {
        Name::Node(node)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Node(node) => node.fmt(f),
            Name::Service(name) => write!(f, "service {name}"),
            Name::Process(pid) => write!(f, "process {pid}"),
        }
    }
}

/// Names, nodes and addresses known here. Shared by everything in one daemon.
#[derive(Debug, Default)]
pub struct Directory {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    nodes: HashMap<NodeId, Vec<SocketAddr>>,
    hints: HashMap<Name, Hint>,
}

impl Directory {
    pub fn new() -> Self {
        Directory::default()
    }

    /// The node's addresses, in order of preference.
    pub fn set_node(&self, node: NodeId, mut addresses: Vec<SocketAddr>) {
        addresses.truncate(ADDRESSES_PER_NODE_MAX);
        self.write().nodes.insert(node, addresses);
    }

    pub fn remove_node(&self, node: NodeId) {
        let mut known = self.write();
        known.nodes.remove(&node);
        known.hints.retain(|_, hint| hint.node != node);
    }

    pub fn nodes(&self) -> Vec<NodeId> {
        self.read().nodes.keys().copied().collect()
    }

    pub fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        self.read().nodes.get(&node).cloned().unwrap_or_default()
    }

    /// Learns where a name is. False: something newer is known already.
    pub fn learn(&self, name: &Name, hint: Hint) -> bool {
        if matches!(name, Name::Node(_)) {
            return false;
        }
        let mut known = self.write();
        if known.hints.get(name).is_some_and(|old| old.epoch > hint.epoch) {
            return false;
        }
        if known.hints.len() >= HINTS_MAX && !known.hints.contains_key(name) {
            // Any one will do: a lost hint costs one look-up.
            if let Some(victim) = known.hints.keys().next().cloned() {
                known.hints.remove(&victim);
            }
        }
        known.hints.insert(name.clone(), hint);
        true
    }

    pub fn forget(&self, name: &Name) {
        self.write().hints.remove(name);
    }

    /// The node to ask. None: nobody said yet where the name is.
    pub fn resolve(&self, name: &Name) -> Option<NodeId> {
        match name {
            Name::Node(node) => Some(*node),
            _ => self.read().hints.get(name).map(|hint| hint.node),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use unum_proto::ids::Epoch;

    use super::*;

    #[test]
    fn a_stale_hint_never_replaces_a_newer_one() {
        let directory = Directory::new();
        let name = Name::service("registry");
        let hint = |node, epoch| Hint { node: NodeId(node), epoch: Epoch(epoch) };
        assert_eq!(directory.resolve(&name), None);
        assert!(directory.learn(&name, hint(1, 5)));
        assert!(!directory.learn(&name, hint(2, 4)));
        assert_eq!(directory.resolve(&name), Some(NodeId(1)));
        assert!(directory.learn(&name, hint(2, 6)));
        directory.remove_node(NodeId(2));
        assert_eq!(directory.resolve(&name), None);
    }

    #[test]
    fn hints_are_bounded() {
        let directory = Directory::new();
        for pid in 0..HINTS_MAX as u32 + 10 {
            directory.learn(&Name::Process(Pid(pid)), Hint { node: NodeId(1), epoch: Epoch(1) });
        }
        assert_eq!(directory.read().hints.len(), HINTS_MAX);
    }
}
