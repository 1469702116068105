//! The version row, and what is done with a database that is new, old or newer.
//!
//! The decision is taken before anything is written: a database that is refused stays untouched.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use crate::dialect::sqlite::explain;
use crate::{Options, StoreError, schema, stamp};

/// What has to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Everything is there.
    Nothing,
    /// The database is new.
    Create,
    /// The version row has an older release of the same schema.
    StoreCodeVersion,
    /// The schema is older.
    Migrate {
        /// Its version.
        from: i64,
    },
}

/// Why a database is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    Database(rusqlite::Error),
    Schema(String),
}

impl Refusal {
    pub(crate) fn into_store(self, name: &Path) -> StoreError {
        match self {
            Self::Database(error) => explain(name, &error),
            Self::Schema(text) => StoreError::Open(format!("datastore-sql: {text}")),
        }
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// A `MAJOR.MINOR.PATCH[-PRERELEASE]` version, ordered as semantic versioning says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    numbers: [u64; 3],
    before: Vec<String>,
}

impl Version {
    const ZERO: Self = Self { numbers: [0; 3], before: Vec::new() };

    fn parse(text: &str) -> Option<Self> {
        let text = text.split_once('+').map_or(text, |(version, _)| version);
        let (release, before) = match text.split_once('-') {
            Some((release, before)) => (release, before.split('.').map(str::to_owned).collect()),
            None => (text, Vec::new()),
        };
        let mut numbers = release.split('.').map(|number| {
            let plain = number.len() == 1 || !number.starts_with('0');
            number.parse().ok().filter(|_| plain && number.bytes().all(|b| b.is_ascii_digit()))
        });
        let parsed = [numbers.next()??, numbers.next()??, numbers.next()??];
        let whole = numbers.next().is_none() && before.iter().all(|part: &String| !part.is_empty());
        whole.then_some(Self { numbers: parsed, before })
    }

    fn is_above(&self, other: &Self) -> bool {
        if self.numbers != other.numbers {
            return self.numbers > other.numbers;
        }
        match (self.before.is_empty(), other.before.is_empty()) {
            (true, both) => !both,
            (false, true) => false,
            (false, false) => {
                let key = |part: &String| (part.parse::<u64>().map_or((1, 0), |n| (0, n)), part.clone());
                let mine = self.before.iter().map(key).collect::<Vec<_>>();
                mine > other.before.iter().map(key).collect::<Vec<_>>()
            }
        }
    }

    /// Whether one release may follow or precede the other in a rolling upgrade.
    fn is_neighbour_of(&self, other: &Self) -> bool {
        let ([major, minor, _], [other_major, other_minor, _]) = (self.numbers, other.numbers);
        major == other_major && minor.abs_diff(other_minor) <= 1
    }
}

/// Looks at the database and decides; writes nothing.
pub(crate) fn plan(raw: &Connection, options: &Options) -> Result<Plan, Refusal> {
    let own = Version::parse(&options.code_version)
        .ok_or_else(|| Refusal::Schema(format!("bad own code version {:?}", options.code_version)))?;
    let there = raw
        .query_row("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migrations'", [], |_| Ok(()))
        .optional()?;
    if there.is_none() {
        return Ok(Plan::Create);
    }
    let row = raw
        .query_row("SELECT version, code_version FROM migrations ORDER BY id LIMIT 1", [], |row| {
            Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<String>>(1)?))
        })
        .optional()?;
    let (version, code_version) = row.unwrap_or_default();
    let (version, code_version) = (version.unwrap_or(0), code_version.unwrap_or_default());
    let stored = if code_version.is_empty() {
        Version::ZERO
    } else {
        Version::parse(&code_version).ok_or_else(|| {
            Refusal::Schema(format!(
                "error getting DB code version: unable to parse code version from DB: {code_version}"
            ))
        })?
    };
    if version == schema::VERSION {
        let newer = own.is_above(&stored);
        return Ok(if newer { Plan::StoreCodeVersion } else { Plan::Nothing });
    }
    if options.disable_migration {
        if own.is_neighbour_of(&stored) {
            return Ok(Plan::Nothing);
        }
        return Err(Refusal::Schema("auto-migration must be enabled for current DB".to_owned()));
    }
    if version > schema::VERSION {
        if !own.is_neighbour_of(&stored) {
            return Err(Refusal::Schema("incompatible DB schema and code version".to_owned()));
        }
        tracing::warn!(
            schema = version,
            "DB schema is ahead of code version, upgrading SPIRE Server is recommended"
        );
        return Ok(Plan::Nothing);
    }
    if version < schema::OLDEST {
        return Err(Refusal::Schema(format!(
            "migrating from schema version {version} requires a previous SPIRE release; \
             please follow the upgrade strategy at doc/upgrading.md"
        )));
    }
    Ok(Plan::Migrate { from: version })
}

/// Does it, each step in one transaction with its version row.
pub(crate) fn carry_out(raw: &Connection, plan: &Plan, options: &Options) -> Result<(), Refusal> {
    let now = stamp::format(stamp::instant((options.now)()), 0);
    let own = &options.code_version;
    let set = "UPDATE migrations SET version = ?1, code_version = ?2, updated_at = ?3";
    match plan {
        Plan::Nothing => {}
        Plan::StoreCodeVersion => {
            raw.execute(set, params![schema::VERSION, own, now])?;
        }
        Plan::Create => {
            tracing::info!("Initializing new database");
            let tx = raw.unchecked_transaction()?;
            for statement in schema::SQLITE_TABLES {
                tx.execute_batch(statement)?;
            }
            tx.execute(
                "INSERT INTO migrations (created_at, updated_at, version, code_version) \
                 VALUES (?1, ?1, ?2, ?3)",
                params![now, schema::VERSION, own],
            )?;
            tx.commit()?;
        }
        Plan::Migrate { from } => {
            tracing::info!(schema = from, "Running migrations...");
            for version in *from..schema::VERSION {
                let tx = raw.unchecked_transaction()?;
                tx.execute(set, params![version + 1, own, now])?;
                let (table, column, add) = if version == 23 {
                    ("attested_node_entries", "agent_version", schema::TO_24)
                } else {
                    ("registered_entries", "additional_attributes", schema::TO_25)
                };
                if !has_column(&tx, table, column)? {
                    tx.execute_batch(add)?;
                }
                tx.commit()?;
            }
            tracing::info!("Done running migrations");
        }
    }
    Ok(())
}

fn has_column(raw: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    raw.query_row("SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2", [table, column], |row| {
        Ok(row.get::<_, i64>(0)? > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_semantic_versions() {
        let above = |a: &str, b: &str| Version::parse(a).unwrap().is_above(&Version::parse(b).unwrap());

        assert!(above("1.15.3", "1.15.3-dev-unk"));
        assert!(!above("1.15.3-dev-unk", "1.15.3"));
        assert!(above("1.15.3", "1.14.6"));
        assert!(above("1.10.0", "1.9.9"));
        assert!(!above("1.15.3", "1.15.3"));
        assert!(above("1.0.0-rc.10", "1.0.0-rc.9"));
        assert!(above("1.0.0-beta", "1.0.0-11"));
        assert_eq!(Version::parse("1.15"), None);
        assert_eq!(Version::parse("1.015.3"), None);
    }
}
