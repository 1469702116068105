//! Whether the program lives and is ready: named checks, and what is wrong with each.
//!
//! The registry holds what its owners last said, so asking never waits. A check that has not started is
//! live and not ready; ready means ready.

mod listener;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::json;

pub use listener::{HealthListener, HealthPaths};

/// The checks of a program. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, State>>>);

/// One named check, told by its owner how things are. Cheap to clone; clones are the same check.
#[derive(Clone, Debug)]
pub struct Check {
    health: Health,
    name: Arc<str>,
}

/// An answer: whether all is well, and the details as SPIRE's JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether all is well.
    pub is_good: bool,
    /// One member per check, which holds one member per trouble; a line feed at the end.
    pub json: String,
}

impl Health {
    /// No checks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The check by this name, such as `server.ca`; made, as not started, where it is new.
    #[must_use]
    pub fn check(&self, name: &str) -> Check {
        self.locked(|states| states.entry(name.to_owned()).or_default().is_started);
        Check { health: self.clone(), name: name.into() }
    }

    /// Whether the program is worth keeping alive.
    #[must_use]
    pub fn live(&self) -> Report {
        self.report(State::is_live)
    }

    /// Whether the program does its work. Not so while there are no checks.
    #[must_use]
    pub fn ready(&self) -> Report {
        self.report(State::is_ready)
    }

    fn report(&self, is_good: impl Fn(&State) -> bool) -> Report {
        self.locked(|states| Report {
            is_good: !states.is_empty() && states.values().all(is_good),
            json: to_json(states),
        })
    }

    fn locked<T>(&self, act: impl FnOnce(&mut BTreeMap<String, State>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Check {
    /// What is checked has started: from now on it is ready unless something is wrong.
    pub fn started(&self) {
        self.update(|state| state.is_started = true);
    }

    /// Something is wrong and it cannot do its work. `key` names the trouble, such as `get_bundle_err`.
    pub fn failing(&self, key: &str, text: impl Into<String>) {
        self.trouble(key, Trouble { is_fatal: true, text: text.into() });
    }

    /// Something is wrong, and is shown, but it does its work all the same.
    pub fn degraded(&self, key: &str, text: impl Into<String>) {
        self.trouble(key, Trouble { is_fatal: false, text: text.into() });
    }

    /// The trouble by this name is over.
    pub fn cleared(&self, key: &str) {
        self.update(|state| state.troubles.remove(key));
    }

    fn trouble(&self, key: &str, trouble: Trouble) {
        self.update(|state| state.troubles.insert(key.to_owned(), trouble));
    }

    fn update<T>(&self, act: impl FnOnce(&mut State) -> T) {
        self.health.locked(|states| {
            if let Some(state) = states.get_mut(&*self.name) {
                act(state);
            }
        });
    }
}

#[derive(Debug, Default)]
struct State {
    is_started: bool,
    troubles: BTreeMap<String, Trouble>,
}

#[derive(Debug)]
struct Trouble {
    is_fatal: bool,
    text: String,
}

impl State {
    /// One that still starts is not to be killed for it.
    fn is_live(&self) -> bool {
        !self.is_started || self.is_well()
    }

    fn is_ready(&self) -> bool {
        self.is_started && self.is_well()
    }

    fn is_well(&self) -> bool {
        !self.troubles.values().any(|trouble| trouble.is_fatal)
    }
}

fn to_json(states: &BTreeMap<String, State>) -> String {
    let mut out = String::from("{");
    for (name, state) in states {
        member(&mut out, name);
        out.push('{');
        for (key, trouble) in &state.troubles {
            member(&mut out, key);
            json::string(&mut out, &trouble.text);
        }
        out.push('}');
    }
    out.push_str("}\n");
    out
}

fn member(out: &mut String, name: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    json::string(out, name);
    out.push(':');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_starting_program_is_live_and_not_ready() {
        let health = Health::new();
        let agent = health.check("agent");
        agent.failing("make_new_x509_err", "workload api is unavailable");

        assert!(health.live().is_good);
        assert!(!health.ready().is_good);
        agent.cleared("make_new_x509_err");
        agent.started();
        assert_eq!(health.ready(), Report { is_good: true, json: "{\"agent\":{}}\n".into() });
    }

    #[test]
    fn one_failing_check_fails_all_and_a_degraded_one_is_shown() {
        let health = Health::new();
        let server = health.check("server");
        let authority = health.check("server.ca");
        server.started();
        authority.started();

        authority.degraded("rotation", "a \"late\" one");
        assert!(health.ready().is_good && health.live().is_good);
        server.failing("get_bundle_err", "gone");

        let expected = "{\"server\":{\"get_bundle_err\":\"gone\"},\"server.ca\":{\"rotation\":\"a \\\"late\\\" one\"}}\n";
        assert_eq!(health.live(), Report { is_good: false, json: expected.into() });
        assert!(!health.ready().is_good);
    }

    #[test]
    fn without_checks_nothing_is_ready() {
        assert!(!Health::new().ready().is_good);
    }
}
