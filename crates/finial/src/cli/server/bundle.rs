//! `bundle count`, `show`, `list`, `set`, `delete`.

use proto::spire::server::bundle::batch_delete_federated_bundle_request::Mode;
use proto::spire::server::bundle::bundle_client::BundleClient;
use proto::spire::server::bundle::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, CountBundlesRequest, GetBundleRequest,
    GetFederatedBundleRequest, ListFederatedBundlesRequest, ListFederatedBundlesResponse,
};
use proto::spire::types;
use spiffe::quote::quoted;
use spiffe::{Bundle, JwtAuthority, TrustDomain, UnixSecs, X509Authority};

use crate::cli::flags::{Flag, Flags, Kind, Output, flag, flag_or};
use crate::cli::rpc::{self, client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, data, json, print};

/// Bundles asked for at a time.
const PAGE_SIZE: i32 = 1000;

const FORMAT: Flag = flag_or("format", Kind::Text, "pem", "The format of the bundle: pem or spiffe");

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let command = |name, about, flags: &[Flag], action| Command {
        name,
        about,
        flags: server_flags_with_output(flags),
        on_flag_error: FlagError::Once,
        action,
    };
    let id = flag("id", Kind::Text, "SPIFFE ID of the trust domain");
    let path = flag("path", Kind::Text, "Path to the bundle data; stdin if not set");
    let mode = flag_or(
        "mode",
        Kind::Text,
        "restrict",
        "What happens to entries that federate with it: restrict, delete, dissociate",
    );
    vec![
        command("bundle count", "Count bundles", &[], count),
        command("bundle show", "Print the server's trust bundle", &[FORMAT], show),
        command("bundle list", "List federated bundles", &[id, FORMAT], list),
        command("bundle set", "Create or update a federated bundle", &[id, path, FORMAT], set),
        command("bundle delete", "Delete a federated bundle", &[id, mode], delete),
    ]
}

/// How bundles are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Pem,
    Spiffe,
}

impl Format {
    fn of(flags: &Flags) -> Result<Self, String> {
        match flags.text("format").to_lowercase().as_str() {
            "pem" | "" => Ok(Self::Pem),
            "spiffe" => Ok(Self::Spiffe),
            other => Err(format!("invalid format: {}", quoted(other))),
        }
    }
}

fn count(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    with_server(flags, |dialed| async move {
        let reply = client!(BundleClient<_>, dialed).count_bundles(CountBundlesRequest {}).await;
        let reply = reply.map_err(|status| dialed.error("", &status))?.into_inner();
        printer.out = match flags.output() {
            Output::Json => {
                json::line(&json::tree("spire.api.server.bundle.v1.CountBundlesResponse", &reply)?)
            }
            Output::Pretty => {
                let count = usize::try_from(reply.count).unwrap_or(0);
                print::counted(count, "bundle", "bundles") + "\n"
            }
        };
        Ok(())
    })
}

fn show(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    with_server(flags, |dialed| async move {
        let reply = client!(BundleClient<_>, dialed).get_bundle(GetBundleRequest { output_mask: None }).await;
        let bundle = reply.map_err(|status| dialed.error("", &status))?.into_inner();
        print_one(flags, printer, &bundle)
    })
}

fn list(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    let id = flags.text("id").to_owned();
    with_server(flags, |dialed| async move {
        if !id.is_empty() {
            let request = GetFederatedBundleRequest { trust_domain: id, output_mask: None };
            let reply = client!(BundleClient<_>, dialed).get_federated_bundle(request).await;
            let bundle = reply.map_err(|status| dialed.error("", &status))?.into_inner();
            return print_one(flags, printer, &bundle);
        }
        let mut bundles = Vec::new();
        let mut request = ListFederatedBundlesRequest { page_size: PAGE_SIZE, ..Default::default() };
        loop {
            let reply = client!(BundleClient<_>, dialed).list_federated_bundles(request.clone()).await;
            let reply = reply.map_err(|status| dialed.error("", &status))?.into_inner();
            bundles.extend(reply.bundles);
            if reply.next_page_token.is_empty() {
                break;
            }
            request.page_token = reply.next_page_token;
        }
        printer.out = match flags.output() {
            Output::Json => {
                let reply = ListFederatedBundlesResponse { bundles, next_page_token: String::new() };
                json::line(&json::tree("spire.api.server.bundle.v1.ListFederatedBundlesResponse", &reply)?)
            }
            Output::Pretty => {
                let stars = "*".repeat(40);
                let blocks: Result<Vec<String>, String> = bundles
                    .iter()
                    .map(|bundle| {
                        let text = written(bundle, Format::of(flags)?)?;
                        Ok(format!("{stars}\n* {}\n{stars}\n{text}", bundle.trust_domain))
                    })
                    .collect();
                blocks?.join("\n")
            }
        };
        Ok(())
    })
}

fn set(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    if flags.text("id").is_empty() {
        return Err("id flag is required".into());
    }
    let format = Format::of(flags)?;
    let data = match flags.text("path") {
        "" => rpc::read_input("-"),
        path => rpc::read_file(path),
    };
    let data = data.map_err(|why| format!("unable to load bundle data: {why}"))?;
    let bundle = requested(flags.text("id"), format, &data)?;
    with_server(flags, |dialed| async move {
        let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
        let reply = client!(BundleClient<_>, dialed).batch_set_federated_bundle(request).await;
        let reply =
            reply.map_err(|status| dialed.error("failed to set federated bundle: ", &status))?.into_inner();
        if flags.output() == Output::Json {
            let tree = json::tree("spire.api.server.bundle.v1.BatchSetFederatedBundleResponse", &reply)?;
            printer.out = json::line(&tree);
            return Ok(());
        }
        let status = reply.results.into_iter().next().and_then(|result| result.status).unwrap_or_default();
        if status.code != 0 {
            return Err(format!("failed to set federated bundle: {}", status.message).into());
        }
        printer.out = "bundle set.\n".to_owned();
        Ok(())
    })
}

