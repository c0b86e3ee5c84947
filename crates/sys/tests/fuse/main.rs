//! The FUSE layer against the real kernel, and its decoder against anything.

mod decoder;
mod memfs;
mod real;
mod support;
mod takeover;
