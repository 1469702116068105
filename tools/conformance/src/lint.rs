//! Certificates of every shape, judged by linters: our own here, and one of another make.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::foreign::Foreign;
use crate::pki::Key;
use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Messages};

const MINT: &str = "/spire.api.server.svid.v1.SVID/MintX509SVID";
const GET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";
/// What pkilint says of every certificate, and why it stays.
const KNOWN: [(&str, &str); 2] = [
    // It knows the schemes of the web alone; SPIFFE IDs are what these certificates are for.
    ("pkix.invalid_uri_syntax", "spiffe://"),
    // SPIRE's SVIDs have one key usage for keys of all kinds, and so have these (RFC 8813 wants it without
    // keyEncipherment for elliptic curves; nobody asks such a key to encipher).
    ("pkix.key_usage_value_prohibited_for_ec", "keyEncipherment"),
];
/// X.520's unique identifier, which the composer `uniqueid` sets.
const UNIQUE_ID: &str = "2.5.4.45";

/// Certificates that a server issued.
#[derive(Debug, Default)]
pub struct Issued {
    /// DER, SVIDs and authorities.
    certificates: Vec<Vec<u8>>,
}

impl Issued {
    /// Has a server with a CA of this key type issue `count` SVIDs: with and without DNS names, of long and
    /// short lives, with subjects that a composer changed.
    ///
    /// # Errors
    /// Says what was not issued.
    ///
    /// # Panics
    /// If the server does not become healthy.
    pub fn by(product: &Product, recorded: &Path, ca_key: &str, count: usize) -> Result<Self, String> {
        let config = PlaneConfig {
            ca_key: ca_key.to_owned(),
            server_plugins: "CredentialComposer \"uniqueid\" {}".to_owned(),
            ..PlaneConfig::default()
        };
        let plane = Plane::start(product, &config, &BTreeMap::new());
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let messages = Messages::load(&recorded.join("api/api.fds"));
            let server = Caller::local(&messages, plane.word("sock"));
            let key = Key::generate();
            let mut issued = Self::default();
            let bundle = server.ask(GET_BUNDLE, json!({})).await?;
            for authority in bundle["x509_authorities"].as_array().into_iter().flatten() {
                issued.take(&authority["asn1"])?;
            }
            for number in 0..count {
                let uri = format!("spiffe://example.org/{}/{number}", "long-segment".repeat(number % 12 + 1));
                let dns: Vec<String> =
                    (0..number % 4).map(|name| format!("n{name}.w{number}.test")).collect();
                let csr = STANDARD.encode(key.request_with(&uri, &dns));
                let ttl = [0, 60, 3600, 86_400, 10_000_000][number % 5];
                let minted = server.ask(MINT, json!({"csr": csr, "ttl": ttl})).await?;
                issued.take(&minted["svid"]["cert_chain"][0])?;
            }
            Ok(issued)
        })
    }

    fn take(&mut self, der: &Value) -> Result<(), String> {
        let der = der.as_str().ok_or("the answer holds no certificate")?;
        self.certificates.push(STANDARD.decode(der).map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Adds those of another server.
    pub fn extend(&mut self, more: Self) {
        self.certificates.extend(more.certificates);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.certificates.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// What our own lints find.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let mut serials = HashSet::new();
        let mut findings = Vec::new();
        for (number, der) in self.certificates.iter().enumerate() {
            let mut say = |what: &str| findings.push(format!("{number}: {what}"));
            match X509Certificate::from_der(der) {
                Ok((rest, certificate)) => {
                    if !rest.is_empty() {
                        say("bytes follow the certificate");
                    }
                    if !serials.insert(certificate.raw_serial().to_vec()) {
                        say("the serial number is used twice");
                    }
                    lint(&certificate, &mut say);
                }
                Err(error) => say(&format!("it cannot be read: {error}")),
            }
        }
        findings
    }

    /// What pkilint finds beyond what it says of every SVID; nothing is known where that is not at hand.
    ///
    /// # Panics
    /// If it ends with an error, or has not looked at everything.
    #[must_use]
    pub fn foreign_findings(&self) -> Option<Vec<String>> {
        let linter = Foreign::python("pkilint", "lint.py")?;
        let mut command = linter.command(&[]);
        let mut linting = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a linter");
        let lines: String = self.certificates.iter().map(|der| STANDARD.encode(der) + "\n").collect();
        let mut stdin = linting.stdin.take().expect("a pipe");
        let feeder = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
        let output = linting.wait_with_output().expect("the linter's output");
        feeder.join().expect("the feeder ends").expect("the linter reads all");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut findings: Vec<String> = text.lines().map(str::to_owned).collect();
        let last = findings.pop();
        let is_known =
            |found: &str| KNOWN.iter().any(|(code, about)| found.contains(code) && found.contains(about));
        findings.retain(|found| !is_known(found));
        assert_eq!(last, Some(format!("{} certificates", self.len())), "{:?}", output.status);
        Some(findings)
    }
}

/// The rules of SPIFFE's X.509-SVID and of RFC 5280 that readers stumble over.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is not looked at here is for the other linter")]
fn lint(certificate: &X509Certificate<'_>, say: &mut impl FnMut(&str)) {
    let serial = certificate.raw_serial();
    if serial.len() > 20 || serial.first().is_none_or(|first| first & 0x80 != 0) {
        say("the serial number is not a positive one of at most 20 bytes");
    }
    let mut seen = HashSet::new();
    let (mut uris, mut is_ca, mut key_id, mut authority_id) = (Vec::new(), false, None, None);
    for extension in certificate.extensions() {
        if !seen.insert(extension.oid.to_id_string()) {
            say("an extension stands there twice");
        }
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => {
                is_ca = constraints.ca;
                if !extension.critical {
                    say("basic constraints are not critical");
                }
            }
            ParsedExtension::KeyUsage(usage) => {
                if !extension.critical {
                    say("key usage is not critical");
                }
                let signs = usage.key_cert_sign() || usage.crl_sign();
                if usage.digital_signature() == signs {
                    say("key usage is that of an SVID and of an authority, or of neither");
                }
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                        GeneralName::DNSName(_) => {}
                        _ => say("a name is neither URI nor DNS name"),
                    }
                }
            }
            ParsedExtension::ExtendedKeyUsage(usage) if !(usage.server_auth && usage.client_auth) => {
                say("extended key usage is not for both servers and clients");
            }
            ParsedExtension::SubjectKeyIdentifier(id) => key_id = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                authority_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            ParsedExtension::UnsupportedExtension { .. } | ParsedExtension::ParseError { .. } => {
                say("an extension is not known or cannot be read");
            }
            _ => {}
        }
    }
    let key = certificate.public_key().subject_public_key.data.as_ref();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, key);
    if key_id.as_deref() != Some(digest.as_ref()) {
        say("the subject key identifier is not the key's digest");
    }
    match (is_ca, uris.as_slice()) {
        (true, [uri]) if uri == "spiffe://example.org" => {}
        (false, [uri]) if uri.starts_with("spiffe://example.org/") => {
            if authority_id.is_none() {
                say("there is no authority key identifier");
            }
            let has_unique_id = certificate
                .subject()
                .iter_attributes()
                .any(|one| one.attr_type().to_id_string() == UNIQUE_ID);
            if !has_unique_id {
                say("the composer did not set its attribute");
            }
        }
        _ => say("it has not exactly one identity, of its trust domain"),
    }
    if certificate.validity().not_before >= certificate.validity().not_after {
        say("it never holds");
    }
}
