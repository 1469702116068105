//! What is written is what is read, and nothing that does not hold any more.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use runtime::clock::{Clock, SystemClock};
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::Certificate;
use spiffe::{Entry, EntryId, JwtAuthority, SpiffeId, TrustDomain, X509Authority};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;
use crate::fixtures::server::Authority;
use crate::fixtures::{agent_id, entry};
use crate::jwt::{JwtSvid, Key};
use crate::state::{Bundles, Change, Issuers, X509Svid};

struct World {
    directory: TempDir,
    authority: Authority,
    jwt_key: PrivateKey,
    now: SystemTime,
    state: Arc<AgentState>,
    tokens: Vec<Token>,
}

impl World {
    /// An agent with two entries, one of which federates, an SVID and a token of the first.
    fn new() -> Self {
        let authority = Authority::new();
        let jwt_key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let now = SystemClock.now();
        let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        bundle
            .x509_authorities
            .push(X509Authority { der: authority.certificate.to_shared(), tainted: false });
        bundle.jwt_authorities.push(JwtAuthority {
            key_id: "jwt".to_owned(),
            public_key: jwt_key.public().spki().into(),
            expires_at: UnixSecs(0),
            tainted: false,
        });
        let other = TrustDomain::parse("other.org").unwrap();
        let federated = Bundle { trust_domain: other.clone(), ..bundle.clone() };
        let entries = [
            entry("a", "/a", &["uid:1"]),
            Entry {
                federates_with: Arc::from([other]),
                hint: "h".to_owned(),
                ..entry("b", "/b", &["uid:2"])
            },
        ];
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let chain =
            [Bytes::copy_from_slice(authority.sign(&entries[0].spiffe_id, key.public(), 600).as_bytes())];
        let anchors = [authority.certificate.clone()];
        let rule = &mut RotationRule::new(None);
        let svid = X509Svid::accept(&chain, &key, &entries[0], &anchors, now, rule, &mut Issuers::default())
            .unwrap();
        let issued = Change::Issued(vec![(EntryId::new("a"), Some(svid))]);
        let synced = Change::Synced {
            entries: entries.into_iter().map(Arc::new).collect(),
            own: Some(bundle.clone()),
            federated: vec![federated],
            at: UnixSecs::from(now),
        };
        let identity = identity(&authority, 7);
        let state = AgentState::new(identity, bundle).apply(synced).apply(issued);
        let mut world = Self {
            directory: tempfile::tempdir().unwrap(),
            authority,
            jwt_key,
            now,
            state: Arc::new(state),
            tokens: Vec::new(),
        };
        world.tokens = vec![world.token("/a", 300)];
        world
    }

    fn token(&self, path: &str, life: i64) -> Token {
        let id = SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
        let now = UnixSecs::from(self.now);
        let (issued_at, expires_at) = (now, now.plus(life));
        let claims = serde_json::json!({"sub": id.as_str(), "aud": ["x"], "iat": now.0, "exp": expires_at.0});
        let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let header = serde_json::json!({"alg": "ES256", "kid": "jwt", "typ": "JWT"});
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.jwt_key.sign(self.jwt_key.sig_alg().unwrap(), signed.as_bytes()).unwrap();
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signature.to_fixed(32).unwrap());
        let token = Zeroizing::new(format!("{signed}.{signature}"));
        let key = Key::new(&id, &["x".to_owned()]);
        (key, Arc::new(JwtSvid { id, token, issued_at, expires_at }))
    }

    async fn write(&self, state: &Arc<AgentState>) {
        let vault = Vault::new(self.directory.path(), true).unwrap();
        let now = UnixSecs::from(self.now);
        vault.write(Arc::clone(state), self.tokens.clone(), now).await.unwrap();
    }

    fn open(&self, agent: &AgentIdentity, stored: &Bundle, later: u64) -> Option<Kept> {
        let vault = Vault::new(self.directory.path(), true).unwrap();
        vault.open(agent, stored, self.now + Duration::from_secs(later), &RotationRule::new(None))
    }

    /// What a start after so many seconds finds: the entries that have an SVID, and how many tokens.
    fn found(&self, later: u64) -> (Vec<String>, usize) {
        let kept = self.open(&self.state.agent, &self.state.bundles.own, later).unwrap();
        let with_svid = kept.entries.iter().filter(|(_, svid, _)| svid.is_some());
        (with_svid.map(|(entry, ..)| entry.id.to_string()).collect(), kept.tokens.len())
    }
}

/// The agent under an SVID that was just issued.
fn identity(authority: &Authority, life: i64) -> AgentIdentity {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let leaf = authority.sign(&agent_id(), key.public(), life);
    let chain = Arc::from([Certificate::parse(leaf.as_bytes()).unwrap()]);
    AgentIdentity { id: agent_id(), chain, reattestable: true }
}

