//! What a program sets for itself when it starts: the modes of its files, how many it may open, and
//! that no image of its memory is left behind.

use std::io;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use crate::sys;

/// A change of the umask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UmaskChange {
    /// What it was.
    pub from: u32,
    /// What it is.
    pub to: u32,
}

/// Makes sure that files are made without write permission for the group and without any for others,
/// unless a mode is set for them afterwards. Tells the change, if there was one to make.
///
/// It takes the umask away for a moment to read it, so it belongs before the first thread that makes
/// files.
pub fn restrict_umask() -> Option<UmaskChange> {
    let least = Mode::from_raw_mode(LEAST_UMASK);
    let from = rustix::process::umask(least);
    let to = from | least;
    rustix::process::umask(to);
    (from != to).then(|| UmaskChange { from: from.as_raw_mode(), to: to.as_raw_mode() })
}

/// Allows as many open files as the system lets this process have: each connection is one, and the
/// usual soft limit of 1024 is there for programs that use `select`.
///
/// # Errors
/// What the system says.
pub fn raise_file_limit() -> io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    Ok(rustix::process::setrlimit(Resource::Nofile, raised)?)
}

/// Keeps the memory of this process, and the keys in it, from core files and from other processes of
/// the same user.
///
/// # Errors
/// What the system says.
pub fn forbid_core_dumps() -> io::Result<()> {
    let maximum = rustix::process::getrlimit(Resource::Core).maximum;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum })?;
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Has this thread take its turns on the processors behind the others of the process, where there are too few
/// for all: for work that comes in bulk, beside calls that take microseconds. It is not starved: of a processor
/// that others keep busy it has a quarter.
///
/// # Errors
/// What the system says; then all is as it was.
pub fn give_way_to_other_threads() -> io::Result<()> {
    // On Linux it is a matter of threads, not of processes.
    let thread = rustix::thread::gettid();
    let nice = rustix::process::getpriority_process(Some(thread))?;
    Ok(rustix::process::setpriority_process(Some(thread), nice + GIVEN_WAY)?)
}

/// Has this thread go before those that are at work, of this program and of others, when it is woken and there are
/// too few processors for all: for calls that take microseconds. Without it the kernel lets who is at work go on
/// for some milliseconds, even who gives way. It is for who needs little: how much of a processor a thread gets is
/// not changed. Threads that it starts do not have it. Kernels before Linux 6.12 take no notice.
pub fn answer_at_once() {
    let asked = rustix::process::getpriority_process(Some(rustix::thread::gettid()))
        .map_err(io::Error::from)
        .and_then(|niceness| sys::scheduling::ask_for_turns_of(SHORTEST_TURN, niceness));
    if let Err(error) = asked {
        tracing::debug!(%error, "Calls wait for their turn on the processors as long as all else");
    }
}

/// What Linux allows.
const SHORTEST_TURN: Duration = Duration::from_micros(100);

/// Of a processor that two want, who is nicer by 5 has a quarter.
const GIVEN_WAY: i32 = 5;

/// SPIRE's.
const LEAST_UMASK: u32 = 0o027;

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Runs the test of that name again, in a process of its own: what it changes is the process's.
    fn alone(test: &str) -> bool {
        if std::env::var_os(ALONE).is_some_and(|name| name == test) {
            return true;
        }
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("process::tests::{test}")])
            .env(ALONE, test)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        false
    }

    #[test]
    fn the_umask_only_ever_forbids_more() {
        if !alone("the_umask_only_ever_forbids_more") {
            return;
        }
        rustix::process::umask(Mode::from_raw_mode(0o002));

        assert_eq!(restrict_umask(), Some(UmaskChange { from: 0o002, to: 0o027 }));
        assert_eq!(restrict_umask(), None);
        rustix::process::umask(Mode::from_raw_mode(0o077));
        assert_eq!(restrict_umask(), None);
        assert_eq!(rustix::process::umask(Mode::from_raw_mode(0)).as_raw_mode(), 0o077);
    }

    #[test]
    fn as_many_files_as_allowed() {
        if !alone("as_many_files_as_allowed") {
            return;
        }
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum }).unwrap();

        raise_file_limit().unwrap();

        assert_eq!(rustix::process::getrlimit(Resource::Nofile).current, maximum);
    }

    #[test]
    fn k08_no_image_of_memory_is_left() {
        if !alone("k08_no_image_of_memory_is_left") {
            return;
        }

        forbid_core_dumps().unwrap();

        assert_eq!(rustix::process::getrlimit(Resource::Core).current, Some(0));
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        // Reading about itself must still work: the agent attests itself.
        std::fs::read_link("/proc/self/exe").unwrap();
        std::fs::read_to_string("/proc/self/status").unwrap();
    }

    const ALONE: &str = "FINIAL_TEST_ALONE";

    #[test]
    fn r00_a_thread_that_gives_way_is_nicer_than_the_others() {
        let nice = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = nice();

        let given = std::thread::spawn(move || {
            give_way_to_other_threads().unwrap();
            nice()
        });

        assert_eq!(given.join().unwrap(), (before + GIVEN_WAY).min(19));
        assert_eq!(nice(), before);
    }

    #[test]
    fn r00_a_thread_that_answers_at_once_has_short_turns_and_those_it_starts_have_not() {
        let turn = || {
            let shown = std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
            let line = shown.lines().find(|line| line.starts_with("se.slice")).map(str::to_owned);
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        };
        let (before, started, own) = std::thread::spawn(move || {
            let before = turn();
            answer_at_once();
            (before, std::thread::spawn(turn).join().unwrap(), turn())
        })
        .join()
        .unwrap();

        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let numbers: Vec<u32> =
            release.split(['.', '-']).map_while(|part| part.parse().ok()).take(2).collect();
        // Kernels before 6.12 leave turns as they are; some do not show them.
        let expected = before.map(|before| if numbers < vec![6, 12] { before } else { 100_000 });
        assert_eq!(own, expected);
        assert_eq!(started, before);
    }
}
