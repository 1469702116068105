//! `federation create`, `update`, `delete`, `list`, `show`, `refresh`.

use std::fmt::Write as _;

use proto::spire::server::trustdomain::trust_domain_client::TrustDomainClient;
use proto::spire::server::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, GetFederationRelationshipRequest,
    ListFederationRelationshipsRequest, ListFederationRelationshipsResponse, RefreshBundleRequest,
};
use proto::spire::types;
use proto::spire::types::federation_relationship::BundleEndpointProfile;
use serde::Deserialize;
use spiffe::SpiffeId;
use spiffe::quote::quoted;
use tonic::Code;

use super::bundle::{Format, requested};
use crate::cli::data::{self, Object, Shape};
use crate::cli::flags::{Flag, Flags, Kind, Output, flag, flag_or};
use crate::cli::rpc::{self, client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, json, print};

/// Relationships asked for at a time.
const PAGE_SIZE: i32 = 1000;

/// The flags that describe one relationship; none of them goes with `-data`.
const FIELDS: [Flag; 7] = [
    flag("trustDomain", Kind::Text, "Name of the trust domain to federate with"),
    flag("bundleEndpointURL", Kind::Text, "URL of the bundle endpoint, which must use https"),
    flag("bundleEndpointProfile", Kind::Text, "Endpoint profile type: https_web or https_spiffe"),
    flag("endpointSpiffeID", Kind::Text, "SPIFFE ID of the endpoint server; only with https_spiffe"),
    flag("trustDomainBundlePath", Kind::Text, "Path to the initial bundle of the trust domain"),
    flag_or("trustDomainBundleFormat", Kind::Text, "pem", "The format of the bundle data: pem or spiffe"),
    flag("data", Kind::Text, "Path to a file with relationships as JSON; - reads stdin"),
];

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let command = |name, about, flags: &[Flag], action| Command {
        name,
        about,
        flags: server_flags_with_output(flags),
        on_flag_error: FlagError::Once,
        action,
    };
    let id = [flag("id", Kind::Text, "SPIFFE ID of the trust domain")];
    let trust_domain = [flag("trustDomain", Kind::Text, "The trust domain of the relationship")];
    vec![
        command("federation create", "Create federation relationships", &FIELDS, create),
        command("federation update", "Update federation relationships", &FIELDS, update),
        command("federation delete", "Delete a federation relationship", &id, delete),
        command("federation list", "List federation relationships", &[], list),
        command("federation show", "Show a federation relationship", &trust_domain, show),
        command("federation refresh", "Refresh the bundle of a federated trust domain", &id, refresh),
    ]
}

fn create(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let asked = relationships(flags)?;
    with_server(flags, |dialed| async move {
        let request = BatchCreateFederationRelationshipRequest {
            federation_relationships: asked.clone(),
            output_mask: None,
        };
        let reply = client!(TrustDomainClient<_>, dialed).batch_create_federation_relationship(request).await;
        let reply = reply.map_err(|status| dialed.error("request failed: ", &status))?.into_inner();
        if flags.output() == Output::Json {
            let name = "spire.api.server.trustdomain.v1.BatchCreateFederationRelationshipResponse";
            printer.out = json::line(&json::tree(name, &reply)?);
            return Ok(());
        }
        let results = reply.results.into_iter().map(|result| (result.status, result.federation_relationship));
        report(printer, "create", results, &asked)
    })
}

fn update(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let asked = relationships(flags)?;
    with_server(flags, |dialed| async move {
        let request = BatchUpdateFederationRelationshipRequest {
            federation_relationships: asked.clone(),
            input_mask: None,
            output_mask: None,
        };
        let reply = client!(TrustDomainClient<_>, dialed).batch_update_federation_relationship(request).await;
        let reply = reply.map_err(|status| dialed.error("request failed: ", &status))?.into_inner();
        if flags.output() == Output::Json {
            let name = "spire.api.server.trustdomain.v1.BatchUpdateFederationRelationshipResponse";
            printer.out = json::line(&json::tree(name, &reply)?);
            return Ok(());
        }
        let results = reply.results.into_iter().map(|result| (result.status, result.federation_relationship));
        report(printer, "update", results, &asked)
    })
}

