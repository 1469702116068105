//! The commands of `spire-server`.

mod agent;
mod audit;
mod authority;
mod bundle;
mod debug;
mod entry;
mod explain;
mod federation;
mod health;
mod logger;
mod mint;
mod run;
mod token;
mod validate;
mod wit;

use super::Command;

/// All commands; `wit mint` only with the feature flag of that name, as SPIRE has it.
pub(crate) fn commands() -> Vec<Command> {
    let mut commands = Vec::new();
    commands.extend(agent::commands());
    commands.extend(authority::commands());
    commands.extend(bundle::commands());
    commands.extend(debug::commands());
    commands.extend(entry::commands());
    commands.extend(federation::commands());
    commands.extend(health::commands());
    commands.extend(logger::commands());
    commands.extend(mint::commands());
    commands.extend(run::commands());
    commands.extend(token::commands());
    commands.extend(validate::commands());
    commands.extend(wit::commands());
    commands
}

/// Those that SPIRE does not have: under the own name only, so that the program is what it is called.
pub(crate) fn own_commands() -> Vec<Command> {
    [audit::commands(), explain::commands()].concat()
}
