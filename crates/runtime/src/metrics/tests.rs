//! What the facade promises, seen on the page.

use http_body_util::BodyExt;
use tonic::Code;
use tonic::body::Body;

use super::*;

fn metrics(options: Options) -> Metrics {
    Metrics::new(Options { prefix: "spire_server".into(), has_page: true, ..options }).unwrap()
}

/// The lines of the page that are of the program itself, without the types.
async fn shown(metrics: &Metrics) -> Vec<String> {
    let page = metrics.page().unwrap().into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8(page.to_vec()).unwrap();
    page.lines().filter(|line| line.starts_with("spire_")).map(str::to_owned).collect()
}

#[tokio::test]
async fn what_nobody_wants_is_nothing() {
    let metrics = Metrics::new(Options::default()).unwrap();

    metrics.counter(&["a"], &[]).increment();
    let call = metrics.call(&["b"], &[]);
    call.start().done(Code::Ok);

    assert!(!metrics.is_on() && metrics.page().is_none());
    assert_eq!(size_of::<Counter>(), 2 * size_of::<usize>());
}

#[tokio::test]
async fn a_page_has_names_labels_and_values_as_spires_has_them() {
    let metrics = metrics(Options { trust_domain: Some("example.org".into()), ..Options::default() });
    metrics.counter(&["server_ca", "sign", "x509_svid"], &[]).add(2);
    metrics.gauge(&["started"], &[("version", "1.15.3"), ("trust_domain_id", "example.org")]).set(1.0);
    drop(metrics.counter(&["never"], &[]));
    let call = metrics.call(&["rpc", "health", "check"], &[]);
    call.start().done(Code::Ok);
    call.start().done(Code::Cancelled);
    drop(call.start());
    call.start().discard();

    let shown: Vec<String> = shown(&metrics).await;

    let elapsed = "spire_server_rpc_health_check_elapsed_time";
    let has = |line: &str| assert!(shown.iter().any(|shown| shown == line), "{line} is not in {shown:#?}");
    has("spire_server_server_ca_sign_x509_svid{trust_domain=\"example_org\"} 2");
    has(
        "spire_server_started{trust_domain=\"example_org\",trust_domain_id=\"example_org\",version=\"1_15_3\"} 1",
    );
    has("spire_server_rpc_health_check{status=\"OK\",trust_domain=\"example_org\"} 1");
    has("spire_server_rpc_health_check{status=\"Canceled\",trust_domain=\"example_org\"} 2");
    has(&format!("{elapsed}_count{{status=\"Canceled\",trust_domain=\"example_org\"}} 2"));
    let quantile = format!("{elapsed}{{status=\"OK\",trust_domain=\"example_org\",quantile=\"0.99\"}} ");
    assert!(shown.iter().any(|line| line.starts_with(&quantile)), "{shown:#?}");
    assert!(!shown.iter().any(|line| line.contains("never")));
}

#[tokio::test]
async fn the_host_is_a_label_and_filters_hold() {
    let metrics = metrics(Options {
        has_host: true,
        blocked_prefixes: vec!["spire_server.secret".into()],
        blocked_labels: vec!["status".into()],
        ..Options::default()
    });
    metrics.counter(&["open"], &[("status", "OK")]).increment();
    metrics.counter(&["secret", "thing"], &[]).increment();

    let shown = shown(&metrics).await;

    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(shown, [format!("spire_server_open{{host=\"{}\"}} 1", host.trim())]);
}

#[tokio::test]
async fn one_key_is_one_series_however_often_it_is_resolved() {
    let metrics = metrics(Options::default());
    metrics.counter(&["calls"], &[]).increment();
    metrics.counter(&["calls"], &[]).increment();

    assert_eq!(shown(&metrics).await, ["spire_server_calls 2"]);
}

#[tokio::test]
async fn calls_in_flight_are_counted_until_their_answer_ends() {
    let metrics = metrics(Options::default());
    let flights = InFlight::new(&metrics, &["workload_api", "connection"], &["workload_api", "connections"]);
    let call = metrics.call(&["rpc", "x"], &[]);
    let begun = call.start().counted_in(&flights);
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static("5"),
    )]);
    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"x"))
        .with_trailers(std::future::ready(Some(Ok(trailers))));
    let answer = observed(begun, http::Response::new(Body::new(body)));

    assert!(shown(&metrics).await.contains(&"spire_server_workload_api_connections 1".to_owned()));
    answer.into_body().collect().await.unwrap();

    let shown = shown(&metrics).await;
    for line in [
        "spire_server_workload_api_connection 1",
        "spire_server_workload_api_connections 0",
        "spire_server_rpc_x{status=\"NotFound\"} 1",
    ] {
        assert!(shown.iter().any(|shown| shown == line), "{line} is not in {shown:#?}");
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_to_its_end_was_cancelled() {
    let metrics = metrics(Options::default());
    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"x"));

    drop(observed(metrics.call(&["rpc", "x"], &[]).start(), http::Response::new(Body::new(body))));

    assert!(shown(&metrics).await.contains(&"spire_server_rpc_x{status=\"Canceled\"} 1".to_owned()));
}

#[test]
fn methods_are_keys_after_spires_rule() {
    for (method, key) in [
        ("/spire.api.server.agent.v1.Agent/AttestAgent", "agent.v1.agent.attest_agent"),
        ("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", "svid.v1.svid.batch_new_x509svid"),
        (
            "/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority",
            "localauthority.v1.local_authority.taint_x509_upstream_authority",
        ),
        ("/spire.api.server.logger.v1.Logger/GetLogger", "logger.get_logger"),
        ("/SpiffeWorkloadAPI/FetchX509SVID", "workload_api.fetch_x509svid"),
        ("/SpiffeWorkloadAPI/FetchJWTBundles", "workload_api.fetch_jwt_bundles"),
        ("/grpc.health.v1.Health/Check", "health.check"),
        (
            "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/FetchJWTSVIDs",
            "delegated_identity.fetch_jwtsvi_ds",
        ),
        (
            "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509SVIDs",
            "delegated_identity.subscribe_to_x509_svids",
        ),
        ("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", "sds.v3.fetch_secrets"),
    ] {
        assert_eq!(rpc_key(method).join("."), key);
    }
}
