//! `x509pop`: shows a certificate and proves to hold its key. The files are read at each attestation,
//! so that a renewed certificate is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use plugin::{
    AgentNodeAttestor, AgentStream, BuiltIn, Plugin, PluginConfig, PluginError, PluginInfo, PluginKind,
};
use serde::Deserialize;
use spiffe::key::PrivateKey;

use crate::shared::x509pop::{Bytes, Challenge, NAME, Payload};
use crate::shared::{pem, settings};

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn AgentNodeAttestor> =
    BuiltIn { name: NAME, load: |config, _| Box::pin(async move { Ok(Arc::new(load(&config)?) as Arc<_>) }) };

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    private_key_path: String,
    certificate_path: String,
    intermediates_path: String,
    spiffe_endpoint_socket: String,
}

struct X509pop {
    info: PluginInfo,
    certificate: PathBuf,
    private_key: PathBuf,
    intermediates: Option<PathBuf>,
}

fn load(config: &PluginConfig) -> Result<X509pop, PluginError> {
    let settings: Settings = settings::decode(config, "unable to decode configuration")?;
    let refused = |why: &str| PluginError::invalid_argument(why);
    if !settings.spiffe_endpoint_socket.is_empty() {
        return Err(refused("spiffe_endpoint_socket is not part of this version"));
    }
    if settings.private_key_path.is_empty() {
        return Err(refused("private_key_path is required"));
    }
    if settings.certificate_path.is_empty() {
        return Err(refused("certificate_path is required"));
    }
    let intermediates = settings.intermediates_path;
    let plugin = X509pop {
        info: PluginInfo::new(PluginKind::NodeAttestor, &config.name),
        certificate: settings.certificate_path.into(),
        private_key: settings.private_key_path.into(),
        intermediates: (!intermediates.trim().is_empty()).then(|| intermediates.into()),
    };
    // Better refused at the start than at the first attestation.
    plugin.read()?;
    Ok(plugin)
}

impl X509pop {
    fn read(&self) -> Result<(PrivateKey, Vec<u8>), PluginError> {
        let pair = |why: String| PluginError::invalid_argument(format!("unable to load keypair: {why}"));
        let read = |path: &Path| pem::certificates(path);
        let mut certificates = read(&self.certificate).map_err(pair)?;
        let key = pem::private_key(&self.private_key).map_err(pair)?;
        if certificates.first().is_none_or(|leaf| leaf.public_key().spki() != key.public().spki()) {
            return Err(pair("tls: private key does not match public key".to_owned()));
        }
        if let Some(path) = &self.intermediates {
            let intermediates = read(path).map_err(|why| {
                PluginError::invalid_argument(format!("unable to load intermediate certificates: {why}"))
            })?;
            certificates.extend(intermediates);
        }
        let certificates = certificates.iter().map(|certificate| Bytes(certificate.der().to_vec())).collect();
        let payload = serde_json::to_vec(&Payload { certificates })
            .map_err(|error| PluginError::internal(format!("unable to marshal attestation data: {error}")))?;
        Ok((key, payload))
    }
}

impl Plugin for X509pop {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl AgentNodeAttestor for X509pop {
    async fn attest(&self, server: &mut dyn AgentStream) -> Result<(), PluginError> {
        let (key, payload) = self.read()?;
        let Some(challenge) = server.send_payload(payload.into()).await? else { return Ok(()) };
        let challenge: Challenge = serde_json::from_slice(&challenge)
            .map_err(|error| PluginError::internal(format!("unable to unmarshal challenge: {error}")))?;
        let response = challenge.answer(&key).map_err(|error| {
            PluginError::internal(format!("failed to calculate challenge response: {error}"))
        })?;
        let response = serde_json::to_vec(&response).map_err(|error| {
            PluginError::internal(format!("unable to marshal challenge response: {error}"))
        })?;
        match server.send_response(response.into()).await? {
            None => Ok(()),
            Some(_) => Err(PluginError::internal("plugin closed stream before handling the challenge")),
        }
    }
}
