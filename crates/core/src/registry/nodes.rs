//! The nodes of the cluster and their epochs.
//!
//! Invariants: an id is given once; two nodes that have not left never share a name; an epoch only
//! grows, and whoever shows an old one is refused before anything changes. Nodes that left stay as
//! tombstones, so that their certificates can be told from unknown ones.

use bytes::Bytes;
use imbl::OrdMap;
use unum_proto::ids::{Epoch, NodeId};
use unum_proto::registry::{CertificateIssued, Description, NodeState, Role};

use super::limits::{
    CERTIFICATE_FIELD_SIZE_MAX, NODE_ADDRESSES_MAX, NODE_NAME_SIZE_MAX, NODE_WORD_SIZE_MAX,
    NODES_MAX, WHY_SIZE_MAX,
};
use super::refused::{Field, Refused};
use crate::time::Time;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub role: Role,
    pub state: NodeState,
    pub epoch: Epoch,
    pub description: Description,
    pub certificate: Option<Certificate>,
    /// Since when it is in this state.
    pub since: Time,
    pub joined: Time,
    /// Why it is down.
    pub why: String,
    /// The life of the node's world, as it told last.
    pub boot: Bytes,
}

/// What coming up came to.
pub(super) struct Up {
    pub epoch: Epoch,
    /// The node's world is another one than before.
    pub rebooted: bool,
}

/// The certificate that was issued last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub serial: Bytes,
    pub fingerprint: Bytes,
    pub not_after: Time,
}

impl Node {
    /// Whether it belongs to the cluster: it may be down, but it has not left.
    pub fn is_member(&self) -> bool {
        match self.state {
            NodeState::Joining | NodeState::Up | NodeState::Down => true,
            NodeState::Unspecified | NodeState::Left | NodeState::Removed => false,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == NodeState::Up
    }

    /// Whether it stores chunks and runs programs; a witness does neither.
    pub fn is_worker(&self) -> bool {
        self.role == Role::Node
    }
}

#[derive(Clone, Debug)]
pub struct Nodes {
    pub(super) map: OrdMap<NodeId, Node>,
    pub(super) node_next: NodeId,
}

impl Default for Nodes {
    fn default() -> Self {
        Self { map: OrdMap::new(), node_next: NodeId(1) }
    }
}

impl Nodes {
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.map.get(&id)
    }

