//! Upstream authorities in files, the words of those that are refused, and the one that is a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair};
use plugin::catalog::load_server;
use plugin::{Code, Host, Minted, PluginError, UpstreamAuthority};
use plugins::tables;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{
    Attribute, Certificate, CsrTemplate, Issuer, Name, Role, Serial, Validity, X509Template, assemble,
    to_pem, verify_path,
};
use spiffe::{JwtAuthority, SpiffeId, UnixSecs};

use crate::{block, trust_domain};

async fn load(name: &str, data: &str) -> Result<Arc<dyn UpstreamAuthority>, String> {
    let blocks = [block("KeyManager", "memory", ""), block("UpstreamAuthority", name, data)];
    let loaded = load_server(&blocks, tables::SERVER, &trust_domain(), &Host::bare()).await;
    loaded.map(|plugins| plugins.upstream_authority.unwrap()).map_err(|error| error.to_string())
}

fn now() -> UnixSecs {
    UnixSecs::from(Host::bare().clock.now())
}

/// A CA and its key.
struct Ca {
    certificate: Certificate,
    key: PrivateKey,
}

impl Ca {
    fn root(name: &str, kind: KeyKind) -> Self {
        Self::signed(name, PrivateKey::generate(kind).unwrap(), None, now().plus(3600))
    }

    fn below(&self, name: &str) -> Self {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        Self::signed(name, key, Some(self), now().plus(1800))
    }

    fn signed(name: &str, key: PrivateKey, above: Option<&Self>, not_after: UnixSecs) -> Self {
        let subject = Name::new(&[(Attribute::CommonName, name)]);
        let template = X509Template {
            serial: Serial::from_be_bytes(&[7]),
            subject: subject.clone(),
            validity: Validity { not_before: now().plus(-3600), not_after },
            public_key: key.public().clone(),
            id: SpiffeId::parse("spiffe://example.org").unwrap(),
            dns_names: Vec::new(),
            role: Role::Ca,
        };
        let (issuer, signing) = match above {
            None => (Issuer { name: subject, key_id: None }, &key),
            Some(above) => {
                let key_id = above.certificate.subject_key_id().map(<[u8]>::to_vec);
                (Issuer { name: above.certificate.subject().clone(), key_id }, &above.key)
            }
        };
        let tbs = template.tbs(&issuer, signing.sig_alg().unwrap());
        let signature = signing.sign(tbs.alg(), tbs.as_bytes()).unwrap();
        let certificate = Certificate::parse(assemble(&tbs, &signature).as_bytes()).unwrap();
        Self { certificate, key }
    }
}

/// A folder with the files of an upstream authority.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn certificates(&self, name: &str, certificates: &[&Certificate]) {
        let pem: String =
            certificates.iter().map(|certificate| to_pem("CERTIFICATE", certificate.der())).collect();
        std::fs::write(self.path(name), pem).unwrap();
    }

    fn key(&self, key: &PrivateKey) {
        std::fs::write(self.path("key"), to_pem("PRIVATE KEY", &key.to_pkcs8().unwrap())).unwrap();
    }

    fn settings(&self, bundle: bool) -> String {
        let text = |name: &str| format!("{:?}", self.path(name));
        let bundle =
            if bundle { format!(", \"bundle_file_path\": {}", text("bundle")) } else { String::new() };
        format!("{{\"cert_file_path\": {}, \"key_file_path\": {}{bundle}}}", text("cert"), text("key"))
    }
}

fn csr(key: &PrivateKey, id: Option<&str>) -> Vec<u8> {
    let id = id.map(|id| SpiffeId::parse(id).unwrap());
    CsrTemplate { subject: Name::new(&[(Attribute::Organization, "me")]), id, dns_names: Vec::new() }
        .sign(key)
        .unwrap()
}

async fn mint(upstream: &dyn UpstreamAuthority, seconds: u64) -> Result<Minted, PluginError> {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    upstream.mint(&csr(&key, Some("spiffe://example.org")), Duration::from_secs(seconds)).await
}

fn leaf(minted: &Minted) -> Certificate {
    Certificate::parse(minted.chain[0].as_bytes()).unwrap()
}

/// A key of a kind that others make.
fn p521() -> PrivateKey {
    let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_ASN1_SIGNING).unwrap();
    PrivateKey::from_der(pair.to_pkcs8v1().unwrap().as_ref()).unwrap()
}

