//! The contract between the programs and their plugins.
