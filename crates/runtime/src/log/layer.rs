//! From events to lines.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::flood::Flood;
use super::format::{Format, Line, Value};
use super::level::{Level, LogLevel};
use super::output::Sink;
use super::{ASKED_FOR, Options};
use crate::clock::{Clock, SystemClock};

pub(super) struct Logrus {
    level: LogLevel,
    format: Format,
    sink: Arc<Sink>,
    flood: Arc<Flood>,
    source_location: bool,
}

impl Logrus {
    pub(super) const fn new(level: LogLevel, options: &Options, sink: Arc<Sink>, flood: Arc<Flood>) -> Self {
        Self { level, format: options.format, sink, flood, source_location: options.source_location }
    }

    /// Spans are followed at any level: their fields belong to graver events inside them.
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with(OWN)
            && (metadata.is_span() || Level::from(*metadata.level()) <= self.level.current())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Logrus {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    /// So that what libraries trace costs one comparison. This program's spans are of level info.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.level.current() {
            Level::Panic | Level::Fatal | Level::Error | Level::Warning | Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        })
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.values.extend(of_span.values.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
        }
        event.record(&mut fields);
        if self.source_location {
            fields.add_source(event.metadata());
        }
        let (metadata, now) = (event.metadata(), SystemClock.instant());
        let level = Level::from(*metadata.level());
        tell_left_out(&self.flood, now, self.format, &self.sink);
        let is_asked_for = metadata.target() == ASKED_FOR;
        if !is_asked_for && !self.flood.admits(&metadata.callsite(), level, &fields.message, now) {
            return;
        }
        let line = Line { time: SystemClock.now(), level, message: &fields.message, fields: &fields.values };
        self.sink.write(self.format.render(&line).as_bytes());
    }
}

/// Says how many lines were not written in seconds that are over.
pub(super) fn tell_left_out(flood: &Flood, now: Instant, format: Format, sink: &Sink) {
    for left_out in flood.left_out(now) {
        let fields = BTreeMap::from([
            (Cow::from("kind"), Value::Text(left_out.message)),
            (Cow::from("left_out"), Value::Bare(left_out.count.to_string())),
        ]);
        let message = "Lines of one kind come too fast; the rest is left out";
        let line = Line { time: SystemClock.now(), level: left_out.level, message, fields: &fields };
        sink.write(format.render(&line).as_bytes());
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    values: BTreeMap<Cow<'static, str>, Value>,
}

impl Fields {
    /// Where in the program the event comes from, by the names that logrus has for it.
    fn add_source(&mut self, metadata: &Metadata<'_>) {
        let path = metadata.file().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        let line = metadata.line().unwrap_or_default();
        self.values.insert("file".into(), Value::Text(format!("{file}:{line}")));
        self.values.insert("func".into(), Value::Text(metadata.target().to_owned()));
    }

    fn put(&mut self, field: &Field, value: Value) {
        let name = field.name();
        let name = name.strip_prefix("r#").unwrap_or(name);
        if name == "message" {
            self.message = value.to_string();
        } else {
            self.values.insert(name.into(), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::Text(crate::chain(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        let is_instant = INSTANTS.contains(&field.name());
        self.put(field, if is_instant { Value::Instant(value) } else { Value::Bare(value.to_string()) });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let text = value.to_string();
        self.put(field, if value.is_finite() { Value::Bare(text) } else { Value::Text(text) });
    }
}

/// Fields of these names are instants, if they are numbers: seconds since 1970.
const INSTANTS: [&str; 2] = ["issued_at", "expiration"];

/// What the targets of Finial's own events begin with.
const OWN: &str = "finial";
