//! Configuration: every key of every program, given well and given badly, and the recorded texts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;

/// One key, set well or badly.
#[derive(Deserialize)]
struct KeyCase {
    /// Program, block and key: the row of the ledger.
    row: [String; 3],
    /// Which program's configuration the text is.
    program: String,
    text: String,
    /// What the refusal says; `None` where the text is good.
    refused: Option<String>,
}

/// A recorded text.
#[derive(Deserialize)]
struct TextCase {
    id: String,
    side: String,
    text: String,
    validate: Verdict,
}

/// What SPIRE's `validate` made of a text.
#[derive(Deserialize)]
struct Verdict {
    exit: i32,
    position: Option<[usize; 2]>,
    #[serde(default)]
    lines: Vec<String>,
    #[serde(default)]
    crash: bool,
}

/// How many recorded texts there are: none may be lost.
const TEXTS: usize = 432;

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

fn finial() -> Command {
    let program = std::env::var_os("FINIAL_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/finial"),
        PathBuf::from,
    );
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TZ", "UTC");
    command
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Every row of the ledger has a text that the program takes or refuses for that key.
#[test]
fn config_keys_are_known_typed_and_checked() {
    let cases: Vec<KeyCase> = fs::read_to_string(home().join("config/keys.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let folder = folder();
    let mut wrong = Vec::new();

    for case in &cases {
        if let Err(why) = check_key(case, folder.path()) {
            wrong.push(format!("{:?}: {why}\n{}", case.row, case.text));
        }
    }

    println!("config keys: {} run, {} passed, {} open", cases.len(), cases.len() - wrong.len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let ledger = fs::read_to_string(home().join("ledger/config.tsv")).unwrap();
    let rows: BTreeSet<Vec<&str>> =
        ledger.lines().skip(1).map(|line| line.split('\t').skip(2).take(3).collect()).collect();
    let shown: BTreeSet<Vec<&str>> =
        cases.iter().map(|case| case.row.iter().map(String::as_str).collect()).collect();
    assert_eq!(rows.difference(&shown).collect::<Vec<_>>(), Vec::<&Vec<&str>>::new(), "rows without a case");
    assert_eq!(rows.len(), 398);
}

/// What the texts name: two PEM files, keys, a token, a list of accounts, and a file with nothing in it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("cert.pem", include_str!("../../../../conformance/config/cert.pem"));
    write("key.pem", include_str!("../../../../conformance/config/key.pem"));
    write("keys", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3rT2Q2kG0mWZ0zqCyS9kb9iSv0tVdJkq1sYy1Y6x7X c\n");
    write("token", "token\n");
    write("accounts.json", "[\"123456789012\"]");
    write("empty.conf", "");
    folder
}

fn check_key(case: &KeyCase, folder: &Path) -> Result<(), String> {
    let here = folder.to_str().unwrap();
    let file = folder.join("x.conf");
    fs::write(&file, case.text.replace("{dir}", here)).unwrap();
    let output =
        finial().args(["check", &case.program, "-config"]).arg(&file).current_dir(folder).output().unwrap();
    let said_text = said(&output);
    let is_good = output.status.code() == Some(0);
    match &case.refused {
        None if !is_good => return Err(format!("refused: {said_text}")),
        Some(why) if is_good => return Err(format!("taken, not refused with {why:?}")),
        Some(why) if !said_text.contains(&why.replace("{dir}", here)) => {
            return Err(format!("refused without {why:?}: {said_text}"));
        }
        _ => {}
    }
    if case.program == "server" {
        let validate =
            finial().args(["server", "validate", "-config"]).arg(&file).current_dir(folder).output().unwrap();
        if (validate.status.code() == Some(0)) != is_good {
            return Err(format!("validate judges otherwise: {}", said(&validate)));
        }
    }
    Ok(())
}

/// The recorded configuration texts, judged by `validate`.
#[test]
fn config_texts_are_judged_as_recorded() {
    let cases: Vec<TextCase> = fs::read_to_string(home().join("hcl/hcl.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();

    for case in &cases {
        if let Err(why) = check_text(case, folder.path()) {
            wrong.push(format!("{}: {why}\n{}", case.id, case.text));
        }
    }

    println!("config texts: {} run, {} passed, {} open", cases.len(), cases.len() - wrong.len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cases.len(), TEXTS);
}

fn check_text(case: &TextCase, folder: &Path) -> Result<(), String> {
    let file = folder.join("x.conf");
    fs::write(&file, &case.text).unwrap();
    let output =
        finial().args([&case.side, "validate", "-config"]).arg(&file).current_dir(folder).output().unwrap();
    let code = output.status.code();
    let verdict = &case.validate;
    if verdict.crash {
        return if code == Some(0) { Err("taken where SPIRE crashes".to_owned()) } else { Ok(()) };
    }
    if code != Some(verdict.exit) {
        return Err(format!("exit {code:?} instead of {}: {}", verdict.exit, said(&output)));
    }
    // The recording names both programs alike.
    let text = said(&output).replace(file.to_str().unwrap(), "FILE").replace("SPIRE agent", "SPIRE");
    let is_log = |line: &&str| line.starts_with("time=");
    let lines: Vec<&str> = text.lines().filter(|line| !is_log(line)).map(str::trim).collect();
    for expected in &verdict.lines {
        if !lines.iter().any(|line| line.starts_with(expected.trim())) {
            return Err(format!("no line starts with {expected:?}: {text}"));
        }
    }
    if lines.len() != verdict.lines.len() {
        return Err(format!("{} lines instead of {}: {text}", lines.len(), verdict.lines.len()));
    }
    match verdict.position {
        Some([line, column]) if !text.contains(&format!("{line}:{column}: ")) => {
            Err(format!("the place is not {line}:{column}: {text}"))
        }
        _ => Ok(()),
    }
}
