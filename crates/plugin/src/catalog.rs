//! Loads the plugins that a configuration declares.
//!
//! Plugins load in the order of the file. The first that fails ends it, and so does a type with too
//! few or too many plugins; texts are those of SPIRE where it has one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use spiffe::TrustDomain;

use crate::reconfigure::{self, Made, Reconfigurables, Slot, hash};
use crate::{
    AgentNodeAttestor, BuiltIn, CredentialComposer, Host, KeyManager, Plugin, PluginConfig, PluginError,
    PluginKind, ServerNodeAttestor, UpstreamAuthority, WorkloadAttestor, composer, keymanager, nodeattestor,
    upstream, workloadattestor,
};

/// One plugin block of a configuration.
#[derive(Clone, Debug)]
pub struct Declaration {
    /// The type as written.
    pub kind: String,
    /// The name as written.
    pub name: String,
    /// `plugin_cmd`: the program of an external plugin; empty for a built-in.
    pub command: String,
    /// `enabled`; plugins that are not are skipped and not counted.
    pub enabled: bool,
    /// Where the plugin's own configuration is.
    pub data: Data,
}

/// Where a plugin's own configuration is.
#[derive(Clone, Debug)]
pub enum Data {
    /// The block has none.
    Absent,
    /// `plugin_data`, as HCL text.
    Inline(String),
    /// `plugin_data_file`.
    File(PathBuf),
}

/// The built-in plugins of the server, by type.
#[derive(Clone, Copy)]
pub struct ServerBuiltIns {
    /// Key managers.
    pub key_managers: &'static [BuiltIn<dyn KeyManager>],
    /// Node attestors, the server's half.
    pub node_attestors: &'static [BuiltIn<dyn ServerNodeAttestor>],
    /// Upstream authorities.
    pub upstream_authorities: &'static [BuiltIn<dyn UpstreamAuthority>],
    /// Credential composers.
    pub credential_composers: &'static [BuiltIn<dyn CredentialComposer>],
}

/// The built-in plugins of the agent, by type.
#[derive(Clone, Copy)]
pub struct AgentBuiltIns {
    /// Key managers.
    pub key_managers: &'static [BuiltIn<dyn KeyManager>],
    /// Node attestors, the agent's half.
    pub node_attestors: &'static [BuiltIn<dyn AgentNodeAttestor>],
    /// Workload attestors.
    pub workload_attestors: &'static [BuiltIn<dyn WorkloadAttestor>],
}

/// The loaded plugins of a server.
pub struct ServerPlugins {
    /// The key manager.
    pub key_manager: Arc<dyn KeyManager>,
    /// The node attestors by name.
    pub node_attestors: BTreeMap<String, Arc<dyn ServerNodeAttestor>>,
    /// The upstream authority, if there is one.
    pub upstream_authority: Option<Arc<dyn UpstreamAuthority>>,
    /// The credential composers in the order of the file.
    pub credential_composers: Vec<Arc<dyn CredentialComposer>>,
    /// Those that are configured by files of their own.
    pub reconfigurables: Reconfigurables,
}

/// The loaded plugins of an agent.
pub struct AgentPlugins {
    /// The key manager.
    pub key_manager: Arc<dyn KeyManager>,
    /// The node attestor.
    pub node_attestor: Arc<dyn AgentNodeAttestor>,
    /// The workload attestors in the order of the file.
    pub workload_attestors: Vec<Arc<dyn WorkloadAttestor>>,
    /// Those that are configured by files of their own.
    pub reconfigurables: Reconfigurables,
}

/// Why the plugins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No program has plugins of this type.
    #[error("unsupported plugin type {kind:?}")]
    UnknownKind {
        /// The type as written.
        kind: String,
    },
    /// The plugin is neither here nor in SPIRE.
    #[error("failed to load plugin {name:?}: no built-in plugin {name:?} for type \"{kind}\"")]
    UnknownName {
        /// The name as written.
        name: String,
        /// Its type.
        kind: PluginKind,
    },
    /// SPIRE has this plugin, Finial does not yet.
    #[error("failed to load plugin {name:?}: the {kind} plugin {name:?} is not part of this version")]
    NotBuilt {
        /// The name as written.
        name: String,
        /// Its type.
        kind: PluginKind,
    },
    /// A plugin that is a program of its own.
    #[error(
        "failed to load plugin {name:?}: external plugins are not part of this version; \
         remove plugin_cmd from the {kind} {name:?}"
    )]
    External {
        /// The name as written.
        name: String,
        /// Its type.
        kind: PluginKind,
    },
    /// The name `join_token` belongs to the program.
    #[error("the built-in join_token node attestor cannot be overridden by an external plugin")]
    JoinTokenOverridden,
    /// The file with its configuration cannot be read.
    #[error("failed to configure plugin {name:?}: failed to load plugin data: {reason}")]
    DataFile {
        /// The plugin.
        name: String,
        /// What the system said, with the path.
        reason: String,
    },
    /// The plugin refused its configuration or could not start.
    #[error("failed to configure plugin {name:?}: rpc error: code = {} desc = {}", error.code, error.message)]
    Refused {
        /// The plugin.
        name: String,
        /// Why; not marked with type and name, as they stand before it.
        error: PluginError,
    },
    /// Too few or too many plugins of a type.
    #[error("plugin type \"{kind}\" constraint not satisfied: {wanted} but got {count}")]
    Count {
        /// The type.
        kind: PluginKind,
        /// What is expected.
        wanted: &'static str,
        /// How many there are.
        count: usize,
    },
}