#[tokio::test]
async fn what_was_written_is_what_is_read() {
    let world = World::new();
    world.write(&world.state).await;

    let kept = world.open(&world.state.agent, &world.state.bundles.own, 0).unwrap();

    let Kept { bundles, entries, tokens, synced_at } = kept;
    let recalled = AgentState::recalled((*world.state.agent).clone(), bundles, entries, synced_at);
    assert_eq!(recalled.synced_at, world.state.synced_at);
    assert_eq!((recalled.entries.len(), recalled.bundles.federated.len()), (2, 1));
    assert_eq!(*recalled.bundles.own, *world.state.bundles.own);
    for (one, other) in recalled.entries.iter().zip(world.state.entries.iter()) {
        assert_eq!(*one.entry, *other.entry);
    }
    let svid = |state: &AgentState| state.entries.get(&EntryId::new("a")).unwrap().svid.clone().unwrap();
    let (before, after) = (svid(&world.state), svid(&recalled));
    assert_eq!((after.chain(), after.secret_pkcs8()), (before.chain(), before.secret_pkcs8()));
    assert_eq!((after.expires_at, after.revision), (before.expires_at, before.revision));
    let matching = entry("", "/x", &["uid:1"]).selector_set;
    assert_eq!(recalled.entries.matching(&matching).len(), 1);
    assert_eq!((&tokens[0].0, &tokens[0].1.token), (&world.tokens[0].0, &world.tokens[0].1.token));
}

#[tokio::test]
async fn what_has_expired_is_left_out() {
    let world = World::new();
    world.write(&world.state).await;

    assert_eq!(world.found(0), (vec!["a".to_owned()], 1));
    assert_eq!(world.found(400), (vec!["a".to_owned()], 0));
    assert_eq!(world.found(700), (Vec::new(), 0));
}

#[tokio::test]
async fn a_token_of_an_entry_that_is_gone_is_not_written() {
    let mut world = World::new();
    world.tokens.push(world.token("/gone", 300));
    world.write(&world.state).await;

    assert_eq!(world.found(0).1, 1);
}

#[tokio::test]
async fn an_svid_that_the_stored_bundle_does_not_vouch_for_is_left_out() {
    let world = World::new();
    world.write(&world.state).await;
    let other = Authority::new();
    let mut stored = (*world.state.bundles.own).clone();
    stored.x509_authorities = vec![X509Authority { der: other.certificate.to_shared(), tainted: false }];

    let kept = world.open(&world.state.agent, &stored, 0).unwrap();

    assert!(!kept.serves());
    assert_eq!(kept.bundles.own.x509_authorities, stored.x509_authorities);
}

#[tokio::test]
async fn taints_are_remembered_and_tokens_of_tainted_keys_are_left_out() {
    let world = World::new();
    let mut own = (*world.state.bundles.own).clone();
    own.x509_authorities.iter_mut().for_each(|authority| authority.tainted = true);
    own.jwt_authorities.iter_mut().for_each(|authority| authority.tainted = true);
    let bundles = Arc::new(Bundles::new(Arc::new(own), BTreeMap::new()));
    let state = Arc::new(AgentState { bundles, ..(*world.state).clone() });
    world.write(&state).await;

    // The file of the own SVID knows of no taints.
    let kept = world.open(&world.state.agent, &world.state.bundles.own, 0).unwrap();

    assert_eq!((kept.bundles.tainted_keys.len(), kept.tokens.len()), (1, 0));
    assert!(kept.serves());
}

#[tokio::test]
async fn an_svid_of_an_older_revision_stays_one() {
    let world = World::new();
    let changed = Entry { revision_number: 9, ..entry("a", "/a", &["uid:1"]) };
    let synced = Change::Synced {
        entries: vec![Arc::new(changed)],
        own: None,
        federated: Vec::new(),
        at: UnixSecs::from(world.now),
    };
    world.write(&Arc::new(world.state.apply(synced))).await;

    let kept = world.open(&world.state.agent, &world.state.bundles.own, 0).unwrap();

    let (entry, svid, _) = &kept.entries[0];
    assert_eq!((entry.revision_number, svid.as_ref().unwrap().revision), (9, 0));
}

#[tokio::test]
async fn a_vault_of_another_agent_or_of_long_before_the_agents_svid_is_not_used() {
    let world = World::new();
    world.write(&world.state).await;
    let own = &world.state.bundles.own;

    let other = SpiffeId::parse("spiffe://example.org/spire/agent/join_token/2").unwrap();
    let other = AgentIdentity { id: other, ..(*world.state.agent).clone() };
    assert!(world.open(&other, own, 0).is_none());
    // Killed between the two files.
    assert!(world.open(&identity(&world.authority, 60), own, 0).is_some());
    let judge = |serial: u8, age: i64| {
        let sealed_at = UnixSecs::from(world.now).plus(-age);
        let mut contents = Contents::of(&world.state, &[], sealed_at);
        contents.agent_serial = vec![serial];
        let (now, rule) = (world.now, &RotationRule::new(None));
        contents.judge(&Judge { agent: &world.state.agent, stored: own, now, rule }).err()
    };
    let own_serial = 2;
    assert_eq!((judge(own_serial, 1000), judge(9, 60)), (None, None));
    assert_eq!(judge(9, 1000), Some(Unusable::Older));
}

