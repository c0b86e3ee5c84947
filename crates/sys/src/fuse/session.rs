//! A connection to the kernel: agreed afresh, or taken over from a daemon that died.
//!
//! Taking over: somebody (unum-init) keeps a descriptor of the device and the bytes of
//! [`Negotiated`]. When the old daemon is dead for certain, the new one adopts both. With
//! [`Takeover::Resend`] the kernel queues again whatever the dead daemon had read and not answered;
//! those requests come marked as resent, under their old numbers, together with the interrupts that
//! hit them. FORGETs that the dead daemon had read are not repeated.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use super::abi;
use super::buffer::{Buffer, Pool};
use super::decode::{self, Dialect};
use super::device::Device;
use super::encode::Fields;
use super::inflight::InFlight;
use super::notify::{Notifier, NotifyError};
use super::operation::{InitOffer, Operation};
use super::reply::{self, Delivery};
use super::types::Capabilities;

/// The kernel reads no request into less than this.
const READ_BUFFER_MIN_BYTES: usize = 8192;
/// Room before a WRITE's payload, and for requests with two long names and extensions.
const READ_BUFFER_HEAD_BYTES: usize = 16 << 10;
/// Unused read buffers kept per session.
const BUFFERS_IDLE_MAX: usize = 8;
const PAGE_BYTES: u32 = 4096;
/// `max_pages` is 16 bits wide; the kernel's own limit (fs.fuse.max_pages_limit) is lower.
pub const WRITE_MAX_BYTES: u32 = 16 << 20;
/// INIT offers of an unknown major version before we give up.
const INIT_ROUNDS_MAX: usize = 4;

/// What the daemon wants of a new connection.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Taken where the kernel offers them.
    pub capabilities: Capabilities,
    /// Without these there is no connection.
    pub required: Capabilities,
    /// Largest WRITE (and READ) in bytes, a multiple of 4096. The kernel cuts it to
    /// `fs.fuse.max_pages_limit` pages, normally 1 MiB.
    pub max_write: u32,
    pub max_readahead: u32,
    /// Requests in flight that no thread waits for (readahead, RELEASE).
    pub max_background: u16,
    pub congestion_threshold: u16,
    /// Granularity of timestamps in nanoseconds.
    pub time_granularity: u32,
    /// Depth of file systems below a passthrough file; 0 without passthrough, else 1.
    pub max_stack_depth: u32,
}

impl Default for Wishes {
    /// Whatever makes transport better and asks nothing of the file system except locks.
    fn default() -> Self {
        Wishes {
            capabilities: Capabilities::ASYNC_READ
                | Capabilities::ASYNC_DIO
                | Capabilities::BIG_WRITES
                | Capabilities::MAX_PAGES
                | Capabilities::PARALLEL_DIROPS
                | Capabilities::POSIX_LOCKS
                | Capabilities::FLOCK_LOCKS
                | Capabilities::CREATE_SUPP_GROUP
                | Capabilities::HAS_EXPIRE_ONLY
                | Capabilities::HAS_RESEND
                | Capabilities::SETXATTR_EXT,
            required: Capabilities::NONE,
            max_write: 1 << 20,
            max_readahead: 1 << 20,
            max_background: 64,
            congestion_threshold: 48,
            time_granularity: 1,
            max_stack_depth: 0,
        }
    }
}

/// What kernel and daemon agreed on: valid for the life of the mount, needed by whoever adopts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    pub minor: u32,
    pub capabilities: Capabilities,
    pub max_write: u32,
    pub max_readahead: u32,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub time_granularity: u32,
    pub max_stack_depth: u32,
}

const NEGOTIATED_MAGIC: &[u8; 8] = b"unumfus1";

