//! Handshakes between two rustls endpoints in memory.

use std::sync::Arc;

use finial_spiffe::key::{KeyKind, PrivateKey};
use finial_spiffe::tls::{
    Anchors, ClientVerifier, OwnCertificate, PostQuantum, ServerTrust, ServerVerifier, client_config,
    client_config_for, server_config, server_config_for,
};
use finial_spiffe::x509::{
    Attribute, CertDer, Certificate, Issuer, Name, Role, Serial, Validity, X509Template, assemble,
};
use finial_spiffe::{SpiffeId, UnixSecs};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, ServerConfig, ServerConnection};

/// A CA and what it issues.
struct Authority {
    key: PrivateKey,
    certificate: Certificate,
}

const ALWAYS: Validity = Validity { not_before: UnixSecs(0), not_after: UnixSecs(4_102_444_800) };

impl Authority {
    fn new() -> Self {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let subject = Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIFFE")]);
        let template = X509Template {
            serial: Serial::from_be_bytes(&[1]),
            subject: subject.clone(),
            validity: ALWAYS,
            public_key: key.public().clone(),
            id: SpiffeId::parse("spiffe://example.org").unwrap(),
            dns_names: Vec::new(),
            role: Role::Ca,
        };
        let tbs = template.tbs(&Issuer { name: subject, key_id: None }, key.sig_alg().unwrap());
        let der = assemble(&tbs, &key.sign(tbs.alg(), tbs.as_bytes()).unwrap());
        Self { key, certificate: Certificate::parse(der.as_bytes()).unwrap() }
    }

    fn issue(&self, id: &str, kind: KeyKind) -> (CertDer, PrivateKey) {
        let key = PrivateKey::generate(kind).unwrap();
        let template = X509Template {
            serial: Serial::from_be_bytes(&[2]),
            subject: Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIRE")]),
            validity: ALWAYS,
            public_key: key.public().clone(),
            id: SpiffeId::parse(id).unwrap(),
            dns_names: Vec::new(),
            role: Role::Svid,
        };
        let issuer = Issuer {
            name: self.certificate.subject().clone(),
            key_id: self.certificate.subject_key_id().map(<[u8]>::to_vec),
        };
        let tbs = template.tbs(&issuer, self.key.sig_alg().unwrap());
        (assemble(&tbs, &self.key.sign(tbs.alg(), tbs.as_bytes()).unwrap()), key)
    }

    fn own(&self, id: &str, kind: KeyKind) -> Arc<OwnCertificate> {
        let own = OwnCertificate::empty();
        let (certificate, key) = self.issue(id, kind);
        own.set(&[certificate], &key).unwrap();
        own
    }
}

#[derive(Debug)]
struct OneDomain(Arc<[Certificate]>);

impl Anchors for OneDomain {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        (trust_domain == "example.org").then(|| Arc::clone(&self.0))
    }
}

/// Shakes hands; the id of the client as the server saw it.
fn shake(
    authority: &Authority,
    server: Arc<OwnCertificate>,
    trust: ServerTrust,
    client: Arc<OwnCertificate>,
) -> Result<Option<String>, String> {
    let anchors: Arc<dyn Anchors> = Arc::new(OneDomain([authority.certificate.clone()].into()));
    let admit = Box::new(|_: &SpiffeId| Ok(()));
    let server = server_config(ClientVerifier::new(anchors, admit, false), server).unwrap();
    let client = client_config(ServerVerifier::new(trust), client).unwrap();
    let (server, _) = shake_as(server, client)?;
    let leaf = server.peer_certificates().and_then(|chain| chain.first());
    Ok(leaf.map(|der| Certificate::parse(der).unwrap().uris().concat()))
}

/// The same with these configurations.
fn shake_as(
    server: ServerConfig,
    client: ClientConfig,
) -> Result<(ServerConnection, ClientConnection), String> {
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let name = ServerName::try_from("anything.test").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    while server.is_handshaking() || client.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().map_err(|why| format!("server: {why}"))?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().map_err(|why| format!("client: {why}"))?;
    }
    Ok((server, client))
}

fn trusting(authority: &Authority, id: &str) -> ServerTrust {
    let anchors = Arc::new(OneDomain([authority.certificate.clone()].into()));
    ServerTrust::Id(SpiffeId::parse(id).unwrap(), anchors)
}

const SERVER: &str = "spiffe://example.org/spire/server";

