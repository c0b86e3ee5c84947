//! Frames: how they lie in a byte stream (`docs/spec/wire.md`).
//!
//! `decode` is pure and total: any bytes give frames, a wish for more bytes, or an error after
//! which the connection must be closed. It allocates nothing for bytes that have not arrived.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use unum_proto::rpc::{
    CallHeader, CastHeader, CreditHeader, GoAwayHeader, Hello, PingHeader, ReplyHeader,
    RequestHeader, User,
};

use crate::{
    call::TRACE_SIZE,
    limits::{
        CALLER_GROUPS_MAX, FRAME_HEADER_SIZE_MAX, FRAME_PREFIX_SIZE, FRAME_SIZE_MAX,
        METHOD_NAME_SIZE_MAX, STATUS_MESSAGE_SIZE_MAX,
    },
};

/// The kinds' numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Request = 2,
    Reply = 3,
    Data = 4,
    Credit = 5,
    End = 6,
    Cancel = 7,
    Cast = 8,
    Ping = 9,
    Pong = 10,
    GoAway = 11,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Frame {
    Hello(Hello),
    Request(RequestHeader, Bytes),
    Reply(ReplyHeader, Bytes),
    Data(u64, Bytes),
    Credit(CreditHeader),
    End(u64),
    Cancel(u64),
    Cast(CastHeader, Bytes),
    Ping(u64),
    Pong(u64),
    GoAway(String),
}

/// Why a peer's bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes exceeds {FRAME_SIZE_MAX}")]
    TooLarge(usize),
    #[error("a header of {header} bytes in a frame of {frame}")]
    HeaderSize { header: usize, frame: usize },
    #[error("unknown kind of frame {0}")]
    UnknownKind(u8),
    #[error("unreadable header of a {kind:?} frame: {why}")]
    Header { kind: Kind, why: String },
    #[error("a {0:?} frame with a field out of its limits")]
    Field(Kind),
    #[error("a {0:?} frame with a body")]
    Body(Kind),
    #[error("a {0} frame is out of place here")]
    OutOfPlace(&'static str),
    #[error("more stream data than was granted")]
    NoCredit,
    #[error("call number {0} is in use")]
    CallInUse(u64),
}

/// Takes the next frame from the front of `buffer`. None: more bytes are needed.
pub(crate) fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some((prefix, _)) = buffer.split_first_chunk::<FRAME_PREFIX_SIZE>() else {
        return Ok(None);
    };
    let [s0, s1, s2, s3, kind, h0, h1, h2] = *prefix;
    let size = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
    let header = u32::from_le_bytes([h0, h1, h2, 0]) as usize;
    if size > FRAME_SIZE_MAX {
        return Err(FrameError::TooLarge(size));
    }
    if header > size || header > FRAME_HEADER_SIZE_MAX {
        return Err(FrameError::HeaderSize { header, frame: size });
    }
    let kind = Kind::from_wire(kind)?;
    if buffer.len() < FRAME_PREFIX_SIZE + size {
        return Ok(None);
    }
    buffer.advance(FRAME_PREFIX_SIZE);
    let mut body = buffer.split_to(size).freeze();
    let header = body.split_to(header);
    assemble(kind, &header, body).map(Some)
}

/// How many bytes the frame at the front of `buffer` still lacks. None: its size has not arrived.
pub(crate) fn missing(buffer: &[u8]) -> Option<usize> {
    let size = u32::from_le_bytes(*buffer.first_chunk()?) as usize;
    Some((FRAME_PREFIX_SIZE + size.min(FRAME_SIZE_MAX)).saturating_sub(buffer.len()))
}

impl Kind {
    fn from_wire(kind: u8) -> Result<Self, FrameError> {
        use Kind::*;
        const ALL: [Kind; 11] =
            [Hello, Request, Reply, Data, Credit, End, Cancel, Cast, Ping, Pong, GoAway];
        let index = usize::from(kind).wrapping_sub(1);
        ALL.get(index).copied().ok_or(FrameError::UnknownKind(kind))
    }

    fn read<H: Message + Default>(self, header: &[u8]) -> Result<H, FrameError> {
        H::decode(header).map_err(|e| FrameError::Header { kind: self, why: e.to_string() })
    }

    fn has_body(self) -> bool {
        matches!(self, Kind::Request | Kind::Reply | Kind::Data | Kind::Cast)
    }
}

