//! The log: `tracing` events as logrus writes them, since scripts and collectors read SPIRE's.
//!
//! Fields of the spans around an event are part of its line, the innermost winning; so a span with the
//! field `subsystem_name` stands for one of SPIRE's sub-loggers. Only events of Finial's own crates are
//! written. The level can be changed at run time, and a file is opened anew on SIGUSR2. Of lines that come
//! too fast, which others can make this program write, most are left out and counted.

mod flood;
mod format;
mod layer;
mod level;
mod output;

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt;

pub use self::format::{Format, UnknownFormat, Value};
pub use self::level::{Level, LogLevel, UnknownLevel};
use crate::BoxError;
use crate::clock::{Clock, SystemClock};

/// How to log.
#[derive(Clone, Debug)]
pub struct Options {
    /// Events below this level are left out.
    pub level: Level,
    /// How a line looks.
    pub format: Format,
    /// Where lines go.
    pub output: Output,
    /// Lines say where in the program they come from.
    pub source_location: bool,
}

impl Default for Options {
    /// As SPIRE logs when it is told nothing.
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Default, output: Output::Stdout, source_location: false }
    }
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Appended to a file, which is made with mode 0640 where it is missing.
    File(PathBuf),
}

/// The running log of the program. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct Log {
    level: LogLevel,
    format: Format,
    sink: Arc<output::Sink>,
    flood: Arc<flood::Flood>,
}

/// There is a log already.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened for writing.
    #[error("open {path}: {}", go_text(.source))]
    Open {
        /// The file.
        path: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The program has a log already.
    #[error("there is a log already")]
    Installed,
}

impl Log {
    /// Makes this the log of the whole program.
    ///
    /// # Errors
    /// If the file cannot be opened, or the program has a log already.
    pub fn install(options: &Options) -> Result<Self, LogError> {
        let (subscriber, log) = Self::new(options)?;
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Installed)?;
        Ok(log)
    }

    /// A log for a part of the program, such as one thread of a test, and the subscriber that feeds it.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn new(options: &Options) -> Result<(impl Subscriber + Send + Sync + use<>, Self), LogError> {
        let sink = output::Sink::open(&options.output).map_err(|source| match &options.output {
            Output::File(path) => LogError::Open { path: path.display().to_string(), source },
            Output::Stdout | Output::Stderr => LogError::Open { path: "output".into(), source },
        })?;
        let log = Self {
            level: LogLevel::new(options.level),
            format: options.format,
            sink: Arc::new(sink),
            flood: Arc::default(),
        };
        let (sink, flood) = (Arc::clone(&log.sink), Arc::clone(&log.flood));
        let layer = layer::Logrus::new(log.level.clone(), options, sink, flood);
        Ok((tracing_subscriber::registry().with(layer), log))
    }

    /// Writes a line whose fields are known only now, if its level is wanted. Of two fields with one
    /// name the last stands.
    pub fn record(
        &self,
        level: Level,
        message: &str,
        fields: impl IntoIterator<Item = (impl Into<Cow<'static, str>>, Value)>,
    ) {
        self.record_sealed(level, message, fields, |_| ());
    }

    /// The same for a line that says something of itself: `seal` has the last word on it before it is
    /// written, and is not asked for one that is not.
    pub fn record_sealed(
        &self,
        level: Level,
        message: &str,
        fields: impl IntoIterator<Item = (impl Into<Cow<'static, str>>, Value)>,
        seal: impl FnOnce(&mut String),
    ) {
        if level > self.level.current() {
            return;
        }
        let fields = fields.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let line = format::Line { time: SystemClock.now(), level, message, fields: &fields };
        let mut line = self.format.render(&line);
        seal(&mut line);
        self.sink.write(line.as_bytes());
    }

    /// The level, which may be changed.
    #[must_use]
    pub const fn level(&self) -> &LogLevel {
        &self.level
    }

    /// Opens the file anew, as after a rotation moved it away. Without a file it does nothing.
    ///
    /// # Errors
    /// What the system says; the log then goes on into the old file.
    pub fn reopen(&self) -> io::Result<()> {
        self.sink.reopen()
    }

    /// Opens the file anew at each SIGUSR2, until the token is cancelled: a task of the program. It also
    /// says what was left out when lines came too fast, should nothing else be logged for a while.
    ///
    /// # Errors
    /// If signals cannot be listened to.
    pub async fn reopen_on_signal(self, token: CancellationToken) -> Result<(), BoxError> {
        let mut signals = signal(SignalKind::user_defined2())?;
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                _ = signals.recv() => {}
                () = tokio::time::sleep(BREATH) => {
                    layer::tell_left_out(&self.flood, SystemClock.instant(), self.format, &self.sink);
                    continue;
                }
            }
            if let Err(error) = self.reopen() {
                tracing::error!(%error, "Failed to rotate log after signal");
            }
        }
    }
}

