//! What the vault holds, as it is written and read.
//!
//! A field that a later version adds is skipped by this one; a change that this version would
//! misunderstand is another format (`seal`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use prost::Message;
use proto::convert::entry;
use proto::spire::types;
use spiffe::key::PrivateKey;
use spiffe::x509::Certificate;
use spiffe::{Bundle, Entry, JwtAuthority, SpiffeId, Texts, TrustDomain, UnixSecs, jwt};
use tracing::warn;
use zeroize::{Zeroize, Zeroizing};

use crate::jwt::{JwtSvid, Key};
use crate::rotation::RotationRule;
use crate::state::{AgentIdentity, AgentState, Bundles, Issuers, X509Svid};

/// All of it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Contents {
    /// The agent.
    #[prost(string, tag = "1")]
    pub(super) agent_id: String,
    /// The serial number of its SVID.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) agent_serial: Vec<u8>,
    /// When this was written.
    #[prost(int64, tag = "3")]
    pub(super) sealed_at: i64,
    /// When the agent had last heard from a server.
    #[prost(int64, tag = "4")]
    pub(super) synced_at: i64,
    /// The bundle of the own trust domain.
    #[prost(message, optional, tag = "5")]
    own: Option<types::Bundle>,
    #[prost(message, repeated, tag = "6")]
    federated: Vec<types::Bundle>,
    #[prost(message, repeated, tag = "7")]
    entries: Vec<KeptEntry>,
    #[prost(message, repeated, tag = "8")]
    tokens: Vec<KeptToken>,
}

#[derive(Clone, PartialEq, Message)]
struct KeptEntry {
    #[prost(message, optional, tag = "1")]
    entry: Option<types::Entry>,
    #[prost(message, optional, tag = "2")]
    svid: Option<KeptSvid>,
    #[prost(int64, tag = "3")]
    last_used: i64,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct KeptSvid {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    chain: Vec<Bytes>,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    /// Of the entry that it was made for, which may have changed since.
    #[prost(int64, tag = "3")]
    revision: i64,
    #[prost(int64, tag = "4")]
    entry_created_at: i64,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct KeptToken {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(string, repeated, tag = "2")]
    audience: Vec<String>,
    #[prost(string, tag = "3")]
    token: String,
    #[prost(int64, tag = "4")]
    issued_at: i64,
    #[prost(int64, tag = "5")]
    expires_at: i64,
}

impl fmt::Debug for KeptSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptSvid").finish_non_exhaustive()
    }
}

impl fmt::Debug for KeptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptToken").finish_non_exhaustive()
    }
}

/// A token and what it is for.
pub(crate) type Token = (Key, Arc<JwtSvid>);

/// An entry, its SVID if it has one that holds, and when it was last used.
pub(crate) type Recalled = (Arc<Entry>, Option<X509Svid>, UnixSecs);

/// What was read from a vault and judged.
pub(crate) struct Kept {
    /// The bundles.
    pub(crate) bundles: Bundles,
    /// The entries.
    pub(crate) entries: Vec<Recalled>,
    /// The tokens that hold.
    pub(crate) tokens: Vec<Token>,
    /// When the agent had last heard from a server.
    pub(crate) synced_at: UnixSecs,
}

impl Kept {
    /// Whether there is anything to serve.
    pub(crate) fn serves(&self) -> bool {
        self.entries.iter().any(|(_, svid, _)| svid.is_some())
    }
}

/// What contents are judged by.
pub(super) struct Judge<'a> {
    /// The agent's own SVID as it is stored.
    pub(super) agent: &'a AgentIdentity,
    /// The bundle that is stored beside it: never older than the vault.
    pub(super) stored: &'a Bundle,
    /// The time.
    pub(super) now: SystemTime,
    /// When SVIDs are to be renewed.
    pub(super) rule: &'a RotationRule,
}

/// Why contents that could be opened are not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("what it holds cannot be read")]
    Malformed,
    #[error("it belongs to {0:?}")]
    OtherAgent(String),
    #[error("it is stale: the agent's SVID was replaced long after it was written")]
    Older,
}

/// How much older than another SVID of the agent the vault may be: it is written after that is stored,
/// and the clocks of servers differ.
const BETWEEN_FILES: i64 = 120;

