//! What the lines of each method say, after SPIRE: its request, and of batches each item.

use std::fmt::Display;

use bytes::Bytes;
use prost::Message;
use proto::convert::id;
use proto::spire::server::{agent, bundle, entry, localauthority, logger, svid, trustdomain};
use proto::spire::types;
use runtime::log::Value;
use serde_json::json;
use spiffe::x509::{Certificate, Csr, Name};
use spiffe::{SpiffeId, TrustDomain};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Code, Status};

use super::{Fields, number, text};

/// One line: the fields of its own, and what became of what it tells of.
pub(super) struct Item {
    pub(super) fields: Fields,
    pub(super) status: Option<types::Status>,
}

/// What is known of a call but its messages.
pub(super) struct Around<'a> {
    pub(super) method: &'a str,
    pub(super) trust_domain: &'a TrustDomain,
    /// The caller's id.
    pub(super) caller: Option<&'a str>,
    /// Who attests, if that came out.
    pub(super) attesting: Option<&'a SpiffeId>,
}

/// The lines of a call that ended with `status`.
pub(super) fn items(
    around: &Around<'_>,
    requests: &[Bytes],
    answers: &[Bytes],
    status: &Status,
) -> Vec<Item> {
    let path = around.method.trim_start_matches('/');
    let path = path.strip_prefix("spire.api.server.").unwrap_or(path);
    let (service, method) = path.split_once('/').unwrap_or_default();
    if status.code() == Code::Ok
        && let Some(items) = batch(service, method, requests, answers)
    {
        return items;
    }
    if status.code() == Code::Ok && NOT_TOLD.contains(&service) {
        return Vec::new();
    }
    // A batch that was refused as a whole tells nothing of its items.
    let fields =
        if method.starts_with("Batch") { Fields::new() } else { call(around, path, requests, answers) };
    let status = (status.code() != Code::Ok)
        .then(|| types::Status { code: status.code().into(), message: status.message().to_owned() });
    vec![Item { fields, status }]
}

/// These services do not tell that a call went well.
const NOT_TOLD: [&str; 2] = ["debug.v1.Debug", "grpc.health.v1.Health"];

/// The one message of a request or an answer; an empty one if there is none.
fn only<M: Message + Default>(messages: &[Bytes]) -> M {
    messages.first().and_then(|bytes| M::decode(bytes.clone()).ok()).unwrap_or_default()
}

/// Fields of items beside what became of them.
fn zipped(
    fields: impl IntoIterator<Item = Fields>,
    statuses: impl IntoIterator<Item = Option<types::Status>>,
) -> Option<Vec<Item>> {
    Some(fields.into_iter().zip(statuses).map(|(fields, status)| Item { fields, status }).collect())
}

