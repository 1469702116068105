//! `entry count`, `show`, `create`, `update`, `delete`.

use proto::spire::server::entry::entry_client::EntryClient;
use proto::spire::server::entry::list_entries_request::Filter;
use proto::spire::server::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetEntryRequest, ListEntriesRequest, ListEntriesResponse, count_entries_request,
};
use proto::spire::types::{self, federates_with_match, selector_match};
use serde::Deserialize;
use spiffe::quote::quoted;
use spiffe::{SpiffeId, TrustDomain};

use crate::cli::data::{self, Object, Shape};
use crate::cli::flags::{Flag, Flags, Kind, Output, flag, flag_or};
use crate::cli::rpc::{self, Dialed, client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, json, print};

/// Entries asked for at a time.
const PAGE_SIZE: i32 = 500;

/// The flags that describe one entry; none of them goes with `-data`.
const FIELDS: [Flag; 14] = [
    flag(
        "entryID",
        Kind::Text,
        "A custom ID for this registration entry (optional). If not set, a new entry ID will be generated",
    ),
    flag("parentID", Kind::Text, "The SPIFFE ID of this record's parent"),
    flag("spiffeID", Kind::Text, "The SPIFFE ID that this record represents"),
    flag("x509SVIDTTL", Kind::Int, "The lifetime, in seconds, for x509-SVIDs issued based on this entry"),
    flag("jwtSVIDTTL", Kind::Int, "The lifetime, in seconds, for JWT-SVIDs issued based on this entry"),
    flag("data", Kind::Text, "Path to a file with entries as JSON; - reads stdin"),
    flag("selector", Kind::Texts, "A colon-delimited type:value selector. Can be used more than once"),
    flag(
        "federatesWith",
        Kind::Texts,
        "SPIFFE ID of a trust domain to federate with. Can be used more than once",
    ),
    flag(
        "admin",
        Kind::Bool,
        "If set, the SPIFFE ID in this entry may call the server API as an administrator",
    ),
    flag("storeSVID", Kind::Bool, "If set, SVIDs are pushed to an SVID store by the agent"),
    flag("downstream", Kind::Bool, "If set, the entry describes a downstream server"),
    flag("entryExpiry", Kind::Int, "An expiry, in seconds since the epoch, for the entry"),
    flag("dns", Kind::Texts, "A DNS name to include in SVIDs. Can be used more than once"),
    flag("hint", Kind::Text, "Tells workloads with several identities what this one is for"),
];

/// The flags of an entry's attributes.
const fn attributes(kind: Kind) -> [Flag; 2] {
    [
        flag(
            "disableX509SVIDPrefetch",
            kind,
            "If set, the agent does not fetch the X509-SVID before a workload asks",
        ),
        flag("jwtSVIDIncludeJTI", kind, "If set, JWT-SVIDs carry a jti claim"),
    ]
}

/// The flags that narrow a list.
const FILTERS: [Flag; 8] = [
    flag("parentID", Kind::Text, "The SPIFFE ID of the parent of the records"),
    flag("spiffeID", Kind::Text, "The SPIFFE ID of the records"),
    flag("downstream", Kind::Bool, "Only downstream entries"),
    flag("selector", Kind::Texts, "A colon-delimited type:value selector. Can be used more than once"),
    flag_or("matchSelectorsOn", Kind::Text, "superset", "How selectors match: exact, any, superset, subset"),
    flag("federatesWith", Kind::Texts, "SPIFFE ID of a trust domain that the entries federate with"),
    flag_or(
        "matchFederatesWithOn",
        Kind::Text,
        "superset",
        "How federated trust domains match: exact, any, superset, subset",
    ),
    flag("hint", Kind::Text, "The hint of the records"),
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
    let node = [flag("node", Kind::Bool, "If set, the entry applies to matching nodes")];
    let create = [&FIELDS[..], &attributes(Kind::Bool), &node].concat();
    // What is updated is kept but for what is set: a value behind the flag is not looked at.
    let update = [&FIELDS[..], &attributes(Kind::Switch)].concat();
    let show = [&FILTERS[..], &[flag("entryID", Kind::Text, "The ID of the record to show")]].concat();
    let delete = [
        flag("entryID", Kind::Text, "The ID of the record to delete"),
        flag("file", Kind::Text, "Path to a file with entry IDs as JSON; - reads stdin"),
    ];
    vec![
        command("entry count", "Count registration entries", &FILTERS, count),
        command("entry show", "Show registration entries", &show, show_entries),
        command("entry create", "Create registration entries", &create, create_entries),
        command("entry update", "Update registration entries", &update, update_entries),
        command("entry delete", "Delete registration entries", &delete, delete_entries),
    ]
}

