//! Frames and envelopes of the RPC layer.
