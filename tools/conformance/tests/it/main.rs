//! The suites, one module each. They need the program: `cargo xtask test conformance` builds it first.

#[cfg(test)]
mod cli;
