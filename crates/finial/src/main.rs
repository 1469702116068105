//! Finial's one binary. The name it is called by decides which program it is: `spire-server` and
//! `spire-agent` behave as those; as `finial` the first word names the program.
//!
//! This is the only crate that knows all programs and the only one that prints.
#![expect(clippy::print_stderr, reason = "the one place that talks to the terminal")]

mod cli;
mod dev;
mod programs;

use std::path::Path;
use std::process::ExitCode;

use cli::Program;

#[global_allocator]
static ALLOCATOR: runtime::memory::Allocator = runtime::memory::Allocator;

/// The SPIRE release whose interfaces these programs have.
const COMPATIBLE_WITH: &str = "1.15.3";

const USAGE: &str = "Usage: finial <program> [<args>]

  server     the identity server, as spire-server
  agent      the node agent, as spire-agent
  dev        a throw-away trust domain in one process, to try things out
  check      says whether a configuration file is good
  bench      puts load on a server and an agent, and says what it costs them

finial <program> -help lists a program's commands.
";

fn main() -> ExitCode {
    // What is not UTF-8 names nothing, but is no reason to panic.
    let mut args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let called = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    let line = cli::asked_to_complete();
    // A shell that completes a line calls the binary by its own name; then the line says which program.
    let program = |called: &str| match Path::new(called).file_name()?.to_str()? {
        "spire-server" => Some(server("spire-server", SPIRE_VERSION.to_owned())),
        "spire-agent" => Some(agent("spire-agent", SPIRE_VERSION.to_owned())),
        _ => None,
    };
    match (program(&called), line) {
        (Some(program), Some(line)) => cli::complete_line(&program, &line),
        (Some(program), None) => cli::run(&program, &args),
        (None, line) => {
            let named = line.as_deref().and_then(|line| line.split_whitespace().next()).and_then(program);
            match named.zip(line) {
                Some((program, line)) => cli::complete_line(&program, &line),
                None => finial(&args),
            }
        }
    }
}

fn finial(args: &[String]) -> ExitCode {
    let Some((program, rest)) = args.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(127);
    };
    match program.as_str() {
        "server" => {
            let mut program = server("finial server", own_version());
            program.commands.extend(cli::own_server_commands());
            cli::run(&program, rest)
        }
        "agent" => {
            let mut program = agent("finial agent", own_version());
            program.commands.extend(cli::own_agent_commands());
            cli::run(&program, rest)
        }
        "dev" => dev::run(rest),
        "check" => cli::run(&check(), rest),
        "bench" => cli::run(&bench(), rest),
        "-h" | "-help" | "--help" => {
            eprint!("{USAGE}");
            ExitCode::SUCCESS
        }
        "-v" | "-version" | "--version" => {
            eprintln!("{}", own_version());
            ExitCode::SUCCESS
        }
        other => {
            eprint!("finial: there is no program {other:?}\n{USAGE}");
            ExitCode::from(127)
        }
    }
}

fn server(name: &'static str, version: String) -> Program {
    Program { name, version, commands: cli::server_commands() }
}

fn agent(name: &'static str, version: String) -> Program {
    Program { name, version, commands: cli::agent_commands() }
}

fn check() -> Program {
    Program { name: "finial check", version: own_version(), commands: cli::check_commands() }
}

fn bench() -> Program {
    Program { name: "finial bench", version: own_version(), commands: cli::bench_commands() }
}

/// What scripts that parse SPIRE's version see, and what an agent tells its server.
const SPIRE_VERSION: &str = concat!("1.15.3-finial.", env!("CARGO_PKG_VERSION"));

fn own_version() -> String {
    format!("finial {} (compatible with SPIRE {COMPATIBLE_WITH})", env!("CARGO_PKG_VERSION"))
}
