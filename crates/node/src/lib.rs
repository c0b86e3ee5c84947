//! unum-node
