//! Lines of one kind that come too fast.
//!
//! What others make this program say, by calls that are refused or connections that fail, must not fill
//! a disk or hide the rest. A kind is a place in the program. Of each, so many lines are written in a
//! second; the others are counted, and one line says how many there were once the second is over. That
//! holds for what is logged without being asked for: who sets the level to debug wants to see all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

use super::level::Level;

/// How many lines of one kind are written in a second.
pub(super) const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// What was written lately, of each kind.
#[derive(Debug, Default)]
pub(super) struct Flood {
    kinds: Mutex<HashMap<Identifier, Kind>>,
    /// Whether any kind has something left out that is to be told.
    has_left_out: AtomicBool,
}

#[derive(Debug)]
struct Kind {
    since: Instant,
    written: u32,
    left_out: LeftOut,
}

/// Lines that were not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) level: Level,
    /// What they all say.
    pub(super) message: String,
    pub(super) count: u64,
}

impl Flood {
    /// Whether a line of this kind is to be written now; if not, it is counted.
    pub(super) fn admits(&self, kind: &Identifier, level: Level, message: &str, now: Instant) -> bool {
        if level > Level::Info {
            return true;
        }
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh =
            || Kind { since: now, written: 0, left_out: LeftOut { level, message: String::new(), count: 0 } };
        let kind = kinds.entry(kind.clone()).or_insert_with(fresh);
        if now.saturating_duration_since(kind.since) >= SECOND && kind.left_out.count == 0 {
            *kind = fresh();
        }
        if kind.written < LINES {
            kind.written += 1;
            return true;
        }
        if kind.left_out.count == 0 {
            message.clone_into(&mut kind.left_out.message);
            self.has_left_out.store(true, Ordering::Relaxed);
        }
        kind.left_out.count += 1;
        false
    }

    /// What was left out in seconds that are over by now: told once.
    pub(super) fn left_out(&self, now: Instant) -> Vec<LeftOut> {
        if !self.has_left_out.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over =
            |kind: &&mut Kind| kind.left_out.count > 0 && now.saturating_duration_since(kind.since) >= SECOND;
        let mut told = Vec::new();
        for kind in kinds.values_mut().filter(is_over) {
            told.push(kind.left_out.clone());
            kind.since = now;
            // What tells of them is a line too.
            kind.written = 1;
            kind.left_out.count = 0;
        }
        let is_left = kinds.values().any(|kind| kind.left_out.count > 0);
        self.has_left_out.store(is_left, Ordering::Relaxed);
        told
    }
}
