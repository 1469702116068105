//! `x509 mint` and `jwt mint`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::spire::server::bundle::GetBundleRequest;
use proto::spire::server::bundle::bundle_client::BundleClient;
use proto::spire::server::svid::svid_client::SvidClient;
use proto::spire::server::svid::{MintJwtsvidRequest, MintX509svidRequest};
use proto::spire::types;
use spiffe::SpiffeId;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::quote::quoted;
use spiffe::x509::{Attribute, CsrTemplate, Name, to_pem};

use super::entry::parse_id;
use crate::cli::duration::{format_duration, format_rfc3339};
use crate::cli::flags::{Flag, Flags, Kind, Output, flag};
use crate::cli::rpc::{self, client, server_flags_with_output, system_text, with_server};
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
    let id = flag("spiffeID", Kind::Text, "SPIFFE ID of the SVID");
    let ttl = flag("ttl", Kind::Duration, "TTL of the SVID; the server's default if not set");
    let dns = flag("dns", Kind::Texts, "DNS name to include in the X509-SVID. Can be used more than once");
    let audience = flag("audience", Kind::Texts, "Audience of the JWT-SVID. Can be used more than once");
    let dir = flag("write", Kind::Text, "Directory to write the files to, instead of stdout");
    let file = flag("write", Kind::Text, "File to write the token to, instead of stdout");
    vec![
        command("x509 mint", "Mint an X509-SVID", &[id, ttl, dns, dir], mint_x509),
        command("jwt mint", "Mint a JWT-SVID", &[id, ttl, audience, file], mint_jwt),
    ]
}

fn mint_x509(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let id = required_id(flags)?;
    let key =
        PrivateKey::generate(KeyKind::EcP256).map_err(|why| format!("unable to generate key: {why}"))?;
    if let Some(name) = flags.texts("dns").iter().find(|name| !name.is_ascii()) {
        let name = quoted(name);
        return Err(format!("unable to generate CSR: x509: {name} cannot be encoded as an IA5String").into());
    }
    let template = CsrTemplate {
        subject: Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIRE")]),
        id: Some(id),
        dns_names: flags.texts("dns").to_vec(),
    };
    let csr = template.sign(&key).map_err(|why| format!("unable to generate CSR: {why}"))?;
    let pkcs8 = key.to_pkcs8().map_err(|why| format!("unable to write key: {why}"))?;
    let ttl = seconds(flags)?;
    with_server(flags, |dialed| async move {
        let request = MintX509svidRequest { csr: csr.into(), ttl };
        let reply = client!(SvidClient<_>, dialed).mint_x509svid(request).await;
        let svid = reply.map_err(|status| dialed.error("unable to mint SVID: ", &status))?.into_inner().svid;
        let svid = svid.ok_or("server response missing SVID")?;
        let reply = client!(BundleClient<_>, dialed).get_bundle(GetBundleRequest { output_mask: None }).await;
        let bundle = reply.map_err(|status| dialed.error("unable to get bundle: ", &status))?.into_inner();
        if is_capped(flags, svid.expires_at) {
            printer.err.push_str(&capped("X509-SVID", svid.expires_at));
        }
        let roots: Vec<&[u8]> = bundle.x509_authorities.iter().map(|root| root.asn1.as_ref()).collect();
        let chain: Vec<&[u8]> = svid.cert_chain.iter().map(AsRef::as_ref).collect();
        let pem = |ders: &[&[u8]]| -> String { ders.iter().map(|der| to_pem("CERTIFICATE", der)).collect() };
        let key_pem = to_pem("PRIVATE KEY", &pkcs8);
        let dir = flags.text("write");
        if !dir.is_empty() {
            let files = [
                ("X509-SVID", "SVID", "svid.pem", pem(&chain), 0o644),
                ("Private key", "key", "key.pem", key_pem, 0o600),
                ("Root CAs", "bundle", "bundle.pem", pem(&roots), 0o644),
            ];
            for (shown, what, name, text, mode) in files {
                let path = rpc::cleaned(&Path::new(dir).join(name));
                write_file(&path, &text, mode).map_err(|why| format!("unable to write {what}: {why}"))?;
                printer.out.push_str(&format!("{shown} written to {}\n", path.display()));
            }
            return Ok(());
        }
        printer.out = match flags.output() {
            Output::Json => {
                let list = |ders: &[&[u8]]| {
                    let quoted: Vec<String> =
                        ders.iter().map(|der| format!("\"{}\"", STANDARD.encode(der))).collect();
                    quoted.join(",")
                };
                format!(
                    "{{\"x509_svid\":[{}],\"private_key\":\"{}\",\"root_cas\":[{}]}}\n",
                    list(&chain),
                    STANDARD.encode(pkcs8.as_slice()),
                    list(&roots)
                )
            }
            Output::Pretty => {
                format!("X509-SVID:\n{}\nPrivate key:\n{key_pem}\nRoot CAs:\n{}\n", pem(&chain), pem(&roots))
            }
        };
        Ok(())
    })
}

