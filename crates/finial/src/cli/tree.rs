//! Finds the command that the words of a command line name, and runs it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use super::flags::{Flags, HELP, usage};
use super::{Command, Failure, FlagError, Printer};

/// A program: its name and commands.
pub(crate) struct Program {
    /// The name it was called by, for the usage text.
    pub(crate) name: &'static str,
    /// What `-version` prints.
    pub(crate) version: String,
    /// All commands.
    pub(crate) commands: Vec<Command>,
}

/// What the words ask for.
enum Request<'a> {
    Version,
    /// Help about the command or group of that name; the empty name is the program.
    Help(String),
    Run(&'a Command, &'a [String]),
    /// A group without its subcommand.
    Incomplete(String),
    Unknown,
    /// Flags stand before the subcommand.
    Misplaced(String),
}

/// Runs the command that `args` name and hands back the exit code.
pub(crate) fn run(program: &Program, args: &[String]) -> ExitCode {
    let mut printer = Printer::default();
    let code = match program.request(args) {
        Request::Version => {
            printer.err = format!("{}\n", program.version);
            0
        }
        Request::Help(name) => {
            printer.err = program.help(&name);
            0
        }
        Request::Incomplete(name) => {
            printer.err = program.help(&name);
            1
        }
        Request::Unknown => {
            printer.err = program.help("");
            127
        }
        Request::Misplaced(name) => {
            printer.err = "Invalid flags before the subcommand. If these flags are for\n\
                the subcommand, please put them after the subcommand.\n\n"
                .to_owned()
                + &program.help(&name)
                + "\n";
            1
        }
        Request::Run(command, rest) => execute(command, program.usage_name(command.name), rest, &mut printer),
    };
    // A reader that went away (`| head`) is no failure of ours.
    let _closed = std::io::stdout().write_all(printer.out.as_bytes());
    let _closed = std::io::stderr().write_all(printer.err.as_bytes());
    ExitCode::from(code)
}

fn execute(command: &Command, shown: &str, args: &[String], printer: &mut Printer) -> u8 {
    let flags = match Flags::parse(&command.flags, args) {
        Ok(flags) => flags,
        Err(why) => {
            printer.err = usage(shown, &command.flags);
            if why != HELP {
                printer.err.insert_str(0, &format!("{why}\n"));
            }
            if let FlagError::Twice(prefix) = command.on_flag_error {
                // Writing to a string cannot fail.
                let _written = writeln!(printer.err, "{prefix}{why}");
            }
            return 1;
        }
    };
    match (command.action)(&flags, printer) {
        Ok(()) => 0,
        Err(Failure::Error(text)) => {
            let _written = writeln!(printer.err, "Error: {text}");
            1
        }
        Err(Failure::Bare(text)) => {
            let _written = writeln!(printer.err, "{text}");
            1
        }
        Err(Failure::Exit(code)) => code,
    }
}

impl Program {
    /// Reads the words as SPIRE's command line library does: help wins anywhere before `--`, the
    /// version only before a subcommand, and the longest known run of words is the subcommand.
    fn request<'a>(&'a self, args: &'a [String]) -> Request<'a> {
        let (mut name, mut rest_at) = (String::new(), args.len());
        let (mut help, mut version, mut misplaced) = (false, false, false);
        let mut index = 0;
        while let Some(arg) = args.get(index) {
            if arg == "--" {
                break;
            }
            if matches!(arg.as_str(), "-h" | "-help" | "--help") {
                help = true;
            } else if name.is_empty() {
                if matches!(arg.as_str(), "-v" | "-version" | "--version") {
                    version = true;
                } else if arg.starts_with('-') {
                    misplaced = true;
                } else if !arg.is_empty() {
                    name = self.longest(args.get(index..).unwrap_or_default());
                    index += name.matches(' ').count();
                    rest_at = index + 1;
                }
            }
            index += 1;
        }
        if help && self.is_known(&name) {
            return Request::Help(name);
        }
        if version {
            return Request::Version;
        }
        if name.is_empty() && help {
            return Request::Help(name);
        }
        if name.is_empty() || !self.is_known(&name) {
            return Request::Unknown;
        }
        if misplaced {
            return Request::Misplaced(name);
        }
        match self.commands.iter().find(|command| command.name == name) {
            Some(command) => Request::Run(command, args.get(rest_at..).unwrap_or_default()),
            None => Request::Incomplete(name),
        }
    }

    /// The longest run of leading words that names a command or group; else the first word.
    fn longest(&self, words: &[String]) -> String {
        (1..=words.len())
            .rev()
            .filter_map(|count| words.get(..count))
            .map(|words| words.join(" "))
            .find(|name| self.is_known(name))
            .unwrap_or_else(|| words.first().cloned().unwrap_or_default())
    }

    fn is_known(&self, name: &str) -> bool {
        let group = format!("{name} ");
        self.commands.iter().any(|command| command.name == name || command.name.starts_with(&group))
    }

    fn help(&self, name: &str) -> String {
        if let Some(command) = self.commands.iter().find(|command| command.name == name) {
            let text = usage(self.usage_name(name), &command.flags);
            return match self.children(name).as_str() {
                "" => text,
                children => format!("{}\nSubcommands:\n{children}", command.about.to_owned() + "\n"),
            };
        }
        if name.is_empty() {
            return format!(
                "Usage: {} [--version] [--help] <command> [<args>]\n\nAvailable commands are:\n{}\n",
                self.name,
                self.children("")
            );
        }
        format!(
            "This command is accessed by using one of the subcommands below.\n\nSubcommands:\n{}",
            self.children(name)
        )
    }

    /// What a usage text calls a command: a few have another name there than the one they go by.
    fn usage_name<'a>(&self, name: &'a str) -> &'a str {
        match name {
            "healthcheck" if self.name.ends_with("agent") => "health",
            "token generate" => "generate",
            "api fetch" => "fetch x509",
            name => name.strip_prefix("api ").unwrap_or(name),
        }
    }

    /// One line per direct child of a command or group.
    fn children(&self, name: &str) -> String {
        let prefix = if name.is_empty() { String::new() } else { format!("{name} ") };
        let mut children: BTreeMap<&str, &str> = BTreeMap::new();
        for command in &self.commands {
            let Some(rest) = command.name.strip_prefix(&prefix).filter(|rest| !rest.is_empty()) else {
                continue;
            };
            match rest.split_once(' ') {
                None => {
                    children.insert(rest, command.about);
                }
                Some((child, _)) => {
                    children.entry(child).or_insert("");
                }
            }
        }
        let width = children.keys().map(|child| child.len()).max().unwrap_or(0);
        children.iter().fold(String::new(), |mut text, (child, about)| {
            let line = format!("    {child:width$}    {about}");
            text.push_str(line.trim_end());
            text.push('\n');
            text
        })
    }
}
