//! `localauthority x509|jwt show|prepare|activate|taint|revoke` and `upstreamauthority taint|revoke`.

use proto::spire::server::localauthority as api;
use proto::spire::server::localauthority::AuthorityState;
use proto::spire::server::localauthority::local_authority_client::LocalAuthorityClient;

use crate::cli::duration::format_time;
use crate::cli::flags::{Flag, Flags, Kind, Output, flag};
use crate::cli::rpc::{self, client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, json};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let command = |name, about, flags: &[Flag], action| Command {
        name,
        about,
        flags: server_flags_with_output(flags),
        on_flag_error: FlagError::Once,
        action,
    };
    let id = [flag("authorityID", Kind::Text, "The authority ID")];
    let key = [flag("subjectKeyID", Kind::Text, "The Subject Key ID of the upstream authority")];
    vec![
        command("localauthority x509 show", "Show the local X.509 authorities", &[], x509_show),
        command("localauthority x509 prepare", "Prepare a new X.509 authority", &[], x509_prepare),
        command("localauthority x509 activate", "Activate the prepared X.509 authority", &id, x509_activate),
        command("localauthority x509 taint", "Taint the old X.509 authority", &id, x509_taint),
        command("localauthority x509 revoke", "Revoke the old X.509 authority", &id, x509_revoke),
        command("localauthority jwt show", "Show the local JWT authorities", &[], jwt_show),
        command("localauthority jwt prepare", "Prepare a new JWT authority", &[], jwt_prepare),
        command("localauthority jwt activate", "Activate the prepared JWT authority", &id, jwt_activate),
        command("localauthority jwt taint", "Taint the old JWT authority", &id, jwt_taint),
        command("localauthority jwt revoke", "Revoke the old JWT authority", &id, jwt_revoke),
        command("upstreamauthority taint", "Taint an upstream X.509 authority", &key, upstream_taint),
        command("upstreamauthority revoke", "Revoke an upstream X.509 authority", &key, upstream_revoke),
    ]
}

/// What differs between the families in print.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    upstream: bool,
}

const X509: Family = Family { name: "X.509", upstream: true };
const JWT: Family = Family { name: "JWT", upstream: false };

/// A command that names an authority (or none) and gets one back.
macro_rules! change {
    ($action:ident, $family:expr, $verb:literal, $past:literal, $call:ident, $reply:literal, $field:ident, $request:expr) => {
        fn $action(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
            rpc::server_socket(flags)?;
            let make: fn(&Flags) -> Result<_, Failure> = $request;
            let request = make(flags)?;
            with_server(flags, |dialed| async move {
                let prefix = format!(concat!("could not ", $verb, " {} authority: "), $family.name);
                let reply = client!(LocalAuthorityClient<_>, dialed).$call(request).await;
                let reply = reply.map_err(|status| dialed.error(&prefix, &status))?.into_inner();
                printer.out = match flags.output() {
                    Output::Json => json::line(&json::tree(
                        concat!("spire.api.server.localauthority.v1.", $reply),
                        &reply,
                    )?),
                    Output::Pretty => {
                        let state = reply.$field.ok_or("the server sent no authority")?;
                        format!(concat!($past, " {} authority:\n{}"), $family.name, lines($family, &state))
                    }
                };
                Ok(())
            })
        }
    };
}

/// A command that shows the three states.
macro_rules! show {
    ($action:ident, $family:expr, $prefix:literal, $call:ident, $request:expr, $reply:literal) => {
        fn $action(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
            with_server(flags, |dialed| async move {
                let reply = client!(LocalAuthorityClient<_>, dialed).$call($request).await;
                let reply = reply.map_err(|status| dialed.error($prefix, &status))?.into_inner();
                printer.out = match flags.output() {
                    Output::Json => json::line(&json::tree(
                        concat!("spire.api.server.localauthority.v1.", $reply),
                        &reply,
                    )?),
                    Output::Pretty => {
                        let states =
                            [("Active", reply.active), ("Prepared", reply.prepared), ("Old", reply.old)];
                        states.map(|(title, state)| section($family, title, state.as_ref())).join("\n")
                    }
                };
                Ok(())
            })
        }
    };
}

