//! Connection strings as SPIRE's MySQL driver reads them:
//! `user:password@protocol(address)/database?parameter=value`.
//!
//! What is asked for and cannot be done is refused.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sqlx_core::Error;
use sqlx_core::connection::ConnectOptions as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::sql_str::AssertSqlSafe;
use sqlx_mysql::{MySqlConnectOptions, MySqlConnection, MySqlSslMode};

use crate::dialect::percent::percent_decoded;
use crate::{StoreError, TlsFiles};

/// Where the database is, and as whom to go there.
pub(crate) struct Locator {
    address: Address,
    user: String,
    password: String,
    database: String,
    mode: MySqlSslMode,
    tls: TlsFiles,
    collation: Option<String>,
    clear_password: bool,
    settings: Vec<(String, String)>,
    /// How long connecting may take.
    pub(crate) connect_timeout: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
enum Address {
    Tcp(String, u16),
    Socket(PathBuf),
}

impl Locator {
    /// Reads a connection string; `tls` are the files that the configuration names beside it.
    pub(crate) fn parse(text: &str, tls: &TlsFiles) -> Result<Self, StoreError> {
        let Some((before, after)) = text.rsplit_once('/') else {
            return Err(refused("invalid DSN: missing the slash separating the database name"));
        };
        let (database, parameters) = after.split_once('?').unwrap_or((after, ""));
        let (login, place) = before.rsplit_once('@').unwrap_or(("", before));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let mut place = Self {
            address: address(place)?,
            user: user.to_owned(),
            password: password.to_owned(),
            database: percent_decoded(database),
            mode: MySqlSslMode::Disabled,
            tls: tls.clone(),
            collation: None,
            clear_password: false,
            settings: Vec::new(),
            connect_timeout: None,
        };
        let mut parses_time = false;
        for (name, value) in parameters.split('&').filter_map(|pair| pair.split_once('=')) {
            if name == "parseTime" {
                parses_time = truth(name, value)?;
            } else {
                place.set(name, value)?;
            }
        }
        if !parses_time {
            return Err(refused("invalid mysql config: missing parseTime=true param in connection_string"));
        }
        let is_shown = tls.client_certificate.is_some() && tls.client_key.is_some();
        if tls.root.is_some() || is_shown {
            place.mode = MySqlSslMode::VerifyIdentity;
        }
        if !is_shown {
            (place.tls.client_certificate, place.tls.client_key) = (None, None);
        }
        place.look_at_files()?;
        Ok(place)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        match name {
            "tls" => {
                self.mode = match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => MySqlSslMode::VerifyIdentity,
                    "0" | "false" => MySqlSslMode::Disabled,
                    "skip-verify" => MySqlSslMode::Required,
                    "preferred" => MySqlSslMode::Preferred,
                    _ => return Err(refused("invalid value / unknown config name of parameter tls")),
                };
            }
            "timeout" => self.connect_timeout = Some(duration(name, value)?).filter(|time| !time.is_zero()),
            "collation" => self.collation = Some(word(name, value)?),
            "allowCleartextPasswords" => self.clear_password = truth(name, value)?,
            "loc" => {
                let zone = percent_decoded(value);
                if !matches!(zone.as_str(), "UTC" | "") {
                    return Err(refused(&format!(
                        "loc={zone} is not supported: times are stored in UTC; remove the parameter"
                    )));
                }
            }
            "compress" | "allowOldPasswords" | "serverPubKey" if !matches!(value, "0" | "false" | "") => {
                return Err(refused(&format!("parameter {name} is not supported; remove it")));
            }
            // What the driver does on its own side, and this one does not need or always does.
            "allowAllFiles"
            | "allowFallbackToPlaintext"
            | "allowNativePasswords"
            | "allowOldPasswords"
            | "charset"
            | "checkConnLiveness"
            | "clientFoundRows"
            | "columnsWithAlias"
            | "compress"
            | "connectionAttributes"
            | "interpolateParams"
            | "maxAllowedPacket"
            | "multiStatements"
            | "readTimeout"
            | "rejectReadOnly"
            | "serverPubKey"
            | "timeTruncate"
            | "writeTimeout" => {}
            // Anything else is a variable of the session.
            _ => self.settings.push((word(name, name)?, percent_decoded(value))),
        }
        Ok(())
    }

