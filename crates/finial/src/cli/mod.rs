//! The command lines: grammar, sockets, calls and output of every command, as SPIRE's users know them.
//!
//! A [`Command`] is data: its name, flags and what it does. `tree` finds the command that the words
//! name; `flags` reads its flags; the modules `server` and `agent` hold the commands themselves.

mod agent;
mod bench;
mod check;
mod complete;
mod data;
mod duration;
mod explain;
pub(crate) mod flags;
mod json;
mod logger;
mod print;
mod rpc;
mod server;
mod timestamp;
mod tree;

pub(crate) use agent::{commands as agent_commands, own_commands as own_agent_commands};
pub(crate) use bench::commands as bench_commands;
pub(crate) use check::commands as check_commands;
pub(crate) use complete::asked as asked_to_complete;
use config::{ConfigError, Unbuilt};
use flags::{Flag, Flags};
pub(crate) use server::{commands as server_commands, own_commands as own_server_commands};
pub(crate) use tree::{Program, complete as complete_line, run};

/// What a command does with its flags; the text is printed to stderr as the error.
pub(crate) type Action = fn(&Flags, &mut Printer) -> Result<(), Failure>;

/// A command and its flags.
#[derive(Clone)]
pub(crate) struct Command {
    /// The words that name it, such as `entry create`.
    pub(crate) name: &'static str,
    /// What it does, in one line.
    pub(crate) about: &'static str,
    /// The flags it takes.
    pub(crate) flags: Vec<Flag>,
    /// How a flag error is shown.
    pub(crate) on_flag_error: FlagError,
    /// What it does.
    pub(crate) action: Action,
}

/// How a flag error is shown; each family of SPIRE's commands has its own way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagError {
    /// Once, before the usage.
    Once,
    /// Before the usage, and again after it behind a prefix.
    Twice(&'static str),
}

/// Why a command failed, and how that is shown.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A line `Error: <text>` on stderr, exit code 1.
    Error(String),
    /// The bare text on stderr, exit code 1.
    Bare(String),
    /// Everything was printed; exit with this code.
    Exit(u8),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Error(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self::Error(text.to_owned())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(format!("{error:#}"))
    }
}

/// Where a command prints: data to stdout, talk to stderr, both at the end.
#[derive(Debug, Default)]
pub(crate) struct Printer {
    /// Text for stdout.
    pub(crate) out: String,
    /// Text for stderr.
    pub(crate) err: String,
}

/// Why a configuration was refused. What comes before that in the log is logged, if there is one by then.
pub(crate) fn refused(error: &ConfigError) -> String {
    match &error.log {
        Some(log) => match crate::programs::start_log(log, &error.notes) {
            Ok(_) => error.to_string(),
            Err(why) => why,
        },
        None => error.to_string(),
    }
}

/// Refuses to start a program with settings that this version has not.
pub(crate) fn unbuilt(program: &str, unbuilt: &[Unbuilt]) -> Result<(), Failure> {
    match unbuilt.first() {
        Some(first) => Err(Failure::Bare(format!("cannot start {program}: {first}"))),
        None => Ok(()),
    }
}