fn mint_jwt(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    if flags.text("spiffeID").is_empty() {
        return Err("spiffeID must be specified".into());
    }
    let audience = flags.texts("audience").to_vec();
    if audience.is_empty() {
        return Err("at least one audience must be specified".into());
    }
    let id: types::Spiffeid = parse_id(flags.text("spiffeID"))?;
    let ttl = seconds(flags)?;
    with_server(flags, |dialed| async move {
        let request = MintJwtsvidRequest { id: Some(id), audience, ttl };
        let reply = client!(SvidClient<_>, dialed).mint_jwtsvid(request).await;
        let reply = reply.map_err(|status| dialed.error("unable to mint SVID: ", &status))?.into_inner();
        let svid = reply.svid.as_ref().ok_or("server response missing SVID")?;
        if is_capped(flags, svid.expires_at) {
            printer.err.push_str(&capped("JWT-SVID", svid.expires_at));
        }
        let path = flags.text("write");
        if !path.is_empty() {
            let written = write_file(Path::new(path), &svid.token, 0o600);
            written.map_err(|why| format!("unable to write token: {why}"))?;
            printer.out = format!("JWT-SVID written to {path}\n");
            return Ok(());
        }
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree("spire.api.server.svid.v1.MintJWTSVIDResponse", &reply)?),
            Output::Pretty => format!("{}\n", svid.token),
        };
        Ok(())
    })
}

pub(super) fn required_id(flags: &Flags) -> Result<SpiffeId, Failure> {
    rpc::server_socket(flags)?;
    match flags.text("spiffeID") {
        "" => Err("spiffeID must be specified".into()),
        text => Ok(SpiffeId::parse(text).map_err(|why| why.to_string())?),
    }
}

/// The lifetime asked for in whole seconds, rounded up; 0 is the server's default, and so is a negative
/// one, as scripts know it from SPIRE (the API refuses those).
pub(super) fn seconds(flags: &Flags) -> Result<i32, String> {
    whole_seconds(flags.nanos("ttl")).map(|seconds| seconds.max(0))
}

/// As SPIRE reckons it: near the end of the range the sum comes out below zero, and seconds that are too
/// many are told as if they were nanoseconds.
fn whole_seconds(nanos: i64) -> Result<i32, String> {
    let seconds = nanos.wrapping_add(999_999_999) / 1_000_000_000;
    i32::try_from(seconds).map_err(|_| {
        let told = format_duration(seconds);
        format!("invalid value for TTL: overflow converting time.Duration({told}) to int32")
    })
}

/// Whether the server gave less than was asked for. Also a fraction of a second is less, as for SPIRE's
/// command: what was asked for counts from now, and what was given from the second before.
pub(super) fn is_capped(flags: &Flags, expires_at: i64) -> bool {
    let left = spiffe::UnixSecs(expires_at).to_system_time().duration_since(now()).unwrap_or_default();
    left < flags.duration("ttl")
}

pub(super) fn capped(what: &str, expires_at: i64) -> String {
    format!(
        "{what} lifetime was capped shorter than specified ttl; expires \"{}\"\n",
        format_rfc3339(expires_at)
    )
}

/// Writes a file of the given mode; the words are Go's.
pub(super) fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| format!("open {}: {}", path.display(), system_text(&error)))
}

#[expect(clippy::disallowed_methods, reason = "a command looks at the clock once")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_rounded_up_and_too_long_ones_told_as_nanoseconds() {
        let refused = |told: &str| {
            Err(format!("invalid value for TTL: overflow converting time.Duration({told}) to int32"))
        };

        assert_eq!(whole_seconds(1), Ok(1));
        assert_eq!(whole_seconds(1_000_000_001), Ok(2));
        assert_eq!(whole_seconds(3_153_600_000_000_000_000), refused("3.1536s"));
        assert_eq!(whole_seconds(i64::MAX), refused("-9.223372035s"));
        assert_eq!(whole_seconds(-2_500_000_000), Ok(-1));
    }
}
