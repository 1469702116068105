//! `run`.

use config::{AgentConfig, AgentFlags};

use crate::cli::flags::{Flag, Flags, Kind, flag, flag_or};
use crate::cli::{Command, Failure, FlagError, Printer, refused, unbuilt};
use crate::programs::{self, Crashed};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "run",
        about: "Runs the agent",
        flags: run_flags(),
        on_flag_error: FlagError::Twice(""),
        action: run,
    }]
}

/// The flags of `run` and `validate`.
pub(super) fn run_flags() -> Vec<Flag> {
    vec![
        flag_or("config", Kind::Text, "conf/agent/agent.conf", "Path to the configuration file"),
        flag("dataDir", Kind::Text, "Directory for runtime data"),
        flag("joinToken", Kind::Text, "A join token that the server has generated"),
        flag("joinTokenFile", Kind::Text, "Path to a file with a join token that the server has generated"),
        flag("logFile", Kind::Text, "File to write logs to"),
        flag("logFormat", Kind::Text, "'text' or 'json'"),
        flag("logLevel", Kind::Text, "'debug', 'info', 'warn', or 'error'"),
        flag("logSourceLocation", Kind::Bool, "Say in log lines where in the program they come from"),
        flag("serverAddress", Kind::Text, "IP address or DNS name of the server"),
        flag("serverPort", Kind::Int, "Port of the server"),
        flag("trustDomain", Kind::Text, "The trust domain that this agent belongs to"),
        flag("disableWorkloadAPI", Kind::Bool, "Do not serve the Workload API"),
        flag("disableSDSAPI", Kind::Bool, "Do not serve Envoy's secret discovery"),
        flag("trustBundle", Kind::Text, "Path to the server's trust bundle"),
        flag("trustBundleUrl", Kind::Text, "Address to fetch the server's trust bundle from"),
        flag("trustBundleFormat", Kind::Text, "Format of the first trust bundle, \"pem\" or \"spiffe\""),
        flag("allowUnauthenticatedVerifiers", Kind::Bool, "Give X.509 bundles to unregistered clients"),
        flag("insecureBootstrap", Kind::Bool, "Believe the first server that answers"),
        flag("rebootstrapMode", Kind::Text, "'never', 'auto', or 'always'"),
        flag(
            "rebootstrapDelay",
            Kind::Text,
            "How long to wait after a certificate mismatch before rebootstrapping",
        ),
        flag("expandEnv", Kind::Bool, "Expand environment variables in the configuration file"),
        flag("socketPath", Kind::Text, "Path of the socket of the Workload API"),
    ]
}

/// What the flags say.
pub(super) fn given(flags: &Flags) -> AgentFlags {
    let text = |name: &str| flags.text(name).to_owned();
    AgentFlags {
        config: text("config"),
        expand_env: flags.is_on("expandEnv"),
        data_dir: text("dataDir"),
        join_token: text("joinToken"),
        join_token_file: text("joinTokenFile"),
        log_file: text("logFile"),
        log_format: text("logFormat"),
        log_level: text("logLevel"),
        log_source_location: flags.is_on("logSourceLocation"),
        server_address: text("serverAddress"),
        server_port: flags.int("serverPort"),
        socket_path: text("socketPath"),
        trust_domain: text("trustDomain"),
        disable_workload_api: flags.is_on("disableWorkloadAPI"),
        disable_sds_api: flags.is_on("disableSDSAPI"),
        trust_bundle: text("trustBundle"),
        trust_bundle_url: text("trustBundleUrl"),
        trust_bundle_format: text("trustBundleFormat"),
        allow_unauthenticated_verifiers: flags.is_on("allowUnauthenticatedVerifiers"),
        insecure_bootstrap: flags.is_on("insecureBootstrap"),
        rebootstrap_mode: text("rebootstrapMode"),
        rebootstrap_delay: text("rebootstrapDelay"),
    }
}

fn run(flags: &Flags, _: &mut Printer) -> Result<(), Failure> {
    let loaded = AgentConfig::load(&given(flags)).map_err(|error| Failure::Bare(refused(&error)))?;
    unbuilt("agent", &loaded.unbuilt)?;
    let log = programs::start_log(&loaded.config.log, &loaded.notes).map_err(Failure::Bare)?;
    programs::run_agent(loaded.config, log).map_err(|Crashed| Failure::Exit(1))
}
