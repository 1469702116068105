//! The parity ledger: SPIRE's whole surface as committed tables, a state per row.
//!
//! `conformance/ledger/*.tsv` holds one table each for methods, command line, configuration, metrics,
//! plugins, and the statements of the threat model. The first column of a row is `done` or `open`, the second names the test that
//! exercises it through the built binary, or the reason why it is open. A statement of the threat model
//! names every test that bears its number. The wire tables in
//! `conformance/wire` need no state: a test compares every row with the compiled descriptors.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// One table of the ledger.
pub(crate) struct Table {
    /// Its file's name without the ending.
    pub(crate) name: &'static str,
    rows: Vec<Row>,
}

struct Row {
    done: bool,
    evidence: String,
    subject: String,
}

const TABLES: [&str; 6] = ["methods", "cli", "config", "telemetry", "plugins", THREATS];

/// The table whose tests bear the number of their row.
const THREATS: &str = "threats";

/// Prints the counts of all tables on one line.
pub(crate) fn print() -> Result<()> {
    let root = crate::root();
    let wire = wire_rows(&root.join("conformance/wire"))?;
    let mut line = format!("wire {wire}/{wire}");
    for table in load(&root)? {
        let (done, all) = (table.rows.iter().filter(|row| row.done).count(), table.rows.len());
        let said = match table.name {
            "methods" => format!(" · methods {done}/{all} answering"),
            "telemetry" => format!(" · metrics {done}/{all}"),
            other => format!(" · {other} {done}/{all}"),
        };
        line.push_str(&said);
    }
    println!("{line}");
    Ok(())
}

/// Checks the ledger: every row has a state, every `done` names a test that exists, and no table has
/// fewer rows or more open ones than `conformance/ledger/floor.tsv` says.
pub(crate) fn check(root: &Path, tests: &BTreeSet<String>, faults: &mut Vec<String>) -> Result<()> {
    let floor = read(&root.join("conformance/ledger/floor.tsv"))?;
    for table in load(root)? {
        for row in table.rows.iter().filter(|row| row.done) {
            for test in row.evidence.split(", ").filter(|test| !tests.contains(*test)) {
                faults.push(format!(
                    "ledger {}: {:?} is done by test {test:?}, which does not exist",
                    table.name, row.subject
                ));
            }
        }
        if table.name == THREATS {
            check_numbers(&table, faults);
        }
        let open = table.rows.iter().filter(|row| !row.done).count();
        let limits = floor.lines().find_map(|line| {
            let mut cells = line.split('\t');
            (cells.next() == Some(table.name))
                .then(|| cells.filter_map(|n| n.parse().ok()).collect::<Vec<usize>>())
        });
        match limits.as_deref() {
            Some(&[rows, most_open]) if table.rows.len() >= rows && open <= most_open => {}
            Some(&[rows, most_open]) => faults.push(format!(
                "ledger {}: {} rows with {open} open, where the floor is {rows} rows with {most_open} open",
                table.name,
                table.rows.len()
            )),
            _ => faults.push(format!("conformance/ledger/floor.tsv has no line for {}", table.name)),
        }
    }
    Ok(())
}

/// Every test of a statement bears its number, so that one is found by the other.
fn check_numbers(threats: &Table, faults: &mut Vec<String>) {
    for row in threats.rows.iter().filter(|row| row.done) {
        let number = row.subject.split(' ').next().unwrap_or_default().to_lowercase();
        for test in row.evidence.split(", ") {
            let name = test.split("::").last().unwrap_or_default();
            if !name.split('_').any(|part| part == number) {
                faults.push(format!("ledger {THREATS}: {test:?} does not bear the number {number}"));
            }
        }
    }
}

fn load(root: &Path) -> Result<Vec<Table>> {
    TABLES.into_iter().map(|name| Table::load(root, name)).collect()
}

impl Table {
    fn load(root: &Path, name: &'static str) -> Result<Self> {
        let path = root.join(format!("conformance/ledger/{name}.tsv"));
        let text = read(&path)?;
        let mut rows = Vec::new();
        for (number, line) in text.lines().enumerate().skip(1) {
            let mut cells = line.splitn(3, '\t');
            let (Some(state), Some(evidence), Some(subject)) = (cells.next(), cells.next(), cells.next())
            else {
                bail!("{}:{}: a row needs state, evidence and subject", path.display(), number + 1);
            };
            if !matches!(state, "done" | "open") || evidence.is_empty() {
                bail!("{}:{}: state {state:?} with {evidence:?}", path.display(), number + 1);
            }
            rows.push(Row {
                done: state == "done",
                evidence: evidence.to_owned(),
                subject: subject.replace('\t', " "),
            });
        }
        Ok(Self { name, rows })
    }
}

/// Facts in SPIRE's wire tables: every non-empty line but the comments.
fn wire_rows(dir: &Path) -> Result<usize> {
    let mut rows = 0;
    for file in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = file?.path();
        let is_own = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("finial."));
        if !is_own && path.extension().is_some_and(|ending| ending == "txt") {
            rows += read(&path)?.lines().filter(|line| is_fact(line)).count();
        }
    }
    Ok(rows)
}

/// A line that only names a package states no fact of its own.
fn is_fact(line: &str) -> bool {
    !line.is_empty() && !line.starts_with('#') && !line.starts_with("package\t")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
