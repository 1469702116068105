//! What keys and labels may look like, and which are let through.

use super::Options;

/// A label's name or value as SPIRE gives it: a run of other characters than letters, digits and
/// underscores becomes one underscore, together with an underscore that follows it.
pub(super) fn sanitised(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut is_after_run = false;
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || (character == '_' && !is_after_run) {
            clean.push(character);
            is_after_run = false;
        } else if character == '_' {
            is_after_run = false;
        } else if !is_after_run {
            clean.push('_');
            is_after_run = true;
        }
    }
    clean
}

/// The name of this machine.
pub(super) fn host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Which keys and labels are let through.
#[derive(Debug)]
pub(super) struct Filter {
    /// Prefixes and whether they are allowed.
    prefixes: Vec<(String, bool)>,
    allowed_labels: Vec<String>,
    blocked_labels: Vec<String>,
}

impl Filter {
    pub(super) fn new(options: &Options) -> Self {
        let allowed = options.allowed_prefixes.iter().map(|prefix| (prefix.clone(), true));
        let blocked = options.blocked_prefixes.iter().map(|prefix| (prefix.clone(), false));
        Self {
            prefixes: allowed.chain(blocked).collect(),
            allowed_labels: options.allowed_labels.clone(),
            blocked_labels: options.blocked_labels.clone(),
        }
    }

    /// Whether a key, its parts joined by dots, is let through: the longest prefix decides, and of two
    /// that are the same the one that blocks.
    pub(super) fn allows(&self, key: &str) -> bool {
        let fitting = self.prefixes.iter().filter(|(prefix, _)| key.starts_with(prefix.as_str()));
        fitting.max_by_key(|(prefix, _)| prefix.len()).is_none_or(|(_, is_allowed)| *is_allowed)
    }

    pub(super) fn allows_label(&self, name: &str) -> bool {
        let has = |list: &[String]| list.iter().any(|one| one == name);
        !has(&self.blocked_labels) && (self.allowed_labels.is_empty() || has(&self.allowed_labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_letter_digit_or_underscore_becomes_one_underscore() {
        for (text, clean) in [
            ("1.15.3", "1_15_3"),
            ("example.org", "example_org"),
            ("a-_b", "a_b"),
            ("a--b", "a_b"),
            ("a-__b", "a__b"),
            ("a_-b", "a__b"),
            ("", ""),
            ("é", "_"),
            ("plain_one", "plain_one"),
        ] {
            assert_eq!(sanitised(text), clean, "{text}");
        }
    }

    #[test]
    fn the_longest_prefix_decides_and_blocking_wins() {
        let filter = Filter::new(&Options {
            allowed_prefixes: vec!["spire.rpc.entry".into(), "same".into()],
            blocked_prefixes: vec!["spire.rpc".into(), "same".into()],
            blocked_labels: vec!["host".into()],
            ..Options::default()
        });

        assert!(filter.allows("spire.rpc.entry.v1"));
        assert!(!filter.allows("spire.rpc.agent.v1"));
        assert!(filter.allows("spire.other"));
        assert!(!filter.allows("same.key"));
        assert!(filter.allows_label("status") && !filter.allows_label("host"));
    }

    #[test]
    fn a_list_of_allowed_labels_leaves_only_those() {
        let filter = Filter::new(&Options {
            allowed_labels: vec!["status".into(), "host".into()],
            blocked_labels: vec!["host".into()],
            ..Options::default()
        });

        assert!(filter.allows_label("status"));
        assert!(!filter.allows_label("host") && !filter.allows_label("method"));
    }
}
