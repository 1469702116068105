//! `x509pop`: an agent proves that it holds the key of a certificate from an authority of one's own.
//!
//! Sizes and counts are capped before any arithmetic, the chain is judged before the agent is
//! challenged, and each challenge has a nonce of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{
    Attested, BuiltIn, Challenger, Code, Host, Plugin, PluginConfig, PluginError, PluginInfo, PluginKind,
    ServerNodeAttestor,
};
use serde::Deserialize;
use spiffe::key::PublicKeyKind;
use spiffe::x509::{Certificate, Name, find_path};
use spiffe::{Selector, TrustDomain, UnixSecs};

use crate::shared::template::{Template, Value};
use crate::shared::x509pop::{Challenge, NAME, Payload, Response};
use crate::shared::{hex, pem, settings};

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn ServerNodeAttestor> = BuiltIn {
    name: NAME,
    load: |config, host| Box::pin(async move { Ok(Arc::new(load(&config, host)?) as Arc<_>) }),
};

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    mode: String,
    spiffe_prefix: Option<String>,
    ca_bundle_path: String,
    ca_bundle_paths: Vec<String>,
    agent_path_template: String,
    max_intermediates: Option<i64>,
    max_rsa_key_size: Option<i64>,
    verify_client_ip: bool,
}

struct X509pop {
    info: PluginInfo,
    host: Host,
    trust_domain: TrustDomain,
    anchors: Anchors,
    template: Template,
    max_intermediates: usize,
    max_rsa_bits: usize,
    verify_client_ip: bool,
}

/// Whose certificates are accepted.
enum Anchors {
    /// `external_pki`: those below these authorities.
    Files(Vec<Certificate>),
    /// `spiffe`: SVIDs of the trust domain itself whose path starts with this.
    OwnBundle { prefix: String },
}

const SPIFFE_PREFIX: &str = "/spire-exchange/";

fn load(config: &PluginConfig, host: Host) -> Result<X509pop, PluginError> {
    let settings: Settings = settings::decode(config, "unable to decode configuration")?;
    let refused = |why: String| PluginError::invalid_argument(why);
    let has_files = !settings.ca_bundle_path.is_empty() || !settings.ca_bundle_paths.is_empty();
    let (anchors, default_template) = match settings.mode.as_str() {
        "" | "external_pki" => {
            (Anchors::Files(load_anchors(&settings)?), "/{{ .PluginName }}/{{ .Fingerprint }}")
        }
        "spiffe" if has_files => {
            let why = "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode";
            return Err(refused(why.to_owned()));
        }
        "spiffe" => {
            let mut prefix = settings.spiffe_prefix.unwrap_or_else(|| SPIFFE_PREFIX.to_owned());
            if !prefix.ends_with('/') {
                prefix.push('/');
            }
            (Anchors::OwnBundle { prefix }, "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}")
        }
        _ => return Err(refused("mode can only be either spiffe or external_pki".to_owned())),
    };
    let template = match settings.agent_path_template.as_str() {
        "" => default_template,
        template => template,
    };
    let template = Template::parse(template)
        .map_err(|error| refused(format!("failed to parse agent svid template: {template:?}: {error}")))?;
    let limit = |name: &str, value: Option<i64>, default: usize| match value.map(usize::try_from) {
        None => Ok(default),
        Some(Ok(value @ 1..)) => Ok(value),
        Some(_) => Err(refused(format!("{name} must be greater than 0"))),
    };
    Ok(X509pop {
        info: PluginInfo::new(PluginKind::NodeAttestor, &config.name),
        host,
        trust_domain: config.trust_domain.clone(),
        anchors,
        template,
        max_intermediates: limit("max_intermediates", settings.max_intermediates, 4)?,
        max_rsa_bits: limit("max_rsa_key_size", settings.max_rsa_key_size, 8192)?,
        verify_client_ip: settings.verify_client_ip,
    })
}

