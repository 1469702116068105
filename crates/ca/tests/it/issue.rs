//! Credentials as they are issued: what stands in them, who can check them, and what is refused.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ca::authority::{ActiveAuthorities, AuthorityError, TokenSigner, Unusable, X509Signer};
use ca::issue::{IssueError, Issuer, JwtRequest, WitRequest, X509Request, self_signed_ca, upstream_csr};
use ca::journal::{Journal, X509Entry};
use ca::profile::Profile;
use ca::slots::{SlotName, Status};
use plugin::{Key, KeyId, PluginError};
use runtime::snapshot::Publisher;
use serde_json::{Value, json};
use spiffe::jwk::Jwk;
use spiffe::key::{KeyKind, PrivateKey, PublicKey, SigAlg, Signature};
use spiffe::x509::{CertDer, Certificate, Csr, verify_path, verify_svid};
use spiffe::{SpiffeId, TrustDomain, UnixSecs};

pub(crate) const NOW: UnixSecs = UnixSecs(1_800_000_000);
pub(crate) const DAY: i64 = 86_400;

/// A key manager's key, with hands that may be foreign and may lie.
pub(crate) struct TestKey {
    id: KeyId,
    key: PrivateKey,
    lies: bool,
}

impl TestKey {
    pub(crate) fn make(kind: KeyKind) -> Arc<dyn Key> {
        Arc::new(Self { id: KeyId::new("x509-CA-A"), key: PrivateKey::generate(kind).unwrap(), lies: false })
    }

    fn lying() -> Arc<dyn Key> {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        Arc::new(Self { id: KeyId::new("x509-CA-A"), key, lies: true })
    }
}

#[async_trait]
impl Key for TestKey {
    fn id(&self) -> &KeyId {
        &self.id
    }

    fn public(&self) -> &PublicKey {
        self.key.public()
    }

    async fn sign(&self, alg: SigAlg, message: &[u8]) -> Result<Signature, PluginError> {
        let message = if self.lies { b"something else" } else { message };
        self.key.sign(alg, message).map_err(|error| PluginError::internal(error.to_string()))
    }
}

pub(crate) fn profile() -> Profile {
    Profile::new(TrustDomain::parse("example.org").unwrap()).unwrap()
}

pub(crate) fn issuer(profile: Profile, active: ActiveAuthorities) -> Issuer {
    Issuer::new(Arc::new(profile), Publisher::new(active).snapshot())
}

pub(crate) async fn authorities(kind: KeyKind) -> ActiveAuthorities {
    let x509 = self_signed_ca(&profile(), TestKey::make(kind), NOW).await.unwrap();
    let token = || Arc::new(TokenSigner::with_new_id(TestKey::make(kind), NOW.plus(DAY)).unwrap());
    ActiveAuthorities { x509: Some(Arc::new(x509)), jwt: Some(token()), wit: Some(token()) }
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
}

fn public_key() -> PublicKey {
    PrivateKey::generate(KeyKind::EcP256).unwrap().public().clone()
}

pub(crate) fn workload(path: &str) -> X509Request {
    X509Request::Workload {
        id: id(path),
        public_key: public_key(),
        dns_names: Vec::new(),
        ttl: 0,
        subject: None,
    }
}

pub(crate) fn parsed(chain: &[CertDer]) -> Vec<Certificate> {
    chain.iter().map(|der| Certificate::parse(der.as_bytes()).unwrap()).collect()
}

pub(crate) fn part(token: &str, number: usize) -> Value {
    let part = token.split('.').nth(number).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn svids_of_every_kind_of_authority_are_verified() {
    for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048] {
        let active = authorities(kind).await;
        let anchor = active.x509.as_ref().unwrap().certificate().clone();
        let issuer = issuer(profile(), active);

        let svid = issuer.prepare_x509(workload("/web"), NOW).unwrap().sign().await.unwrap();

        let chain = parsed(&svid.chain);
        assert_eq!(chain.len(), 1);
        assert_eq!(verify_svid(&chain, &[anchor], NOW), Ok(id("/web")));
        assert_eq!(chain[0].serial().to_string(), svid.serial.to_string());
    }
}

