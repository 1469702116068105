//! `logger get`, `set`, `reset`.

use proto::spire::agent::logger::logger_client::LoggerClient;
use proto::spire::agent::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};

use super::{admin_flags, dial_admin};
use crate::cli::flags::{Flags, Kind, flag};
use crate::cli::rpc::{self, client};
use crate::cli::{Command, Failure, FlagError, Printer, logger};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let level = flag("level", Kind::Text, "The new log level: panic, fatal, error, warn, info, debug, trace");
    let command = |name, about, flags: &[_], action| Command {
        name,
        about,
        flags: admin_flags(flags),
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
    rpc::block_on(async {
        let dialed = dial_admin(flags);
        let reply = client!(LoggerClient<_>, dialed).get_logger(GetLoggerRequest {}).await;
        let reply = reply.map_err(|status| dialed.error("error fetching logger: ", &status))?;
        logger::print(flags, printer, &reply.into_inner())
    })
}

fn set(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let new_level = logger::level(flags)?.into();
    rpc::block_on(async {
        let dialed = dial_admin(flags);
        let reply = client!(LoggerClient<_>, dialed).set_log_level(SetLogLevelRequest { new_level }).await;
        let reply = reply.map_err(|status| dialed.error("failed to set log level: ", &status))?;
        logger::print(flags, printer, &reply.into_inner())
    })
}

fn reset(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::block_on(async {
        let dialed = dial_admin(flags);
        let reply = client!(LoggerClient<_>, dialed).reset_log_level(ResetLogLevelRequest {}).await;
        let reply = reply.map_err(|status| dialed.error("failed to reset logger: ", &status))?;
        logger::print(flags, printer, &reply.into_inner())
    })
}
