//! Open streams: what they are told, and how they end.

use std::pin::pin;
use std::time::Duration;

use client::workload::X509Update;
use futures::{Stream, StreamExt};
use proto::workload::X509BundlesRequest;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::authority::Authority;
use crate::workload::refusal;
use crate::world::{World, federated, hinted, names, own_entry};

fn ids(update: &X509Update) -> Vec<String> {
    update.svids.iter().map(|svid| svid.id.path().to_owned()).collect()
}

/// What comes next, which must be there soon.
async fn next<T>(mut stream: impl Stream<Item = T> + Unpin) -> T {
    tokio::time::timeout(Duration::from_secs(10), stream.next()).await.expect("something").expect("no end")
}

/// Whether nothing comes: everything that is on its way has come when another call was answered.
async fn is_silent<T>(world: &World, mut stream: impl Stream<Item = T> + Unpin) -> bool {
    world.client().x509_bundles().await.unwrap();
    tokio::time::timeout(Duration::from_millis(100), stream.next()).await.is_err()
}

#[tokio::test]
async fn w16_an_open_stream_sees_entries_come_change_and_go() {
    let world = World::start().await;
    world.serve(&[own_entry("b", "/b")]).await;
    let mut stream = pin!(world.client().watch_x509_svids().await.unwrap());
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["/b"]);

    world.sync(&[own_entry("a", "/a"), own_entry("b", "/b")], &[]).await;
    world.issue(&[own_entry("a", "/a")]).await;
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["/a", "/b"]);

    world.sync(&[hinted(own_entry("a", "/a"), "now", 1), own_entry("b", "/b")], &[]).await;
    assert_eq!(next(&mut stream).await.unwrap().svids[0].hint, "now");

    world.sync(&[own_entry("b", "/b")], &[]).await;
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["/b"]);

    world.sync(&[], &[]).await;
    let denied = (Code::PermissionDenied, "no identity issued".to_owned());
    assert_eq!(refusal(next(&mut stream).await), denied);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn rotation_reaches_an_open_stream() {
    let world = World::start().await;
    world.serve(&[own_entry("a", "/a")]).await;
    let mut stream = pin!(world.client().watch_x509_svids().await.unwrap());
    let before = next(&mut stream).await.unwrap().svids.remove(0);

    world.issue(&[own_entry("a", "/a")]).await;

    let after = next(&mut stream).await.unwrap().svids.remove(0);
    assert_ne!(before.chain, after.chain);
    assert_ne!(before.key.secret_pkcs8(), after.key.secret_pkcs8());
}

#[tokio::test]
async fn a_stream_waits_for_the_svid_of_a_matching_entry() {
    let world = World::start().await;
    world.sync(&[own_entry("a", "/a")], &[]).await;
    let client = world.client();
    let mut first = pin!(client.x509_svids());
    assert!(futures::poll!(&mut first).is_pending());

    world.issue(&[own_entry("a", "/a")]).await;

    assert_eq!(ids(&first.await.unwrap()), ["/a"]);
}

#[tokio::test]
async fn the_first_answer_waits_only_so_long_for_the_rest() {
    let world = World::start().await;
    world.sync(&[own_entry("a", "/a"), own_entry("b", "/b")], &[]).await;
    world.issue(&[own_entry("a", "/a")]).await;
    let client = world.client();
    let mut stream = pin!(client.watch_x509_svids());
    // The call is on its way to the agent, which then waits by its own clock.
    let update = loop {
        tokio::select! {
            biased;
            opened = &mut stream => break next(pin!(opened.unwrap())).await.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(5)) => world.clock.advance(Duration::from_millis(200)),
        }
    };

    assert_eq!(ids(&update), ["/a"]);
}

#[tokio::test]
async fn an_identity_under_another_id_takes_the_place_of_the_one_before() {
    let world = World::start().await;
    world.serve(&[own_entry("a", "/a"), own_entry("b", "/b")]).await;
    let mut stream = pin!(world.client().watch_x509_svids().await.unwrap());
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["/a", "/b"]);
    let renamed = [own_entry("a", "/c"), own_entry("b", "/b")];

    world.sync(&renamed, &[]).await;
    assert!(is_silent(&world, &mut stream).await);
    world.issue(&renamed[..1]).await;

    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["/c", "/b"]);
}

