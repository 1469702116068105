//! Profiles of the running program, as Go's programs give them to `go tool pprof`: of the processor and of
//! the heap on `localhost`, and now and then into files.
//!
//! Of the processor nothing is sampled while nobody asks; of the heap, from the start where profiles are
//! configured. Of the other profiles of Go's there is none: there are no goroutines to list. Who asks for
//! them is told.

mod encode;
mod symbols;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use http::{StatusCode, request};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio_util::sync::CancellationToken;

use self::encode::{Kind, Measured};
use self::symbols::Symbols;
use crate::blocking::Blocking;
use crate::clock::Clock;
use crate::pages::{Page, PageListener, page, refused};
use crate::sys::heap;
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

/// From now on a sample of the memory that is taken is noted, for profiles of the heap. To be called as soon
/// as it is known that profiles are wanted: of what was taken before they say nothing.
pub fn note_memory() {
    heap::note();
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
        "heap" => match memory(&clock).await {
            Ok(file) => page("application/octet-stream", file),
            Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
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
        let period = PERIOD.unsigned_abs() * 1000;
        let measured = Measured {
            kinds: &[SAMPLES, TIME],
            samples: encode::counted(&seen.stacks, period),
            began: since_1970(began),
            took: nanoseconds(took),
            period: (TIME, period),
        };
        encode::file(&measured, &Symbols::load())
    };
    Blocking::new(1).run(write).await.map_err(io::Error::other)
}

/// The file of a profile of the heap, as it is now.
async fn memory(clock: &Arc<dyn Clock>) -> io::Result<Vec<u8>> {
    if !heap::is_noting() {
        return Err(io::Error::other("Could not profile the heap: nothing was noted"));
    }
    let now = since_1970(clock.now());
    let write = move || {
        let sites = heap::sites();
        let numbers = |site: &heap::Site| {
            let held = [site.taken.0 - site.given_back.0, site.taken.1 - site.given_back.1];
            [site.taken.0, site.taken.1, held[0], held[1]]
                .map(|number| number.max(0.0).round() as u64)
                .to_vec()
        };
        let measured = Measured {
            kinds: &HEAP,
            samples: sites.iter().map(|(stack, site)| (stack.as_slice(), numbers(site))).collect(),
            began: now,
            took: 0,
            period: (SPACE, heap::RATE.into()),
        };
        encode::file(&measured, &Symbols::load())
    };
    Blocking::new(1).run(write).await.map_err(io::Error::other)
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, nanoseconds)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes profiles into files, again and again, if that is asked for.
async fn write(profiling: &Profiling, clock: Arc<dyn Clock>, stop: CancellationToken) {
    if profiling.every.is_zero() {
        return;
    }
    let (known, others): (Vec<&str>, Vec<&str>) =
        profiling.names.iter().map(String::as_str).partition(|name| [CPU, MEMORY].contains(name));
    for name in others {
        tracing::warn!(name, "There is no such profile; it is not written");
    }
    if known.is_empty() {
        tracing::warn!("Failed to run profiling: there are no dumpers active");
        return;
    }
    loop {
        let profiles = async {
            let processor = match known.contains(&CPU) {
                true => Some((CPU, cpu(profiling.every, &clock).await)),
                false => {
                    clock.sleep(profiling.every).await;
                    None
                }
            };
            let memory = if known.contains(&MEMORY) { Some((MEMORY, memory(&clock).await)) } else { None };
            processor.into_iter().chain(memory)
        };
        let profiles = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            profiles = profiles => profiles,
        };
        for (name, profile) in profiles {
            let place = place(profiling.tag, name, clock.now().into());
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
}

fn place(tag: &str, name: &str, now: OffsetDateTime) -> PathBuf {
    let format = format_description!("[year]-[month]-[day]_[hour][minute][second]");
    let timestamp = now.format(format).unwrap_or_default();
    Path::new(FOLDER).join(format!("{timestamp}_{tag}_{name}.pb.gz"))
}

const INDEX: &str = "profile    the processor, ?seconds=30\nheap       memory, by who took it\n";

const SAMPLES: Kind = ("samples", "count");
const TIME: Kind = ("cpu", "nanoseconds");
const SPACE: Kind = ("space", "bytes");

/// As Go's: the last is what is shown unless another is asked for.
const HEAP: [Kind; 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

const CPU: &str = "cpu";
const MEMORY: &str = "heap";
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
        let place = place("server", CPU, OffsetDateTime::UNIX_EPOCH);

        assert_eq!(place, Path::new(".profiles/1970-01-01_000000_server_cpu.pb.gz"));
    }
}
