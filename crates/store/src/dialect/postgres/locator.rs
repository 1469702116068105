//! Connection strings as SPIRE's `PostgreSQL` driver reads them: `key=value` pairs or a URL, over what the
//! environment says (`PGHOST`, `PGUSER`, ..).
//!
//! What is asked for and cannot be done is refused. Where a certificate is to be checked against given
//! authorities only (`verify-ca`), the host's name is checked too: the TLS underneath also knows the public
//! authorities, and whoever has any certificate of those would pass.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx_core::Error;
use sqlx_core::connection::ConnectOptions as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::row::Row as _;
use sqlx_postgres::{PgConnectOptions, PgConnection, PgSslMode};

use super::password;
use crate::StoreError;
use crate::dialect::percent::percent_decoded;

/// Where the database is, and as whom to go there.
pub(crate) struct Locator {
    pub(super) hosts: Vec<(String, u16)>,
    user: String,
    password: Option<String>,
    database: String,
    mode: PgSslMode,
    root: Option<Pem>,
    client: Option<(Pem, Pem)>,
    settings: Vec<(String, String)>,
    application: String,
    /// Only a server that can be written to will do.
    primary: bool,
    /// How long connecting may take.
    pub(crate) connect_timeout: Option<Duration>,
}

/// A certificate or key.
enum Pem {
    File(PathBuf),
    Text(String),
}

/// The environment variables that count, and the keyword each stands for.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGOPTIONS", "options"),
    ("PGAPPNAME", "application_name"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGSERVICE", "service"),
];

/// Where systems keep the certificates of public authorities.
const SYSTEM_ROOTS: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

impl Locator {
    /// Reads a connection string; `environment` gives the values of variables.
    pub(crate) fn parse(
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, StoreError> {
        let mut said = Said::default();
        for (variable, key) in ENVIRONMENT {
            if let Some(value) = environment(variable) {
                said.set(key, value);
            }
        }
        let pairs = match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
            Some(rest) => url(rest)?,
            None => keywords(text)?,
        };
        for (key, value) in pairs {
            said.set(&key, value);
        }
        Self::from_said(said, environment)
    }

    fn from_said(mut said: Said, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        for key in ["service", "krbsrvname", "krbspn", "load_balance_hosts", "ssl_max_protocol_version"] {
            if said.take(key).is_some() {
                return Err(refused(&format!("{key} is not supported; remove it")));
            }
        }
        if said.take("sslnegotiation").is_some_and(|value| value == "direct") {
            return Err(refused("sslnegotiation=direct is not supported; remove it"));
        }
        if let Some(value) = said.take("client_encoding")
            && !matches!(value.to_ascii_lowercase().replace('-', "").as_str(), "utf8" | "unicode")
        {
            return Err(refused(&format!(
                "unsupported client_encoding {value:?}: must be absent or \"UTF8\""
            )));
        }
        if let Some(value) = said.take("datestyle")
            && value != "ISO, MDY"
        {
            return Err(refused(&format!("unsupported datestyle {value:?}: must be absent or \"ISO, MDY\"")));
        }
        // What the driver asks of the protocol; this one has no choice there.
        for key in [
            "binary_parameters",
            "disable_prepared_binary_result",
            "sslsni",
            "ssl_min_protocol_version",
            "min_protocol_version",
            "max_protocol_version",
        ] {
            said.take(key);
        }
        let primary = match said.take("target_session_attrs").as_deref() {
            None | Some("any") => false,
            Some("read-write" | "primary") => true,
            Some(other) => {
                return Err(refused(&format!("target_session_attrs={other} is not supported for a store")));
            }
        };
        let connect_timeout = said.take("connect_timeout").filter(|value| !value.is_empty());
        let connect_timeout = connect_timeout
            .map(|value| value.parse::<u64>().map_err(|_| wrong("connect_timeout", "no number of seconds")))
            .transpose()?
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);