fn batch(service: &str, method: &str, requests: &[Bytes], answers: &[Bytes]) -> Option<Vec<Item>> {
    match (service, method) {
        ("entry.v1.Entry", "BatchCreateEntry") => {
            let request: entry::BatchCreateEntryRequest = only(requests);
            let answer: entry::BatchCreateEntryResponse = only(answers);
            let fields = request.entries.iter().map(|entry| of_entry(entry, None));
            zipped(fields, answer.results.into_iter().map(|result| result.status))
        }
        ("entry.v1.Entry", "BatchUpdateEntry") => {
            let request: entry::BatchUpdateEntryRequest = only(requests);
            let answer: entry::BatchUpdateEntryResponse = only(answers);
            let mask = request.input_mask.as_ref();
            let fields = request.entries.iter().map(|entry| of_entry(entry, mask));
            zipped(fields, answer.results.into_iter().map(|result| result.status))
        }
        ("entry.v1.Entry", "BatchDeleteEntry") => {
            let answer: entry::BatchDeleteEntryResponse = only(answers);
            let item = |result: entry::batch_delete_entry_response::Result| Item {
                fields: vec![text("entry_id", result.id)],
                status: result.status,
            };
            Some(answer.results.into_iter().map(item).collect())
        }
        ("bundle.v1.Bundle", "BatchCreateFederatedBundle") => {
            let request: bundle::BatchCreateFederatedBundleRequest = only(requests);
            let answer: bundle::BatchCreateFederatedBundleResponse = only(answers);
            let fields = request.bundle.iter().map(|bundle| of_bundle(bundle, None));
            zipped(fields, answer.results.into_iter().map(|result| result.status))
        }
        ("bundle.v1.Bundle", "BatchUpdateFederatedBundle") => {
            let request: bundle::BatchUpdateFederatedBundleRequest = only(requests);
            let answer: bundle::BatchUpdateFederatedBundleResponse = only(answers);
            let mask = request.input_mask.as_ref();
            let fields = request.bundle.iter().map(|bundle| of_bundle(bundle, mask));
            zipped(fields, answer.results.into_iter().map(|result| result.status))
        }
        ("bundle.v1.Bundle", "BatchSetFederatedBundle") => {
            let request: bundle::BatchSetFederatedBundleRequest = only(requests);
            let answer: bundle::BatchSetFederatedBundleResponse = only(answers);
            let fields = request.bundle.iter().map(|bundle| of_bundle(bundle, None));
            zipped(fields, answer.results.into_iter().map(|result| result.status))
        }
        ("bundle.v1.Bundle", "BatchDeleteFederatedBundle") => {
            let request: bundle::BatchDeleteFederatedBundleRequest = only(requests);
            let answer: bundle::BatchDeleteFederatedBundleResponse = only(answers);
            let mode =
                Value::Named { name: request.mode().as_str_name().to_owned(), number: request.mode.into() };
            let item = |result: bundle::batch_delete_federated_bundle_response::Result| Item {
                fields: vec![text("trust_domain_id", result.trust_domain), ("mode".to_owned(), mode.clone())],
                status: result.status,
            };
            Some(answer.results.into_iter().map(item).collect())
        }
        ("trustdomain.v1.TrustDomain", "BatchCreateFederationRelationship") => {
            let request: trustdomain::BatchCreateFederationRelationshipRequest = only(requests);
            let answer: trustdomain::BatchCreateFederationRelationshipResponse = only(answers);
            let fields = request.federation_relationships.iter().map(|one| of_relationship(one, None));
            zipped(fields, answer.results.into_iter().map(|result| result.status))
        }
        ("trustdomain.v1.TrustDomain", "BatchUpdateFederationRelationship") => {
            let request: trustdomain::BatchUpdateFederationRelationshipRequest = only(requests);
            let answer: trustdomain::BatchUpdateFederationRelationshipResponse = only(answers);
            let mask = request.input_mask.as_ref();
            let fields = request.federation_relationships.iter().map(|one| of_relationship(one, mask));
            zipped(fields, answer.results.into_iter().map(|result| result.status))
        }
        ("trustdomain.v1.TrustDomain", "BatchDeleteFederationRelationship") => {
            let request: trustdomain::BatchDeleteFederationRelationshipRequest = only(requests);
            let answer: trustdomain::BatchDeleteFederationRelationshipResponse = only(answers);
            // As the request names it.
            let fields = request.trust_domains.iter().map(|name| vec![text("trust_domain_id", name)]);
            zipped(fields, answer.results.into_iter().map(|result| result.status))
        }
        ("svid.v1.SVID", "BatchNewX509SVID") => {
            let request: svid::BatchNewX509svidRequest = only(requests);
            let answer: svid::BatchNewX509svidResponse = only(answers);
            let item =
                |(params, result): (&svid::NewX509svidParams, svid::batch_new_x509svid_response::Result)| {
                    let mut fields =
                        vec![text("csr", digest(&params.csr)), text("entry_id", &params.entry_id)];
                    fields.push(text(
                        "spiffe_id",
                        svid_id(result.svid.as_ref().and_then(|svid| svid.id.as_ref())),
                    ));
                    fields.extend(result.svid.map(|svid| number("expires_at", svid.expires_at)));
                    Item { fields, status: result.status }
                };
            Some(request.params.iter().zip(answer.results).map(item).collect())
        }
        ("svid.v1.SVID", "BatchNewWITSVID") => {
            let request: svid::BatchNewWitsvidRequest = only(requests);
            let answer: svid::BatchNewWitsvidResponse = only(answers);
            let item =
                |(params, result): (&svid::NewWitsvidParams, svid::batch_new_witsvid_response::Result)| {
                    let mut fields = vec![text("entry_id", &params.entry_id)];
                    fields.push(text(
                        "spiffe_id",
                        svid_id(result.svid.as_ref().and_then(|svid| svid.id.as_ref())),
                    ));
                    fields.extend(result.svid.map(|svid| number("expires_at", svid.expires_at)));
                    Item { fields, status: result.status }
                };
            Some(request.params.iter().zip(answer.results).map(item).collect())
        }
        _ => None,
    }
}