fn load_anchors(settings: &Settings) -> Result<Vec<Certificate>, PluginError> {
    let refused = |why: String| PluginError::invalid_argument(why);
    let one = &settings.ca_bundle_path;
    let paths = match (one.is_empty(), settings.ca_bundle_paths.as_slice()) {
        (false, []) => std::slice::from_ref(one),
        (true, paths @ [_, ..]) => paths,
        (false, _) => {
            let why = "only one of ca_bundle_path or ca_bundle_paths can be configured, not both";
            return Err(refused(why.to_owned()));
        }
        (true, []) => {
            return Err(refused("one of ca_bundle_path or ca_bundle_paths must be configured".to_owned()));
        }
    };
    let mut anchors = Vec::new();
    for path in paths {
        let certificates = pem::certificates(Path::new(path))
            .map_err(|error| refused(format!("unable to load trust bundle {path:?}: {error}")))?;
        anchors.extend(certificates);
    }
    Ok(anchors)
}

impl Plugin for X509pop {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl ServerNodeAttestor for X509pop {
    async fn attest(&self, payload: Bytes, peer: &mut dyn Challenger) -> Result<Attested, PluginError> {
        let (leaf, intermediates) = self.read(&payload)?;
        let own = self.own_anchors()?;
        let anchors = match &self.anchors {
            Anchors::Files(anchors) => anchors,
            Anchors::OwnBundle { .. } => &own,
        };
        let now = UnixSecs::from(self.host.clock.now());
        let path = verify(&leaf, &intermediates, anchors, now)?;
        if self.verify_client_ip {
            check_address(&leaf, peer.client_address())?;
        }

        let challenge = new_challenge(&leaf)?;
        let asked = serde_json::to_vec(&challenge)
            .map_err(|error| PluginError::internal(format!("unable to marshal challenge: {error}")))?;
        let answer = peer.challenge(asked.into()).await?;
        let response: Response = serde_json::from_slice(&answer).map_err(|error| {
            PluginError::invalid_argument(format!("unable to unmarshal challenge response: {error}"))
        })?;
        challenge.verify(leaf.public_key(), &response).map_err(|error| {
            PluginError::permission_denied(format!("challenge response verification failed: {error}"))
        })?;

        let svid_path = self.svid_path(&leaf)?;
        let names = san_selectors(&leaf, &self.trust_domain);
        Ok(Attested {
            agent_id: self.agent_id(&leaf, svid_path, &names)?,
            selectors: self.selectors(&leaf, &path, &names),
            can_reattest: true,
        })
    }
}

impl X509pop {
    fn read(&self, payload: &[u8]) -> Result<(Certificate, Vec<Certificate>), PluginError> {
        let refused = |why: String| PluginError::invalid_argument(why);
        let payload: Payload = serde_json::from_slice(payload)
            .map_err(|error| refused(format!("failed to unmarshal data: {error}")))?;
        let Some((leaf, intermediates)) = payload.certificates.split_first() else {
            return Err(refused("no certificate to attest".to_owned()));
        };
        if intermediates.len() > self.max_intermediates {
            return Err(refused("too many intermediate certificates".to_owned()));
        }
        let leaf = Certificate::parse(&leaf.0)
            .map_err(|error| refused(format!("unable to parse leaf certificate: {error}")))?;
        if self.is_too_large(&leaf) {
            return Err(refused("leaf certificate key size too large".to_owned()));
        }
        let mut parsed = Vec::with_capacity(intermediates.len());
        for (number, der) in intermediates.iter().enumerate() {
            let certificate = Certificate::parse(&der.0).map_err(|error| {
                refused(format!("unable to parse intermediate certificate {number}: {error}"))
            })?;
            if self.is_too_large(&certificate) {
                return Err(refused(format!("intermediate certificate {number} key size too large")));
            }
            parsed.push(certificate);
        }
        Ok((leaf, parsed))
    }

    fn is_too_large(&self, certificate: &Certificate) -> bool {
        matches!(certificate.public_key().kind(), PublicKeyKind::Rsa(bits) if bits > self.max_rsa_bits)
    }

