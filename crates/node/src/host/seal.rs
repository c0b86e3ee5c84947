//! Handles and warrants that nobody but this node can make.
//!
//! Each holds all that is needed to find the file again, and a MAC under a key that does not leave this
//! machine, bound to the node that it was given to. So nothing has to be remembered of what was given, and what
//! a client shows was found by walking from the root of what is exported, with the rights of some user.
//!
//! The key is kept in the run directory: a new daemon understands what the old one gave, and after a reboot
//! all is stale. It is mixed with the export policy: what another policy let out is stale as well.

use std::io;
use std::path::Path;

use bytes::Bytes;
use unum_proto::ids::NodeId;
use unum_sys::file_handles::FileHandle;

const MAC_SIZE: usize = 16;

/// Where a file is to be found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// By the kernel's handle, on a mount.
    Inode { mount: u64, handle: FileHandle },
    /// On a file system without handles: by path, if it is still this file.
    Path { path: Vec<u8>, file: File },
    /// A directory above what is exported. Shows nothing but the way.
    Above { path: Vec<u8> },
}

/// One file and no later one under its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct File {
    pub device: u64,
    pub inode: u64,
    /// When it was made, in nanoseconds; numbers are given again.
    pub born: u64,
}

/// A file opened: where it is, and with which access mode.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    pub place: Place,
    /// O_RDONLY, O_WRONLY or O_RDWR.
    pub access: u32,
}

#[derive(Clone, Copy)]
enum Purpose {
    Handle = 1,
    Warrant = 2,
}

pub struct Key([u8; blake3::KEY_LEN]);

impl Key {
    /// The key of this machine's present life, made if there is none.
    pub fn load(path: &Path, policy: &str) -> io::Result<Self> {
        let secret = match read_key(path)? {
            Some(secret) => secret,
            None => make_key(path)?,
        };
        Ok(Self::derive(&secret, policy))
    }

    fn derive(secret: &[u8; blake3::KEY_LEN], policy: &str) -> Self {
        Self(*blake3::keyed_hash(secret, policy.as_bytes()).as_bytes())
    }

    pub fn handle(&self, client: NodeId, place: &Place) -> Bytes {
        self.seal(Purpose::Handle, client, place.encode(Vec::new()))
    }

    /// None: it was not made here for this client.
    pub fn open_handle(&self, client: NodeId, sealed: &[u8]) -> Option<Place> {
        Place::decode(self.unseal(Purpose::Handle, client, sealed)?)
    }

    pub fn warrant(&self, client: NodeId, grant: &Grant) -> Bytes {
        let body = grant.place.encode(grant.access.to_le_bytes().to_vec());
        self.seal(Purpose::Warrant, client, body)
    }

    pub fn open_warrant(&self, client: NodeId, sealed: &[u8]) -> Option<Grant> {
        let body = self.unseal(Purpose::Warrant, client, sealed)?;
        let (access, place) = body.split_first_chunk()?;
        Some(Grant { access: u32::from_le_bytes(*access), place: Place::decode(place)? })
    }

    fn seal(&self, purpose: Purpose, client: NodeId, mut body: Vec<u8>) -> Bytes {
        let mac = self.mac(purpose, client, &body);
        body.extend(&mac.as_bytes()[..MAC_SIZE]);
        body.into()
    }

    fn unseal<'a>(&self, purpose: Purpose, client: NodeId, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (body, shown) = sealed.split_last_chunk::<MAC_SIZE>()?;
        let mac = self.mac(purpose, client, body);
        let differs = mac.as_bytes().iter().zip(shown).fold(0, |sum, (a, b)| sum | (a ^ b));
        (differs == 0).then_some(body)
    }

    fn mac(&self, purpose: Purpose, client: NodeId, body: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[purpose as u8]).update(&client.0.to_le_bytes()).update(body);
        hasher.finalize()
    }
}

const INODE: u8 = 1;
const PATH: u8 = 2;
const ABOVE: u8 = 3;