fn report(
    printer: &mut Printer,
    verb: &str,
    results: impl Iterator<Item = (Option<types::Status>, Option<types::FederationRelationship>)>,
    asked: &[types::FederationRelationship],
) -> Result<(), Failure> {
    let (mut failures, mut blanks) = (String::new(), String::new());
    for ((status, made), asked) in results.zip(asked) {
        let status = status.unwrap_or_default();
        if status.code == 0 {
            printer.out.push('\n');
            printer.out.push_str(&lines(made.as_ref().unwrap_or(asked)));
        } else {
            blanks.push('\n');
            // Writing to a string cannot fail.
            let _written = write!(
                failures,
                "Failed to {verb} the following federation relationship (code: {}, msg: {}):\n{}",
                rpc::code_name_of(status.code),
                quoted(&status.message),
                lines(asked)
            );
        }
    }
    // As SPIRE does: what went well first, then what did not, each with a blank line before it, which goes to
    // where the rest of what went well stands.
    printer.out.push_str(&blanks);
    printer.err.push_str(&failures);
    if failures.is_empty() {
        Ok(())
    } else {
        Err(format!("failed to {verb} one or more federation relationships").into())
    }
}

fn delete(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let id = required(flags, "id", "id is required")?;
    with_server(flags, |dialed| async move {
        let request = BatchDeleteFederationRelationshipRequest { trust_domains: vec![id] };
        let reply = client!(TrustDomainClient<_>, dialed).batch_delete_federation_relationship(request).await;
        let reply = reply
            .map_err(|status| dialed.error("failed to delete federation relationship: ", &status))?
            .into_inner();
        if flags.output() == Output::Json {
            let name = "spire.api.server.trustdomain.v1.BatchDeleteFederationRelationshipResponse";
            printer.out = json::line(&json::tree(name, &reply)?);
            return Ok(());
        }
        let result = reply.results.into_iter().next().unwrap_or_default();
        let status = result.status.unwrap_or_default();
        if status.code != 0 {
            let shown = quoted(&result.trust_domain);
            return Err(
                format!("failed to delete federation relationship {shown}: {}", status.message).into()
            );
        }
        printer.out = "federation relationship deleted.\n".to_owned();
        Ok(())
    })
}

fn list(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    with_server(flags, |dialed| async move {
        let mut found = Vec::new();
        let mut request = ListFederationRelationshipsRequest { page_size: PAGE_SIZE, ..Default::default() };
        loop {
            let reply =
                client!(TrustDomainClient<_>, dialed).list_federation_relationships(request.clone()).await;
            let reply = reply
                .map_err(|status| dialed.error("error listing federation relationship: ", &status))?
                .into_inner();
            found.extend(reply.federation_relationships);
            if reply.next_page_token.is_empty() {
                break;
            }
            request.page_token = reply.next_page_token;
        }
        printer.out = match flags.output() {
            Output::Json => {
                let reply = ListFederationRelationshipsResponse {
                    federation_relationships: found,
                    next_page_token: String::new(),
                };
                let name = "spire.api.server.trustdomain.v1.ListFederationRelationshipsResponse";
                json::line(&json::tree(name, &reply)?)
            }
            Output::Pretty => {
                let counted =
                    print::counted(found.len(), "federation relationship", "federation relationships");
                found.iter().fold(format!("Found {counted}\n"), |text, one| text + "\n" + &lines(one))
            }
        };
        Ok(())
    })
}

fn show(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let trust_domain = required(flags, "trustDomain", "a trust domain name is required")?;
    with_server(flags, |dialed| async move {
        let request =
            GetFederationRelationshipRequest { trust_domain: trust_domain.clone(), output_mask: None };
        let reply = client!(TrustDomainClient<_>, dialed).get_federation_relationship(request).await;
        let found = reply
            .map_err(|status| dialed.error("error showing federation relationship: ", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree("spire.api.types.FederationRelationship", &found)?),
            Output::Pretty => {
                format!(
                    "Found a federation relationship with trust domain {trust_domain}:\n\n{}",
                    lines(&found)
                )
            }
        };
        Ok(())
    })
}

