//! A server whose CA is signed by a certificate in files.

use proto::spire::server::bundle::GetBundleRequest;
use proto::spire::server::localauthority as wire;
use proto::spire::server::svid::MintX509svidRequest;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{
    Attribute, Certificate, CsrTemplate, Issuer, Name, Role, Serial, Validity, X509Template, assemble,
    to_pem, verify_svid,
};
use spiffe::{SpiffeId, UnixSecs};
use tonic::Code;

use crate::support::{Place, Running, block, expect_status};

fn now() -> UnixSecs {
    UnixSecs::from(runtime::clock::Clock::now(&runtime::clock::SystemClock))
}

/// Writes a new root and its key where the server reads them.
fn replace_root(place: &Place, name: &str) -> Certificate {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let subject = Name::new(&[(Attribute::CommonName, name)]);
    let template = X509Template {
        serial: Serial::from_be_bytes(&[9]),
        subject: subject.clone(),
        validity: Validity { not_before: now().plus(-60), not_after: now().plus(1_000_000) },
        public_key: key.public().clone(),
        id: SpiffeId::parse("spiffe://example.org").unwrap(),
        dns_names: Vec::new(),
        role: Role::Ca,
    };
    let tbs = template.tbs(&Issuer { name: subject, key_id: None }, key.sig_alg().unwrap());
    let signature = key.sign(tbs.alg(), tbs.as_bytes()).unwrap();
    let root = assemble(&tbs, &signature);
    std::fs::write(place.path("root.pem"), to_pem("CERTIFICATE", root.as_bytes())).unwrap();
    std::fs::write(place.path("root-key.pem"), to_pem("PRIVATE KEY", &key.to_pkcs8().unwrap())).unwrap();
    Certificate::parse(root.as_bytes()).unwrap()
}

fn below_files() -> Place {
    let mut place = Place::new();
    let path = |name: &str| place.path(name).display().to_string();
    let data =
        format!("cert_file_path = \"{}\"\nkey_file_path = \"{}\"", path("root.pem"), path("root-key.pem"));
    place.config.plugins.push(block("UpstreamAuthority", "disk", &data));
    place
}

async fn chain(server: &Running) -> Vec<Certificate> {
    let template = CsrTemplate {
        subject: Name::new(&[]),
        id: SpiffeId::parse("spiffe://example.org/web").ok(),
        dns_names: Vec::new(),
    };
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let request = MintX509svidRequest { csr: template.sign(&key).unwrap().into(), ttl: 0 };
    let svid = server.local().svid().mint_x509svid(request).await.unwrap().into_inner().svid.unwrap();
    svid.cert_chain.iter().map(|der| Certificate::parse(der).unwrap()).collect()
}

/// The X.509 authorities of the bundle, and whether they are tainted.
async fn roots(server: &Running) -> Vec<(Certificate, bool)> {
    let bundle = server.local().bundle().get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let root =
        |root: &proto::spire::types::X509Certificate| (Certificate::parse(&root.asn1).unwrap(), root.tainted);
    bundle.x509_authorities.iter().map(root).collect()
}

async fn active(server: &Running) -> wire::AuthorityState {
    let request = wire::GetX509AuthorityStateRequest {};
    let state = server.local().local_authority().get_x509_authority_state(request).await.unwrap();
    state.into_inner().active.unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn svids_carry_the_ca_and_the_bundle_the_root() {
    let place = below_files();
    let root = replace_root(&place, "root");
    let server = place.start().await;

    let chain = chain(&server).await;

    assert_eq!(chain.len(), 2);
    verify_svid(&chain, std::slice::from_ref(&root), now()).unwrap();
    assert_eq!(roots(&server).await, [(root.clone(), false)]);
    let active = active(&server).await;
    assert_eq!(active.authority_id, hex(chain[1].subject_key_id().unwrap()));
    assert_eq!(active.upstream_authority_subject_key_id, hex(root.subject_key_id().unwrap()));
    let taint = wire::TaintX509AuthorityRequest { authority_id: active.authority_id };
    let refused = server.local().local_authority().taint_x509_authority(taint).await;
    let text = "local authority can't be tainted if there is an upstream authority";
    expect_status(refused, Code::FailedPrecondition, text);
    server.stop().await;
}

#[tokio::test]
async fn a_ca_signed_above_outlives_a_restart_but_not_its_upstream_authority() {
    let mut place = below_files();
    replace_root(&place, "root");
    let first = place.start().await;
    let signing = active(&first).await;
    first.stop().await;

    let second = place.start().await;
    assert_eq!(active(&second).await, signing);
    second.stop().await;

    place.config.plugins.retain(|plugin| plugin.kind != "UpstreamAuthority");
    let alone = place.start().await;
    let own = active(&alone).await;
    assert_ne!(own.authority_id, signing.authority_id);
    assert_eq!(own.upstream_authority_subject_key_id, "");
    let roots: Vec<_> = roots(&alone).await.into_iter().map(|(root, _)| root).collect();
    assert_eq!(roots.len(), 2);
    verify_svid(&chain(&alone).await, &roots, now()).unwrap();
    alone.stop().await;
}

#[tokio::test]
async fn a_replaced_root_is_tainted_and_revoked_by_its_key_id() {
    let place = below_files();
    let old = replace_root(&place, "old");
    let server = place.start().await;
    let mut commands = server.local().local_authority();
    let new = replace_root(&place, "new");

    let prepared = commands.prepare_x509_authority(wire::PrepareX509AuthorityRequest {}).await.unwrap();
    assert_eq!(roots(&server).await, [(old.clone(), false), (new.clone(), false)]);
    let authority_id = prepared.into_inner().prepared_authority.unwrap().authority_id;
    commands.activate_x509_authority(wire::ActivateX509AuthorityRequest { authority_id }).await.unwrap();
    let subject_key_id = hex(old.subject_key_id().unwrap()).to_uppercase();
    let taint = wire::TaintX509UpstreamAuthorityRequest { subject_key_id: subject_key_id.clone() };
    commands.taint_x509_upstream_authority(taint).await.unwrap();

    assert_eq!(roots(&server).await, [(old, true), (new.clone(), false)]);
    verify_svid(&chain(&server).await, std::slice::from_ref(&new), now()).unwrap();
    let revoke = wire::RevokeX509UpstreamAuthorityRequest { subject_key_id };
    commands.revoke_x509_upstream_authority(revoke).await.unwrap();
    assert_eq!(roots(&server).await, [(new, false)]);
    server.stop().await;
}
