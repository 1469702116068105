//! Completion of command lines in shells, as SPIRE's command line library has it: a shell that completes a
//! line calls the program with the line in `COMP_LINE` and reads the words that fit; a flag writes into the
//! user's start files that it should.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::rpc::system_text;
use super::tree::Program;

/// Where a shell puts the line that is to be completed.
const LINE: &str = "COMP_LINE";
/// Where it puts how many bytes of the line stand before the cursor.
const POINT: &str = "COMP_POINT";

/// What `zsh` needs to know bash's way of completion.
const ZSH_START: &str = "autoload -U +X bashcompinit && bashcompinit";

/// The flags before any command.
const FLAGS: [&str; 4] = ["-autocomplete-install", "-autocomplete-uninstall", "-help", "-version"];

/// What is to be done to the user's start files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Install,
    Uninstall,
    /// Both were asked for, which is refused.
    Both,
}

/// The line up to the cursor, if a shell asks for its completion.
pub(crate) fn asked() -> Option<String> {
    let line = env::var(LINE).ok().filter(|line| !line.is_empty())?;
    let point = env::var(POINT).ok().and_then(|text| text.parse::<usize>().ok());
    let before = point.and_then(|point| line.get(..point)).map(str::to_owned);
    Some(before.unwrap_or(line))
}

/// The words that may come next in a line, which begins with the program's name; each on a line of its own.
pub(crate) fn candidates(program: &Program, line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if line.ends_with(char::is_whitespace) {
        words.push("");
    }
    // Of `a=b` it is `b` that is being written.
    let last = words.pop().unwrap_or_default();
    words.extend(last.split('='));
    let last = words.pop().unwrap_or_default();
    let (mut prefix, mut below) = (String::new(), children(program, ""));
    for word in words.iter().skip(1) {
        if below.contains(word) {
            prefix = format!("{prefix}{word} ");
            below = children(program, &prefix);
        }
    }
    if prefix.is_empty() && last.starts_with('-') {
        below.extend(FLAGS);
    }
    below.iter().filter(|word| word.starts_with(last)).map(|word| format!("{word}\n")).collect()
}

/// The words that may follow `prefix`, which ends with a blank if it is not empty.
fn children<'a>(program: &'a Program, prefix: &str) -> BTreeSet<&'a str> {
    let names = program.commands.iter().filter_map(|command| command.name.strip_prefix(prefix));
    names.filter_map(|rest| rest.split(' ').next()).collect()
}

/// Changes the start files of each shell that the user has.
pub(crate) fn change(name: &str, change: Change) -> Result<(), String> {
    if name.contains(' ') {
        return Err(format!("completion is for programs of one name, such as spire-server, not {name:?}"));
    }
    let installs = match change {
        Change::Install => true,
        Change::Uninstall => false,
        Change::Both => {
            return Err(
                "Either the autocomplete install or uninstall flag may be specified, but not both.".into()
            );
        }
    };
    let program = env::current_exe().map_err(|error| system_text(&error))?;
    let shells = Shell::of_user();
    if shells.is_empty() {
        return Err("Did not find any shells to install".into());
    }
    let refusals: Vec<String> = shells
        .iter()
        .filter_map(|shell| {
            if installs { shell.install(name, &program) } else { shell.uninstall(name, &program) }.err()
        })
        .collect();
    if refusals.is_empty() {
        return Ok(());
    }
    let count = if refusals.len() == 1 { "1 error".into() } else { format!("{} errors", refusals.len()) };
    let listed = refusals.iter().fold(String::new(), |mut text, why| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "\t* {why}");
        text
    });
    Err(format!("{count} occurred:\n{listed}\n"))
}

/// A shell and where it is told of completions.
#[derive(Debug, PartialEq, Eq)]
enum Shell {
    /// Its start file.
    Bash(PathBuf),
    /// Its start file.
    Zsh(PathBuf),
    /// Its configuration directory.
    Fish(PathBuf),
}

