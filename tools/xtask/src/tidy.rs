//! What a compiler does not check: layer arrows, licences and bans, the parity ledger, house style.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{ledger, process};

/// The layer of each crate; a crate may depend on lower layers only (ARCHITECTURE.md, section 2).
const LAYERS: [(&str, u8); 14] = [
    ("finial-spiffe", 0),
    ("finial-proto", 1),
    ("finial-config", 1),
    ("finial-runtime", 1),
    ("finial-plugin", 2),
    ("finial-client", 2),
    ("finial-store", 3),
    ("finial-graph", 3),
    ("finial-ca", 3),
    ("finial-plugins", 3),
    ("finial-server", 4),
    ("finial-agent", 4),
    ("finial-bench", 4),
    ("finial", 5),
];

/// Crates that must not be in the dependency graph at all.
const BANNED: [&str; 6] = ["openssl-sys", "native-tls", "ring", "rustls-pemfile", "serde_yaml", "bindgen"];

/// Crates that none of ours may name (others may bring them along).
const BANNED_HERE: [&str; 2] = ["lazy_static", "once_cell"];

/// Where unsafe code may stand.
const UNSAFE_HOME: &str = "crates/runtime/src/sys";

/// Runs every check and fails with all findings.
pub(crate) fn run() -> Result<()> {
    let root = crate::root();
    let metadata = metadata()?;
    let mut faults = Vec::new();

    check_layers(&metadata, &mut faults);
    check_licences(&root, &metadata, &mut faults)?;
    check_sources(&root, &mut faults)?;
    ledger::check(&root, &test_names(&root)?, &mut faults)?;

    if !faults.is_empty() {
        bail!("{} faults\n  {}", faults.len(), faults.join("\n  "));
    }
    println!("tidy: layers, licences, bans, sources and ledger are in order");
    Ok(())
}