impl Negotiated {
    /// Fixed layout, little-endian, for keeping with the descriptor.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = NEGOTIATED_MAGIC.to_vec();
        bytes.extend(self.minor.to_le_bytes());
        bytes.extend(self.capabilities.0.to_le_bytes());
        bytes.extend(self.max_write.to_le_bytes());
        bytes.extend(self.max_readahead.to_le_bytes());
        bytes.extend(self.max_background.to_le_bytes());
        bytes.extend(self.congestion_threshold.to_le_bytes());
        bytes.extend(self.time_granularity.to_le_bytes());
        bytes.extend(self.max_stack_depth.to_le_bytes());
        bytes
    }

    /// `None` if the bytes were not made by `to_bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Option<Negotiated> {
        let mut rest = bytes.strip_prefix(NEGOTIATED_MAGIC)?;
        let agreed = Negotiated {
            minor: u32::from_le_bytes(take(&mut rest)?),
            capabilities: Capabilities(u64::from_le_bytes(take(&mut rest)?)),
            max_write: u32::from_le_bytes(take(&mut rest)?),
            max_readahead: u32::from_le_bytes(take(&mut rest)?),
            max_background: u16::from_le_bytes(take(&mut rest)?),
            congestion_threshold: u16::from_le_bytes(take(&mut rest)?),
            time_granularity: u32::from_le_bytes(take(&mut rest)?),
            max_stack_depth: u32::from_le_bytes(take(&mut rest)?),
        };
        (rest.is_empty() && agreed.max_write <= WRITE_MAX_BYTES).then_some(agreed)
    }

    /// Whether the kernel knows [`Notifier::expire_all_entries`].
    pub fn expires_all_entries(&self) -> bool {
        self.minor >= abi::INC_EPOCH_MINOR
    }

    fn agree(wishes: &Wishes, offer: &InitOffer) -> Result<Negotiated, StartError> {
        let offered = offer.capabilities;
        if offer.minor < abi::MINOR_MIN {
            return Err(StartError::KernelTooOld { minor: offer.minor });
        }
        if !offered.contains(wishes.required) {
            return Err(StartError::Lacking(wishes.required.without(offered)));
        }
        let wanted = wishes.capabilities | wishes.required;
        Ok(Negotiated {
            minor: offer.minor.min(abi::MINOR),
            capabilities: (wanted & offered).with(Capabilities::INIT_EXT),
            max_write: wishes.max_write.clamp(PAGE_BYTES, WRITE_MAX_BYTES),
            max_readahead: wishes.max_readahead.min(offer.max_readahead),
            max_background: wishes.max_background,
            congestion_threshold: wishes.congestion_threshold,
            time_granularity: wishes.time_granularity,
            max_stack_depth: wishes.max_stack_depth,
        })
    }

    /// `fuse_init_out`.
    fn answer(&self) -> Fields {
        let mut body = Fields::with_capacity(64);
        let bits = self.capabilities.0;
        body.u32(abi::MAJOR).u32(abi::MINOR).u32(self.max_readahead).u32(bits as u32);
        body.u16(self.max_background).u16(self.congestion_threshold);
        body.u32(self.max_write).u32(self.time_granularity);
        body.u16(self.max_write.div_ceil(PAGE_BYTES) as u16).u16(0);
        body.u32((bits >> 32) as u32).u32(self.max_stack_depth).zeros(24);
        body
    }

    fn read_buffer_size(&self) -> usize {
        (self.max_write as usize + READ_BUFFER_HEAD_BYTES).max(READ_BUFFER_MIN_BYTES)
    }

    pub(super) fn dialect(&self) -> Dialect {
        Dialect { setxattr_ext: self.capabilities.contains(Capabilities::SETXATTR_EXT) }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

/// Why no session came about.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(
        "this kernel speaks FUSE 7.{minor}; 7.{} (Linux 5.17) or newer is needed",
        abi::MINOR_MIN
    )]
    KernelTooOld { minor: u32 },
    #[error("this kernel's FUSE lacks {0:?}, which the file system cannot do without")]
    Lacking(Capabilities),
    #[error("the mount went away before its session started")]
    Unmounted,
    #[error("the kernel opened the FUSE connection with something other than INIT")]
    NoOffer,
    #[error("cannot have the unanswered requests of the former daemon sent again: {0}")]
    Resend(#[from] NotifyError),
    #[error("cannot read from the FUSE device: {0}")]
    Read(io::Error),
}

/// What an adopting daemon does about requests that the former one read and did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// They come again, marked as resent. The former daemon must be dead: a request that two answer
    /// is answered wrong.
    Resend,
    /// They wait on; somebody else still answers them.
    Share,
}

/// An agreed connection. Cheap to clone; all clones are the same connection.
#[derive(Clone)]
pub struct Session {
    pub(super) device: Device,
    pub(super) negotiated: Negotiated,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) pool: Arc<Pool>,
}

