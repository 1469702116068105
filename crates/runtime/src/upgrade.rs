//! A program that becomes its successor: the same process, another version, and listening sockets that
//! never close.
//!
//! SIGHUP asks for it, unless the program has a terminal, whose end the signal tells then. The program at
//! the path that this one was started from is asked first whether it accepts the configuration
//! (`validate`); if it does not, nothing changes. Else this one drains as if it were told to stop, and
//! becomes the other. Clients that connect meanwhile wait in the sockets' queues.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, io};

use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::clock::{Clock, within};
use crate::listen::{hand_over, pass_on};
use crate::manager;
use crate::shutdown::Shutdown;

/// How long the successor may take to judge the configuration.
const PATIENCE: Duration = Duration::from_secs(30);

/// What this process becomes when it is told to.
#[derive(Clone, Debug)]
pub struct Upgrade {
    program: PathBuf,
    arguments: Vec<OsString>,
    is_wanted: Arc<AtomicBool>,
}

/// Why the successor is none.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("it cannot be started")]
    NotStarted(#[from] io::Error),
    #[error("it does not accept the configuration: {0}")]
    Refuses(String),
    #[error("it does not say within 30 s whether it accepts the configuration")]
    Silent,
}

impl Upgrade {
    /// Notes what this program is, before it can have been replaced.
    ///
    /// # Errors
    /// What the system says.
    pub fn prepare() -> io::Result<Self> {
        let arguments = env::args_os().collect();
        Ok(Self { program: env::current_exe()?, arguments, is_wanted: Arc::default() })
    }

    /// Whether this process is to become the successor, once it has drained.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Acquire)
    }

    /// From now on SIGHUP asks for it, where it does not mean that a terminal is gone. To be called within
    /// a Tokio runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen_to_signals(&self, shutdown: &Shutdown, clock: Arc<dyn Clock>) -> io::Result<()> {
        let has_terminal = std::fs::File::open("/dev/tty").is_ok();
        if has_terminal {
            return Ok(());
        }
        let mut asked = signal(SignalKind::hangup())?;
        let (upgrade, shutdown) = (self.clone(), shutdown.clone());
        #[expect(clippy::disallowed_methods, reason = "outlives all tasks, as the other signals do")]
        tokio::spawn(async move {
            while asked.recv().await.is_some() && !shutdown.is_triggered() {
                info!(program = %upgrade.program.display(), "Upgrade asked for");
                match upgrade.judge(&*clock).await {
                    // It was told to end meanwhile.
                    Ok(()) if shutdown.is_triggered() => {}
                    Ok(()) => {
                        upgrade.is_wanted.store(true, Ordering::Release);
                        manager::notify_reloading();
                        hand_over();
                        shutdown.trigger();
                    }
                    Err(unfit) => {
                        error!(error = %crate::chain(&unfit), "Upgrade refused; going on as before")
                    }
                }
            }
        });
        Ok(())
    }

    /// Becomes the successor. Comes back only if that fails: by then nothing is served.
    ///
    /// # Errors
    /// What the system says.
    pub fn go_on(&self) -> io::Error {
        match pass_on() {
            Ok(variables) => self.command(self.arguments.iter().skip(1)).envs(variables).exec(),
            Err(error) => error,
        }
    }

    /// Whether the successor accepts the configuration.
    async fn judge(&self, clock: &dyn Clock) -> Result<(), Unfit> {
        let mut arguments: Vec<OsString> = self.arguments.iter().skip(1).cloned().collect();
        if let Some(run) = arguments.iter_mut().find(|argument| *argument == "run") {
            *run = OsString::from("validate");
        }
        let mut command = tokio::process::Command::from(self.command(&arguments));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = within(clock, PATIENCE, command.output()).await.ok_or(Unfit::Silent)??;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        Err(Unfit::Refuses(said.trim().lines().next_back().unwrap_or_default().to_owned()))
    }

    fn command(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
    ) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        if let Some(name) = self.arguments.first() {
            command.arg0(name);
        }
        command.args(arguments);
        command
    }
}
