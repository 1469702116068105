//! Delegated identity over the admin socket.

use std::process::{Command, Stdio};
use std::time::Duration;

use proto::spire::agent::delegatedidentity::delegated_identity_client::DelegatedIdentityClient;
use proto::spire::agent::delegatedidentity::{
    FetchJwtsviDsRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};
use proto::spire::types;
use spiffe::{Entry, SpiffeId};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::authority::Authority;
use crate::world::{World, entry, federated, own_entry};

/// An agent whose delegate is this process, as `/delegate`.
async fn world() -> World {
    World::configured(|config| {
        config.authorized_delegates = vec![SpiffeId::parse("spiffe://example.org/delegate").unwrap()];
    })
    .await
}

fn delegate(world: &World) -> DelegatedIdentityClient<Channel> {
    DelegatedIdentityClient::new(world.admin())
}

/// The entry that makes a delegate of this process.
fn own() -> Entry {
    own_entry("d", "/delegate")
}

fn of(selectors: &[&str]) -> SubscribeToX509sviDsRequest {
    SubscribeToX509sviDsRequest { selectors: wire(selectors), pid: 0 }
}

fn wire(selectors: &[&str]) -> Vec<types::Selector> {
    let one = |value: &&str| types::Selector { r#type: "unix".to_owned(), value: (*value).to_owned() };
    selectors.iter().map(one).collect()
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let next = tokio::time::timeout(Duration::from_secs(10), stream.message());
    Ok(next.await.expect("something comes")?.expect("no end"))
}

async fn is_silent<T>(world: &World, stream: &mut Streaming<T>) -> bool {
    world.client().x509_bundles().await.unwrap();
    tokio::time::timeout(Duration::from_millis(100), stream.message()).await.is_err()
}

async fn subscribed(
    world: &World,
    request: SubscribeToX509sviDsRequest,
) -> Streaming<SubscribeToX509sviDsResponse> {
    delegate(world).subscribe_to_x509svi_ds(request).await.unwrap().into_inner()
}

fn paths(answer: &SubscribeToX509sviDsResponse) -> Vec<&str> {
    let svids = answer.x509_svids.iter().map(|svid| svid.x509_svid.as_ref().unwrap());
    svids.map(|svid| svid.id.as_ref().unwrap().path.as_str()).collect()
}

fn refusal<T>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.err().expect("a refusal");
    (status.code(), status.message().to_owned())
}

fn denied(text: &str) -> (Code, String) {
    (Code::PermissionDenied, text.to_owned())
}

#[tokio::test]
async fn l02_only_configured_delegates_are_answered() {
    let world = world().await;
    let mut client = delegate(&world);
    let request = || of(&["uid:7"]);
    let tokens =
        || FetchJwtsviDsRequest { audience: vec!["x".to_owned()], selectors: wire(&["uid:7"]), pid: 0 };

    for (entries, text) in [
        (vec![], "no identity issued"),
        (vec![own_entry("a", "/web")], "caller not configured as an authorized delegate"),
        // Who is no process of the delegate is none, whatever is asked for.
        (vec![entry("d", "/delegate", &["uid:7"])], "no identity issued"),
    ] {
        world.serve(&entries).await;
        assert_eq!(refusal(client.subscribe_to_x509svi_ds(request()).await), denied(text));
        assert_eq!(
            refusal(client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await),
            denied(text)
        );
        assert_eq!(refusal(client.fetch_jwtsvi_ds(tokens()).await), denied(text));
        assert_eq!(
            refusal(client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await),
            denied(text)
        );
    }
    world.serve(&[own()]).await;
    client.subscribe_to_x509svi_ds(request()).await.unwrap();
}