#[tokio::test]
async fn an_identity_that_does_not_come_back_soon_is_gone() {
    let world = World::start().await;
    world.serve(&[own_entry("a", "/a"), own_entry("b", "/b"), own_entry("c", "/c")]).await;
    let mut stream = pin!(world.client().watch_x509_svids().await.unwrap());
    next(&mut stream).await.unwrap();

    world.sync(&[own_entry("a", "/d"), own_entry("b", "/b"), own_entry("c", "/c")], &[]).await;
    assert!(is_silent(&world, &mut stream).await);
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["/b", "/c"]);

    // What is refused or deleted is not waited for.
    world.sync(&[own_entry("b", "/e"), own_entry("c", "/c")], &[]).await;
    world.refuse(&own_entry("b", "/e")).await;
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["/c"]);
}

#[tokio::test]
async fn bundle_streams_are_told_only_of_bundles() {
    let world = World::start().await;
    let other = Authority::new("other.org");
    let entries = [federated(own_entry("a", "/a"), &[&other])];
    world.sync(&entries, &[other.bundle()]).await;
    let client = world.client();
    let mut x509 = pin!(client.watch_x509_bundles().await.unwrap());
    let mut jwt = pin!(client.watch_jwt_bundles().await.unwrap());
    assert_eq!(names(&next(&mut x509).await.unwrap().bundles), ["example.org", "other.org"]);
    assert_eq!(names(&next(&mut jwt).await.unwrap().bundles), ["example.org", "other.org"]);

    // SVIDs and hints are no business of theirs, nor are JWT keys of the one.
    world.issue(&entries).await;
    let mut changed = other.bundle();
    changed.jwt_authorities[0].key_id = "next".to_owned();
    world.sync(&entries, &[changed.clone()]).await;
    let keys = next(&mut jwt).await.unwrap().bundles[&other.trust_domain].clone();
    assert!(String::from_utf8(keys.to_vec()).unwrap().contains("\"next\""));
    assert!(is_silent(&world, &mut x509).await);

    world.sync(&entries, &[]).await;
    assert_eq!(names(&next(&mut x509).await.unwrap().bundles), ["example.org"]);
    assert_eq!(names(&next(&mut jwt).await.unwrap().bundles), ["example.org"]);

    world.sync(&[], &[]).await;
    let denied = (Code::PermissionDenied, "no identity issued".to_owned());
    assert_eq!(refusal(next(&mut x509).await), denied);
    assert_eq!(refusal(next(&mut jwt).await), denied);
}

#[tokio::test]
async fn the_own_bundle_reaches_x509_streams_too() {
    let world = World::start().await;
    world.serve(&[own_entry("a", "/a")]).await;
    let mut stream = pin!(world.client().watch_x509_svids().await.unwrap());
    assert_eq!(next(&mut stream).await.unwrap().bundles[&world.own.trust_domain].len(), 1);

    let mut bundle = world.own.bundle();
    bundle.x509_authorities.extend(Authority::new("example.org").bundle().x509_authorities);
    world.sync_with(&[own_entry("a", "/a")], bundle, &[]).await;

    assert_eq!(next(&mut stream).await.unwrap().bundles[&world.own.trust_domain].len(), 2);
}

#[tokio::test]
async fn streams_end_as_unavailable_when_the_agent_stops() {
    let world = World::start().await;
    world.serve(&[own_entry("a", "/a")]).await;
    let client = world.client();
    let mut x509 = pin!(client.watch_x509_svids().await.unwrap());
    let mut jwt = pin!(client.watch_jwt_bundles().await.unwrap());
    next(&mut x509).await.unwrap();
    next(&mut jwt).await.unwrap();

    world.stop();

    assert_eq!(refusal(next(&mut x509).await).0, Code::Unavailable);
    assert_eq!(refusal(next(&mut jwt).await).0, Code::Unavailable);
}

#[tokio::test]
async fn many_streams_share_a_connection_and_an_update() {
    let world = World::start().await;
    world.serve(&[own_entry("a", "/a")]).await;
    let mut bare = world.bare();
    let request = || {
        let mut request = Request::new(X509BundlesRequest {});
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        request
    };
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = bare.fetch_x509_bundles(request()).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        streams.push(stream);
    }

    let mut bundle = world.own.bundle();
    bundle.x509_authorities.extend(Authority::new("example.org").bundle().x509_authorities);
    world.sync_with(&[own_entry("a", "/a")], bundle, &[]).await;

    for stream in &mut streams {
        let answer = stream.message().await.unwrap().unwrap();
        assert_eq!(answer.bundles.len(), 1);
    }
}
