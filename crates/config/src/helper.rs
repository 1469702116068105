//! The configuration of `spiffe-helper`.

use std::path::Path;

use serde::Deserialize;

use crate::ConfigError;
use crate::go::{quote, read_error};
use crate::hcl::{self, UnusedKeys};

/// The configuration of a helper.
#[derive(Clone, Debug)]
pub struct HelperConfig {
    /// `agent_address`, or what the environment or the default says.
    pub agent_address: String,
    /// `cmd`
    pub command: String,
    /// `cmd_args`, as written.
    pub command_args: String,
    /// `pid_file_name`
    pub pid_file: String,
    /// `renew_signal`
    pub renew_signal: String,
    /// `cert_dir`
    pub directory: String,
    /// Modes of the files.
    pub modes: FileModes,
    /// `svid_file_name`, `svid_key_file_name` and `svid_bundle_file_name`.
    pub x509: Option<[String; 3]>,
    /// `jwt_svids`
    pub jwt_svids: Vec<JwtFile>,
    /// `jwt_bundle_file_name`; empty for none.
    pub jwt_bundle_file: String,
    /// `add_intermediates_to_bundle`
    pub add_intermediates_to_bundle: bool,
    /// `include_federated_domains`
    pub include_federated_domains: bool,
    /// `omit_expired`
    pub omit_expired: bool,
    /// `daemon_mode`
    pub daemon_mode: bool,
    /// `hint`; empty for none.
    pub hint: String,
    /// `health_checks`: port, live path, ready path.
    pub health: Option<(u16, String, String)>,
}

/// The modes of the files that a helper writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileModes {
    /// `cert_file_mode`
    pub certificate: u32,
    /// `key_file_mode`
    pub key: u32,
    /// `jwt_bundle_file_mode`
    pub jwt_bundle: u32,
    /// `jwt_svid_file_mode`
    pub jwt_svid: u32,
}

/// One of `jwt_svids`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtFile {
    /// `jwt_audience`
    pub audience: String,
    /// `jwt_extra_audiences`
    pub extra_audiences: Vec<String>,
    /// `jwt_svid_file_name`
    pub file: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    add_intermediates_to_bundle: bool,
    agent_address: String,
    cmd: String,
    cmd_args: String,
    pid_file_name: String,
    cert_dir: String,
    cert_file_mode: i64,
    key_file_mode: i64,
    jwt_bundle_file_mode: i64,
    jwt_svid_file_mode: i64,
    include_federated_domains: bool,
    omit_expired: bool,
    renew_signal: String,
    daemon_mode: Option<bool>,
    health_checks: Health,
    hint: String,
    svid_file_name: String,
    svid_key_file_name: String,
    svid_bundle_file_name: String,
    jwt_svids: Vec<RawJwt>,
    jwt_bundle_file_name: String,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawJwt {
    jwt_audience: String,
    jwt_extra_audiences: Vec<String>,
    jwt_svid_file_name: String,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Health {
    listener_enabled: bool,
    bind_port: i64,
    liveness_path: String,
    readiness_path: String,
}

impl HelperConfig {
    /// Reads a file and checks all of it.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in the helper's words.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.to_string_lossy();
        let refused = |why: String| format!("failed to parse {}: {why}", quote(&shown));
        let text = std::fs::read_to_string(path).map_err(|error| refused(read_error(&shown, &error)))?;
        let raw: Raw = hcl::from_str(&text).map_err(|error| refused(error.to_string()))?;
        Ok(check(raw)?)
    }
}

