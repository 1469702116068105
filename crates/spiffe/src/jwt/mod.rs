//! JWT-SVIDs and WIT-SVIDs: tokens read and verified (JWT-SVID, WIT-SVID; RFC 7515, 7518, 7519, 7800).
//!
//! [`verify`] is the only way to a [`VerifiedJwt`], [`verify_wit`] to a [`VerifiedWit`]. Sizes are capped
//! and the algorithm is looked up in a closed list before any cryptography; the key must fit the algorithm;
//! claims are judged only after the signature holds. Where the standard says "must", [`verify`] is stricter
//! than SPIRE: other header parameters than `alg`, `kid` and `typ`, base64 with line breaks, ambiguous JSON
//! are refused.
//!
//! Tokens are made in the crate `ca`, the only place that signs them.

mod algorithm;
mod claims;
mod wit;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine as _};
use serde_json::{Map, Value};

use crate::key::PublicKey;
use crate::quote::{quoted, quoted_all};
use crate::{IdError, JwtAuthority, SpiffeId, TrustDomain, UnixSecs, json};

use algorithm::Algorithm;
use claims::Claims;
pub use wit::{VerifiedWit, WitError, verify_wit};

/// The longest token that is looked at.
pub const MAX_TOKEN: usize = 64 * 1024;
/// How far clocks may be apart, in seconds.
pub const LEEWAY: i64 = 60;

/// A token whose signature and claims hold.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedJwt {
    /// Whose token it is.
    pub id: SpiffeId,
    /// Who may accept it.
    pub audience: Vec<String>,
    /// When it ends.
    pub expires_at: UnixSecs,
    /// All its claims; `aud` is always a list.
    pub claims: Map<String, Value>,
}

impl VerifiedJwt {
    /// Keeps of a foreign trust domain's token only the claims that SPIFFE defines and those named.
    /// A foreign issuer must not speak about our workloads in claims that we give a meaning of our own.
    pub fn drop_foreign_claims(&mut self, allowed: &[String]) {
        let spiffe = |name: &str| matches!(name, "sub" | "exp" | "aud");
        self.claims.retain(|name, _| spiffe(name) || allowed.contains(name));
    }
}

/// Why a token is refused. The caller of the Workload API sees these words, which are SPIRE's and those of
/// its library where scripts may look for them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// It is asked for nobody.
    #[error("audience must be specified")]
    NoAudience,
    /// There is none.
    #[error("svid must be specified")]
    NoToken,
    /// It is no token that could be verified.
    #[error("unable to parse JWT token: {0}")]
    Malformed(String),
    /// The header names no key.
    #[error("token header missing key id")]
    NoKeyId,
    /// The claims are no claims.
    #[error("unable to parse JWT claims: {0}")]
    BadClaims(String),
    /// No `sub`.
    #[error("token missing subject claim")]
    NoSubject,
    /// No `exp`.
    #[error("token missing exp claim")]
    NoExpiry,
    /// `sub` is no SPIFFE ID. (The words are SPIRE's.)
    #[error("token has in invalid subject claim: {0}")]
    BadSubject(IdError),
    /// `sub` is a trust domain, which is nobody.
    #[error("token has in invalid subject claim: path is empty")]
    SubjectWithoutPath,
    /// The trust domain of `sub` is not known here.
    #[error("no keys found for trust domain {}", quoted(.0.as_str()))]
    UnknownTrustDomain(TrustDomain),
    /// The trust domain of `sub` has no such key.
    #[error("public key {} not found in trust domain {}", quoted(.key_id), quoted(.trust_domain.as_str()))]
    UnknownKey {
        /// The key that the header names.
        key_id: String,
        /// Where it is missing.
        trust_domain: TrustDomain,
    },
    /// The signature does not hold, or the key is of another kind than the algorithm.
    #[error("go-jose/go-jose: error in cryptographic primitive")]
    BadSignature,
    /// It is meant for others.
    #[error("expected audience in [{}] (audience=[{}])", quoted(.expected), quoted_all(.found))]
    WrongAudience {
        /// For whom it was asked.
        expected: String,
        /// For whom it is.
        found: Vec<String>,
    },
    /// Its time has not come.
    #[error("go-jose/go-jose/jwt: validation failed, token not valid yet (nbf)")]
    NotYetValid,
    /// Its time is over.
    #[error("token has expired")]
    Expired,
    /// It claims to come from the future.
    #[error("go-jose/go-jose/jwt: validation field, token issued in the future (iat)")]
    IssuedInFuture,
}