#[tokio::test]
async fn a_self_signed_authority_signs_without_itself_in_the_chain() {
    let kinds = [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048];
    for key in kinds.map(|kind| PrivateKey::generate(kind).unwrap()).into_iter().chain([p521()]) {
        let (files, ca) = (Files::new(), Ca::signed("upstream", key, None, now().plus(3600)));
        files.certificates("cert", &[&ca.certificate]);
        files.key(&ca.key);
        let upstream = load("disk", &files.settings(false)).await.unwrap();

        let minted = mint(&*upstream, 600).await.unwrap();

        assert_eq!((minted.chain.len(), minted.roots.len()), (1, 1));
        assert_eq!(*minted.roots[0].der, *ca.certificate.der());
        let signed = leaf(&minted);
        assert_eq!(signed.uris(), ["spiffe://example.org"]);
        assert_eq!(signed.subject().to_string(), "O=me");
        assert_eq!(signed.not_after().since(signed.not_before()), 610);
        assert_eq!(signed.authority_key_id(), ca.certificate.subject_key_id());
        verify_path(&signed, &[], std::slice::from_ref(&ca.certificate), now()).unwrap();
        let longer = mint(&*upstream, 999_999).await.unwrap();
        assert_eq!(leaf(&longer).not_after(), ca.certificate.not_after());
    }
}

#[tokio::test]
async fn an_intermediate_authority_stands_in_the_chain() {
    let (files, root) = (Files::new(), Ca::root("root", KeyKind::EcP256));
    let middle = root.below("middle");
    let low = middle.below("low");
    files.certificates("cert", &[&low.certificate, &middle.certificate]);
    files.certificates("bundle", &[&root.certificate]);
    files.key(&low.key);
    let upstream = load("disk", &files.settings(true)).await.unwrap();

    let minted = mint(&*upstream, 600).await.unwrap();

    let above = [low.certificate.clone(), middle.certificate.clone()];
    assert_eq!(minted.chain.len(), 3);
    assert_eq!(minted.chain[1].as_bytes(), low.certificate.der());
    verify_path(&leaf(&minted), &above, &[root.certificate], now()).unwrap();
}

#[tokio::test]
async fn replaced_files_sign_next_and_broken_ones_change_nothing() {
    let (files, first, second) =
        (Files::new(), Ca::root("first", KeyKind::EcP256), Ca::root("second", KeyKind::EcP256));
    files.certificates("cert", &[&first.certificate]);
    files.key(&first.key);
    let upstream = load("disk", &files.settings(false)).await.unwrap();
    let issuer = async || leaf(&mint(&*upstream, 600).await.unwrap()).issuer().to_string();
    assert_eq!(issuer().await, "CN=first");

    files.certificates("cert", &[&second.certificate]);
    assert_eq!(issuer().await, "CN=first");
    files.key(&second.key);
    assert_eq!(issuer().await, "CN=second");
    std::fs::remove_file(files.path("key")).unwrap();
    assert_eq!(issuer().await, "CN=second");
}

#[tokio::test]
async fn files_that_do_not_fit_are_refused_in_words() {
    let (files, root) = (Files::new(), Ca::root("root", KeyKind::EcP256));
    let (middle, other) = (root.below("middle"), Ca::root("other", KeyKind::EcP256));
    let expired = Ca::signed("old", PrivateKey::generate(KeyKind::EcP256).unwrap(), None, now().plus(-60));
    let refused = async |bundle: bool| {
        let error = load("disk", &files.settings(bundle)).await.err().unwrap();
        let start = "failed to configure plugin \"disk\": rpc error: code = InvalidArgument desc = ";
        error.strip_prefix(start).unwrap_or(&error).replace(&*files.folder.path().to_string_lossy(), "DIR")
    };

    assert_eq!(
        refused(false).await,
        "unable to load upstream CA key: open DIR/key: no such file or directory"
    );
    files.certificates("key", &[&root.certificate]);
    assert_eq!(
        refused(false).await,
        "unable to load upstream CA key: expected block type \
         [\"PRIVATE KEY\" \"RSA PRIVATE KEY\" \"EC PRIVATE KEY\"]; got \"CERTIFICATE\""
    );
    files.key(&middle.key);
    std::fs::write(files.path("cert"), "").unwrap();
    assert_eq!(refused(false).await, "unable to load upstream CA cert: no PEM blocks");
    files.certificates("cert", &[&middle.certificate, &root.certificate]);
    assert_eq!(
        refused(false).await,
        "with no bundle_file_path configured only self-signed CAs are supported"
    );
    assert_eq!(
        refused(true).await,
        "unable to load upstream CA bundle: open DIR/bundle: no such file or directory"
    );
    files.certificates("bundle", &[&other.certificate]);
    let unverified = "unable to load upstream CA: certificate cannot be validated with the provided bundle \
                      or is not self-signed";
    assert_eq!(refused(true).await, unverified);
    // By itself a certificate is its own anchor, signed by itself or not, as in SPIRE.
    files.certificates("cert", &[&middle.certificate]);
    load("disk", &files.settings(false)).await.map(drop).unwrap();
    files.certificates("cert", &[&root.certificate]);
    assert_eq!(refused(false).await, "unable to load upstream CA: certificate and private key do not match");
    files.certificates("cert", &[&expired.certificate]);
    files.key(&expired.key);
    assert_eq!(refused(false).await, unverified);
    let nothing = load("disk", "{}").await.err().unwrap();
    assert!(nothing.ends_with("'cert_file_path' and 'key_file_path' must be set and not empty"), "{nothing}");
}

