//! Calls and sources of the Workload API.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use client::workload::X509Update;
use client::{Address, JwtSource, WorkloadApi, WorkloadError, X509Source};
use proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use runtime::clock::Clock;
use spiffe::TrustDomain;
use tokio::sync::{broadcast, mpsc};
use tonic::transport::Server;
use tonic::{Code, Status};

use crate::Place;
use crate::workload_stand_in::{StandIn, Step};

/// Runs `test` beside a stand-in server.
async fn beside_server<T>(test: impl AsyncFnOnce(WorkloadApi, broadcast::Sender<Step>) -> T) -> T {
    let place = Place::new();
    let (steps, _) = broadcast::channel(16);
    let stand_in = SpiffeWorkloadApiServer::new(StandIn { steps: steps.clone() });
    let server = Server::builder().add_service(stand_in).serve_with_incoming(place.listen());
    let api = WorkloadApi::at(Address::unix(&place.socket)).expect("a client");

    tokio::select! {
        result = test(api, steps) => result,
        end = server => unreachable!("the server ended: {end:?}"),
    }
}

/// Waits until a stream listens for steps, then takes one.
async fn step(steps: &broadcast::Sender<Step>, step: Step) {
    while steps.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    steps.send(step).ok().expect("a listener");
}

fn path(update: &Arc<X509Update>) -> String {
    update.svids.first().expect("an SVID").id.path().to_owned()
}

/// A clock on which no wait takes time; it only notes how long each should have been.
struct Noted(mpsc::UnboundedSender<Duration>);

impl Clock for Noted {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn sleep(&self, wait: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.0.send(wait).ok();
        Box::pin(tokio::task::yield_now())
    }
}

fn noted() -> (Arc<Noted>, mpsc::UnboundedReceiver<Duration>) {
    let (sender, waits) = mpsc::unbounded_channel();
    (Arc::new(Noted(sender)), waits)
}

/// Runs `test` beside the task of a source.
async fn beside<T>(task: impl Future, test: impl Future<Output = T>) -> T {
    tokio::select! {
        result = test => result,
        _ = async { task.await; std::future::pending::<()>().await } => unreachable!("never ends"),
    }
}

#[tokio::test]
async fn calls_carry_the_security_header() {
    beside_server(async |api, _| {
        let bundles = api.x509_bundles().await.expect("bundles").bundles;
        let other = TrustDomain::parse("other.org").expect("valid");
        assert_eq!((bundles.len(), bundles.get(&other).map(Vec::len)), (2, Some(2)));

        let tokens = api.jwt_svids(&["x".into(), "y".into()], None).await.expect("tokens");
        assert_eq!(tokens.first().map(|svid| svid.token.as_str()), Some("x+y"));

        assert_eq!(api.jwt_bundles().await.expect("bundles").bundles.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_refusal_reads_as_other_clients_print_it() {
    beside_server(async |api, _| {
        let refusal = api.validate_jwt("bad", "x").await.expect_err("refused");

        assert_eq!(
            refusal.to_string(),
            "rpc error: code = InvalidArgument desc = jwtsvid: unable to parse JWT token"
        );
        assert!(refusal.is_final());
    })
    .await;
}

#[tokio::test]
async fn a_source_keeps_its_answer_through_errors_and_reconnects_at_once() {
    beside_server(async |api, steps| {
        let (mut source, watcher) = X509Source::x509(&api);
        let (clock, mut waits) = noted();
        let test = async {
            step(&steps, Step::Answer("/one")).await;
            assert_eq!(path(&source.ready().await.expect("an answer")), "/one");

            step(&steps, Step::End(Status::unavailable("restarting"))).await;
            let kept = source.changed().await.expect("alive").expect("kept");
            assert_eq!(path(&kept), "/one");
            assert!(source.trouble().is_some());

            step(&steps, Step::Answer("/two")).await;
            let next = source.changed().await.expect("alive").expect("an answer");
            assert_eq!(path(&next), "/two");
            assert!(source.trouble().is_none());
            assert!(waits.try_recv().is_err(), "no wait before the first new attempt");
        };
        beside(watcher.run(clock), test).await;
    })
    .await;
}

#[tokio::test]
async fn a_denied_source_withdraws_its_answer() {
    beside_server(async |api, steps| {
        let (mut source, watcher) = X509Source::x509(&api);
        let (clock, _waits) = noted();
        let test = async {
            step(&steps, Step::Answer("/one")).await;
            source.changed().await.expect("alive");

            step(&steps, Step::End(Status::permission_denied("no identity issued"))).await;
            assert!(source.changed().await.expect("alive").is_none());

            step(&steps, Step::Answer("/back")).await;
            assert_eq!(path(&source.ready().await.expect("an answer")), "/back");
        };
        beside(watcher.run(clock), test).await;
    })
    .await;
}

#[tokio::test]
async fn a_source_gives_up_where_calling_again_cannot_help() {
    beside_server(async |api, steps| {
        let (mut source, watcher) = X509Source::x509(&api);
        let (clock, _waits) = noted();

        let (end, ended, ()) = tokio::join!(
            watcher.run(clock),
            source.ready(),
            step(&steps, Step::End(Status::invalid_argument("no"))),
        );

        let refused = |error: &WorkloadError| matches!(error, WorkloadError::Refused(status) if status.code() == Code::InvalidArgument);
        assert!(refused(&end.expect_err("final")));
        assert!(ended.expect_err("no answer").0.is_some_and(|error| refused(&error)));
    })
    .await;
}

#[tokio::test]
async fn waits_grow_while_nobody_listens() {
    let place = Place::new();
    let api = WorkloadApi::at(Address::unix(&place.socket)).expect("a client");
    let (source, watcher) = X509Source::x509(&api);
    let (clock, mut waits) = noted();

    beside(watcher.run(clock), async {
        for expected in (1..=30).chain([30, 30]) {
            assert_eq!(waits.recv().await, Some(Duration::from_secs(expected)));
        }
    })
    .await;

    assert!(source.current().is_none() && source.trouble().is_some());
}

#[tokio::test]
async fn the_task_ends_with_its_last_source() {
    beside_server(async |api, _| {
        let (source, watcher) = JwtSource::new(&api);
        let (clock, _waits) = noted();

        let run = watcher.run(clock);
        let mut bundles = source.bundles().clone();
        let drop_all = async {
            bundles.ready().await.expect("an answer");
            drop((source, bundles));
        };
        let (end, ()) = tokio::join!(run, drop_all);

        assert!(end.is_ok());
    })
    .await;
}
