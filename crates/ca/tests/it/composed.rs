//! Credential composers: what they may change, and what they may not.

use std::sync::Arc;

use async_trait::async_trait;
use ca::issue::{IssueError, JwtRequest, X509Request, self_signed_ca};
use ca::profile::{Composers, Profile};
use plugin::{CredentialComposer, Plugin, PluginError, PluginInfo, PluginKind, SvidAttributes};
use serde_json::{Map, Value, json};
use spiffe::SpiffeId;
use spiffe::key::{KeyKind, PublicKey};
use spiffe::x509::{Attribute, Name};

use crate::issue::{DAY, NOW, TestKey, authorities, id, issuer, parsed, part, profile, workload};

/// Adds to every subject, and merges claims into every token.
struct Composer {
    info: PluginInfo,
    unit: &'static str,
    claims: Value,
}

impl Composer {
    fn make(unit: &'static str, claims: Value) -> Arc<dyn CredentialComposer> {
        Arc::new(Self { info: PluginInfo::new(PluginKind::CredentialComposer, "test"), unit, claims })
    }
}

impl Plugin for Composer {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl CredentialComposer for Composer {
    async fn server_ca(&self, subject: Name) -> Result<Name, PluginError> {
        Ok(subject.with(Attribute::Locality, self.unit))
    }

    async fn workload_svid(
        &self,
        _id: &SpiffeId,
        _public_key: &PublicKey,
        attributes: SvidAttributes,
    ) -> Result<SvidAttributes, PluginError> {
        if self.unit.is_empty() {
            return Err(PluginError::internal("no unit"));
        }
        let subject = attributes.subject.with(Attribute::OrganizationalUnit, self.unit);
        Ok(SvidAttributes { subject, dns_names: vec![format!("{}.test", self.unit)] })
    }

    async fn workload_jwt(
        &self,
        _id: &SpiffeId,
        mut claims: Map<String, Value>,
    ) -> Result<Map<String, Value>, PluginError> {
        for (name, value) in self.claims.as_object().unwrap() {
            claims.insert(name.clone(), value.clone());
        }
        Ok(claims)
    }
}

fn composed(composers: Vec<Arc<dyn CredentialComposer>>) -> Profile {
    let mut profile = profile();
    profile.composers = Composers::new(composers);
    profile
}

#[tokio::test]
async fn composers_have_their_say_one_after_the_other() {
    let profile = composed(vec![Composer::make("one", json!({})), Composer::make("two", json!({}))]);
    let issuer = issuer(profile, authorities(KeyKind::EcP256).await);
    let public_key = TestKey::make(KeyKind::EcP256).public().clone();
    let agent = X509Request::Agent { id: id("/spire/agent/a"), public_key };

    let svid = issuer.prepare_x509(workload("/web"), NOW).unwrap().sign().await.unwrap();
    let agent = issuer.prepare_x509(agent, NOW).unwrap().sign().await.unwrap();

    let leaf = &parsed(&svid.chain)[0];
    assert_eq!(leaf.subject().to_string(), "OU=two,O=SPIRE,C=US");
    assert_eq!(leaf.dns_names(), ["two.test"]);
    assert_eq!(parsed(&agent.chain)[0].subject().to_string(), "O=SPIRE,C=US");
}

#[tokio::test]
async fn the_own_ca_is_composed_too() {
    let profile = composed(vec![Composer::make("here", json!({}))]);

    let ca = self_signed_ca(&profile, TestKey::make(KeyKind::EcP256), NOW).await.unwrap();

    assert!(ca.subject().to_string().starts_with("L=here,SERIALNUMBER="), "{}", ca.subject());
    assert_eq!(ca.certificate().subject(), ca.certificate().issuer());
}

#[tokio::test]
async fn a_composer_that_fails_keeps_the_credential_from_being_signed() {
    let issuer = issuer(composed(vec![Composer::make("", json!({}))]), authorities(KeyKind::EcP256).await);

    let refused = issuer.prepare_x509(workload("/web"), NOW).unwrap().sign().await;

    assert!(matches!(refused, Err(IssueError::Compose { what: "X509-SVID", .. })), "{refused:?}");
}

#[tokio::test]
async fn claims_are_merged_but_none_may_lie() {
    let attempt = async |claims: Value| {
        let issuer = issuer(composed(vec![Composer::make("x", claims)]), authorities(KeyKind::EcP256).await);
        let request = JwtRequest { id: id("/web"), audience: vec!["a".into()], ttl: 0, jti: false };
        let signed = issuer.prepare_jwt(&request, NOW).unwrap().sign().await;
        signed.map_err(|why| why.to_string())
    };

    let good = attempt(json!({"team": "blue", "exp": 1_800_000_060.0})).await.unwrap();
    let claims = part(&good.token, 1);
    assert_eq!((&claims["team"], &claims["sub"]), (&json!("blue"), &json!("spiffe://example.org/web")));
    assert_eq!((good.expires_at, &claims["exp"]), (NOW.plus(60), &json!(1_800_000_060)));

    for (claims, why) in [
        (json!({"sub": "spiffe://example.org/db"}), "subject is not the workload's SPIFFE ID"),
        (json!({"exp": NOW.0 - 1}), "already expired"),
        (json!({"exp": "never"}), "missing expiry"),
        (json!({"exp": NOW.0 + 2 * DAY}), "it would outlive the key that signs it"),
        (json!({"nbf": NOW.0 + 60}), "not valid yet"),
    ] {
        assert_eq!(attempt(claims).await.map(drop), Err(format!("invalid JWT-SVID: {why}")));
    }
    let nobody = "invalid JWT-SVID audience: cannot be empty";
    assert_eq!(attempt(json!({"aud": [""]})).await.map(drop), Err(nobody.to_owned()));
}