/// Verifies `token` for `audience` at `now`. `authorities` knows the JWT authorities of each trust
/// domain whose tokens are acceptable; only those of the subject's own are looked at.
///
/// # Errors
/// Any of [`JwtError`]; the first reason in SPIRE's order.
pub fn verify<'a>(
    token: &str,
    audience: &str,
    now: UnixSecs,
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a [JwtAuthority]>,
) -> Result<VerifiedJwt, JwtError> {
    if audience.is_empty() {
        return Err(JwtError::NoAudience);
    }
    if token.is_empty() {
        return Err(JwtError::NoToken);
    }
    let parts = Parts::split(token)?;
    let header = Header::read(&parts.header)?;
    let claims = Claims::read(&parts.payload)?;
    let id = signed_for(&parts, &header, &claims, authorities)?;

    claims.check(audience, now)?;
    // What SPIRE lets pass comes last: its own reasons are told as it tells them.
    if id.path().is_empty() {
        return Err(JwtError::SubjectWithoutPath);
    }
    if let Some(excess) = header.excess() {
        return Err(JwtError::Malformed(excess));
    }
    Ok(VerifiedJwt {
        id,
        audience: claims.audience,
        expires_at: UnixSecs(claims.expires_at),
        claims: claims.all,
    })
}

/// Whose token it is, if its signature is by the key that its header names, of the subject's own trust
/// domain.
fn signed_for<'a>(
    parts: &Parts<'_>,
    header: &Header,
    claims: &Claims,
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a [JwtAuthority]>,
) -> Result<SpiffeId, JwtError> {
    let id = SpiffeId::parse(&claims.subject).map_err(JwtError::BadSubject)?;
    let trust_domain = id.trust_domain();
    let Some(keys) = authorities(&trust_domain) else {
        return Err(JwtError::UnknownTrustDomain(trust_domain));
    };
    // The last of several with one id counts, as in SPIRE.
    let Some(authority) = keys.iter().rfind(|authority| authority.key_id == header.key_id) else {
        return Err(JwtError::UnknownKey { key_id: header.key_id.clone(), trust_domain });
    };
    let key = PublicKey::from_spki(&authority.public_key).map_err(|_| JwtError::BadSignature)?;
    header.algorithm.verify(&key, parts.signed, &parts.signature)?;
    Ok(id)
}

/// The parts of a compact token, decoded.
struct Parts<'a> {
    /// What the signature covers.
    signed: &'a str,
    header: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Malformed(format!("token is longer than {MAX_TOKEN} bytes")));
        }
        let form =
            || JwtError::Malformed("go-jose/go-jose: compact JWS format must have three parts".to_owned());
        let (signed, signature) = token.rsplit_once('.').ok_or_else(form)?;
        let (header, payload) = signed.split_once('.').ok_or_else(form)?;
        if payload.contains('.') {
            return Err(form());
        }
        Ok(Self {
            signed,
            header: decoded(header)?,
            payload: decoded(payload)?,
            signature: decoded(signature)?,
        })
    }
}

/// One part. What is wrong with it is told as Go tells it: by the place of the first wrong byte.
fn decoded(text: &str) -> Result<Vec<u8>, JwtError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol { offset: at, .. } => at,
            // One character is left over: it stands for no whole byte.
            DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len().saturating_sub(1),
        };
        JwtError::Malformed(format!("illegal base64 data at input byte {at}"))
    })
}

/// What a header says.
struct Header {
    algorithm: Algorithm,
    key_id: String,
    members: Map<String, Value>,
}

impl Header {
    fn read(text: &[u8]) -> Result<Self, JwtError> {
        let malformed = JwtError::Malformed;
        // An empty one is one without members, as in SPIRE.
        let text = if text.is_empty() { b"{}" } else { text };
        let members = match json::read(text).map_err(|error| malformed(error.to_string()))? {
            Value::Object(members) => members,
            Value::Null => Map::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(malformed("header is not an object".to_owned()));
            }
        };
        let text = |name: &str, what: &str| match members.get(name) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(_) => Err(malformed(format!("failed to unmarshal {what}: not a string"))),
        };
        let key_id = text("kid", "key ID")?.to_owned();
        let name = text("alg", "algorithm")?;
        let algorithm = Algorithm::parse(name).ok_or_else(|| {
            let expected = quoted_all(Algorithm::NAMES);
            malformed(format!("unexpected signature algorithm {}; expected [{expected}]", quoted(name)))
        })?;
        if key_id.is_empty() {
            return Err(JwtError::NoKeyId);
        }
        Ok(Self { algorithm, key_id, members })
    }

    /// What the standard forbids in the header of a JWT-SVID.
    fn excess(&self) -> Option<String> {
        if !matches!(self.members.get("typ").map(Value::as_str), None | Some(Some("JWT" | "JOSE"))) {
            // JWT-SVID section 2.3: this also keeps WIT-SVIDs and access tokens out.
            return Some("typ is neither \"JWT\" nor \"JOSE\"".to_owned());
        }
        // Section 2: no other parameters; a key or a URL in the header would ask to be trusted.
        let other = self.members.keys().find(|name| !matches!(name.as_str(), "alg" | "kid" | "typ"));
        other.map(|name| format!("unexpected header parameter {}", quoted(name)))
    }
}