fn metadata() -> Result<Value> {
    let text =
        process::output(&mut process::command("cargo", ["metadata", "--format-version=1", "--locked"]))?;
    serde_json::from_str(&text).context("cannot read cargo metadata")
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

/// `name version` of all packages that the workspace really builds. The lock file (and so `cargo
/// metadata`) also lists what optional features nobody turned on would bring.
fn built() -> Result<BTreeSet<String>> {
    let args =
        ["tree", "--workspace", "--locked", "--edges=all", "--target=all", "--prefix=none", "--format={p}"];
    let listed = process::output(&mut process::command("cargo", args))?;
    let name_and_version = |line: &str| {
        let mut words = line.split(' ');
        Some(format!("{} {}", words.next()?, words.next()?.strip_prefix('v')?))
    };
    Ok(listed.lines().filter_map(name_and_version).collect())
}

fn check_layers(metadata: &Value, faults: &mut Vec<String>) {
    let layers: BTreeMap<&str, u8> = LAYERS.into_iter().collect();
    for package in packages(metadata).filter(|package| package["source"].is_null()) {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let Some(&mine) = layers.get(name) else {
            if !manifest.contains("/tools/") {
                faults.push(format!("{name} has no layer: add it to tidy.rs and ARCHITECTURE.md"));
            }
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            match layers.get(other) {
                Some(&theirs) if theirs >= mine && !for_tests => {
                    faults.push(format!("{name} (layer {mine}) depends on {other} (layer {theirs})"));
                }
                None if other == "finial-testkit" && !for_tests => {
                    faults.push(format!("{name} depends on finial-testkit outside its tests"));
                }
                _ => {}
            }
            if BANNED_HERE.contains(&other) {
                faults.push(format!("{name} depends on {other}: the standard library has it"));
            }
            if other == "anyhow" && name != "finial" && !for_tests {
                faults.push(format!("{name} uses anyhow, which only programs and tools may"));
            }
        }
    }
}

fn check_licences(root: &Path, metadata: &Value, faults: &mut Vec<String>) -> Result<()> {
    let deny = fs::read_to_string(root.join("deny.toml")).context("cannot read deny.toml")?;
    let allowed: BTreeSet<&str> = deny
        .split_once("allow = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(list, _)| list.split('"').skip(1).step_by(2).collect())
        .context("deny.toml has no licence list `allow = [..]`")?;
    let built = built()?;
    for package in packages(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        if !built.contains(&format!("{name} {}", package["version"].as_str().unwrap_or_default())) {
            continue;
        }
        if BANNED.contains(&name) {
            faults.push(format!("{name} is banned"));
        }
        let source = package["source"].as_str().unwrap_or_default();
        if !source.is_empty() && !source.starts_with("registry+") {
            faults.push(format!("{name} comes from {source}, not from a registry"));
        }
        let licence = package["license"].as_str().unwrap_or_default();
        if !licence_fits(licence, &allowed) {
            faults.push(format!("{name}: licence {licence:?} is not on deny.toml's list"));
        }
    }
    Ok(())
}

/// Whether an SPDX expression can be satisfied: some `OR` branch has only allowed `AND` parts.
fn licence_fits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let flat = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let fits = |part: &str| allowed.contains(part.split_whitespace().collect::<Vec<_>>().join(" ").as_str());
    // `A AND (B OR C)` flattens to branches that may lack a part; requiring one allowed licence in
    // each AND group keeps the check on the strict side.
    if expression.contains(" AND (") || expression.contains(") AND ") {
        return expression.split(" AND ").all(|group| group.replace(['(', ')'], " ").split(" OR ").any(fits));
    }
    flat.split(" OR ").any(|branch| branch.split(" AND ").all(fits))
}

fn check_sources(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    for path in rust_files(root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let in_tests = shown.contains("/tests/") || shown.contains("/benches/");
        if !text.starts_with("//!") && !text.starts_with("#!") {
            faults.push(format!("{shown}: the first line says nothing of what the module is for (//!)"));
        }
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let code = line.trim_start();
            if code.starts_with("//") {
                if code.contains("TODO") && !code.contains("TODO(#") {
                    faults.push(format!("{shown}:{number}: a TODO needs its number: TODO(#n)"));
                }
                continue;
            }
            if code.contains(concat!("todo", "!(")) || code.contains(concat!("unimplemented", "!(")) {
                faults.push(format!("{shown}:{number}: unfinished code"));
            }
            if code.starts_with(concat!("#[", "ignore")) {
                faults.push(format!("{shown}:{number}: no test may be ignored"));
            }
            if code.contains(concat!("unsafe", " {")) && !shown.starts_with(UNSAFE_HOME) && !in_tests {
                faults.push(format!("{shown}:{number}: unsafe belongs to {UNSAFE_HOME}"));
            }
        }
    }
    Ok(())
}

