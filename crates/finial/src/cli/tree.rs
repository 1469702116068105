//! Finds the command that the words of a command line name, and runs it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use super::complete::{self, Change};
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

/// [`HELP`] on a line of its own.
const HELP_LINE: &str = "flag: help requested\n";

/// What asks for completion in the user's shells, and what takes it away.
const INSTALL: &str = "-autocomplete-install";
const INSTALL_TOO: &str = "--autocomplete-install";
const UNINSTALL: &str = "-autocomplete-uninstall";
const UNINSTALL_TOO: &str = "--autocomplete-uninstall";

/// What the words say.
#[derive(Default)]
struct Words {
    /// The words that name the command; empty for none.
    name: String,
    /// Where the words for the command begin.
    rest_at: usize,
    help: bool,
    version: bool,
    /// Flags stand before the subcommand.
    misplaced: bool,
    install: bool,
    uninstall: bool,
}

/// What the words ask for.
enum Request<'a> {
    Version,
    Completion(Change),
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
        Request::Completion(change) => match complete::change(program.name, change) {
            Ok(()) => 0,
            Err(why) => {
                printer.err = format!("{why}\n");
                1
            }
        },
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
                + &program.help(&name);
            1
        }
        Request::Run(command, rest) => execute(command, program.usage_name(command.name), rest, &mut printer),
    };
    // A reader that went away (`| head`) is no failure of ours.
    let _closed = std::io::stdout().write_all(printer.out.as_bytes());
    let _closed = std::io::stderr().write_all(printer.err.as_bytes());
    ExitCode::from(code)
}

/// Prints how a line may go on that a shell wants completed.
pub(crate) fn complete(program: &Program, line: &str) -> ExitCode {
    let _closed = std::io::stdout().write_all(complete::candidates(program, line).as_bytes());
    ExitCode::SUCCESS
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
    /// Reads the words as SPIRE's command line library does: the version wins, if it stands before a
    /// subcommand, then help anywhere before `--`, then shell completion; the longest known run of words is
    /// the subcommand.
    fn request<'a>(&'a self, args: &'a [String]) -> Request<'a> {
        let Words { name, rest_at, help, version, misplaced, install, uninstall } = self.words(args);
        if version {
            return Request::Version;
        }
        if help && name.is_empty() {
            return Request::Help(name);
        }
        match (install, uninstall) {
            (true, true) => return Request::Completion(Change::Both),
            (true, false) => return Request::Completion(Change::Install),
            (false, true) => return Request::Completion(Change::Uninstall),
            (false, false) => {}
        }
        if name.is_empty() || !self.is_known(&name) {
            return Request::Unknown;
        }
        if help {
            return Request::Help(name);
        }
        if misplaced {
            return Request::Misplaced(name);
        }
        match self.commands.iter().find(|command| command.name == name) {
            Some(command) => Request::Run(command, args.get(rest_at..).unwrap_or_default()),
            None => Request::Incomplete(name),
        }
    }

    fn words(&self, args: &[String]) -> Words {
        let mut words = Words { rest_at: args.len(), ..Words::default() };
        for (index, arg) in args.iter().enumerate() {
            match arg.as_str() {
                "--" => break,
                "-h" | "-help" | "--help" => words.help = true,
                INSTALL | INSTALL_TOO => words.install = true,
                UNINSTALL | UNINSTALL_TOO => words.uninstall = true,
                _ if !words.name.is_empty() => {}
                "-v" | "-version" | "--version" => words.version = true,
                arg if arg.starts_with('-') => words.misplaced = true,
                "" => {}
                // A blank makes it an argument, and an argument without a command ends the reading.
                arg if arg.contains(' ') => break,
                _ => {
                    words.name = self.longest(args.get(index..).unwrap_or_default());
                    words.rest_at = index + words.name.matches(' ').count() + 1;
                }
            }
        }
        words
    }

    /// The longest run of leading words that names a command or group; else the first word. What is a flag,
    /// is empty or has a blank in it is no such word.
    fn longest(&self, args: &[String]) -> String {
        let is_word = |arg: &&String| !arg.is_empty() && !arg.starts_with('-') && !arg.contains(' ');
        let count = args.iter().take_while(is_word).count();
        (1..=count)
            .rev()
            .filter_map(|count| args.get(..count))
            .map(|words| words.join(" "))
            .find(|name| self.is_known(name))
            .unwrap_or_else(|| args.first().cloned().unwrap_or_default())
    }

    fn is_known(&self, name: &str) -> bool {
        let group = format!("{name} ");
        self.commands.iter().any(|command| command.name == name || command.name.starts_with(&group))
    }

    fn help(&self, name: &str) -> String {
        if let Some(command) = self.commands.iter().find(|command| command.name == name) {
            let text = usage(self.usage_name(name), &command.flags);
            return match self.children(name).as_str() {
                "" => text + self.after_help(name),
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

    /// What stands behind the usage that was asked for: the commands of SPIRE's agent that call its public
    /// socket end it with an empty line, all others say what the flag parser says of `-h`.
    fn after_help(&self, name: &str) -> &'static str {
        match name {
            "healthcheck" if self.name.ends_with("agent") => "\n",
            "api fetch x509" | "api fetch jwt" | "api validate jwt" => "\n",
            _ => HELP_LINE,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program { name: "spire-server", version: String::new(), commands: crate::cli::server_commands() }
    }

    /// What a line asks for; its words are parted by `|`.
    fn asked(line: &str) -> String {
        let args: Vec<String> = line.split('|').map(str::to_owned).collect();
        match program().request(&args) {
            Request::Version => "version".into(),
            Request::Completion(change) => format!("{change:?}"),
            Request::Help(name) => format!("help {name}"),
            Request::Run(command, rest) => format!("run {} with {rest:?}", command.name),
            Request::Incomplete(name) => format!("incomplete {name}"),
            Request::Unknown => "unknown".into(),
            Request::Misplaced(name) => format!("misplaced {name}"),
        }
    }

    #[test]
    fn words_are_read_as_by_the_library_of_spire() {
        for (line, request) in [
            ("entry|show|-x", "run entry show with [\"-x\"]"),
            ("entry|show|show", "run entry show with [\"show\"]"),
            ("entry|shown", "incomplete entry"),
            ("localauthority|x509|revoke", "run localauthority x509 revoke with []"),
            ("localauthority|x509 revoke", "incomplete localauthority"),
            ("entry||show", "incomplete entry"),
            ("|run", "run run with []"),
            ("-x|run", "misplaced run"),
            ("-|run", "misplaced run"),
            ("--|run", "unknown"),
            ("run|--|-h", "run run with [\"--\", \"-h\"]"),
            ("run|-x|-h", "help run"),
            ("nothing|-h", "unknown"),
            ("entry show", "unknown"),
            ("entry show|-h", "unknown"),
            ("-h|entry show", "help "),
            ("-h|= ", "help "),
            ("-v|nothing", "version"),
            ("-version|run|-h", "version"),
            ("run|-v", "run run with [\"-v\"]"),
            ("run|-autocomplete-install", "Install"),
            ("-autocomplete-install|--autocomplete-uninstall", "Both"),
            ("-autocomplete-install|-h", "help "),
        ] {
            assert_eq!(asked(line), request, "{line}");
        }
    }

    #[test]
    fn help_ends_with_what_the_flag_parser_says() {
        assert!(program().help("run").ends_with("\nflag: help requested\n"));
        assert!(program().help("entry").ends_with("\n    update    Update registration entries\n"));
    }
}
