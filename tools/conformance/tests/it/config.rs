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

pub(crate) fn finial() -> Command {
    let program = std::env::var_os("FINIAL_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/finial"),
        PathBuf::from,
    );
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TZ", "UTC");
    command
}

pub(crate) fn said(output: &Output) -> String {
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

/// A server's file that every flag's own check comes before the refusal of.
const SERVER: &str = r#"server { trust_domain = "example.org" data_dir = "d" bogus = 1 }
plugins { KeyManager "memory" {} }
"#;
/// The same for an agent.
const AGENT: &str = r#"agent { server_address = "a" server_port = 1 trust_domain = "example.org" bogus = 1 insecure_bootstrap = true }
plugins { KeyManager "memory" {} }
"#;
/// What both end with when nothing else is wrong.
const END: &str = "unknown configuration detected";

/// `run` and `validate` take the same flags, and each wins over the file.
#[test]
fn flags_of_run_and_validate_win_over_the_file() {
    let without = |text: &str, key: &str| text.replace(key, "");
    let key_type = SERVER.replace("bogus", "ca_key_type = \"$KT\" bogus");
    let no_bootstrap = without(AGENT, "insecure_bootstrap = true");
    let beside = AGENT.replace("bogus", "socket_path = \"s/a\" admin_socket_path = \"s/b\" bogus");
    let token = AGENT.replace("bogus", "join_token_file = \"t\" bogus");
    let beside_text = "admin socket cannot be in the same directory";
    let undefined = "flag provided but not defined: -namedPipeName";

    for (text, flags, said) in [
        (SERVER, "-bindAddress=no.host!", "could not resolve bind address \"no.host!:8081\""),
        (SERVER, "-serverPort=70000", "address 70000: invalid port"),
        (&without(SERVER, "data_dir = \"d\""), "-dataDir=x", END),
        (&without(SERVER, "trust_domain = \"example.org\""), "-trustDomain=a.test", END),
        (SERVER, "-trustDomain=A", "could not parse trust_domain \"A\""),
        (SERVER, "-logFile=no/x", "open no/x: no such file or directory"),
        (SERVER, "-logFormat=x", "unknown logger format: \"x\""),
        (SERVER, "-logLevel=x", "not a valid logrus Level: \"x\""),
        (SERVER, "-logSourceLocation", END),
        (SERVER, "-socketPath=x", END),
        (&key_type, "-expandEnv", "key type \"bad\" is unknown"),
        (SERVER, "-config=absent", "could not find config file"),
        (SERVER, "-namedPipeName=x", undefined),
    ] {
        check_flags("server", text, flags, said);
    }
    for (text, flags, said) in [
        (AGENT, "-config=absent", "could not find config file"),
        (AGENT, "-dataDir=x", END),
        (&token, "-joinToken=x", "only one of join_token or join_token_file"),
        (AGENT, "-joinTokenFile=absent", "unable to read join token file \"absent\""),
        (AGENT, "-logFile=no/x", "open no/x: no such file or directory"),
        (AGENT, "-logFormat=x", "unknown logger format: \"x\""),
        (AGENT, "-logLevel=x", "not a valid logrus Level: \"x\""),
        (AGENT, "-logSourceLocation", "func="),
        (&without(AGENT, "server_address = \"a\""), "-serverAddress=x", END),
        (&without(AGENT, "server_port = 1"), "-serverPort=1", END),
        (&without(AGENT, "trust_domain = \"example.org\""), "-trustDomain=a.test", END),
        (&beside, "-disableWorkloadAPI", beside_text),
        (&beside, "-disableSDSAPI", beside_text),
        (&beside, "-disableSDSAPI -disableWorkloadAPI", END),
        (AGENT, "-trustBundle=x", "only one of insecure_bootstrap or trust_bundle_path"),
        (&no_bootstrap, "-trustBundleUrl=http://x", "trust bundle URL must start with https://"),
        (AGENT, "-trustBundleFormat=der", "invalid value for trust_bundle_format"),
        (AGENT, "-allowUnauthenticatedVerifiers", END),
        (&no_bootstrap, "-insecureBootstrap", END),
        (AGENT, "-rebootstrapMode=x", "unknown rebootstrap mode specified: x"),
        (AGENT, "-rebootstrapDelay=x", "error parsing rebootstrap delay duration"),
        (&AGENT.replace("example.org", "$KT"), "-expandEnv", END),
        (AGENT, "-socketPath=x", END),
        (AGENT, "-namedPipeName=x", undefined),
    ] {
        check_flags("agent", text, flags, said);
    }
}

fn check_flags(program: &str, text: &str, flags: &str, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.conf"), text).unwrap();
    for command in ["run", "validate"] {
        let output = finial()
            .args([program, command, "-config", "x.conf"])
            .args(flags.split(' '))
            .env("KT", "bad")
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = said(&output);

        assert_eq!(output.status.code(), Some(1), "{program} {command} {flags}: {said}");
        assert!(said.contains(expected), "{program} {command} {flags}: {said}");
    }
}

/// The plugins are in the first of several sections, but the others must be sections too.
#[test]
fn every_plugins_section_is_a_block() {
    let server = SERVER.replace("bogus = 1", "") + "plugins = 1\n";
    let agent = AGENT.replace("bogus = 1", "") + "plugins = [\"x\"]\n";

    check_flags("server", &server, "-logLevel=INFO", "At 3:11: root.plugins: not an object type for struct");
    check_flags("agent", &agent, "-logLevel=INFO", "At 3:11: root.plugins: not an object type for struct");
}