#[tokio::test]
async fn a_workload_svid_has_the_subject_names_and_validity_of_its_entry() {
    let issuer = issuer(profile(), authorities(KeyKind::EcP256).await);
    let request = X509Request::Workload {
        id: id("/web"),
        public_key: public_key(),
        dns_names: vec!["b.test".into(), "c.test".into()],
        ttl: 60,
        subject: None,
    };

    let svid = issuer.prepare_x509(request, NOW).unwrap().sign().await.unwrap();

    let leaf = &parsed(&svid.chain)[0];
    assert_eq!(leaf.subject().to_string(), "CN=b.test,O=SPIRE,C=US");
    assert_eq!(leaf.dns_names(), ["b.test", "c.test"]);
    assert_eq!(leaf.uris(), ["spiffe://example.org/web"]);
    assert_eq!((leaf.not_before(), leaf.not_after()), (NOW.plus(-10), NOW.plus(60)));
    assert_eq!((svid.not_before, svid.not_after), (NOW.plus(-10), NOW.plus(60)));
    let active = issuer.active();
    let ca = active.x509.as_ref().unwrap();
    assert_eq!(leaf.authority_key_id(), ca.certificate().subject_key_id());
    assert_eq!(leaf.issuer(), ca.subject());
}

#[tokio::test]
async fn a05_nothing_outlives_its_authority() {
    let issuer = issuer(profile(), authorities(KeyKind::EcP256).await);
    let late = NOW.plus(DAY - 100);
    let jwt = JwtRequest { id: id("/web"), audience: vec!["db".into()], ttl: 600, jti: false };

    let svid = issuer.prepare_x509(workload("/web"), late).unwrap().sign().await.unwrap();
    let token = issuer.prepare_jwt(&jwt, late).unwrap().sign().await.unwrap();

    assert_eq!(svid.not_after, NOW.plus(DAY));
    assert_eq!(token.expires_at, NOW.plus(DAY));
    let after = NOW.plus(DAY + 1);
    assert!(matches!(issuer.prepare_x509(workload("/web"), after), Err(IssueError::Expired { .. })));
    assert!(matches!(issuer.prepare_jwt(&jwt, after), Err(IssueError::Expired { .. })));
}

#[tokio::test]
async fn agents_and_the_server_get_their_own_lifetimes() {
    let mut profile = profile();
    profile.agent_ttl = std::time::Duration::from_secs(7200);
    let issuer = issuer(profile, authorities(KeyKind::EcP256).await);
    let agent = X509Request::Agent { id: id("/spire/agent/x"), public_key: public_key() };
    let server = X509Request::Server { public_key: public_key() };

    let agent = issuer.prepare_x509(agent, NOW).unwrap().sign().await.unwrap();
    let server = issuer.prepare_x509(server, NOW).unwrap().sign().await.unwrap();

    assert_eq!(agent.not_after, NOW.plus(7200));
    assert_eq!((server.id.as_str(), server.not_after), ("spiffe://example.org/spire/server", NOW.plus(3600)));
    assert_eq!(parsed(&server.chain)[0].subject().to_string(), "O=SPIRE,C=US");
}

#[tokio::test]
async fn a_self_signed_authority_names_its_serial_and_signs_downstream_ones() {
    let active = authorities(KeyKind::EcP256).await;
    let root = Arc::clone(active.x509.as_ref().unwrap());
    let issuer = issuer(profile(), active);
    let certificate = root.certificate();
    let name = format!("SERIALNUMBER={},O=SPIFFE,C=US", certificate.serial());
    assert_eq!(certificate.subject().to_string(), name);
    assert_eq!(certificate.authority_key_id(), None);
    assert_eq!(certificate.uris(), ["spiffe://example.org"]);
    assert_eq!((certificate.not_before(), certificate.not_after()), (NOW.plus(-10), NOW.plus(DAY)));
    assert_eq!(root.authority_id().len(), 40);
    assert_eq!(root.upstream_authority_id(), "");

    let key = TestKey::make(KeyKind::EcP256);
    let request = X509Request::DownstreamCa { public_key: key.public().clone(), ttl: 3600 };
    let signed = issuer.prepare_x509(request, NOW).unwrap().sign().await.unwrap();
    let below = X509Signer::new(key, signed.chain[0].as_bytes(), signed.chain.clone()).unwrap();

    let name = format!("SERIALNUMBER={},OU=DOWNSTREAM-1,O=SPIFFE,C=US", certificate.serial());
    assert_eq!(below.subject().to_string(), name);
    assert_eq!(below.upstream_authority_id(), root.authority_id());
    let nested = issuer_of(below).prepare_x509(workload("/deep"), NOW).unwrap().sign().await.unwrap();
    let chain = parsed(&nested.chain);
    assert_eq!(chain.len(), 2);
    verify_path(&chain[0], &chain[1..], std::slice::from_ref(certificate), NOW).unwrap();
    assert_eq!(nested.not_after, NOW.plus(3600));
}

