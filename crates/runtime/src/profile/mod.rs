//! Profiles of the running program, as Go's programs give them to `go tool pprof`: of the processor on
//! `localhost`, and now and then into files.
//!
//! Nothing is sampled while nobody asks. Of the other profiles of Go's there is none: there are no
//! goroutines to list, and the allocator does not note where blocks come from. Who asks for them is told.

mod encode;
mod symbols;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use futures::future::BoxFuture;
use http::{StatusCode, request};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio_util::sync::CancellationToken;

use self::encode::Measured;
use self::symbols::Symbols;
use crate::blocking::Blocking;
use crate::clock::Clock;
use crate::pages::{Page, PageListener, page, refused};
use crate::sys::sampler::Sampler;

/// What of `profiling_*` the configuration asks for.
#[derive(Clone, Debug)]
pub struct Profiling {
    /// The port on `localhost`; 0 is none.
    pub port: u16,
    /// From one file to the next; zero is none.
    pub every: Duration,
    /// What is to be written into files.
    pub names: Vec<String>,
    /// The program, for the names of files.
    pub tag: &'static str,
}

/// Serves profiles and writes them until `stop` is cancelled. What cannot be had is told in the log and
/// ends nothing.
pub fn run(profiling: Profiling, clock: Arc<dyn Clock>, stop: CancellationToken) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let served = serve(profiling.port, Arc::clone(&clock), stop.clone());
        tokio::join!(served, write(&profiling, clock, stop));
    })
}

async fn serve(port: u16, clock: Arc<dyn Clock>, stop: CancellationToken) {
    if port == 0 {
        return;
    }
    match PageListener::bind("localhost", port).await {
        Ok(listener) => {
            tracing::info!(address = %listener.address(), subsystem_name = "profiling", "Serving profiles");
            let answer = move |request: request::Parts| answer(request, Arc::clone(&clock));
            listener.serve(None, answer, stop).await;
        }
        Err(error) => tracing::warn!("Unable to serve profiling server: {}", crate::chain(&error)),
    }
}

async fn answer(request: request::Parts, clock: Arc<dyn Clock>) -> Page {
    let Some(name) = request.uri.path().strip_prefix("/debug/pprof/") else {
        return refused(StatusCode::NOT_FOUND, "404 page not found");
    };
    match name {
        "" => page("text/plain; charset=utf-8", INDEX),
        "profile" => {
            let time = Duration::from_secs(seconds(request.uri.query().unwrap_or_default()));
            match cpu(time, &clock).await {
                Ok(file) => page("application/octet-stream", file),
                Err(error) => {
                    let line = format!("Could not enable CPU profiling: {error}");
                    refused(StatusCode::INTERNAL_SERVER_ERROR, &line)
                }
            }
        }
        // Asked by `pprof` about code that a profile has no names for: there are no others.
        "symbol" => page("text/plain; charset=utf-8", "num_symbols: 0\n"),
        "heap" | "allocs" => refused(StatusCode::NOT_FOUND, NO_HEAP),
        _ => refused(StatusCode::NOT_FOUND, "Unknown profile"),
    }
}

/// For how long, by the query `seconds=`.
fn seconds(query: &str) -> u64 {
    let asked = query.split('&').find_map(|pair| pair.strip_prefix("seconds="));
    let asked = asked.and_then(|number| number.parse().ok()).filter(|number| *number > 0);
    asked.unwrap_or(USUAL).min(LONGEST)
}

/// The file of a profile of the processor.
async fn cpu(time: Duration, clock: &Arc<dyn Clock>) -> io::Result<Vec<u8>> {
    let (began, from) = (clock.now(), clock.instant());
    let busy = || io::Error::other("cpu profiling already in use");
    let sampler = Sampler::start(PERIOD)?.ok_or_else(busy)?;
    clock.sleep(time).await;
    let took = clock.instant().saturating_duration_since(from);
    let write = move || {
        let seen = sampler.stop();
        if seen.lost > 0 {
            tracing::warn!(lost = seen.lost, "The profile is longer than there is room for");
        }
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let measured = Measured {
            stacks: &seen.stacks,
            began: began.duration_since(UNIX_EPOCH).map_or(0, nanoseconds),
            took: nanoseconds(took),
            period: PERIOD.unsigned_abs() * 1000,
        };
        encode::file(&measured, &Symbols::load())
    };
    Blocking::new(1).run(write).await.map_err(io::Error::other)
}

/// Writes a profile of the processor into a file, again and again, if that is asked for.
async fn write(profiling: &Profiling, clock: Arc<dyn Clock>, stop: CancellationToken) {
    if profiling.every.is_zero() {
        return;
    }
    for name in profiling.names.iter().filter(|name| *name != CPU) {
        tracing::warn!(name, "There is no such profile; it is not written");
    }
    if !profiling.names.iter().any(|name| name == CPU) {
        tracing::warn!("Failed to run profiling: there are no dumpers active");
        return;
    }
    loop {
        let profile = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            profile = cpu(profiling.every, &clock) => profile,
        };
        let place = place(profiling.tag, clock.now().into());
        let written = match profile {
            Ok(file) => {
                let to = place.clone();
                let write = move || fs::create_dir_all(FOLDER).and_then(|()| fs::write(to, file));
                Blocking::new(1).run(write).await.map_err(io::Error::other).and_then(|written| written)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::warn!(%error, path = %place.display(), "Could not write a profile");
            clock.sleep(PAUSE).await;
        }
    }
}

fn place(tag: &str, now: OffsetDateTime) -> PathBuf {
    let format = format_description!("[year]-[month]-[day]_[hour][minute][second]");
    let timestamp = now.format(format).unwrap_or_default();
    Path::new(FOLDER).join(format!("{timestamp}_{tag}_{CPU}.pb.gz"))
}

const INDEX: &str = "profile    the processor, ?seconds=30\n";
const NO_HEAP: &str = "there is no heap profile: the allocator does not note where blocks come from; the \
                       metrics runtime_alloc_bytes and runtime_heap_objects say how much there is";

const CPU: &str = "cpu";
const FOLDER: &str = ".profiles";

/// Microseconds of processor time from one stack to the next, as in Go.
const PERIOD: i64 = 10_000;

/// Seconds, as in Go; and the most.
const USUAL: u64 = 30;
const LONGEST: u64 = 300;

/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_as_go_reads_it() {
        let read = ["", "seconds=5", "a=1&seconds=7", "seconds=0", "seconds=x", "seconds=99999"].map(seconds);

        assert_eq!(read, [30, 5, 7, 30, 30, 300]);
    }

    #[test]
    fn files_are_named_by_time_program_and_profile() {
        let place = place("server", OffsetDateTime::UNIX_EPOCH);

        assert_eq!(place, Path::new(".profiles/1970-01-01_000000_server_cpu.pb.gz"));
    }
}
