//! Entries that a workload nearly has, and what an entry would have to say for it: for explanations.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::{Entry, Selector, SelectorSet, SpiffeId, TrustDomain};

/// An entry that does not match, and why.
#[derive(Clone, Debug)]
pub struct Miss<'a> {
    /// The entry.
    pub entry: &'a Arc<Entry>,
    /// Its selectors that the workload does not have, in the entry's order.
    pub missing: Vec<Selector>,
}

/// What orders misses: nothing in common, how many are missing, how many are there, the entry's id.
type Rank<'a> = (bool, usize, Reverse<usize>, &'a str);

/// Those of `entries` that do not match `selectors`, at most so many: first those that have something in
/// common with them, those that lack the fewest before others. Entries without selectors match nobody and
/// are left out.
pub fn nearest<'a>(
    entries: impl Iterator<Item = &'a Arc<Entry>>,
    selectors: &SelectorSet,
    most: usize,
) -> Vec<Miss<'a>> {
    let mut ranked: Vec<(Rank<'a>, &Arc<Entry>)> = entries
        .filter_map(|entry| {
            let missing = entry.selector_set.iter().filter(|selector| !selectors.contains(selector)).count();
            let common = entry.selector_set.len() - missing;
            (missing > 0).then(|| ((common == 0, missing, Reverse(common), entry.id.as_str()), entry))
        })
        .collect();
    if ranked.len() > most {
        ranked.select_nth_unstable_by(most, |a, b| a.0.cmp(&b.0));
        ranked.truncate(most);
    }
    ranked.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let miss = |(_, entry): (_, &'a Arc<Entry>)| {
        let missing = entry.selectors.iter().filter(|selector| !selectors.contains(selector));
        Miss { entry, missing: missing.cloned().collect() }
    };
    ranked.into_iter().map(miss).collect()
}

/// The arguments of `entry create` for an entry below `parent` that a workload with these selectors
/// matches: those of its selectors that tell workloads apart and last, and a SPIFFE ID after them. Nothing
/// for a workload without selectors.
#[must_use]
pub fn grant(parent: &SpiffeId, trust_domain: &TrustDomain, selectors: &SelectorSet) -> Vec<String> {
    let mut telling: Vec<&Selector> = selectors
        .iter()
        .filter(|selector| {
            TELLING
                .iter()
                .any(|(kind, prefix)| selector.kind() == *kind && selector.value().starts_with(prefix))
        })
        .collect();
    if telling.is_empty() {
        telling = selectors.iter().collect();
    }
    if telling.is_empty() {
        return Vec::new();
    }
    let named = |kind: &str, prefix: &str| {
        let of = |selector: &&Selector| selector.kind() == kind && selector.value().starts_with(prefix);
        let selector = selectors.iter().find(of)?;
        let name = selector.value().strip_prefix(prefix)?;
        Some(segment(name.rsplit('/').next().unwrap_or(name)))
    };
    let path = match (named("k8s", "ns:"), named("k8s", "sa:")) {
        (Some(namespace), Some(account)) => format!("/ns/{namespace}/sa/{account}"),
        _ => match named("unix", "path:").or_else(|| named("systemd", "id:")) {
            Some(name) => format!("/{name}"),
            None => named("unix", "uid:").map_or_else(|| "/workload".to_owned(), |uid| format!("/uid-{uid}")),
        },
    };
    let id = trust_domain.id_with_path(&path).unwrap_or_else(|_| trust_domain.id());
    let mut words = vec!["-parentID".to_owned(), parent.to_string(), "-spiffeID".to_owned(), id.to_string()];
    for selector in telling {
        words.extend(["-selector".to_owned(), selector.to_string()]);
    }
    words
}

/// A name as a segment of a path.
fn segment(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let segment: String = name.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    if segment.trim_matches('.').is_empty() { "workload".to_owned() } else { segment }
}

/// Selectors that tell workloads apart and stay the same from one run to the next.
const TELLING: [(&str, &str); 6] = [
    ("unix", "uid:"),
    ("unix", "path:"),
    ("k8s", "ns:"),
    ("k8s", "sa:"),
    ("docker", "label:"),
    ("systemd", "id:"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EntryId, UnixSecs};

    fn set(values: &[&str]) -> SelectorSet {
        values.iter().map(|value| value.split_once(':').unwrap()).map(|(k, v)| Selector::new(k, v)).collect()
    }

    fn entry(name: &str, values: &[&str]) -> Arc<Entry> {
        let selectors: Arc<[Selector]> = set(values).iter().cloned().collect();
        let id = SpiffeId::parse("spiffe://example.org/x").unwrap();
        Arc::new(Entry {
            id: EntryId::new(name),
            spiffe_id: id.clone(),
            parent_id: id,
            selector_set: set(values),
            selectors,
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Arc::from([]),
            admin: false,
            downstream: false,
            expires_at: UnixSecs(0),
            dns_names: Arc::from([]),
            revision_number: 0,
            store_svid: false,
            hint: String::new(),
            created_at: UnixSecs(1),
            additional_attributes: None,
        })
    }

    #[test]
    fn what_lacks_least_comes_first_and_what_matches_not_at_all() {
        let entries = [
            entry("matches", &["unix:uid:1"]),
            entry("far", &["unix:uid:2"]),
            entry("two", &["unix:uid:1", "unix:path:/b", "unix:gid:7"]),
            entry("one", &["unix:uid:1", "unix:path:/b"]),
            entry("none", &[]),
        ];
        let selectors = set(&["unix:uid:1", "unix:path:/a"]);

        let misses = nearest(entries.iter(), &selectors, 2);
        let names: Vec<&str> = misses.iter().map(|miss| miss.entry.id.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(misses[0].missing, [Selector::new("unix", "path:/b")]);
        assert_eq!(nearest(entries.iter(), &selectors, 9).len(), 3);
        assert_eq!(nearest(entries.iter(), &selectors, 0).len(), 0);
    }

    #[test]
    fn what_would_grant_an_identity_names_what_lasts() {
        let domain = TrustDomain::parse("example.org").unwrap();
        let parent = domain.id_with_path("/spire/agent/a").unwrap();
        let words = |values: &[&str]| grant(&parent, &domain, &set(values)).join(" ");
        let common = "-parentID spiffe://example.org/spire/agent/a -spiffeID spiffe://example.org";

        assert_eq!(
            words(&["unix:uid:7", "unix:gid:7", "unix:path:/usr/bin/my app", "unix:sha256:00"]),
            format!("{common}/my-app -selector unix:path:/usr/bin/my app -selector unix:uid:7")
        );
        assert_eq!(
            words(&["k8s:ns:web", "k8s:sa:front", "k8s:pod-uid:1"]),
            format!("{common}/ns/web/sa/front -selector k8s:ns:web -selector k8s:sa:front")
        );
        assert_eq!(words(&["odd:one"]), format!("{common}/workload -selector odd:one"));
        assert_eq!(words(&["unix:uid:7"]), format!("{common}/uid-7 -selector unix:uid:7"));
        assert_eq!(words(&[]), "");
    }
}