#[tokio::test]
async fn l03_a_delegate_gets_what_entries_of_this_node_match() {
    let world = world().await;
    let other = Authority::new("other.test");
    let entries = || {
        let web = federated(entry("web", "/web", &["uid:7"]), &[&other]);
        let admin = Entry { admin: true, ..entry("x", "/admin", &["uid:7"]) };
        let downstream = Entry { downstream: true, ..entry("y", "/server", &["uid:7"]) };
        vec![own(), web, admin, downstream, entry("z", "/strict", &["uid:7", "gid:7"])]
    };
    world.sync(&entries(), &[other.bundle()]).await;
    world.issue(&entries()).await;

    let mut stream = subscribed(&world, of(&["uid:7"])).await;
    let answer = next(&mut stream).await.unwrap();

    assert_eq!(paths(&answer), ["/web"]);
    assert_eq!(answer.federates_with, ["spiffe://other.test"]);
    let svid = answer.x509_svids[0].x509_svid.as_ref().unwrap();
    assert!(svid.expires_at > 0 && !svid.cert_chain.is_empty());
    assert!(!answer.x509_svids[0].x509_svid_key.is_empty());
    let mut both = subscribed(&world, of(&["uid:7", "gid:7"])).await;
    assert_eq!(paths(&next(&mut both).await.unwrap()), ["/web", "/strict"]);
    let mut none = subscribed(&world, of(&["uid:8"])).await;
    assert_eq!(next(&mut none).await.unwrap(), SubscribeToX509sviDsResponse::default());

    let audience = vec!["x".to_owned()];
    let request = FetchJwtsviDsRequest { audience: audience.clone(), selectors: wire(&["uid:7"]), pid: 0 };
    let tokens = delegate(&world).fetch_jwtsvi_ds(request).await.unwrap().into_inner().svids;
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].id.as_ref().unwrap().path, "/web");
    assert!(tokens[0].expires_at > tokens[0].issued_at && !tokens[0].token.is_empty());
    let request = FetchJwtsviDsRequest { audience, selectors: wire(&["uid:8"]), pid: 0 };
    let refused = delegate(&world).fetch_jwtsvi_ds(request).await;
    assert_eq!(refusal(refused), denied("no identity issued"));
}

#[tokio::test]
async fn l04_streams_end_when_the_delegate_loses_its_entry() {
    let world = world().await;
    world.serve(&[own(), entry("web", "/web", &["uid:7"])]).await;
    let mut svids = subscribed(&world, of(&["uid:7"])).await;
    next(&mut svids).await.unwrap();
    let mut client = delegate(&world);
    let mut bundles =
        client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap().into_inner();
    next(&mut bundles).await.unwrap();

    world.sync(&[own_entry("a", "/no-delegate"), entry("web", "/web", &["uid:7"])], &[]).await;

    let refused = denied("caller not configured as an authorized delegate");
    assert_eq!(refusal(next(&mut svids).await), refused);
    assert_eq!(refusal(next(&mut bundles).await), refused);
}

#[tokio::test]
async fn a_stream_follows_the_entries_of_its_selectors() {
    let world = world().await;
    let web = || entry("web", "/web", &["uid:7"]);
    world.serve(&[own()]).await;
    let mut stream = subscribed(&world, of(&["uid:7"])).await;
    assert_eq!(paths(&next(&mut stream).await.unwrap()), Vec::<&str>::new());

    world.sync(&[own(), web()], &[]).await;
    assert!(is_silent(&world, &mut stream).await, "an SVID that is being signed is shown as none");
    world.issue(&[web()]).await;
    let first = next(&mut stream).await.unwrap();
    assert_eq!(paths(&first), ["/web"]);
    world.issue(&[own()]).await;
    assert!(is_silent(&world, &mut stream).await);
    world.issue(&[web()]).await;
    let second = next(&mut stream).await.unwrap();
    assert_ne!(first, second);
    world.sync(&[own()], &[]).await;
    assert_eq!(paths(&next(&mut stream).await.unwrap()), Vec::<&str>::new());

    world.stop();
    assert_eq!(refusal(next(&mut stream).await), (Code::Unavailable, "the agent is stopping".to_owned()));
}

#[tokio::test]
async fn a_request_is_for_selectors_or_for_a_process() {
    let world = world().await;
    world.serve(&[own()]).await;
    let mut client = delegate(&world);
    let either = "must provide either selectors or non-zero PID, but not both";
    let invalid = |text: &str| (Code::InvalidArgument, text.to_owned());

    for request in [of(&[]), SubscribeToX509sviDsRequest { selectors: wire(&["uid:7"]), pid: 1 }] {
        assert_eq!(refusal(client.subscribe_to_x509svi_ds(request).await), invalid(either));
    }
    let refused = client.subscribe_to_x509svi_ds(of(&[""])).await;
    assert_eq!(refusal(refused), invalid("could not parse provided selectors"));
    let neither = FetchJwtsviDsRequest { audience: vec!["x".to_owned()], selectors: Vec::new(), pid: 0 };
    assert_eq!(refusal(client.fetch_jwtsvi_ds(neither).await), invalid(either));
    let nobody = FetchJwtsviDsRequest { audience: Vec::new(), selectors: Vec::new(), pid: 0 };
    assert_eq!(refusal(client.fetch_jwtsvi_ds(nobody).await), invalid("audience must be specified"));
    for gone in [-1, i32::MAX] {
        let request = SubscribeToX509sviDsRequest { selectors: Vec::new(), pid: gone };
        let unattested = (Code::Unavailable, "workload attestation failed".to_owned());
        assert_eq!(refusal(client.subscribe_to_x509svi_ds(request).await), unattested);
    }
}