    /// In `spiffe` mode the trust domain's own authorities; without any, nothing is trusted.
    fn own_anchors(&self) -> Result<Vec<Certificate>, PluginError> {
        if let Anchors::Files(_) = self.anchors {
            return Ok(Vec::new());
        }
        let bundle = (self.host.own_bundle)()
            .ok_or_else(|| PluginError::internal("failed to get trust bundle: there is none yet"))?;
        let parse = |der: &[u8]| Certificate::parse_all(der);
        let parsed: Result<Vec<_>, _> =
            bundle.x509_authorities.iter().map(|authority| parse(&authority.der)).collect();
        parsed
            .map(|anchors| anchors.concat())
            .map_err(|error| PluginError::internal(format!("failed to get trust bundle: {error}")))
    }

    /// In `spiffe` mode what follows the prefix in the path of the leaf's SPIFFE ID.
    fn svid_path<'a>(&self, leaf: &'a Certificate) -> Result<&'a str, PluginError> {
        let Anchors::OwnBundle { prefix } = &self.anchors else { return Ok("") };
        let uri = leaf.uris().iter().find_map(|uri| uri.strip_prefix("spiffe://"));
        let uri = uri.ok_or_else(|| PluginError::permission_denied("valid SVID x509 cert not found"))?;
        let path = uri.find('/').and_then(|at| uri.get(at..)).unwrap_or_default();
        path.strip_prefix(prefix.as_str())
            .ok_or_else(|| PluginError::permission_denied("x509 cert doesnt match SVID prefix"))
    }

    fn agent_id(
        &self,
        leaf: &Certificate,
        svid_path: &str,
        names: &BTreeMap<String, String>,
    ) -> Result<String, PluginError> {
        let failed = |why: String| PluginError::internal(format!("failed to make spiffe id: {why}"));
        let names = names.iter().map(|(name, value)| (name.clone(), Value::text(value))).collect();
        let dns_names = leaf.dns_names().iter().map(Value::text).collect();
        let data = BTreeMap::from([
            ("PluginName".to_owned(), Value::text(NAME)),
            ("TrustDomain".to_owned(), Value::text(self.trust_domain.as_str())),
            ("Fingerprint".to_owned(), Value::text(fingerprint(leaf))),
            ("SerialNumberHex".to_owned(), Value::text(serial(leaf))),
            ("SerialNumber".to_owned(), Value::text(leaf.serial().to_string())),
            ("SVIDPathTrimmed".to_owned(), Value::text(svid_path)),
            ("URISanSelectors".to_owned(), Value::Map(names)),
            ("DNSNames".to_owned(), Value::List(dns_names)),
            ("Subject".to_owned(), name_value(leaf.subject())),
            ("Issuer".to_owned(), name_value(leaf.issuer())),
        ]);
        let path = self.template.fill(&data).map_err(|error| failed(error.to_string()))?;
        // The path must be one by itself, or it could leave its place below `/spire/agent`.
        self.trust_domain
            .id_with_path(&path)
            .map_err(|error| failed(format!("invalid agent path suffix {path:?}: {error}")))?;
        let id = self.trust_domain.id_with_path(&format!("/spire/agent{path}"));
        id.map(|id| id.to_string()).map_err(|error| failed(error.to_string()))
    }

    fn selectors(
        &self,
        leaf: &Certificate,
        path: &[&Certificate],
        names: &BTreeMap<String, String>,
    ) -> Vec<Selector> {
        let selector = |value: String| Selector::new(self.info.name(), &value);
        let mut selectors = Vec::new();
        let common_name = leaf.subject().common_name();
        if !common_name.is_empty() {
            selectors.push(selector(format!("subject:cn:{common_name}")));
        }
        for authority in path.iter().skip(1) {
            let authority = selector(format!("ca:fingerprint:{}", fingerprint(authority)));
            if !selectors.contains(&authority) {
                selectors.push(authority);
            }
        }
        selectors.push(selector(format!("serialnumber:{}", serial(leaf))));
        selectors.extend(names.iter().map(|(name, value)| selector(format!("san:{name}:{value}"))));
        selectors
    }
}