/// The fields of a call that is no batch.
fn call(around: &Around<'_>, path: &str, requests: &[Bytes], answers: &[Bytes]) -> Fields {
    let trust_domain = around.trust_domain;
    let caller = || around.caller.map(|id| text("spiffe_id", id));
    match path {
        "entry.v1.Entry/CountEntries" => {
            let request: entry::CountEntriesRequest = only(requests);
            let Some(filter) = request.filter else { return Fields::new() };
            of_entry_filter(
                trust_domain,
                &entry::list_entries_request::Filter {
                    by_spiffe_id: filter.by_spiffe_id,
                    by_parent_id: filter.by_parent_id,
                    by_selectors: filter.by_selectors,
                    by_federates_with: filter.by_federates_with,
                    by_hint: filter.by_hint,
                    by_downstream: filter.by_downstream,
                },
            )
        }
        "entry.v1.Entry/ListEntries" => {
            let request: entry::ListEntriesRequest = only(requests);
            request.filter.map(|filter| of_entry_filter(trust_domain, &filter)).unwrap_or_default()
        }
        "entry.v1.Entry/GetEntry" => {
            let request: entry::GetEntryRequest = only(requests);
            if request.id.is_empty() { Fields::new() } else { vec![text("entry_id", request.id)] }
        }
        "agent.v1.Agent/CountAgents" => {
            let request: agent::CountAgentsRequest = only(requests);
            let Some(filter) = request.filter else { return Fields::new() };
            of_agent_filter(
                &filter.by_attestation_type,
                filter.by_banned,
                filter.by_can_reattest,
                filter.by_selector_match,
            )
        }
        "agent.v1.Agent/ListAgents" => {
            let request: agent::ListAgentsRequest = only(requests);
            let Some(filter) = request.filter else { return Fields::new() };
            of_agent_filter(
                &filter.by_attestation_type,
                filter.by_banned,
                filter.by_can_reattest,
                filter.by_selector_match,
            )
        }
        "agent.v1.Agent/GetAgent" => {
            of_agent_id(trust_domain, only::<agent::GetAgentRequest>(requests).id.as_ref())
        }
        "agent.v1.Agent/DeleteAgent" => {
            of_agent_id(trust_domain, only::<agent::DeleteAgentRequest>(requests).id.as_ref())
        }
        "agent.v1.Agent/BanAgent" => {
            of_agent_id(trust_domain, only::<agent::BanAgentRequest>(requests).id.as_ref())
        }
        "agent.v1.Agent/AttestAgent" => of_attestation(requests, around.attesting),
        "agent.v1.Agent/RenewAgent" => {
            let request: agent::RenewAgentRequest = only(requests);
            let csr = request.params.map(|params| params.csr).filter(|csr| !csr.is_empty());
            csr.map(|csr| text("csr", digest(&csr))).into_iter().collect()
        }
        "agent.v1.Agent/PostStatus" => {
            let request: agent::PostStatusRequest = only(requests);
            let version =
                Some(request.agent_version).filter(|version| !version.is_empty() && version.len() <= 255);
            caller().into_iter().chain(version.map(|version| text("agent_version", version))).collect()
        }
        "agent.v1.Agent/CreateJoinToken" => {
            let request: agent::CreateJoinTokenRequest = only(requests);
            let mut fields = Fields::new();
            if request.ttl > 0 {
                fields.push(number("ttl", request.ttl));
            }
            if let Some(id) = &request.agent_id
                && let Ok(id) = id::workload(trust_domain, Some(id))
            {
                fields.push(text("spiffe_id", id));
            }
            fields
        }
        "bundle.v1.Bundle/GetBundle" => vec![text("trust_domain_id", trust_domain)],
        "bundle.v1.Bundle/GetFederatedBundle" => {
            vec![text("trust_domain_id", only::<bundle::GetFederatedBundleRequest>(requests).trust_domain)]
        }
        "bundle.v1.Bundle/AppendBundle" => {
            let request: bundle::AppendBundleRequest = only(requests);
            let mut fields = of_jwt_authorities(&request.jwt_authorities);
            fields.extend(of_x509_authorities(&request.x509_authorities));
            fields
        }
        "bundle.v1.Bundle/PublishJWTAuthority" => {
            let request: bundle::PublishJwtAuthorityRequest = only(requests);
            let of = |key: types::JwtKey| {
                vec![
                    number("jwt_authority_expires_at", key.expires_at),
                    text("jwt_authority_key_id", &key.key_id),
                    text("jwt_authority_public_key_sha256", digest(&key.public_key)),
                ]
            };
            request.jwt_authority.map(of).unwrap_or_default()
        }
        "trustdomain.v1.TrustDomain/GetFederationRelationship" => {
            let request: trustdomain::GetFederationRelationshipRequest = only(requests);
            vec![text("trust_domain_id", request.trust_domain)]
        }
        "trustdomain.v1.TrustDomain/RefreshBundle" => {
            vec![text("trust_domain_id", only::<trustdomain::RefreshBundleRequest>(requests).trust_domain)]
        }
        "logger.v1.Logger/SetLogLevel" => {
            let level = only::<logger::SetLogLevelRequest>(requests).new_level;
            vec![text("new_log_level", named(level, types::LogLevel::as_str_name))]
        }
        _ => match path.split_once('/') {
            Some(("svid.v1.SVID", method)) => of_svid(trust_domain, method, requests, answers),
            Some(("localauthority.v1.LocalAuthority", method)) => of_authority(method, requests),
            _ => Fields::new(),
        },
    }
}