fn assemble(kind: Kind, header: &[u8], body: Bytes) -> Result<Frame, FrameError> {
    if !body.is_empty() && !kind.has_body() {
        return Err(FrameError::Body(kind));
    }
    Ok(match kind {
        Kind::Hello => Frame::Hello(kind.read(header)?),
        Kind::Request => {
            let header: RequestHeader = kind.read(header)?;
            within(kind, &header.method, &header.trace, header.user.as_ref())?;
            Frame::Request(header, body)
        }
        Kind::Reply => {
            let header: ReplyHeader = kind.read(header)?;
            if header.message.len() > STATUS_MESSAGE_SIZE_MAX {
                return Err(FrameError::Field(kind));
            }
            Frame::Reply(header, body)
        }
        Kind::Data => Frame::Data(kind.read::<CallHeader>(header)?.call, body),
        Kind::Credit => Frame::Credit(kind.read(header)?),
        Kind::End => Frame::End(kind.read::<CallHeader>(header)?.call),
        Kind::Cancel => Frame::Cancel(kind.read::<CallHeader>(header)?.call),
        Kind::Cast => {
            let header: CastHeader = kind.read(header)?;
            within(kind, &header.method, &header.trace, header.user.as_ref())?;
            Frame::Cast(header, body)
        }
        Kind::Ping => Frame::Ping(kind.read::<PingHeader>(header)?.nonce),
        Kind::Pong => Frame::Pong(kind.read::<PingHeader>(header)?.nonce),
        Kind::GoAway => {
            let header: GoAwayHeader = kind.read(header)?;
            if header.reason.len() > STATUS_MESSAGE_SIZE_MAX {
                return Err(FrameError::Field(kind));
            }
            Frame::GoAway(header.reason)
        }
    })
}

fn within(kind: Kind, method: &str, trace: &[u8], user: Option<&User>) -> Result<(), FrameError> {
    let right = !method.is_empty()
        && method.len() <= METHOD_NAME_SIZE_MAX
        && (trace.is_empty() || trace.len() == TRACE_SIZE)
        && user.is_none_or(|user| user.groups.len() <= CALLER_GROUPS_MAX);
    if right { Ok(()) } else { Err(FrameError::Field(kind)) }
}

