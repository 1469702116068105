//! Everything operational that is not about identity: clock, tasks, logs, health, listeners, peer
//! credentials.
//!
//! [`clock`] is the only reader of the time, [`tasks`] the only place that starts tasks, `sys` the only
//! one with unsafe code. Nothing in here knows SPIFFE's protocols, configuration files or plugins, and
//! nothing prints.

pub mod authority;
pub mod backoff;
pub mod blocking;
pub mod bulk;
pub mod clock;
pub mod codes;
pub mod files;
pub mod health;
pub mod http;
pub mod json;
pub mod keyed;
pub mod listen;
pub mod log;
pub mod manager;
pub mod memory;
pub mod metrics;
pub mod pages;
pub mod peer;
pub mod process;
pub mod profile;
pub mod reconcile;
pub mod served;
pub mod shutdown;
pub mod snapshot;
#[expect(unsafe_code, reason = "the one place")]
mod sys;
pub mod tasks;
mod turns;
pub mod upgrade;

/// An error of any kind, as tasks and listeners end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error and its causes as one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    in_system_words(&text)
}

/// A text with the words of the system as programs in Go have them: in lower case, without the number.
#[must_use]
pub fn in_system_words(text: &str) -> String {
    let mut parts = text.split(NUMBER);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let numbered = part.split_once(')').and_then(|(number, rest)| Some((number.parse().ok()?, rest)));
        let Some((number, rest)) = numbered else {
            plain.push_str(NUMBER);
            plain.push_str(part);
            continue;
        };
        let said = std::io::Error::from_raw_os_error(number).to_string();
        let said = said.split(NUMBER).next().unwrap_or_default();
        let begins = plain.len().saturating_sub(said.len());
        if plain.ends_with(said)
            && let Some(first) = plain.get_mut(begins..begins + 1)
        {
            first.make_ascii_lowercase();
        }
        plain.push_str(rest);
    }
    plain
}

/// Where the number of an error of the system begins.
const NUMBER: &str = " (os error ";

#[cfg(test)]
mod tests {
    use std::io;

    #[test]
    fn an_error_is_told_with_its_causes() {
        let failed = crate::tasks::TaskFailed { name: "feed", source: io::Error::other("disk full").into() };

        assert_eq!(crate::chain(&failed), "feed failed: disk full");
    }

    #[test]
    fn what_the_system_says_reads_as_in_go() {
        let refused = io::Error::from_raw_os_error(13);
        let failed = crate::tasks::TaskFailed { name: "feed", source: refused.into() };

        assert_eq!(crate::chain(&failed), "feed failed: permission denied");
        assert_eq!(
            crate::in_system_words("cannot read A: desc = Is a directory (os error 21); move it: now"),
            "cannot read A: desc = is a directory; move it: now"
        );
        assert_eq!(crate::in_system_words("Éa (os error 2) B (os error x)"), "Éa B (os error x)");
    }
}