fn count(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let filter = filter(flags)?;
    with_server(flags, |dialed| async move {
        let filter = count_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        };
        let request = CountEntriesRequest { filter: Some(filter) };
        let reply = client!(EntryClient<_>, dialed)
            .count_entries(request)
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => {
                json::line(&json::tree("spire.api.server.entry.v1.CountEntriesResponse", &reply)?)
            }
            Output::Pretty => {
                let count = usize::try_from(reply.count).unwrap_or(0);
                print::counted(count, "registration entry", "registration entries") + "\n"
            }
        };
        Ok(())
    })
}

fn show_entries(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let entry_id = flags.text("entryID").to_owned();
    if !entry_id.is_empty()
        && (!flags.text("parentID").is_empty()
            || !flags.text("spiffeID").is_empty()
            || !flags.texts("selector").is_empty())
    {
        return Err("the -entryID flag can't be combined with others".into());
    }
    let filter = filter(flags)?;
    with_server(flags, |dialed| async move {
        let mut entries = if entry_id.is_empty() {
            list(&dialed, filter).await?
        } else {
            let request = GetEntryRequest { id: entry_id.clone(), output_mask: None };
            let entry = client!(EntryClient<_>, dialed)
                .get_entry(request)
                .await
                .map_err(|status| dialed.error(&format!("error fetching entry ID {entry_id}: "), &status))?;
            vec![entry.into_inner()]
        };
        sort(&mut entries);
        printer.out = match flags.output() {
            Output::Json => {
                let reply = ListEntriesResponse { entries, next_page_token: String::new() };
                json::line(&json::tree("spire.api.server.entry.v1.ListEntriesResponse", &reply)?)
            }
            Output::Pretty => {
                let found = print::counted(entries.len(), "entry", "entries");
                entries.iter().fold(format!("Found {found}\n"), |text, entry| text + &print::entry(entry))
            }
        };
        Ok(())
    })
}

async fn list(dialed: &Dialed, filter: Filter) -> Result<Vec<types::Entry>, Failure> {
    let mut entries = Vec::new();
    let mut request = ListEntriesRequest {
        filter: Some(filter),
        output_mask: None,
        page_size: PAGE_SIZE,
        page_token: String::new(),
    };
    loop {
        let reply = client!(EntryClient<_>, dialed)
            .list_entries(request.clone())
            .await
            .map_err(|status| dialed.error("error fetching entries: ", &status))?
            .into_inner();
        entries.extend(reply.entries);
        if reply.next_page_token.is_empty() {
            return Ok(entries);
        }
        request.page_token = reply.next_page_token;
    }
}

