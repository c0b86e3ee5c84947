//! Commands and replies of the replicated registry, its log entries and snapshots.
