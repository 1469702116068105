//! Tokens: JWT-SVIDs and WIT-SVIDs (JWT-SVID section 3; RFC 7515, 7519).
//!
//! The JSON is written by hand: its members are few, their order is fixed, and every value but the
//! strings is a number. Only where composers are configured it is read, changed and written again.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use runtime::metrics::Counter;
use serde_json::{Map, Value};
use spiffe::key::SigAlg;
use spiffe::{JwtAuthority, SpiffeId, TrustDomain, UnixSecs, jwt};

use super::{IssueError, check_member, sign};
use crate::authority::{TokenSigner, random};
use crate::profile::{self, Composers, Profile};

const JWT: &str = "JWT-SVID";
const WIT: &str = "WIT-SVID";

/// What JWT-SVID is asked for.
#[derive(Clone, Debug)]
pub struct JwtRequest {
    /// Whose it is.
    pub id: SpiffeId,
    /// Who is to accept it; empty ones do not count.
    pub audience: Vec<String>,
    /// Its lifetime in seconds; the default if not above 0.
    pub ttl: i64,
    /// Whether it gets an id of its own.
    pub jti: bool,
}

/// What WIT-SVID is asked for.
#[derive(Clone, Debug)]
pub struct WitRequest {
    /// Whose it is.
    pub id: SpiffeId,
    /// The key that it is bound to: a public JWK with `alg`.
    pub confirmation: Value,
    /// Its lifetime in seconds; the default if not above 0.
    pub ttl: i64,
}

/// A token that is ready to be composed and signed.
#[derive(Debug)]
pub struct PreparedToken {
    signer: Arc<TokenSigner>,
    /// Empty where nobody has a say.
    composers: Composers,
    claims: String,
    id: SpiffeId,
    issued_at: UnixSecs,
    expires_at: UnixSecs,
    what: &'static str,
    counter: Counter,
}

/// A signed token.
#[derive(Clone)]
pub struct TokenSvid {
    /// The compact form. It is a credential: not for logs.
    pub token: String,
    /// Whose it is.
    pub id: SpiffeId,
    /// When it was made.
    pub issued_at: UnixSecs,
    /// When it ends.
    pub expires_at: UnixSecs,
}

impl PreparedToken {
    /// Counted once it is signed.
    pub(super) fn counted_by(self, counter: &Counter) -> Self {
        Self { counter: counter.clone(), ..self }
    }

    /// Lets the composers have their say, checks what came of it, and signs it.
    ///
    /// # Errors
    /// [`IssueError::Compose`], [`IssueError::Claims`], [`IssueError::Sign`] or
    /// [`IssueError::BadSignature`].
    pub async fn sign(mut self) -> Result<TokenSvid, IssueError> {
        let (claims, expires_at) = self.composed().await?;
        let Self { signer, id, issued_at, what, counter, .. } = self;
        let alg = signer.alg;
        let kind = if what == WIT { "wit+jwt" } else { "JWT" };
        let signing_input = signing_input(&signer, kind, &claims);
        let signature = sign(&*signer.key, alg, signing_input.as_bytes(), what).await?;
        let bad = || IssueError::BadSignature { key: signer.key.id().to_string() };
        let mut token = signing_input;
        token.push('.');
        match alg {
            SigAlg::EcdsaP256Sha256 => {
                BASE64_URL_SAFE_NO_PAD.encode_string(signature.to_fixed(32).ok_or_else(bad)?, &mut token);
            }
            SigAlg::EcdsaP384Sha384 | SigAlg::EcdsaP384Sha256 => {
                BASE64_URL_SAFE_NO_PAD.encode_string(signature.to_fixed(48).ok_or_else(bad)?, &mut token);
            }
            SigAlg::EcdsaP521Sha512 | SigAlg::EcdsaP521Sha256 => {
                BASE64_URL_SAFE_NO_PAD.encode_string(signature.to_fixed(66).ok_or_else(bad)?, &mut token);
            }
            SigAlg::RsaPkcs1Sha256 | SigAlg::RsaPssSha256 => {
                BASE64_URL_SAFE_NO_PAD.encode_string(signature.as_bytes(), &mut token);
            }
        }
        if what == WIT {
            check_wit(&token, &signer, &id, issued_at)?;
        }
        counter.increment();
        Ok(TokenSvid { token, id, issued_at, expires_at })
    }

