//! The Workload API as clients of other makes use it: go-spiffe, py-spiffe, java-spiffe, the public crate
//! `spiffe`, and gRPC's C core by itself with each spelling of the authority.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use finial_conformance::{Foreign, Plane, PlaneConfig, Product};
use public_spiffe::{
    BundleSource, JwtSource, JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient, X509Source, X509Svid,
};

const FIRST: &str = "spiffe://example.org/first";
const SECOND: &str = "spiffe://example.org/second";

/// A trust domain in which this process is two workloads.
fn plane() -> Plane {
    let config = PlaneConfig { agent: true, ..PlaneConfig::default() };
    let plane = Plane::start(&Product::under_test(), &config, &Default::default());
    add(&plane, FIRST);
    add(&plane, SECOND);
    plane.await_identities(&[FIRST, SECOND]);
    plane
}

fn add(plane: &Plane, id: &str) {
    add_with(plane, id, &[]);
}

fn add_with(plane: &Plane, id: &str, more: &[&str]) {
    let parent = "spiffe://{td}/node";
    let entry = ["-parentID", parent, "-spiffeID", id, "-selector", "unix:uid:{uid}"];
    let create = ["entry", "create", "-socketPath", "{sock}"];
    let _shown = plane.ok("server", &[&create[..], &entry, more].concat());
}

fn address(plane: &Plane) -> String {
    format!("unix://{}", plane.word("asock"))
}

/// How many things a client said that work.
fn good(printed: &str) -> usize {
    printed.lines().filter(|line| line.starts_with("ok: ")).count()
}

#[test]
fn go_spiffe() {
    let Some(client) = Foreign::go("go-spiffe") else { return };
    let plane = plane();

    let printed = client.ok(&[&address(&plane), FIRST, SECOND]);

    assert_eq!(good(&printed), 6, "{printed}");
}

#[test]
fn go_spiffe_watches() {
    let Some(client) = Foreign::go("go-spiffe, watching") else { return };
    let plane = plane();
    let late = "spiffe://example.org/late";
    let args = ["watch", &address(&plane), FIRST, late];
    let mut watching = client.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "watching");

    add(&plane, late);

    assert_eq!(lines.next().unwrap().unwrap(), "ok: watch");
    assert!(watching.wait().unwrap().success());
}

#[test]
fn py_spiffe() {
    let Some(client) = Foreign::python("py-spiffe", "workload.py") else { return };
    let plane = plane();

    let printed = client.ok(&[&address(&plane), FIRST, SECOND]);

    assert_eq!(good(&printed), 7, "{printed}");
}

#[test]
fn java_spiffe() {
    let Some(client) = Foreign::java("java-spiffe") else { return };
    let plane = plane();

    let printed = client.ok(&[&address(&plane), FIRST, SECOND]);

    assert_eq!(good(&printed), 8, "{printed}");
}

#[test]
fn java_spiffe_watches_what_comes_and_what_is_renewed() {
    let Some(client) = Foreign::java("java-spiffe, watching") else { return };
    let plane = plane();
    let (brief, late) = ("spiffe://example.org/brief", "spiffe://example.org/late");
    // With the ten seconds that it is dated back it has half of its life behind it after one.
    add_with(&plane, brief, &["-x509SVIDTTL", "12"]);
    let args = ["watch", &address(&plane), brief, late];
    let mut watching = client.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "watching");

    add(&plane, late);

    assert_eq!(lines.next().unwrap().unwrap(), "ok: watch");
    assert_eq!(lines.next().unwrap().unwrap(), "ok: rotation");
    assert!(watching.wait().unwrap().success());
}

#[test]
fn c_core_with_each_authority() {
    let Some(client) = Foreign::python("grpcio", "authority.py") else { return };
    let plane = plane();

    let printed = client.ok(&[plane.word("asock"), FIRST]);

    assert_eq!(good(&printed), 10, "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_spiffe() {
    let plane = plane();
    let address = address(&plane);
    let domain = TrustDomain::new("example.org").unwrap();
    let (first, second) = (SpiffeId::new(FIRST).unwrap(), SpiffeId::new(SECOND).unwrap());
    let client = WorkloadApiClient::connect_to(&address).await.unwrap();

    let context = client.fetch_x509_context().await.unwrap();
    let mut ids: Vec<&SpiffeId> = context.svids().iter().map(|svid| svid.spiffe_id()).collect();
    ids.sort();
    assert_eq!(ids, [&first, &second]);
    assert!(!context.bundle_set().get(&domain).unwrap().authorities().is_empty());
    let bundles = client.fetch_x509_bundles().await.unwrap();
    assert_eq!(bundles.get(&domain), context.bundle_set().get(&domain));

    let source = X509Source::builder().endpoint(&address).build().await.unwrap();
    let svid: std::sync::Arc<X509Svid> = source.svid().unwrap();
    assert!([&first, &second].contains(&svid.spiffe_id()));
    let mut updates = source.updated();

    let tokens = JwtSource::builder().endpoint(&address).build().await.unwrap();
    let token = tokens.fetch_jwt_svid_with_id(["one", "two"], Some(&second)).await.unwrap();
    assert_eq!(token.spiffe_id(), &second);
    let bundles = client.fetch_jwt_bundles().await.unwrap();
    assert!(bundles.bundle_for_trust_domain(&domain).unwrap().is_some());
    let verified = JwtSvid::parse_and_validate(token.token(), &bundles, &["two"]).unwrap();
    assert_eq!(verified.spiffe_id(), &second);
    JwtSvid::parse_and_validate(token.token(), &bundles, &["three"]).unwrap_err();
    client.validate_jwt_token("one", token.token()).await.unwrap();
    client.validate_jwt_token("three", token.token()).await.unwrap_err();

    // What changes is pushed.
    add(&plane, "spiffe://example.org/late");
    let has_late = |source: &X509Source| source.x509_context().unwrap().svids().len() == 3;
    tokio::time::timeout(Duration::from_secs(30), async {
        while !has_late(&source) {
            updates.changed().await.unwrap();
        }
    })
    .await
    .expect("the new identity arrives");
}
