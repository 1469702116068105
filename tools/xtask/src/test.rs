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

/// The long runs, in so many rounds (500 unless it is said otherwise). CONTRIBUTING.md lists them, with the
/// variables that each takes.
pub(crate) fn soak(rounds: Option<&str>) -> Result<()> {
    let rounds: u64 = rounds.unwrap_or("500").parse().context("soak: rounds must be a number")?;
    process::check(&mut process::command(
        "cargo",
        ["build", "--release", "--locked", "--package", "finial"],
    ))?;
    let environment = clients::environment();
    for run in long_runs(rounds, std::process::id().into()) {
        println!("== {}", run.filters.join(" "));
        let mut args = vec!["test", "--release", "--locked", "--package", run.package, "--test", "it", "--"];
        args.extend(&run.filters);
        args.push("--nocapture");
        if run.is_measured {
            // What is measured has the machine to itself.
            args.push("--test-threads=1");
        }
        // Whatever the shell has set holds.
        let unset = run.numbers.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
        let mut tests = process::command("cargo", args);
        process::check(
            tests.envs(unset.map(|(name, number)| (name, number.to_string()))).envs(environment.clone()),
        )?;
    }
    Ok(())
}

/// Tests that take numbers from the environment.
struct LongRun {
    package: &'static str,
    filters: Vec<&'static str>,
    numbers: Vec<(&'static str, u64)>,
    is_measured: bool,
}

fn long_runs(rounds: u64, seed: u64) -> Vec<LongRun> {
    vec![
        LongRun {
            package: "finial-conformance",
            filters: vec![
                "kills_lose_no_acknowledged_write",
                "j03_a_killed_server",
                "live_forced_rotation",
                "lint_issued",
                "outage_restarts",
                "upgrade_fails_no_call",
                "recovery_a_server_that_comes_back",
                "x07_frames_of_chance",
            ],
            numbers: vec![
                ("FINIAL_KILL_ROUNDS", rounds),
                ("FINIAL_TOKEN_ROUNDS", rounds / 5),
                ("FINIAL_FORCED_ROUNDS", 20),
                ("FINIAL_FORCED_WORKLOADS", 100),
                ("FINIAL_LINT_COUNT", 10_000),
                ("FINIAL_OUTAGE_ROUNDS", 100),
                ("FINIAL_OUTAGE_STREAMS", 10_000),
                ("FINIAL_FRAME_ROUNDS", rounds.saturating_mul(200)),
                ("FINIAL_FRAME_SEED", seed),
            ],
            is_measured: false,
        },
        LongRun {
            package: "finial-conformance",
            filters: vec!["r00_under_each_attack", "r03_a_crowd"],
            numbers: vec![("FINIAL_HALF_OPEN", 15_000), ("FINIAL_SIEGE_SECONDS", 10)],
            is_measured: true,
        },
        LongRun {
            package: "finial-store",
            filters: vec!["feed::", "j01_"],
            numbers: vec![
                ("FINIAL_FEED_HISTORIES", rounds.saturating_mul(200)),
                ("FINIAL_RACE_ROUNDS", rounds.saturating_mul(2)),
            ],
            is_measured: false,
        },
        LongRun {
            package: "finial-store",
            filters: vec!["s03_fuzz_rows"],
            numbers: vec![("FINIAL_FUZZ_SECONDS", 300)],
            is_measured: false,
        },
        LongRun {
            package: "finial-runtime",
            filters: vec!["callers::"],
            numbers: vec![("FINIAL_PEER_ROUNDS", rounds.saturating_mul(2_000))],
            is_measured: false,
        },
    ]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_long_run_sets_is_read_and_written_down() {
        let contributing = fs::read_to_string(crate::root().join("CONTRIBUTING.md")).unwrap();
        let listed = process::output(&mut process::command("git", ["ls-files", "*.rs"])).unwrap();
        let read = |path: &str| fs::read_to_string(crate::root().join(path)).unwrap_or_default();
        let sources: Vec<String> =
            listed.lines().filter(|path| !path.starts_with("tools/xtask/")).map(read).collect();

        for run in long_runs(500, 1) {
            for (name, number) in run.numbers {
                assert!(number > 0);
                assert!(contributing.contains(&format!("`{name}`")), "{name} is not in CONTRIBUTING.md");
                assert!(sources.iter().any(|source| source.contains(name)), "nobody reads {name}");
            }
            for filter in run.filters {
                let is_there = |source: &String| {
                    filter.strip_suffix("::").map_or_else(
                        || source.contains(&format!("fn {filter}")) || source.contains(filter),
                        |module| source.contains(&format!("mod {module};")),
                    )
                };
                assert!(sources.iter().any(is_there), "there is no test {filter}");
            }
        }
    }
}
