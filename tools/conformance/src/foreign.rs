//! Clients of other makes, which `cargo xtask test` makes ready and names in the environment.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A client of another make.
#[derive(Clone, Debug)]
pub struct Foreign {
    program: PathBuf,
    first: Vec<OsString>,
}

impl Foreign {
    /// A script of `clients/python`. Without an interpreter that has its packages, `check` counts as
    /// skipped.
    #[must_use]
    pub fn python(check: &str, script: &str) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python").join(script);
        Self::named("FINIAL_PYTHON", check).map(|program| Self { program, first: vec![script.into()] })
    }

    /// The program of `clients/go`. Where it could not be built `check` counts as skipped.
    #[must_use]
    pub fn go(check: &str) -> Option<Self> {
        Self::named("FINIAL_GO_CLIENTS", check).map(|program| Self { program, first: Vec::new() })
    }

    /// The class of `clients/java`. Where it could not be built `check` counts as skipped.
    #[must_use]
    pub fn java(check: &str) -> Option<Self> {
        Self::named("FINIAL_JAVA_CLIENTS", check).map(|home| {
            let classes = format!("{home}:{home}/*", home = home.display());
            // One short run on a busy machine: what is interpreted is sooner done than compiled.
            let first = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", &classes, "Clients"];
            Self { program: PathBuf::from("java"), first: first.map(OsString::from).into() }
        })
    }

    /// Envoy itself. Where it could not be installed `check` counts as skipped.
    #[must_use]
    pub fn envoy(check: &str) -> Option<PathBuf> {
        Self::named("FINIAL_ENVOY", check)
    }

    fn named(variable: &str, check: &str) -> Option<PathBuf> {
        let program = std::env::var_os(variable).map(PathBuf::from);
        if program.is_none() {
            skip(check, &format!("{variable} names no program"));
        }
        program
    }

    /// A command with these arguments, in a bare environment.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first).args(args).env_clear().stdin(Stdio::null());
        for name in ["PATH", "HOME"] {
            command.env(name, std::env::var_os(name).unwrap_or_default());
        }
        // Python's gRPC talks of forks that it does not like.
        command.env("GRPC_VERBOSITY", "NONE").env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Runs it with these arguments and hands back what it printed.
    ///
    /// # Panics
    /// If it does not exit with 0.
    #[must_use]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("the client can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{} {args:?}: {}\n{stdout}{stderr}",
            self.program.display(),
            output.status
        );
        stdout
    }
}

/// Notes that a check was not made, in the file that `FINIAL_SKIPS` names.
///
/// # Panics
/// If that file cannot be written: a skip that is not counted is a lie.
pub fn skip(check: &str, why: &str) {
    eprintln!("skipped: {check}: {why}");
    let Some(path) = std::env::var_os("FINIAL_SKIPS") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| writeln!(file, "{check}: {why}")).expect("the list of skipped checks");
}
