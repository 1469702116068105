//! `DataStore "sql"`.

use serde::Deserialize;

use super::check::{Report, Settings};
use crate::hcl::{self, Kept};

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sql {
    database_type: Option<Kept>,
    connection_string: String,
    ro_connection_string: String,
    root_ca_path: String,
    client_cert_path: String,
    client_key_path: String,
    conn_max_lifetime: Option<String>,
    max_open_conns: Option<i64>,
    max_idle_conns: Option<i64>,
    disable_migration: bool,
    log_sql: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Kinds {
    aws_mysql: Option<Aws>,
    aws_postgres: Option<Aws>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Aws {
    region: String,
    access_key_id: String,
    secret_access_key: String,
}

pub(super) fn check(settings: &Settings<'_>, report: &mut Report) {
    if let Err(why) = find_fault(settings) {
        report.say(why);
    }
}

fn find_fault(settings: &Settings<'_>) -> Result<(), String> {
    let sql: Sql = settings.parse().map_err(|error| error.to_string())?;
    let (kind, kinds) = database_type(sql.database_type.as_ref())?;
    let refused = |why: &str| Err(format!("datastore-sql: {why}"));
    if kind.is_empty() {
        return refused("database_type must be set");
    }
    if sql.connection_string.is_empty() {
        return refused("connection_string must be set");
    }
    if matches!(kind.as_str(), "mysql" | "aws_mysql") {
        for text in [&sql.connection_string, &sql.ro_connection_string] {
            if !text.is_empty() {
                check_mysql(text).or_else(|why| refused(&why))?;
            }
        }
    }
    let is_incomplete = |aws: &Option<Aws>| aws.as_ref().is_some_and(|aws| aws.region.is_empty());
    if is_incomplete(&kinds.aws_mysql) || is_incomplete(&kinds.aws_postgres) {
        return refused("region must be specified");
    }
    Ok(())
}

/// The type: a word, or a block that it labels.
fn database_type(kept: Option<&Kept>) -> Result<(String, Kinds), String> {
    let text = match kept {
        // A list is no word, though its text is kept like one.
        Some(Kept::Other(word)) if !word.starts_with('[') => {
            return Ok((word.trim_matches('"').to_owned(), Kinds::default()));
        }
        Some(Kept::Items(1, text)) => text,
        Some(Kept::Items(..)) => return Err("exactly one database type is expected".into()),
        Some(Kept::Other(_)) | None => return Err("malformed database type configuration".into()),
    };
    let keys = text.split('{').next().unwrap_or_default().split_whitespace().count();
    if keys != 1 && !text.contains('=') {
        return Err("exactly one key is expected".into());
    }
    let kinds: Kinds =
        hcl::from_str(text).map_err(|error| format!("failed to decode configuration: {error}"))?;
    let key = text.split([' ', '{', '=']).next().unwrap_or_default().trim_matches('"');
    if !matches!(key, "aws_mysql" | "aws_postgres") {
        return Err(format!("unknown database type: {key}"));
    }
    Ok((key.to_owned(), kinds))
}

/// Looks at a data source name as far as it goes wrong in practice: `user@proto(host)/db?parseTime=true`.
fn check_mysql(text: &str) -> Result<(), String> {
    let Some((before, after)) = text.rsplit_once('/') else {
        return Err("invalid DSN: missing the slash separating the database name".into());
    };
    let address = before.rsplit_once('@').map_or(before, |(_, address)| address);
    if address.contains('(') && !address.ends_with(')') {
        let unescaped = address.contains(')');
        return Err(if unescaped {
            "invalid DSN: did you forget to escape a param value?".into()
        } else {
            "invalid DSN: network address not terminated (missing closing brace)".into()
        });
    }
    let parameters = after.split_once('?').map_or("", |(_, parameters)| parameters);
    let is_on = |value: &str| matches!(value, "1" | "true" | "TRUE" | "True");
    let parses_time = parameters
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .any(|(key, value)| key == "parseTime" && is_on(value));
    if parses_time {
        return Ok(());
    }
    Err("invalid mysql config: missing parseTime=true param in connection_string".into())
}
