//! unum-sys
