//! The programs behind `run`: a checked configuration in, a running server or agent out.

use config::{AgentConfig, LogConfig, Note, NoteLevel, ServerConfig};
use runtime::log::{Format, Level, Log, Options, Output};

/// Why a program did not run to its end; the text is for the terminal.
#[derive(Debug)]
pub(crate) struct NotRun(pub(crate) String);

/// Runs a server until it is told to stop.
pub(crate) fn run_server(config: ServerConfig, log: Log) -> Result<(), NotRun> {
    drop((config, log));
    Err(NotRun("cannot start server: the server is not part of this build".to_owned()))
}

/// Runs an agent until it is told to stop.
pub(crate) fn run_agent(config: AgentConfig, log: Log) -> Result<(), NotRun> {
    drop((config, log));
    Err(NotRun("cannot start agent: the agent is not part of this build".to_owned()))
}

/// Starts the log of the program and writes what loading the configuration had to say.
pub(crate) fn start_log(config: &LogConfig, notes: &[Note]) -> Result<Log, String> {
    let options = Options {
        level: Level::parse(&config.level).map_err(|error| format!("could not start logger: {error}"))?,
        format: Format::parse(&config.format).map_err(|error| format!("could not start logger: {error}"))?,
        output: config.file.clone().map_or(Output::Stdout, Output::File),
    };
    let log = Log::install(&options).map_err(|error| error.to_string())?;
    notes.iter().for_each(write);
    Ok(log)
}

fn write(note: &Note) {
    let alert = note.field("alert").map(|_| true);
    let alert_type = note.field("alert_type");
    let (keys, section, trust_domain) =
        (note.field("keys"), note.field("section"), note.field("trust_domain"));
    let message = &note.message;
    match note.level {
        NoteLevel::Error => tracing::error!(alert, alert_type, keys, section, trust_domain, "{message}"),
        NoteLevel::Warning => tracing::warn!(alert, alert_type, keys, section, trust_domain, "{message}"),
        NoteLevel::Info => tracing::info!(alert, alert_type, keys, section, trust_domain, "{message}"),
    }
}
