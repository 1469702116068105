//! What the public socket serves beside the Workload API, and what it does not.

use std::time::Duration;

use futures::StreamExt;
use proto::health::health_check_response::ServingStatus;
use proto::health::health_client::HealthClient;
use proto::health::{HealthCheckRequest, HealthListRequest};
use proto::workload::X509svidRequest;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_reflection::pb::v1alpha;

use crate::attestation::failing;
use crate::world::World;

async fn serving(world: &World) -> ServingStatus {
    let request = HealthCheckRequest::default();
    HealthClient::new(world.channel()).check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn health_is_whether_workloads_would_be_answered() {
    assert_eq!(serving(&World::start().await).await, ServingStatus::Serving);
    assert_eq!(
        serving(&World::attested_by(vec![failing("unix")], |_| {}).await).await,
        ServingStatus::NotServing
    );
    // Where workloads are not served there is nothing to ask.
    let disabled = World::attested_by(vec![failing("unix")], |config| {
        config.disable_workload_api = true;
        config.disable_sds_api = false;
    })
    .await;
    assert_eq!(serving(&disabled).await, ServingStatus::Serving);
}

#[tokio::test]
async fn health_of_single_services_is_not_told() {
    let world = World::start().await;
    let mut health = HealthClient::new(world.channel());

    let check = health.check(HealthCheckRequest { service: "x".to_owned() }).await.unwrap_err();
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    let list = health.list(HealthListRequest {}).await.unwrap_err();

    assert_eq!(
        (check.code(), check.message()),
        (Code::InvalidArgument, "per-service health is not supported")
    );
    assert_eq!((watch.code(), watch.message()), (Code::Unimplemented, "method Watch not implemented"));
    assert_eq!((list.code(), list.message()), (Code::Unimplemented, "method List not implemented"));
}

#[tokio::test]
async fn the_health_check_follows_what_a_probe_finds() {
    let (good, bad) = (World::start().await, World::attested_by(vec![failing("unix")], |_| {}).await);
    // A call that was answered was made after the first probe had begun; the second is by the clock.
    serving(&good).await;
    serving(&bad).await;
    bad.clock.advance(Duration::from_secs(1));
    serving(&bad).await;

    assert!(good.context.health.ready().is_good);
    let report = bad.context.health.ready();
    assert!(!report.is_good);
    assert_eq!(report.json, "{\"agent\":{\"make_new_x509_err\":\"workload api is unavailable\"}}\n");
}

/// Calls a method that no client was generated for.
async fn call(world: &World, path: &'static str) -> (Code, String) {
    let mut grpc = tonic::client::Grpc::new(world.channel());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<X509svidRequest, X509svidRequest>::default();
    let path = PathAndQuery::from_static(path);
    let status = grpc.unary(Request::new(X509svidRequest {}), path, codec).await.unwrap_err();
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn what_is_not_served_is_refused_as_spire_refuses_it() {
    let world = World::start().await;
    let unimplemented = |text: &str| (Code::Unimplemented, text.to_owned());

    assert_eq!(call(&world, "/x").await, unimplemented("malformed method name: \"/x\""));
    let sds = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
    let unknown = "unknown service envoy.service.secret.v3.SecretDiscoveryService";
    assert_eq!(call(&world, sds).await, unimplemented(unknown));
    let unknown = "unknown method Fetch for service SpiffeWorkloadAPI";
    assert_eq!(call(&world, "/SpiffeWorkloadAPI/Fetch").await, unimplemented(unknown));
}

#[tokio::test]
async fn a_disabled_workload_api_is_absent() {
    let world = World::configured(|config| {
        config.disable_workload_api = true;
        config.disable_sds_api = false;
    })
    .await;

    let unknown = (Code::Unimplemented, "unknown service SpiffeWorkloadAPI".to_owned());
    assert_eq!(call(&world, "/SpiffeWorkloadAPI/FetchX509SVID").await, unknown);
}

#[tokio::test]
async fn without_any_api_for_workloads_there_is_no_socket() {
    let world = World::configured(|config| config.disable_workload_api = true).await;

    assert!(!world.socket().exists());
}

async fn reflected(world: &World, requests: &[MessageRequest]) -> Vec<MessageResponse> {
    let requests: Vec<ServerReflectionRequest> = requests
        .iter()
        .map(|request| ServerReflectionRequest { host: "h".into(), message_request: Some(request.clone()) })
        .collect();
    let asked = requests.clone();
    let answers = ServerReflectionClient::new(world.channel())
        .server_reflection_info(futures::stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<ServerReflectionResponse> = answers.map(Result::unwrap).collect().await;
    for (answer, request) in answers.iter().zip(&asked) {
        assert_eq!((answer.original_request.as_ref(), answer.valid_host.as_str()), (Some(request), "h"));
    }
    answers.into_iter().filter_map(|answer| answer.message_response).collect()
}

#[tokio::test]
async fn reflection_lists_what_is_served_and_describes_it() {
    let world = World::start().await;

    let answers = reflected(
        &world,
        &[
            MessageRequest::ListServices(String::new()),
            MessageRequest::FileContainingSymbol("SpiffeWorkloadAPI".to_owned()),
            MessageRequest::FileByFilename("no.proto".to_owned()),
            MessageRequest::FileContainingSymbol("grpc.health.v1.Health".to_owned()),
            MessageRequest::AllExtensionNumbersOfType("X509SVID".to_owned()),
            MessageRequest::AllExtensionNumbersOfType(".X509SVID".to_owned()),
        ],
    )
    .await;

    let [
        MessageResponse::ListServicesResponse(list),
        MessageResponse::FileDescriptorResponse(workload),
        MessageResponse::ErrorResponse(missing),
        MessageResponse::FileDescriptorResponse(_),
        MessageResponse::AllExtensionNumbersResponse(extensions),
        MessageResponse::ErrorResponse(_),
    ] = answers.as_slice()
    else {
        panic!("{answers:?}");
    };
    let services: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(
        services,
        [
            "SpiffeWorkloadAPI",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
    );
    assert_eq!(workload.file_descriptor_proto.len(), 2);
    assert_eq!((missing.error_code, missing.error_message.as_str()), (5, "proto: not found"));
    assert_eq!((extensions.base_type_name.as_str(), extensions.extension_number.len()), ("X509SVID", 0));
}

#[tokio::test]
async fn older_tools_find_the_older_reflection() {
    let world = World::start().await;
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };

    let mut answers = v1alpha::server_reflection_client::ServerReflectionClient::new(world.channel())
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();

    let answer = answers.message().await.unwrap().unwrap();
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("{answer:?}");
    };
    assert_eq!(list.service.len(), 4);
}

#[tokio::test]
async fn an_oversized_request_is_refused_and_the_connection_lives() {
    let world = World::start().await;
    let mut grpc = tonic::client::Grpc::new(world.channel());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<proto::workload::JwtsvidRequest, X509svidRequest>::default();
    let long = "x".repeat(5 << 20);
    let mut request =
        Request::new(proto::workload::JwtsvidRequest { audience: vec![long], ..Default::default() });
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());

    let path = PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchJWTSVID");
    let refused = grpc.unary(request, path, codec).await.unwrap_err();

    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().starts_with("grpc: received message larger than max ("), "{refused:?}");
    assert_eq!(serving(&world).await, ServingStatus::Serving);
}