fn issuer_of(signer: X509Signer) -> Issuer {
    issuer(profile(), ActiveAuthorities { x509: Some(Arc::new(signer)), ..ActiveAuthorities::default() })
}

#[tokio::test]
async fn an_upstream_authority_is_asked_for_the_same_subject() {
    let key = TestKey::make(KeyKind::EcP256);

    let csr = Csr::verify(&upstream_csr(&profile(), &*key).await.unwrap()).unwrap();

    assert_eq!(csr.uris, ["spiffe://example.org"]);
    assert!(csr.subject.to_string().ends_with(",O=SPIFFE,C=US"));
}

#[tokio::test]
async fn a_jwt_svid_has_its_claims_in_order_and_a_signature() {
    let mut profile = profile();
    profile.jwt_issuer = "https://issuer.test/<a>".into();
    for (kind, alg) in [(KeyKind::EcP256, "ES256"), (KeyKind::EcP384, "ES384"), (KeyKind::Rsa2048, "RS256")] {
        let active = authorities(kind).await;
        let signer = Arc::clone(active.jwt.as_ref().unwrap());
        let issuer = issuer(profile.clone(), active);
        let request = JwtRequest {
            id: id("/web"),
            audience: vec!["db".into(), String::new(), "a \"b\"".into()],
            ttl: 0,
            jti: true,
        };

        let svid = issuer.prepare_jwt(&request, NOW).unwrap().sign().await.unwrap();

        let header = json!({"alg": alg, "kid": signer.key_id(), "typ": "JWT"});
        assert_eq!(part(&svid.token, 0), header);
        let claims = part(&svid.token, 1);
        let jti = BASE64_URL_SAFE_NO_PAD.decode(claims["jti"].as_str().unwrap()).unwrap();
        assert_eq!((jti.len(), jti[6] >> 4, jti[8] >> 6), (16, 4, 2));
        let wanted = json!({
            "aud": ["db", "a \"b\""],
            "exp": NOW.0 + 300,
            "iat": NOW.0,
            "iss": "https://issuer.test/<a>",
            "jti": claims["jti"],
            "sub": "spiffe://example.org/web",
        });
        assert_eq!(claims, wanted);
        assert_eq!((svid.issued_at, svid.expires_at), (NOW, NOW.plus(300)));
        check_signature(&svid.token, signer.public_key(), kind);
    }
}

fn check_signature(token: &str, key: &PublicKey, kind: KeyKind) {
    let (input, signature) = token.rsplit_once('.').unwrap();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    let signature = match kind {
        KeyKind::EcP256 | KeyKind::EcP384 => {
            let (r, s) = bytes.split_at(bytes.len() / 2);
            Signature::from_ecdsa_parts(r, s)
        }
        KeyKind::Rsa2048 | KeyKind::Rsa4096 => Signature::new(bytes),
    };
    key.verify(kind.sig_alg(), input.as_bytes(), &signature).unwrap();
}

#[tokio::test]
async fn a_wit_svid_is_bound_to_a_key() {
    for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048] {
        let issuer = issuer(profile(), authorities(kind).await);
        let jwk = bound_to("ES256");
        let request = WitRequest { id: id("/web"), confirmation: jwk.clone(), ttl: 0 };

        let svid = issuer.prepare_wit(&request, NOW).unwrap().sign().await.unwrap();

        assert_eq!(part(&svid.token, 0)["typ"], "wit+jwt");
        let wanted = json!({
            "cnf": {"jwk": jwk},
            "exp": NOW.0 + 3600,
            "iat": NOW.0,
            "sub": "spiffe://example.org/web",
        });
        assert_eq!(part(&svid.token, 1), wanted);
    }
}

#[tokio::test]
async fn x04_a_wit_svid_that_everybody_would_refuse_goes_nowhere() {
    let issuer = issuer(profile(), authorities(KeyKind::EcP256).await);
    let refused = async |confirmation: Value| {
        let request = WitRequest { id: id("/web"), confirmation, ttl: 0 };
        issuer.prepare_wit(&request, NOW).unwrap().sign().await.err().unwrap().to_string()
    };
    let mut private = bound_to("ES256");
    private["d"] = json!("AA");

    assert_eq!(refused(private).await, "invalid WIT-SVID: invalid jwk in cnf claim: key has private members");
    assert_eq!(
        refused(bound_to("RS256")).await,
        "invalid WIT-SVID: invalid jwk in cnf claim: key is of another kind than signs by RS256"
    );
    assert_eq!(refused(json!(null)).await, "invalid WIT-SVID: invalid jwk in cnf claim: not an object");
}

