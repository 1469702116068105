//! The programs behind `run`: a checked configuration in, a running server or agent out.
//!
//! What a program has to say while it runs goes to its log, the reason for its end too: scripts and
//! collectors that watch SPIRE look there.

use std::sync::Arc;

use agent::Agent;
use config::{AgentConfig, LogConfig, Note, NoteLevel, ServerConfig};
use runtime::clock::{Clock, SystemClock};
use runtime::log::{Format, Level, Log, Options, Output};
use runtime::shutdown::Shutdown;
use runtime::tasks::Group;
use runtime::upgrade::Upgrade;
use runtime::{chain, listen, memory, process};
use server::Server;

/// The program ended with an error, which stands in its log.
#[derive(Debug)]
pub(crate) struct Crashed;

/// An error of any kind, as it is logged.
type Reason = Box<dyn std::error::Error + Send + Sync>;

/// Runs a server until it is told to stop.
pub(crate) fn run_server(config: ServerConfig, log: Log) -> Result<(), Crashed> {
    let ended = until_stopped(None, |shutdown, clock| async move {
        // Starting may mean waiting for the datastore.
        let server = tokio::select! {
            biased;
            () = shutdown.token().cancelled() => return Ok(()),
            built = Server::build(config, log, clock) => built?.with_version(crate::SPIRE_VERSION),
        };
        Ok(server.run(&shutdown).await?)
    });
    match ended {
        Ok(()) => tracing::info!("Server stopped gracefully"),
        Err(reason) => {
            let error = chain(&*reason);
            tracing::error!(error = %error, "Fatal run error");
            tracing::error!(error = %error, "Server crashed");
            return Err(Crashed);
        }
    }
    Ok(())
}

/// Runs an agent until it is told to stop.
pub(crate) fn run_agent(config: AgentConfig, log: Log) -> Result<(), Crashed> {
    memory::zero_what_is_freed();
    let ended = until_stopped(Some(AGENT_THREADS), |shutdown, clock| async move {
        let agent = Agent::build(config, log, clock).await?.with_version(crate::SPIRE_VERSION);
        Ok(agent.run(&shutdown).await?)
    });
    match ended {
        Ok(()) => tracing::info!("Agent stopped gracefully"),
        Err(reason) => {
            tracing::error!(error = %chain(&*reason), "Agent crashed");
            return Err(Crashed);
        }
    }
    Ok(())
}

/// What an agent does beside serving workloads, which has a thread of its own: nearly always nothing. Two
/// threads, so that one may be held up; more would take memory on each node, and as many as it has
/// processors.
const AGENT_THREADS: usize = 2;

/// After how many tasks a thread that has more to do looks for what has come from outside. With Tokio's 61
/// what is urgent would wait for milliseconds; a look takes a hundredth of what eight tasks take.
const TASKS_BETWEEN_LOOKS: u32 = 8;

/// Runs a program, on all processors or on so many at most, until it ends, by itself or by a signal.
fn until_stopped<F>(
    most_threads: Option<usize>,
    program: impl FnOnce(Shutdown, Arc<dyn Clock>) -> F,
) -> Result<(), Reason>
where
    F: Future<Output = Result<(), Reason>>,
{
    if let Some(change) = process::restrict_umask() {
        let (from, to) = (change.from, change.to);
        tracing::warn!("Current umask {from:04o} is too permissive; setting umask {to:04o}");
    }
    process::raise_file_limit()?;
    process::forbid_core_dumps()?;
    let upgrade = Upgrade::prepare()?;
    listen::inherit();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(threads) = most_threads.filter(|most| *most < processors) {
        runtime.worker_threads(threads);
    }
    // What comes in bulk has threads of its own.
    runtime.on_thread_start(process::answer_at_once);
    let runtime = runtime.event_interval(TASKS_BETWEEN_LOOKS).enable_all().build()?;
    let shutdown = Shutdown::new();
    let ended = runtime.block_on(async {
        shutdown.listen_to_signals()?;
        upgrade.listen_to_signals(&shutdown, Arc::new(SystemClock))?;
        let program = program(shutdown.clone(), Arc::new(SystemClock));
        let without_successor = async {
            shutdown.triggered().await;
            if !upgrade.is_wanted() {
                listen::give_up();
            }
            std::future::pending().await
        };
        Group::new(shutdown.token().clone())
            .spawn("memory", async { memory::stay_small_at_rest(&SystemClock).await });
        tokio::select! {
            ended = program => ended,
            never = without_successor => never,
        }
    });
    drop(runtime);
    if ended.is_ok() && upgrade.is_wanted() {
        if shutdown.is_told_at_last() {
            listen::give_up();
            return ended;
        }
        tracing::info!("Becoming the successor");
        return Err(upgrade.go_on().into());
    }
    ended
}

/// Starts the log of the program and writes what loading the configuration had to say.
pub(crate) fn start_log(config: &LogConfig, notes: &[Note]) -> Result<Log, String> {
    let options = Options {
        level: Level::parse(&config.level).map_err(|error| format!("could not start logger: {error}"))?,
        format: Format::parse(&config.format).map_err(|error| format!("could not start logger: {error}"))?,
        output: config.file.clone().map_or(Output::Stdout, Output::File),
        source_location: config.source_location,
    };
    let log = Log::install(&options).map_err(|error| error.to_string())?;
    notes.iter().for_each(write);
    Ok(log)
}

fn write(note: &Note) {
    let alert = note.field("alert").map(|_| true);
    let alert_type = note.field("alert_type");
    let (keys, section, trust_domain) =
        (note.field("keys"), note.field("section"), note.field("trust_domain"));
    let message = &note.message;
    match note.level {
        NoteLevel::Error => tracing::error!(alert, alert_type, keys, section, trust_domain, "{message}"),
        NoteLevel::Warning => tracing::warn!(alert, alert_type, keys, section, trust_domain, "{message}"),
        NoteLevel::Info => tracing::info!(alert, alert_type, keys, section, trust_domain, "{message}"),
    }
}