impl Shell {
    /// The shells that have start files in the user's home.
    fn of_user() -> Vec<Self> {
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let config = env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty());
        let config = config.map_or_else(|| home.join(".config"), PathBuf::from);
        Self::found(&home, &config)
    }

    fn found(home: &Path, config: &Path) -> Vec<Self> {
        let existing = |name: &str| Some(home.join(name)).filter(|path| path.exists());
        let bash = [".bashrc", ".bash_profile", ".bash_login", ".profile"].into_iter().find_map(existing);
        let fish = Some(config.join("fish")).filter(|path| path.is_dir());
        let shells = [bash.map(Self::Bash), existing(".zshrc").map(Self::Zsh), fish.map(Self::Fish)];
        shells.into_iter().flatten().collect()
    }

    fn install(&self, name: &str, program: &Path) -> Result<(), String> {
        let failed = |error: io::Error| format!("{}: {}", self.place(name).display(), system_text(&error));
        if self.is_installed(name, program) {
            let word = if matches!(self, Self::Fish(_)) { "at" } else { "in" };
            return Err(format!("already installed {word} {}", self.place(name).display()));
        }
        let place = self.place(name);
        let line = self.line(name, program);
        match self {
            Self::Bash(_) => append(&place, &line).map_err(failed),
            Self::Zsh(file) if holds_line(file, ZSH_START) => append(&place, &line).map_err(failed),
            Self::Zsh(_) => append(&place, &format!("{ZSH_START}\n{line}")).map_err(failed),
            Self::Fish(_) => {
                let made = place.parent().map_or(Ok(()), fs::create_dir_all);
                made.and_then(|()| fs::write(&place, line)).map_err(failed)
            }
        }
    }

    fn uninstall(&self, name: &str, program: &Path) -> Result<(), String> {
        let place = self.place(name);
        let failed = |error: io::Error| format!("{}: {}", place.display(), system_text(&error));
        if !self.is_installed(name, program) {
            let (Self::Bash(shown) | Self::Zsh(shown) | Self::Fish(shown)) = self;
            return Err(format!("does not installed in {}", shown.display()));
        }
        match self {
            Self::Bash(file) | Self::Zsh(file) => {
                let line = self.line(name, program);
                let text = fs::read_to_string(file).map_err(failed)?;
                let kept = text.split_inclusive('\n').filter(|old| old.trim_end_matches('\n') != line);
                fs::write(file, kept.collect::<String>()).map_err(failed)
            }
            Self::Fish(_) => fs::remove_file(&place).map_err(failed),
        }
    }

    fn is_installed(&self, name: &str, program: &Path) -> bool {
        match self {
            Self::Bash(file) | Self::Zsh(file) => holds_line(file, &self.line(name, program)),
            Self::Fish(_) => self.place(name).exists(),
        }
    }

    /// The file that says so.
    fn place(&self, name: &str) -> PathBuf {
        match self {
            Self::Bash(file) | Self::Zsh(file) => file.clone(),
            Self::Fish(config) => config.join("completions").join(format!("{name}.fish")),
        }
    }

    /// What it says.
    fn line(&self, name: &str, program: &Path) -> String {
        let program = program.display();
        match self {
            Self::Bash(_) => format!("complete -C {program} {name}"),
            Self::Zsh(_) => format!("complete -o nospace -C {program} {name}"),
            Self::Fish(_) => format!(
                "function __complete_{name}\n    \
                 set -lx COMP_LINE (commandline -cp)\n    \
                 test -z (commandline -ct); and set COMP_LINE \"$COMP_LINE \"\n    \
                 {program}\n\
                 end\n\
                 complete -f -c {name} -a \"(__complete_{name})\"\n"
            ),
        }
    }
}

fn holds_line(file: &Path, line: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.lines().any(|old| old == line))
}

fn append(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(file)?.write_all(format!("\n{text}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program { name: "spire-server", version: String::new(), commands: crate::cli::server_commands() }
    }

    #[test]
    fn a_line_is_completed_by_the_words_that_may_follow() {
        let completed = |line: &str| candidates(&program(), line).replace('\n', " ");

        assert_eq!(completed("spire-server ent"), "entry ");
        assert_eq!(completed("spire-server entry "), "count create delete show update ");
        assert_eq!(completed("spire-server localauthority x509 re"), "revoke ");
        assert_eq!(completed("spire-server localauthority -x=j"), "jwt ");
        assert_eq!(completed("spire-server -v"), "-version ");
        assert_eq!(completed("spire-server entry -"), "");
        assert_eq!(completed("spire-server x entry s"), "show ");
        assert!(completed("spire-server ").starts_with("agent bundle debug entry "));
    }

    #[test]
    fn each_shell_is_told_once_and_untold() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join(".config");
        fs::write(home.path().join(".profile"), "a\n").unwrap();
        fs::write(home.path().join(".zshrc"), "b\n").unwrap();
        fs::create_dir_all(config.join("fish")).unwrap();
        let shells = Shell::found(home.path(), &config);
        let binary = Path::new("/opt/finial");
        assert_eq!(shells.len(), 3);

        for shell in &shells {
            assert_eq!(shell.install("spire-agent", binary), Ok(()));
            assert!(shell.install("spire-agent", binary).unwrap_err().starts_with("already installed "));
        }

        let told = fs::read_to_string(home.path().join(".zshrc")).unwrap();
        assert_eq!(told, format!("b\n\n{ZSH_START}\ncomplete -o nospace -C /opt/finial spire-agent\n"));

        for shell in &shells {
            assert_eq!(shell.uninstall("spire-agent", binary), Ok(()));
            assert!(
                shell.uninstall("spire-agent", binary).unwrap_err().starts_with("does not installed in ")
            );
        }

        assert_eq!(fs::read_to_string(home.path().join(".profile")).unwrap(), "a\n\n");
    }
}