        let address = said.take("hostaddr");
        let hosts = hosts(said.take("host"), address.as_deref(), said.take("port"))?;
        let user = said.take("user").or_else(|| environment("USER")).unwrap_or_else(|| "root".to_owned());
        let database = said.take("dbname").or_else(|| said.take("database"));
        let database = database.filter(|name| !name.is_empty()).unwrap_or_else(|| user.clone());
        let home = environment("HOME").map(PathBuf::from);
        let file = said.take("passfile").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".pgpass")));
        let password = said.take("password").or_else(|| {
            let (host, port) = hosts.first()?;
            let host = if host.starts_with('/') { "localhost" } else { host };
            password::from_file(&file?, [host, &port.to_string(), &database, &user])
        });

        let is_local = hosts.iter().all(|(host, _)| host.starts_with('/'));
        let (mode, root, client) = tls(&mut said, is_local, home.as_deref())?;
        if address.is_some() && matches!(mode, PgSslMode::VerifyFull) {
            return Err(refused(
                "hostaddr cannot be used with a verified certificate; give the name as host",
            ));
        }
        let fallback = said.take("fallback_application_name");
        let application = said.take("application_name").or(fallback).unwrap_or_else(|| "finial".to_owned());
        let mut settings = said.options()?;
        settings.extend(said.rest);
        Ok(Self {
            hosts,
            user,
            password,
            database,
            mode,
            root,
            client,
            settings,
            application,
            primary,
            connect_timeout,
        })
    }

    /// Connects to the first host that answers and will do.
    pub(crate) async fn connect(&self) -> Result<PgConnection, Error> {
        let mut failed = Error::Configuration("no host".into());
        for (host, port) in &self.hosts {
            match self.connect_to(host, *port).await {
                Ok(link) => return Ok(link),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn connect_to(&self, host: &str, port: u16) -> Result<PgConnection, Error> {
        let mut link = self.options(host, port).connect().await?;
        if self.primary {
            let row = link.fetch_one("SELECT pg_is_in_recovery()").await?;
            if row.try_get::<bool, _>(0)? {
                return Err(Error::Protocol(format!("{host}:{port} cannot be written to")));
            }
        }
        Ok(link)
    }

    /// How to connect to one of the hosts.
    pub(super) fn options(&self, host: &str, port: u16) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(host)
            .port(port)
            .username(&self.user)
            .database(&self.database)
            .ssl_mode(self.mode)
            .application_name(&self.application)
            .statement_cache_capacity(256)
            .disable_statement_logging();
        if host.starts_with('/') {
            options = options.socket(host);
        }
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        match &self.root {
            Some(Pem::File(path)) => options = options.ssl_root_cert(path),
            Some(Pem::Text(text)) => options = options.ssl_root_cert_from_pem(text.clone().into_bytes()),
            None => {}
        }
        if let Some((certificate, key)) = &self.client {
            options = match certificate {
                Pem::File(path) => options.ssl_client_cert(path),
                Pem::Text(text) => options.ssl_client_cert_from_pem(text),
            };
            options = match key {
                Pem::File(path) => options.ssl_client_key(path),
                Pem::Text(text) => options.ssl_client_key_from_pem(text),
            };
        }
        if !self.settings.is_empty() {
            options = options.options(self.settings.iter().map(|(key, value)| (key, value)));
        }
        options
    }
}

impl fmt::Display for Locator {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        write!(f, "PostgreSQL database {:?} at {}", self.database, hosts.join(", "))
    }
}

/// What was said about the connection; the last word counts.
#[derive(Default)]
struct Said {
    rest: Vec<(String, String)>,
}

impl Said {
    fn set(&mut self, key: &str, value: String) {
        self.rest.retain(|(other, _)| other != key);
        self.rest.push((key.to_owned(), value));
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let place = self.rest.iter().position(|(other, _)| other == key)?;
        Some(self.rest.remove(place).1)
    }

