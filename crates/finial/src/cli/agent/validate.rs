//! `validate`.

use config::AgentConfig;
use config::plugins::{self, Side};

use super::run::{given, run_flags};
use crate::cli::flags::Flags;
use crate::cli::{Command, Failure, FlagError, Printer, refused};
use crate::programs;

/// How a refusal starts.
const INVALID: &str = "SPIRE agent configuration file is invalid: ";

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "validate",
        about: "Validates an agent configuration file",
        flags: run_flags(),
        on_flag_error: FlagError::Twice(INVALID),
        action: validate,
    }]
}

/// Checks the file and says whether it is good. As with SPIRE, the settings of plugins have no part in
/// that; but what is wrong with them is logged, as is what else there is to say of a good file.
fn validate(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let loaded = AgentConfig::load(&given(flags))
        .map_err(|error| Failure::Bare(format!("{INVALID}{}", refused(&error))))?;
    programs::start_log(&loaded.config.log, &loaded.notes).map_err(Failure::Bare)?;
    match plugins::validate(Side::Agent, &loaded.config.plugins) {
        Ok(complaints) => {
            for complaint in complaints {
                tracing::warn!(plugin = complaint.plugin, "{}", complaint.texts.join("; "));
            }
        }
        Err(error) => tracing::warn!("{error}"),
    }
    printer.out.push_str("SPIRE agent configuration file is valid.\n");
    Ok(())
}