show!(
    x509_show,
    X509,
    "could not get X.509 authorities: ",
    get_x509_authority_state,
    api::GetX509AuthorityStateRequest {},
    "GetX509AuthorityStateResponse"
);
show!(
    jwt_show,
    JWT,
    // SPIRE's command has none.
    "",
    get_jwt_authority_state,
    api::GetJwtAuthorityStateRequest {},
    "GetJWTAuthorityStateResponse"
);
change!(
    x509_prepare,
    X509,
    "prepare",
    "Prepared",
    prepare_x509_authority,
    "PrepareX509AuthorityResponse",
    prepared_authority,
    |_| { Ok(api::PrepareX509AuthorityRequest {}) }
);
change!(
    x509_activate,
    X509,
    "activate",
    "Activated",
    activate_x509_authority,
    "ActivateX509AuthorityResponse",
    activated_authority,
    |flags| { Ok(api::ActivateX509AuthorityRequest { authority_id: authority_id(flags)? }) }
);
change!(
    x509_taint,
    X509,
    "taint",
    "Tainted",
    taint_x509_authority,
    "TaintX509AuthorityResponse",
    tainted_authority,
    |flags| { Ok(api::TaintX509AuthorityRequest { authority_id: authority_id(flags)? }) }
);
change!(
    x509_revoke,
    X509,
    "revoke",
    "Revoked",
    revoke_x509_authority,
    "RevokeX509AuthorityResponse",
    revoked_authority,
    |flags| { Ok(api::RevokeX509AuthorityRequest { authority_id: authority_id(flags)? }) }
);
change!(
    jwt_prepare,
    JWT,
    "prepare",
    "Prepared",
    prepare_jwt_authority,
    "PrepareJWTAuthorityResponse",
    prepared_authority,
    |_| { Ok(api::PrepareJwtAuthorityRequest {}) }
);
change!(
    jwt_activate,
    JWT,
    "activate",
    "Activated",
    activate_jwt_authority,
    "ActivateJWTAuthorityResponse",
    activated_authority,
    |flags| { Ok(api::ActivateJwtAuthorityRequest { authority_id: authority_id(flags)? }) }
);
change!(
    jwt_taint,
    JWT,
    "taint",
    "Tainted",
    taint_jwt_authority,
    "TaintJWTAuthorityResponse",
    tainted_authority,
    |flags| { Ok(api::TaintJwtAuthorityRequest { authority_id: authority_id(flags)? }) }
);
change!(
    jwt_revoke,
    JWT,
    "revoke",
    "Revoked",
    revoke_jwt_authority,
    "RevokeJWTAuthorityResponse",
    revoked_authority,
    |flags| { Ok(api::RevokeJwtAuthorityRequest { authority_id: authority_id(flags)? }) }
);

fn authority_id(flags: &Flags) -> Result<String, Failure> {
    match flags.text("authorityID") {
        "" => Err("an authority ID is required".into()),
        id => Ok(id.to_owned()),
    }
}

fn section(family: Family, title: &str, state: Option<&AuthorityState>) -> String {
    let body = state.filter(|state| !state.authority_id.is_empty()).map_or_else(
        || format!("  No {} {} authority found\n", title.to_lowercase(), family.name),
        |state| lines(family, state),
    );
    format!("{title} {} authority:\n{body}", family.name)
}

fn lines(family: Family, state: &AuthorityState) -> String {
    let mut text =
        format!("  Authority ID: {}\n  Expires at: {}\n", state.authority_id, format_time(state.expires_at));
    if family.upstream {
        text.push_str(&match state.upstream_authority_subject_key_id.as_str() {
            "" => "  Upstream authority ID: No upstream authority\n".to_owned(),
            id => format!("  Upstream authority Subject Key ID: {id}\n"),
        });
    }
    text
}

fn upstream_taint(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let subject_key_id = subject_key_id(flags)?;
    with_server(flags, |dialed| async move {
        let request = api::TaintX509UpstreamAuthorityRequest { subject_key_id };
        let reply = client!(LocalAuthorityClient<_>, dialed)
            .taint_x509_upstream_authority(request)
            .await
            .map_err(|status| dialed.error("could not taint X.509 upstream authority: ", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree(
                "spire.api.server.localauthority.v1.TaintX509UpstreamAuthorityResponse",
                &reply,
            )?),
            Output::Pretty => upstream("Tainted", &reply.upstream_authority_subject_key_id),
        };
        Ok(())
    })
}

fn upstream_revoke(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let subject_key_id = subject_key_id(flags)?;
    with_server(flags, |dialed| async move {
        let request = api::RevokeX509UpstreamAuthorityRequest { subject_key_id };
        let reply = client!(LocalAuthorityClient<_>, dialed)
            .revoke_x509_upstream_authority(request)
            .await
            .map_err(|status| dialed.error("could not revoke X.509 upstream authority: ", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree(
                "spire.api.server.localauthority.v1.RevokeX509UpstreamAuthorityResponse",
                &reply,
            )?),
            Output::Pretty => upstream("Revoked", &reply.upstream_authority_subject_key_id),
        };
        Ok(())
    })
}

fn upstream(done: &str, id: &str) -> String {
    format!("{done} X.509 upstream authority:\n  Subject Key ID: {id}\n")
}

fn subject_key_id(flags: &Flags) -> Result<String, Failure> {
    rpc::server_socket(flags)?;
    match flags.text("subjectKeyID") {
        "" => Err("the Subject Key ID of the X.509 upstream authority is required".into()),
        id => Ok(id.to_owned()),
    }
}
