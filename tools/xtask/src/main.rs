//! The project's own tasks. `cargo xtask help` lists them.
//!
//! Nothing here is part of the product. A task either does what its name says or exits with 1 and
//! one clear line; a check that could not run is counted as skipped, never as passed.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command line tool")]

mod clients;
mod descriptors;
mod ledger;
mod oracle;
mod process;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "cargo xtask <task>

  test [STEP..]      everything CI runs, or only the named steps
  tidy               layer arrows, licences and bans, the parity ledger, house style
  parity             what is done of SPIRE's surface, from the committed tables
  descriptors OUT    write the FileDescriptorSet of all protos
  clients            make the foreign clients of the conformance suites ready, and say where they are
  bless [CRATE]      rewrite golden files from what the product says now

By hand, before a release:
  oracle --spire DIR the suites with SPIRE's programs in DIR, and both products together
  soak [ROUNDS]      long runs: kills, attacks, histories, rotations (500 rounds; CONTRIBUTING.md)
  fuzz [SECONDS]     each fuzz target under AddressSanitizer
  features           build with no, each and all cargo features
";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode> {
    let (task, rest) = args.split_first().map_or(("help", args), |(task, rest)| (task.as_str(), rest));
    match task {
        "test" => return test::run(rest),
        "tidy" => tidy::run()?,
        "parity" => ledger::print()?,
        "descriptors" => {
            let [out] = rest else { bail!("usage: cargo xtask descriptors OUT") };
            descriptors::run(Path::new(out))?;
        }
        "oracle" => oracle::run(rest)?,
        "soak" => test::soak(rest.first().map(String::as_str))?,
        "clients" => clients::print(),
        "bless" => test::bless(rest.first().map(String::as_str))?,
        "fuzz" => test::fuzz(rest.first().map(String::as_str))?,
        "features" => test::features()?,
        "help" | "-h" | "--help" => print!("{HELP}"),
        other => bail!("there is no task {other:?}: cargo xtask help lists them"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}
