//! The changes that a node made under its write lease and has not sent to the registry yet.

#[allow(dead_code)]
mod journal;
