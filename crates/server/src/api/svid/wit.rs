//! WIT-SVIDs: tokens bound to a key that the asker names with the algorithm it will sign with.

use ca::issue::WitRequest;
use proto::convert::id;
use proto::spire::server::svid as wire;
use proto::spire::types;
use spiffe::jwk::Jwk;
use spiffe::key::{PublicKey, PublicKeyKind, UnusableKey};
use spiffe::{Entry, SpiffeId};
use tonic::Status;

use super::Svids;
use crate::api::status::{failed_because, invalid};

const RSA_ALGORITHMS: [&str; 6] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];

impl Svids {
    /// `MintWITSVID`.
    pub(super) async fn mint_wit(&self, request: wire::MintWitsvidRequest) -> Result<types::Witsvid, Status> {
        let wire::MintWitsvidRequest { id, public_key, ttl, signing_algorithm } = request;
        let id = id::workload(self.0.trust_domain(), id.as_ref()).and_then(id::issuable);
        let id = id.map_err(|why| invalid("invalid SPIFFE ID", why))?;
        let confirmation = confirmation(&public_key, &signing_algorithm, "invalid public key")?;
        // A lifetime below zero is the default, as in SPIRE.
        self.sign_wit(id, confirmation, i64::from(ttl)).await
    }

    /// One item of `BatchNewWITSVID`.
    pub(super) async fn new_wit(
        &self,
        params: &wire::NewWitsvidParams,
        entry: Option<&Entry>,
    ) -> Result<types::Witsvid, Status> {
        if params.entry_id.is_empty() {
            return Err(Status::invalid_argument("missing entry ID"));
        }
        if params.public_key.is_empty() {
            return Err(Status::invalid_argument("missing public key"));
        }
        let entry = entry.ok_or_else(super::not_authorised)?;
        let confirmation =
            confirmation(&params.public_key, &params.signing_algorithm, "malformed public key")?;
        // Entries have no lifetime of their own for these tokens.
        self.sign_wit(entry.spiffe_id.clone(), confirmation, i64::from(entry.x509_svid_ttl)).await
    }

    async fn sign_wit(
        &self,
        id: SpiffeId,
        confirmation: serde_json::Value,
        ttl: i64,
    ) -> Result<types::Witsvid, Status> {
        let prepared = self.0.issuer.prepare_wit(&WitRequest { id, confirmation, ttl }, self.0.now());
        let signed = match prepared {
            Ok(prepared) => prepared.sign().await,
            Err(why) => Err(why),
        };
        let svid = signed.map_err(|why| failed_because("failed to sign WIT-SVID", &why))?;
        Ok(types::Witsvid {
            token: svid.token,
            id: Some((&svid.id).into()),
            expires_at: svid.expires_at.0,
            issued_at: svid.issued_at.0,
            hint: String::new(),
        })
    }
}

/// The JWK that a token is bound to.
fn confirmation(spki: &[u8], algorithm: &str, if_no_key: &str) -> Result<serde_json::Value, Status> {
    let key = PublicKey::from_spki(spki).map_err(|why| invalid(if_no_key, why))?;
    let usable = key.check_usable();
    if let Err(why @ (UnusableKey::OffCurve(_) | UnusableKey::Encoding)) = usable {
        return Err(invalid(if_no_key, why));
    }
    let refused = |why: &dyn std::fmt::Display| invalid("invalid signing algorithm or key type", why);
    check_algorithm(&key, algorithm).map_err(|why| refused(&why))?;
    usable.map_err(|why| refused(&why))?;
    let mut members = Jwk::write("", "", &key, None).map_err(|why| refused(&why))?;
    members.insert("alg".to_owned(), algorithm.into());
    Ok(members.into())
}

/// Whether a key of this kind signs by that algorithm.
fn check_algorithm(key: &PublicKey, algorithm: &str) -> Result<(), String> {
    let (kind, fits) = match key.kind() {
        PublicKeyKind::Rsa(_) => ("RSA", RSA_ALGORITHMS.contains(&algorithm)),
        PublicKeyKind::EcP256 => ("ec-p256", algorithm == "ES256"),
        PublicKeyKind::EcP384 => ("ec-p384", algorithm == "ES384"),
        PublicKeyKind::EcP521 => ("ec-p521", algorithm == "ES512"),
        PublicKeyKind::Ed25519 => return Err("unsupported key type 'ed25519.PublicKey'".to_owned()),
        // Not usable either, which has its own words.
        PublicKeyKind::Other => return Ok(()),
    };
    if fits { Ok(()) } else { Err(format!("unsupported signing algorithm for {kind} key: {algorithm}")) }
}

#[cfg(test)]
mod tests {
    use spiffe::key::{KeyKind, PrivateKey};

    use super::*;

    fn refusal(spki: &[u8], algorithm: &str) -> String {
        confirmation(spki, algorithm, "invalid public key").unwrap_err().message().to_owned()
    }

    #[test]
    fn a_token_is_bound_to_a_key_and_the_algorithm_that_fits_it() {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let spki = key.public().spki();

        let jwk = confirmation(spki, "ES256", "").unwrap();

        assert_eq!((&jwk["kty"], &jwk["crv"], &jwk["alg"]), (&"EC".into(), &"P-256".into(), &"ES256".into()));
        assert!(jwk.get("kid").is_none());
        assert_eq!(
            refusal(spki, "ES384"),
            "invalid signing algorithm or key type: unsupported signing algorithm for ec-p256 key: ES384"
        );
        assert_eq!(refusal(b"x", "ES256"), "invalid public key: malformed key");
    }

    #[test]
    fn a_point_beside_its_curve_is_no_key() {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let mut spki = key.public().spki().to_vec();
        *spki.last_mut().unwrap() ^= 1;

        assert_eq!(refusal(&spki, "ES256"), "invalid public key: P256 point not on curve");
    }
}
