//! Starting, starting again, and not starting.

use std::sync::Arc;
use std::time::Duration;

use proto::spire::server::agent as wire;
use proto::spire::server::debug::GetInfoRequest;
use proto::spire::server::debug::get_info_response::Cert;
use runtime::clock::{Clock, ManualClock, SystemClock};
use spiffe::UnixSecs;

use crate::support::{Place, Running};

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
    let clock = ManualClock::new(SystemClock.now());
    let server = place.start_at(Arc::new(clock.clone())).await;
    let first = root(&server).await;

    // The next CA is made after 12 hours, and signs after 20; the own SVID follows within its hour.
    let mut rounds = 0;
    loop {
        clock.advance(Duration::from_secs(300));
        rounds += 1;
        let chain = chain(&server).await;
        let now = UnixSecs::from(clock.now()).0;
        let is_renewed = chain.last().unwrap().subject != first;
        if is_renewed && chain[0].expires_at > now {
            break;
        }
        assert!(rounds < 24 * 12, "neither CA nor SVID were renewed in 24 hours: {chain:?}");
    }

    assert!(rounds > 19 * 12, "the CA was renewed too early, after {rounds} rounds");
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
