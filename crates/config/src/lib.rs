//! HCL1 and JSON configuration with source positions; the typed configuration of every program.
