//! The built-in credential composer.

use plugin::catalog::load_server;
use plugin::{Host, SvidAttributes};
use plugins::tables;
use spiffe::SpiffeId;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{Attribute, Name};

use crate::{block, trust_domain};

#[tokio::test]
async fn workloads_get_a_unique_id_in_their_subject_and_nobody_else() {
    let blocks = [block("KeyManager", "memory", ""), block("CredentialComposer", "uniqueid", "")];
    let loaded = load_server(&blocks, tables::SERVER, &trust_domain(), &Host::bare()).await.unwrap();
    let composer = &loaded.credential_composers[0];
    let id = SpiffeId::parse("spiffe://example.org/foo").unwrap();
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let subject = Name::new(&[(Attribute::Country, "US"), (Attribute::UniqueIdentifier, "old")]);
    let attributes = || SvidAttributes { subject: subject.clone(), dns_names: vec!["a.test".to_owned()] };

    let workload = composer.workload_svid(&id, key.public(), attributes()).await.unwrap();

    assert_eq!(workload.subject.to_string(), "2.5.4.45=c3406f9b12ceb4f9c948318c579b905b,C=US");
    assert_eq!(workload.dns_names, ["a.test"]);
    assert_eq!(composer.agent_svid(&id, key.public(), attributes()).await.unwrap(), attributes());
    assert_eq!(composer.server_svid(attributes()).await.unwrap(), attributes());
    assert_eq!(composer.server_ca(subject.clone()).await.unwrap(), subject);
}
