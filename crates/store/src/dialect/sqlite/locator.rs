//! Connection strings as SPIRE's `SQLite` driver reads them: a path, or a `file:` URI with a query.

use std::path::PathBuf;

use crate::StoreError;
use crate::dialect::percent::percent_decoded;

/// Where the database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locator {
    /// What is handed to `SQLite`, always a `file:` URI.
    pub(crate) uri: String,
    /// The file, unless the database lives in memory.
    pub(crate) file: Option<PathBuf>,
}

impl Locator {
    /// Reads a connection string.
    pub(crate) fn parse(text: &str) -> Result<Self, StoreError> {
        let (name, query) = match text.split_once('?') {
            Some((name, query)) => (name, query),
            None => (text, ""),
        };
        let name = match scheme(name) {
            None => name,
            Some("file") => name.get(5..).unwrap_or_default(),
            Some(other) => {
                return Err(StoreError::Open(format!("datastore-sql: unsupported scheme {other:?}")));
            }
        };
        // The driver's own options start with an underscore; what they ask for is fixed here.
        let kept: Vec<&str> =
            query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with('_')).collect();
        let mode = kept.iter().find_map(|pair| pair.strip_prefix("mode="));
        let path = name.strip_prefix("//").map_or(name, |rest| {
            rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest)
        });
        let in_memory = mode == Some("memory") || path == ":memory:" || path.is_empty();
        let file = (!in_memory).then(|| PathBuf::from(percent_decoded(path)));
        let mut uri = format!("file:{}", name.replace('#', "%23"));
        if !kept.is_empty() {
            uri.push('?');
            uri.push_str(&kept.join("&"));
        }
        Ok(Self { uri, file })
    }
}

/// The scheme of a URI, if the text has one.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let mut letters = scheme.bytes();
    let good = letters.next()?.is_ascii_alphabetic()
        && letters.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    good.then_some(scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, uri: &str, file: Option<&str>) {
        let expected = Locator { uri: uri.to_owned(), file: file.map(PathBuf::from) };
        assert_eq!(Locator::parse(text).unwrap(), expected, "{text}");
    }

    #[test]
    fn paths_and_uris() {
        check("data.db", "file:data.db", Some("data.db"));
        check("./a/data.sqlite3", "file:./a/data.sqlite3", Some("./a/data.sqlite3"));
        check("/run/data.db", "file:/run/data.db", Some("/run/data.db"));
        check("/run/a%20b.db", "file:/run/a%20b.db", Some("/run/a b.db"));
        check("file:data.db", "file:data.db", Some("data.db"));
        check("file:///run/data.db", "file:///run/data.db", Some("/run/data.db"));
        check("file:data.db?mode=rwc&_journal_mode=OFF", "file:data.db?mode=rwc", Some("data.db"));
        check("file:m?mode=memory&cache=shared", "file:m?mode=memory&cache=shared", None);
    }

    #[test]
    fn other_schemes_are_refused() {
        let error = Locator::parse("postgres://db/x").unwrap_err();

        assert_eq!(error.to_string(), "datastore-sql: unsupported scheme \"postgres\"");
    }
}
