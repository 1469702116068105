//! `spire`: the server above is one of the same kind. This server is a workload there: it gets its SVID
//! from the Workload API of an agent of that server, and its entry says that it is downstream.
//!
//! The SVID is fetched anew before anything is asked for, and followed while the bundle above is watched;
//! with each one a new connection is made, so that the server above never sees one that was replaced.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use client::workload::X509Update;
use client::{Address, Dialer, ServerClients, WorkloadApi, WorkloadError};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use plugin::{
    BuiltIn, Code, Host, Minted, Plugin, PluginConfig, PluginError, PluginInfo, PluginKind, Published,
    Updates, UpstreamAuthority, UpstreamBundle,
};
use proto::spire::server::bundle::{GetBundleRequest, PublishJwtAuthorityRequest};
use proto::spire::server::svid::NewDownstreamX509caRequest;
use proto::spire::types;
use runtime::clock;
use serde::Deserialize;
use spiffe::key::PrivateKey;
use spiffe::tls::{Anchors, OwnCertificate, PostQuantum, ServerTrust, ServerVerifier, client_config_for};
use spiffe::x509::{CertDer, Certificate};
use spiffe::{Bundle, JwtAuthority, SpiffeId, TrustDomain};
use tonic::Status;

use crate::shared::settings;

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn UpstreamAuthority> = BuiltIn {
    name: "spire",
    load: |config, host| Box::pin(async move { Ok(Arc::new(load(&config, host)?) as Arc<_>) }),
};

/// How often the bundle above is looked at.
const POLL: Duration = Duration::from_secs(5);
/// How long the Workload API may take to give an SVID: its agent may come up together with this server.
const SVID_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two questions to the Workload API.
const SVID_RETRY: Duration = Duration::from_secs(1);
/// How long the server above may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    server_address: String,
    server_port: String,
    workload_api_socket: String,
    experimental: Experimental,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Experimental {
    workload_api_named_pipe_name: String,
    require_pq_kem: bool,
}

struct Spire {
    info: PluginInfo,
    above: Arc<Above>,
}

/// The server above, and how to get there.
struct Above {
    host: Host,
    trust_domain: TrustDomain,
    server_id: SpiffeId,
    server: Address,
    workload_api: Address,
    post_quantum: PostQuantum,
    /// What was used last; connections are shared while the SVID is the same.
    latest: Mutex<Option<(Vec<u8>, ServerClients)>>,
}

fn load(config: &PluginConfig, host: Host) -> Result<Spire, PluginError> {
    let settings: Settings = settings::decode_plainly(config)?;
    let refused = |why: &str| Err(PluginError::invalid_argument(why));
    if settings.server_address.is_empty() {
        return refused("server_address is required");
    }
    if settings.server_port.is_empty() {
        return refused("server_port is required");
    }
    if !settings.experimental.workload_api_named_pipe_name.is_empty() {
        return refused(
            "configuration: workload_api_named_pipe_name is not supported on this platform; please use \
             workload_api_socket instead",
        );
    }
    if settings.workload_api_socket.is_empty() {
        return refused("workload_api_socket is required");
    }
    let Ok(port) = settings.server_port.parse() else {
        return refused(&format!("server_port {:?} is not a port", settings.server_port));
    };
    let socket = std::path::absolute(Path::new(&settings.workload_api_socket)).map_err(|error| {
        PluginError::invalid_argument(format!("unable to set Workload API address: {error}"))
    })?;
    let server_id = config.trust_domain.id_with_path("/spire/server");
    let server_id =
        server_id.map_err(|error| PluginError::internal(format!("unable to build server ID: {error}")))?;
    let host_name = settings.server_address.trim_start_matches('[').trim_end_matches(']');
    let above = Above {
        host,
        trust_domain: config.trust_domain.clone(),
        server_id,
        server: Address::tcp(host_name, port),
        workload_api: Address::unix(&socket),
        post_quantum: PostQuantum::required_if(settings.experimental.require_pq_kem),
        latest: Mutex::new(None),
    };
    let info = PluginInfo::new(PluginKind::UpstreamAuthority, &config.name);
    Ok(Spire { info, above: Arc::new(above) })
}

