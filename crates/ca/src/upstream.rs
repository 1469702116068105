//! What the server's own bundle owes to the servers above: pure comparison of what is stored with what
//! they trust.
//!
//! An authority that is new above is added here; one that is compromised above is compromised here, but
//! only after this server has stopped to sign below it, so it is handed out apart; and a compromised one
//! that is gone above goes here too. One that is merely gone stays until it expires: what it signed may
//! still be in use.

use std::collections::HashSet;

use spiffe::x509::Certificate;
use spiffe::{JwtAuthority, X509Authority};

use crate::authority::hex;

/// What of the X.509 authorities is to be changed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootChanges {
    /// To be added, with their flag.
    pub added: Vec<X509Authority>,
    /// Compromised above and not yet here.
    pub tainted: Vec<X509Authority>,
    /// Subject key ids of compromised ones that are gone above.
    pub gone: Vec<String>,
}

/// What of the JWT authorities is to be changed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyChanges {
    /// To be added, or to be marked as compromised.
    pub set: Vec<JwtAuthority>,
    /// Ids of compromised ones that are gone above.
    pub gone: Vec<String>,
}

/// Compares the stored X.509 authorities with those above.
#[must_use]
pub fn compare_roots(stored: &[X509Authority], above: &[X509Authority]) -> RootChanges {
    let mut changes = RootChanges::default();
    for root in above {
        match stored.iter().find(|known| known.der == root.der) {
            None if changes.added.iter().all(|added| added.der != root.der) => {
                changes.added.push(root.clone());
            }
            Some(known) if root.tainted && !known.tainted => changes.tainted.push(known.clone()),
            None | Some(_) => {}
        }
    }
    let ids_above: Vec<_> = above.iter().map(subject_key_id).collect();
    for known in stored.iter().filter(|known| known.tainted) {
        let id = subject_key_id(known);
        // Without an id nothing could name it; with the id of another one that would go too.
        if !id.is_empty() && !ids_above.contains(&id) && !changes.gone.contains(&id) {
            changes.gone.push(id);
        }
    }
    changes
}

/// Compares the stored JWT authorities with those above; those with an id of `withdrawn` were revoked
/// here and do not come back.
#[must_use]
pub fn compare_keys(
    stored: &[JwtAuthority],
    above: &[JwtAuthority],
    withdrawn: &HashSet<String>,
) -> KeyChanges {
    let mut changes = KeyChanges::default();
    for key in above.iter().filter(|key| !withdrawn.contains(&key.key_id)) {
        let known = stored.iter().find(|known| known.key_id == key.key_id);
        let is_news = known.is_none_or(|known| key.tainted && !known.tainted);
        if is_news && changes.set.iter().all(|set| set.key_id != key.key_id) {
            changes.set.push(key.clone());
        }
    }
    for known in stored.iter().filter(|known| known.tainted) {
        if above.iter().all(|key| key.key_id != known.key_id) {
            changes.gone.push(known.key_id.clone());
        }
    }
    changes
}

/// The subject key identifier of an authority in hex; empty if it has none or cannot be read.
#[must_use]
pub fn subject_key_id(authority: &X509Authority) -> String {
    let certificate = Certificate::parse(&authority.der);
    certificate
        .map_or_else(|_| String::new(), |certificate| hex(certificate.subject_key_id().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use spiffe::UnixSecs;

    use super::*;

    fn root(name: &str, tainted: bool) -> X509Authority {
        X509Authority { der: name.as_bytes().into(), tainted }
    }

    fn key(id: &str, tainted: bool) -> JwtAuthority {
        let public_key = id.as_bytes().into();
        JwtAuthority { key_id: id.to_owned(), public_key, expires_at: UnixSecs(1), tainted }
    }

    #[test]
    fn roots_are_added_once_and_tainted_apart() {
        let stored = [root("a", false), root("b", false), root("c", true)];
        let above = [root("a", false), root("b", true), root("c", false), root("d", true), root("d", true)];

        let changes = compare_roots(&stored, &above);

        assert_eq!(changes.added, [root("d", true)]);
        assert_eq!(changes.tainted, [root("b", false)]);
        // It has no id that anything could be named by.
        assert_eq!(compare_roots(&stored, &[]).gone, [""; 0]);
    }

    #[test]
    fn keys_are_added_marked_and_removed_but_do_not_come_back() {
        let stored = [key("a", false), key("b", true), key("c", false), key("d", true)];
        let above = [key("a", true), key("b", false), key("new", false), key("revoked", false)];

        let changes = compare_keys(&stored, &above, &HashSet::from(["revoked".to_owned()]));

        assert_eq!(changes.set, [key("a", true), key("new", false)]);
        assert_eq!(changes.gone, ["d"]);
    }
}