fn refresh(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let id = required(flags, "id", "id is required")?;
    with_server(flags, |dialed| async move {
        let request = RefreshBundleRequest { trust_domain: id.clone() };
        let reply = client!(TrustDomainClient<_>, dialed).refresh_bundle(request).await;
        reply.map_err(|status| {
            if status.code() == Code::NotFound {
                format!("there is no federation relationship with trust domain {}", quoted(&id)).into()
            } else {
                dialed.error("failed to refresh bundle: ", &status)
            }
        })?;
        printer.out = match flags.output() {
            Output::Json => "{\"code\":0,\"message\":\"OK\"}\n".to_owned(),
            Output::Pretty => "Bundle refreshed\n".to_owned(),
        };
        Ok(())
    })
}

fn required(flags: &Flags, name: &str, missing: &str) -> Result<String, Failure> {
    rpc::server_socket(flags)?;
    match flags.text(name) {
        "" => Err(missing.into()),
        text => Ok(text.to_owned()),
    }
}

fn relationships(flags: &Flags) -> Result<Vec<types::FederationRelationship>, Failure> {
    rpc::server_socket(flags)?;
    let path = flags.text("data");
    if path.is_empty() {
        return Ok(vec![from_flags(flags)?]);
    }
    let mut fields = FIELDS.iter().map(|field| field.name).filter(|name| *name != "data");
    // What is given as it is by default is as good as not given.
    let is_set = |name: &str| flags.text(name) != if name == "trustDomainBundleFormat" { "pem" } else { "" };
    if fields.any(is_set) {
        return Err("cannot use other flags to specify relationship fields when 'data' flag is set".into());
    }
    Ok(from_data(path)?)
}

fn from_flags(flags: &Flags) -> Result<types::FederationRelationship, String> {
    let (url, profile, endpoint) = (
        flags.text("bundleEndpointURL"),
        flags.text("bundleEndpointProfile"),
        flags.text("endpointSpiffeID"),
    );
    let mut made = checked(flags.text("trustDomain"), url, profile, endpoint)?;
    if !flags.text("trustDomainBundlePath").is_empty() {
        let data = rpc::read_file(flags.text("trustDomainBundlePath"))
            .map_err(|why| format!("cannot read bundle file: {why}"))?;
        // Of a file, what is not PEM is taken for a document, whatever the flag calls it.
        let format = parse_format(flags.text("trustDomainBundleFormat")).unwrap_or(Format::Spiffe);
        let bundle = requested(&bundle_owner(&made), format, &data);
        made.trust_domain_bundle = Some(bundle.map_err(|why| format!("cannot parse bundle file: {why}"))?);
    }
    Ok(made)
}

/// One relationship in the JSON that `-data` takes.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Item {
    trust_domain: String,
    #[serde(rename = "bundleEndpointURL")]
    bundle_endpoint_url: String,
    bundle_endpoint_profile: String,
    #[serde(rename = "endpointSPIFFEID")]
    endpoint_spiffe_id: String,
    /// As it is written.
    trust_domain_bundle: Option<String>,
    trust_domain_bundle_format: String,
}

const RELATIONSHIPS: Object = Object {
    go: ("federation", "federationRelationships"),
    members: &[("federationRelationships", Shape::Objects(&RELATIONSHIP, "missing item"))],
};

const RELATIONSHIP: Object = Object {
    go: ("federation", "federationRelationshipConfig"),
    members: &[
        ("trustDomain", Shape::Text),
        ("bundleEndpointURL", Shape::Text),
        ("bundleEndpointProfile", Shape::Text),
        ("endpointSPIFFEID", Shape::Text),
        ("trustDomainBundle", Shape::Raw),
        ("trustDomainBundleFormat", Shape::Text),
    ],
};

fn from_data(path: &str) -> Result<Vec<types::FederationRelationship>, String> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(default, rename = "federationRelationships")]
        items: Vec<Item>,
    }
    let bytes = rpc::read_input(path)?;
    let data: Data =
        data::read(&bytes, &RELATIONSHIPS).map_err(|why| format!("failed to parse JSON: {why}"))?;
    let items = data.items.iter().enumerate();
    items
        .map(|(index, item)| item.checked().map_err(|why| format!("could not parse item {index}: {why}")))
        .collect()
}

