//! Chunks between nodes.
