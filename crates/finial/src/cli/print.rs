//! Results for people: the blocks of lines that several commands share.

use std::fmt::Write as _;

use proto::spire::types;

use super::duration::{format_rfc3339, format_time};

/// An id as text; the empty text for none.
pub(crate) fn id_text(id: Option<&types::Spiffeid>) -> String {
    id.map_or_else(String::new, |id| format!("spiffe://{}{}", id.trust_domain, id.path))
}

/// `1 thing`, `2 things`.
pub(crate) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A registration entry with its closing blank line.
pub(crate) fn entry(entry: &types::Entry) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{label:<24}: {value}");
    };
    let ttl = |seconds: i32| if seconds == 0 { "default".to_owned() } else { seconds.to_string() };
    line("Entry ID", if entry.id.is_empty() { "(none)" } else { &entry.id });
    line("SPIFFE ID", &id_text(entry.spiffe_id.as_ref()));
    line("Parent ID", &id_text(entry.parent_id.as_ref()));
    line("Revision", &entry.revision_number.to_string());
    if entry.downstream {
        line("Downstream", "true");
    }
    line("X509-SVID TTL", &ttl(entry.x509_svid_ttl));
    line("JWT-SVID TTL", &ttl(entry.jwt_svid_ttl));
    if entry.expires_at != 0 {
        line("Expiration time", &format_time(entry.expires_at));
    }
    for selector in &entry.selectors {
        line("Selector", &format!("{}:{}", selector.r#type, selector.value));
    }
    for trust_domain in &entry.federates_with {
        line("FederatesWith", trust_domain);
    }
    for name in &entry.dns_names {
        line("DNS name", name);
    }
    if entry.admin {
        line("Admin", "true");
    }
    if entry.store_svid {
        line("StoreSvid", "true");
    }
    if !entry.hint.is_empty() {
        line("Hint", &entry.hint);
    }
    if let Some(attributes) = &entry.additional_attributes {
        if attributes.disable_x509_svid_prefetch {
            line("DisableX509SvidPrefetch", "true");
        }
        if attributes.jwt_svid_include_jti {
            line("JwtSvidIncludeJti", "true");
        }
    }
    text.push('\n');
    text
}

/// An agent with its closing blank line.
pub(crate) fn agent(agent: &types::Agent) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _written = writeln!(text, "{label:<18}: {value}");
    };
    line("SPIFFE ID", &id_text(agent.id.as_ref()));
    line("Attestation type", &agent.attestation_type);
    line("Expiration time", &format_time(agent.x509svid_expires_at));
    if agent.banned {
        line("Banned", "true");
    } else {
        line("Serial number", &agent.x509svid_serial_number);
    }
    line("Can re-attest", &agent.can_reattest.to_string());
    if !agent.agent_version.is_empty() {
        line("Agent version", &agent.agent_version);
    }
    text.push('\n');
    text
}

/// One certificate of an SVID chain, as the debug commands show it.
pub(crate) fn chain_link(
    index: usize,
    id: Option<&types::Spiffeid>,
    subject: &str,
    expires_at: i64,
) -> String {
    let id = id.map_or_else(|| "(none)".to_owned(), |id| id_text(Some(id)));
    format!(
        "    [{index}] SPIFFE ID:  {id}\n        Subject:    {subject}\n        Expires At: {}\n",
        format_rfc3339(expires_at)
    )
}
