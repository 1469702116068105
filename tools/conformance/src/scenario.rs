//! Recorded command lines: steps that run one after the other on one fresh plane.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use regex::Regex;
use serde::Deserialize;
use time::OffsetDateTime;

use crate::plane::{Plane, PlaneConfig, Product, Running, pause};
use crate::template::Binding;

/// A scenario: a plane and the steps on it.
#[derive(Debug, Deserialize)]
pub struct Scenario {
    needs: String,
    #[serde(default)]
    plane: BTreeMap<String, String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    #[serde(default)]
    argv: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    stdin: Option<String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    until: Option<String>,
    #[serde(default)]
    capture: BTreeMap<String, String>,
    start: Option<String>,
    stop: Option<String>,
    signal: Option<String>,
    #[serde(rename = "await")]
    await_text: Option<String>,
    look: Option<Vec<String>>,
    keep: Option<String>,
    #[serde(default)]
    unordered: bool,
    expect: Expect,
}

#[derive(Debug, Deserialize)]
struct Expect {
    exit: serde_json::Value,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    stream: String,
    flags: Option<BTreeMap<String, String>>,
    commands: Option<Vec<String>>,
}

struct Outcome {
    exit: serde_json::Value,
    stdout: String,
    stderr: String,
}

/// How a scenario went.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Steps that went as recorded.
    pub passed: usize,
    /// Steps that did not: number and what differs.
    pub failed: Vec<(usize, String)>,
}

impl Scenario {
    /// Reads a scenario's file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// How many steps it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether it has no steps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Plays all steps on a fresh plane of `product`.
    ///
    /// # Panics
    /// If the plane cannot be started.
    #[must_use]
    pub fn play(&self, product: &Product) -> Verdict {
        let mut config = PlaneConfig {
            server: self.needs != "none",
            agent: self.needs == "agent",
            ..PlaneConfig::default()
        };
        for (key, value) in &self.plane {
            let value = value.clone();
            match key.as_str() {
                "td" => config.trust_domain = value,
                "server_extra" => config.server_extra = value,
                "agent_extra" => config.agent_extra = value,
                "server_plugins" => config.server_plugins = value,
                "ca_key" => config.ca_key = value,
                "log" => config.log = value,
                other => panic!("unknown deviation {other:?}"),
            }
        }
        // A product that cannot even start on the scenario's configuration fails all of its steps.
        let started = std::panic::catch_unwind(|| Plane::start(product, &config, &self.files));
        let Ok(mut plane) = started else {
            let all = 0..self.steps.len();
            return Verdict { passed: 0, failed: all.map(|step| (step, "not started".to_owned())).collect() };
        };
        let mut background = BTreeMap::new();
        let mut binding = Binding::default();
        let mut verdict = Verdict::default();
        for (number, step) in self.steps.iter().enumerate() {
            match step.play(&mut plane, &mut background, &mut binding) {
                Ok(()) => verdict.passed += 1,
                Err(why) => verdict.failed.push((number, why)),
            }
        }
        verdict
    }
}

impl Step {
    fn play(
        &self,
        plane: &mut Plane,
        background: &mut BTreeMap<String, Running>,
        binding: &mut Binding,
    ) -> Result<(), String> {
        for (path, text) in &self.files {
            plane.write(path, text);
        }
        let deadline = Instant::now() + Duration::from_secs(15);
        let until = self.until.as_deref().map(|pattern| Regex::new(pattern).expect("a recorded pattern"));
        let outcome = loop {
            let outcome = self.once(plane, background);
            let reached = until
                .as_ref()
                .is_none_or(|until| until.is_match(&(outcome.stdout.clone() + &outcome.stderr)));
            if reached || Instant::now() > deadline {
                break outcome;
            }
            pause();
        };
        for (name, pattern) in &self.capture {
            let regex = Regex::new(pattern).expect("a recorded pattern");
            let Some(value) = regex.captures(&outcome.stdout).and_then(|found| found.get(1)) else {
                return Err(format!(
                    "{:?}: nothing to capture for {name}: {}{}",
                    self.argv, outcome.stdout, outcome.stderr
                ));
            };
            plane.set_word(name, value.as_str().to_owned());
        }
        self.judge(plane, binding, &outcome)
    }

