//! `finial bench`: load on a server and an agent, Finial's or SPIRE's, and what it costs them.
//!
//! Progress goes to stderr while a command runs, the report to stdout at its end.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bench::{BenchError, Settings, Surroundings, TargetSettings};
use runtime::shutdown::Shutdown;
use serde::Serialize;

use super::flags::{Flag, Flags, Kind, Output, flag, flag_or};
use super::rpc::{SERVER_SOCKET, output_flag};
use super::{Command, Failure, FlagError, Printer};

/// All commands.
pub(crate) fn commands() -> Vec<Command> {
    vec![
        command(
            "seed",
            "Creates entries that stay",
            &[entries("100000"), PARENTS, batches("1000")],
            |flags, printer| run(bench::Command::Seed, flags, printer),
        ),
        command(
            "x509",
            "Signs X.509-SVIDs for agents, in batches",
            &[ADDRESS, REMOTE, agents("64"), batches("1,50,500"), callers("4"), DURATION, RATE, PATIENCE],
            |flags, printer| run(bench::Command::X509, flags, printer),
        ),
        command(
            "jwt",
            "Signs JWT-SVIDs for agents",
            &[ADDRESS, REMOTE, agents("64"), callers("16"), DURATION, RATE, PATIENCE],
            |flags, printer| run(bench::Command::Jwt, flags, printer),
        ),
        command(
            "mint",
            "Mints X.509-SVIDs and JWT-SVIDs as administrators do",
            &[callers("16"), DURATION, RATE],
            |flags, printer| run(bench::Command::Mint, flags, printer),
        ),
        command(
            "attest",
            "Attests agents by join tokens, each on a connection of its own",
            &[ADDRESS, REMOTE, count("500", "How many agents join"), callers("16"), RATE],
            |flags, printer| run(bench::Command::Attest, flags, printer),
        ),
        command(
            "entry",
            "Creates, changes and deletes entries, in batches of 1,000 and one by one",
            &[entries("20000"), callers("64")],
            |flags, printer| run(bench::Command::Entry, flags, printer),
        ),
        command(
            "sync",
            "Syncs agents that have these numbers of entries, when nothing has changed",
            &[
                ADDRESS,
                REMOTE,
                agents("8"),
                entries("1000,10000"),
                count("20", "How many syncs from nothing come first"),
                callers("4"),
                DURATION,
                RATE,
                PATIENCE,
            ],
            |flags, printer| run(bench::Command::Sync, flags, printer),
        ),
        command(
            "idle",
            "Holds many agents with nothing to do, which poll",
            &[
                ADDRESS,
                REMOTE,
                agents("1000"),
                entries("10"),
                flag_or("interval", Kind::Duration, "5s", "How often an agent polls"),
                callers("64"),
                DURATION,
                RATE,
                PATIENCE,
            ],
            |flags, printer| run(bench::Command::Idle, flags, printer),
        ),
        command(
            "watch",
            "Holds many agents that are told of changes, and makes changes that concern one each",
            &[
                ADDRESS,
                REMOTE,
                agents("1000"),
                entries("10"),
                count("100", "How many entries, one after the other"),
                PATIENCE,
            ],
            |flags, printer| run(bench::Command::Watch, flags, printer),
        ),
        command(
            "propagate",
            "Measures from the creation of an entry to the identity of the workload",
            &[
                AGENT_SOCKET,
                AGENT_PID,
                PARENT,
                count("50", "How many entries, one after the other"),
                PATIENCE,
            ],
            |flags, printer| run(bench::Command::Propagate, flags, printer),
        ),
        command(
            "workload",
            "Asks an agent for what workloads ask for",
            &[
                AGENT_SOCKET,
                AGENT_PID,
                PARENT,
                flag_or("streams", Kind::Int, "1000", "How many streams are held open"),
                flag("connections", Kind::Int, "On how many connections (default: on one each)"),
                flag_or("rotations", Kind::Int, "5", "Of how many new X.509-SVIDs the streams are told"),
                flag(
                    "agentAdminSocketPath",
                    Kind::Text,
                    "Path to the agent's admin socket: cached X.509-SVIDs are measured too",
                ),
                entries("1000"),
                callers("16"),
                DURATION,
                RATE,
                PATIENCE,
            ],
            |flags, printer| run(bench::Command::Workload, flags, printer),
        ),
        command(
            "storm",
            "Measures how long all agents take to come back after a restart of the server",
            &[
                ADDRESS,
                REMOTE,
                agents("1000"),
                entries("10"),
                flag(
                    "restart",
                    Kind::Text,
                    "What restarts the server, for the shell (default: somebody else does)",
                ),
                PATIENCE,
            ],
            |flags, printer| run(bench::Command::Storm, flags, printer),
        ),
        command(
            "soak",
            "Signs, syncs and writes at once, for long",
            &[ADDRESS, REMOTE, agents("64"), entries("100"), callers("16"), DURATION, RATE, PATIENCE],
            |flags, printer| run(bench::Command::Soak, flags, printer),
        ),
        command(
            "verify",
            "Reads back all entries and agents, and those of seed one by one",
            &[flag("entries", Kind::Text, "How many entries of seed must be there"), PARENTS],
            |flags, printer| run(bench::Command::Verify, flags, printer),
        ),
        command(
            "compare",
            "Runs the commands for servers on two of them, by turns",
            &[
                ADDRESS,
                REMOTE,
                flag_or("otherLabel", Kind::Text, "second", "What the second server is called"),
                flag("otherSocketPath", Kind::Text, "Path to the second server's API socket"),
                flag("otherServerAddress", Kind::Text, "The second server's port for agents, host:port"),
                flag(
                    "otherPid",
                    Kind::Int,
                    "The second server's process (default: who listens at its socket)",
                ),
                agents("64"),
                entries("1000"),
                batches("1,50,500"),
                callers("16"),
                count("300", "How many agents join"),
                flag_or("interval", Kind::Duration, "1s", "How often an idle agent polls"),
                DURATION,
                PATIENCE,
            ],
            compare,
        ),
    ]
}

