//! The version row, and what is done with a database that is new, old or newer.
//!
//! The decision is taken before anything is written: a database that is refused stays untouched.

use crate::dialect::{Conn, Dialect, int, values};
use crate::{Options, StoreError, schema, stamp};

/// Reads the version row.
pub(crate) const VERSION_ROW: &str = "SELECT version, code_version FROM migrations ORDER BY id LIMIT 1";

/// What the version row says; zero and empty where it says nothing.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) version: i64,
    pub(crate) code_version: String,
}

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

/// Decides by what was found in the database; `None` = it is new.
pub(crate) fn plan(found: Option<Found>, options: &Options) -> Result<Plan, StoreError> {
    let refused = |text: String| Err(StoreError::Open(format!("datastore-sql: {text}")));
    let Some(own) = Version::parse(&options.code_version) else {
        return refused(format!("bad own code version {:?}", options.code_version));
    };
    let Some(Found { version, code_version }) = found else { return Ok(Plan::Create) };
    let stored = if code_version.is_empty() {
        Version::ZERO
    } else if let Some(stored) = Version::parse(&code_version) {
        stored
    } else {
        return refused(format!(
            "error getting DB code version: unable to parse code version from DB: {code_version}"
        ));
    };
    if version == schema::VERSION {
        let newer = own.is_above(&stored);
        return Ok(if newer { Plan::StoreCodeVersion } else { Plan::Nothing });
    }
    if options.disable_migration {
        if own.is_neighbour_of(&stored) {
            return Ok(Plan::Nothing);
        }
        return refused("auto-migration must be enabled for current DB".to_owned());
    }
    if version > schema::VERSION {
        if !own.is_neighbour_of(&stored) {
            return refused("incompatible DB schema and code version".to_owned());
        }
        tracing::warn!(
            schema = version,
            "DB schema is ahead of code version, upgrading SPIRE Server is recommended"
        );
        return Ok(Plan::Nothing);
    }
    if version < schema::OLDEST {
        return refused(format!(
            "migrating from schema version {version} requires a previous SPIRE release; \
             please follow the upgrade strategy at doc/upgrading.md"
        ));
    }
    Ok(Plan::Migrate { from: version })
}

/// Does it, each step in one transaction with its version row. (MySQL ends a transaction before a change
/// of a table; a step that was cut short there is done again.)
pub(crate) fn carry_out(conn: &Conn, plan: &Plan, options: &Options) -> Result<(), StoreError> {
    let now = stamp::instant((options.now)());
    let own = &options.code_version;
    let set = "UPDATE migrations SET version = ?1, code_version = ?2, updated_at = ?3";
    match plan {
        Plan::Nothing => {}
        Plan::StoreCodeVersion => {
            step(conn, || conn.execute(set, values![schema::VERSION, own, now]).map(drop))?;
        }
        Plan::Create => {
            tracing::info!(subsystem_name = "sql", "Initializing new database");
            step(conn, || {
                for statement in schema::creation(conn.dialect()) {
                    conn.define(&statement)?;
                }
                conn.execute(
                    "INSERT INTO migrations (created_at, updated_at, version, code_version) \
                     VALUES (?1, ?1, ?2, ?3)",
                    values![now, schema::VERSION, own],
                )?;
                Ok(())
            })?;
        }
        Plan::Migrate { from } => {
            tracing::info!(subsystem_name = "sql", schema = from, "Running migrations...");
            for version in *from..schema::VERSION {
                let (table, column, add) = schema::added_in(version + 1, conn.dialect());
                step(conn, || {
                    if conn.dialect() != Dialect::MySql {
                        conn.execute(set, values![version + 1, own, now])?;
                    }
                    if !has_column(conn, table, column)? {
                        conn.define(&add)?;
                    }
                    if conn.dialect() == Dialect::MySql {
                        conn.execute(set, values![version + 1, own, now])?;
                    }
                    Ok(())
                })?;
            }
            tracing::info!(subsystem_name = "sql", "Done running migrations");
        }
    }
    Ok(())
}

fn step(conn: &Conn, work: impl Fn() -> Result<(), StoreError>) -> Result<(), StoreError> {
    conn.begin_write()?;
    match work() {
        Ok(()) => conn.commit(),
        Err(error) => {
            if !conn.is_idle() {
                conn.rollback()?;
            }
            Err(error)
        }
    }
}

fn has_column(conn: &Conn, table: &str, column: &str) -> Result<bool, StoreError> {
    let sql = match conn.dialect() {
        Dialect::Sqlite => "SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2",
        Dialect::Postgres => {
            "SELECT count(*) FROM information_schema.columns \
             WHERE table_schema = current_schema() AND table_name = ?1 AND column_name = ?2"
        }
        Dialect::MySql => {
            "SELECT count(*) FROM information_schema.columns \
             WHERE table_schema = database() AND table_name = ?1 AND column_name = ?2"
        }
    };
    Ok(conn.first(sql, values![table, column], |row| int(row, 0))?.unwrap_or(0) > 0)
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
