//! The process that is measured: its processor time and its memory, as the kernel counts them.
//!
//! Where the scheduler keeps statistics, time is counted in nanoseconds, thread by thread; a thread that
//! ended in between takes its count along, and then the hundredths of a second of the whole process
//! have to do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

use crate::BenchError;

/// A process by its id.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pid: i32,
    folder: PathBuf,
}

/// What a process had used at some moment.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    ticks: Duration,
    threads: BTreeMap<String, Duration>,
}

impl Process {
    /// The process `pid`.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn of_pid(pid: i32) -> Result<Self, BenchError> {
        let process = Self { pid, folder: Path::new("/proc").join(pid.to_string()) };
        if process.is_running() { Ok(process) } else { Err(BenchError::NoProcess(pid)) }
    }

    /// The process that listens at `socket`.
    ///
    /// # Errors
    /// Nobody does, or it cannot be told who.
    pub(crate) async fn behind(socket: &Path) -> Result<Self, BenchError> {
        let failed = |error: std::io::Error| {
            BenchError::Unreached(format!("cannot connect to {}: {error}", socket.display()))
        };
        let stream = UnixStream::connect(socket).await.map_err(failed)?;
        let pid = stream.peer_cred().map_err(failed)?.pid().unwrap_or_default();
        Self::of_pid(pid)
    }

    /// Its id.
    pub(crate) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it is still there.
    pub(crate) fn is_running(&self) -> bool {
        self.folder.join("stat").exists()
    }

    /// The program's file, as far as it can be told.
    pub(crate) fn program(&self) -> String {
        let words = fs::read(self.folder.join("cmdline")).unwrap_or_default();
        let first = words.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(first).into_owned()
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> Usage {
        let stat = fs::read_to_string(self.folder.join("stat")).unwrap_or_default();
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(self.folder.join("task")).into_iter().flatten().flatten() {
            let counted = fs::read_to_string(thread.path().join("schedstat")).ok();
            let nanos = counted.as_deref().and_then(|text| text.split(' ').next()?.parse().ok());
            if let Some(nanos) = nanos {
                threads
                    .insert(thread.file_name().to_string_lossy().into_owned(), Duration::from_nanos(nanos));
            }
        }
        Usage { ticks: ticks(&stat), threads }
    }

    /// Resident memory of its own, in bytes: not its code, of which more or less is mapped from one second to
    /// the next.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(self.folder.join("status")).unwrap_or_default();
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next());
        kilobytes.and_then(|text| text.parse::<u64>().ok()).unwrap_or_default() * 1024
    }
}

impl Usage {
    /// All of it.
    pub(crate) fn total(&self) -> Duration {
        self.since(&Self { ticks: Duration::ZERO, threads: BTreeMap::new() })
    }

    /// The processor time from `before` to this.
    pub(crate) fn since(&self, before: &Self) -> Duration {
        let ticks = self.ticks.saturating_sub(before.ticks);
        let is_complete = before.threads.keys().all(|thread| self.threads.contains_key(thread));
        let nanos: Duration = self
            .threads
            .iter()
            .map(|(thread, now)| now.saturating_sub(before.threads.get(thread).copied().unwrap_or_default()))
            .sum();
        // Without statistics the kernel shows zeros.
        if is_complete && !nanos.is_zero() { nanos } else { ticks }
    }
}

/// User and system time of the whole process out of `/proc/PID/stat`, whose second field is a name in
/// parentheses that may hold anything.
fn ticks(stat: &str) -> Duration {
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = behind_name
        .split_whitespace()
        .skip(USER_TIME)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // The unit has been a hundredth of a second on every Linux of this century.
    Duration::from_millis(ticks * 10)
}

/// Which field behind the name the user time is; the system time follows.
const USER_TIME: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_stat_line_may_hold_anything() {
        let stat = "7 (a) 9 (b)) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";

        assert_eq!(ticks(stat), Duration::from_secs(2));
    }

    #[test]
    fn a_thread_that_ended_leaves_the_count_to_the_process() {
        let usage = |ticks, threads: &[(&str, u64)]| Usage {
            ticks: Duration::from_millis(ticks),
            threads: threads.iter().map(|(id, ms)| ((*id).to_owned(), Duration::from_millis(*ms))).collect(),
        };

        let before = usage(100, &[("1", 40), ("2", 60)]);

        assert_eq!(usage(210, &[("1", 45), ("2", 160), ("3", 3)]).since(&before), Duration::from_millis(108));
        assert_eq!(usage(210, &[("1", 45)]).since(&before), Duration::from_millis(110));
        assert_eq!(usage(210, &[]).since(&usage(100, &[])), Duration::from_millis(110));
    }

    #[test]
    fn this_process_has_used_something() {
        let own = Process::of_pid(i32::try_from(std::process::id()).unwrap()).unwrap();

        assert!(own.memory() > 100_000);
        assert!(!own.program().is_empty());
        assert!(own.usage().total() > Duration::ZERO);
        assert!(Process::of_pid(0).is_err());
    }
}