impl Place {
    fn encode(&self, mut to: Vec<u8>) -> Vec<u8> {
        match self {
            Place::Inode { mount, handle } => {
                to.push(INODE);
                to.extend(mount.to_le_bytes());
                to.extend(handle.kind.to_le_bytes());
                to.extend(handle.bytes());
            }
            Place::Path { path, file } => {
                to.push(PATH);
                to.extend(file.device.to_le_bytes());
                to.extend(file.inode.to_le_bytes());
                to.extend(file.born.to_le_bytes());
                to.extend(path);
            }
            Place::Above { path } => {
                to.push(ABOVE);
                to.extend(path);
            }
        }
        to
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            INODE => {
                let (mount, rest) = rest.split_first_chunk()?;
                let (kind, rest) = rest.split_first_chunk()?;
                let handle = FileHandle::new(i32::from_le_bytes(*kind), rest)?;
                Some(Place::Inode { mount: u64::from_le_bytes(*mount), handle })
            }
            PATH => {
                let (device, rest) = rest.split_first_chunk()?;
                let (inode, rest) = rest.split_first_chunk()?;
                let (born, path) = rest.split_first_chunk()?;
                let [device, inode, born] = [*device, *inode, *born].map(u64::from_le_bytes);
                Some(Place::Path { path: path.to_vec(), file: File { device, inode, born } })
            }
            ABOVE => Some(Place::Above { path: rest.to_vec() }),
            _ => None,
        }
    }
}

fn read_key(path: &Path) -> io::Result<Option<[u8; blake3::KEY_LEN]>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // One that a crash cut short was never used.
        Ok(bytes) => Ok(bytes.try_into().ok()),
        Err(error) => Err(error),
    }
}

fn make_key(path: &Path) -> io::Result<[u8; blake3::KEY_LEN]> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let secret: [u8; blake3::KEY_LEN] = rand::random();
    let fresh = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(&secret)?;
    std::fs::rename(&fresh, path)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(policy: &str) -> Key {
        Key::derive(&[7; 32], policy)
    }

    fn places() -> [Place; 3] {
        [
            Place::Inode { mount: 5, handle: FileHandle::new(1, b"12345678").unwrap() },
            Place::Path { path: b"/a/b".to_vec(), file: File { device: 3, inode: 4, born: 5 } },
            Place::Above { path: b"/a".to_vec() },
        ]
    }

    #[test]
    fn what_was_given_comes_back_from_whom_it_was_given_to_and_as_what_it_was() {
        let (key, mine, other) = (key("/"), NodeId(2), NodeId(3));
        for place in places() {
            let handle = key.handle(mine, &place);
            assert_eq!(key.open_handle(mine, &handle), Some(place.clone()));
            assert_eq!(key.open_handle(other, &handle), None);
            assert_eq!(key.open_warrant(mine, &handle), None);
            assert_eq!(super::tests::key("/home").open_handle(mine, &handle), None);
            let grant = Grant { place, access: 2 };
            let warrant = key.warrant(mine, &grant);
            assert_eq!(key.open_warrant(mine, &warrant), Some(grant));
            assert_eq!(key.open_handle(mine, &warrant), None);
        }
    }

    #[test]
    fn the_key_survives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let place = &places()[0];
        let handle = Key::load(&path, "/").unwrap().handle(NodeId(1), place);
        let again = Key::load(&path, "/").unwrap();
        assert_eq!(again.open_handle(NodeId(1), &handle).as_ref(), Some(place));
        std::fs::write(&path, "cut").unwrap();
        assert_eq!(Key::load(&path, "/").unwrap().open_handle(NodeId(1), &handle), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused(bytes: Vec<u8>, at: usize, bit in 0u8..8) {
            let key = key("/");
            prop_assert_eq!(key.open_handle(NodeId(1), &bytes), None);
            prop_assert_eq!(key.open_warrant(NodeId(1), &bytes), None);
            let _ = Place::decode(&bytes);
            for place in places() {
                let mut handle = key.handle(NodeId(1), &place).to_vec();
                let at = at % handle.len();
                handle[at] ^= 1 << bit;
                prop_assert_eq!(key.open_handle(NodeId(1), &handle), None);
            }
        }
    }
}