const ADDRESS: Flag = flag("serverAddress", Kind::Text, "The server's port for agents, host:port");
const REMOTE: Flag =
    flag("remote", Kind::Bool, "The server may be on another machine, which it may bring down");
const PARENTS: Flag = flag_or("parents", Kind::Int, "100", "Below how many parents the entries are spread");
const DURATION: Flag = flag_or("duration", Kind::Duration, "10s", "How long each step lasts");
const RATE: Flag = flag(
    "rate",
    Kind::Text,
    "Calls a second, each timed from when it was due (default: as many as can be, then half of that)",
);
const PATIENCE: Flag = flag_or("patience", Kind::Duration, "60s", "How long changes may take to arrive");
const AGENT_SOCKET: Flag = flag("agentSocketPath", Kind::Text, "Path to the agent's Workload API socket");
const AGENT_PID: Flag =
    flag("agentPid", Kind::Int, "The agent's process (default: who listens at its socket)");
const PARENT: Flag =
    flag("parentID", Kind::Text, "Below which id this process's entries are (default: the only agent)");

const fn entries(default: &'static str) -> Flag {
    flag_or(
        "entries",
        Kind::Text,
        default,
        "How many entries; several numbers with commas, one after the other",
    )
}

const fn batches(default: &'static str) -> Flag {
    flag_or("batch", Kind::Text, default, "How many items a call carries; several numbers with commas")
}

const fn agents(default: &'static str) -> Flag {
    flag_or("agents", Kind::Int, default, "How many agents are simulated")
}

const fn callers(default: &'static str) -> Flag {
    flag_or("callers", Kind::Int, default, "How many calls are under way at a time, at most")
}

const fn count(default: &'static str, help: &'static str) -> Flag {
    flag_or("count", Kind::Int, default, help)
}

fn command(name: &'static str, about: &'static str, own: &[Flag], action: super::Action) -> Command {
    let common = [
        flag_or("socketPath", Kind::Text, SERVER_SOCKET, "Path to the server's API socket"),
        flag("pid", Kind::Int, "The server's process (default: who listens at its socket)"),
        flag_or("label", Kind::Text, "target", "What the server is called in the report"),
        flag_or("checkEvery", Kind::Int, "1000", "One answer in so many is checked in full"),
        flag("keep", Kind::Bool, "Leave entries and agents in place"),
        output_flag(),
    ];
    Command { name, about, flags: [own, &common].concat(), on_flag_error: FlagError::Once, action }
}

fn run(command: bench::Command, flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let settings = settings(flags)?;
    let report = block_on(async |around| bench::run(command, &settings, &around).await)?;
    print(flags, printer, &report, || report.pretty())
}

fn compare(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let settings = settings(flags)?;
    let other = TargetSettings {
        label: flags.text("otherLabel").to_owned(),
        server_socket: path(flags, "otherSocketPath"),
        server_address: given(flags, "otherServerAddress"),
        server_pid: process(flags, "otherPid")?,
        ..settings.target.clone()
    };
    let comparison = block_on(async |around| bench::compare(&settings, &other, &around).await)?;
    print(flags, printer, &comparison, || comparison.pretty())
}

