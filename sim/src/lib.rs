//! unum-sim
