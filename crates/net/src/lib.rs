//! unum-net
