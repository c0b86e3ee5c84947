//! The memory of what was answered, which makes every command run at most once.
//!
//! Invariants: a request whose reply is remembered gets that reply; a request that is not newer
//! than the forgotten ones of its lane is refused, for it may have run. Leaves out: a lane that
//! was forgotten as a whole (more than `NODE_LANES_MAX` later ones of its node) starts anew.

use bytes::Bytes;
use imbl::OrdMap;
use unum_proto::ids::{Lane, NodeId, RequestId};

use super::limits::{LANE_REPLIES_MAX, NODE_LANES_MAX};

#[derive(Clone, Debug)]
pub(super) struct LaneReplies {
    pub node: NodeId,
    /// When it was used last, on the counter of uses.
    pub used: u64,
    /// Requests up to this one are forgotten.
    pub forgotten: Option<u64>,
    pub replies: OrdMap<u64, Bytes>,
}

#[derive(Clone, Debug, Default)]
pub struct Replies {
    pub(super) lanes: OrdMap<Lane, LaneReplies>,
    pub(super) use_last: u64,
}

pub(super) enum Recalled {
    Known(Bytes),
    Forgotten,
    New,
}

impl Replies {
    pub(super) fn recall(&self, id: RequestId) -> Recalled {
        let Some(lane) = self.lanes.get(&id.lane) else { return Recalled::New };
        if let Some(reply) = lane.replies.get(&id.seq) {
            return Recalled::Known(reply.clone());
        }
        match lane.forgotten {
            Some(forgotten) if id.seq <= forgotten => Recalled::Forgotten,
            _ => Recalled::New,
        }
    }

    pub(super) fn remember(&mut self, node: NodeId, id: RequestId, reply: Bytes) {
        self.use_last += 1;
        if !self.lanes.contains_key(&id.lane) {
            self.open_lane(node, id.lane);
        }
        let Some(lane) = self.lanes.get_mut(&id.lane) else { return };
        lane.used = self.use_last;
        lane.replies.insert(id.seq, reply);
        if lane.replies.len() > LANE_REPLIES_MAX
            && let Some((oldest, _)) = lane.replies.get_min()
        {
            let oldest = *oldest;
            lane.replies.remove(&oldest);
            lane.forgotten = Some(oldest);
        }
    }

    fn open_lane(&mut self, node: NodeId, lane: Lane) {
        let of_node = || self.lanes.iter().filter(|(_, lane)| lane.node == node);
        if of_node().count() >= NODE_LANES_MAX
            && let Some((oldest, _)) = of_node().min_by_key(|(_, lane)| lane.used)
        {
            let oldest = *oldest;
            self.lanes.remove(&oldest);
        }
        let fresh =
            LaneReplies { node, used: self.use_last, forgotten: None, replies: OrdMap::new() };
        self.lanes.insert(lane, fresh);
    }

    pub(super) fn drop_node(&mut self, node: NodeId) {
        self.lanes = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.node != node)
            .map(|(id, lane)| (*id, lane.clone()))
            .collect();
    }
}