/// The names of all test functions, as `crate::function`.
fn test_names(root: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in rust_files(root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let Some(owner) =
            relative.components().nth(1).map(|part| part.as_os_str().to_string_lossy().into_owned())
        else {
            continue;
        };
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            // Tests of the datastore are also made by a macro that runs them on each database.
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((name, _)) =
                line.strip_prefix("async fn ").and_then(|rest| rest.split_once("(home: &Home)"))
            {
                names.insert(format!("{owner}::{name}"));
            } else if is_test && let Some((_, rest)) = line.split_once("fn ") {
                if let Some((name, _)) = rest.split_once('(') {
                    names.insert(format!("{owner}::{name}"));
                }
                is_test = false;
            }
        }
    }
    Ok(names)
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = process::output(&mut process::command(
        "git",
        ["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"],
    ))?;
    Ok(listed.lines().map(|line| root.join(line)).filter(|path| path.exists()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of unsafe code that there are. More of them are a decision, and change this number.
    const UNSAFE_BLOCKS: usize = 41;

    #[test]
    fn c02_unsafe_code_stands_in_one_module_and_its_blocks_are_counted() {
        let root = crate::root();
        let mut crates: Vec<PathBuf> =
            fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect();
        crates.retain(|path| path.file_name().unwrap() != "runtime");
        assert_eq!(crates.len(), LAYERS.len() - 1);
        let workspace = fs::read_to_string(root.join("Cargo.toml")).unwrap();
        assert!(workspace.contains("\nunsafe_code = \"deny\""));
        for path in crates {
            let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap();
            assert!(manifest.contains("[lints]\nworkspace = true"), "{}", path.display());
        }
        // Denied for all, and nobody but that module opts out: as good as forbidden.
        let opts_out = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap();
            let lints = ["allow(", "expect(", "warn("].map(|level| format!("{level}{}", "unsafe_code"));
            let is_of_tests = path.components().any(|part| part.as_os_str() == "tests");
            !is_of_tests && lints.iter().any(|lint| text.contains(lint))
        };
        let out: Vec<_> = rust_files(&root).unwrap().into_iter().filter(opts_out).collect();
        let out: Vec<_> =
            out.iter().map(|path| path.strip_prefix(&root).unwrap().display().to_string()).collect();
        assert_eq!(out, ["crates/runtime/src/lib.rs"]);

        let mut blocks = 0;
        for path in rust_files(&root).unwrap() {
            let shown = path.strip_prefix(&root).unwrap().display().to_string();
            if !shown.starts_with("crates/") || shown.contains("/tests/") || shown.contains("/benches/") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            for (number, line) in lines.iter().enumerate() {
                if line.trim_start().starts_with("//") || !line.contains(concat!("unsafe", " {")) {
                    continue;
                }
                assert!(shown.starts_with(UNSAFE_HOME), "{shown}:{}", number + 1);
                // Its reason stands above it.
                let above = &lines[number.saturating_sub(8)..=number];
                assert!(above.iter().any(|line| line.contains("SAFETY:")), "{shown}:{}", number + 1);
                blocks += 1;
            }
        }
        println!("{blocks} blocks of unsafe code");
        assert_eq!(blocks, UNSAFE_BLOCKS);
    }

    #[test]
    fn c05_what_reads_what_strangers_send_is_listed() {
        let root = crate::root();
        let guide = fs::read_to_string(root.join("docs/security.md")).unwrap();
        let (_, table) = guide.split_once("## What reads what strangers send").unwrap();
        let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
        let tests = test_names(&root).unwrap();
        let tests: Vec<&str> =
            tests.iter().filter_map(|name| name.split_once("::")).map(|(_, name)| name).collect();

        let mut listed = BTreeSet::new();
        for row in table.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [crates, reads, owner, fuzzed, looked_at] = cells.as_slice() else { panic!("{row}") };
            assert!(!reads.is_empty() && !owner.is_empty() && looked_at.starts_with("20"), "{row}");
            for name in crates.split('`').skip(1).step_by(2) {
                assert!(lock.contains(&format!("\nname = \"{name}\"\n")), "{name} is not in use");
                listed.insert(name.to_owned());
            }
            // It says by what, or why not.
            let targets: Vec<&str> = fuzzed.split('`').skip(1).step_by(2).collect();
            assert!(!targets.is_empty() || fuzzed.contains("not by us: "), "{row}");
            for target in targets {
                let name = target.trim_start_matches("conformance::").trim_end_matches('*');
                assert!(tests.iter().any(|test| test.starts_with(name)), "there is no test {target}");
            }
        }
        // Those that a manifest of ours names must be on it.
        for parser in
            ["rustls", "h2", "hyper", "tonic", "prost", "x509-parser", "serde_json", "rusqlite", "regorus"]
        {
            assert!(listed.contains(parser), "{parser} is not listed");
        }
        let sql: Vec<_> = listed.iter().filter(|name| name.starts_with("sqlx-")).collect();
        assert_eq!(sql.len(), 2);
    }

    #[test]
    fn licence_expressions() {
        let allowed: BTreeSet<&str> = ["MIT", "Apache-2.0", "ISC", "Unicode-3.0"].into();

        assert!(licence_fits("MIT OR Apache-2.0", &allowed));
        assert!(licence_fits("MIT/GPL-3.0", &allowed));
        assert!(licence_fits("(MIT OR Apache-2.0) AND Unicode-3.0", &allowed));
        assert!(licence_fits("ISC AND (Apache-2.0 OR OpenSSL)", &allowed));
        assert!(!licence_fits("ISC AND OpenSSL", &allowed));
        assert!(!licence_fits("GPL-3.0", &allowed));
        assert!(!licence_fits("", &allowed));
    }
}