fn of_svid(trust_domain: &TrustDomain, method: &str, requests: &[Bytes], answers: &[Bytes]) -> Fields {
    match method {
        "MintX509SVID" => {
            let request: svid::MintX509svidRequest = only(requests);
            let mut fields = vec![text("csr", digest(&request.csr)), number("ttl", request.ttl)];
            let signed = only::<svid::MintX509svidResponse>(answers).svid;
            if let (Some(signed), Ok(csr)) = (signed, Csr::verify(&request.csr)) {
                fields.push(text("spiffe_id", svid_id(signed.id.as_ref())));
                fields.push(text("dns_name", csr.dns_names.join(",")));
                fields.push(("subject".to_owned(), subject(&csr.subject)));
                fields.push(text("expires_at", instant(signed.expires_at)));
            }
            fields
        }
        "MintJWTSVID" => {
            let request: svid::MintJwtsvidRequest = only(requests);
            let mut fields = minted(trust_domain, request.id.as_ref(), request.ttl);
            if !request.audience.is_empty() {
                fields.push(text("audience", request.audience.join(",")));
            }
            fields
        }
        "MintWITSVID" => {
            let request: svid::MintWitsvidRequest = only(requests);
            minted(trust_domain, request.id.as_ref(), request.ttl)
        }
        "NewJWTSVID" => {
            let request: svid::NewJwtsvidRequest = only(requests);
            let mut fields =
                vec![text("entry_id", request.entry_id), text("audience", request.audience.join(","))];
            if let Some(signed) = only::<svid::NewJwtsvidResponse>(answers).svid {
                fields.push(text("spiffe_id", svid_id(signed.id.as_ref())));
                fields.push(number("ttl", signed.expires_at - signed.issued_at));
            }
            fields
        }
        "NewDownstreamX509CA" => {
            let request: svid::NewDownstreamX509caRequest = only(requests);
            let mut fields =
                vec![text("csr", digest(&request.csr)), text("trust_domain_id", trust_domain.id())];
            let answer: svid::NewDownstreamX509caResponse = only(answers);
            let authority = answer.ca_cert_chain.first().and_then(|der| Certificate::parse(der).ok());
            fields.extend(authority.map(|authority| number("expires_at", authority.not_after().0)));
            fields
        }
        _ => Fields::new(),
    }
}

fn minted(trust_domain: &TrustDomain, wire: Option<&types::Spiffeid>, ttl: i32) -> Fields {
    let mut fields = vec![number("ttl", ttl)];
    if let Ok(id) = id::workload(trust_domain, wire) {
        fields.push(text("spiffe_id", id));
    }
    fields
}

fn of_authority(method: &str, requests: &[Bytes]) -> Fields {
    // The requests that name an authority have it in their first field.
    let named = |name: &str| {
        let request: localauthority::ActivateX509AuthorityRequest = only(requests);
        let id = request.authority_id;
        if id.is_empty() { Fields::new() } else { vec![text(name, id)] }
    };
    match method {
        _ if method.starts_with("Get") || method.starts_with("Prepare") => Fields::new(),
        "TaintX509UpstreamAuthority" | "RevokeX509UpstreamAuthority" => named("subject_key_id"),
        _ => named("local_authority_id"),
    }
}

