//! How inodes, names and chunks are packed (see [`crate::packed`]): each says only how it differs from the one before
//! it, and what most of them have in common is a bit.

mod chunk;
mod directory;
mod inode;

pub use directory::Listing;