impl Contents {
    /// What `state` holds, with these tokens. Tokens of nobody are left out.
    pub(super) fn of(state: &AgentState, tokens: &[Token], now: UnixSecs) -> Self {
        let kept_entry = |held: &Arc<crate::state::Held>| KeptEntry {
            entry: Some(entry::masked(&held.entry, None)),
            svid: held.svid.as_ref().map(|svid| KeptSvid {
                chain: svid.certificates().collect(),
                key: std::mem::take(&mut *svid.secret_pkcs8()),
                revision: svid.revision,
                entry_created_at: svid.entry_created_at.0,
            }),
            last_used: held.last_used().0,
        };
        let names: BTreeSet<&SpiffeId> = state.entries.iter().map(|held| &held.entry.spiffe_id).collect();
        let kept_token = |(key, svid): &Token| KeptToken {
            spiffe_id: svid.id.to_string(),
            audience: key.audience().to_vec(),
            token: svid.token.to_string(),
            issued_at: svid.issued_at.0,
            expires_at: svid.expires_at.0,
        };
        let tokens = tokens.iter().filter(|(_, svid)| names.contains(&svid.id)).map(kept_token);
        Self {
            agent_id: state.agent.id.to_string(),
            agent_serial: serial(&state.agent),
            sealed_at: now.0,
            synced_at: state.synced_at.map_or(0, |at| at.0),
            own: Some((&*state.bundles.own).into()),
            federated: state.bundles.federated.values().map(|bundle| (&**bundle).into()).collect(),
            entries: state.entries.iter().map(kept_entry).collect(),
            tokens: tokens.collect(),
        }
    }

    /// In one buffer that is wiped, with room for what sealing adds.
    pub(super) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.encoded_len()));
        // The buffer grows as it needs to: this cannot fail.
        self.encode(&mut *bytes).ok();
        bytes
    }

    /// Reads contents.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Unusable> {
        Self::decode(bytes).map_err(|_| Unusable::Malformed)
    }

    /// What of the contents can be used now. Each SVID and token is judged as if the server had just
    /// sent it; those that have expired are left out, as are those whose entry is gone.
    pub(super) fn judge(mut self, judge: &Judge<'_>) -> Result<Kept, Unusable> {
        let agent_id = judge.agent.id.clone();
        if self.agent_id != agent_id.as_str() {
            return Err(Unusable::OtherAgent(std::mem::take(&mut self.agent_id)));
        }
        let issued_at = judge.agent.chain.first().map_or(UnixSecs(0), Certificate::not_before);
        if self.agent_serial != serial(judge.agent)
            && issued_at.since(UnixSecs(self.sealed_at)) > BETWEEN_FILES
        {
            return Err(Unusable::Older);
        }
        let bundles = self.bundles(judge.stored)?;
        let entries = judged(std::mem::take(&mut self.entries), &agent_id, &bundles, judge)?;
        let names: BTreeSet<&SpiffeId> = entries.iter().map(|(entry, ..)| &entry.spiffe_id).collect();
        let authorities = bundles.own.jwt_authorities.iter();
        let sound: Vec<JwtAuthority> = authorities.filter(|authority| !authority.tainted).cloned().collect();
        let now = UnixSecs::from(judge.now);
        let tokens = std::mem::take(&mut self.tokens).into_iter();
        let tokens = tokens.filter_map(|token| token.judge(&names, &sound, now)).collect();
        Ok(Kept { bundles, entries, tokens, synced_at: UnixSecs(self.synced_at) })
    }

    /// The bundles, the X.509 authorities of the own one being those that are stored: if both are
    /// there, the vault's say which of them are tainted.
    fn bundles(&self, stored: &Bundle) -> Result<Bundles, Unusable> {
        let read = |wire: &types::Bundle| Bundle::try_from(wire).map_err(|_| Unusable::Malformed);
        let mut own = read(self.own.as_ref().ok_or(Unusable::Malformed)?)?;
        if own.trust_domain != stored.trust_domain {
            return Err(Unusable::Malformed);
        }
        let known = std::mem::take(&mut own.x509_authorities);
        own.x509_authorities = stored.x509_authorities.clone();
        for authority in &mut own.x509_authorities {
            authority.tainted |= known.iter().any(|known| known.tainted && known.der == authority.der);
        }
        let mut federated: BTreeMap<TrustDomain, Arc<Bundle>> = BTreeMap::new();
        for wire in &self.federated {
            let bundle = read(wire)?;
            if bundle.trust_domain != own.trust_domain {
                federated.insert(bundle.trust_domain.clone(), Arc::new(bundle));
            }
        }
        Ok(Bundles::new(Arc::new(own), federated))
    }
}

