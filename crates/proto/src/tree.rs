//! Commands and replies of the file tree, which is part of the registry.
