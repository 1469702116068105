//! WIT-SVIDs: tokens that hold for whoever has the private key that they are bound to (WIT-SVID; RFC 7800).

use serde_json::{Map, Value};

use super::{Algorithm, Claims, Header, JwtError, Parts, signed_for};
use crate::jwk::Jwk;
use crate::key::PublicKey;
use crate::quote::{quoted, quoted_all};
use crate::{JwtAuthority, SpiffeId, TrustDomain, UnixSecs};

/// A WIT-SVID whose signature and claims hold. Who shows it is not known to be its subject yet: that takes
/// a proof that they have the private key to [`VerifiedWit::key`] (WIT-SVID section 4).
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedWit {
    /// Whose token it is.
    pub id: SpiffeId,
    /// The key that it is bound to.
    pub key: PublicKey,
    /// The algorithm that this key signs by; it fits the key.
    pub algorithm: String,
    /// When it ends.
    pub expires_at: UnixSecs,
    /// All its claims.
    pub claims: Map<String, Value>,
}

/// Why a WIT-SVID is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WitError {
    /// For a reason for which any token is.
    #[error(transparent)]
    Token(#[from] JwtError),
    /// It is a token of another type.
    #[error("typ is not \"wit+jwt\"")]
    Type,
    /// Its header has extensions that must be understood.
    #[error("header has critical parameters")]
    Critical,
    /// It is for somebody, which the standard forbids.
    #[error("token has an audience claim")]
    Audience,
    /// It is bound to no key.
    #[error("token missing cnf claim with a jwk")]
    NoConfirmation,
    /// Besides its key it names another.
    #[error("cnf claim has {} beside jwk", quoted(.0))]
    SecondKey(String),
    /// Its key is none that it could be bound to.
    #[error("invalid jwk in cnf claim: {0}")]
    BadKey(String),
}

/// Verifies `token` at `now`. `authorities` knows the WIT authorities of each trust domain whose tokens are
/// acceptable; only those of the subject's own are looked at.
///
/// # Errors
/// Any of [`WitError`].
pub fn verify_wit<'a>(
    token: &str,
    now: UnixSecs,
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a [JwtAuthority]>,
) -> Result<VerifiedWit, WitError> {
    if token.is_empty() {
        return Err(JwtError::NoToken.into());
    }
    let parts = Parts::split(token)?;
    let header = Header::read(&parts.header)?;
    if header.members.get("typ").and_then(Value::as_str) != Some(TYPE) {
        return Err(WitError::Type);
    }
    // What else is in a header may be passed over (section 2.4), keys and URLs with it.
    if header.members.contains_key("crit") {
        return Err(WitError::Critical);
    }
    let claims = Claims::read(&parts.payload)?;
    let id = signed_for(&parts, &header, &claims, authorities)?;

    claims.check_time(now)?;
    if id.path().is_empty() {
        return Err(JwtError::SubjectWithoutPath.into());
    }
    if claims.all.contains_key("aud") {
        return Err(WitError::Audience);
    }
    let (key, algorithm) = confirmation(&claims.all)?;
    let expires_at = UnixSecs(claims.expires_at);
    Ok(VerifiedWit { id, key, algorithm, expires_at, claims: claims.all })
}

/// The key that claims are bound to, and its algorithm (section 3.2).
fn confirmation(claims: &Map<String, Value>) -> Result<(PublicKey, String), WitError> {
    let confirmation = claims.get("cnf").and_then(Value::as_object).ok_or(WitError::NoConfirmation)?;
    let jwk @ Value::Object(members) = confirmation.get("jwk").ok_or(WitError::NoConfirmation)? else {
        return Err(WitError::BadKey("not an object".to_owned()));
    };
    // One key and no choice for whoever is to prove that they have it (RFC 7800, 3.1).
    if let Some(other) = OTHER_KEYS.iter().find(|name| confirmation.contains_key(**name)) {
        return Err(WitError::SecondKey((*other).to_owned()));
    }
    let bad = WitError::BadKey;
    if PRIVATE.iter().any(|name| members.contains_key(*name)) {
        return Err(bad("key has private members".to_owned()));
    }
    let key = Jwk::read(jwk).map_err(bad)?.key;
    let name = members.get("alg").and_then(Value::as_str).unwrap_or_default();
    let algorithm = Algorithm::parse(name).ok_or_else(|| {
        let expected = quoted_all(Algorithm::NAMES);
        bad(format!("unexpected signature algorithm {}; expected [{expected}]", quoted(name)))
    })?;
    if !algorithm.fits(&key) {
        return Err(bad(format!("key is of another kind than signs by {name}")));
    }
    Ok((key, name.to_owned()))
}

const TYPE: &str = "wit+jwt";

/// Members of `cnf` that name a key in another way (RFC 7800, 8705, 9449).
const OTHER_KEYS: [&str; 5] = ["jwe", "jku", "kid", "jkt", "x5t#S256"];

/// Members of private keys (RFC 7518, 6).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