    /// The claims after all composers, and when the token ends by them.
    async fn composed(&mut self) -> Result<(String, UnixSecs), IssueError> {
        if self.composers.is_empty() {
            return Ok((std::mem::take(&mut self.claims), self.expires_at));
        }
        let Ok(Value::Object(mut claims)) = serde_json::from_str(&self.claims) else {
            return Err(IssueError::Claims("claims are no object"));
        };
        for composer in self.composers.iter() {
            let composed = composer.workload_jwt(&self.id, claims).await;
            claims = composed.map_err(|error| IssueError::Compose { what: JWT, error })?;
        }
        let expires_at = self.check(&mut claims)?;
        Ok((Value::Object(claims).to_string(), expires_at))
    }

    /// What a composer gives back is untrusted.
    fn check(&self, claims: &mut Map<String, Value>) -> Result<UnixSecs, IssueError> {
        // Plugins in other languages count in floating point.
        for name in ["exp", "iat", "nbf"] {
            let whole = claims.get(name).filter(|value| value.is_f64()).and_then(Value::as_f64);
            if let Some(whole) = whole.filter(|whole| whole.is_finite()) {
                #[expect(clippy::cast_possible_truncation, reason = "the fraction is to go; casts saturate")]
                claims.insert(name.to_owned(), (whole as i64).into());
            }
        }
        let number = |name: &str| claims.get(name).and_then(Value::as_i64).map(UnixSecs);
        if claims.get("sub").and_then(Value::as_str) != Some(self.id.as_str()) {
            return Err(IssueError::Claims("subject is not the workload's SPIFFE ID"));
        }
        let expires_at = number("exp").ok_or(IssueError::Claims("missing expiry"))?;
        if expires_at <= self.issued_at {
            return Err(IssueError::Claims("already expired"));
        }
        if expires_at > self.signer.not_after() {
            return Err(IssueError::Claims("it would outlive the key that signs it"));
        }
        if claims.contains_key("nbf") && number("nbf").is_none_or(|from| from > self.issued_at) {
            return Err(IssueError::Claims("not valid yet"));
        }
        let is_audience = |value: &Value| value.as_str().is_some_and(|name| !name.is_empty());
        let audience = claims.get("aud").and_then(Value::as_array);
        if !audience.is_some_and(|names| !names.is_empty() && names.iter().all(is_audience)) {
            return Err(IssueError::NoAudience);
        }
        Ok(expires_at)
    }
}

pub(super) fn prepare_jwt(
    profile: &Profile,
    signer: Arc<TokenSigner>,
    request: &JwtRequest,
    now: UnixSecs,
) -> Result<PreparedToken, IssueError> {
    check_member(JWT, &request.id, &profile.trust_domain)?;
    let audience: Vec<_> = request.audience.iter().filter(|name| !name.is_empty()).collect();
    if audience.is_empty() {
        return Err(IssueError::NoAudience);
    }
    let ttl = profile::lifetime(request.ttl, profile.jwt_svid_ttl);
    let expires_at = expiry(JWT, &signer, ttl, now)?;

    let mut claims = Object::new();
    claims.array("aud", &audience);
    claims.number("exp", expires_at.0);
    claims.number("iat", now.0);
    if !profile.jwt_issuer.is_empty() {
        claims.text("iss", &profile.jwt_issuer);
    }
    if request.jti {
        claims.text("jti", &new_jti());
    }
    claims.text("sub", request.id.as_str());
    let (claims, id, composers) = (claims.finish(), request.id.clone(), profile.composers.clone());
    Ok(PreparedToken {
        signer,
        composers,
        claims,
        id,
        issued_at: now,
        expires_at,
        what: JWT,
        counter: Counter::default(),
    })
}