/// Loads the plugins of a server. The datastore is no plugin of the catalog: its block is skipped.
///
/// # Errors
/// The first plugin that cannot be loaded, or the first type with a wrong number of them.
pub async fn load_server(
    declarations: &[Declaration],
    built_ins: ServerBuiltIns,
    trust_domain: &TrustDomain,
    host: &Host,
) -> Result<ServerPlugins, CatalogError> {
    check_join_token(declarations)?;
    let mut loader = Loader { trust_domain, host, reconfigurables: Reconfigurables::default() };
    let mut key_managers = Vec::new();
    let mut node_attestors = BTreeMap::new();
    let mut upstream_authorities: Vec<Arc<dyn UpstreamAuthority>> = Vec::new();
    let mut credential_composers: Vec<Arc<dyn CredentialComposer>> = Vec::new();
    for declaration in declarations {
        let kind = match PluginKind::parse(&declaration.kind) {
            Some(PluginKind::SvidStore | PluginKind::WorkloadAttestor) | None => {
                return Err(told(CatalogError::UnknownKind { kind: declaration.kind.clone() }, declaration));
            }
            Some(kind) => kind,
        };
        if !declaration.enabled {
            continue;
        }
        match kind {
            PluginKind::DataStore => {}
            PluginKind::KeyManager => {
                let plugin = loader.load(built_ins.key_managers, kind, SERVER_KNOWN, declaration).await?;
                key_managers.push(plugin);
            }
            PluginKind::NodeAttestor => {
                let plugin = loader.load(built_ins.node_attestors, kind, SERVER_KNOWN, declaration).await?;
                let marked: Arc<dyn ServerNodeAttestor> = Arc::new(nodeattestor::MarkedServer(plugin));
                node_attestors.insert(declaration.name.clone(), marked);
            }
            PluginKind::UpstreamAuthority => {
                let plugin =
                    loader.load(built_ins.upstream_authorities, kind, SERVER_KNOWN, declaration).await?;
                upstream_authorities.push(Arc::new(upstream::Marked(plugin)));
            }
            PluginKind::CredentialComposer => {
                let plugin =
                    loader.load(built_ins.credential_composers, kind, SERVER_KNOWN, declaration).await?;
                credential_composers.push(Arc::new(composer::Marked(plugin)));
            }
            PluginKind::BundlePublisher | PluginKind::Notifier => {
                return Err(told(missing(kind, SERVER_KNOWN, declaration), declaration));
            }
            PluginKind::SvidStore | PluginKind::WorkloadAttestor => {}
        }
    }
    let key_manager = exactly_one(PluginKind::KeyManager, key_managers)?;
    let count = upstream_authorities.len();
    if count > 1 {
        let kind = PluginKind::UpstreamAuthority;
        return Err(CatalogError::Count { kind, wanted: "expected at most 1", count });
    }
    Ok(ServerPlugins {
        key_manager: Arc::new(keymanager::Marked(key_manager)),
        node_attestors,
        upstream_authority: upstream_authorities.pop(),
        credential_composers,
        reconfigurables: loader.reconfigurables,
    })
}

