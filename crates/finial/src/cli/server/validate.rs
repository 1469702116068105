//! `validate`.

use std::fmt::Write as _;

use config::ServerConfig;
use config::plugins::{self, Side};

use super::run::{given, run_flags};
use crate::cli::flags::Flags;
use crate::cli::{Command, Failure, FlagError, Printer};

/// How a refusal starts.
const INVALID: &str = "SPIRE server configuration file is invalid: ";

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "validate",
        about: "Validates a server configuration file",
        flags: run_flags(),
        on_flag_error: FlagError::Twice(INVALID),
        action: validate,
    }]
}

/// Checks the file, then the settings of each plugin, and says whether all is good.
fn validate(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let loaded =
        ServerConfig::load(&given(flags)).map_err(|error| Failure::Bare(format!("{INVALID}{error}")))?;
    let config = loaded.config;
    let complaints = match plugins::validate(Side::Server, &config.plugins) {
        Ok(complaints) => complaints,
        Err(error) => {
            // No line end: so SPIRE leaves it.
            let _written = write!(printer.err, "Could not validate configuration file: {error}");
            return Err(Failure::Exit(1));
        }
    };
    if complaints.is_empty() {
        printer.out.push_str("SPIRE server configuration file is valid.\n");
        return Ok(());
    }
    printer.err.push_str("SPIRE server configuration file is invalid.\nValidation errors:\n");
    for complaint in complaints {
        let _written = writeln!(printer.err, "\t{}:", complaint.plugin);
        for text in complaint.texts {
            let _written = writeln!(printer.err, "\t\t{text}");
        }
    }
    Err(Failure::Exit(1))
}