#[tokio::test]
async fn only_requests_for_the_trust_domain_are_signed() {
    let (files, ca) = (Files::new(), Ca::root("upstream", KeyKind::EcP256));
    files.certificates("cert", &[&ca.certificate]);
    files.key(&ca.key);
    let upstream = load("disk", &files.settings(false)).await.unwrap();
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let mut forged = csr(&key, Some("spiffe://example.org"));
    *forged.last_mut().unwrap() ^= 1;
    let start = "upstreamauthority(disk): unable to sign CSR: ";

    for (request, why) in [
        (b"x".to_vec(), "unable to parse CSR: malformed certificate request"),
        (forged, "CSR signature check failed: signature check failed"),
        (csr(&key, None), "CSR must have exactly one URI SAN"),
        (
            csr(&key, Some("spiffe://example.org/web")),
            "CSR with SPIFFE ID \"spiffe://example.org/web\" is invalid: must use the trust domain ID for \
             trust domain \"example.org\"",
        ),
    ] {
        let error = upstream.mint(&request, Duration::ZERO).await.err().unwrap();
        assert_eq!((error.code, error.message), (Code::Internal, format!("{start}{why}")));
    }
    let jwt = JwtAuthority {
        key_id: "a".to_owned(),
        public_key: key.public().spki().into(),
        expires_at: UnixSecs(0),
        tainted: false,
    };
    assert_eq!(upstream.publish(&jwt).await.err().unwrap().code, Code::Unimplemented);
    assert_eq!(upstream.watch().await.err().unwrap().code, Code::Unimplemented);
}

#[tokio::test]
async fn a_server_above_needs_an_address_and_a_workload_api() {
    let refused = async |data: &str| {
        let error = load("spire", data).await.err().unwrap();
        error.split(" desc = ").nth(1).unwrap().to_owned()
    };

    assert_eq!(refused("{}").await, "server_address is required");
    assert_eq!(refused("server_address = \"up\"").await, "server_port is required");
    let both = "server_address = \"up\"\nserver_port = 8081\n";
    assert_eq!(refused(both).await, "workload_api_socket is required");
    let pipe = format!("{both}experimental {{ workload_api_named_pipe_name = \"x\" }}");
    assert_eq!(
        refused(&pipe).await,
        "configuration: workload_api_named_pipe_name is not supported on this platform; please use \
         workload_api_socket instead"
    );
    let port = "server_address = \"up\"\nserver_port = \"http\"\nworkload_api_socket = \"s\"";
    assert_eq!(refused(port).await, "server_port \"http\" is not a port");
    assert_eq!(refused("server_address = [").await, "plugin configuration is malformed");
    load("spire", &format!("{both}workload_api_socket = \"{}\"", Path::new("/none").display()))
        .await
        .unwrap();
}

#[tokio::test]
async fn there_is_at_most_one_upstream_authority() {
    let spire = || {
        let data = "server_address = \"up\"\nserver_port = 8081\nworkload_api_socket = \"s\"";
        block("UpstreamAuthority", "spire", data)
    };
    let blocks = [block("KeyManager", "memory", ""), spire(), spire()];

    let loaded = load_server(&blocks, tables::SERVER, &trust_domain(), &Host::bare()).await;

    assert_eq!(
        loaded.err().unwrap().to_string(),
        "plugin type \"UpstreamAuthority\" constraint not satisfied: expected at most 1 but got 2"
    );
}
