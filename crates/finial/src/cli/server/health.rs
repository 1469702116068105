//! `healthcheck`.

use proto::health::HealthCheckRequest;
use proto::health::health_check_response::ServingStatus;
use proto::health::health_client::HealthClient;

use crate::cli::flags::{Flags, Kind, flag};
use crate::cli::rpc::{self, client, server_flags};
use crate::cli::{Command, Failure, FlagError, Printer};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "healthcheck",
        about: "Determine server health status",
        flags: server_flags(&[
            flag("shallow", Kind::Bool, "Perform a less stringent health check"),
            flag("verbose", Kind::Bool, "Print verbose information"),
        ]),
        on_flag_error: FlagError::Once,
        action: check,
    }]
}

fn check(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let verbose = flags.is_on("verbose");
    let socket = rpc::server_socket(flags)?;
    if verbose {
        printer.out.push_str("Checking server health...\n");
    }
    rpc::block_on(async {
        let dialed = rpc::dial(&socket);
        let request = HealthCheckRequest { service: String::new() };
        let reply = client!(HealthClient<_>, dialed).check(request).await.map_err(|status| {
            if verbose {
                rpc::item_failed(printer, &format!("Failed to check health: {}", dialed.failed(&status)));
            }
            Failure::from("server is unhealthy: unable to determine health")
        })?;
        let status = reply.into_inner().status();
        if status != ServingStatus::Serving {
            return Err(
                format!("server is unhealthy: server returned status {:?}", status.as_str_name()).into()
            );
        }
        printer.out.push_str("Server is healthy.\n");
        Ok(())
    })
}