/// The target of lines that somebody asked for by a signal: all of them are written.
pub(crate) const ASKED_FOR: &str = "finial_runtime::asked_for";

/// How long what was left out may wait to be told.
const BREATH: Duration = Duration::from_secs(5);

/// The system's text as Go has it: lower case, without the number.
fn go_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tracing::{debug, error, info, info_span, trace, warn};

    use super::*;

    #[test]
    fn lines_look_as_logrus_writes_them() {
        let (lines, _) = logged(Format::Default, Level::Info, |_| {
            info!(target: "finial", "Server stopped gracefully");
            error!(target: "finial", error = "port \"81\" in use", "Server crashed");
            warn!(target: "finial", count = 3_u64, id = %"abc-1_x./@^+", empty = "", "Plain");
            info!(target: "finial", level = "x", time = 1, msg = true, "Clash");
            debug!(target: "finial", "left out");
            error!(target: "h2", "of another crate");
        });

        assert_eq!(
            times_out(&lines),
            [
                "time=T level=info msg=\"Server stopped gracefully\"",
                "time=T level=error msg=\"Server crashed\" error=\"port \\\"81\\\" in use\"",
                "time=T level=warning msg=Plain count=3 empty= id=abc-1_x./@^+",
                "time=T level=info msg=Clash fields.level=x fields.msg=true fields.time=1",
            ]
        );
        let time = lines[0].split('"').nth(1).unwrap();
        assert_eq!(time.len(), if time.ends_with('Z') { 20 } else { 25 }, "{time}");
    }

    #[test]
    fn json_has_sorted_keys_and_typed_values() {
        let (lines, _) = logged(Format::Json, Level::Info, |_| {
            info!(target: "finial", zeta = 1, alpha = "a<b", ok = true, "Hello \"you\"");
        });

        let line = &lines[0];
        let (before, after) = line.split_once("\"time\":\"").unwrap();
        assert_eq!(before, r#"{"alpha":"a\u003cb","level":"info","msg":"Hello \"you\"","ok":true,"#);
        assert!(after.ends_with(r#"","zeta":1}"#), "{after}");
    }

    #[test]
    fn fields_of_spans_are_part_of_the_line_and_the_innermost_wins() {
        let (lines, _) = logged(Format::Default, Level::Warning, |_| {
            let outer =
                info_span!(target: "finial", "api", subsystem_name = "api", request_id = "1", method = "x");
            let _outer = outer.enter();
            let inner = info_span!(target: "finial", "call", method = "y", caller = tracing::field::Empty);
            let _inner = inner.enter();
            inner.record("caller", "admin");
            warn!(target: "finial", request_id = "2", "Seen");
        });

        assert_eq!(
            times_out(&lines),
            ["time=T level=warning msg=Seen caller=admin method=y request_id=2 subsystem_name=api"]
        );
    }

    #[test]
    fn the_level_changes_at_run_time_and_is_reset() {
        let (lines, log) = logged(Format::Default, Level::Info, |log| {
            debug!(target: "finial", "one");
            log.level().set(Level::Trace);
            trace!(target: "finial", "two");
            log.level().set(Level::Panic);
            error!(target: "finial", "three");
            log.level().reset();
            info!(target: "finial", "four");
        });

        assert_eq!(times_out(&lines), ["time=T level=trace msg=two", "time=T level=info msg=four"]);
        assert_eq!((log.level().current(), log.level().launch()), (Level::Info, Level::Info));
    }

    #[test]
    fn r12_a_flood_of_one_kind_is_cut_to_ten_lines_a_second_and_counted() {
        let refuse = |number: u32| warn!(target: "finial", number, "Refused");
        let (lines, _) = logged(Format::Default, Level::Trace, |log| {
            for number in 0..1000 {
                refuse(number);
                debug!(target: "finial", "wanted by its level");
                info!(target: ASKED_FOR, "asked for");
            }
            error!(target: "finial", "of another kind");
            log.record(Level::Info, "audited", [("a", Value::Bare("1".into()))]);
            // Without waiting: as if the second were over.
            let later = SystemClock.instant() + Duration::from_secs(1);
            layer::tell_left_out(&log.flood, later, log.format, &log.sink);
            layer::tell_left_out(&log.flood, later, log.format, &log.sink);
        });
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();

        // A slow machine takes more than a second for it, and then has ten lines more for each.
        let told: u64 =
            lines.iter().filter_map(|line| line.rsplit_once(" left_out=")?.1.parse::<u64>().ok()).sum();
        let written = count("msg=Refused");
        assert_eq!(u64::try_from(written).unwrap() + told, 1000);
        assert!((10..500).contains(&written), "{written}");
        assert_eq!(count("kind=Refused"), count("left_out="));
        assert!(lines.iter().all(|line| !line.contains("kind=") || line.contains("level=warning")));
        assert_eq!((count("wanted by its level"), count("asked for")), (1000, 1000));
        assert_eq!((count("of another kind"), count("audited")), (1, 1));
    }

    #[test]
    fn a_moved_file_is_left_and_a_new_one_begun() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (subscriber, log) = Log::new(&to_file(&path, Format::Default, Level::Info)).unwrap();

        tracing::subscriber::with_default(subscriber, || {
            info!(target: "finial", "before");
            std::fs::rename(&path, directory.path().join("log.1")).unwrap();
            info!(target: "finial", "between");
            log.reopen().unwrap();
            info!(target: "finial", "after");
        });

        let old = std::fs::read_to_string(directory.path().join("log.1")).unwrap();
        assert!(old.contains("before") && old.contains("between"));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("no").join("log");

        let refused = Log::new(&to_file(&path, Format::Default, Level::Info)).err().unwrap();

        assert_eq!(refused.to_string(), format!("open {}: no such file or directory", path.display()));
    }

    fn logged(format: Format, level: Level, act: impl FnOnce(&Log)) -> (Vec<String>, Log) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (subscriber, log) = Log::new(&to_file(&path, format, level)).unwrap();
        tracing::subscriber::with_default(subscriber, || act(&log));
        let text = std::fs::read_to_string(&path).unwrap();
        (text.lines().map(str::to_owned).collect(), log)
    }

    #[test]
    fn lines_say_where_they_come_from_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let options = Options { source_location: true, ..to_file(&path, Format::Json, Level::Info) };
        let (subscriber, _log) = Log::new(&options).unwrap();

        tracing::subscriber::with_default(subscriber, || info!("here"));

        let line = std::fs::read_to_string(&path).unwrap();
        assert!(line.contains("\"file\":\"mod.rs:"), "{line}");
        assert!(line.contains("\"func\":\"finial_runtime::log"), "{line}");
    }

    fn to_file(path: &Path, format: Format, level: Level) -> Options {
        Options { level, format, output: Output::File(path.to_owned()), source_location: false }
    }

    fn times_out(lines: &[String]) -> Vec<String> {
        let without = |line: &String| {
            let (_, rest) = line.split_once("\" ").unwrap();
            format!("time=T {rest}")
        };
        lines.iter().map(without).collect()
    }
}
