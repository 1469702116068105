//! `finial dev`: a complete trust domain in one process, to try things out.
//!
//! Server and agent run as they do in production: on SQLite, over real sockets, attested by a join
//! token, configured by files that are left in the data directory for reading. What is thrown away
//! at the end is the directory, unless `-dataDir` names one.

mod plane;
mod probe;
mod settings;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use client::workload::SOCKET_VARIABLE;
use runtime::clock::{Clock as _, SystemClock};
use runtime::shutdown::Shutdown;
use spiffe::TrustDomain;

use self::plane::Plane;
use crate::cli::flags::{Flag, Flags, Kind, flag, flag_or, usage};

const ABOUT: &str = "Usage: finial dev [flags] [-- command [args]]

Starts a throw-away trust domain in this process: a server, an agent on this machine, and the calling
user registered as a workload. Serves until Ctrl-C; with a command, runs it with SPIFFE_ENDPOINT_SOCKET
set and ends with its exit code.

";

fn flags() -> Vec<Flag> {
    vec![
        flag(
            "once",
            Kind::Bool,
            "Fetch and verify an X.509-SVID and a JWT-SVID from a child process, then end",
        ),
        flag("probe", Kind::Bool, "Only fetch and verify what SPIFFE_ENDPOINT_SOCKET offers, then end"),
        flag("dataDir", Kind::Text, "Keep state in this directory (default: a temporary one)"),
        flag_or("trustDomain", Kind::Text, "example.org", "The trust domain"),
        flag("socketPath", Kind::Text, "Path of the Workload API socket (default: in the data directory)"),
    ]
}

/// What to start.
struct Wanted {
    trust_domain: TrustDomain,
    data_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
}

/// Runs the command and hands back the exit code.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let (own, command) = match args.iter().position(|arg| arg == "--") {
        Some(at) => (args.get(..at).unwrap_or_default(), args.get(at + 1..).unwrap_or_default()),
        None => (args, [].as_slice()),
    };
    if own.iter().any(|arg| matches!(arg.as_str(), "-h" | "-help" | "--help")) {
        say(&format!("{ABOUT}{}", usage("dev", &flags())));
        return ExitCode::SUCCESS;
    }
    let outcome = Flags::parse(&flags(), own).map_err(anyhow::Error::msg).and_then(|flags| {
        runtime::memory::zero_what_is_freed();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(serve(&flags, command))
    });
    outcome.unwrap_or_else(|error| {
        say(&format!("finial dev: {error:#}\n"));
        ExitCode::FAILURE
    })
}

async fn serve(flags: &Flags, command: &[String]) -> Result<ExitCode> {
    if flags.is_on("probe") {
        print(&probe::probe().await?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = |name| Some(flags.text(name)).filter(|text| !text.is_empty()).map(PathBuf::from);
    let trust_domain = TrustDomain::parse(flags.text("trustDomain"))
        .with_context(|| format!("cannot use the trust domain {:?}", flags.text("trustDomain")))?;
    let wanted = Wanted { trust_domain, data_dir: path("dataDir"), socket: path("socketPath") };

    let shutdown = Shutdown::new();
    shutdown.listen_to_signals().context("cannot listen to signals")?;
    let started = SystemClock.instant();
    let (plane, tasks) = Plane::start(&wanted, &shutdown).await?;
    let took = SystemClock.instant().saturating_duration_since(started);
    let mut running = Box::pin(tasks.join());
    tokio::select! {
        biased;
        ended = &mut running => {
            ended?;
            bail!("server and agent ended by themselves: {}", plane.log_tail())
        }
        outcome = use_plane(flags, command, &plane, &shutdown, took) => {
            shutdown.trigger();
            let ended = running.await;
            // What went wrong in use explains more than how it ended.
            let code = outcome?;
            ended?;
            Ok(code)
        }
    }
}

async fn use_plane(
    flags: &Flags,
    command: &[String],
    plane: &Plane,
    shutdown: &Shutdown,
    took: Duration,
) -> Result<ExitCode> {
    if flags.is_on("once") {
        let program = std::env::current_exe().context("cannot find this program's file")?;
        let seen = child(&program.into_os_string(), &["dev".into(), "-probe".into()], plane)
            .env_clear()
            .env(SOCKET_VARIABLE, plane.address())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the child process")?
            .wait_with_output()
            .await
            .context("cannot wait for the child process")?;
        print(&format!(
            "ready in {} ms; a child process that knows only {} saw:\n",
            took.as_millis(),
            plane.address()
        ))?;
        print(&String::from_utf8_lossy(&seen.stdout))?;
        if !seen.status.success() {
            bail!("the child process did not get its identity: {}", plane.log_tail());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some((program, args)) = command.split_first() {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let mut running = child(&OsString::from(program), &args, plane)
            .spawn()
            .with_context(|| format!("cannot run {program:?}"))?;
        let status = running.wait().await.with_context(|| format!("cannot wait for {program:?}"))?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    print(&plane.described(took))?;
    shutdown.triggered().await;
    Ok(ExitCode::SUCCESS)
}

/// A process that finds the Workload API; ended with us.
fn child(program: &OsString, args: &[OsString], plane: &Plane) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    command.args(args).env(SOCKET_VARIABLE, plane.address()).kill_on_drop(true);
    command
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot print")
}

#[expect(clippy::print_stderr, reason = "talk for the person at the terminal")]
fn say(text: &str) {
    eprint!("{text}");
}
