//! `run`.

use config::{ServerConfig, ServerFlags};
use runtime::memory::Zeroing;

use crate::cli::flags::{Flag, Flags, Kind, flag};
use crate::cli::{Command, Failure, FlagError, Printer, refused, unbuilt};
use crate::programs::{self, Crashed};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "run",
        about: "Runs the server",
        flags: run_flags(),
        on_flag_error: FlagError::Twice(""),
        action: run,
    }]
}

/// The flags of `run` and `validate`.
pub(super) fn run_flags() -> Vec<Flag> {
    vec![
        flag("bindAddress", Kind::Text, "IP address or DNS name to listen on"),
        flag("serverPort", Kind::Int, "Port to listen on"),
        flag("config", Kind::Text, "Path to the configuration file"),
        flag("dataDir", Kind::Text, "Directory for runtime data"),
        flag("logFile", Kind::Text, "File to write logs to"),
        flag("logFormat", Kind::Text, "'text' or 'json'"),
        flag("logSourceLocation", Kind::Bool, "Say in log lines where in the program they come from"),
        flag("logLevel", Kind::Text, "'debug', 'info', 'warn', or 'error'"),
        flag("trustDomain", Kind::Text, "The trust domain that this server belongs to"),
        flag("expandEnv", Kind::Bool, "Expand environment variables in the configuration file"),
        flag("socketPath", Kind::Text, "Path of the socket of the server's local API"),
    ]
}

/// What the flags say.
pub(super) fn given(flags: &Flags) -> ServerFlags {
    let text = |name: &str| flags.text(name).to_owned();
    ServerFlags {
        config: text("config"),
        expand_env: flags.is_on("expandEnv"),
        bind_address: text("bindAddress"),
        server_port: flags.int("serverPort"),
        data_dir: text("dataDir"),
        log_file: text("logFile"),
        log_format: text("logFormat"),
        log_level: text("logLevel"),
        log_source_location: flags.is_on("logSourceLocation"),
        socket_path: text("socketPath"),
        trust_domain: text("trustDomain"),
    }
}

fn run(flags: &Flags, _: &mut Printer) -> Result<(), Failure> {
    // The file may hold the password of the database.
    let zeroing = Zeroing::begin();
    let loaded = ServerConfig::load(&given(flags)).map_err(|error| Failure::Bare(refused(&error)))?;
    drop(zeroing);
    unbuilt("server", &loaded.unbuilt)?;
    let log = programs::start_log(&loaded.config.log, &loaded.notes).map_err(Failure::Bare)?;
    programs::run_server(loaded.config, log).map_err(|Crashed| Failure::Exit(1))
}