/// Loads the plugins of an agent.
///
/// # Errors
/// The first plugin that cannot be loaded, or the first type with a wrong number of them.
pub async fn load_agent(
    declarations: &[Declaration],
    built_ins: AgentBuiltIns,
    trust_domain: &TrustDomain,
    host: &Host,
) -> Result<AgentPlugins, CatalogError> {
    check_join_token(declarations)?;
    let mut loader = Loader { trust_domain, host, reconfigurables: Reconfigurables::default() };
    let mut key_managers = Vec::new();
    let mut node_attestors = Vec::new();
    let mut workload_attestors: Vec<Arc<dyn WorkloadAttestor>> = Vec::new();
    for declaration in declarations {
        let kind = PluginKind::parse(&declaration.kind)
            .filter(|kind| AGENT_KINDS.contains(kind))
            .ok_or_else(|| told(CatalogError::UnknownKind { kind: declaration.kind.clone() }, declaration))?;
        if !declaration.enabled {
            continue;
        }
        match kind {
            PluginKind::KeyManager => {
                let plugin = loader.load(built_ins.key_managers, kind, AGENT_KNOWN, declaration).await?;
                key_managers.push(plugin);
            }
            PluginKind::NodeAttestor => {
                let plugin = loader.load(built_ins.node_attestors, kind, AGENT_KNOWN, declaration).await?;
                node_attestors.push(plugin);
            }
            PluginKind::WorkloadAttestor => {
                let plugin =
                    loader.load(built_ins.workload_attestors, kind, AGENT_KNOWN, declaration).await?;
                workload_attestors.push(Arc::new(workloadattestor::Marked(plugin)));
            }
            PluginKind::BundlePublisher
            | PluginKind::CredentialComposer
            | PluginKind::DataStore
            | PluginKind::Notifier
            | PluginKind::SvidStore
            | PluginKind::UpstreamAuthority => {
                return Err(told(missing(kind, AGENT_KNOWN, declaration), declaration));
            }
        }
    }
    let key_manager = exactly_one(PluginKind::KeyManager, key_managers)?;
    let node_attestor = exactly_one(PluginKind::NodeAttestor, node_attestors)?;
    if workload_attestors.is_empty() {
        let kind = PluginKind::WorkloadAttestor;
        return Err(CatalogError::Count { kind, wanted: "expected at least 1", count: 0 });
    }
    Ok(AgentPlugins {
        key_manager: Arc::new(keymanager::Marked(key_manager)),
        node_attestor: Arc::new(nodeattestor::MarkedAgent(node_attestor)),
        workload_attestors,
        reconfigurables: loader.reconfigurables,
    })
}

struct Loader<'a> {
    trust_domain: &'a TrustDomain,
    host: &'a Host,
    reconfigurables: Reconfigurables,
}

impl Loader<'_> {
    async fn load<T: Plugin + ?Sized + 'static>(
        &mut self,
        built_ins: &[BuiltIn<T>],
        kind: PluginKind,
        known: &[(PluginKind, &[&str])],
        declaration: &Declaration,
    ) -> Result<Slot<T>, CatalogError> {
        let loaded = self.load_quietly(built_ins, kind, known, declaration).await;
        loaded.map_err(|error| told(error, declaration))
    }

    async fn load_quietly<T: Plugin + ?Sized + 'static>(
        &mut self,
        built_ins: &[BuiltIn<T>],
        kind: PluginKind,
        known: &[(PluginKind, &[&str])],
        declaration: &Declaration,
    ) -> Result<Slot<T>, CatalogError> {
        if !declaration.command.is_empty() {
            return Err(CatalogError::External { name: declaration.name.clone(), kind });
        }
        let Some(built_in) = built_ins.iter().find(|built_in| built_in.name == declaration.name) else {
            return Err(missing(kind, known, declaration));
        };
        let config = PluginConfig {
            name: declaration.name.clone(),
            trust_domain: self.trust_domain.clone(),
            data: read(declaration)?,
        };
        let data = config.data.clone();
        let plugin = (built_in.load)(config, self.host.clone())
            .await
            .map_err(|error| CatalogError::Refused { name: declaration.name.clone(), error })?;
        let is_in_a_file = matches!(declaration.data, Data::File(_));
        tracing::info!(
            external = false,
            hash = is_in_a_file.then(|| hash(&data)),
            plugin_name = %declaration.name,
            plugin_type = %kind,
            reconfigurable = is_in_a_file,
            subsystem_name = "catalog",
            "Configured plugin"
        );
        tracing::info!(
            external = false,
            plugin_name = %declaration.name,
            plugin_type = %kind,
            subsystem_name = "catalog",
            "Plugin loaded"
        );
        let Data::File(path) = &declaration.data else { return Ok(Slot::fixed(plugin)) };
        let made = Made {
            kind,
            name: declaration.name.clone(),
            trust_domain: self.trust_domain.clone(),
            host: self.host.clone(),
            path: path.clone(),
            load: built_in.load,
        };
        Ok(self.reconfigurables.watch(plugin, made, &data))
    }
}

