//! The SQL datastore on SPIRE's schema.
