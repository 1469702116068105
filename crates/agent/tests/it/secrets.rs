//! Envoy's secret discovery over the public socket.

use std::time::Duration;

use prost::Message;
use proto::sds::core::data_source::Specifier;
use proto::sds::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use proto::sds::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use proto::sds::tls::Secret;
use proto::sds::tls::secret::Type;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::authority::Authority;
use crate::world::{World, federated, own_entry};

const WEB: &str = "spiffe://example.org/web";
const DB: &str = "spiffe://example.org/db";

/// An agent that serves secrets.
async fn world() -> World {
    World::configured(|config| config.disable_sds_api = false).await
}

fn envoy(world: &World) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(world.channel())
}

fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// An open stream.
struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Stream {
    async fn open(world: &World, names: &[&str]) -> Self {
        let (requests, sent) = mpsc::channel(8);
        requests.send(request(names)).await.unwrap();
        let responses = envoy(world).stream_secrets(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    /// The next response, which must be there soon.
    async fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.responses.message());
        Ok(next.await.expect("something comes")?.expect("no end"))
    }

    /// Takes a response, and asks for these from now on.
    async fn accept(&self, response: &DiscoveryResponse, names: &[&str]) {
        let accepted = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            ..request(names)
        };
        self.requests.send(accepted).await.unwrap();
    }

    /// Whether nothing comes: everything that is on its way has come when another call was answered.
    async fn is_silent(&mut self, world: &World) -> bool {
        envoy(world).fetch_secrets(request(&["ROOTCA"])).await.unwrap();
        tokio::time::timeout(Duration::from_millis(100), self.responses.message()).await.is_err()
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    response.resources.iter().map(|any| Secret::decode(any.value.as_slice()).unwrap()).collect()
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    secrets(response).into_iter().map(|secret| secret.name).collect()
}

/// The PEM of the first secret's certificate chain.
fn chain(response: &DiscoveryResponse) -> String {
    let Some(Type::TlsCertificate(certificate)) = secrets(response).remove(0).r#type else {
        panic!("no certificate")
    };
    match certificate.certificate_chain.unwrap().specifier {
        Some(Specifier::InlineBytes(pem)) => String::from_utf8(pem.to_vec()).unwrap(),
        _ => panic!("not inline"),
    }
}

