//! Between unumd and unum-init on one node.