#[tokio::test]
async fn a_process_that_ended_is_sent_nothing_more() {
    let world = world().await;
    world.serve(&[own()]).await;
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let request = SubscribeToX509sviDsRequest { selectors: Vec::new(), pid };
    let mut stream = subscribed(&world, request).await;
    // The attestor of the tests takes every process for one user's.
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/delegate"]);

    child.kill().unwrap();
    child.wait().unwrap();
    world.issue(&[own()]).await;

    assert_eq!(refusal(next(&mut stream).await), (Code::Unavailable, "the workload has ended".to_owned()));
}

#[tokio::test]
async fn bundles_are_all_that_there_are_now() {
    let world = world().await;
    let other = Authority::new("other.test");
    world.sync(&[own()], &[other.bundle()]).await;
    let mut client = delegate(&world);
    let mut x509 =
        client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap().into_inner();
    let mut jwt =
        client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await.unwrap().into_inner();
    let both = ["spiffe://example.org", "spiffe://other.test"];
    assert!(next(&mut x509).await.unwrap().ca_certificates.keys().eq(&both));
    let keys = next(&mut jwt).await.unwrap().bundles;
    assert!(keys.keys().eq(&both) && keys[both[0]].starts_with(b"{\n    \"keys\": ["));

    world.issue(&[own()]).await;
    assert!(is_silent(&world, &mut x509).await);
    world.sync(&[own()], &[]).await;
    assert!(next(&mut x509).await.unwrap().ca_certificates.keys().eq(&both[..1]));
    assert!(next(&mut jwt).await.unwrap().bundles.keys().eq(&both[..1]));
}

#[tokio::test]
async fn the_server_is_asked_before_a_delegate_is_refused_and_when_it_is_shown_nothing() {
    let world = world().await;
    let mut client = delegate(&world);
    let tokens = |selectors: &[&str]| FetchJwtsviDsRequest {
        audience: vec!["x".to_owned()],
        selectors: wire(selectors),
        pid: 0,
    };

    // The delegate itself may be new; it asks often, the server is asked once in a second.
    assert_eq!(refusal(client.fetch_jwtsvi_ds(tokens(&["uid:7"])).await), denied("no identity issued"));
    assert!(world.has_looked());
    refusal(client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await);
    refusal(client.subscribe_to_x509svi_ds(of(&["uid:7"])).await);
    assert!(!world.has_looked());
    world.serve(&[own()]).await;

    // So may be that for which it asks: each is asked for once, and no more than ten.
    let mut asked = 1;
    for number in 0..6 {
        for _ in 0..3 {
            let selectors = format!("uid:{number}");
            assert_eq!(
                refusal(client.fetch_jwtsvi_ds(tokens(&[&selectors])).await),
                denied("no identity issued")
            );
            asked += usize::from(world.has_looked());
        }
    }
    for number in 10..20 {
        for _ in 0..3 {
            let mut stream = subscribed(&world, of(&[&format!("uid:{number}")])).await;
            assert_eq!(paths(&next(&mut stream).await.unwrap()), [""; 0]);
            asked += usize::from(world.has_looked());
        }
    }
    assert_eq!(asked, 10);

    world.clock.advance(Duration::from_secs(1));
    refusal(client.fetch_jwtsvi_ds(tokens(&["uid:0"])).await);
    assert!(world.has_looked());
}

#[tokio::test]
async fn who_is_served_asks_nobody() {
    let world = world().await;
    world.serve(&[own(), entry("web", "/web", &["uid:7"])]).await;

    let mut stream = subscribed(&world, of(&["uid:7"])).await;
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/web"]);

    assert!(!world.has_looked());
}