fn check(raw: Raw) -> Result<HelperConfig, String> {
    if !raw.unused.0.is_empty() {
        return Err(format!("unknown top level key(s): {}", raw.unused.0.join(",")));
    }
    for (at, jwt) in raw.jwt_svids.iter().enumerate() {
        if !jwt.unused.0.is_empty() {
            return Err(format!("unknown key(s) in jwt_svids[{at}]: {}", jwt.unused.0.join(",")));
        }
    }
    for jwt in &raw.jwt_svids {
        if jwt.jwt_svid_file_name.is_empty() {
            return Err("'jwt_file_name' is required in 'jwt_svids'".into());
        }
        if jwt.jwt_audience.is_empty() {
            return Err("'jwt_audience' is required in 'jwt_svids'".into());
        }
    }
    let daemon_mode = raw.daemon_mode.unwrap_or(true);
    if !daemon_mode && !raw.pid_file_name.is_empty() {
        return Err("pid_file_name is set but daemon_mode is false. \
                    pid_file_name is only supported in daemon_mode"
            .into());
    }
    if !raw.pid_file_name.is_empty() && raw.renew_signal.is_empty() {
        return Err("must specify renew_signal when using pid_file_name".into());
    }
    let files = [raw.svid_file_name, raw.svid_key_file_name, raw.svid_bundle_file_name];
    let x509 = match files.iter().filter(|file| file.is_empty()).count() {
        0 => Some(files),
        3 => None,
        _ => {
            return Err("all or none of 'svid_file_name', 'svid_key_file_name', 'svid_bundle_file_name' \
                        must be specified"
                .into());
        }
    };
    if x509.is_none() && raw.jwt_svids.is_empty() && raw.jwt_bundle_file_name.is_empty() {
        return Err("at least one of the sets ('svid_file_name', 'svid_key_file_name', \
                    'svid_bundle_file_name'), 'jwt_svids', or 'jwt_bundle_file_name' must be fully specified"
            .into());
    }
    let modes = FileModes {
        certificate: mode(raw.cert_file_mode, 0o644, "cert")?,
        key: mode(raw.key_file_mode, 0o600, "key")?,
        jwt_bundle: mode(raw.jwt_bundle_file_mode, 0o600, "jwt bundle")?,
        jwt_svid: mode(raw.jwt_svid_file_mode, 0o600, "jwt svid")?,
    };
    let jwt_svids = raw.jwt_svids.into_iter().map(|jwt| JwtFile {
        audience: jwt.jwt_audience,
        extra_audiences: jwt.jwt_extra_audiences,
        file: jwt.jwt_svid_file_name,
    });
    Ok(HelperConfig {
        agent_address: agent_address(raw.agent_address),
        command: raw.cmd,
        command_args: raw.cmd_args,
        pid_file: raw.pid_file_name,
        renew_signal: raw.renew_signal,
        directory: raw.cert_dir,
        modes,
        x509,
        jwt_svids: jwt_svids.collect(),
        jwt_bundle_file: raw.jwt_bundle_file_name,
        add_intermediates_to_bundle: raw.add_intermediates_to_bundle,
        include_federated_domains: raw.include_federated_domains,
        omit_expired: raw.omit_expired,
        daemon_mode,
        hint: raw.hint,
        health: health(raw.health_checks)?,
    })
}

fn agent_address(set: String) -> String {
    let given = |address: &String| !address.is_empty();
    let default = || "/tmp/spire-agent/public/api.sock".to_owned();
    let from_environment = || std::env::var("SPIFFE_ENDPOINT_SOCKET").ok().filter(given);
    Some(set).filter(given).or_else(from_environment).unwrap_or_else(default)
}

fn mode(value: i64, default: u32, what: &str) -> Result<u32, String> {
    match value {
        0 => Ok(default),
        value => u32::try_from(value).map_err(|_| format!("{what} file mode must be positive")),
    }
}

fn health(raw: Health) -> Result<Option<(u16, String, String)>, String> {
    if !raw.listener_enabled {
        return Ok(None);
    }
    let port = match raw.bind_port {
        0 => 8081,
        port => u16::try_from(port).map_err(|_| "bind port must be positive".to_owned())?,
    };
    let or = |path: String, default: &str| if path.is_empty() { default.to_owned() } else { path };
    Ok(Some((port, or(raw.liveness_path, "/live"), or(raw.readiness_path, "/ready"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<HelperConfig, String> {
        check(hcl::from_str(text).map_err(|error| error.to_string())?)
    }

    fn refused(text: &str, why: &str) {
        assert_eq!(load(text).map(|_| ()), Err(why.to_owned()), "{text}");
    }

    #[test]
    fn defaults_are_filled_in() {
        let config = load(
            "jwt_bundle_file_name = \"b\" key_file_mode = 0640 health_checks { listener_enabled = true }",
        )
        .expect("it is good");

        assert!(config.daemon_mode);
        assert_eq!(
            config.modes,
            FileModes { certificate: 0o644, key: 0o640, jwt_bundle: 0o600, jwt_svid: 0o600 }
        );
        assert_eq!(config.health, Some((8081, "/live".to_owned(), "/ready".to_owned())));
    }

    #[test]
    fn incomplete_settings_are_refused() {
        refused("zip = 1 zap = 2", "unknown top level key(s): zap,zip");
        refused(
            "jwt_svids = [ { jwt_audience = \"a\" jwt_svid_file_name = \"f\" x = 1 } ]",
            "unknown key(s) in jwt_svids[0]: x",
        );
        refused("jwt_svids = [ { jwt_audience = \"a\" } ]", "'jwt_file_name' is required in 'jwt_svids'");
        refused("pid_file_name = \"p\"", "must specify renew_signal when using pid_file_name");
        refused(
            "svid_file_name = \"a\"",
            "all or none of 'svid_file_name', 'svid_key_file_name', 'svid_bundle_file_name' must be specified",
        );
        refused("jwt_bundle_file_name = \"b\" cert_file_mode = -1", "cert file mode must be positive");
    }
}
