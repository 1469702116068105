//! The multi-call binary: argv[0] dispatch, command lines, output, `dev`.

fn main() {}