/// Logs which plugin it is that ends the start, as SPIRE does before its programs say why they end.
fn told(error: CatalogError, declaration: &Declaration) -> CatalogError {
    let text = error.to_string();
    // Type and name stand beside it.
    let cause = text.split_once("\": ").map(|(_, cause)| cause);
    macro_rules! log {
        ($message:literal) => {
            tracing::error!(
                error = cause,
                external = !declaration.command.is_empty(),
                plugin_name = %declaration.name,
                plugin_type = %declaration.kind,
                subsystem_name = "catalog",
                $message
            )
        };
    }
    match &error {
        CatalogError::UnknownKind { .. } => log!("Unsupported plugin type"),
        CatalogError::UnknownName { .. } | CatalogError::NotBuilt { .. } | CatalogError::External { .. } => {
            log!("Failed to load plugin");
        }
        CatalogError::DataFile { .. } | CatalogError::Refused { .. } => log!("Failed to configure plugin"),
        CatalogError::JoinTokenOverridden | CatalogError::Count { .. } => {}
    }
    error
}

fn check_join_token(declarations: &[Declaration]) -> Result<(), CatalogError> {
    let overrides = |declaration: &Declaration| {
        declaration.enabled
            && !declaration.command.is_empty()
            && declaration.kind == PluginKind::NodeAttestor.as_str()
            && declaration.name == "join_token"
    };
    if declarations.iter().any(overrides) { Err(CatalogError::JoinTokenOverridden) } else { Ok(()) }
}

fn missing(kind: PluginKind, known: &[(PluginKind, &[&str])], declaration: &Declaration) -> CatalogError {
    let name = declaration.name.clone();
    if !declaration.command.is_empty() {
        return CatalogError::External { name, kind };
    }
    let is_known = known.iter().any(|(of, names)| *of == kind && names.contains(&name.as_str()));
    if is_known { CatalogError::NotBuilt { name, kind } } else { CatalogError::UnknownName { name, kind } }
}

fn read(declaration: &Declaration) -> Result<String, CatalogError> {
    match &declaration.data {
        Data::Absent => Ok(String::new()),
        Data::Inline(text) => Ok(text.clone()),
        Data::File(path) => reconfigure::read(path)
            .map_err(|reason| CatalogError::DataFile { name: declaration.name.clone(), reason }),
    }
}

fn exactly_one<T>(kind: PluginKind, mut plugins: Vec<T>) -> Result<T, CatalogError> {
    let count = plugins.len();
    match plugins.pop() {
        Some(plugin) if count == 1 => Ok(plugin),
        _ => Err(CatalogError::Count { kind, wanted: "expected exactly 1", count }),
    }
}

const AGENT_KINDS: [PluginKind; 4] =
    [PluginKind::KeyManager, PluginKind::NodeAttestor, PluginKind::SvidStore, PluginKind::WorkloadAttestor];

/// The plugins that SPIRE's server has, so that one which is not here is told from a misspelt one.
const SERVER_KNOWN: &[(PluginKind, &[&str])] = &[
    (
        PluginKind::BundlePublisher,
        &["aws_rolesanywhere_trustanchor", "aws_s3", "azure_blob", "gcp_cloudstorage", "k8s_configmap"],
    ),
    (PluginKind::CredentialComposer, &["uniqueid"]),
    (PluginKind::KeyManager, &["aws_kms", "azure_key_vault", "disk", "gcp_kms", "hashicorp_vault", "memory"]),
    (
        PluginKind::NodeAttestor,
        &[
            "aws_iid",
            "azure_imds",
            "azure_msi",
            "gcp_iit",
            "http_challenge",
            "join_token",
            "k8s_psat",
            "sshpop",
            "tpm_devid",
            "x509pop",
        ],
    ),
    (PluginKind::Notifier, &["gcs_bundle", "k8sbundle"]),
    (
        PluginKind::UpstreamAuthority,
        &["aws_pca", "awssecret", "cert-manager", "disk", "gcp_cas", "spire", "vault"],
    ),
];

/// The plugins that SPIRE's agent has.
const AGENT_KNOWN: &[(PluginKind, &[&str])] = &[
    (PluginKind::KeyManager, &["disk", "memory"]),
    (
        PluginKind::NodeAttestor,
        &[
            "aws_iid",
            "azure_imds",
            "azure_msi",
            "gcp_iit",
            "http_challenge",
            "join_token",
            "k8s_psat",
            "sshpop",
            "tpm_devid",
            "x509pop",
        ],
    ),
    (PluginKind::SvidStore, &["aws_secretsmanager", "gcp_secretmanager"]),
    (PluginKind::WorkloadAttestor, &["docker", "k8s", "slurm", "systemd", "unix", "windows"]),
];
