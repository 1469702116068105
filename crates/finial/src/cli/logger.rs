//! `logger get`, `set`, `reset`: the same on server and agent but for the service's name.

use proto::spire::types::{LogLevel, Logger};
use spiffe::quote::quoted;

use super::flags::{Flags, Output};
use super::{Failure, Printer, json};

/// The level that `-level` names.
pub(crate) fn level(flags: &Flags) -> Result<LogLevel, String> {
    Ok(match flags.text("level").to_lowercase().as_str() {
        "" => return Err("a value (-level) must be set".to_owned()),
        "panic" => LogLevel::Panic,
        "fatal" => LogLevel::Fatal,
        "error" => LogLevel::Error,
        "warn" | "warning" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return Err(format!("the value {} is not a valid setting", quoted(flags.text("level")))),
    })
}

/// Prints the logger's levels.
pub(crate) fn print(flags: &Flags, printer: &mut Printer, logger: &Logger) -> Result<(), Failure> {
    printer.out = match flags.output() {
        Output::Json => json::line(&json::tree("spire.api.types.Logger", logger)?),
        Output::Pretty => format!(
            "Logger Level : {}\nLaunch Level : {}\n\n",
            name(logger.current_level()),
            name(logger.launch_level())
        ),
    };
    Ok(())
}

const fn name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Unspecified => "unspecified",
        LogLevel::Panic => "panic",
        LogLevel::Fatal => "fatal",
        LogLevel::Error => "error",
        LogLevel::Warn => "warning",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}
