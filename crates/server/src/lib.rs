//! The server program: APIs, authorisation, keepers, CA driver, pruning.
