//! `cargo xtask test`: everything CI runs, step by step; and the tasks run by hand.
//!
//! Unit and integration tests use the release profile, as does the binary that the conformance suites
//! drive, so that they share what dependencies they can.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{clients, process, tidy};

type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 6] = [
    ("fmt", fmt),
    ("clippy", clippy),
    ("tidy", tidy::run),
    ("doc", doc),
    ("unit", unit),
    ("conformance", conformance),
];

/// Runs the named steps, or all of them in order.
pub(crate) fn run(names: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = names.iter().find(|name| STEPS.iter().all(|(step, _)| step != name)) {
        bail!("test has no step {unknown:?}: {}", STEPS.map(|(step, _)| step).join(" "));
    }
    for (name, step) in STEPS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("== {name}");
        let started = now();
        step().with_context(|| format!("step {name}"))?;
        println!("== {name}: {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(ExitCode::SUCCESS)
}

fn fmt() -> Result<()> {
    process::check(&mut process::command("cargo", ["fmt", "--all", "--", "--check"]))
}

fn clippy() -> Result<()> {
    let args = ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    process::check(&mut process::command("cargo", args))
}

fn doc() -> Result<()> {
    let args = ["doc", "--quiet", "--locked", "--workspace", "--no-deps", "--document-private-items"];
    process::check(process::command("cargo", args).env("RUSTDOCFLAGS", "-D warnings"))
}

fn unit() -> Result<()> {
    let args =
        ["test", "--release", "--locked", "--workspace", "--exclude", "finial-conformance", "--no-fail-fast"];
    clients::install_servers();
    counting_skips(&mut process::command("cargo", args))
}

fn conformance() -> Result<()> {
    // With the same features as the unit tests: all of it is compiled once.
    process::check(&mut process::command(
        "cargo",
        ["build", "--release", "--locked", "--workspace", "--bins", "--tests"],
    ))?;
    let binary = crate::root().join("target/release/finial");
    let size = fs::metadata(&binary).with_context(|| format!("cannot read {}", binary.display()))?.len();
    let started = now();
    process::output(&mut process::command(&binary.to_string_lossy(), ["-help"]))?;
    println!(
        "binary: {:.1} MB, answers -help in {:.1} ms",
        size as f64 / 1e6,
        started.elapsed().as_secs_f64() * 1e3
    );

    clients::install_servers();
    for suite in suites()? {
        let mut tests = process::command(&suite, [] as [&str; 0]);
        tests.current_dir(crate::root().join("tools/conformance"));
        counting_skips(tests.env("FINIAL_BIN", &binary).envs(clients::environment()))?;
    }
    Ok(())
}

/// The test programs of the conformance suites, as they were built with the workspace: cargo would
/// build them anew, with other features, if it were asked to test this package alone.
fn suites() -> Result<Vec<String>> {
    let args =
        ["test", "--release", "--locked", "--workspace", "--no-run", "--quiet", "--message-format=json"];
    let built = process::output(&mut process::command("cargo", args))?;
    let messages = built.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let suites: Vec<String> = messages
        .filter(|message| text(message, "package_id").is_some_and(|id| id.contains("finial-conformance")))
        .filter_map(|message| text(&message, "executable").map(str::to_owned))
        .collect();
    if suites.is_empty() {
        bail!("cargo has built no conformance suites");
    }
    Ok(suites)
}

fn text<'a>(message: &'a Value, name: &str) -> Option<&'a str> {
    message.get(name)?.as_str()
}

/// Runs tests, and tells which checks could not be made. In CI there must be none.
fn counting_skips(tests: &mut Command) -> Result<()> {
    let skips = std::env::temp_dir().join(format!("finial-skips-{}", std::process::id()));
    let tested = process::check(tests.env("FINIAL_SKIPS", &skips));
    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    if skips.exists() {
        fs::remove_file(&skips).context("cannot remove the list of skipped checks")?;
    }
    for line in skipped.lines() {
        println!("skipped: {line}");
    }
    tested?;
    if !skipped.is_empty() && std::env::var_os("CI").is_some() {
        bail!("{} checks were skipped, and in CI a skip is a failure", skipped.lines().count());
    }
    Ok(())
}

