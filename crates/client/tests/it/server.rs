//! The server's APIs over its socket, and how calls fail.

use std::future::pending;
use std::time::Duration;

use client::{Address, DialError, Dialer, ServerClients};
use proto::health::health_check_response::ServingStatus;
use proto::health::health_server::{Health, HealthServer};
use proto::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use proto::spire::server::agent::CountAgentsRequest;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use crate::Place;

pub(crate) struct StandIn;

pub(crate) type Answers = tokio_stream::Pending<Result<HealthCheckResponse, Status>>;

#[tonic::async_trait]
impl Health for StandIn {
    type WatchStream = Answers;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if request.get_ref().service == "slow" {
            pending::<()>().await;
        }
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        // More than the test takes.
        let statuses = (0..1000).map(|n| (format!("service-{n}"), HealthCheckResponse::default())).collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Answers>, Status> {
        Ok(Response::new(tokio_stream::pending()))
    }
}

async fn beside_server<T>(test: impl AsyncFnOnce(Dialer) -> T) -> T {
    let place = Place::new();
    let server =
        Server::builder().add_service(HealthServer::new(StandIn)).serve_with_incoming(place.listen());

    tokio::select! {
        result = test(Dialer::new(Address::unix(&place.socket))) => result,
        end = server => unreachable!("the server ended: {end:?}"),
    }
}

#[tokio::test]
async fn a_server_answers_over_its_socket() {
    beside_server(async |dialer| {
        let server = ServerClients::dial(&dialer).expect("clients");

        let answer = server.health().check(HealthCheckRequest::default()).await.expect("an answer");

        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        let refusal = server.agent().count_agents(CountAgentsRequest::default()).await;
        assert_eq!(refusal.expect_err("not served").code(), Code::Unimplemented);
    })
    .await;
}

#[tokio::test]
async fn a_call_without_answer_ends_in_time() {
    beside_server(async |dialer| {
        let dialer = dialer.with_call_timeout(Duration::from_millis(50));
        let server = ServerClients::dial(&dialer).expect("clients");

        let slow = HealthCheckRequest { service: "slow".into() };
        let refusal = server.health().check(slow).await.expect_err("too late");

        assert!(matches!(refusal.code(), Code::Cancelled | Code::DeadlineExceeded), "{refusal}");
    })
    .await;
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused() {
    beside_server(async |dialer| {
        let server = ServerClients::dial(&dialer).expect("clients").with_receive_limit(1024);

        let refusal = server.health().list(HealthListRequest {}).await.expect_err("too large");

        assert_eq!(refusal.code(), Code::OutOfRange);
    })
    .await;
}

#[tokio::test]
async fn a_missing_socket_is_named() {
    let place = Place::new();

    let refusal = Dialer::new(Address::unix(&place.socket)).connect().await.expect_err("nobody listens");

    assert!(matches!(refusal, DialError::Connect { .. }));
    assert_eq!(refusal.to_string(), format!("cannot connect to unix://{}", place.socket.display()));
}
