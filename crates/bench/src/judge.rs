//! Whether an answer is right: one in so many is checked to the last signature.
//!
//! A figure of a server that signs the wrong thing quickly is worth nothing, so one wrong answer ends
//! the run. What is new in the bundle since the run began is asked for before anybody is blamed.

use std::cell::{Cell, RefCell};

use proto::spire::server::bundle::GetBundleRequest;
use proto::spire::types;
use runtime::clock::{Clock, SystemClock};
use spiffe::key::PublicKey;
use spiffe::x509::{Certificate, verify_svid};
use spiffe::{Bundle, JwtAuthority, SpiffeId, UnixSecs, jwt};

use crate::target::{Target, anchors_of};
use crate::{BenchError, Trouble};

/// Checks answers of one target.
pub(crate) struct Judge<'a> {
    target: &'a Target,
    every: u64,
    trust: RefCell<Trust>,
    seen: Cell<u64>,
    checked: Cell<u64>,
}

struct Trust {
    anchors: Vec<Certificate>,
    jwt: Vec<JwtAuthority>,
}

impl<'a> Judge<'a> {
    /// One that checks every so-manieth answer, and the first.
    ///
    /// # Errors
    /// The bundle cannot be read.
    pub(crate) fn new(target: &'a Target, every: u64) -> Result<Self, BenchError> {
        let trust = RefCell::new(Trust::of(&target.bundle)?);
        Ok(Self { target, every: every.max(1), trust, seen: Cell::new(0), checked: Cell::new(0) })
    }

    /// Counts an answer and says whether it is one to check.
    pub(crate) fn is_due(&self) -> bool {
        let seen = self.seen.get();
        self.seen.set(seen + 1);
        let is_due = seen.is_multiple_of(self.every);
        if is_due {
            self.checked.set(self.checked.get() + 1);
        }
        is_due
    }

    /// How many answers were checked since this was asked last.
    pub(crate) fn take_checked(&self) -> u64 {
        // The next phase checks its first answer too.
        self.seen.set(0);
        self.checked.replace(0)
    }

    /// Whether this is an X.509-SVID of `id` for `key`, under the bundle, valid now.
    ///
    /// # Errors
    /// It is not.
    pub(crate) async fn x509(
        &self,
        svid: &types::X509svid,
        id: &SpiffeId,
        key: &PublicKey,
    ) -> Result<(), Trouble> {
        let wrong = |why: String| Trouble::Wrong(format!("X.509-SVID of {id}: {why}"));
        let chain: Vec<Certificate> = svid
            .cert_chain
            .iter()
            .map(|der| Certificate::parse(der))
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(error.to_string()))?;
        let leaf = chain.first().ok_or_else(|| wrong("the chain is empty".to_owned()))?;
        let said = svid.id.as_ref().map(text_of).unwrap_or_default();
        if said != id.as_str() {
            return Err(wrong(format!("it is said to be of {said:?}")));
        }
        if leaf.public_key() != key {
            return Err(wrong("it is for another key".to_owned()));
        }
        if svid.expires_at != leaf.not_after().0 {
            return Err(wrong(format!(
                "it is said to end at {}, and ends at {}",
                svid.expires_at,
                leaf.not_after().0
            )));
        }
        let now = UnixSecs::from(SystemClock.now());
        let judged = || verify_svid(&chain, &self.trust.borrow().anchors, now);
        let found = match judged() {
            Ok(found) => found,
            Err(_) => {
                self.refresh().await?;
                judged().map_err(|error| wrong(error.to_string()))?
            }
        };
        if found == *id { Ok(()) } else { Err(wrong(format!("it names {found}"))) }
    }

    /// Whether this is a JWT-SVID of `id` for `audience`, under the bundle, valid now.
    ///
    /// # Errors
    /// It is not.
    pub(crate) async fn jwt(&self, token: &str, id: &SpiffeId, audience: &str) -> Result<(), Trouble> {
        let wrong = |why: String| Trouble::Wrong(format!("JWT-SVID of {id}: {why}"));
        let now = UnixSecs::from(SystemClock.now());
        let judged = || {
            let trust = self.trust.borrow();
            jwt::verify(token, audience, now, |_| Some(trust.jwt.as_slice())).map(|verified| verified.id)
        };
        let found = match judged() {
            Ok(found) => found,
            Err(_) => {
                self.refresh().await?;
                judged().map_err(|error| wrong(error.to_string()))?
            }
        };
        if found == *id { Ok(()) } else { Err(wrong(format!("it names {found}"))) }
    }

    /// Asks for the bundle again: authorities may have changed since.
    async fn refresh(&self) -> Result<(), Trouble> {
        let wire = self.target.admin.bundle().get_bundle(GetBundleRequest::default()).await?.into_inner();
        let bundle =
            Bundle::try_from(&wire).map_err(|error| Trouble::Wrong(format!("the bundle: {error}")))?;
        let trust = Trust::of(&bundle).map_err(|error| Trouble::Wrong(error.to_string()))?;
        self.trust.replace(trust);
        Ok(())
    }
}

impl Trust {
    fn of(bundle: &Bundle) -> Result<Self, BenchError> {
        Ok(Self { anchors: anchors_of(bundle)?, jwt: bundle.jwt_authorities.clone() })
    }
}

/// An id as it is on the wire, as text.
pub(crate) fn text_of(id: &types::Spiffeid) -> String {
    format!("spiffe://{}{}", id.trust_domain, id.path)
}

/// An id for the wire.
pub(crate) fn wire_of(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}
