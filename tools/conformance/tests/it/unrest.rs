//! What another user of a machine can do to an agent, and what honest workloads notice of it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use finial_conformance::{
    Noticed, Plane, PlaneConfig, Product, Riot, Unrest, Workload, attack_agent, skip, streams_allowed,
};

/// Tells this program to be an attacker, of this kind, and of the agent on this socket.
const RIOT: &str = "FINIAL_TEST_RIOT";
const SOCKET: &str = "FINIAL_TEST_RIOT_SOCKET";

/// Not a test by itself: what the attackers do.
#[test]
fn child_that_attacks_an_agent() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let riot = std::env::var(RIOT).ok().and_then(|name| Riot::named(&name)).unwrap();
    attack_agent(riot, Path::new(&socket));
}

fn as_attacker(command: &mut Command, riot: Riot, socket: &str) {
    command.args(["--exact", "unrest::child_that_attacks_an_agent", "--nocapture", "--test-threads=1"]);
    command.env(RIOT, format!("{riot:?}")).env(SOCKET, socket);
}

/// As [`super::hardship`] has it: held to figures in `cargo xtask soak` alone.
fn watched() -> (Duration, bool) {
    let seconds = std::env::var("FINIAL_SIEGE_SECONDS").map_or(0, |text| text.parse().unwrap());
    if seconds == 0 { (Duration::from_millis(700), false) } else { (Duration::from_secs(seconds), true) }
}

/// No worse than five times what it was, give or take what a machine of two processors does by itself.
fn is_borne(noticed: Noticed, quiet: Noticed) -> bool {
    let within = |noticed: Duration, quiet: Duration| noticed <= quiet * 5 + Duration::from_millis(2);
    within(noticed.open, quiet.open) && within(noticed.fresh, quiet.fresh)
}

#[test]
fn r00_under_each_attack_on_an_agent_honest_workloads_are_served() {
    let (time, is_strict) = watched();
    let product = Product::under_test();
    let mut unrest = Unrest::prepare(&product);
    if unrest.plane().word("uid") != "0" {
        return skip("attacks by another user", "this process may not act as one");
    }
    let quiet = unrest.quiet(time).unwrap();

    for riot in Riot::ALL {
        let noticed = unrest.under(riot, time, as_attacker).unwrap_or_else(|why| panic!("{riot:?}: {why}"));
        println!(
            "{riot:?}: {} calls, 99 of 100 within {:?} (quiet {:?}), on fresh connections {:?} (quiet {:?})",
            noticed.calls, noticed.open, quiet.open, noticed.fresh, quiet.fresh
        );
        if is_strict && !is_borne(noticed, quiet) {
            // How much of it is the machine's, whose processors the attackers take.
            let beside = unrest.beside(&product, riot, time, as_attacker).unwrap();
            panic!("{riot:?}: {quiet:?} became {noticed:?}, {beside:?} while it is done to another agent");
        }
    }
    assert!(unrest.plane().agent().unwrap().is_running());
}

#[test]
fn r00_a_flood_of_one_users_calls_costs_others_a_few_of_its_steps() {
    let mut unrest = Unrest::prepare(&Product::under_test());
    if unrest.plane().word("uid") != "0" {
        return skip("attacks by another user", "this process may not act as one");
    }

    // What the agent does meanwhile, not how long it takes: that depends on who else uses the machine.
    let quiet = unrest.quiet_work(40).unwrap();
    let flooded = unrest.work_under(Riot::Attestations, 40, as_attacker).unwrap();

    // Once each call of a thousand was answered before: a hundred milliseconds and more.
    println!("{flooded:?} of work until a call is answered, {quiet:?} if there is no other");
    assert!(flooded <= quiet * 5 + Duration::from_millis(5), "{quiet:?} became {flooded:?}");
}

#[test]
fn r06_a_connection_has_a_hundred_streams_and_others_have_theirs() {
    let config = PlaneConfig { agent: true, ..PlaneConfig::default() };
    let plane = Plane::start(&Product::under_test(), &config, &Default::default());
    let entry = ["-parentID", "spiffe://{td}/node", "-spiffeID", "spiffe://{td}/web"];
    let create = ["entry", "create", "-socketPath", "{sock}", "-selector", "unix:uid:{uid}"];
    let _said = plane.ok("server", &[&create[..], &entry].concat());
    plane.await_identities(&["spiffe://{td}/web"]);
    let socket = Path::new(plane.word("asock"));

    // A client that does not care is refused what is too much; nothing else is.
    assert_eq!(streams_allowed(socket, 100), (Some(100), 0));
    assert_eq!(streams_allowed(socket, 101), (Some(100), 1));
    assert_eq!(streams_allowed(socket, 150), (Some(100), 50));

    // Who acts for others has a stream open for each of them.
    assert_eq!(streams_allowed(Path::new(plane.word("admin")), 101), (Some(4096), 0));

    // A client that does waits by itself, until one ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let workload = Workload::at(plane.word("asock"));
        let mut streams = Vec::new();
        for _ in 0..100 {
            streams.push(workload.held().await.unwrap());
        }
        let mut another = Box::pin(workload.held());
        let waited = tokio::time::timeout(Duration::from_secs(1), &mut another).await;
        assert!(waited.is_err(), "the hundred and first is served");
        assert_eq!(Workload::at(plane.word("asock")).ids().await.unwrap(), ["spiffe://example.org/web"]);
        drop(streams.pop());
        another.await.unwrap();
    });
}