fn verify<'a>(
    leaf: &'a Certificate,
    intermediates: &'a [Certificate],
    anchors: &'a [Certificate],
    now: UnixSecs,
) -> Result<Vec<&'a Certificate>, PluginError> {
    let is_valid = leaf.not_before() <= now && now <= leaf.not_after();
    // A certificate that is itself among the trusted ones needs no path.
    if is_valid && anchors.contains(leaf) {
        return Ok(vec![leaf]);
    }
    find_path(leaf, intermediates, anchors, now).map_err(|error| {
        PluginError::permission_denied(format!("certificate verification failed: x509: {error}"))
    })
}

fn check_address(leaf: &Certificate, address: Option<IpAddr>) -> Result<(), PluginError> {
    let address = address.ok_or_else(|| PluginError::internal("client IP not available for verification"))?;
    let address = address.to_canonical();
    let matches = |name: &Vec<u8>| match name.len() {
        4 => <[u8; 4]>::try_from(name.as_slice()).is_ok_and(|name| IpAddr::from(name) == address),
        _ => <[u8; 16]>::try_from(name.as_slice())
            .is_ok_and(|name| IpAddr::from(name).to_canonical() == address),
    };
    if leaf.ip_addresses().iter().any(matches) {
        return Ok(());
    }
    Err(PluginError::permission_denied(format!("client IP {address} does not match any certificate IP SAN")))
}

fn new_challenge(leaf: &Certificate) -> Result<Challenge, PluginError> {
    let failed =
        |why: String| PluginError::new(Code::Internal, format!("unable to generate challenge: {why}"));
    if leaf.allows_digital_signature() != Some(true) {
        return Err(failed("certificate not intended for digital signature use".to_owned()));
    }
    Challenge::new(leaf.public_key()).map_err(|error| failed(error.to_string()))
}

fn fingerprint(certificate: &Certificate) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, certificate.der());
    hex(digest.as_ref())
}

fn serial(certificate: &Certificate) -> String {
    match certificate.serial().as_be_bytes() {
        [] => "00".to_owned(),
        bytes => hex(bytes),
    }
}

/// `x509pop://<trust domain>/<name>/<value>` among the URIs of the leaf; of equal names the last.
fn san_selectors(leaf: &Certificate, trust_domain: &TrustDomain) -> BTreeMap<String, String> {
    let prefix = format!("x509pop://{trust_domain}/");
    let mut names = BTreeMap::new();
    for uri in leaf.uris() {
        let Some(path) = uri.strip_prefix(&prefix) else { continue };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let path = percent_decoded(path);
        match path.trim_matches('/').split_once('/') {
            Some((name, value)) => {
                names.insert(name.to_owned(), value.to_owned());
            }
            None => tracing::warn!(%uri, "cannot extract x509pop san selectors"),
        }
    }
    names
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let pair = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).filter(|_| byte == b'%') {
            Some(decoded) => {
                bytes.push(decoded);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn name_value(name: &Name) -> Value {
    let list = |oid: &str| Value::List(name.values(oid).into_iter().map(Value::Text).collect());
    let last = |oid: &str| Value::text(name.values(oid).pop().unwrap_or_default());
    Value::Map(BTreeMap::from([
        ("CommonName".to_owned(), last("2.5.4.3")),
        ("SerialNumber".to_owned(), last("2.5.4.5")),
        ("Country".to_owned(), list("2.5.4.6")),
        ("Locality".to_owned(), list("2.5.4.7")),
        ("Province".to_owned(), list("2.5.4.8")),
        ("StreetAddress".to_owned(), list("2.5.4.9")),
        ("Organization".to_owned(), list("2.5.4.10")),
        ("OrganizationalUnit".to_owned(), list("2.5.4.11")),
        ("PostalCode".to_owned(), list("2.5.4.17")),
    ]))
}