/// Sorts entries as people look for them: by what they are for, then by how they say it, few selectors
/// before many.
fn sort(entries: &mut [types::Entry]) {
    for entry in entries.iter_mut() {
        entry.selectors.sort_by(|a, b| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value)));
    }
    let id = |id: &Option<types::Spiffeid>| {
        id.as_ref().map_or_else(Default::default, |id| (id.trust_domain.clone(), id.path.clone()))
    };
    entries.sort_by_cached_key(|entry| {
        let selectors: Vec<(String, String)> =
            entry.selectors.iter().map(|s| (s.r#type.clone(), s.value.clone())).collect();
        let ttls = (entry.x509_svid_ttl, entry.jwt_svid_ttl);
        (id(&entry.spiffe_id), id(&entry.parent_id), ttls, selectors.len(), selectors)
    });
}

fn create_entries(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    // The socket comes first: a wrong instance is reported before a missing field.
    rpc::server_socket(flags)?;
    let entries = match flags.text("data") {
        "" => vec![entry_from_flags(flags, Target::New)?],
        path => entries_from_data(path)?,
    };
    with_server(flags, |dialed| async move {
        let request = BatchCreateEntryRequest { entries: entries.clone(), output_mask: None };
        let mut reply = client!(EntryClient<_>, dialed)
            .batch_create_entry(request)
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        for (result, asked) in reply.results.iter_mut().zip(&entries) {
            if result.status.as_ref().is_some_and(|status| status.code != 0) {
                result.entry = Some(asked.clone());
            }
        }
        if flags.output() == Output::Json {
            let tree = json::tree("spire.api.server.entry.v1.BatchCreateEntryResponse", &reply)?;
            printer.out = json::line(&tree);
            return Ok(());
        }
        let results = reply.results.into_iter().map(|result| (result.status, result.entry));
        report(printer, "create", results)
    })
}

fn update_entries(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    let merges = flags.any_given(&["disableX509SVIDPrefetch", "jwtSVIDIncludeJTI"]);
    let from_data = !flags.text("data").is_empty();
    let mut entries = match flags.text("data") {
        "" => vec![entry_from_flags(flags, Target::Existing)?],
        path => entries_from_data(path)?,
    };
    with_server(flags, |dialed| async move {
        if merges && !from_data {
            for entry in &mut entries {
                merge_attributes(&dialed, flags, entry).await?;
            }
        }
        let request =
            BatchUpdateEntryRequest { entries: entries.clone(), input_mask: None, output_mask: None };
        let mut reply = client!(EntryClient<_>, dialed)
            .batch_update_entry(request)
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        for (result, asked) in reply.results.iter_mut().zip(&entries) {
            if result.status.as_ref().is_some_and(|status| status.code != 0) {
                result.entry = Some(asked.clone());
            }
        }
        if flags.output() == Output::Json {
            let tree = json::tree("spire.api.server.entry.v1.BatchUpdateEntryResponse", &reply)?;
            printer.out = json::line(&tree);
            return Ok(());
        }
        let results = reply.results.into_iter().map(|result| (result.status, result.entry));
        report(printer, "update", results)
    })
}

/// Takes over the attribute that is not given from the entry as it stands.
async fn merge_attributes(dialed: &Dialed, flags: &Flags, entry: &mut types::Entry) -> Result<(), Failure> {
    let request = GetEntryRequest { id: entry.id.clone(), output_mask: None };
    let existing = client!(EntryClient<_>, dialed)
        .get_entry(request)
        .await
        .map_err(|status| {
            dialed.error("failed to fetch existing entry to merge additional attributes: ", &status)
        })?
        .into_inner();
    let mut merged = existing.additional_attributes.unwrap_or_default();
    merged.disable_x509_svid_prefetch |= flags.is_on("disableX509SVIDPrefetch");
    merged.jwt_svid_include_jti |= flags.is_on("jwtSVIDIncludeJTI");
    entry.additional_attributes = Some(merged);
    Ok(())
}

fn report(
    printer: &mut Printer,
    verb: &str,
    results: impl Iterator<Item = (Option<types::Status>, Option<types::Entry>)>,
) -> Result<(), Failure> {
    let mut failed = false;
    for (status, entry) in results {
        let status = status.unwrap_or_default();
        let block = print::entry(&entry.unwrap_or_default());
        if status.code == 0 {
            printer.out.push_str(&block);
        } else {
            failed = true;
            printer.err.push_str(&format!(
                "Failed to {verb} the following entry (code: {}, msg: {}):\n{block}",
                rpc::code_name_of(status.code),
                quoted(&status.message)
            ));
        }
    }
    if failed { Err(format!("failed to {verb} one or more entries").into()) } else { Ok(()) }
}

fn delete_entries(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Ids {
        #[serde(default)]
        ids: Vec<String>,
    }
    rpc::server_socket(flags)?;
    let ids = match (flags.text("entryID"), flags.text("file")) {
        (_, path) if !path.is_empty() => {
            let bytes = rpc::read_input(path)?;
            data::read::<Ids>(&bytes, &IDS)?.ids
        }
        ("", _) => return Err("an entry ID is required".into()),
        (id, _) => vec![id.to_owned()],
    };
    with_server(flags, |dialed| async move {
        let reply = client!(EntryClient<_>, dialed)
            .batch_delete_entry(BatchDeleteEntryRequest { ids })
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        if flags.output() == Output::Json {
            let tree = json::tree("spire.api.server.entry.v1.BatchDeleteEntryResponse", &reply)?;
            printer.out = json::line(&tree);
            return Ok(());
        }
        let (mut deleted, mut failed) = (0, 0);
        for result in reply.results {
            let status = result.status.unwrap_or_default();
            if status.code == 0 {
                deleted += 1;
                printer.out.push_str(&format!("Deleted entry with ID: {}\n", result.id));
            } else {
                failed += 1;
                rpc::item_failed(
                    printer,
                    &format!(
                        "Failed to delete entry with ID {} (code: {}, msg: {})",
                        result.id,
                        rpc::code_name_of(status.code),
                        quoted(&status.message)
                    ),
                );
            }
        }
        for count in [deleted, failed] {
            if count > 0 {
                printer.out.push_str("\n\n");
            }
        }
        // None of these lines ends with a newline; scripts see it so.
        printer.out.push_str(&match (deleted, failed) {
            (_, 0) => format!("Deleted {deleted} entries successfully"),
            (0, _) => format!("Failed to delete {failed} entries"),
            _ => format!("Deleted {deleted} entries successfully, but failed to delete {failed} entries"),
        });
        if failed > 0 { Err("failed to delete one or more entries".into()) } else { Ok(()) }
    })
}

fn filter(flags: &Flags) -> Result<Filter, Failure> {
    rpc::server_socket(flags)?;
    let mut filter = Filter { by_downstream: Some(flags.is_on("downstream")), ..Filter::default() };
    if !flags.text("parentID").is_empty() {
        let id = parse_id(flags.text("parentID"));
        filter.by_parent_id =
            Some(id.map_err(|why| {
                format!("error parsing parent ID {}: {why}", quoted(flags.text("parentID")))
            })?);
    }
    if !flags.text("spiffeID").is_empty() {
        let id = parse_id(flags.text("spiffeID"));
        filter.by_spiffe_id =
            Some(id.map_err(|why| {
                format!("error parsing SPIFFE ID {}: {why}", quoted(flags.text("spiffeID")))
            })?);
    }
    if !flags.texts("selector").is_empty() {
        let how = match flags.text("matchSelectorsOn") {
            "exact" => selector_match::MatchBehavior::MatchExact,
            "any" => selector_match::MatchBehavior::MatchAny,
            "superset" => selector_match::MatchBehavior::MatchSuperset,
            "subset" => selector_match::MatchBehavior::MatchSubset,
            other => return Err(format!("match behavior {} unknown", quoted(other)).into()),
        };
        let selectors = parse_selectors(flags.texts("selector"))
            .map_err(|why| format!("error parsing selectors: {why}"))?;
        filter.by_selectors = Some(types::SelectorMatch { selectors, r#match: how.into() });
    }
    if !flags.texts("federatesWith").is_empty() {
        let how = match flags.text("matchFederatesWithOn") {
            "exact" => federates_with_match::MatchBehavior::MatchExact,
            "any" => federates_with_match::MatchBehavior::MatchAny,
            "superset" => federates_with_match::MatchBehavior::MatchSuperset,
            "subset" => federates_with_match::MatchBehavior::MatchSubset,
            other => return Err(format!("match behavior {} unknown", quoted(other)).into()),
        };
        filter.by_federates_with = Some(types::FederatesWithMatch {
            trust_domains: flags.texts("federatesWith").to_vec(),
            r#match: how.into(),
        });
    }
    if !flags.text("hint").is_empty() {
        filter.by_hint = Some(flags.text("hint").to_owned());
    }
    Ok(filter)
}

/// Whether an entry is made or changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    New,
    Existing,
}

fn entry_from_flags(flags: &Flags, target: Target) -> Result<types::Entry, String> {
    let (parent, id) = (flags.text("parentID"), flags.text("spiffeID"));
    let is_node = flags.is_on("node");
    if target == Target::Existing && flags.text("entryID").is_empty() {
        return Err("entry ID is required".to_owned());
    }
    if flags.texts("selector").is_empty() {
        return Err("at least one selector is required".to_owned());
    }
    if is_node && !flags.texts("federatesWith").is_empty() {
        return Err("node entries can not federate".to_owned());
    }
    if parent.is_empty() && !is_node {
        let why = match target {
            Target::New => "a parent ID is required if the node flag is not set",
            Target::Existing => "a parent ID is required",
        };
        return Err(why.to_owned());
    }
    if id.is_empty() {
        return Err("a SPIFFE ID is required".to_owned());
    }
    if flags.int("x509SVIDTTL") < 0 {
        return Err("a positive x509-SVID TTL is required".to_owned());
    }
    if flags.int("jwtSVIDTTL") < 0 {
        return Err("a positive JWT-SVID TTL is required".to_owned());
    }
    if target == Target::Existing {
        // Of an entry that is changed, the parent is looked at first.
        parse_id(parent)?;
    }
    let spiffe_id = parse_id(id)?;
    let parent_id = if is_node {
        types::Spiffeid { trust_domain: spiffe_id.trust_domain.clone(), path: "/spire/server".to_owned() }
    } else {
        parse_id(parent)?
    };
    let ttl = |name: &str, shown: &str| {
        let seconds = flags.int(name);
        i32::try_from(seconds).map_err(|_| {
            format!("invalid value for {shown} SVID TTL: overflow converting int({seconds}) to int32")
        })
    };
    let mut entry = types::Entry {
        id: flags.text("entryID").to_owned(),
        parent_id: Some(parent_id),
        spiffe_id: Some(spiffe_id),
        downstream: flags.is_on("downstream"),
        expires_at: flags.int("entryExpiry"),
        dns_names: flags.texts("dns").to_vec(),
        store_svid: flags.is_on("storeSVID"),
        x509_svid_ttl: ttl("x509SVIDTTL", "X509")?,
        jwt_svid_ttl: ttl("jwtSVIDTTL", "JWT")?,
        hint: flags.text("hint").to_owned(),
        selectors: parse_selectors(flags.texts("selector"))?,
        federates_with: flags.texts("federatesWith").to_vec(),
        admin: flags.is_on("admin"),
        ..types::Entry::default()
    };
    if flags.is_on("disableX509SVIDPrefetch") || flags.is_on("jwtSVIDIncludeJTI") {
        entry.additional_attributes = Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: flags.is_on("disableX509SVIDPrefetch"),
            jwt_svid_include_jti: flags.is_on("jwtSVIDIncludeJTI"),
        });
    }
    Ok(entry)
}