fn delete(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    let id = flags.text("id").to_owned();
    if id.is_empty() {
        return Err("id is required".into());
    }
    let mode = deletion_mode(flags.text("mode"))?;
    with_server(flags, |dialed| async move {
        let request = BatchDeleteFederatedBundleRequest { trust_domains: vec![id], mode: mode.into() };
        let reply = client!(BundleClient<_>, dialed).batch_delete_federated_bundle(request).await;
        let reply = reply
            .map_err(|status| dialed.error("failed to delete federated bundle: ", &status))?
            .into_inner();
        if flags.output() == Output::Json {
            let tree = json::tree("spire.api.server.bundle.v1.BatchDeleteFederatedBundleResponse", &reply)?;
            printer.out = json::line(&tree);
            return Ok(());
        }
        let result = reply.results.into_iter().next().unwrap_or_default();
        let status = result.status.unwrap_or_default();
        if status.code != 0 {
            let why = format!(
                "failed to delete federated bundle {}: {}",
                quoted(&result.trust_domain),
                status.message
            );
            return Err(why.into());
        }
        printer.out = "bundle deleted.\n".to_owned();
        Ok(())
    })
}

fn print_one(flags: &Flags, printer: &mut Printer, bundle: &types::Bundle) -> Result<(), Failure> {
    printer.out = match flags.output() {
        Output::Json => json::line(&json::tree("spire.api.types.Bundle", bundle)?),
        Output::Pretty => written(bundle, Format::of(flags)?)?,
    };
    Ok(())
}

/// A bundle of the wire as text; WIT authorities are not shown, as in SPIRE.
fn written(bundle: &types::Bundle, format: Format) -> Result<String, String> {
    let trust_domain = TrustDomain::parse(&bundle.trust_domain).map_err(|why| why.to_string())?;
    let own = Bundle {
        x509_authorities: bundle
            .x509_authorities
            .iter()
            .map(|authority| X509Authority {
                der: authority.asn1.as_ref().into(),
                tainted: authority.tainted,
            })
            .collect(),
        jwt_authorities: bundle
            .jwt_authorities
            .iter()
            .map(|authority| JwtAuthority {
                key_id: authority.key_id.clone(),
                public_key: authority.public_key.as_ref().into(),
                expires_at: UnixSecs(authority.expires_at),
                tainted: authority.tainted,
            })
            .collect(),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
        ..Bundle::empty(trust_domain)
    };
    Ok(match format {
        Format::Pem => own.to_pem(),
        // As SPIRE's commands print a bundle without authorities.
        Format::Spiffe if own.x509_authorities.is_empty() && own.jwt_authorities.is_empty() => {
            own.to_spiffe_json().replacen("[]", "null", 1) + "\n"
        }
        Format::Spiffe => own.to_spiffe_json() + "\n",
    })
}

/// A bundle for a request from its text. With PEM the server judges the trust domain, so that is sent as
/// it is.
pub(super) fn requested(trust_domain: &str, format: Format, text: &[u8]) -> Result<types::Bundle, String> {
    let (own, trust_domain) = match format {
        Format::Pem => {
            let stand_in = TrustDomain::parse("stand-in").map_err(|why| why.to_string())?;
            let own = Bundle::from_pem(stand_in, text);
            (own.map_err(|why| format!("unable to parse bundle data: {why}"))?, trust_domain.to_owned())
        }
        Format::Spiffe => {
            let parsed = TrustDomain::parse(trust_domain).map_err(|why| why.to_string())?;
            let name = parsed.as_str().to_owned();
            let refused = |why: &str| format!("unable to parse to spiffe bundle: spiffebundle: {why}");
            data::check(text).map_err(|why| refused(&format!("unable to parse JWKS: {why}")))?;
            (Bundle::from_spiffe_json(parsed, text).map_err(|why| refused(&why.to_string()))?, name)
        }
    };
    Ok(types::Bundle {
        trust_domain,
        x509_authorities: own
            .x509_authorities
            .iter()
            .map(|authority| types::X509Certificate { asn1: authority.der.to_vec().into(), tainted: false })
            .collect(),
        jwt_authorities: own
            .jwt_authorities
            .iter()
            .map(|authority| types::JwtKey {
                public_key: authority.public_key.to_vec().into(),
                key_id: authority.key_id.clone(),
                expires_at: 0,
                tainted: false,
            })
            .collect(),
        refresh_hint: own.refresh_hint,
        sequence_number: own.sequence_number,
        wit_authorities: Vec::new(),
    })
}

/// What becomes of entries that federate with a bundle that is deleted.
fn deletion_mode(text: &str) -> Result<Mode, String> {
    match text {
        "" | "restrict" => Ok(Mode::Restrict),
        "delete" => Ok(Mode::Delete),
        "dissociate" => Ok(Mode::Dissociate),
        other => Err(format!("unsupported mode {}", quoted(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_keys_are_null() {
        let bundle = types::Bundle { trust_domain: "example.org".to_owned(), ..types::Bundle::default() };

        assert_eq!(written(&bundle, Format::Spiffe), Ok("{\n    \"keys\": null\n}\n".to_owned()));
    }

    #[test]
    fn no_mode_is_the_one_that_deletes_least() {
        assert_eq!(deletion_mode(""), Ok(Mode::Restrict));
        assert_eq!(deletion_mode("dissociate"), Ok(Mode::Dissociate));
        assert_eq!(deletion_mode("DELETE"), Err("unsupported mode \"DELETE\"".to_owned()));
    }
}
