//! The decoder on well-formed, cut and random bytes.

use bytes::Bytes;
use proptest::prelude::*;
use unum_sys::fuse::{
    DecodeError, Decoded, Dialect, Fh, Ino, LockFamily, LockKind, LockOwner, Operation, SetTime,
    Timestamp, Unique, decode,
};

const EXTENDED: Dialect = Dialect { setxattr_ext: true };
const OPCODE_MAX: u32 = 60;
const RESEND: u64 = 1 << 63;

/// A request with this body and extension, and a right length.
fn message(opcode: u32, unique: u64, body: &[u8], extension: &[u8]) -> Vec<u8> {
    let len = 40 + body.len() + extension.len();
    let mut bytes = Vec::with_capacity(len);
    bytes.extend((len as u32).to_ne_bytes());
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(5u64.to_ne_bytes());
    for id in [1000u32, 1001, 77] {
        bytes.extend(id.to_ne_bytes());
    }
    bytes.extend(((extension.len() / 8) as u16).to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(body);
    bytes.extend(extension);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn decoded(opcode: u32, body: &[u8]) -> Operation {
    decode(&message(opcode, 8, body, &[]).into(), EXTENDED).unwrap().operation
}

#[test]
fn the_header_and_its_groups() {
    let mut body = words(&[0o755, 0o22]);
    body.extend(b"dir\0\0\0\0\0");
    let extension = words(&[16, 32, 1, 1002]);
    let bytes = Bytes::from(message(9, RESEND | 8, &body, &extension));
    let Decoded { raw_unique, header, operation } = decode(&bytes, EXTENDED).unwrap();
    assert_eq!((raw_unique, header.unique, header.resent), (RESEND | 8, Unique(8), true));
    assert_eq!((header.ino, header.uid, header.gid, header.pid), (Ino(5), 1000, 1001, 77));
    assert_eq!(header.groups, [1002]);
    assert_eq!(operation, Operation::Mkdir { name: b"dir".into(), mode: 0o755, umask: 0o22 });
}

#[test]
fn a_payload_is_a_part_of_the_message() {
    let mut body = longs(&[3, 4096]);
    body.extend(words(&[5, 2]));
    body.extend(longs(&[99]));
    body.extend(words(&[0o2, 0]));
    body.extend(b"hello");
    let bytes = Bytes::from(message(16, 8, &body, &[]));
    let Operation::Write(write) = decode(&bytes, EXTENDED).unwrap().operation else { panic!() };
    assert_eq!((write.fh, write.offset, &write.content[..]), (Fh(3), 4096, &b"hello"[..]));
    assert_eq!((write.lock_owner, write.cached), (Some(LockOwner(99)), false));
    assert_eq!(write.content.as_ptr(), bytes[80..].as_ptr());
}

#[test]
fn locks_of_both_families() {
    let lock = |flags, kind| {
        let mut body = longs(&[3, 4, 10, 20]);
        body.extend(words(&[kind, 6, flags, 0]));
        decode(&message(33, 8, &body, &[]).into(), EXTENDED).map(|decoded| decoded.operation)
    };
    let Ok(Operation::Setlk { lock: flock, wait: true }) = lock(1, 1) else { panic!() };
    assert_eq!((flock.family, flock.range.kind), (LockFamily::Flock, LockKind::Write));
    let Ok(Operation::Setlk { lock: fcntl, .. }) = lock(0, 2) else { panic!() };
    assert_eq!((fcntl.family, fcntl.range.kind), (LockFamily::Fcntl, LockKind::Unlock));
    assert_eq!((fcntl.range.start, fcntl.range.end, fcntl.range.pid), (10, 20, 6));
    assert_eq!(lock(0, 9), Err(DecodeError::Malformed { raw_unique: 8, opcode: 33 }));
}

#[test]
fn only_the_named_attributes_are_set() {
    // MODE, MTIME and ATIME with ATIME_NOW.
    let mut body = words(&[1 | 1 << 4 | 1 << 5 | 1 << 7, 0]);
    body.extend(longs(&[0, 111, 0, 1, 2, 3]));
    body.extend(words(&[4, 5, 6, 0o600, 0, 7, 8, 0]));
    let Operation::Setattr(set) = decoded(4, &body) else { panic!() };
    assert_eq!((set.mode, set.size, set.uid, set.fh), (Some(0o600), None, None, None));
    assert_eq!(set.atime, Some(SetTime::Now));
    assert_eq!(set.mtime, Some(SetTime::At(Timestamp { secs: 2, nanos: 5 })));
}

#[test]
fn setxattr_in_both_dialects() {
    let tail = b"user.a\0value";
    let long = [words(&[5, 1, 1, 0]), tail.to_vec()].concat();
    let short = [words(&[5, 1]), tail.to_vec()].concat();
    for (body, setxattr_ext) in [(long, true), (short, false)] {
        let bytes = Bytes::from(message(21, 8, &body, &[]));
        let operation = decode(&bytes, Dialect { setxattr_ext }).unwrap().operation;
        let Operation::Setxattr { name, value, flags, acl_kill_sgid } = operation else { panic!() };
        assert_eq!((&name[..], &value[..], flags), (&b"user.a"[..], &b"value"[..], 1));
        assert_eq!(acl_kill_sgid, setxattr_ext);
    }
}

#[test]
fn what_is_unknown_can_still_be_answered() {
    assert_eq!(decoded(4711, &[]), Operation::Unknown { opcode: 4711 });
    assert_eq!(decode(&Bytes::new(), EXTENDED), Err(DecodeError::NoHeader { len: 0 }));
    let mut long = message(1, 8, b"name\0", &[]);
    long.push(0);
    let wrong_length = decode(&long.into(), EXTENDED);
    assert_eq!(wrong_length, Err(DecodeError::Malformed { raw_unique: 8, opcode: 1 }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes.into(), EXTENDED);
    }

    #[test]
    fn garbage_behind_a_right_header_never_panics(
        opcode in 0..OPCODE_MAX,
        unique: u64,
        setxattr_ext: bool,
        body in prop::collection::vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..200),
        extension in prop::collection::vec(prop_oneof![Just(0u8), Just(16u8), any::<u8>()], 0..40),
    ) {
        let extension = &extension[..extension.len() / 8 * 8];
        let bytes = Bytes::from(message(opcode, unique, &body, extension));
        match decode(&bytes, Dialect { setxattr_ext }) {
            Ok(decoded) => prop_assert_eq!(decoded.raw_unique, unique),
            Err(error) => {
                let refusable = DecodeError::Malformed { raw_unique: unique, opcode };
                prop_assert_eq!(error, refusable);
            }
        }
    }

    /// However a request is cut, it never panics, and from a whole header on it can be answered.
    #[test]
    fn every_cut_of_a_request_is_safe(opcode in 0..OPCODE_MAX, fill in 1u8..3, len in 0usize..160) {
        let mut body = vec![fill; len];
        body.extend(b"\0b\0");
        let whole = message(opcode, 8, &body, &[]);
        for end in 0..whole.len() {
            let mut cut = whole[..end].to_vec();
            if let Some(len) = cut.get_mut(..4) {
                len.copy_from_slice(&(end as u32).to_ne_bytes());
            }
            let result = decode(&cut.into(), EXTENDED);
            prop_assert_eq!(matches!(result, Err(DecodeError::NoHeader { .. })), end < 40);
        }
    }
}