/// An entry in the JSON that `-data` takes; keys SPIRE does not know are ignored.
#[derive(Default, Deserialize)]
#[serde(default)]
struct EntryData {
    selectors: Vec<SelectorData>,
    parent_id: String,
    spiffe_id: String,
    x509_svid_ttl: i32,
    jwt_svid_ttl: i32,
    federates_with: Vec<String>,
    entry_id: String,
    admin: bool,
    downstream: bool,
    #[serde(rename = "entryExpiry")]
    entry_expiry: i64,
    dns_names: Vec<String>,
    revision_number: i64,
    store_svid: bool,
    hint: String,
    created_at: i64,
    additional_attributes: Option<AttributeData>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SelectorData {
    r#type: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AttributeData {
    disable_x509_svid_prefetch: bool,
    jwt_svid_include_jti: bool,
}

const ENTRIES: Object = Object {
    go: ("common", "RegistrationEntries"),
    members: &[("entries", Shape::Objects(&ENTRY, "missing registration entry"))],
};

const ENTRY: Object = Object {
    go: ("common", "RegistrationEntry"),
    members: &[
        ("selectors", Shape::Objects(&SELECTOR, "missing selector")),
        ("parent_id", Shape::Text),
        ("spiffe_id", Shape::Text),
        ("x509_svid_ttl", Shape::Int32),
        ("federates_with", Shape::Texts),
        ("entry_id", Shape::Text),
        ("admin", Shape::Bool),
        ("downstream", Shape::Bool),
        ("entryExpiry", Shape::Int64),
        ("dns_names", Shape::Texts),
        ("revision_number", Shape::Int64),
        ("store_svid", Shape::Bool),
        ("jwt_svid_ttl", Shape::Int32),
        ("hint", Shape::Text),
        ("created_at", Shape::Int64),
        ("additional_attributes", Shape::Object(&ATTRIBUTES)),
    ],
};

const SELECTOR: Object =
    Object { go: ("common", "Selector"), members: &[("type", Shape::Text), ("value", Shape::Text)] };

const ATTRIBUTES: Object = Object {
    go: ("common", "RegistrationEntry_AdditionalAttributes"),
    members: &[("disable_x509_svid_prefetch", Shape::Bool), ("jwt_svid_include_jti", Shape::Bool)],
};

const IDS: Object = Object { go: ("entryv1", "BatchDeleteEntryRequest"), members: &[("ids", Shape::Texts)] };

fn entries_from_data(path: &str) -> Result<Vec<types::Entry>, String> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        entries: Vec<EntryData>,
    }
    let bytes = rpc::read_input(path)?;
    let data: Data = data::read(&bytes, &ENTRIES)?;
    data.entries.into_iter().map(entry_from_data).collect()
}

