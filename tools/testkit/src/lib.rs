//! Test fixtures with behaviour; a dev-dependency only.
