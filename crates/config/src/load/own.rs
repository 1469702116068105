//! `experimental.finial`: what only these programs know. SPIRE ignores the block, so that one file
//! starts both.

use std::time::Duration;

use super::shared::span;
use crate::go::{Span, quote};
use crate::raw::agent as raw;
use crate::{AgentFinial, PluginBlock, url};

/// How many callers an agent holds that has nothing to serve yet, where nothing else is set.
const HELD_CALLERS: usize = 1000;
/// How long it holds them.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);

/// Checks an agent's block.
pub(super) fn agent(raw: &raw::Finial, plugins: &[PluginBlock]) -> Result<AgentFinial, String> {
    let held_callers = match raw.held_callers {
        None => HELD_CALLERS,
        Some(callers) => usize::try_from(callers)
            .map_err(|_| "experimental.finial.held_callers must not be negative".to_owned())?,
    };
    let hold_timeout =
        span(&raw.hold_timeout, || "could not parse experimental.finial.hold_timeout".to_owned())?;
    if hold_timeout.is_some_and(|timeout| timeout.0 < 0) {
        return Err("experimental.finial.hold_timeout must not be negative".to_owned());
    }
    let server_addresses = raw.server_addresses.iter().map(|text| server_address(text));
    Ok(AgentFinial {
        vault: raw.vault.unwrap_or_else(|| keeps_keys(plugins)),
        held_callers,
        hold_timeout: hold_timeout.map_or(HOLD_TIMEOUT, Span::to_duration),
        server_addresses: server_addresses.collect::<Result<_, _>>()?,
    })
}

/// Whether the agent's own key is on disk: where it is to go with the process, so is all else.
fn keeps_keys(plugins: &[PluginBlock]) -> bool {
    plugins.iter().any(|block| block.kind == "KeyManager" && block.name == "disk" && block.enabled)
}

fn server_address(text: &str) -> Result<(String, u16), String> {
    let refused = |why: &str| {
        format!("experimental.finial.server_addresses holds {}, which is no host:port: {why}", quote(text))
    };
    let (host, port) = url::host_and_port(text).map_err(|why| refused(&why))?;
    if host.is_empty() {
        return Err(refused("there is no host"));
    }
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| refused("there is no port"))?;
    Ok((host.trim_matches(['[', ']']).to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PluginData;

    fn key_manager(name: &str) -> Vec<PluginBlock> {
        vec![PluginBlock {
            kind: "KeyManager".to_owned(),
            name: name.to_owned(),
            command: String::new(),
            args: Vec::new(),
            checksum: String::new(),
            enabled: true,
            data: PluginData::Absent,
        }]
    }

    #[test]
    fn the_vault_goes_with_the_key_manager_unless_it_is_said_otherwise() {
        let vault = |name: &str, said| {
            agent(&raw::Finial { vault: said, ..Default::default() }, &key_manager(name)).unwrap().vault
        };

        assert!(vault("disk", None) && vault("memory", Some(true)));
        assert!(!vault("memory", None) && !vault("disk", Some(false)));
    }

    #[test]
    fn callers_are_held_for_half_a_minute_unless_it_is_said_otherwise() {
        let hold = |held_callers, timeout: &str| {
            let raw = raw::Finial { held_callers, hold_timeout: timeout.to_owned(), ..Default::default() };
            agent(&raw, &[]).map(|finial| (finial.held_callers, finial.hold_timeout.as_secs()))
        };

        assert_eq!(hold(None, ""), Ok((1000, 30)));
        assert_eq!(hold(Some(0), "2m"), Ok((0, 120)));
        assert!(hold(Some(-1), "").unwrap_err().contains("held_callers must not be negative"));
        assert!(hold(None, "-1s").unwrap_err().contains("hold_timeout must not be negative"));
        assert!(hold(None, "soon").unwrap_err().starts_with("could not parse"));
    }

    #[test]
    fn further_servers_have_a_host_and_a_port() {
        let addresses = |texts: &[&str]| {
            let server_addresses = texts.iter().map(ToString::to_string).collect();
            let raw = raw::Finial { server_addresses, ..Default::default() };
            agent(&raw, &[]).map(|finial| finial.server_addresses)
        };

        let read = addresses(&["two.example:8081", "[::1]:82"]).unwrap();
        assert_eq!(read, [("two.example".to_owned(), 8081), ("::1".to_owned(), 82)]);
        for wrong in ["two.example", ":8081", "two.example:", "two.example:0", "two.example:70000"] {
            assert!(addresses(&[wrong]).unwrap_err().contains("no host:port"), "{wrong}");
        }
    }
}
