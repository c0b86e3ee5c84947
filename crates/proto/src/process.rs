//! Running, watching and signalling programs on any node.
