//! Access control lists, as POSIX.1e (draft 17) and Linux have them: their format, what they make of a mode and
//! a mode of them. Obeying them is the kernel's business.
//!
//! An access list and the mode say the same of the owner, of everybody else, and of the group class, whose bits
//! of the mode are the list's mask. Invariants of what an inode keeps: the access list agrees with the mode and
//! says more than it (one that does not is the mode, and not kept); only directories have a default
//! list; symbolic links have none. Both are kept as the extended attributes by which programs name them.

use super::error::TreeError;
use crate::limits::ACL_ENTRIES_MAX;

/// The extended attribute that is the access list.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The one from which a directory's new entries get theirs.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER_SIZE: usize = 4;
const ENTRY_SIZE: usize = 8;
/// The id of an entry that is about nobody in particular, and of no user.
const NO_ID: u32 = u32::MAX;

/// Read, write, execute.
const ALL: u16 = 7;
/// The bits of a mode that lists have a say in.
const PERMISSIONS: u32 = 0o777;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Whom an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Owner,
    User(u32),
    OwningGroup,
    Group(u32),
    /// What named users, the owning group and named groups can have at most.
    Mask,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    who: Who,
    allowed: u16,
}

/// A list that makes sense: an owner, an owning group, others, and a mask if anybody is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// What programs pass as the attribute's value.
    pub fn parse(value: &[u8]) -> Result<Self, TreeError> {
        let (header, rest) = value.split_at_checked(HEADER_SIZE).ok_or(TreeError::Invalid)?;
        let (chunks, []) = rest.as_chunks::<ENTRY_SIZE>() else { return Err(TreeError::Invalid) };
        if header != VERSION.to_le_bytes() {
            return Err(TreeError::Invalid);
        }
        if chunks.len() > ACL_ENTRIES_MAX {
            return Err(TreeError::AttributeTooBig);
        }
        let entries = chunks.iter().map(Entry::parse).collect::<Result<Vec<_>, _>>()?;
        if is_in_order(&entries) { Ok(Self { entries }) } else { Err(TreeError::Invalid) }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        self.entries.iter().for_each(|entry| entry.encode(&mut value));
        value
    }

    /// The mode of a file that gets this access list.
    pub fn mode(&self, mode: u32) -> u32 {
        let shifted = |entry: &Entry| match entry.who {
            Who::Owner => u32::from(entry.allowed) << 6,
            Who::Other => u32::from(entry.allowed),
            who if who == self.group_class() => u32::from(entry.allowed) << 3,
            _ => 0,
        };
        let permissions = self.entries.iter().map(shifted).fold(0, |all, bits| all | bits);
        mode & !PERMISSIONS | permissions
    }

    /// Whether it says no more than a mode can.
    pub fn is_mode(&self) -> bool {
        let basic = |entry: &Entry| matches!(entry.who, Who::Owner | Who::OwningGroup | Who::Other);
        self.entries.iter().all(basic)
    }

    /// The access list after chmod.
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.set_classes(mode, |_, bits| bits);
        self
    }

    /// As a default list, what it makes of something new that is asked for with `mode`: the list with what
    /// that mode does not ask for taken away. Whether the umask would is not asked.
    pub fn inherited(mut self, mode: u32) -> Self {
        self.set_classes(mode, |allowed, bits| allowed & bits);
        self
    }

    /// The entry that the group bits of the mode are about.
    fn group_class(&self) -> Who {
        let has_mask = self.entries.iter().any(|entry| entry.who == Who::Mask);
        if has_mask { Who::Mask } else { Who::OwningGroup }
    }

    fn set_classes(&mut self, mode: u32, set: impl Fn(u16, u16) -> u16) {
        let group_class = self.group_class();
        for entry in &mut self.entries {
            let shift = match entry.who {
                Who::Owner => 6,
                Who::Other => 0,
                who if who == group_class => 3,
                _ => continue,
            };
            entry.allowed = set(entry.allowed, (mode >> shift) as u16 & ALL);
        }
    }
}

impl Entry {
    fn parse(raw: &[u8; ENTRY_SIZE]) -> Result<Self, TreeError> {
        let [tag_0, tag_1, allowed_0, allowed_1, id @ ..] = *raw;
        let (tag, id) = (u16::from_le_bytes([tag_0, tag_1]), u32::from_le_bytes(id));
        let allowed = u16::from_le_bytes([allowed_0, allowed_1]);
        let who = match tag {
            USER_OBJ => Who::Owner,
            USER if id != NO_ID => Who::User(id),
            GROUP_OBJ => Who::OwningGroup,
            GROUP if id != NO_ID => Who::Group(id),
            MASK => Who::Mask,
            OTHER => Who::Other,
            _ => return Err(TreeError::Invalid),
        };
        if allowed & !ALL == 0 { Ok(Self { who, allowed }) } else { Err(TreeError::Invalid) }
    }

    fn encode(&self, value: &mut Vec<u8>) {
        let (tag, id) = match self.who {
            Who::Owner => (USER_OBJ, NO_ID),
            Who::User(id) => (USER, id),
            Who::OwningGroup => (GROUP_OBJ, NO_ID),
            Who::Group(id) => (GROUP, id),
            Who::Mask => (MASK, NO_ID),
            Who::Other => (OTHER, NO_ID),
        };
        value.extend(tag.to_le_bytes());
        value.extend(self.allowed.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
}

/// Owner, users, owning group, groups, mask, others; the mask only has to be there if anybody is named. As the
/// kernel, this does not mind somebody who is named twice.
fn is_in_order(entries: &[Entry]) -> bool {
    let rank = |entry: &Entry| match entry.who {
        Who::Owner => 0,
        Who::User(_) => 1,
        Who::OwningGroup => 2,
        Who::Group(_) => 3,
        Who::Mask => 4,
        Who::Other => 5,
    };
    let mut counts = [0; 6];
    entries.iter().for_each(|entry| counts[rank(entry)] += 1);
    let [owner, users, owning_group, groups, mask, other] = counts;
    entries.is_sorted_by_key(rank)
        && [owner, owning_group, other] == [1; 3]
        && (mask == 1 || mask == 0 && users + groups == 0)
}
