//! Who calls: what several attestors make of it, and callers that are not what they were.

use std::future::pending;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::attestors::{AttestError, Attestors};
use async_trait::async_trait;
use plugin::{Plugin, PluginError, PluginInfo, PluginKind, WorkloadAttestor};
use runtime::clock::{ManualClock, SystemClock};
use runtime::peer::{Caller, CallerError, Process};
use spiffe::Selector;
use tonic::Code;

use crate::authority::now;
use crate::child;
use crate::workload::refusal;
use crate::world::{Attestor, World, own_entry};

/// An attestor that fails, never answers, or ends the caller.
struct Bad {
    info: PluginInfo,
    how: How,
}

enum How {
    Fails,
    Hangs,
    /// Counts those who are in it, and never answers.
    Counts(Arc<AtomicUsize>),
    Ends(Mutex<Child>),
}

fn bad(name: &str, how: How) -> Arc<dyn WorkloadAttestor> {
    Arc::new(Bad { info: PluginInfo::new(PluginKind::WorkloadAttestor, name), how })
}

/// An attestor that always fails.
pub(crate) fn failing(name: &str) -> Arc<dyn WorkloadAttestor> {
    bad(name, How::Fails)
}

fn good(name: &str, selectors: &[&str]) -> Arc<dyn WorkloadAttestor> {
    Arc::new(Attestor::new(name, selectors))
}

impl Plugin for Bad {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl WorkloadAttestor for Bad {
    async fn attest(&self, _caller: &Process) -> Result<Vec<Selector>, PluginError> {
        match &self.how {
            How::Fails => Err(PluginError::internal("out of order")),
            How::Hangs => pending().await,
            How::Counts(count) => {
                count.fetch_add(1, Ordering::Relaxed);
                pending().await
            }
            How::Ends(child) => {
                let mut child = child.lock().unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
                Ok(Vec::new())
            }
        }
    }
}

/// This process as a caller of its own.
fn itself() -> Caller {
    let (socket, _other_end) = std::os::unix::net::UnixStream::pair().unwrap();
    Caller::of(socket.as_fd()).unwrap()
}

#[tokio::test]
async fn selectors_of_all_attestors_count_together() {
    let plugins = vec![good("a", &["2", "1"]), good("b", &["1"])];

    let selectors = Attestors::new(plugins, Arc::new(SystemClock)).attest(&itself()).await.unwrap();

    let texts: Vec<String> = selectors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["a:1", "a:2", "b:1"]);
}

#[tokio::test]
async fn r07_one_that_fails_or_hangs_takes_only_its_own_selectors_away() {
    let clock = ManualClock::new(now());
    let plugins = vec![bad("a", How::Fails), good("b", &["1"]), bad("c", How::Hangs)];
    let attestors = Attestors::new(plugins, Arc::new(clock.clone()));
    let caller = itself();
    let mut attested = std::pin::pin!(attestors.attest(&caller));
    assert!(futures::poll!(&mut attested).is_pending());

    clock.advance(Duration::from_secs(30));

    let texts: Vec<String> = attested.await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["b:1"]);
}

#[tokio::test]
async fn w20_r06_one_user_waits_for_its_own_attestations_and_no_other_does() {
    let count = Arc::new(AtomicUsize::new(0));
    let plugins = vec![bad("a", How::Counts(Arc::clone(&count)))];
    let clock = ManualClock::new(now());
    let attestors = Attestors::new(plugins, Arc::new(clock.clone()));
    let (one, mut other) = (itself(), itself());
    other.uid += 1;

    let mut crowd: Vec<_> = (0..100).map(|_| Box::pin(attestors.attest(&one))).collect();
    for attested in &mut crowd {
        assert!(futures::poll!(attested).is_pending());
    }
    assert_eq!(count.load(Ordering::Relaxed), 64);
    // Another user has its turn at once.
    let mut attested = Box::pin(attestors.attest(&other));
    assert!(futures::poll!(&mut attested).is_pending());
    assert_eq!(count.load(Ordering::Relaxed), 65);

    // When theirs are over the others have theirs.
    clock.advance(Duration::from_secs(30));
    let waiting = crowd.split_off(64);
    for attested in crowd {
        assert!(matches!(attested.await, Err(AttestError::AllFailed)));
    }
    // With a new allowance: one task may not go on for ever.
    tokio::task::yield_now().await;
    for mut attested in waiting {
        assert!(futures::poll!(&mut attested).is_pending());
    }
    assert_eq!(count.load(Ordering::Relaxed), 101);
}

#[tokio::test]
async fn a_caller_that_no_attestor_can_tell_is_refused_by_every_method() {
    let world = World::attested_by(vec![bad("a", How::Fails), bad("b", How::Fails)], |config| {
        config.allow_unauthenticated_verifiers = true;
    })
    .await;
    world.serve(&[own_entry("a", "/a")]).await;
    let client = world.client();
    let failed = (Code::Unavailable, "workload attestation failed".to_owned());

    assert_eq!(refusal(client.x509_svids().await), failed);
    assert_eq!(refusal(client.x509_bundles().await), failed);
    assert_eq!(refusal(client.jwt_bundles().await), failed);
    assert_eq!(refusal(client.jwt_svids(&["x".to_owned()], None).await), failed);
    assert_eq!(refusal(client.validate_jwt("x", "x").await), failed);
}

#[tokio::test]
async fn a_caller_without_any_selector_is_attested_and_gets_nothing() {
    let world = World::attested_by(vec![good("unix", &[])], |_| {}).await;
    world.serve(&[own_entry("a", "/a")]).await;

    let denied = (Code::PermissionDenied, "no identity issued".to_owned());
    assert_eq!(refusal(world.client().x509_svids().await), denied);
}

#[tokio::test]
async fn w04_a_caller_that_ends_while_it_is_attested_gets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let child = child::idle(&path);
    let (socket, _) = listener.accept().unwrap();
    let caller = Caller::of(socket.as_fd()).unwrap();
    let plugins = vec![bad("a", How::Ends(Mutex::new(child))), good("b", &["1"])];

    let refused = Attestors::new(plugins, Arc::new(SystemClock)).attest(&caller).await.unwrap_err();

    assert!(matches!(refused, AttestError::Caller(CallerError::Gone)), "{refused:?}");
}

#[tokio::test]
async fn r08_limits_hold_for_others_and_not_for_the_agent_itself() {
    let world = World::configured(|config| config.experimental.rate_limits.fetch_x509_bundles = 2).await;
    world.serve(&[own_entry("a", "/a")]).await;

    let child = child::bundles(&world.socket(), 3);
    let said = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let limited =
        "rpc error: code = Unavailable desc = rate limit exceeded for /SpiffeWorkloadAPI/FetchX509Bundles";
    assert_eq!(said.matches("answered\n").count(), 2, "{said}");
    assert_eq!(said.matches(limited).count(), 1, "{said}");
    for _ in 0..5 {
        world.client().x509_bundles().await.unwrap();
    }
}