impl Plugin for Spire {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl UpstreamAuthority for Spire {
    async fn mint(&self, csr: &[u8], preferred_ttl: Duration) -> Result<Minted, PluginError> {
        let clients = self.above.clients().await?;
        let preferred_ttl = i32::try_from(preferred_ttl.as_secs()).unwrap_or(i32::MAX);
        let request = NewDownstreamX509caRequest { csr: csr.to_vec().into(), preferred_ttl };
        let reply = self.above.in_time(clients.svid().new_downstream_x509ca(request)).await;
        let reply = reply.map_err(|why| {
            PluginError::internal(format!("unable to request a new Downstream X509CA: {}", Shown(&why)))
        })?;
        // The answer's own list of roots does not say which of them are tainted.
        let bundle = self.above.bundle(&clients).await?;
        Ok(Minted {
            chain: reply.ca_cert_chain.iter().map(|der| CertDer::new(der)).collect(),
            roots: bundle.roots,
            updates: None,
        })
    }

    async fn publish(&self, key: &JwtAuthority) -> Result<Published, PluginError> {
        let clients = self.above.clients().await?;
        let request = PublishJwtAuthorityRequest { jwt_authority: Some(types::JwtKey::from(key)) };
        let reply = self.above.in_time(clients.bundle().publish_jwt_authority(request)).await;
        let reply = reply
            .map_err(|why| PluginError::internal(format!("failed to push JWT authority: {}", Shown(&why))))?;
        Ok(Published { keys: reply.jwt_authorities.iter().map(Into::into).collect(), updates: None })
    }

    async fn watch(&self) -> Result<Updates<UpstreamBundle>, PluginError> {
        let watching =
            Watching { above: Arc::clone(&self.above), svids: None, clients: None, last: None, waits: false };
        Ok(stream::unfold(watching, |mut watching| async move {
            let next = watching.next().await;
            Some((Ok(next), watching))
        })
        .boxed())
    }
}

/// The bundle above, looked at again and again. It never ends: what fails is tried again.
struct Watching {
    above: Arc<Above>,
    /// The SVIDs as they are renewed.
    svids: Option<BoxStream<'static, Result<X509Update, WorkloadError>>>,
    clients: Option<ServerClients>,
    /// What was handed out last.
    last: Option<UpstreamBundle>,
    /// Whether it is not the first look.
    waits: bool,
}

impl Watching {
    async fn next(&mut self) -> UpstreamBundle {
        loop {
            if self.waits {
                self.rest().await;
            }
            self.waits = true;
            let Some(clients) = self.follow().await else { continue };
            match self.above.bundle(&clients).await {
                Ok(bundle) if self.last.as_ref() != Some(&bundle) => {
                    self.last = Some(bundle.clone());
                    return bundle;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "Failed to fetch bundle while polling"),
            }
        }
    }

    /// Waits for the next look; SVIDs that come meanwhile are taken.
    async fn rest(&mut self) {
        let mut rested = self.above.host.clock.sleep(POLL);
        loop {
            let Some(svids) = &mut self.svids else { return rested.await };
            let update = tokio::select! {
                update = svids.next() => update,
                () = &mut rested => return,
            };
            self.take(update);
        }
    }

    /// Sees to it that the SVIDs are followed; the way to the server above, if there is one.
    async fn follow(&mut self) -> Option<ServerClients> {
        if self.svids.is_none() {
            let opened = async {
                let api = WorkloadApi::at(self.above.workload_api.clone())?;
                Ok::<_, WorkloadError>(api.watch_x509_svids().await?.boxed())
            };
            match opened.await {
                Ok(mut svids) => {
                    let first = self.above.in_time_or_none(svids.next()).await.flatten();
                    self.svids = Some(svids);
                    self.take(first);
                }
                Err(error) => tracing::warn!(%error, "Cannot follow the Workload API"),
            }
        }
        self.clients.clone()
    }

    fn take(&mut self, update: Option<Result<X509Update, WorkloadError>>) {
        let taken = match update {
            Some(Ok(update)) => self.above.clients_of(&update),
            Some(Err(error)) => Err(PluginError::internal(error.to_string())),
            None => {
                // It ended: opened again before the next look.
                self.svids = None;
                return;
            }
        };
        match taken {
            Ok(clients) => self.clients = Some(clients),
            Err(error) => {
                tracing::warn!(%error, "Cannot use the SVID of the Workload API");
                self.svids = None;
            }
        }
    }
}

impl Above {
    /// The way to the server above, with the SVID that the Workload API gives now.
    async fn clients(&self) -> Result<ServerClients, PluginError> {
        let unable =
            |error: &dyn fmt::Display| PluginError::internal(format!("unable to create X509Source: {error}"));
        let api = WorkloadApi::at(self.workload_api.clone()).map_err(|error| unable(&error))?;
        let clock = &*self.host.clock;
        let deadline = clock.instant() + SVID_TIMEOUT;
        loop {
            let error = match clock::within(clock, SVID_TIMEOUT, api.x509_svids()).await {
                Some(Ok(update)) => return self.clients_of(&update),
                Some(Err(error)) => error,
                None => return Err(unable(&"the Workload API does not answer")),
            };
            if error.is_final() || clock.instant() >= deadline {
                return Err(unable(&error));
            }
            tracing::warn!(%error, "Waiting for an SVID of the Workload API");
            clock.sleep(SVID_RETRY).await;
        }
    }

