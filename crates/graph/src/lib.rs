//! The in-memory entry graph: authorisation views, deltas, pre-encoded replies.