#[tokio::test]
async fn a_vault_that_was_discarded_is_made_anew() {
    let world = World::new();
    let vault = Vault::new(world.directory.path(), true).unwrap();
    let now = UnixSecs::from(world.now);
    vault.write(Arc::clone(&world.state), Vec::new(), now).await.unwrap();

    vault.discard();
    assert_eq!(std::fs::read_dir(world.directory.path()).unwrap().count(), 0);
    vault.write(Arc::clone(&world.state), Vec::new(), now).await.unwrap();

    assert_eq!(world.found(0).0, ["a"]);
}

#[tokio::test]
async fn a_vault_that_was_given_up_stays_so() {
    let world = World::new();
    let vault = Vault::new(world.directory.path(), true).unwrap();
    let now = UnixSecs::from(world.now);
    vault.write(Arc::clone(&world.state), Vec::new(), now).await.unwrap();

    vault.give_up();
    vault.write(Arc::clone(&world.state), Vec::new(), now).await.unwrap();

    assert!(!vault.is_on());
    assert_eq!(std::fs::read_dir(world.directory.path()).unwrap().count(), 0);
}

/// Whoever could write a vault that opens could do no more with it than a server could: what does not
/// hold is left out, and nothing panics.
#[test]
fn fuzz_vault_contents() {
    let world = World::new();
    let (agent, stored) = (&*world.state.agent, &*world.state.bundles.own);
    let now = UnixSecs::from(world.now);
    let whole = Contents::of(&world.state, &world.tokens, now).to_bytes().to_vec();
    let mut other = Contents::of(&world.state, &world.tokens, now);
    other.agent_id = "spiffe://example.org/other".to_owned();
    let corpus = [whole, other.to_bytes().to_vec(), Vec::new()];
    let pieces: [&[u8]; 4] = [agent.id.as_str().as_bytes(), b"spiffe://", b"\x0a\x00", &[0xff; 10]];
    let rule = RotationRule::new(None);
    let judge = Judge { agent, stored, now: world.now, rule: &rule };
    let is_whole = std::cell::Cell::new(false);

    testkit::fuzz::drive("vault-contents", &corpus, &pieces, 4_000, |bytes| {
        let Ok(kept) = Contents::parse(bytes).and_then(|contents| contents.judge(&judge)) else { return };
        assert_eq!(kept.bundles.own.x509_authorities.len(), stored.x509_authorities.len());
        for (entry, svid, _) in &kept.entries {
            let Some(svid) = svid else { continue };
            // Only what the authority has signed, and with the key that it was signed for.
            assert_eq!(svid.id, entry.spiffe_id);
            let key = PrivateKey::from_der(&svid.secret_pkcs8()).unwrap();
            let leaf = Certificate::parse(&svid.certificates().next().unwrap()).unwrap();
            assert_eq!(leaf.public_key(), key.public());
            assert!(svid.expires_at > now);
        }
        for (key, svid) in &kept.tokens {
            // Only the token that was signed.
            assert_eq!(
                (&svid.token, key.audience()),
                (&world.tokens[0].1.token, world.tokens[0].0.audience())
            );
        }
        is_whole.set(is_whole.get() || (kept.serves() && !kept.tokens.is_empty()));
    });

    assert!(is_whole.get(), "the undamaged vault serves");
}

/// The two files as they stand on the disk: what was damaged does not open.
#[test]
fn fuzz_vault_files() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let binding = Binding {
        agent_id: agent_id().to_string(),
        machine_id: "machine".to_owned(),
        directory: directory.path().to_owned(),
    };
    let contents = Contents::of(&world.state, &world.tokens, UnixSecs::from(world.now)).to_bytes();
    Seal::new(directory.path(), None).write(contents.clone(), &binding).unwrap();
    let [vault, key] = ["vault", "vault.key"].map(|name| directory.path().join(name));
    let (sealed, link) = (std::fs::read(&vault).unwrap(), std::fs::read(&key).unwrap());
    let magic = sealed[..8].to_vec();

    testkit::fuzz::drive("vault-files", &[sealed.clone(), link.clone()], &[&magic], 100, |bytes| {
        for path in [&vault, &key] {
            std::fs::write(&vault, &sealed).unwrap();
            std::fs::write(&key, &link).unwrap();
            std::fs::write(path, bytes).unwrap();
            let opened = Seal::new(directory.path(), None).open(&binding);
            let is_whole = bytes == if path == &vault { &sealed } else { &link };
            match opened {
                Ok(opened) => assert!(is_whole && opened.unwrap() == contents),
                Err(_) => assert!(!is_whole),
            }
        }
    });
}