    /// The way to the server above with the first SVID of an update.
    fn clients_of(&self, update: &X509Update) -> Result<ServerClients, PluginError> {
        let unusable = |error: &dyn fmt::Display| {
            PluginError::internal(format!("cannot use the SVID of the Workload API: {error}"))
        };
        let svid = update.svids.first().ok_or_else(|| unusable(&"there is none"))?;
        let roots = update.bundles.get(&self.trust_domain).map(Vec::as_slice).unwrap_or_default();
        let mut print: Vec<u8> = Vec::new();
        for der in svid.chain.iter().chain(roots) {
            print.extend_from_slice(der);
        }
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, clients)) = &*latest
            && *of == print
        {
            return Ok(clients.clone());
        }
        let roots: Vec<_> = roots
            .iter()
            .map(|der| Certificate::parse(der))
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(&error))?;
        let anchors = FixedAnchors { trust_domain: self.trust_domain.clone(), roots: roots.into() };
        let own = OwnCertificate::empty();
        let key = PrivateKey::from_der(svid.key.secret_pkcs8()).map_err(|error| unusable(&error))?;
        let chain: Vec<_> = svid.chain.iter().map(|der| CertDer::new(der)).collect();
        own.set(&chain, &key).map_err(|error| unusable(&error))?;
        let verifier = ServerVerifier::new(ServerTrust::Id(self.server_id.clone(), Arc::new(anchors)));
        let config = client_config_for(self.post_quantum, verifier, own);
        let config = config.map_err(|error| unusable(&error))?;
        let dialer = Dialer::new(self.server.clone()).with_tls(Arc::new(config));
        let clients = ServerClients::dial(&dialer)
            .map_err(|error| PluginError::internal(format!("error dialing: {error}")))?;
        *latest = Some((print, clients.clone()));
        Ok(clients)
    }

    /// What the server above trusts.
    async fn bundle(&self, clients: &ServerClients) -> Result<UpstreamBundle, PluginError> {
        let failed = |why: &dyn fmt::Display| {
            PluginError::internal(format!("failed to fetch bundle from upstream server: {why}"))
        };
        let reply = self.in_time(clients.bundle().get_bundle(GetBundleRequest::default())).await;
        let reply = reply.map_err(|why| failed(&Shown(&why)))?;
        let bundle = Bundle::try_from(&reply).map_err(|why| failed(&why))?;
        if bundle.trust_domain != self.trust_domain {
            return Err(failed(&format_args!("it is of trust domain \"{}\"", bundle.trust_domain)));
        }
        for root in &bundle.x509_authorities {
            Certificate::parse(&root.der)
                .map_err(|why| failed(&format_args!("failed to parse X.509 authorities: {why}")))?;
        }
        Ok(UpstreamBundle { roots: bundle.x509_authorities, keys: bundle.jwt_authorities })
    }

    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        match self.in_time_or_none(call).await {
            Some(reply) => reply.map(tonic::Response::into_inner),
            None => Err(Status::deadline_exceeded("the server above does not answer")),
        }
    }

    async fn in_time_or_none<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        clock::within(&*self.host.clock, CALL_TIMEOUT, call).await
    }
}

/// The roots that came with an SVID.
#[derive(Debug)]
struct FixedAnchors {
    trust_domain: TrustDomain,
    roots: Arc<[Certificate]>,
}

impl Anchors for FixedAnchors {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        (trust_domain == self.trust_domain.as_str()).then(|| Arc::clone(&self.roots))
    }
}

/// A status in the words of other gRPC libraries.
struct Shown<'a>(&'a Status);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = Code::from_number(self.0.code() as i32);
        write!(f, "rpc error: code = {code} desc = {}", self.0.message())
    }
}
