//! What the server measures of itself, under SPIRE's names; and where that goes.
//!
//! Every handle is resolved here once, at start. Those of other crates are theirs: the datastore's
//! operations (`store`), signatures (`ca`), keys (`plugin`).

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use config::{PrometheusTls, ServerConfig, TelemetryConfig};
use runtime::metrics::{Call, Counter, Gauge, Metrics, Options, SinkError, rpc_key};
use runtime::pages::{self, Certificate, Clients, PageListener};
use spiffe::tls::{Anchors, ClientVerifier, OwnCertificate, PostQuantum};
use spiffe::{SpiffeId, TrustDomain};
use store::StoreError;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::api;
use crate::authz::{RULES, Rule};

/// The handles.
pub(crate) struct Meters {
    /// What they are made of.
    pub(crate) metrics: Metrics,
    by_method: HashMap<&'static str, Method>,
    nothing: Call,
    /// A look for expired authorities in the bundle.
    pub(crate) bundle_prune: Call,
    /// The bundle was rid of some.
    pub(crate) bundle_pruned: Counter,
    /// A CA was made.
    pub(crate) x509_prepare: Call,
    /// A JWT key was made.
    pub(crate) jwt_prepare: Call,
    /// A WIT key was made.
    pub(crate) wit_prepare: Call,
    /// A CA signs from now on.
    pub(crate) x509_activated: Counter,
    /// A JWT key signs from now on.
    pub(crate) jwt_activated: Counter,
    /// A WIT key signs from now on.
    pub(crate) wit_activated: Counter,
    /// When the active CA ends, in seconds since 1970.
    pub(crate) x509_expiration: Gauge,
    /// How long it still had when it became active.
    pub(crate) x509_ttl: Gauge,
    /// A look for expired entries.
    pub(crate) entry_prune: Call,
    /// A look for agents to be forgotten.
    pub(crate) agent_prune: Call,
    /// A new SVID of the server.
    pub(crate) svid_rotate: Call,
    /// A look at what other servers changed.
    pub(crate) cache_reload: Call,
    /// How many agents have changes pushed to them.
    pub(crate) watchers: Gauge,
    /// How often an agent was told something.
    pub(crate) pushes: Counter,
    /// What is in memory.
    pub(crate) cache: CacheGauges,
}

/// How much the entry graph holds.
#[derive(Default)]
pub(crate) struct CacheGauges {
    agents: [Gauge; 2],
    entries: Gauge,
    aliases: [Gauge; 2],
}

#[derive(Default)]
struct Method {
    rpc: Call,
    limit: Call,
}

impl Meters {
    /// The handles of these metrics.
    pub(crate) fn new(metrics: Metrics, trust_domain: &TrustDomain) -> Arc<Self> {
        let call = |key: &[&str]| metrics.call(key, &[]);
        let counter = |key: &[&str]| metrics.counter(key, &[]);
        let gauge = |key: &[&str]| metrics.gauge(key, &[]);
        let of_domain = [("trust_domain_id", trust_domain.as_str())];
        Arc::new(Self {
            by_method: methods(&metrics),
            nothing: Call::default(),
            bundle_prune: call(&["ca", "manager", "bundle", "prune"]),
            bundle_pruned: counter(&["ca", "manager", "bundle", "pruned"]),
            x509_prepare: call(&["ca", "manager", "x509_ca", "prepare"]),
            jwt_prepare: call(&["ca", "manager", "jwt_key", "prepare"]),
            wit_prepare: call(&["ca", "manager", "wit_key", "prepare"]),
            x509_activated: counter(&["ca", "manager", "x509_ca", "activate"]),
            // These two lack the first part in SPIRE.
            jwt_activated: counter(&["manager", "jwt_key", "activate"]),
            wit_activated: counter(&["manager", "wit_key", "activate"]),
            x509_expiration: metrics.gauge(&["manager", "x509_ca", "rotate", "expiration"], &of_domain),
            x509_ttl: metrics.gauge(&["manager", "x509_ca", "rotate", "ttl"], &of_domain),
            entry_prune: call(&["registration_entry", "manager", "prune"]),
            agent_prune: call(&["node", "manager", "prune"]),
            svid_rotate: call(&["svid", "rotate"]),
            cache_reload: call(&["entry", "cache", "reload"]),
            watchers: gauge(&["finial", "sync", "watchers"]),
            pushes: counter(&["finial", "sync", "pushes"]),
            cache: CacheGauges {
                agents: [
                    gauge(&["node", "agents_by_id_cache", "count"]),
                    gauge(&["node", "agents_by_expiresat_cache", "count"]),
                ],
                entries: gauge(&["entry", "entries_by_entryid_cache", "count"]),
                aliases: [
                    gauge(&["entry", "nodealiases_by_entryid_cache", "count"]),
                    gauge(&["entry", "nodealiases_by_selector_cache", "count"]),
                ],
            },
            metrics,
        })
    }

    /// Calls of the method with this rule.
    pub(crate) fn rpc(&self, rule: &Rule) -> &Call {
        self.by_method.get(rule.method).map_or(&self.nothing, |method| &method.rpc)
    }

    /// What the limit of the method with this rule comes to.
    pub(crate) fn limit(&self, rule: &Rule) -> &Call {
        self.by_method.get(rule.method).map_or(&self.nothing, |method| &method.limit)
    }

    /// The bundle of this trust domain is fetched.
    pub(crate) fn federated_fetch(&self, of: &TrustDomain) -> Call {
        let labels = [("trust_domain_id", of.as_str())];
        self.metrics.call(&["bundle_manager", "fetch", "federated_bundle"], &labels)
    }