/// Kills the server under load for `rounds` (default 500) and looks for lost or halved writes. Plays
/// 200 histories per round of several servers at one database. Restarts an agent 100 times without a
/// server, and a server under 10,000 streams.
pub(crate) fn soak(rounds: Option<&str>) -> Result<()> {
    let rounds: u64 = rounds.unwrap_or("500").parse().context("soak: rounds must be a number")?;
    process::check(&mut process::command(
        "cargo",
        ["build", "--release", "--locked", "--package", "finial"],
    ))?;
    let args = [
        "test",
        "--release",
        "--locked",
        "--package",
        "finial-conformance",
        "--test",
        "it",
        "--",
        "kills_lose_no_acknowledged_write",
        "live_forced_rotation",
        "lint_issued",
        "outage_restarts",
        "upgrade_fails_no_call",
        "recovery_a_server_that_comes_back",
        "--nocapture",
    ];
    let mut soak = process::command("cargo", args);
    soak.env("FINIAL_KILL_ROUNDS", rounds.to_string());
    soak.envs([("FINIAL_FORCED_ROUNDS", "20"), ("FINIAL_FORCED_WORKLOADS", "100")]);
    soak.envs([("FINIAL_OUTAGE_ROUNDS", "100"), ("FINIAL_OUTAGE_STREAMS", "10000")]);
    soak.env("FINIAL_LINT_COUNT", "10000").envs(clients::environment());
    process::check(&mut soak)?;
    let args = [
        "test",
        "--release",
        "--locked",
        "--package",
        "finial-store",
        "--test",
        "it",
        "--",
        "feed::",
        "j01_",
    ];
    let mut soak = process::command("cargo", args);
    soak.env("FINIAL_FEED_HISTORIES", rounds.saturating_mul(200).to_string());
    process::check(soak.env("FINIAL_RACE_ROUNDS", rounds.saturating_mul(2).to_string()))
}

/// Rewrites golden files (`FINIAL_BLESS=1`), of one crate or of all.
pub(crate) fn bless(package: Option<&str>) -> Result<()> {
    let scope = match package {
        Some(package) => vec!["--package".to_owned(), format!("finial-{package}")],
        None => vec!["--workspace".to_owned()],
    };
    let args = ["test", "--release", "--locked"].map(str::to_owned).into_iter().chain(scope);
    process::check(process::command("cargo", args).env("FINIAL_BLESS", "1"))
}

/// Builds the program with no, each and all of its cargo features.
pub(crate) fn features() -> Result<()> {
    let manifest = fs::read_to_string(crate::root().join("crates/finial/Cargo.toml"))
        .context("cannot read the program's manifest")?;
    let table = manifest.split_once("\n[features]\n").map_or("", |(_, rest)| rest);
    let names = table
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim());
    let check = |extra: &[&str]| {
        let args = ["check", "--locked", "--package", "finial"].iter().chain(extra);
        process::check(&mut process::command("cargo", args))
    };
    check(&["--no-default-features"])?;
    for name in names {
        check(&["--no-default-features", "--features", name])?;
    }
    check(&["--all-features"])
}

/// Drives every fuzz target with random and mutated input for `seconds` (default 60) under
/// AddressSanitizer; the targets are plain functions that the ordinary tests run over their corpus.
pub(crate) fn fuzz(seconds: Option<&str>) -> Result<()> {
    let seconds: u64 = seconds.unwrap_or("60").parse().context("fuzz: seconds must be a number")?;
    let args = [
        "test",
        "--workspace",
        "--target",
        "x86_64-unknown-linux-gnu",
        "--target-dir",
        "target/fuzz",
        "fuzz",
        "--",
        "--nocapture",
    ];
    process::check(
        process::command("cargo", args)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "-Zsanitizer=address")
            .env("FINIAL_FUZZ_SECONDS", seconds.to_string()),
    )
}

#[expect(clippy::disallowed_methods, reason = "how long a step took is printed, never decided on")]
fn now() -> Instant {
    Instant::now()
}
