//! Joining, membership, certificates and gossip between daemons.