pub(super) fn prepare_wit(
    profile: &Profile,
    signer: Arc<TokenSigner>,
    request: &WitRequest,
    now: UnixSecs,
) -> Result<PreparedToken, IssueError> {
    check_member(WIT, &request.id, &profile.trust_domain)?;
    let ttl = profile::lifetime(request.ttl, profile.wit_svid_ttl);
    let expires_at = expiry(WIT, &signer, ttl, now)?;

    let mut claims = Object::new();
    let mut confirmation = Object::new();
    confirmation.json("jwk", &request.confirmation.to_string());
    claims.json("cnf", &confirmation.finish());
    claims.number("exp", expires_at.0);
    claims.number("iat", now.0);
    if !profile.wit_issuer.is_empty() {
        claims.text("iss", &profile.wit_issuer);
    }
    claims.text("sub", request.id.as_str());
    let (claims, id, composers) = (claims.finish(), request.id.clone(), Composers::default());
    Ok(PreparedToken {
        signer,
        composers,
        claims,
        id,
        issued_at: now,
        expires_at,
        what: WIT,
        counter: Counter::default(),
    })
}

/// Reads a WIT-SVID as those do who are shown it: what they would refuse is not handed out.
fn check_wit(token: &str, signer: &TokenSigner, id: &SpiffeId, now: UnixSecs) -> Result<(), IssueError> {
    let authority = JwtAuthority {
        key_id: signer.key_id().to_owned(),
        public_key: signer.public_key().spki().into(),
        expires_at: signer.not_after(),
        tainted: false,
    };
    let own = |name: &TrustDomain| id.is_member_of(name).then_some(std::slice::from_ref(&authority));
    jwt::verify_wit(token, now, own).map(drop).map_err(IssueError::Wit)
}

fn expiry(
    what: &'static str,
    signer: &TokenSigner,
    ttl: std::time::Duration,
    now: UnixSecs,
) -> Result<UnixSecs, IssueError> {
    let at = profile::validity(now, ttl, Some(signer.not_after())).not_after;
    if at <= now { Err(IssueError::Expired { what, at }) } else { Ok(at) }
}

/// Header and claims as they are signed.
fn signing_input(signer: &TokenSigner, kind: &str, claims: &str) -> String {
    let mut header = Object::new();
    header.text("alg", alg_name(signer.alg));
    header.text("kid", signer.key_id());
    header.text("typ", kind);
    let mut input = String::with_capacity(512);
    BASE64_URL_SAFE_NO_PAD.encode_string(header.finish(), &mut input);
    input.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(claims, &mut input);
    input
}

const fn alg_name(alg: SigAlg) -> &'static str {
    match alg {
        SigAlg::EcdsaP256Sha256 => "ES256",
        SigAlg::EcdsaP384Sha384 | SigAlg::EcdsaP384Sha256 => "ES384",
        SigAlg::EcdsaP521Sha512 | SigAlg::EcdsaP521Sha256 => "ES512",
        SigAlg::RsaPkcs1Sha256 => "RS256",
        SigAlg::RsaPssSha256 => "PS256",
    }
}

/// The bytes of a random UUID, in base64url.
fn new_jti() -> String {
    let bits = u128::from_be_bytes(random());
    // Version 4, variant 1 (RFC 9562).
    let version = bits & !(0xf << 76) | 0x4 << 76;
    let uuid = version & !(0x3 << 62) | 0x2 << 62;
    BASE64_URL_SAFE_NO_PAD.encode(uuid.to_be_bytes())
}

/// A JSON object being written.
struct Object(String);

impl Object {
    fn new() -> Self {
        let mut text = String::with_capacity(256);
        text.push('{');
        Self(text)
    }

    fn json(&mut self, name: &str, value: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":");
        self.0.push_str(value);
    }

    fn number(&mut self, name: &str, value: i64) {
        self.json(name, &value.to_string());
    }

    fn text(&mut self, name: &str, value: &str) {
        self.json(name, &Value::from(value).to_string());
    }

    fn array(&mut self, name: &str, values: &[&String]) {
        let values: Vec<_> = values.iter().map(|value| Value::from(value.as_str())).collect();
        self.json(name, &Value::from(values).to_string());
    }

    fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}