/// The key of a workload, for a token.
fn bound_to(algorithm: &str) -> Value {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let mut jwk = Jwk::write("", "", key.public(), None).unwrap();
    jwk.insert("alg".to_owned(), algorithm.into());
    jwk.into()
}

#[tokio::test]
async fn a03_requests_outside_the_profile_are_refused() {
    let full = issuer(profile(), authorities(KeyKind::EcP256).await);
    let empty = issuer(profile(), ActiveAuthorities::default());
    let text = |error: IssueError| error.to_string();
    let jwt = |id: &SpiffeId, audience: &[&str]| JwtRequest {
        id: id.clone(),
        audience: audience.iter().map(ToString::to_string).collect(),
        ttl: 0,
        jti: false,
    };

    let missing = empty.prepare_x509(workload("/web"), NOW).map_err(text).err().unwrap();
    assert_eq!(missing, "X509 CA is not available for signing");
    let missing = empty.prepare_jwt(&jwt(&id("/web"), &["a"]), NOW).map_err(text).err().unwrap();
    assert_eq!(missing, "JWT key is not available for signing");
    let nobody = full.prepare_jwt(&jwt(&id("/web"), &["", ""]), NOW).map_err(text).err().unwrap();
    assert_eq!(nobody, "invalid JWT-SVID audience: cannot be empty");
    let foreign = SpiffeId::parse("spiffe://other.test/web").unwrap();
    assert_eq!(
        full.prepare_jwt(&jwt(&foreign, &["a"]), NOW).map_err(text).err().unwrap(),
        "invalid JWT-SVID ID: \"spiffe://other.test/web\" is not a member of trust domain \"example.org\""
    );
    assert_eq!(
        full.prepare_x509(workload(""), NOW).map_err(text).err().unwrap(),
        "invalid X509-SVID ID: \"spiffe://example.org\" is not a member of trust domain \
         \"example.org\"; path is empty"
    );
}

#[tokio::test]
async fn a_wrong_signature_of_a_foreign_key_goes_nowhere() {
    let refused = self_signed_ca(&profile(), TestKey::lying(), NOW).await;
    assert!(matches!(refused, Err(IssueError::BadSignature { .. })));

    let jwt = Some(Arc::new(TokenSigner::with_new_id(TestKey::lying(), NOW.plus(DAY)).unwrap()));
    let issuer = issuer(profile(), ActiveAuthorities { jwt, ..ActiveAuthorities::default() });
    let request = JwtRequest { id: id("/web"), audience: vec!["a".into()], ttl: 0, jti: false };
    let refused = issuer.prepare_jwt(&request, NOW).unwrap().sign().await;
    assert!(matches!(refused, Err(IssueError::BadSignature { .. })));
}

#[tokio::test]
async fn authorities_come_back_from_the_journal_with_their_keys_only() {
    let key = TestKey::make(KeyKind::EcP256);
    let made = self_signed_ca(&profile(), Arc::clone(&key), NOW).await.unwrap();
    let mut journal = Journal::default();
    journal.append_x509(X509Entry {
        slot: SlotName::A,
        facts: made.facts(NOW),
        status: Status::Prepared,
        certificate: made.certificate().der().to_vec().into(),
        upstream_chain: Vec::new(),
    });
    let entry = Journal::decode(&journal.encode()).unwrap().x509().next().unwrap();

    let again = entry.signer(Some(Arc::clone(&key)), NOW).unwrap();

    assert_eq!(again.facts(NOW), made.facts(NOW));
    assert!(matches!(entry.signer(None, NOW), Err(Unusable::NoKey)));
    let other = TestKey::make(KeyKind::EcP256);
    assert!(matches!(entry.signer(Some(other), NOW), Err(Unusable::KeyMismatch)));
    assert!(matches!(entry.signer(Some(key), NOW.plus(DAY + 1)), Err(Unusable::Expired)));
}

#[tokio::test]
async fn only_a_ca_certificate_makes_an_authority() {
    let issuer = issuer(profile(), authorities(KeyKind::EcP256).await);
    let key = TestKey::make(KeyKind::EcP256);
    let request = X509Request::Agent { id: id("/spire/agent/x"), public_key: key.public().clone() };
    let svid = issuer.prepare_x509(request, NOW).unwrap().sign().await.unwrap();

    let refused = X509Signer::new(key, svid.chain[0].as_bytes(), Vec::new());

    assert!(matches!(refused, Err(AuthorityError::NotCa)));
}
