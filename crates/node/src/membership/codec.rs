//! Gossip's identities and how its packets are written. Bytes from a peer become an error, never a
//! panic.

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};
use prost::Message as _;
use unum_proto::cluster::{GossipHeader, GossipIdentity, GossipKind, GossipMember, GossipState};
use unum_proto::ids::NodeId;

/// One run of a node's daemon. A newer run replaces an older one at once; a run that was declared
/// dead by mistake renews itself as the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub node: NodeId,
    pub run: u64,
}

/// Runs of a daemon are this far apart, so that renewals of one never reach the next.
pub const RUN_STRIDE: u64 = 1 << 20;

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { node: self.node, run: self.run.saturating_add(1) })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.run > adversary.run
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a gossip packet cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("a gossip packet has no room left: {0}")]
    Full(#[from] prost::EncodeError),
    #[error("a gossip packet lacks its {0}")]
    Missing(&'static str),
}

pub struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        Ok(header_to_proto(header).encode_length_delimited(&mut buf)?)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, CodecError> {
        header_from_proto(&GossipHeader::decode_length_delimited(buf)?)
    }

    fn encode_member(
        &mut self,
        member: &Member<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        Ok(member_to_proto(member).encode_length_delimited(&mut buf)?)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>, CodecError> {
        member_from_proto(&GossipMember::decode_length_delimited(buf)?)
    }
}

fn identity_to_proto(identity: Identity) -> Option<GossipIdentity> {
    Some(GossipIdentity { node: identity.node.0, run: identity.run })
}

fn identity_from_proto(
    identity: &Option<GossipIdentity>,
    what: &'static str,
) -> Result<Identity, CodecError> {
    let identity = identity.as_ref().ok_or(CodecError::Missing(what))?;
    Ok(Identity { node: NodeId(identity.node), run: identity.run })
}

fn header_to_proto(header: &Header<Identity>) -> GossipHeader {
    let (kind, probe, third) = message_parts(&header.message);
    GossipHeader {
        source: identity_to_proto(header.src),
        incarnation: header.src_incarnation.into(),
        destination: identity_to_proto(header.dst),
        kind: kind.into(),
        probe: probe.into(),
        third: third.and_then(identity_to_proto),
    }
}

fn message_parts(message: &Message<Identity>) -> (GossipKind, u8, Option<Identity>) {
    match *message {
        Message::Ping(probe) => (GossipKind::Ping, probe, None),
        Message::Ack(probe) => (GossipKind::Ack, probe, None),
        Message::PingReq { target, probe_number } => {
            (GossipKind::PingRequest, probe_number, Some(target))
        }
        Message::IndirectPing { origin, probe_number } => {
            (GossipKind::IndirectPing, probe_number, Some(origin))
        }
        Message::IndirectAck { target, probe_number } => {
            (GossipKind::IndirectAck, probe_number, Some(target))
        }
        Message::ForwardedAck { origin, probe_number } => {
            (GossipKind::ForwardedAck, probe_number, Some(origin))
        }
        Message::Announce => (GossipKind::Announce, 0, None),
        Message::Feed => (GossipKind::Feed, 0, None),
        Message::Gossip => (GossipKind::Gossip, 0, None),
        Message::Broadcast => (GossipKind::Broadcast, 0, None),
        Message::TurnUndead => (GossipKind::TurnUndead, 0, None),
    }
}

fn header_from_proto(header: &GossipHeader) -> Result<Header<Identity>, CodecError> {
    let probe = u8::try_from(header.probe).map_err(|_| CodecError::Missing("probe number"))?;
    let third = || identity_from_proto(&header.third, "third party");
    let kind = GossipKind::try_from(header.kind).unwrap_or(GossipKind::Unspecified);
    Ok(Header {
        src: identity_from_proto(&header.source, "source")?,
        src_incarnation: incarnation(header.incarnation)?,
        dst: identity_from_proto(&header.destination, "destination")?,
        message: match kind {
            GossipKind::Ping => Message::Ping(probe),
            GossipKind::Ack => Message::Ack(probe),
            GossipKind::PingRequest => Message::PingReq { target: third()?, probe_number: probe },
            GossipKind::IndirectPing => {
                Message::IndirectPing { origin: third()?, probe_number: probe }
            }
            GossipKind::IndirectAck => {
                Message::IndirectAck { target: third()?, probe_number: probe }
            }
            GossipKind::ForwardedAck => {
                Message::ForwardedAck { origin: third()?, probe_number: probe }
            }
            GossipKind::Announce => Message::Announce,
            GossipKind::Feed => Message::Feed,
            GossipKind::Gossip => Message::Gossip,
            GossipKind::Broadcast => Message::Broadcast,
            GossipKind::TurnUndead => Message::TurnUndead,
            GossipKind::Unspecified => return Err(CodecError::Missing("kind")),
        },
    })
}

fn member_to_proto(member: &Member<Identity>) -> GossipMember {
    let state = match member.state() {
        State::Alive => GossipState::Alive,
        State::Suspect => GossipState::Suspect,
        State::Down => GossipState::Down,
    };
    GossipMember {
        identity: identity_to_proto(*member.id()),
        incarnation: member.incarnation().into(),
        state: state.into(),
    }
}

fn member_from_proto(member: &GossipMember) -> Result<Member<Identity>, CodecError> {
    let state = match GossipState::try_from(member.state).unwrap_or(GossipState::Unspecified) {
        GossipState::Alive => State::Alive,
        GossipState::Suspect => State::Suspect,
        GossipState::Down => State::Down,
        GossipState::Unspecified => return Err(CodecError::Missing("state")),
    };
    let identity = identity_from_proto(&member.identity, "identity")?;
    Ok(Member::new(identity, incarnation(member.incarnation)?, state))
}

fn incarnation(number: u32) -> Result<u16, CodecError> {
    u16::try_from(number).map_err(|_| CodecError::Missing("incarnation"))
}