fn entry_from_data(data: EntryData) -> Result<types::Entry, String> {
    let id = parse_id(&data.spiffe_id).map_err(|why| format!("invalid SPIFFE ID: {why}"));
    let parent = parse_id(&data.parent_id).map_err(|why| format!("invalid parent ID: {why}"));
    let federates_with = data
        .federates_with
        .iter()
        .map(|text| {
            let trust_domain = TrustDomain::parse(text);
            trust_domain
                .map(|one| one.as_str().to_owned())
                .map_err(|why| format!("invalid federated trust domain: {why}"))
        })
        .collect::<Result<Vec<_>, _>>();
    Ok(types::Entry {
        id: data.entry_id,
        spiffe_id: Some(id?),
        parent_id: Some(parent?),
        selectors: data
            .selectors
            .into_iter()
            .map(|selector| types::Selector { r#type: selector.r#type, value: selector.value })
            .collect(),
        x509_svid_ttl: data.x509_svid_ttl,
        jwt_svid_ttl: data.jwt_svid_ttl,
        federates_with: federates_with?,
        admin: data.admin,
        downstream: data.downstream,
        expires_at: data.entry_expiry,
        dns_names: data.dns_names,
        revision_number: data.revision_number,
        created_at: data.created_at,
        store_svid: data.store_svid,
        hint: data.hint,
        additional_attributes: data.additional_attributes.map(|attributes| {
            types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
                jwt_svid_include_jti: attributes.jwt_svid_include_jti,
            }
        }),
    })
}

/// An id on the wire from its text.
pub(super) fn parse_id(text: &str) -> Result<types::Spiffeid, String> {
    let id = SpiffeId::parse(text).map_err(|why| why.to_string())?;
    Ok(types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() })
}

/// Selectors from `type:value` texts.
pub(super) fn parse_selectors(texts: &[String]) -> Result<Vec<types::Selector>, String> {
    texts
        .iter()
        .map(|text| {
            let (kind, value) = text
                .split_once(':')
                .ok_or_else(|| format!("selector \"{text}\" must be formatted as type:value"))?;
            Ok(types::Selector { r#type: kind.to_owned(), value: value.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_selectors_stand_before_many() {
        let entry = |selectors: &[&str]| types::Entry {
            selectors: parse_selectors(&selectors.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
                .unwrap(),
            ..types::Entry::default()
        };
        let mut entries = [entry(&["b:2", "a:1"]), entry(&["z:1"]), entry(&["a:2", "a:1"])];

        sort(&mut entries);

        assert_eq!(entries, [entry(&["z:1"]), entry(&["a:1", "a:2"]), entry(&["a:1", "b:2"])]);
    }
}