fn of_attestation(requests: &[Bytes], agent: Option<&SpiffeId>) -> Fields {
    use agent::attest_agent_request::Step;
    let mut fields = Fields::new();
    if let Some(Step::Params(params)) = only::<agent::AttestAgentRequest>(requests).step
        && params.params.is_some_and(|svid| !svid.csr.is_empty())
        && let Some(data) = params.data
        && !data.payload.is_empty()
        && !data.r#type.is_empty()
    {
        fields.push(text("node_attestor_type", data.r#type));
    }
    fields.extend(agent.map(|id| text("agent_id", id)));
    fields
}

fn of_agent_id(trust_domain: &TrustDomain, wire: Option<&types::Spiffeid>) -> Fields {
    id::agent(trust_domain, wire).map(|id| text("spiffe_id", id)).into_iter().collect()
}

fn of_agent_filter(
    attestation_type: &str,
    banned: Option<bool>,
    can_reattest: Option<bool>,
    selectors: Option<types::SelectorMatch>,
) -> Fields {
    let mut fields = Fields::new();
    if !attestation_type.is_empty() {
        fields.push(text("node_attestor_type", attestation_type));
    }
    fields.extend(banned.map(|value| number("by_banned", value)));
    fields.extend(can_reattest.map(|value| number("by_can_reattest", value)));
    if let Some(wanted) = selectors {
        fields.push(text("by_selector_match", of_match(wanted.r#match)));
        fields.push(text("by_selectors", joined(&wanted.selectors)));
    }
    fields
}

/// How sets are matched; the numbers and names are the same for selectors and trust domains.
fn of_match(number: i32) -> String {
    named(number, types::selector_match::MatchBehavior::as_str_name)
}

/// What a number of an enumeration is called: the number itself where it has no name.
fn named<E: TryFrom<i32>>(number: i32, name: impl Fn(&E) -> &'static str) -> String {
    E::try_from(number).map_or_else(|_| number.to_string(), |value| name(&value).to_owned())
}

fn of_entry_filter(trust_domain: &TrustDomain, filter: &entry::list_entries_request::Filter) -> Fields {
    let mut fields = Fields::new();
    fields.extend(filter.by_hint.as_ref().map(|hint| text("hint", hint)));
    if let Some(wire) = &filter.by_parent_id
        && let Ok(id) = id::member(trust_domain, Some(wire))
    {
        fields.push(text("parent_id", id));
    }
    if let Some(wire) = &filter.by_spiffe_id
        && let Ok(id) = id::workload(trust_domain, Some(wire))
    {
        fields.push(text("spiffe_id", id));
    }
    if let Some(wanted) = &filter.by_selectors {
        fields.push(text("by_selector_match", of_match(wanted.r#match)));
        fields.push(text("by_selectors", joined(&wanted.selectors)));
    }
    if let Some(wanted) = &filter.by_federates_with {
        fields.push(text("federates_with_match", of_match(wanted.r#match)));
        fields.push(text("federates_with", wanted.trust_domains.join(",")));
    }
    fields.extend(filter.by_downstream.map(|value| number("downstream", value)));
    fields
}

fn of_entry(entry: &types::Entry, mask: Option<&types::EntryMask>) -> Fields {
    let has = |of: fn(&types::EntryMask) -> bool| mask.is_none_or(of);
    let mut fields = Fields::new();
    let mut set = |name: &str, value: String| {
        if !value.is_empty() {
            fields.push(text(name, value));
        }
    };
    let parsed = |wire: &Option<types::Spiffeid>| {
        let id = wire.as_ref().and_then(|wire| SpiffeId::try_from(wire).ok());
        id.map(|id| id.to_string()).unwrap_or_default()
    };
    set("entry_id", entry.id.clone());
    if has(|mask| mask.spiffe_id) {
        set("spiffe_id", parsed(&entry.spiffe_id));
    }
    if has(|mask| mask.parent_id) {
        set("parent_id", parsed(&entry.parent_id));
    }
    if has(|mask| mask.selectors) {
        set("selectors", joined(&entry.selectors));
    }
    if has(|mask| mask.federates_with) {
        set("federates_with", entry.federates_with.join(","));
    }
    if has(|mask| mask.dns_names) {
        set("dns_name", entry.dns_names.join(","));
    }
    let plain: [(&str, bool, Value); 8] = [
        ("x509_svid_ttl", has(|mask| mask.x509_svid_ttl), bare(entry.x509_svid_ttl)),
        ("jwt_svid_ttl", has(|mask| mask.jwt_svid_ttl), bare(entry.jwt_svid_ttl)),
        ("admin", has(|mask| mask.admin), bare(entry.admin)),
        ("downstream", has(|mask| mask.downstream), bare(entry.downstream)),
        ("expires_at", has(|mask| mask.expires_at), bare(entry.expires_at)),
        ("revision_number", has(|mask| mask.revision_number), bare(entry.revision_number)),
        ("store_svid", has(|mask| mask.store_svid), bare(entry.store_svid)),
        ("created_at", has(|mask| mask.created_at), bare(entry.created_at)),
    ];
    fields.extend(
        plain.into_iter().filter(|(_, is_told, _)| *is_told).map(|(name, _, value)| (name.to_owned(), value)),
    );
    if has(|mask| mask.hint) {
        fields.push(text("hint", &entry.hint));
    }
    fields
}

fn of_bundle(bundle: &types::Bundle, mask: Option<&types::BundleMask>) -> Fields {
    let has = |of: fn(&types::BundleMask) -> bool| mask.is_none_or(of);
    let mut fields = vec![text("trust_domain_id", &bundle.trust_domain)];
    if has(|mask| mask.refresh_hint) {
        fields.push(number("refresh_hint", bundle.refresh_hint));
    }
    if has(|mask| mask.sequence_number) {
        fields.push(number("sequence_number", bundle.sequence_number));
    }
    if has(|mask| mask.jwt_authorities) {
        fields.extend(of_jwt_authorities(&bundle.jwt_authorities));
    }
    if has(|mask| mask.x509_authorities) {
        fields.extend(of_x509_authorities(&bundle.x509_authorities));
    }
    fields
}

fn of_relationship(
    relationship: &types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> Fields {
    use types::federation_relationship::BundleEndpointProfile as Profile;
    let has = |of: fn(&types::FederationRelationshipMask) -> bool| mask.is_none_or(of);
    let mut fields = Fields::new();
    if !relationship.trust_domain.is_empty() {
        fields.push(text("trust_domain_id", &relationship.trust_domain));
    }
    if has(|mask| mask.bundle_endpoint_url) {
        fields.push(text("bundle_endpoint_url", &relationship.bundle_endpoint_url));
    }
    if has(|mask| mask.bundle_endpoint_profile) {
        match &relationship.bundle_endpoint_profile {
            Some(Profile::HttpsWeb(_)) => fields.push(text("bundle_endpoint_profile", "https_web")),
            Some(Profile::HttpsSpiffe(profile)) => {
                fields.push(text("bundle_endpoint_profile", "https_spiffe"));
                fields.push(text("endpoint_spiffe_id", &profile.endpoint_spiffe_id));
            }
            None => {}
        }
    }
    if has(|mask| mask.trust_domain_bundle)
        && let Some(bundle) = &relationship.trust_domain_bundle
    {
        let of = |(name, value)| (format!("bundle_{name}"), value);
        fields.extend(of_bundle(bundle, None).into_iter().map(of));
    }
    fields
}

fn of_jwt_authorities(keys: &[types::JwtKey]) -> Fields {
    let of = |(index, key): (usize, &types::JwtKey)| {
        [
            number(&format!("jwt_authority_expires_at.{index}"), key.expires_at),
            text(&format!("jwt_authority_key_id.{index}"), &key.key_id),
            text(&format!("jwt_authority_public_key_sha256.{index}"), digest(&key.public_key)),
        ]
    };
    keys.iter().enumerate().flat_map(of).collect()
}

fn of_x509_authorities(certificates: &[types::X509Certificate]) -> Fields {
    let of = |(index, certificate): (usize, &types::X509Certificate)| {
        text(&format!("x509_authorities_asn1_sha256.{index}"), digest(&certificate.asn1))
    };
    certificates.iter().enumerate().map(of).collect()
}

fn joined(selectors: &[types::Selector]) -> String {
    let one = |selector: &types::Selector| format!("{}:{}", selector.r#type, selector.value);
    selectors.iter().map(one).collect::<Vec<_>>().join(",")
}

/// A subject: as JSON it has a member for each kind of attribute, and all of them in order.
fn subject(name: &Name) -> Value {
    let attributes = name.attributes();
    let all = |oid: &'static str| attributes.iter().filter(move |(of, _)| of == oid).map(|(_, value)| value);
    let list = |oid| Some(all(oid).collect::<Vec<_>>()).filter(|values| !values.is_empty());
    let last = |oid| all(oid).next_back().map_or("", String::as_str);
    let numbers = |oid: &str| oid.split('.').filter_map(|number| number.parse().ok()).collect::<Vec<u64>>();
    let named = attributes.iter().map(|(oid, value)| json!({ "Type": numbers(oid), "Value": value }));
    let json = json!({
        "Country": list("2.5.4.6"),
        "Organization": list("2.5.4.10"),
        "OrganizationalUnit": list("2.5.4.11"),
        "Locality": list("2.5.4.7"),
        "Province": list("2.5.4.8"),
        "StreetAddress": list("2.5.4.9"),
        "PostalCode": list("2.5.4.17"),
        "SerialNumber": last("2.5.4.5"),
        "CommonName": last("2.5.4.3"),
        "Names": Some(named.collect::<Vec<_>>()).filter(|names| !names.is_empty()),
        "ExtraNames": null,
    });
    Value::Structured { text: name.to_string(), json: json.to_string() }
}

fn svid_id(wire: Option<&types::Spiffeid>) -> String {
    wire.and_then(|wire| SpiffeId::try_from(wire).ok()).map(|id| id.to_string()).unwrap_or_default()
}

fn bare(value: impl Display) -> Value {
    Value::Bare(format!("{value}"))
}

/// SHA-256 in hexadecimal digits; nothing of nothing.
fn digest(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return String::new();
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn instant(seconds: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use spiffe::x509::Attribute;

    use super::*;

    #[test]
    fn an_agent_that_is_refused_is_named() {
        let agent = SpiffeId::parse("spiffe://example.org/spire/agent/a/banned").unwrap();
        let around = Around {
            method: "/spire.api.server.agent.v1.Agent/AttestAgent",
            trust_domain: &TrustDomain::parse("example.org").unwrap(),
            caller: None,
            attesting: Some(&agent),
        };

        let lines = items(&around, &[], &[], &Status::permission_denied("agent is banned"));

        assert_eq!(lines.len(), 1);
        assert!(lines[0].fields.iter().any(|(name, _)| name == "agent_id"));
    }

    #[test]
    fn a_deleted_relationship_is_told_as_the_request_names_it() {
        let request = trustdomain::BatchDeleteFederationRelationshipRequest {
            trust_domains: vec!["spiffe://a.test".to_owned()],
        };
        let result = trustdomain::batch_delete_federation_relationship_response::Result {
            trust_domain: "a.test".to_owned(),
            status: None,
        };
        let answer = trustdomain::BatchDeleteFederationRelationshipResponse { results: vec![result] };
        let around = Around {
            method: "/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship",
            trust_domain: &TrustDomain::parse("example.org").unwrap(),
            caller: None,
            attesting: None,
        };

        let messages = [[request.encode_to_vec().into()], [answer.encode_to_vec().into()]];
        let lines = items(&around, &messages[0], &messages[1], &Status::ok(""));

        assert!(format!("{:?}", lines[0].fields).contains("spiffe://a.test"));
    }

    #[test]
    fn a_health_check_that_goes_well_has_no_line() {
        let around = Around {
            method: "/grpc.health.v1.Health/Check",
            trust_domain: &TrustDomain::parse("example.org").unwrap(),
            caller: None,
            attesting: None,
        };

        assert!(items(&around, &[], &[], &Status::ok("")).is_empty());
        assert_eq!(items(&around, &[], &[], &Status::not_found("no such service")).len(), 1);
    }

    #[test]
    fn a_subject_is_an_object_in_json() {
        let name = Name::new(&[(Attribute::Organization, "O"), (Attribute::CommonName, "a")]);

        let Value::Structured { text, json } = subject(&name) else { panic!("no object") };

        assert_eq!(text, "CN=a,O=O");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["CommonName"], "a");
        assert_eq!(json["Organization"], json!(["O"]));
        assert_eq!(json["Country"], json!(null));
        assert_eq!(json["Names"][1], json!({ "Type": [2, 5, 4, 3], "Value": "a" }));
    }

    #[test]
    fn a_number_without_a_name_is_told_as_it_was_sent() {
        assert_eq!(of_match(1), "MATCH_SUBSET");
        assert_eq!(of_match(7), "7");
        assert_eq!(named(99, types::LogLevel::as_str_name), "99");
    }
}
