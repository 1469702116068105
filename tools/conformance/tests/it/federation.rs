//! Trust domains that hand each other their bundles.

use std::path::{Path, PathBuf};

use finial_conformance::{Bystander, Crowd, Domains, Imposters, Product, Profile};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

fn federate(profile: Profile) -> Domains {
    let product = Product::under_test();
    Domains::federate(&product, &product, &recorded(), profile).unwrap()
}

#[test]
fn federation_by_spiffe_ids_follows_new_authorities() {
    federate(Profile::Spiffe).follow().unwrap();
}

#[test]
fn federation_by_web_certificates_follows_new_authorities_and_certificates() {
    let domains = federate(Profile::Web);

    domains.follow().unwrap();
    domains.replace_certificate().unwrap();
    domains.mistake_name().unwrap();
}

#[test]
fn federation_outlives_restarts_and_partners_that_are_away() {
    federate(Profile::Spiffe).outlive().unwrap();
}

#[test]
fn f04_federation_refuses_what_is_no_bundle_and_keeps_the_one_it_has() {
    Imposters::start(&Product::finial()).misbehave().unwrap();
}

#[test]
fn f01_federation_believes_nobody_but_the_endpoint_it_was_told() {
    Imposters::start(&Product::finial()).pretend().unwrap();
}

#[test]
fn f03_federation_warns_of_bundles_that_go_back() {
    Imposters::start(&Product::finial()).go_back().unwrap();
}

#[test]
fn f02_federation_lets_no_trust_domain_speak_for_another() {
    Crowd::start(&Product::under_test(), &recorded()).speak_for_each_other().unwrap();
}

#[test]
fn f06_federation_with_a_slow_endpoint_holds_up_nobody() {
    Imposters::start(&Product::finial()).dawdle().unwrap();
}

#[test]
fn f07_federation_ends_for_workloads_as_the_mode_of_deletion_says() {
    Bystander::start(&Product::under_test(), &recorded()).unwrap().delete_bundle().unwrap();
}

#[test]
fn f05_federation_endpoint_serves_the_own_bundle_to_get_alone() {
    let domains = federate(Profile::Spiffe);
    let ask = |line: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        domains.ask(&request, false).unwrap_or_default()
    };

    let bundle = ask("GET /");
    assert!(bundle.starts_with("HTTP/1.1 200 OK\r\n"), "{bundle}");
    assert!(bundle.to_lowercase().contains("content-type: application/json\r\n"), "{bundle}");
    assert!(bundle.contains("\"spiffe_refresh_hint\": 60"), "{bundle}");
    assert!(ask("GET /?a=b").starts_with("HTTP/1.1 200 OK\r\n"));
    let missing = ask("GET /x");
    assert!(missing.starts_with("HTTP/1.1 404 Not Found\r\n"), "{missing}");
    assert!(missing.ends_with("404 page not found\n"), "{missing}");
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
        let refused = ask(&format!("{method} /"));
        assert!(refused.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{refused}");
        assert_eq!(refused.ends_with("405 method not allowed\n"), method != "HEAD", "{refused}");
    }
    let old = domains.ask("GET / HTTP/1.0\r\n\r\n", true).unwrap_or_default();
    assert!(old.contains("\"x509-svid\""), "over TLS 1.2: {old}");
    assert_eq!(domains.ask("nonsense\r\n\r\n", false).map(|answer| answer.contains("keys")), Some(false));
}
