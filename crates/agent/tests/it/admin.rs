//! The admin socket: insight and the log level.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use proto::spire::agent::debug::GetInfoRequest;
use proto::spire::agent::debug::debug_client::DebugClient;
use proto::spire::agent::logger::logger_client::LoggerClient;
use proto::spire::agent::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use proto::spire::types::LogLevel;
use proto::workload::X509svidRequest;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::Code;

use crate::authority::NOW;
use crate::world::{World, own_entry};

#[tokio::test]
async fn debug_tells_what_is_held_at_most_five_seconds_late() {
    let world = World::start().await;
    let mut debug = DebugClient::new(world.admin());
    world.clock.advance(Duration::from_secs(90));

    let before = debug.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    world.serve(&[own_entry("a", "/a")]).await;
    world.client().jwt_svids(&["x".to_owned()], None).await.unwrap();
    let cached = debug.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    world.clock.advance(Duration::from_secs(5));
    let after = debug.get_info(GetInfoRequest {}).await.unwrap().into_inner();

    let chain: Vec<(String, &str)> = before
        .svid_chain
        .iter()
        .map(|one| (one.id.as_ref().map(|id| id.path.clone()).unwrap(), one.subject.as_str()))
        .collect();
    let agent = "/spire/agent/join_token/1".to_owned();
    assert_eq!(chain, [(agent, "O=SPIRE,C=US"), (String::new(), "O=SPIFFE,C=US")]);
    assert_eq!(before.svid_chain[0].expires_at, NOW.0 + 3600);
    assert_eq!((before.uptime, before.last_sync_success), (90, 0));
    assert_eq!(cached, before);
    assert_eq!((after.uptime, after.last_sync_success), (95, NOW.0));
    assert_eq!((after.cached_x509_svids_count, after.cached_jwt_svids_count), (1, 1));
}

#[tokio::test]
async fn debug_shows_the_chain_also_when_its_authority_is_gone() {
    let world = World::start().await;
    let mut bundle = world.own.bundle();
    bundle.x509_authorities.clear();
    world.sync_with(&[], bundle, &[]).await;
    world.clock.advance(Duration::from_secs(5));

    let info = DebugClient::new(world.admin()).get_info(GetInfoRequest {}).await.unwrap().into_inner();

    assert_eq!(info.svid_chain.len(), 1);
}

#[tokio::test]
async fn the_log_level_is_told_changed_and_reset() {
    let world = World::start().await;
    let mut logger = LoggerClient::new(world.admin());
    let levels = |answer: tonic::Response<proto::spire::types::Logger>| {
        let logger = answer.into_inner();
        (logger.current_level(), logger.launch_level())
    };

    let told = levels(logger.get_logger(GetLoggerRequest {}).await.unwrap());
    assert_eq!(told, (LogLevel::Debug, LogLevel::Debug));
    for level in
        [LogLevel::Panic, LogLevel::Fatal, LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Trace]
    {
        let request = SetLogLevelRequest { new_level: level.into() };
        assert_eq!(levels(logger.set_log_level(request).await.unwrap()), (level, LogLevel::Debug));
    }
    let told = levels(logger.reset_log_level(ResetLogLevelRequest {}).await.unwrap());
    assert_eq!(told, (LogLevel::Debug, LogLevel::Debug));

    for (new_level, text) in
        [(0, "newLevel value cannot be LogLevel_UNSPECIFIED"), (99, "unsupported log level")]
    {
        let refused = logger.set_log_level(SetLogLevelRequest { new_level }).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, text));
    }
}

#[tokio::test]
async fn the_admin_socket_serves_nothing_else() {
    let world = World::start().await;
    let refused =
        SpiffeWorkloadApiClient::new(world.admin()).fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unimplemented, "unknown service SpiffeWorkloadAPI")
    );
}

#[tokio::test]
async fn w19_sockets_have_their_modes_and_go_with_the_agent() {
    let world = World::start().await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let (public, admin) = (world.socket(), world.context.config.admin_socket_path.clone().unwrap());

    assert_eq!((mode(&public), mode(&admin)), (0o777, 0o770));
    assert_eq!((mode(public.parent().unwrap()), mode(admin.parent().unwrap())), (0o755, 0o750));
    assert!(public.starts_with(world.directory()));

    world.ended().await;
    assert!(!public.exists() && !admin.exists());
}

#[tokio::test]
async fn l06_debug_and_logger_are_not_for_workloads() {
    let world = World::start().await;

    let debug = DebugClient::new(world.channel()).get_info(GetInfoRequest {}).await.unwrap_err();
    let logger = LoggerClient::new(world.channel()).get_logger(GetLoggerRequest {}).await.unwrap_err();

    assert_eq!(debug.message(), "unknown service spire.agent.debug.v1.Debug");
    assert_eq!(logger.message(), "unknown service spire.api.agent.logger.v1.Logger");
}
