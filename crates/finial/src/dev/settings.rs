//! The configurations of a throw-away trust domain, as files and as the programs take them.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use config::{AgentConfig, AgentFlags, ServerConfig, ServerFlags};
use spiffe::TrustDomain;

use super::plane::Paths;

/// The server's configuration file.
fn server_text(trust_domain: &TrustDomain, paths: &Paths, port: u16) -> String {
    format!(
        r#"server {{
    trust_domain = "{trust_domain}"
    bind_address = "127.0.0.1"
    bind_port = {port}
    socket_path = {socket}
    data_dir = {data}
}}

plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = {database}
        }}
    }}
    KeyManager "disk" {{
        plugin_data {{ keys_path = {keys} }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
}}
"#,
        socket = quoted(&paths.server_socket),
        data = quoted(&paths.server_data),
        database = quoted(&paths.server_data.join("datastore.sqlite3")),
        keys = quoted(&paths.server_data.join("keys.json")),
    )
}

/// The agent's configuration file, without the join token, which is used once.
fn agent_text(trust_domain: &TrustDomain, paths: &Paths, port: u16) -> String {
    format!(
        r#"agent {{
    trust_domain = "{trust_domain}"
    server_address = "127.0.0.1"
    server_port = {port}
    socket_path = {socket}
    admin_socket_path = {admin}
    data_dir = {data}
    trust_bundle_path = {bundle}
}}

plugins {{
    KeyManager "disk" {{
        plugin_data {{ directory = {data} }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{}}
    }}
}}
"#,
        socket = quoted(&paths.workload_socket),
        admin = quoted(&paths.admin_socket),
        data = quoted(&paths.agent_data),
        bundle = quoted(&paths.bundle),
    )
}

/// The server's configuration, checked, with SPIRE's port in place of the one that is not known yet.
pub(super) fn server(trust_domain: &TrustDomain, paths: &Paths) -> Result<ServerConfig> {
    write_server(trust_domain, paths, 8081)?;
    let config = paths.server_conf.display().to_string();
    let flags = ServerFlags { config, ..ServerFlags::default() };
    Ok(ServerConfig::load(&flags)?.config)
}

/// Writes the server's configuration file.
pub(super) fn write_server(trust_domain: &TrustDomain, paths: &Paths, port: u16) -> Result<()> {
    write(&paths.server_conf, &server_text(trust_domain, paths, port))
}

/// The agent's configuration, written and checked, with its join token.
pub(super) fn agent(
    trust_domain: &TrustDomain,
    paths: &Paths,
    port: u16,
    join_token: String,
) -> Result<AgentConfig> {
    write(&paths.agent_conf, &agent_text(trust_domain, paths, port))?;
    let config = paths.agent_conf.display().to_string();
    let flags = AgentFlags { config, join_token, ..AgentFlags::default() };
    Ok(AgentConfig::load(&flags)?.config)
}

/// Writes a file that only this user may read.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A path as a string of the configuration language.
fn quoted(path: &Path) -> String {
    let escaped = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}
