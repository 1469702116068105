//! What one credential costs: prepared and signed, on one core.

#![expect(clippy::expect_used, reason = "a benchmark may fail loudly")]

extern crate finial_ca as ca;

use std::hint::black_box;
use std::sync::Arc;

use async_trait::async_trait;
use ca::authority::{ActiveAuthorities, TokenSigner};
use ca::issue::{Issuer, JwtRequest, X509Request, self_signed_ca};
use ca::profile::Profile;
use criterion::{Criterion, criterion_group, criterion_main};
use plugin::{Key, KeyId, PluginError};
use runtime::snapshot::Publisher;
use spiffe::key::{KeyKind, PrivateKey, PublicKey, SigAlg, Signature};
use spiffe::x509::{Csr, CsrTemplate};
use spiffe::{SpiffeId, TrustDomain, UnixSecs};

const NOW: UnixSecs = UnixSecs(1_800_000_000);

struct LocalKey(KeyId, PrivateKey);

#[async_trait]
impl Key for LocalKey {
    fn id(&self) -> &KeyId {
        &self.0
    }

    fn public(&self) -> &PublicKey {
        self.1.public()
    }

    async fn sign(&self, alg: SigAlg, message: &[u8]) -> Result<Signature, PluginError> {
        self.1.sign(alg, message).map_err(|error| PluginError::internal(error.to_string()))
    }

    fn is_external(&self) -> bool {
        false
    }
}

fn local_key() -> Arc<dyn Key> {
    let key = PrivateKey::generate(KeyKind::EcP256).expect("a key");
    Arc::new(LocalKey(KeyId::new("key"), key))
}

fn issue(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let profile = Profile::new(TrustDomain::parse("example.org").expect("a name")).expect("a profile");
    let root = runtime.block_on(self_signed_ca(&profile, local_key(), NOW)).expect("a root");
    let jwt = TokenSigner::with_new_id(local_key(), NOW.plus(86_400)).expect("a signer");
    let active = ActiveAuthorities { x509: Some(Arc::new(root)), jwt: Some(Arc::new(jwt)), wit: None };
    let issuer = Issuer::new(Arc::new(profile), Publisher::new(active).snapshot());
    let id = SpiffeId::parse("spiffe://example.org/ns/default/sa/web").expect("an id");
    let key = PrivateKey::generate(KeyKind::EcP256).expect("a key");
    let csr =
        CsrTemplate { subject: spiffe::x509::Name::new(&[]), id: Some(id.clone()), dns_names: Vec::new() };
    let csr = csr.sign(&key).expect("a request");

    let sign = |public_key: PublicKey| {
        let id = id.clone();
        let request = X509Request::Workload { id, public_key, dns_names: Vec::new(), ttl: 0, subject: None };
        let prepared = issuer.prepare_x509(request, NOW).expect("a certificate");
        runtime.block_on(prepared.sign()).expect("a certificate")
    };
    criterion.bench_function("x509_svid", |bench| {
        bench.iter(|| sign(black_box(key.public()).clone()));
    });
    criterion.bench_function("x509_svid_from_csr", |bench| {
        bench.iter(|| sign(Csr::verify(black_box(&csr)).expect("a request").public_key));
    });
    let request = JwtRequest { id: id.clone(), audience: vec!["database".into()], ttl: 0, jti: false };
    criterion.bench_function("jwt_svid", |bench| {
        bench.iter(|| {
            let prepared = issuer.prepare_jwt(black_box(&request), NOW).expect("a token");
            runtime.block_on(prepared.sign()).expect("a token").token
        });
    });
}

criterion_group!(benches, issue);
criterion_main!(benches);
