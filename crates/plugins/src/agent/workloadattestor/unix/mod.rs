//! `unix`: user, groups and program of a local process, from its `/proc` directory.
//!
//! Everything is read through the pinned directory of [`Process`], so it is about the process that
//! opened the connection or it fails. The program is hashed through `/proc/<pid>/exe`, which is the
//! file that runs, whatever stands at its path by now.

mod accounts;
mod digests;

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
        let status = Status::of(caller)?;

        found.add("uid", &status.user);
        if let Some(name) = self.users.name(&status.user) {
            found.add("user", &name);
        }
        found.add("gid", &status.group);
        if let Some(name) = self.groups.name(&status.group) {
            found.add("group", &name);
        }
        for group in &status.supplementary {
            found.add("supplementary_gid", group);
            if let Some(name) = self.groups.name(group) {
                found.add("supplementary_group", &name);
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
                let digest = Digests::digest(&self.digests, program, caller, &status.user, limit).await?;
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
    fn add(&mut self, name: &str, value: &str) {
        self.selectors.push(Selector::new(self.kind, &format!("{name}:{value}")));
    }
}

/// What `/proc/<pid>/status` says of the credentials, all from one reading.
struct Status {
    user: String,
    group: String,
    supplementary: Vec<String>,
}

impl Status {
    fn of(process: &Process) -> Result<Self, PluginError> {
        let text = process
            .read_file("status")
            .map_err(|error| PluginError::internal(format!("failed to get process: {error}")))?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> Result<Self, PluginError> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|values| values.split_ascii_whitespace())
        };
        // Real, effective, saved, file system: the effective one counts.
        let effective = |name: &str| field(name)?.nth(1).map(str::to_owned);
        Ok(Self {
            user: effective("Uid")
                .ok_or_else(|| PluginError::internal("UIDs lookup: no UIDs for process"))?,
            group: effective("Gid")
                .ok_or_else(|| PluginError::internal("GIDs lookup: no GIDs for process"))?,
            supplementary: field("Groups").into_iter().flatten().map(str::to_owned).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_ids_count() {
        let status = Status::parse("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n").unwrap();

        assert_eq!((status.user.as_str(), status.group.as_str()), ("2", "6"));
        assert_eq!(status.supplementary, ["9", "10"]);
        assert_eq!(
            Status::parse("Gid:\t5\t6\t7\t8\n").err().unwrap().message,
            "UIDs lookup: no UIDs for process"
        );
    }
}
