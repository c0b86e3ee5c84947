//! unum-cli