fn print(
    flags: &Flags,
    printer: &mut Printer,
    found: &impl Serialize,
    pretty: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match flags.output() {
        Output::Json => {
            let text =
                serde_json::to_string(found).map_err(|error| format!("cannot print the report: {error}"))?;
            printer.out = text + "\n";
        }
        Output::Pretty => printer.out = pretty(),
    }
    Ok(())
}

/// On all cores that this process may use: `taskset` says which those are.
fn block_on<T>(work: impl AsyncFnOnce(Surroundings) -> Result<T, BenchError>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        shutdown.listen_to_signals().map_err(|error| format!("cannot listen to signals: {error}"))?;
        let progress = Arc::new(|line: &str| {
            // Nobody may be there to read it.
            let _gone = writeln!(std::io::stderr(), "{line}");
        });
        let found = work(Surroundings { progress, shutdown }).await;
        found.map_err(|error| Failure::Error(runtime::chain(&error)))
    })
}

fn settings(flags: &Flags) -> Result<Settings, Failure> {
    let default = Settings::default();
    let target = TargetSettings {
        label: flags.text("label").to_owned(),
        server_socket: path(flags, "socketPath"),
        server_address: given(flags, "serverAddress"),
        agent_socket: path(flags, "agentSocketPath"),
        agent_admin_socket: path(flags, "agentAdminSocketPath"),
        server_pid: process(flags, "pid")?,
        agent_pid: process(flags, "agentPid")?,
        remote: flags.is_on("remote"),
    };
    Ok(Settings {
        target,
        duration: duration(flags, "duration").unwrap_or(default.duration),
        rate: rate(flags)?,
        callers: number(flags, "callers")?.unwrap_or(default.callers),
        agents: number(flags, "agents")?.unwrap_or(default.agents),
        entries: numbers(flags, "entries")?,
        parents: number(flags, "parents")?.unwrap_or(default.parents),
        batches: numbers(flags, "batch")?,
        count: number(flags, "count")?.unwrap_or(default.count),
        interval: duration(flags, "interval").unwrap_or(default.interval),
        streams: number(flags, "streams")?.unwrap_or(default.streams),
        connections: number(flags, "connections")?,
        rotations: number(flags, "rotations")?.unwrap_or(default.rotations),
        check_every: u64::try_from(flags.int("checkEvery")).unwrap_or(default.check_every),
        keep: flags.is_on("keep"),
        parent_id: given(flags, "parentID"),
        restart: given(flags, "restart"),
        patience: duration(flags, "patience").unwrap_or(default.patience),
    })
}

fn given(flags: &Flags, name: &str) -> Option<String> {
    Some(flags.text(name).to_owned()).filter(|text| !text.is_empty())
}

fn path(flags: &Flags, name: &str) -> Option<PathBuf> {
    given(flags, name).map(PathBuf::from)
}

fn duration(flags: &Flags, name: &str) -> Option<Duration> {
    Some(flags.duration(name)).filter(|duration| !duration.is_zero())
}

/// A process by its id.
fn process(flags: &Flags, name: &str) -> Result<Option<i32>, Failure> {
    if !flags.is_given(name) {
        return Ok(None);
    }
    let pid = flags.int(name);
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    pid.map(Some).ok_or_else(|| Failure::Error(format!("-{name} {} is no process", flags.text(name))))
}

fn number(flags: &Flags, name: &str) -> Result<Option<usize>, Failure> {
    if flags.text(name).is_empty() {
        return Ok(None);
    }
    let number = usize::try_from(flags.int(name)).ok().filter(|number| (1..=MOST).contains(number));
    number.map(Some).ok_or_else(|| out_of_range(flags, name))
}

fn numbers(flags: &Flags, name: &str) -> Result<Vec<usize>, Failure> {
    let text = flags.text(name);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let number = |text: &str| text.trim().parse().ok().filter(|number| (1..=MOST).contains(number));
    text.split(',').map(|text| number(text).ok_or_else(|| out_of_range(flags, name))).collect()
}

fn rate(flags: &Flags) -> Result<Option<f64>, Failure> {
    let text = flags.text("rate");
    if text.is_empty() {
        return Ok(None);
    }
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.map(Some).ok_or_else(|| out_of_range(flags, "rate"))
}

fn out_of_range(flags: &Flags, name: &str) -> Failure {
    Failure::Error(format!("-{name} {:?} is no number from 1 to {MOST}", flags.text(name)))
}

/// More of anything is a slip of the finger.
const MOST: usize = 100_000_000;