    fn once(&self, plane: &Plane, background: &mut BTreeMap<String, Running>) -> Outcome {
        if let Some(paths) = &self.look {
            return Outcome { exit: "looked".into(), stdout: look(plane, paths), stderr: String::new() };
        }
        if let Some(name) = &self.stop {
            let mut running = background.remove(name).expect("a step started it");
            if let Some(pattern) = &self.await_text {
                let regex = Regex::new(pattern).expect("a recorded pattern");
                let deadline = Instant::now() + Duration::from_secs(6);
                while Instant::now() < deadline {
                    let (stdout, stderr) = running.printed();
                    if regex.is_match(&(stdout + &stderr)) {
                        break;
                    }
                    pause();
                }
            }
            running.signal(self.signal.as_deref().unwrap_or("TERM"));
            let exit = running.wait(Duration::from_secs(20));
            let (stdout, stderr) = running.printed();
            return Outcome { exit: exit.into(), stdout, stderr };
        }
        let (program, args) = self.argv.split_first().expect("a step has a program");
        let mut command = plane.command(program, args);
        for (name, value) in &self.env {
            command.env(name, plane.fill(value));
        }
        if let Some(name) = &self.start {
            background.insert(name.clone(), Running::start(&mut command));
            return Outcome { exit: "started".into(), stdout: String::new(), stderr: String::new() };
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program under test can be started");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A program that does not read its input may be gone already.
        if let Err(error) = stdin.write_all(plane.fill(self.stdin.as_deref().unwrap_or_default()).as_bytes())
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            panic!("cannot write to stdin: {error}");
        }
        drop(stdin);
        let output = child.wait_with_output().expect("the program's output");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Outcome {
            exit: output.status.code().map_or_else(|| "signal".into(), Into::into),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    fn judge(&self, plane: &Plane, binding: &mut Binding, outcome: &Outcome) -> Result<(), String> {
        let mut faults = String::new();
        if outcome.exit != self.expect.exit {
            let _infallible = writeln!(faults, "exit {} instead of {}", outcome.exit, self.expect.exit);
        }
        let streams = [
            ("stdout", &outcome.stdout, &self.expect.stdout),
            ("stderr", &outcome.stderr, &self.expect.stderr),
        ];
        for (stream, actual, expected) in streams {
            let mut actual = actual.clone();
            if let Some(usage) = self.expect.usage.as_ref().filter(|usage| usage.stream == stream) {
                let (rest, fault) = usage.check(&actual);
                faults.push_str(&fault);
                if expected.is_empty() {
                    continue;
                }
                actual = rest;
            }
            // Logs go to stdout; what a program says on stderr is compared whole.
            if let Some(keep) = self.keep.as_ref().filter(|_| stream == "stdout") {
                let keep = Regex::new(keep).expect("a recorded pattern");
                actual = actual.split_inclusive('\n').filter(|line| keep.is_match(line)).collect();
            }
            if let Err(why) =
                self.compare(&plane.fill(expected).replace("{version}", "<any>"), &actual, binding)
            {
                let _infallible =
                    writeln!(faults, "{stream}: {why}\n--- expected\n{expected}--- actual\n{actual}---");
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(format!("{:?} {:?}\n{faults}", self.argv, self.env)) }
    }

    fn compare(&self, expected: &str, actual: &str, binding: &mut Binding) -> Result<(), String> {
        let now = OffsetDateTime::now_utc();
        if !self.unordered {
            return binding.check(expected, actual, now);
        }
        let mut left: Vec<&str> = actual.split_inclusive('\n').collect();
        for line in expected.split_inclusive('\n') {
            let found = left.iter().position(|candidate| binding.check(line, candidate, now).is_ok());
            let Some(found) = found else {
                return Err(format!("no line is {line:?}"));
            };
            left.swap_remove(found);
        }
        if left.is_empty() { Ok(()) } else { Err(format!("lines too many: {left:?}")) }
    }
}

impl Usage {
    /// What is left of `text` outside the usage block, and what is wrong with the block.
    fn check(&self, text: &str) -> (String, String) {
        let (mut rest, mut flags, mut commands) = (String::new(), BTreeSet::new(), BTreeSet::new());
        let (mut seen, mut in_commands) = (false, false);
        for line in text.split_inclusive('\n') {
            let bare = line.trim_start_matches(' ');
            let indent = line.len() - bare.len();
            if line.starts_with("Usage") {
                seen = true;
            } else if line.starts_with("Available commands are:") || line.starts_with("Subcommands:") {
                (seen, in_commands) = (true, true);
            } else if seen && indent <= 8 && bare.len() > 1 && bare.starts_with('-') {
                flags.extend(bare.split_whitespace().next().map(str::to_owned));
            } else if line.starts_with("    \t") {
            } else if in_commands && indent > 0 && !bare.trim().is_empty() {
                commands.extend(bare.split_whitespace().next().map(str::to_owned));
            } else {
                rest.push_str(line);
            }
        }
        let mut fault = String::new();
        if !seen {
            fault.push_str("no usage\n");
        }
        if let Some(wanted) = &self.flags {
            let wanted: BTreeSet<String> = wanted.keys().cloned().collect();
            if wanted != flags {
                let _infallible = writeln!(fault, "flags {flags:?} instead of {wanted:?}");
            }
        }
        if let Some(wanted) = &self.commands {
            let wanted: BTreeSet<String> = wanted.iter().cloned().collect();
            if wanted != commands {
                let _infallible = writeln!(fault, "commands {commands:?} instead of {wanted:?}");
            }
        }
        (rest, fault)
    }
}

fn look(plane: &Plane, paths: &[String]) -> String {
    let mut seen = String::new();
    for path in paths {
        let full = plane.cwd().join(plane.fill(path));
        let Ok(meta) = fs::metadata(&full) else {
            let _infallible = writeln!(seen, "{path}: absent");
            continue;
        };
        let _infallible = writeln!(seen, "{path}: {:04o}", meta.permissions().mode() & 0o7777);
        if meta.file_type().is_socket() {
            seen.push_str("socket\n");
        } else if meta.is_dir() {
            let mut names: Vec<String> = fs::read_dir(&full)
                .expect("a folder can be listed")
                .map(|entry| entry.expect("a folder's entry").file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            let _infallible = writeln!(seen, "{}", names.join(" "));
        } else {
            seen.push_str(&fs::read_to_string(&full).expect("a text file"));
        }
    }
    seen
}
