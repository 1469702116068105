//! Tokens by whom they name and whom they are for; the least recently used goes when it is full.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use spiffe::{SpiffeId, UnixSecs};

use super::JwtSvid;

/// Whom a token names and whom it is for. The order of the audience does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    id: SpiffeId,
    audience: Vec<String>,
}

impl Key {
    /// The key of tokens of `id` for `audience`.
    #[must_use]
    pub fn new(id: &SpiffeId, audience: &[String]) -> Self {
        let mut audience = audience.to_vec();
        audience.sort_unstable();
        Self { id: id.clone(), audience }
    }

    /// Whom the tokens are for, sorted.
    #[must_use]
    pub fn audience(&self) -> &[String] {
        &self.audience
    }
}

/// The cache.
pub(super) struct Cache {
    most: usize,
    slots: HashMap<Key, Slot>,
    /// Keys by when they were last used, in uses.
    used: BTreeMap<u64, Key>,
    uses: u64,
}

struct Slot {
    svid: Arc<JwtSvid>,
    renew_at: SystemTime,
    /// The `kid` of its header.
    key_id: Option<String>,
    used: u64,
}

/// What the cache has.
pub(super) enum Found {
    /// A token to be used.
    Fresh(Arc<JwtSvid>),
    /// A token that still holds but is to be replaced.
    Stale(Arc<JwtSvid>),
    /// No token that holds.
    Nothing,
}

impl Cache {
    /// At most `most` tokens, at least one.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), slots: HashMap::new(), used: BTreeMap::new(), uses: 0 }
    }

    /// The token for `key`, which counts as used.
    pub(super) fn find(&mut self, key: &Key, now: SystemTime) -> Found {
        let Some(slot) = self.slots.get_mut(key) else { return Found::Nothing };
        if slot.svid.expires_at <= UnixSecs::from(now) {
            let used = slot.used;
            self.slots.remove(key);
            self.used.remove(&used);
            return Found::Nothing;
        }
        self.uses += 1;
        if let Some(key) = self.used.remove(&slot.used) {
            self.used.insert(self.uses, key);
        }
        slot.used = self.uses;
        let svid = Arc::clone(&slot.svid);
        if now < slot.renew_at { Found::Fresh(svid) } else { Found::Stale(svid) }
    }

    /// Keeps a token in place of the one that is there. Only a new key makes another go.
    pub(super) fn insert(&mut self, key: Key, svid: Arc<JwtSvid>, renew_at: SystemTime) {
        self.uses += 1;
        let slot = Slot { key_id: key_id(&svid.token), svid, renew_at, used: self.uses };
        self.used.insert(self.uses, key.clone());
        if let Some(old) = self.slots.insert(key, slot) {
            self.used.remove(&old.used);
        }
        while self.slots.len() > self.most {
            let Some((_, oldest)) = self.used.pop_first() else { return };
            self.slots.remove(&oldest);
        }
    }

    /// Forgets the tokens whose signing key has an id that `is_tainted`.
    pub(super) fn remove_signed_by(&mut self, is_tainted: impl Fn(&str) -> bool) {
        let used = &mut self.used;
        self.slots.retain(|_, slot| {
            let goes = slot.key_id.as_deref().is_some_and(&is_tainted);
            if goes {
                used.remove(&slot.used);
            }
            !goes
        });
    }

    /// All tokens, those used least recently first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<JwtSvid>)> {
        self.used.values().filter_map(|key| Some((key, &self.slots.get(key)?.svid)))
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// The `kid` in a token's header.
fn key_id(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Header {
        kid: String,
    }
    let header = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    Some(serde_json::from_slice::<Header>(&header).ok()?.kid)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use zeroize::Zeroizing;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn key(path: &str, audience: &[&str]) -> Key {
        let id = SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
        Key::new(&id, &audience.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn token(key_id: &str) -> Arc<JwtSvid> {
        let header = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"ES256","kid":"{key_id}"}}"#));
        Arc::new(JwtSvid {
            id: SpiffeId::parse("spiffe://example.org/a").unwrap(),
            token: Zeroizing::new(format!("{header}.e30.c2ln")),
            issued_at: UnixSecs(100),
            expires_at: UnixSecs(200),
        })
    }

    fn check(cache: &mut Cache, key: &Key, now: u64, expected: &str) {
        let found = match cache.find(key, at(now)) {
            Found::Fresh(_) => "fresh",
            Found::Stale(_) => "stale",
            Found::Nothing => "nothing",
        };
        assert_eq!(found, expected, "{key:?}");
    }

    #[test]
    fn a_token_is_fresh_then_stale_then_gone() {
        let mut cache = Cache::new(10);
        cache.insert(key("/a", &["x"]), token("k"), at(150));

        check(&mut cache, &key("/a", &["x"]), 149, "fresh");
        check(&mut cache, &key("/a", &["x"]), 150, "stale");
        check(&mut cache, &key("/a", &["x"]), 199, "stale");
        check(&mut cache, &key("/a", &["x"]), 200, "nothing");
        assert_eq!((cache.len(), cache.used.len()), (0, 0));
    }

    #[test]
    fn the_order_of_the_audience_does_not_matter_but_all_else_does() {
        let mut cache = Cache::new(10);
        cache.insert(key("/a", &["x", "y"]), token("k"), at(150));

        check(&mut cache, &key("/a", &["y", "x"]), 100, "fresh");
        check(&mut cache, &key("/b", &["x", "y"]), 100, "nothing");
        check(&mut cache, &key("/a", &["x"]), 100, "nothing");
        check(&mut cache, &key("/a", &["xy"]), 100, "nothing");
        check(&mut cache, &key("/a", &["x", "x", "y"]), 100, "nothing");
    }

    #[test]
    fn the_least_recently_used_goes_and_only_for_a_new_key() {
        let mut cache = Cache::new(2);
        cache.insert(key("/a", &[]), token("k"), at(150));
        cache.insert(key("/b", &[]), token("k"), at(150));
        check(&mut cache, &key("/a", &[]), 100, "fresh");

        cache.insert(key("/a", &[]), token("k"), at(150));
        assert_eq!((cache.len(), cache.used.len()), (2, 2));
        cache.insert(key("/c", &[]), token("k"), at(150));

        check(&mut cache, &key("/b", &[]), 100, "nothing");
        check(&mut cache, &key("/a", &[]), 100, "fresh");
        check(&mut cache, &key("/c", &[]), 100, "fresh");
        assert_eq!((cache.len(), cache.used.len()), (2, 2));
    }

    #[test]
    fn tokens_of_a_tainted_authority_go() {
        let mut cache = Cache::new(10);
        cache.insert(key("/a", &[]), token("good"), at(150));
        cache.insert(key("/b", &[]), token("bad"), at(150));

        cache.remove_signed_by(|key_id| key_id == "bad");

        check(&mut cache, &key("/a", &[]), 100, "fresh");
        check(&mut cache, &key("/b", &[]), 100, "nothing");
        assert_eq!(cache.used.len(), 1);
    }
}
