//! The commands of `spire-agent`.

mod api;
mod budget;
mod debug;
mod explain;
mod health;
mod logger;
mod run;
mod validate;

use super::Command;
use super::flags::{Flag, Flags, Kind, flag, flag_or};
use super::rpc::{self, ADMIN_SOCKET, AGENT_SOCKET, Dialed, output_flag};

/// All commands.
pub(crate) fn commands() -> Vec<Command> {
    let mut commands = Vec::new();
    commands.extend(api::commands());
    commands.extend(debug::commands());
    commands.extend(health::commands());
    commands.extend(logger::commands());
    commands.extend(run::commands());
    commands.extend(validate::commands());
    commands
}

/// Those that SPIRE does not have: under the own name only, so that the program is what it is called.
pub(crate) fn own_commands() -> Vec<Command> {
    [budget::commands(), explain::commands()].concat()
}

/// The flags of a command that calls the agent's public socket.
fn public_flags(own: &[Flag]) -> Vec<Flag> {
    let socket = [
        flag_or("socketPath", Kind::Text, AGENT_SOCKET, "Path to the SPIRE Agent API Unix domain socket"),
        flag("instance", Kind::Text, "Instance name to substitute into the socket templates"),
    ];
    [own, &socket].concat()
}

/// The flags of a command that calls the agent's admin socket.
fn admin_flags(own: &[Flag]) -> Vec<Flag> {
    let socket = [
        flag_or("socketPath", Kind::Text, ADMIN_SOCKET, "Path to the SPIRE Agent admin socket"),
        output_flag(),
    ];
    [own, &socket].concat()
}

/// A channel to the admin socket; an empty path counts as not given.
fn dial_admin(flags: &Flags) -> Dialed {
    let path = Some(flags.text("socketPath")).filter(|path| !path.is_empty());
    rpc::dial(path.unwrap_or(ADMIN_SOCKET).as_ref())
}