    /// The settings in `options`, which are those of the server's command line: `-c name=value`,
    /// `--name=value`.
    fn options(&mut self) -> Result<Vec<(String, String)>, StoreError> {
        let text = self.take("options").unwrap_or_default();
        let mut words = text.split_whitespace();
        let mut settings = Vec::new();
        while let Some(word) = words.next() {
            let setting = match (word, word.strip_prefix("-c"), word.strip_prefix("--")) {
                ("-c", ..) => words.next(),
                (_, Some(setting), _) | (_, _, Some(setting)) => Some(setting),
                _ => None,
            };
            let (name, value) = setting
                .and_then(|setting| setting.split_once('='))
                .ok_or_else(|| wrong("options", "only -c name=value is understood"))?;
            settings.push((name.to_owned(), value.to_owned()));
        }
        Ok(settings)
    }
}

fn refused(text: &str) -> StoreError {
    StoreError::Open(format!("datastore-sql: pq: {text}"))
}

fn wrong(key: &str, text: &str) -> StoreError {
    refused(&format!("wrong value for {key:?}: {text}"))
}

/// `user:password@host:port/database?key=value`.
fn url(text: &str) -> Result<Vec<(String, String)>, StoreError> {
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    let (authority, database) = text.split_once('/').unwrap_or((text, ""));
    let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (address, ""),
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        // Not the port itself: an unescaped password may have ended up there.
        return Err(refused(
            "invalid port in the URL; special characters in user and password must be escaped",
        ));
    }
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let mut pairs = vec![
        ("user".to_owned(), percent_decoded(user)),
        ("password".to_owned(), percent_decoded(password)),
        ("host".to_owned(), percent_decoded(host)),
        ("port".to_owned(), port.to_owned()),
        ("dbname".to_owned(), percent_decoded(database)),
    ];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((percent_decoded(key), percent_decoded(&value.replace('+', " "))));
    }
    pairs.retain(|(_, value)| !value.is_empty());
    Ok(pairs)
}

/// `key=value key='a value'`, with backslashes before what is meant literally. Faults are told without
/// the text: it may be a part of a password.
fn keywords(text: &str) -> Result<Vec<(String, String)>, StoreError> {
    let mut pairs = Vec::new();
    let mut letters = text.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(letter) = letters.next_if(|letter| *letter != '=' && !letter.is_whitespace()) {
            key.push(letter);
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.next_if_eq(&'=').is_none() {
            return Err(refused("missing \"=\" after a keyword in connection info string"));
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let quoted = letters.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match letters.next() {
                None if quoted => {
                    return Err(refused("unterminated quoted string literal in connection string"));
                }
                None => break,
                Some('\'') if quoted => break,
                Some(letter) if !quoted && letter.is_whitespace() => break,
                Some('\\') => match letters.next() {
                    Some(letter) => value.push(letter),
                    None => return Err(refused("missing character after backslash")),
                },
                Some(letter) => value.push(letter),
            }
        }
        pairs.push((key, value));
    }
}

/// Where to go, in order. Several hosts may share one port.
fn hosts(
    host: Option<String>,
    address: Option<&str>,
    port: Option<String>,
) -> Result<Vec<(String, u16)>, StoreError> {
    let hosts = address.map(str::to_owned).or(host).filter(|host| !host.is_empty());
    let hosts = hosts.unwrap_or_else(|| "localhost".to_owned());
    let ports = port.unwrap_or_default();
    let number = |text: &str| match text {
        "" => Ok(5432),
        text => text.parse::<u16>().map_err(|_| wrong("port", "no port number")),
    };
    let ports = ports.split(',').map(number).collect::<Result<Vec<u16>, _>>()?;
    let hosts: Vec<&str> = hosts.split(',').collect();
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err(refused(&format!(
            "could not match {} port numbers to {} hosts",
            ports.len(),
            hosts.len()
        )));
    }
    let last = ports.last().copied().unwrap_or(5432);
    let ports = ports.into_iter().chain(std::iter::repeat(last));
    Ok(hosts
        .into_iter()
        .map(|host| if host.is_empty() { "localhost" } else { host }.to_owned())
        .zip(ports)
        .collect())
}

