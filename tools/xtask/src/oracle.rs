//! `cargo xtask oracle --spire DIR`: the conformance suites beside SPIRE's own programs.
//!
//! Three passes: the suites against SPIRE itself, which proves the suites; SPIRE's long-running
//! programs driven by Finial's commands; clusters and data of both. What a pass prints is shown and
//! its counts are added up.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Name of a pass, whether Finial's commands take part, and the tests that belong to it.
const PASSES: [(&str, bool, &[&str]); 3] = [
    (
        "the suites against SPIRE itself",
        false,
        &["::api_", "::bench_", "::cli_", "::documents_", "::exchanges_", "::live_", "::takeover_"],
    ),
    ("Finial's commands on SPIRE", true, &["::cli_"]),
    ("Finial and SPIRE together", false, &["::oracle_"]),
];

/// Runs all passes with SPIRE's programs in the folder that `args` name; `FINIAL_BIN` may name a built
/// program, otherwise the release build is made first.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let [flag, spire] = args else { bail!("usage: cargo xtask oracle --spire DIR") };
    if flag != "--spire" {
        bail!("usage: cargo xtask oracle --spire DIR");
    }
    let spire = Path::new(spire).canonicalize().with_context(|| format!("there is no folder {spire}"))?;
    for program in ["spire-server", "spire-agent"] {
        let version = process::output(Command::new(spire.join(program)).arg("--version"));
        // The version goes to one stream or the other, depending on the program.
        version.with_context(|| format!("{program} in {} does not run", spire.display()))?;
    }
    let built = std::env::var_os("FINIAL_BIN").map(PathBuf::from);
    let profile: &[&str] = if built.is_some() { &[] } else { &["--release"] };
    let binary = match built {
        Some(binary) => binary,
        None => release()?,
    };

    let mut failed = Vec::new();
    for (name, finial_commands, filters) in PASSES {
        println!("== {name}");
        let args = ["test", "--locked", "--package", "finial-conformance", "--test", "it"];
        let mut command = process::command("cargo", args.iter().chain(profile).copied().chain(["--"]));
        command.args(filters).args(["--nocapture", "--test-threads", "2"]);
        command.env("SPIRE_BIN", &spire).env("FINIAL_BIN", &binary);
        if finial_commands {
            command.env("FINIAL_ROLE", "commands");
        }
        let counts = watch(&mut command)?;
        println!("== {name}: {} run, {} passed, {} open", counts.run, counts.passed, counts.open);
        if !counts.is_success {
            failed.push(name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn release() -> Result<PathBuf> {
    let args = ["build", "--release", "--locked", "--package", "finial"];
    process::check(&mut process::command("cargo", args))?;
    Ok(crate::root().join("target/release/finial"))
}

/// What one pass came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    run: usize,
    passed: usize,
    open: usize,
    is_success: bool,
}

impl Counts {
    /// Adds a line such as `entry: 224 cases run, 224 passed, 0 open`, or the end of one test that is
    /// a case by itself.
    fn add(&mut self, line: &str) {
        if ["test bench::", "test live::", "test oracle::"].iter().any(|start| line.starts_with(start)) {
            let (passed, open) = (line.ends_with("... ok"), line.ends_with("... FAILED"));
            self.run += usize::from(passed || open);
            self.passed += usize::from(passed);
            self.open += usize::from(open);
            return;
        }
        let Some((_, rest)) = line.split_once(": ") else { return };
        let words: Vec<&str> = rest.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        if let [run, "cases" | "steps", "run", passed, "passed", open, "open"] = words.as_slice() {
            let number = |word: &str| word.parse().unwrap_or(0);
            self.run += number(run);
            self.passed += number(passed);
            self.open += number(open);
        }
    }
}

/// Runs `command`, shows what it prints as it comes, and counts.
fn watch(command: &mut Command) -> Result<Counts> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let other = writer.try_clone().context("cannot make a pipe")?;
    let mut child = command.stdout(writer).stderr(other).spawn().context("cannot start cargo")?;
    // The pipe ends when nobody can write to it any more, us included.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut counts = Counts::default();
    for line in BufReader::new(reader).lines() {
        let line = line.context("cannot read what the tests print")?;
        println!("{line}");
        counts.add(&line);
    }
    counts.is_success = child.wait().context("cannot wait for cargo")?.success();
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let mut counts = Counts::default();
        for line in [
            "entry: 224 cases run, 223 passed, 1 open",
            "core/mint: 20 steps run, 20 passed, 0 open",
            "test oracle::oracle_database_goes_to_spire_and_back has been running for over 60 seconds",
            "test oracle::oracle_database_goes_to_spire_and_back ... ok",
            "test api::api_entry ... FAILED",
            "entry entry.create.1: call 0: 3 instead of 4",
        ] {
            counts.add(line);
        }

        assert_eq!(counts, Counts { run: 245, passed: 244, open: 1, is_success: false });
    }
}
