//! Which key exchanges the listeners take.

use std::path::Path;

use finial_conformance::{Measured, Offer, Plane, PlaneConfig, Product, shake};

const PAGES: &str = "Prometheus { host = \"127.0.0.1\" port = {port} tls { use_spire_svid = true } }";

#[test]
fn t04_without_post_quantum_key_exchanges_nothing_is_served_where_they_are_required() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance");
    let required = "experimental { require_pq_kem = true }";
    let config = PlaneConfig {
        server_extra: format!(
            "{required} federation {{ bundle_endpoint {{ address = \"127.0.0.1\" port = {{p3}} \
             profile \"https_spiffe\" {{}} }} }}"
        ),
        agent_extra: required.to_owned(),
        ..PlaneConfig::default()
    };
    // Both become healthy, so an agent that requires them gets along with such a server.
    let mut measured = Measured::start_as(&Product::under_test(), &recorded, config, "");
    measured.restart_with("server", &PAGES.replace("{port}", "{p1}"));
    measured.restart_with("agent", &PAGES.replace("{port}", "{p2}"));

    for (port, protocol) in [("port", "h2"), ("p3", "http/1.1"), ("p1", "http/1.1"), ("p2", "http/1.1")] {
        let shaken = |offer| shaken(&measured.plane, port, offer, protocol);
        assert_eq!(shaken(Offer::PostQuantum), Ok("Some(secp256r1MLKEM768)".to_owned()), "{port}");
        assert_eq!(shaken(Offer::Whole), Ok("Some(X25519MLKEM768)".to_owned()), "{port}");
        for offer in [Offer::Classical, Offer::Old] {
            let refused = shaken(offer).unwrap_err();
            assert!(refused.contains("HandshakeFailure") || refused.contains("ProtocolVersion"), "{refused}");
        }
    }
}

#[test]
fn t04_clients_of_every_kind_are_served_where_nothing_is_required() {
    let plane = Plane::start(&Product::under_test(), &PlaneConfig::default(), &Default::default());

    assert_eq!(shaken(&plane, "port", Offer::PostQuantum, "h2"), Ok("Some(X25519MLKEM768)".to_owned()));
    // Who sends shares for both is given the hybrid.
    assert_eq!(shaken(&plane, "port", Offer::Whole, "h2"), Ok("Some(X25519MLKEM768)".to_owned()));
    assert_eq!(shaken(&plane, "port", Offer::Classical, "h2"), Ok("Some(X25519)".to_owned()));
    assert_eq!(shaken(&plane, "port", Offer::Old, "h2"), Ok("Some(X25519)".to_owned()));
}

fn shaken(plane: &Plane, port: &str, offer: Offer, protocol: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(shake(plane.word(port), offer, protocol.as_bytes()))
}