fn unauthorized(names: &str) -> (Code, String) {
    (Code::InvalidArgument, format!("workload is not authorized for the requested identities [{names}]"))
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.unwrap_err();
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn a_stream_is_sent_what_it_asked_for_when_that_changes() {
    let world = world().await;
    world.serve(&[own_entry("a", "/web"), own_entry("b", "/db")]).await;
    let mut stream = Stream::open(&world, &[WEB]).await;
    let first = stream.next().await.unwrap();
    assert_eq!((names(&first), first.version_info.as_str()), (vec![WEB.to_owned()], "1"));
    stream.accept(&first, &[WEB]).await;
    assert!(stream.is_silent(&world).await);

    world.issue(&[own_entry("b", "/db")]).await;
    assert!(stream.is_silent(&world).await);
    world.issue(&[own_entry("a", "/web")]).await;
    let rotated = stream.next().await.unwrap();
    assert_ne!(chain(&rotated), chain(&first));
    assert_ne!((&rotated.version_info, &rotated.nonce), (&first.version_info, &first.nonce));

    stream.accept(&rotated, &[DB, "ROOTCA"]).await;
    let other = stream.next().await.unwrap();
    assert_eq!(names(&other), ["ROOTCA", DB]);
    stream.accept(&rotated, &[WEB]).await;
    assert!(stream.is_silent(&world).await, "a stale request is answered");

    stream.accept(&other, &[DB, "ROOTCA"]).await;
    drop(stream.requests);
    assert!(stream.responses.message().await.unwrap().is_none(), "the stream ends well");
}

#[tokio::test]
async fn bundles_reach_a_stream_when_they_change() {
    let world = world().await;
    let (other, entry) = (Authority::new("other.test"), || own_entry("a", "/web"));
    world.sync(&[federated(entry(), &[&other])], &[other.bundle()]).await;
    world.issue(&[entry()]).await;
    let mut stream = Stream::open(&world, &["ALL"]).await;
    let first = stream.next().await.unwrap();

    world.sync(&[federated(entry(), &[&other])], &[Authority::new("other.test").bundle()]).await;
    let second = stream.next().await.unwrap();

    assert_ne!(secrets(&first), secrets(&second));
    stream.accept(&second, &["spiffe://other.test"]).await;
    assert_eq!(names(&stream.next().await.unwrap()), ["spiffe://other.test"]);
    world.sync(&[entry()], &[]).await;
    assert_eq!(refusal(stream.next().await), unauthorized("\"spiffe://other.test\""));
}

#[tokio::test]
async fn what_is_being_signed_is_waited_for() {
    let world = world().await;
    world.serve(&[own_entry("b", "/db")]).await;
    world.sync(&[own_entry("a", "/web"), own_entry("b", "/db")], &[]).await;
    let mut envoy = envoy(&world);
    let mut stream = Stream::open(&world, &[WEB]).await;
    // Others do not wait for it.
    assert_eq!(names(&envoy.fetch_secrets(request(&[DB])).await.unwrap().into_inner()), [DB]);
    assert_eq!(refusal(envoy.fetch_secrets(request(&["nobody"])).await), unauthorized("\"nobody\""));
    let mut waiting = envoy.clone();
    let issued = async {
        assert!(stream.is_silent(&world).await);
        world.issue(&[own_entry("a", "/web")]).await;
    };

    let (fetched, ()) = futures::join!(waiting.fetch_secrets(request(&[])), issued);

    assert_eq!(names(&stream.next().await.unwrap()), [WEB]);
    let fetched = fetched.unwrap().into_inner();
    assert_eq!(names(&fetched), ["spiffe://example.org", WEB, DB]);
    assert_eq!((fetched.version_info.as_str(), fetched.nonce.as_str()), ("", ""));
}

#[tokio::test]
async fn who_has_no_identity_gets_the_bundle_alone() {
    let world = world().await;
    world.sync(&[], &[]).await;
    let mut envoy = envoy(&world);

    assert_eq!(
        names(&envoy.fetch_secrets(request(&[])).await.unwrap().into_inner()),
        ["spiffe://example.org"]
    );
    assert_eq!(refusal(envoy.fetch_secrets(request(&["default"])).await), unauthorized("\"default\""));
    let mut stream = Stream::open(&world, &["default"]).await;
    assert_eq!(refusal(stream.next().await), unauthorized("\"default\""));
}

#[tokio::test]
async fn a_stream_ends_when_its_identity_goes() {
    let world = world().await;
    world.serve(&[own_entry("a", "/web")]).await;
    let mut stream = Stream::open(&world, &["default"]).await;
    stream.next().await.unwrap();

    world.sync(&[], &[]).await;

    assert_eq!(refusal(stream.next().await), unauthorized("\"default\""));
}

#[tokio::test]
async fn the_agents_own_calls_are_not_limited() {
    let world = World::configured(|config| {
        config.disable_sds_api = false;
        config.experimental.rate_limits.stream_secrets = 1;
        config.experimental.rate_limits.fetch_secrets = 1;
    })
    .await;
    world.serve(&[own_entry("a", "/web")]).await;

    // The process of the tests is the agent's own.
    for _ in 0..4 {
        envoy(&world).fetch_secrets(request(&[])).await.unwrap();
        Stream::open(&world, &[]).await.next().await.unwrap();
    }
}

#[tokio::test]
async fn delta_discovery_is_not_offered() {
    let world = world().await;

    let refused = envoy(&world).delta_secrets(tokio_stream::once(DeltaDiscoveryRequest::default())).await;

    assert_eq!(refusal(refused), (Code::Unimplemented, "Method is not implemented".to_owned()));
}

#[tokio::test]
async fn either_api_is_served_without_the_other() {
    let workload = World::start().await;
    let unknown = "unknown service envoy.service.secret.v3.SecretDiscoveryService".to_owned();
    let refused = envoy(&workload).fetch_secrets(request(&[])).await;
    assert_eq!(refusal(refused), (Code::Unimplemented, unknown));

    let secrets = World::configured(|config| {
        config.disable_sds_api = false;
        config.disable_workload_api = true;
    })
    .await;
    secrets.serve(&[own_entry("a", "/web")]).await;
    assert_eq!(
        names(&envoy(&secrets).fetch_secrets(request(&["default"])).await.unwrap().into_inner()),
        ["default"]
    );
    secrets.client().x509_svids().await.unwrap_err();
}

#[tokio::test]
async fn streams_end_with_the_agent() {
    let world = world().await;
    world.serve(&[own_entry("a", "/web")]).await;
    let mut stream = Stream::open(&world, &["default"]).await;
    stream.next().await.unwrap();

    world.stop();

    assert_eq!(refusal(stream.next().await), (Code::Unavailable, "the agent is stopping".to_owned()));
}

#[tokio::test]
async fn the_server_is_asked_once_before_proxies_are_refused() {
    let world = world().await;
    let denied = |status: &Status| (status.code(), status.message().to_owned());

    let mut asked = 0;
    let mut refusals = Vec::new();
    for _ in 0..3 {
        refusals.push(denied(&envoy(&world).fetch_secrets(request(&[WEB])).await.unwrap_err()));
        asked += usize::from(world.has_looked());
        let mut stream = Stream::open(&world, &[WEB]).await;
        refusals.push(denied(&stream.next().await.unwrap_err()));
        asked += usize::from(world.has_looked());
    }

    assert_eq!(asked, 1);
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    world.serve(&[own_entry("a", "/web")]).await;
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(names(&envoy(&world).fetch_secrets(request(&[WEB])).await.unwrap().into_inner()), [WEB]);
    assert!(!world.has_looked());
}
