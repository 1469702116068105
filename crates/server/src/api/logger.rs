//! `spire.api.server.logger.v1.Logger`: the log level, shown and changed at run time.

use std::sync::Arc;

use proto::spire::server::logger as wire;
use proto::spire::types;
use runtime::log::Level;
use tonic::{Request, Response, Status};

use crate::caller::{Caller, tell};
use crate::context::Context;

/// The service.
pub(crate) struct Logger(Arc<Context>);

impl Logger {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    fn rendered(&self) -> Response<types::Logger> {
        let level = self.0.log.level();
        Response::new(types::Logger {
            current_level: to_wire(level.current()).into(),
            launch_level: to_wire(level.launch()).into(),
        })
    }
}

#[tonic::async_trait]
impl wire::logger_server::Logger for Logger {
    async fn get_logger(
        &self,
        request: Request<wire::GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        tell!(info, &self.0, &Caller::of(&request)?, "GetLogger Called");
        Ok(self.rendered())
    }

    async fn set_log_level(
        &self,
        request: Request<wire::SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let caller = Caller::of(&request)?;
        let level = from_wire(request.get_ref().new_level)?;
        tell!(info, &self.0, &caller, new_log_level = level.name(), "SetLogLevel Called");
        self.0.log.level().set(level);
        Ok(self.rendered())
    }

    async fn reset_log_level(
        &self,
        request: Request<wire::ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let caller = Caller::of(&request)?;
        let launch = self.0.log.level().launch();
        tell!(info, &self.0, &caller, launch_log_level = launch.name(), "ResetLogLevel Called");
        self.0.log.level().reset();
        Ok(self.rendered())
    }
}

fn from_wire(number: i32) -> Result<Level, Status> {
    match types::LogLevel::try_from(number) {
        Ok(types::LogLevel::Unspecified) => {
            Err(Status::invalid_argument("newLevel value cannot be LogLevel_UNSPECIFIED"))
        }
        Ok(types::LogLevel::Panic) => Ok(Level::Panic),
        Ok(types::LogLevel::Fatal) => Ok(Level::Fatal),
        Ok(types::LogLevel::Error) => Ok(Level::Error),
        Ok(types::LogLevel::Warn) => Ok(Level::Warning),
        Ok(types::LogLevel::Info) => Ok(Level::Info),
        Ok(types::LogLevel::Debug) => Ok(Level::Debug),
        Ok(types::LogLevel::Trace) => Ok(Level::Trace),
        Err(_) => Err(Status::invalid_argument("unsupported log level")),
    }
}

const fn to_wire(level: Level) -> types::LogLevel {
    match level {
        Level::Panic => types::LogLevel::Panic,
        Level::Fatal => types::LogLevel::Fatal,
        Level::Error => types::LogLevel::Error,
        Level::Warning => types::LogLevel::Warn,
        Level::Info => types::LogLevel::Info,
        Level::Debug => types::LogLevel::Debug,
        Level::Trace => types::LogLevel::Trace,
    }
}