    /// Reads the named files once, to tell at start what is wrong with them.
    fn look_at_files(&self) -> Result<(), StoreError> {
        let unreadable = |path: &Option<PathBuf>| {
            path.as_ref().is_some_and(|path| {
                std::fs::read_to_string(path).map_or(true, |text| !text.contains("-----BEGIN "))
            })
        };
        if self.tls.root.as_ref().is_some_and(|path| !path.exists()) {
            return Err(refused("invalid mysql config: cannot find Root CA defined in root_ca_path"));
        }
        if unreadable(&self.tls.root) {
            return Err(refused("invalid mysql config: failed to parse Root CA defined in root_ca_path"));
        }
        if unreadable(&self.tls.client_certificate) || unreadable(&self.tls.client_key) {
            return Err(refused(
                "invalid mysql config: failed to load client certificate defined in client_cert_path and \
                 client_key_path",
            ));
        }
        Ok(())
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<MySqlConnection, Error> {
        let mut options = MySqlConnectOptions::new()
            .username(&self.user)
            .database(&self.database)
            .ssl_mode(self.mode)
            .enable_cleartext_plugin(self.clear_password)
            .statement_cache_capacity(256)
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .disable_statement_logging();
        if !self.password.is_empty() {
            options = options.password(&self.password);
        }
        options = match &self.address {
            Address::Tcp(host, port) => options.host(host).port(*port),
            Address::Socket(path) => options.socket(path),
        };
        if let Some(collation) = &self.collation {
            options = options.collation(collation);
        }
        if let Some(root) = &self.tls.root {
            options = options.ssl_ca(root);
        }
        if let (Some(certificate), Some(key)) = (&self.tls.client_certificate, &self.tls.client_key) {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        let mut link = options.connect().await?;
        for (name, value) in &self.settings {
            // The name is a word, the value an expression that the operator wrote.
            link.execute(AssertSqlSafe(format!("SET {name} = {value}"))).await?;
        }
        Ok(link)
    }
}

impl fmt::Display for Locator {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MySQL database {:?} at ", self.database)?;
        match &self.address {
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

fn refused(text: &str) -> StoreError {
    StoreError::Open(format!("datastore-sql: {text}"))
}

/// `tcp(host:port)`, `unix(/path)`; the default where there is nothing.
fn address(text: &str) -> Result<Address, StoreError> {
    let (protocol, address) = match text.split_once('(') {
        None => (text, ""),
        Some((protocol, address)) => match address.strip_suffix(')') {
            Some(address) => (protocol, address),
            None if address.contains(')') => {
                return Err(refused("invalid DSN: did you forget to escape a param value?"));
            }
            None => {
                return Err(refused("invalid DSN: network address not terminated (missing closing brace)"));
            }
        },
    };
    match protocol {
        "unix" if address.is_empty() => Ok(Address::Socket(PathBuf::from("/tmp/mysql.sock"))),
        "unix" => Ok(Address::Socket(PathBuf::from(address))),
        "" | "tcp" | "tcp4" | "tcp6" => {
            let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let (host, port) = match address.rsplit_once(':') {
                Some((host, port)) if host.ends_with(']') || !host.contains(':') => {
                    let port = port.parse().map_err(|_| refused("invalid DSN: no port number"))?;
                    (bare(host), port)
                }
                _ => (bare(address), 3306),
            };
            Ok(Address::Tcp(if host.is_empty() { "127.0.0.1".to_owned() } else { host }, port))
        }
        // Not the word itself: an unescaped password may have ended up there.
        _ => Err(refused("unsupported network protocol in the DSN; use tcp or unix")),
    }
}

fn truth(name: &str, value: &str) -> Result<bool, StoreError> {
    match value {
        "1" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(refused(&format!("invalid bool value of parameter {name}"))),
    }
}

fn word(name: &str, value: &str) -> Result<String, StoreError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'@');
    if value.is_empty() || !value.bytes().all(fits) {
        return Err(refused(&format!("invalid value of parameter {name}")));
    }
    Ok(value.to_owned())
}

/// A duration as Go writes it, such as `1m30s`.
fn duration(name: &str, value: &str) -> Result<Duration, StoreError> {
    let wrong = || refused(&format!("invalid duration of parameter {name}"));
    let mut total = 0.0;
    let mut rest = value;
    while !rest.is_empty() && rest != "0" {
        let end = rest.find(|letter: char| letter.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * seconds;
        rest = after;
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Locator, StoreError> {
        Locator::parse(text, &TlsFiles::default())
    }

    fn check(text: &str, address: &Address, login: [&str; 3]) {
        let place = parse(&format!("{text}?parseTime=true")).unwrap();

        assert_eq!(place.address, *address, "{text}");
        assert_eq!([&*place.user, &*place.password, &*place.database], login, "{text}");
    }

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    #[test]
    fn addresses_and_logins() {
        check("/", &tcp("127.0.0.1", 3306), ["", "", ""]);
        check("/spire", &tcp("127.0.0.1", 3306), ["", "", "spire"]);
        check("me@/spire", &tcp("127.0.0.1", 3306), ["me", "", "spire"]);
        check("me:p:w@tcp(db:3307)/spire", &tcp("db", 3307), ["me", "p:w", "spire"]);
        check("me:p@ss/w@tcp(db)/spire", &tcp("db", 3306), ["me", "p@ss/w", "spire"]);
        check("me@tcp([::1]:3307)/d", &tcp("::1", 3307), ["me", "", "d"]);
        check("me@tcp([::1])/d", &tcp("::1", 3306), ["me", "", "d"]);
        check("me@unix(/run/my.sock)/d%2Fe", &Address::Socket("/run/my.sock".into()), ["me", "", "d/e"]);
    }

    #[test]
    fn how_the_connection_is_protected() {
        for (parameter, expected) in [
            ("", "Disabled"),
            ("&tls=false", "Disabled"),
            ("&tls=true", "VerifyIdentity"),
            ("&tls=skip-verify", "Required"),
            ("&tls=preferred", "Preferred"),
        ] {
            let place = parse(&format!("me@tcp(h)/d?parseTime=true{parameter}")).unwrap();

            assert_eq!(format!("{:?}", place.mode), expected, "{parameter}");
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root.pem");
        std::fs::write(&root, "-----BEGIN CERTIFICATE-----").unwrap();
        let tls = TlsFiles { root: Some(root), ..TlsFiles::default() };
        let place = Locator::parse("me@tcp(h)/d?parseTime=true&tls=skip-verify", &tls).unwrap();
        assert_eq!(format!("{:?}", place.mode), "VerifyIdentity");
    }

    #[test]
    fn parameters() {
        let text = "me@tcp(h)/d?parseTime=1&timeout=1m30s&charset=utf8&sql_mode=%27ANSI%27&loc=UTC";

        let place = parse(text).unwrap();

        assert_eq!(place.connect_timeout, Some(Duration::from_secs(90)));
        assert_eq!(place.settings, [("sql_mode".to_owned(), "'ANSI'".to_owned())]);
        assert_eq!(place.to_string(), "MySQL database \"d\" at h:3306");
    }

    #[test]
    fn what_cannot_be_is_refused_without_the_password() {
        for (text, expected) in [
            ("me:pw7@tcp(h)", "missing the slash"),
            ("me:pw7@tcp(h/d?parseTime=true", "missing closing brace"),
            ("me:pw7@tcp(h)x)y/d?parseTime=true", "did you forget to escape"),
            ("me:pw7@quic(h)/d?parseTime=true", "unsupported network protocol"),
            ("me:pw7@tcp(h)/d", "missing parseTime=true"),
            ("me:pw7@tcp(h)/d?parseTime=false", "missing parseTime=true"),
            ("me:pw7@tcp(h)/d?parseTime=maybe", "invalid bool value"),
            ("me:pw7@tcp(h)/d?parseTime=true&tls=mine", "unknown config name"),
            ("me:pw7@tcp(h)/d?parseTime=true&timeout=soon", "invalid duration"),
            ("me:pw7@tcp(h)/d?parseTime=true&loc=Europe%2FBerlin", "loc=Europe/Berlin is not supported"),
            ("me:pw7@tcp(h)/d?parseTime=true&compress=true", "compress is not supported"),
            ("me:pw7@tcp(h)/d?parseTime=true&a;b=1", "invalid value of parameter"),
        ] {
            let error = parse(text).err().unwrap().to_string();

            assert!(error.starts_with("datastore-sql: ") && error.contains(expected), "{text}: {error}");
            assert!(!error.contains("pw7"), "{error}");
        }
        let tls = TlsFiles { root: Some("/nowhere.pem".into()), ..TlsFiles::default() };
        let error = Locator::parse("me@tcp(h)/d?parseTime=true", &tls).err().unwrap().to_string();
        assert!(error.ends_with("cannot find Root CA defined in root_ca_path"), "{error}");
    }
}
