//! unum-core