type Tls = (PgSslMode, Option<Pem>, Option<(Pem, Pem)>);

/// How to encrypt, whom to trust, and what to show.
fn tls(said: &mut Said, is_local: bool, home: Option<&Path>) -> Result<Tls, StoreError> {
    let inline =
        said.take("sslinline").is_some_and(|value| matches!(value.as_str(), "true" | "yes" | "1" | "on"));
    let pem = |text: String| if inline { Pem::Text(text) } else { Pem::File(PathBuf::from(text)) };
    let mode = said.take("sslmode").filter(|mode| !mode.is_empty());
    let (root, certificate, key) = (said.take("sslrootcert"), said.take("sslcert"), said.take("sslkey"));
    let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let at_home =
        |name: &str| home.map(|home| home.join(".postgresql").join(name)).filter(|path| path.exists());

    let system = root.as_deref() == Some("system");
    let root = set(&root)
        .filter(|_| !system)
        .map(pem)
        .or_else(|| if inline || system { None } else { at_home("root.crt").map(Pem::File) });
    let certificate = set(&certificate).map(pem).or_else(|| at_home("postgresql.crt").map(Pem::File));
    let key = set(&key).map(pem).or_else(|| at_home("postgresql.key").map(Pem::File));
    let is_there = |pem: &Pem| match pem {
        Pem::File(path) => path.exists(),
        Pem::Text(_) => true,
    };
    // As the driver has it: a client certificate that is not there is none.
    let client = certificate.filter(is_there).zip(key);

    let checked = if system { Some("verify-full") } else { None };
    let mode = match mode.as_deref().or(checked) {
        _ if is_local => PgSslMode::Disable,
        Some("verify-full" | "verify-ca") => PgSslMode::VerifyFull,
        Some(weak) if system => {
            return Err(refused(&format!(
                "weak sslmode {weak:?} may not be used with sslrootcert=system (use \"verify-full\")"
            )));
        }
        Some("disable") => PgSslMode::Disable,
        Some("allow") => PgSslMode::Allow,
        Some("prefer") => PgSslMode::Prefer,
        None | Some("require") if root.as_ref().is_some_and(is_there) => PgSslMode::VerifyFull,
        None | Some("require") => PgSslMode::Require,
        Some(other) => {
            return Err(wrong(
                "sslmode",
                &format!(
                    "{other:?} is not supported; supported values are \"disable\", \"allow\", \"prefer\", \
                     \"require\", \"verify-ca\", and \"verify-full\""
                ),
            ));
        }
    };
    let root = if matches!(mode, PgSslMode::VerifyFull) {
        let of_system = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists()).map(Pem::File);
        root.or_else(of_system)
    } else {
        None
    };
    Ok((mode, root, client))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    fn parse(text: &str) -> Locator {
        Locator::parse(text, &nothing).unwrap()
    }

    fn check(text: &str, hosts: &[(&str, u16)], login: [&str; 3]) {
        let place = parse(text);
        let found: Vec<(&str, u16)> = place.hosts.iter().map(|(host, port)| (host.as_str(), *port)).collect();

        assert_eq!(found, hosts, "{text}");
        assert_eq!(
            [&*place.user, place.password.as_deref().unwrap_or(""), &*place.database],
            login,
            "{text}"
        );
    }

    #[test]
    fn keywords_and_urls() {
        check("", &[("localhost", 5432)], ["root", "", "root"]);
        check("dbname=spire user=me password=pw", &[("localhost", 5432)], ["me", "pw", "spire"]);
        check(
            r"host = db port=5433 user='a b' password='it\'s \\ x' dbname=d",
            &[("db", 5433)],
            ["a b", r"it's \ x", "d"],
        );
        check(r"host=/run/pg user=me password=a\ b dbname=d", &[("/run/pg", 5432)], ["me", "a b", "d"]);
        check(
            "postgres://me:p%40s%2Fs@db.internal/spire",
            &[("db.internal", 5432)],
            ["me", "p@s/s", "spire"],
        );
        check("postgresql://me@[::1]:5433/d?sslmode=disable", &[("::1", 5433)], ["me", "", "d"]);
        check("postgres:///d?host=/run/pg&user=me", &[("/run/pg", 5432)], ["me", "", "d"]);
        check("host=a,b port=1,2 user=u", &[("a", 1), ("b", 2)], ["u", "", "u"]);
        check("host=a,b port=9 user=u", &[("a", 9), ("b", 9)], ["u", "", "u"]);
        check("host=db hostaddr=10.0.0.1 user=u sslmode=disable", &[("10.0.0.1", 5432)], ["u", "", "u"]);
        check("user=first user=second", &[("localhost", 5432)], ["second", "", "second"]);
    }

    #[test]
    fn the_environment_comes_first() {
        let environment = |name: &str| match name {
            "PGHOST" => Some("from-env".to_owned()),
            "PGPASSWORD" => Some("secret".to_owned()),
            _ => None,
        };

        let place = Locator::parse("user=u", &environment).unwrap();
        let other = Locator::parse("user=u host=h", &environment).unwrap();

        assert_eq!(place.to_string(), "PostgreSQL database \"u\" at from-env:5432");
        assert_eq!(place.password.as_deref(), Some("secret"));
        assert_eq!(other.hosts, [("h".to_owned(), 5432)]);
    }

    #[test]
    fn how_the_connection_is_protected() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root.crt");
        std::fs::write(&root, "").unwrap();
        for (text, expected) in [
            ("", "Require"),
            ("sslmode=require", "Require"),
            ("sslmode=require sslrootcert=/nowhere", "Require"),
            (&format!("sslrootcert={}", root.display()), "VerifyFull"),
            ("sslmode=verify-ca", "VerifyFull"),
            ("sslmode=verify-full", "VerifyFull"),
            ("sslrootcert=system", "VerifyFull"),
            ("sslmode=prefer", "Prefer"),
            ("sslmode=allow", "Allow"),
            ("sslmode=disable", "Disable"),
            ("host=/run/pg sslmode=require", "Disable"),
        ] {
            assert_eq!(format!("{:?}", parse(&format!("host=h {text} user=u")).mode), expected, "{text}");
        }
    }

    #[test]
    fn settings_of_the_session_are_passed_on() {
        let place = parse("user=u search_path=spire options='-c geqo=off --work_mem=8MB'");

        let text = |pair: &(String, String)| format!("{}={}", pair.0, pair.1);
        let settings: Vec<String> = place.settings.iter().map(text).collect();
        assert_eq!(settings, ["geqo=off", "work_mem=8MB", "search_path=spire"]);
        assert_eq!(parse("user=u connect_timeout=7").connect_timeout, Some(Duration::from_secs(7)));
    }

    #[test]
    fn what_cannot_be_is_refused_without_the_password() {
        for (text, expected) in [
            ("host", "missing \"=\""),
            ("password='pw7", "unterminated quoted string"),
            ("password=pw7\\", "missing character after backslash"),
            ("password=pw7 sslmode=maybe", "\"maybe\" is not supported"),
            ("password=pw7 port=x", "wrong value for \"port\""),
            ("password=pw7 host=a,b port=1,2,3", "could not match 3 port numbers to 2 hosts"),
            ("password=pw7 service=s", "service is not supported"),
            ("password=pw7 client_encoding=latin1", "unsupported client_encoding"),
            ("password=pw7 sslrootcert=system sslmode=require", "weak sslmode"),
            ("password=pw7 target_session_attrs=standby", "target_session_attrs=standby"),
            ("postgres://me:pw7/x@db/d", "invalid port"),
        ] {
            let error = Locator::parse(text, &nothing).err().unwrap().to_string();

            assert!(error.starts_with("datastore-sql: pq: ") && error.contains(expected), "{text}: {error}");
            assert!(!error.contains("pw7"), "{error}");
        }
    }
}
