//! unum-tests
