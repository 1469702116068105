//! Starting, starting again, and not starting.

use std::sync::Arc;
use std::time::Duration;

use proto::spire::server::agent as wire;
use proto::spire::server::debug::GetInfoRequest;
use proto::spire::server::debug::get_info_response::Cert;
use proto::spire::server::localauthority::GetX509AuthorityStateRequest;
use runtime::clock::{Clock, ManualClock, SystemClock};
use spiffe::UnixSecs;

use crate::support::{HOUR, Place, Running, in_time};

const TICK: Duration = Duration::from_secs(10);

/// The root that the server's own SVID leads to.
async fn root(server: &Running) -> String {
    chain(server).await.last().unwrap().subject.clone()
}

async fn chain(server: &Running) -> Vec<Cert> {
    server.local().debug().get_info(GetInfoRequest {}).await.unwrap().into_inner().svid_chain
}

async fn refused(place: &Place) -> String {
    runtime::chain(&place.build(Arc::new(SystemClock)).await.err().unwrap())
}

#[tokio::test]
async fn a_server_that_starts_again_goes_on_with_its_authorities_and_agents() {
    let place = Place::new();
    let first = place.start().await;
    let agent = first.agent("lasting").await;
    let before = root(&first).await;
    first.stop().await;

    let second = place.start().await;

    assert_eq!(root(&second).await, before);
    let post = wire::PostStatusRequest { agent_version: "2".to_owned(), ..Default::default() };
    second.remote(agent.own).agent().post_status(post).await.unwrap();
    second.stop().await;
}

#[tokio::test]
async fn keys_that_are_gone_make_a_new_authority_beside_the_old() {
    let place = Place::new();
    let first = place.start().await;
    let before = root(&first).await;
    first.stop().await;
    std::fs::remove_file(place.path("keys.json")).unwrap();

    let second = place.start().await;

    assert_ne!(root(&second).await, before);
    second.stop().await;
}

#[tokio::test]
async fn a_damaged_key_file_is_named_and_left_alone() {
    let place = Place::new();
    place.start().await.stop().await;
    std::fs::write(place.path("keys.json"), "{").unwrap();

    let text = refused(&place).await;

    assert!(text.contains("keys.json") && !text.contains('\n'), "{text}");
    assert_eq!(std::fs::read_to_string(place.path("keys.json")).unwrap(), "{");
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_told_in_one_line() {
    let busy = Place::new();
    let running = busy.start().await;
    let mut place = Place::new();
    place.config.bind = running.address;
    let in_use = refused(&place).await;
    assert!(in_use.starts_with(&format!("cannot listen on {}: ", running.address)), "{in_use}");
    running.stop().await;

    let mut place = Place::new();
    place.config.plugins.remove(0);
    assert_eq!(refused(&place).await, "expecting a DataStore plugin");

    let place = Place::new();
    std::fs::write(place.path("data.sqlite3"), "this is no database, only a long enough text of some kind")
        .unwrap();
    let damaged = refused(&place).await;
    assert!(damaged.contains("data.sqlite3") && !damaged.contains('\n'), "{damaged}");
}

#[tokio::test]
async fn authorities_and_the_own_svid_are_renewed_in_time() {
    let place = Place::new();
    let began = SystemClock.now();
    let clock = ManualClock::new(began);
    let server = place.start_at(Arc::new(clock.clone())).await;
    let first = root(&server).await;

    // The next CA is made after 12 hours, and signs after 20; the own SVID follows within its hour.
    clock.advance(12 * HOUR);
    let authorities = server.local().local_authority();
    in_time(&clock, TICK, async || {
        let request = GetX509AuthorityStateRequest {};
        authorities.clone().get_x509_authority_state(request).await.unwrap().into_inner().prepared
    })
    .await;
    clock.advance(7 * HOUR);
    in_time(&clock, 30 * TICK, async || {
        let chain = chain(&server).await;
        let is_renewed = chain.last().unwrap().subject != first;
        (is_renewed && chain[0].expires_at > UnixSecs::from(clock.now()).0).then_some(())
    })
    .await;

    let taken = clock.now().duration_since(began).unwrap();
    assert!(19 * HOUR < taken && taken < 24 * HOUR, "{taken:?}");
    server.stop().await;
}

#[tokio::test]
async fn e05_the_socket_is_its_groups_alone_and_nobody_can_put_another_in_its_place() {
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o7777
    };
    let allow = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let mut place = Place::new();
    let socket = place.config.socket_path.clone();
    let folder = socket.parent().unwrap().to_owned();
    let server = place.start().await;
    assert_eq!((mode(&socket), mode(&folder)), (0o770, 0o750));
    server.stop().await;

    for exposed in [folder.as_path(), folder.parent().unwrap()] {
        let before = mode(exposed);
        allow(exposed, 0o777);
        let said = refused(&place).await;
        assert!(said.contains("everybody may write to") && said.contains("allow_exposed_socket"), "{said}");
        assert!(!socket.exists());
        // Where everybody may write, and none may take away what is another's.
        allow(exposed, 0o1777);
        place.start().await.stop().await;
        allow(exposed, before);
    }

    allow(&folder, 0o777);
    place.config.finial.allow_exposed_socket = true;
    place.start().await.stop().await;
}
