//! `healthcheck`.

use proto::health::HealthCheckRequest;
use proto::health::health_check_response::ServingStatus;
use proto::health::health_client::HealthClient;

use super::public_flags;
use crate::cli::flags::{Flags, Kind, flag};
use crate::cli::rpc::{self, client};
use crate::cli::{Command, Failure, FlagError, Printer};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "healthcheck",
        about: "Determine agent health status",
        flags: public_flags(&[
            flag("shallow", Kind::Bool, "Perform a less stringent health check"),
            flag("verbose", Kind::Bool, "Print verbose information"),
        ]),
        on_flag_error: FlagError::Once,
        action: check,
    }]
}

fn check(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let verbose = flags.is_on("verbose");
    if verbose {
        printer.out.push_str("Checking agent health...\n");
    }
    let unhealthy = |why: &str| Failure::Bare(format!("Agent is unhealthy: {why}"));
    let socket = rpc::agent_socket(flags).map_err(|why| unhealthy(&why))?;
    rpc::block_on(async {
        let dialed = rpc::dial_public(&socket);
        let request = HealthCheckRequest { service: String::new() };
        let reply = client!(HealthClient<_>, dialed).check(request).await.map_err(|status| {
            if verbose {
                rpc::item_failed(printer, &format!("Failed to check health: {}", dialed.failed(&status)));
            }
            unhealthy("unable to determine health")
        })?;
        let status = reply.into_inner().status();
        if status != ServingStatus::Serving {
            return Err(unhealthy(&format!("agent returned status {:?}", status.as_str_name())));
        }
        printer.out.push_str("Agent is healthy.\n");
        Ok(())
    })
}
