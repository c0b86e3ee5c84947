//! unum-benches