    /// All nodes that ever were, in the order in which they joined.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.map.values()
    }

    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.iter().filter(|node| node.is_member())
    }

    pub fn by_name(&self, name: &str) -> Option<&Node> {
        self.members().find(|node| node.name == name)
    }

    /// Whether a command that shows this epoch may act for the node.
    pub(super) fn check_epoch(&self, id: NodeId, epoch: Epoch) -> Result<(), Refused> {
        let node = self.member(id)?;
        if node.epoch == epoch { Ok(()) } else { Err(Refused::Fenced { current: node.epoch }) }
    }

    pub(super) fn check_newcomer(&self, name: &str) -> Result<(), Refused> {
        check_name(Field::NodeName, name, NODE_NAME_SIZE_MAX)?;
        if self.by_name(name).is_some() {
            return Err(Refused::NameTaken(name.into()));
        }
        if self.members().count() >= NODES_MAX {
            return Err(Refused::Limit(Field::Nodes, NODES_MAX as u64));
        }
        Ok(())
    }

    /// The caller has checked the newcomer.
    pub(super) fn add(
        &mut self,
        now: Time,
        name: &str,
        role: Role,
        state: NodeState,
        description: Description,
    ) -> (NodeId, Epoch) {
        let id = self.node_next;
        self.node_next = NodeId(id.0 + 1);
        let epoch = Epoch(1);
        let node = Node {
            id,
            name: name.into(),
            role,
            state,
            epoch,
            description,
            certificate: None,
            since: now,
            joined: now,
            why: String::new(),
            boot: Bytes::new(),
        };
        self.map.insert(id, node);
        (id, epoch)
    }

    pub(super) fn up(
        &mut self,
        now: Time,
        id: NodeId,
        epoch: Epoch,
        description: Option<&Description>,
        boot: &Bytes,
    ) -> Result<Up, Refused> {
        self.check_epoch(id, epoch)?;
        if boot.len() > NODE_WORD_SIZE_MAX {
            return Err(Refused::Limit(Field::Description, NODE_WORD_SIZE_MAX as u64));
        }
        let description = description.map(check_description).transpose()?;
        let node = self.member_mut(id)?;
        node.epoch = Epoch(node.epoch.0 + 1);
        node.state = NodeState::Up;
        node.since = now;
        node.why.clear();
        if let Some(description) = description {
            node.description = description;
        }
        let rebooted = !boot.is_empty() && node.boot != boot;
        if rebooted {
            node.boot = Bytes::copy_from_slice(boot);
        }
        Ok(Up { epoch: node.epoch, rebooted })
    }

    pub(super) fn down(
        &mut self,
        now: Time,
        id: NodeId,
        epoch: Epoch,
        why: &str,
    ) -> Result<Epoch, Refused> {
        self.check_epoch(id, epoch)?;
        if why.len() > WHY_SIZE_MAX {
            return Err(Refused::Limit(Field::Reason, WHY_SIZE_MAX as u64));
        }
        let node = self.member_mut(id)?;
        node.epoch = Epoch(node.epoch.0 + 1);
        node.state = NodeState::Down;
        node.since = now;
        node.why = why.into();
        Ok(node.epoch)
    }

    pub(super) fn go(&mut self, now: Time, id: NodeId, state: NodeState) -> Result<Epoch, Refused> {
        let node = self.member_mut(id)?;
        node.epoch = Epoch(node.epoch.0 + 1);
        node.state = state;
        node.since = now;
        Ok(node.epoch)
    }

    pub(super) fn certify(&mut self, command: &CertificateIssued) -> Result<(), Refused> {
        for field in [&command.serial, &command.fingerprint] {
            if field.is_empty() || field.len() > CERTIFICATE_FIELD_SIZE_MAX {
                let text = format!("it must have 1 to {CERTIFICATE_FIELD_SIZE_MAX} bytes");
                return Err(Refused::Invalid(Field::Certificate, text));
            }
        }
        let node = self.member_mut(NodeId(command.node))?;
        node.certificate = Some(Certificate {
            serial: Bytes::copy_from_slice(&command.serial),
            fingerprint: Bytes::copy_from_slice(&command.fingerprint),
            not_after: Time(command.not_after_ns),
        });
        Ok(())
    }

    fn member(&self, id: NodeId) -> Result<&Node, Refused> {
        let node = self.map.get(&id).ok_or(Refused::NodeUnknown(id.0))?;
        if node.is_member() { Ok(node) } else { Err(Refused::NodeGone) }
    }

    fn member_mut(&mut self, id: NodeId) -> Result<&mut Node, Refused> {
        let node = self.map.get_mut(&id).ok_or(Refused::NodeUnknown(id.0))?;
        if node.is_member() { Ok(node) } else { Err(Refused::NodeGone) }
    }
}

/// Names are also host names and file names: letters, digits and inner hyphens.
pub(super) fn check_name(field: Field, name: &str, size_max: usize) -> Result<(), Refused> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = !name.is_empty() && name.len() <= size_max;
    let edges = !name.starts_with('-') && !name.ends_with('-');
    if fits && edges && name.bytes().all(allowed) {
        return Ok(());
    }
    let text = format!("a name has 1 to {size_max} of a-z, 0-9 and inner hyphens");
    Err(Refused::Invalid(field, text))
}

pub(super) fn check_description(description: &Description) -> Result<Description, Refused> {
    if description.addresses.len() > NODE_ADDRESSES_MAX {
        return Err(Refused::Limit(Field::Description, NODE_ADDRESSES_MAX as u64));
    }
    let words = description.addresses.iter();
    let mut words = words.chain([&description.architecture, &description.version]);
    if words.any(|word| word.len() > NODE_WORD_SIZE_MAX) {
        return Err(Refused::Limit(Field::Description, NODE_WORD_SIZE_MAX as u64));
    }
    Ok(description.clone())
}
