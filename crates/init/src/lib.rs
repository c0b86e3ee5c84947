//! unum-init