#[test]
fn both_sides_learn_who_the_other_is() {
    let authority = Authority::new();
    for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048] {
        let client = authority.own("spiffe://example.org/agent", kind);

        let seen = shake(&authority, authority.own(SERVER, kind), trusting(&authority, SERVER), client);

        assert_eq!(seen, Ok(Some("spiffe://example.org/agent".to_owned())));
    }
}

#[test]
fn a_client_without_certificate_is_anonymous() {
    let authority = Authority::new();

    let server = authority.own(SERVER, KeyKind::EcP256);
    let seen = shake(&authority, server, trusting(&authority, SERVER), OwnCertificate::empty());

    assert_eq!(seen, Ok(None));
}

#[test]
fn a14_a_server_of_another_id_is_refused() {
    let authority = Authority::new();

    let server = authority.own("spiffe://example.org/web", KeyKind::EcP256);
    let seen = shake(&authority, server, trusting(&authority, SERVER), OwnCertificate::empty());

    assert!(seen.unwrap_err().contains("instead of spiffe://example.org/spire/server"));
}

#[test]
fn t03_a_client_of_an_unknown_authority_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());

    let server = authority.own(SERVER, KeyKind::EcP256);
    let client = stranger.own("spiffe://example.org/agent", KeyKind::EcP256);
    let seen = shake(&authority, server, trusting(&authority, SERVER), client);

    assert!(seen.unwrap_err().starts_with("server: "));
}

#[test]
fn bootstrap_without_trust_still_wants_the_right_id() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let unverified = || ServerTrust::Unverified(SpiffeId::parse(SERVER).unwrap());

    let good =
        shake(&authority, stranger.own(SERVER, KeyKind::EcP256), unverified(), OwnCertificate::empty());
    let bad = stranger.own("spiffe://example.org/web", KeyKind::EcP256);
    let bad = shake(&authority, bad, unverified(), OwnCertificate::empty());

    assert_eq!(good, Ok(None));
    assert!(bad.is_err());
}

#[test]
fn who_requires_post_quantum_exchanges_gets_along_with_who_offers_one() {
    let authority = Authority::new();
    let shaken = |server, client| {
        let anchors: Arc<dyn Anchors> = Arc::new(OneDomain([authority.certificate.clone()].into()));
        let verifier = ClientVerifier::new(anchors, Box::new(|_: &SpiffeId| Ok(())), false);
        let server = server_config_for(server, verifier, authority.own(SERVER, KeyKind::EcP256)).unwrap();
        let verifier = ServerVerifier::new(trusting(&authority, SERVER));
        let client = client_config_for(client, verifier, OwnCertificate::empty()).unwrap();
        shake_as(server, client).map(|(server, _)| {
            assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
            server.negotiated_key_exchange_group().unwrap().name()
        })
    };

    for server in [PostQuantum::Optional, PostQuantum::Required] {
        for client in [PostQuantum::Optional, PostQuantum::Required] {
            assert_eq!(shaken(server, client), Ok(NamedGroup::X25519MLKEM768), "{server:?} {client:?}");
        }
    }
}

#[test]
fn t04_each_hybrid_is_agreed_on_where_it_alone_is_offered() {
    let authority = Authority::new();
    let offering = |group: NamedGroup| {
        let verifier = ServerVerifier::new(trusting(&authority, SERVER));
        let required = client_config_for(PostQuantum::Required, verifier, OwnCertificate::empty()).unwrap();
        let mut provider = (**required.crypto_provider()).clone();
        provider.kx_groups.retain(|offered| offered.name() == group);
        ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(ServerVerifier::new(trusting(&authority, SERVER)))
            .with_no_client_auth()
    };
    let hybrids = [NamedGroup::Unknown(0x11ed), NamedGroup::secp256r1MLKEM768, NamedGroup::X25519MLKEM768];
    for group in hybrids {
        let anchors: Arc<dyn Anchors> = Arc::new(OneDomain([authority.certificate.clone()].into()));
        let verifier = ClientVerifier::new(anchors, Box::new(|_: &SpiffeId| Ok(())), false);
        let own = authority.own(SERVER, KeyKind::EcP256);
        let server = server_config_for(PostQuantum::Required, verifier, own).unwrap();

        let (server, _) = shake_as(server, offering(group)).unwrap();

        assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), group);
    }
}