impl Session {
    /// Agrees on a connection over a device that was just mounted.
    pub fn start(device: Device, wishes: &Wishes) -> Result<Session, StartError> {
        let pool = Pool::new(READ_BUFFER_MIN_BYTES, 1);
        let mut buffer = Buffer::from_pool(&pool);
        for _ in 0..INIT_ROUNDS_MAX {
            let (raw_unique, offer) = read_offer(&device, &mut buffer)?;
            if offer.major < abi::MAJOR {
                return Err(StartError::KernelTooOld { minor: 0 });
            }
            if offer.major > abi::MAJOR {
                // The kernel makes another offer in the version named here.
                let mut ours = Fields::with_capacity(64);
                ours.u32(abi::MAJOR).u32(abi::MINOR).zeros(56);
                answer(&device, raw_unique, &ours)?;
                continue;
            }
            let negotiated = Negotiated::agree(wishes, &offer)?;
            answer(&device, raw_unique, &negotiated.answer())?;
            return Ok(Session::over(device, negotiated));
        }
        Err(StartError::NoOffer)
    }

    /// Goes on with a connection that was agreed before.
    pub fn adopt(
        device: Device,
        negotiated: Negotiated,
        takeover: Takeover,
    ) -> Result<Session, StartError> {
        let session = Session::over(device, negotiated);
        if takeover == Takeover::Resend {
            session.notifier().resend()?;
        }
        Ok(session)
    }

    fn over(device: Device, negotiated: Negotiated) -> Session {
        let pool = Pool::new(negotiated.read_buffer_size(), BUFFERS_IDLE_MAX);
        Session { device, negotiated, in_flight: Arc::default(), pool }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    pub fn notifier(&self) -> Notifier {
        self.device.notifier()
    }

    /// How many requests were read and are not answered yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

fn read_offer(device: &Device, buffer: &mut Buffer) -> Result<(u64, InitOffer), StartError> {
    let len = read_uninterrupted(device, buffer)?;
    let message: Bytes = buffer.message(len);
    let decoded = decode::decode(&message, Dialect { setxattr_ext: true })
        .map_err(|_| StartError::NoOffer)?;
    match decoded.operation {
        Operation::Init(offer) => Ok((decoded.raw_unique, offer)),
        _ => Err(StartError::NoOffer),
    }
}

fn read_uninterrupted(device: &Device, buffer: &mut Buffer) -> Result<usize, StartError> {
    loop {
        match device.read(buffer.space()) {
            Ok(len) => return Ok(len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                return Err(StartError::Unmounted);
            }
            Err(error) => return Err(StartError::Read(error)),
        }
    }
}

fn answer(device: &Device, raw_unique: u64, body: &Fields) -> Result<(), StartError> {
    match reply::write_message(device, 0, raw_unique, &[IoSlice::new(body.as_slice())]) {
        Delivery::Accepted => Ok(()),
        Delivery::Abandoned | Delivery::Disconnected => Err(StartError::Unmounted),
        Delivery::Refused(errno) => Err(StartError::Read(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(minor: u32, capabilities: Capabilities) -> InitOffer {
        InitOffer { major: abi::MAJOR, minor, max_readahead: 128 << 10, capabilities }
    }

    #[test]
    fn only_what_both_want_is_agreed() {
        let wishes = Wishes { required: Capabilities::POSIX_LOCKS, ..Wishes::default() };
        let agreed = Negotiated::agree(
            &wishes,
            &offer(99, Capabilities::POSIX_LOCKS | Capabilities::WRITEBACK_CACHE),
        )
        .unwrap();
        assert_eq!(agreed.capabilities, Capabilities::POSIX_LOCKS | Capabilities::INIT_EXT);
        assert_eq!((agreed.minor, agreed.max_readahead), (abi::MINOR, 128 << 10));
        assert_eq!(agreed.answer().len(), 64);

        let lacking = Negotiated::agree(&wishes, &offer(99, Capabilities::ASYNC_READ));
        assert!(matches!(lacking, Err(StartError::Lacking(Capabilities::POSIX_LOCKS))));
        let old = Negotiated::agree(&wishes, &offer(31, Capabilities::POSIX_LOCKS));
        assert!(matches!(old, Err(StartError::KernelTooOld { minor: 31 })));
    }

    #[test]
    fn a_kept_agreement_comes_back_whole_or_not_at_all() {
        let agreed =
            Negotiated::agree(&Wishes::default(), &offer(45, Capabilities(u64::MAX))).unwrap();
        let bytes = agreed.to_bytes();
        assert_eq!(Negotiated::from_bytes(&bytes), Some(agreed));
        for len in 0..bytes.len() {
            assert_eq!(Negotiated::from_bytes(&bytes[..len]), None);
        }
        assert_eq!(Negotiated::from_bytes(&[&bytes[..], &[0]].concat()), None);
    }
}
