//! `logger get`, `set`, `reset`.

use proto::spire::server::logger::logger_client::LoggerClient;
use proto::spire::server::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};

use crate::cli::flags::{Flags, Kind, flag};
use crate::cli::rpc::{self, client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, logger};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let level = flag("level", Kind::Text, "The new log level: panic, fatal, error, warn, info, debug, trace");
    let command = |name, about, flags: &[_], action| Command {
        name,
        about,
        flags: server_flags_with_output(flags),
        on_flag_error: FlagError::Once,
        action,
    };
    vec![
        command("logger get", "Get the logger details", &[], get),
        command("logger set", "Set the log level", &[level], set),
        command("logger reset", "Reset the log level to that at launch", &[], reset),
    ]
}

fn get(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    with_server(flags, |dialed| async move {
        let reply = client!(LoggerClient<_>, dialed).get_logger(GetLoggerRequest {}).await;
        let reply = reply.map_err(|status| dialed.error("error fetching logger: ", &status))?;
        logger::print(flags, printer, &reply.into_inner())
    })
}

fn set(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    let new_level = logger::level(flags)?.into();
    with_server(flags, |dialed| async move {
        let reply = client!(LoggerClient<_>, dialed).set_log_level(SetLogLevelRequest { new_level }).await;
        let reply = reply.map_err(|status| dialed.error("failed to set log level: ", &status))?;
        logger::print(flags, printer, &reply.into_inner())
    })
}

fn reset(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    with_server(flags, |dialed| async move {
        let reply = client!(LoggerClient<_>, dialed).reset_log_level(ResetLogLevelRequest {}).await;
        let reply = reply.map_err(|status| dialed.error("failed to reset logger: ", &status))?;
        logger::print(flags, printer, &reply.into_inner())
    })
}
