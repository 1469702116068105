//! `spire.api.agent.logger.v1.Logger`: the level of the log, changed while the agent runs.

use std::sync::Arc;

use proto::raw::{self, Encoded};
use proto::spire::agent::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use proto::spire::types::{self, LogLevel};
use runtime::log::Level;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tracing::{error, info};

use super::route::Service;
use crate::context::Context;

/// The service and its methods.
pub(super) const SERVICE: Service = Service {
    name: "spire.api.agent.logger.v1.Logger",
    methods: &["GetLogger", "SetLogLevel", "ResetLogLevel"],
};

/// The service.
pub(super) struct LoggerApi {
    context: Arc<Context>,
}

impl LoggerApi {
    pub(super) fn new(context: Arc<Context>) -> Self {
        info!(launch_log_level = %context.log.level().launch(), "Logger service configured");
        Self { context }
    }

    /// Answers a call of one of [`SERVICE`]'s methods.
    pub(super) async fn answer(&self, method: &str, request: http::Request<Body>) -> http::Response<Body> {
        let level = self.context.log.level();
        match method {
            "GetLogger" => {
                raw::unary(request, |_: Request<GetLoggerRequest>| async {
                    info!(method = "GetLogger", service = SHORT_NAME, "GetLogger Called");
                    Ok(Response::new(self.logger()))
                })
                .await
            }
            "SetLogLevel" => {
                raw::unary(request, |request: Request<SetLogLevelRequest>| async move {
                    let new = asked_for(request.get_ref().new_level).map_err(|why| {
                        error!(method = "SetLogLevel", service = SHORT_NAME, "Invalid argument: {why}");
                        Status::invalid_argument(why)
                    })?;
                    info!(method = "SetLogLevel", new_log_level = %new, service = SHORT_NAME, "SetLogLevel Called");
                    level.set(new);
                    Ok(Response::new(self.logger()))
                })
                .await
            }
            _ => {
                raw::unary(request, |_: Request<ResetLogLevelRequest>| async {
                    let launch_log_level = level.launch();
                    info!(%launch_log_level, method = "ResetLogLevel", service = SHORT_NAME, "ResetLogLevel Called");
                    level.reset();
                    Ok(Response::new(self.logger()))
                })
                .await
            }
        }
    }

    fn logger(&self) -> Encoded {
        let level = self.context.log.level();
        Encoded::of(&types::Logger {
            current_level: on_wire(level.current()).into(),
            launch_level: on_wire(level.launch()).into(),
        })
    }
}

fn asked_for(level: i32) -> Result<Level, &'static str> {
    Ok(match LogLevel::try_from(level) {
        Ok(LogLevel::Unspecified) => return Err("newLevel value cannot be LogLevel_UNSPECIFIED"),
        Ok(LogLevel::Panic) => Level::Panic,
        Ok(LogLevel::Fatal) => Level::Fatal,
        Ok(LogLevel::Error) => Level::Error,
        Ok(LogLevel::Warn) => Level::Warning,
        Ok(LogLevel::Info) => Level::Info,
        Ok(LogLevel::Debug) => Level::Debug,
        Ok(LogLevel::Trace) => Level::Trace,
        Err(_) => return Err("unsupported log level"),
    })
}

const fn on_wire(level: Level) -> LogLevel {
    match level {
        Level::Panic => LogLevel::Panic,
        Level::Fatal => LogLevel::Fatal,
        Level::Error => LogLevel::Error,
        Level::Warning => LogLevel::Warn,
        Level::Info => LogLevel::Info,
        Level::Debug => LogLevel::Debug,
        Level::Trace => LogLevel::Trace,
    }
}

/// The service as the log names it.
const SHORT_NAME: &str = "Logger";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_the_wire() {
        for number in 1..=7 {
            assert_eq!(i32::from(on_wire(asked_for(number).unwrap())), number);
        }
        assert_eq!(asked_for(0), Err("newLevel value cannot be LogLevel_UNSPECIFIED"));
        assert_eq!(asked_for(8), Err("unsupported log level"));
    }
}