impl Item {
    fn checked(&self) -> Result<types::FederationRelationship, String> {
        let mut made = checked(
            &self.trust_domain,
            &self.bundle_endpoint_url,
            &self.bundle_endpoint_profile,
            &self.endpoint_spiffe_id,
        )?;
        if let Some(raw) = &self.trust_domain_bundle {
            let bad = |why: String| format!("cannot parse bundle raw message: {why}");
            let format = parse_format(&self.trust_domain_bundle_format).map_err(bad)?;
            let data = match format {
                Format::Pem => {
                    let text = data::text(raw);
                    text.map_err(|why| bad(format!("failed to unmarshal json: {why}")))?.into_bytes()
                }
                Format::Spiffe => raw.as_bytes().to_vec(),
            };
            made.trust_domain_bundle = Some(requested(&bundle_owner(&made), format, &data).map_err(bad)?);
        }
        Ok(made)
    }
}

fn checked(
    trust_domain: &str,
    url: &str,
    profile: &str,
    endpoint: &str,
) -> Result<types::FederationRelationship, String> {
    if trust_domain.is_empty() {
        return Err("trust domain is required".to_owned());
    }
    if url.is_empty() {
        return Err("bundle endpoint URL is required".to_owned());
    }
    let profile = match profile {
        "https_web" => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
        "https_spiffe" => {
            if endpoint.is_empty() {
                return Err(
                    "endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set".to_owned()
                );
            }
            SpiffeId::parse(endpoint)
                .map_err(|why| format!("cannot parse bundle endpoint SPIFFE ID: {why}"))?;
            let endpoint_spiffe_id = endpoint.to_owned();
            BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id })
        }
        other => return Err(format!("unknown bundle endpoint profile type: {}", quoted(other))),
    };
    Ok(types::FederationRelationship {
        trust_domain: trust_domain.to_owned(),
        bundle_endpoint_url: url.to_owned(),
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: None,
    })
}

/// Whose bundle an initial one is: that of the endpoint's id, as SPIRE tags it.
fn bundle_owner(relationship: &types::FederationRelationship) -> String {
    match &relationship.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => SpiffeId::parse(&profile.endpoint_spiffe_id)
            .map_or_else(|_| relationship.trust_domain.clone(), |id| id.trust_domain_name().to_owned()),
        Some(BundleEndpointProfile::HttpsWeb(_)) | None => relationship.trust_domain.clone(),
    }
}

fn parse_format(text: &str) -> Result<Format, String> {
    match text {
        "pem" => Ok(Format::Pem),
        "spiffe" => Ok(Format::Spiffe),
        other => Err(format!("bundle format {} is unsupported", quoted(other))),
    }
}

/// A relationship for people.
fn lines(relationship: &types::FederationRelationship) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _written = writeln!(text, "{label:<26}: {value}");
    };
    line("Trust domain", &relationship.trust_domain);
    line("Bundle endpoint URL", &relationship.bundle_endpoint_url);
    match &relationship.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => line("Bundle endpoint profile", "https_web"),
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            line("Bundle endpoint profile", "https_spiffe");
            line("Endpoint SPIFFE ID", &profile.endpoint_spiffe_id);
        }
        None => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_well_stands_before_what_did_not() {
        let asked = [relationship("a.test"), relationship("b.test")];
        let refused = types::Status { code: 5, message: "none".to_owned() };
        let results = [(Some(refused), None), (Some(types::Status::ok()), None)];
        let mut printer = Printer { out: String::new(), err: String::new() };

        let failure = report(&mut printer, "update", results.into_iter(), &asked);

        assert!(failure.is_err());
        assert_eq!(printer.out, format!("\n{}\n", lines(&asked[1])));
        assert!(printer.err.ends_with(&lines(&asked[0])), "{}", printer.err);
    }

    fn relationship(trust_domain: &str) -> types::FederationRelationship {
        types::FederationRelationship { trust_domain: trust_domain.to_owned(), ..Default::default() }
    }
}
