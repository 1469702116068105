//! `unix`: user, groups and program of a local process.
//!
//! User and groups are those with which it connected, as the kernel noted them; of who did not connect,
//! and all else, they are read of the pinned [`Process`] in `/proc`, so it is about that process or it
//! fails. The program is hashed through `/proc/<pid>/exe`, which is the file that runs, whatever stands at
//! its path by now.

mod accounts;
mod digests;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use plugin::{BuiltIn, Host, Plugin, PluginConfig, PluginError, PluginInfo, PluginKind, WorkloadAttestor};
use runtime::peer::Process;
use serde::Deserialize;
use spiffe::Selector;

use self::accounts::Accounts;
use self::digests::Digests;
use crate::shared::settings;

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn WorkloadAttestor> = BuiltIn {
    name: "unix",
    load: |config, host| Box::pin(async move { Ok(Arc::new(load(&config, &host)?) as Arc<_>) }),
};

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Settings {
    discover_workload_path: bool,
    workload_size_limit: i64,
}

struct Unix {
    info: PluginInfo,
    settings: Settings,
    users: Accounts,
    groups: Accounts,
    digests: Arc<Digests>,
}

fn load(config: &PluginConfig, host: &Host) -> Result<Unix, PluginError> {
    Ok(Unix {
        info: PluginInfo::new(PluginKind::WorkloadAttestor, &config.name),
        settings: settings::decode(config, "failed to decode configuration")?,
        users: Accounts::at("/etc/passwd"),
        groups: Accounts::at("/etc/group"),
        digests: Arc::new(Digests::new(Arc::clone(&host.clock))),
    })
}

impl Plugin for Unix {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl WorkloadAttestor for Unix {
    async fn attest(&self, caller: &Process) -> Result<Vec<Selector>, PluginError> {
        let mut found = Found { kind: self.info.name(), selectors: Vec::new() };
        let credentials = caller
            .credentials()
            .map_err(|error| PluginError::internal(format!("failed to get process: {error}")))?;
        let (users, groups) = (self.users.names(), self.groups.names());

        found.add("uid", credentials.uid);
        if let Some(name) = users.get(&credentials.uid) {
            found.add("user", name);
        }
        found.add("gid", credentials.gid);
        if let Some(name) = groups.get(&credentials.gid) {
            found.add("group", name);
        }
        for group in &credentials.groups {
            found.add("supplementary_gid", group);
            if let Some(name) = groups.get(group) {
                found.add("supplementary_group", name);
            }
        }

        if self.settings.discover_workload_path {
            let pid = caller.pid();
            let path = caller.read_link("exe").map_err(|error| {
                PluginError::internal(format!("path lookup: readlink /proc/{pid}/exe: {error}"))
            })?;
            let path = path.to_str().ok_or_else(|| PluginError::internal("path lookup: not UTF-8"))?;
            found.add("path", path);

            if self.settings.workload_size_limit >= 0 {
                let program = caller.open_file("exe").map_err(|error| {
                    PluginError::internal(format!("SHA256 digest: open /proc/{pid}/exe: {error}"))
                })?;
                let limit = self.settings.workload_size_limit.unsigned_abs();
                let digest = Digests::digest(&self.digests, program, caller, credentials.uid, limit).await?;
                found.add("sha256", &digest);
            }
        }
        Ok(found.selectors)
    }
}

struct Found<'a> {
    kind: &'a str,
    selectors: Vec<Selector>,
}

impl Found<'_> {
    fn add(&mut self, name: &str, value: impl fmt::Display) {
        self.selectors.push(Selector::new(self.kind, &format!("{name}:{value}")));
    }
}
