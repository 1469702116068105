//! The project's own tasks: test, tidy, parity, descriptors, bless.

fn main() {}