/// The entries, each with its SVID if that holds. Verifying takes a tenth of a millisecond each: a node
/// with many identities has all its processors do it, since workloads wait.
fn judged(
    kept: Vec<KeptEntry>,
    agent_id: &SpiffeId,
    bundles: &Bundles,
    judge: &Judge<'_>,
) -> Result<Vec<Recalled>, Unusable> {
    let (now, rule) = (judge.now, judge.rule);
    let part = |kept: Vec<KeptEntry>| -> Result<Vec<Recalled>, Unusable> {
        let (mut rule, mut texts, mut issuers) = (rule.clone(), Texts::default(), Issuers::default());
        let one = |mut kept: KeptEntry| {
            let wire = kept.entry.take().ok_or(Unusable::Malformed)?;
            let entry = entry::answered(&wire, agent_id, &mut texts).map_err(|_| Unusable::Malformed)?;
            let svid =
                kept.svid.take().and_then(|svid| svid.judge(&entry, bundles, now, &mut rule, &mut issuers));
            Ok((Arc::new(entry), svid, UnixSecs(kept.last_used)))
        };
        kept.into_iter().map(one).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let size = kept.len().div_ceil(threads).max(LEAST_PART);
    if kept.len() <= size {
        return part(kept);
    }
    let (mut rest, part) = (kept, &part);
    let parts = std::thread::scope(|scope| {
        let mut running = Vec::new();
        while !rest.is_empty() {
            let later = rest.split_off(size.min(rest.len()));
            let now = std::mem::replace(&mut rest, later);
            running.push(scope.spawn(move || part(now)));
        }
        running.into_iter().map(|part| part.join().unwrap_or(Err(Unusable::Malformed))).collect::<Vec<_>>()
    });
    let parts: Vec<Vec<Recalled>> = parts.into_iter().collect::<Result<_, _>>()?;
    Ok(parts.into_iter().flatten().collect())
}

/// Fewer entries than this are not worth a thread.
const LEAST_PART: usize = 50;

impl KeptSvid {
    /// The SVID, if it holds and is what it should be.
    fn judge(
        self,
        entry: &Entry,
        bundles: &Bundles,
        now: SystemTime,
        rule: &mut RotationRule,
        issuers: &mut Issuers,
    ) -> Option<X509Svid> {
        let refused = |why: String| {
            warn!(entry_id = %entry.id, spiffe_id = %entry.spiffe_id, error = why, "Leaving an X509-SVID in the vault");
        };
        let key = PrivateKey::from_der(&self.key).map_err(|error| refused(error.to_string())).ok()?;
        let accepted = X509Svid::accept(&self.chain, &key, entry, &bundles.anchors, now, rule, issuers);
        let mut svid = accepted.map_err(|error| refused(runtime::chain(&error))).ok()?;
        svid.revision = self.revision;
        svid.entry_created_at = UnixSecs(self.entry_created_at);
        Some(svid)
    }
}

impl KeptToken {
    /// The token, if it holds, somebody may have it, and a key of the bundle that is sound signed it.
    fn judge(
        mut self,
        names: &BTreeSet<&SpiffeId>,
        authorities: &[JwtAuthority],
        now: UnixSecs,
    ) -> Option<Token> {
        let token = Zeroizing::new(std::mem::take(&mut self.token));
        let id = SpiffeId::parse(&self.spiffe_id).ok()?;
        if UnixSecs(self.expires_at) <= now || !names.contains(&id) {
            return None;
        }
        // Whose entries these are is of the own trust domain: so are the names in them.
        match jwt::verify(&token, self.audience.first()?, now, |_| Some(authorities)) {
            Ok(verified) if verified.id == id => {}
            Ok(_) => return None,
            Err(error) => {
                warn!(spiffe_id = %id, %error, "Leaving a JWT-SVID in the vault");
                return None;
            }
        }
        let key = Key::new(&id, &self.audience);
        let (issued_at, expires_at) = (UnixSecs(self.issued_at), UnixSecs(self.expires_at));
        Some((key, Arc::new(JwtSvid { id, token, issued_at, expires_at })))
    }
}

/// Keys and tokens are wiped, whoever has read them.
impl Drop for KeptSvid {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Drop for KeptToken {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

fn serial(agent: &AgentIdentity) -> Vec<u8> {
    agent.chain.first().map_or_else(Vec::new, |leaf| leaf.serial().as_be_bytes().to_vec())
}