    /// The stored bundle of this trust domain is another now.
    pub(crate) fn federated_updated(&self, of: &TrustDomain) -> Counter {
        let labels = [("trust_domain_id", of.as_str())];
        self.metrics.counter(&["bundle_manager", "update", "federated_bundle"], &labels)
    }

    /// Says that the server runs.
    pub(crate) fn started(&self, version: &str, trust_domain: &TrustDomain) {
        let labels = [("version", version), ("trust_domain_id", trust_domain.as_str())];
        self.metrics.gauge(&["started"], &labels).set(1.0);
    }
}

impl CacheGauges {
    /// Shows how much there is.
    pub(crate) fn show(&self, counts: &graph::Counts) {
        self.agents.iter().for_each(|gauge| gauge.set_count(counts.agents));
        self.entries.set_count(counts.entries);
        self.aliases.iter().for_each(|gauge| gauge.set_count(counts.aliases));
    }
}

/// Does `work` on the datastore as such a call.
pub(crate) async fn of_store<T>(
    call: &Call,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    call.measure(work, api::code_of).await
}

/// Does `work` as such a call.
pub(crate) async fn of_limit(
    call: &Call,
    work: impl Future<Output = Result<(), Status>>,
) -> Result<(), Status> {
    call.measure(work, Status::code).await
}

/// Does `work` as such a call, whose failures have no code.
pub(crate) async fn of_any<T, E>(call: &Call, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    call.measure(work, |_| Code::Unknown).await
}

fn methods(metrics: &Metrics) -> HashMap<&'static str, Method> {
    if !metrics.is_on() {
        return HashMap::new();
    }
    let call = |first: &str, method: &str| {
        let parts = rpc_key(method);
        let key: Vec<&str> = std::iter::once(first).chain(parts.iter().map(String::as_str)).collect();
        metrics.call(&key, &[])
    };
    let method = |rule: &Rule| Method {
        rpc: call("rpc", rule.method),
        limit: if rule.limit.is_some() { call("rateLimit", rule.method) } else { Call::default() },
    };
    RULES.iter().map(|rule| (rule.method, method(rule))).collect()
}

/// The metrics that the configuration asks for.
pub(crate) fn metrics(config: &ServerConfig) -> Result<Metrics, SinkError> {
    let telemetry: &TelemetryConfig = &config.telemetry;
    Metrics::new(Options {
        prefix: telemetry.prefix.clone().unwrap_or_else(|| SERVICE.to_owned()),
        service: SERVICE,
        trust_domain: telemetry.trust_domain_label.then(|| config.trust_domain.as_str().to_owned()),
        has_host: telemetry.hostname_label,
        allowed_prefixes: telemetry.allowed_prefixes.clone(),
        blocked_prefixes: telemetry.blocked_prefixes.clone(),
        allowed_labels: telemetry.allowed_labels.clone(),
        blocked_labels: telemetry.blocked_labels.clone(),
        has_page: telemetry.prometheus.is_some(),
        dogstatsd: telemetry.dogstatsd.clone(),
        statsd: telemetry.statsd.clone(),
        m3: telemetry.m3.clone(),
        in_memory: telemetry.in_memory,
    })
}

/// Serves the page for Prometheus, if it is asked for, until `stop` is cancelled. A port that is in
/// use is no reason to serve nothing else: it is told, as SPIRE does.
pub(crate) async fn serve_page(
    config: &ServerConfig,
    metrics: Metrics,
    own: Arc<OwnCertificate>,
    anchors: Arc<dyn Anchors>,
    stop: CancellationToken,
) {
    let Some(prometheus) = &config.telemetry.prometheus else { return };
    let (host, port) = (prometheus.host.as_str(), prometheus.port);
    if host != "localhost" {
        tracing::warn!(
            "The metrics of this server can be read from other machines; see to it that only those reach \
             the port that should"
        );
    }
    tracing::info!(subsystem_name = "telemetry", host, port, "Starting prometheus exporter");
    let served = async {
        let tls = match &prometheus.tls {
            Some(tls) => {
                let exchanges = PostQuantum::required_if(config.experimental.require_pq_kem);
                Some(pages::tls(exchanges.server()?, certificate(tls, own), clients(tls, anchors))?)
            }
            None => None,
        };
        let listener = PageListener::bind(host, port).await?;
        let answer = move |_| std::future::ready(metrics.page().unwrap_or_default());
        listener.serve(tls, answer, stop).await;
        Ok::<(), runtime::BoxError>(())
    };
    if let Err(error) = served.await {
        tracing::warn!("Prometheus listener stopped unexpectedly: {}", runtime::chain(&*error));
    }
}

fn certificate(tls: &PrometheusTls, own: Arc<OwnCertificate>) -> Certificate {
    match &tls.files {
        Some((chain, key)) => Certificate::Files { chain: chain.clone(), key: key.clone() },
        None => Certificate::Resolved(own),
    }
}

fn clients(tls: &PrometheusTls, anchors: Arc<dyn Anchors>) -> Clients {
    let authority: Option<PathBuf> = tls.client_ca.clone();
    if let Some(authority) = authority {
        return Clients::SignedBy(authority);
    }
    if tls.authorized.is_empty() {
        return Clients::Anybody;
    }
    let authorized = tls.authorized.clone();
    let admit = move |id: &SpiffeId| {
        if authorized.contains(id) { Ok(()) } else { Err(format!("{id} may not read metrics")) }
    };
    Clients::Verified(ClientVerifier::new(anchors, Box::new(admit), true))
}

/// What sinks call this program.
const SERVICE: &str = "spire_server";