/// Appends prefix and header of a frame whose body, of `body_size` bytes, the caller appends next.
pub(crate) fn encode_head(out: &mut BytesMut, kind: Kind, header: &impl Message, body_size: usize) {
    let header_size = header.encoded_len();
    debug_assert!(header_size <= FRAME_HEADER_SIZE_MAX);
    debug_assert!(header_size + body_size <= FRAME_SIZE_MAX);
    out.reserve(FRAME_PREFIX_SIZE + header_size);
    out.put_u32_le((header_size + body_size) as u32);
    out.put_u32_le(kind as u32 | (header_size as u32) << 8);
    header.encode_raw(out);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn frame(kind: u8, header: &[u8], body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u32_le((header.len() + body.len()) as u32);
        out.put_u8(kind);
        out.put_slice(&(header.len() as u32).to_le_bytes()[..3]);
        out.put_slice(header);
        out.put_slice(body);
        out
    }

    fn samples() -> Vec<BytesMut> {
        let user = User { uid: 1000, gid: 1000, groups: vec![4, 24, 27] };
        let request = RequestHeader {
            call: 7,
            method: "registry.propose".into(),
            lane: 0x1234_5678_9abc_def0,
            seq: 99,
            settled: 90,
            timeout_us: 5_000_000,
            trace: vec![1; TRACE_SIZE],
            user: Some(user.clone()),
            streams: true,
        };
        let reply = ReplyHeader {
            call: 7,
            code: 32,
            message: "moved".into(),
            moved: Some(Default::default()),
        };
        let cast = CastHeader { method: "gossip.swim".into(), trace: vec![], user: Some(user) };
        let call = CallHeader { call: 7 };
        let mut list = vec![BytesMut::new(); 8];
        encode_head(&mut list[0], Kind::Hello, &Hello { version: 1, class: 2, run: 3 }, 0);
        encode_head(&mut list[1], Kind::Request, &request, 5);
        list[1].put_slice(b"hello");
        encode_head(&mut list[2], Kind::Reply, &reply, 0);
        encode_head(&mut list[3], Kind::Data, &call, 3);
        list[3].put_slice(b"abc");
        encode_head(&mut list[4], Kind::Credit, &CreditHeader { call: 7, credit: 4096 }, 0);
        encode_head(&mut list[5], Kind::Cast, &cast, 1);
        list[5].put_slice(b"x");
        encode_head(&mut list[6], Kind::Ping, &PingHeader { nonce: 1 }, 0);
        encode_head(&mut list[7], Kind::GoAway, &GoAwayHeader { reason: "restart".into() }, 0);
        list
    }

    #[test]
    fn frames_arrive_whole_whatever_the_cuts() {
        let all: Vec<u8> = samples().concat();
        let mut whole = BytesMut::from(all.as_slice());
        let mut expected = Vec::new();
        while let Some(frame) = decode(&mut whole).unwrap() {
            expected.push(frame);
        }
        assert_eq!(expected.len(), 8);
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in all {
            buffer.put_u8(byte);
            found.extend(decode(&mut buffer).unwrap());
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn hostile_frames_are_told_apart_before_their_body_arrives() {
        let refusal = |mut bytes: BytesMut| decode(&mut bytes).unwrap_err();
        let huge = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 2, 1, 0, 0][..]);
        assert_eq!(refusal(huge), FrameError::TooLarge(u32::MAX as usize));
        let header = BytesMut::from(&[4, 0, 0, 0, 2, 5, 0, 0][..]);
        assert_eq!(refusal(header), FrameError::HeaderSize { header: 5, frame: 4 });
        assert_eq!(refusal(frame(0, &[], &[])), FrameError::UnknownKind(0));
        assert_eq!(refusal(frame(12, &[], &[])), FrameError::UnknownKind(12));
        assert_eq!(refusal(frame(9, &[], &[1])), FrameError::Body(Kind::Ping));
        assert!(matches!(refusal(frame(2, &[0xff], &[])), FrameError::Header { .. }));
        let nameless = RequestHeader::default().encode_to_vec();
        assert_eq!(refusal(frame(2, &nameless, &[])), FrameError::Field(Kind::Request));
        let traced = CastHeader { method: "m".into(), trace: vec![0; 24], user: None };
        assert_eq!(refusal(frame(8, &traced.encode_to_vec(), &[])), FrameError::Field(Kind::Cast));
    }

    /// xorshift: fuzzing needs speed and a seed, not quality.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % sides as u64) as usize
        }
    }

    fn mutate(bytes: &mut BytesMut, dice: &mut Dice) {
        for _ in 0..=dice.roll(4) {
            if bytes.is_empty() {
                return;
            }
            let at = dice.roll(bytes.len());
            match dice.roll(5) {
                0 => bytes[at] = dice.roll(256) as u8,
                1 => bytes[at] ^= 1 << dice.roll(8),
                2 => bytes.truncate(at),
                3 => bytes[at] = 0xff,
                _ => {
                    let tail = bytes.split_off(at);
                    bytes.put_u8(dice.roll(256) as u8);
                    bytes.unsplit(tail);
                }
            }
        }
    }

    /// `UNUM_FUZZ_FRAMES=10000000 cargo test --release -p unum-net any_bytes` for the long run.
    #[test]
    fn any_bytes_give_frames_or_errors() {
        let wanted = std::env::var("UNUM_FUZZ_FRAMES").ok().and_then(|text| text.parse().ok());
        let count: u64 = wanted.unwrap_or(300_000);
        let samples = samples();
        let mut dice = Dice(0x5eed_cafe_f00d_0001);
        let (mut frames, mut errors) = (0u64, 0u64);
        let mut bytes = BytesMut::with_capacity(1024);
        let start = Instant::now();
        for _ in 0..count {
            bytes.clear();
            bytes.extend_from_slice(&samples[dice.roll(samples.len())]);
            mutate(&mut bytes, &mut dice);
            loop {
                let before = bytes.len();
                match decode(&mut bytes) {
                    Ok(Some(_)) => frames += 1,
                    Ok(None) => break,
                    Err(_) => {
                        errors += 1;
                        break;
                    }
                }
                assert!(bytes.len() < before, "decoding does not advance");
            }
        }
        println!("{count} inputs: {frames} frames, {errors} errors, {:?}", start.elapsed());
        assert!(frames > count / 20 && errors > count / 20, "{frames} frames, {errors} errors");
    }
}
