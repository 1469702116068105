//! How a file of recorded cases went, held against its floor.

use std::fs;
use std::path::Path;

/// The cases of one file that passed and those that did not.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many went as recorded.
    pub passed: usize,
    /// Which did not, and what differs.
    pub failed: Vec<(String, String)>,
}

impl Outcome {
    /// Counts one case.
    pub fn add(&mut self, id: &str, judged: Result<(), String>) {
        match judged {
            Ok(()) => self.passed += 1,
            Err(why) => self.failed.push((id.to_owned(), why)),
        }
    }

    /// How many cases were run.
    #[must_use]
    pub const fn run(&self) -> usize {
        self.passed + self.failed.len()
    }

    /// Prints what differs and the counts, and holds them against the line of `name` in
    /// `folder/floor.tsv`: how many cases there are at least, and how many may be open at most. SPIRE's
    /// own programs have no open cases to hide behind.
    ///
    /// # Panics
    /// If there are fewer cases or more open ones.
    pub fn hold(&self, folder: &Path, name: &str) {
        for (id, why) in &self.failed {
            eprintln!("{name} {id}: {why}");
        }
        let (run, open) = (self.run(), self.failed.len());
        eprintln!("{name}: {run} cases run, {} passed, {open} open", self.passed);

        let floor = fs::read_to_string(folder.join("floor.tsv")).expect("the floor can be read");
        let line = floor.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let limits = line.into_iter().find(|cells| cells.first() == Some(&name));
        let limits = limits.unwrap_or_else(|| panic!("floor.tsv has no line for {name}"));
        let limit = |index: usize| -> usize {
            limits.get(index).and_then(|cell| cell.parse().ok()).expect("floor.tsv holds numbers")
        };
        let most = if std::env::var_os("SPIRE_BIN").is_some() { 0 } else { limit(2) };
        assert!(run >= limit(1), "{name} has lost cases: {run}, not {}", limit(1));
        assert!(open <= most, "{name}: {open} cases are open, {most} may be");
    }
}
