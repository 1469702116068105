//! What the agent measures of itself, under SPIRE's names; and where that goes.
//!
//! Every handle is resolved here once, at start; those of plugins by the plugins' names.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use config::{AgentConfig, PrometheusTls};
use runtime::metrics::{
    Call, Counter, Gauge, InFlight, Metrics, Options, Running, Sample, SinkError, rpc_key,
};
use runtime::pages::{self, Certificate, Clients, PageListener};
use spiffe::tls::{Anchors, ClientVerifier, OwnCertificate};
use spiffe::{SpiffeId, TrustDomain};
use tokio_util::sync::CancellationToken;

use crate::attest;
use crate::state::{AgentState, Entries};
use crate::stored::{AgentData, BootstrapUse};

/// The handles; those of [`Meters::default`] measure nothing.
#[derive(Default)]
pub struct Meters {
    /// What they are made of.
    pub(crate) metrics: Metrics,
    services: HashMap<&'static str, Service>,
    /// The agent attests anew.
    pub(crate) reattest: Call,
    /// The agent's SVID is renewed.
    pub(crate) rotate: Call,
    /// The server is asked for entries and bundles.
    pub(crate) fetch_entries: Call,
    /// The server is asked for signatures.
    pub(crate) fetch_svids: Call,
    /// What a sync brought.
    pub(crate) sync: SyncGauges,
    /// How many SVIDs were due at once.
    pub(crate) expiring: Sample,
    /// How many SVIDs were of an older revision of their entry at once.
    pub(crate) outdated: Sample,
    /// How many X.509-SVIDs a tainted authority had signed, at once.
    pub(crate) tainted_x509: Sample,
    /// The replacing of these.
    pub(crate) process_tainted_x509: Call,
    /// How many JWT-SVIDs a tainted authority had signed, at once.
    pub(crate) tainted_jwt: Sample,
    /// The forgetting of these.
    pub(crate) process_tainted_jwt: Call,
    /// How many JWT-SVIDs are cached.
    pub(crate) jwt_svids: Gauge,
    /// How many seconds ago the agent last heard from a server.
    pub(crate) knowledge_age: Gauge,
    /// How many selectors a workload turned out to have.
    pub(crate) selectors: Sample,
    /// How long a delegate waited for the first SVID of a stream.
    pub(crate) first_delegated: Sample,
    /// A workload is attested, by all attestors together.
    pub(crate) attestation: Call,
    cache: CacheMeters,
    bootstrap: BootstrapGauges,
}

#[derive(Default)]
struct Service {
    methods: HashMap<&'static str, Call>,
    in_flight: InFlight,
}

/// What a sync brought.
#[derive(Default)]
pub(crate) struct SyncGauges {
    /// How many bundles there are.
    pub(crate) bundles: Gauge,
    /// How many entries there are.
    pub(crate) entries: Gauge,
    /// How many of them were not known before.
    pub(crate) missing: Gauge,
    /// How many were known as they had been.
    pub(crate) stale: Gauge,
    /// How many known ones are gone.
    pub(crate) dropped: Gauge,
}

#[derive(Default)]
struct CacheMeters {
    added: Counter,
    updated: Counter,
    removed: Counter,
    entries: Gauge,
    svids: Gauge,
}

/// How the first contact goes, by its kind: bootstrap or rebootstrap.
#[derive(Default)]
struct BootstrapGauges {
    is_over: Gauge,
    since: [Gauge; 2],
    attempts: [Gauge; 2],
}

impl Meters {
    /// The handles of these metrics.
    pub(crate) fn new(metrics: Metrics) -> Arc<Self> {
        if !metrics.is_on() {
            return Arc::default();
        }
        let call = |key: &[&str]| metrics.call(key, &[]);
        let gauge = |key: &str| metrics.gauge(&[key], &[]);
        let counter = |key: &str| metrics.counter(&[key], &[]);
        let sample = |key: &[&str]| metrics.sample(key, &[]);
        let by_mode =
            |key: &str| ["bootstrap", "rebootstrap"].map(|mode| metrics.gauge(&[key], &[("mode", mode)]));
        Arc::new(
            Self {
                services: HashMap::new(),
                reattest: call(&["node", "attest"]),
                rotate: call(&["agent_svid", "rotate"]),
                fetch_entries: call(&["manager", "sync", "fetch_entries_updates"]),
                fetch_svids: call(&["manager", "sync", "fetch_svids_updates"]),
                sync: SyncGauges {
                    bundles: gauge("sync_bundles_total"),
                    entries: gauge("sync_entries_total"),
                    missing: gauge("sync_entries_missing"),
                    stale: gauge("sync_entries_stale"),
                    dropped: gauge("sync_entries_dropped"),
                },
                expiring: sample(&["cache_manager", "expiring_svids"]),
                outdated: sample(&["cache_manager", "outdated_svids"]),
                tainted_x509: sample(&["cache_manager", "tainted_x509_svids", "workload"]),
                process_tainted_x509: call(&["cache_manager", "workload", "process_tainted_x509_svids"]),
                tainted_jwt: sample(&["cache_manager", "tainted_jwt_svids", "workload"]),
                process_tainted_jwt: call(&["cache_manager", "workload", "process_tainted_jwt_svids"]),
                jwt_svids: gauge("jwt_svid_cache_size"),
                knowledge_age: gauge("finial_knowledge_age_seconds"),
                selectors: sample(&["workload_api", "discovered_selectors"]),
                first_delegated: metrics.timer(
                    &["delegated_identity_api", "subscribe_x509_svids", "first_update", "elapsed_time"],
                    &[],
                ),
                attestation: call(&["workload_api", "workload_attestation"]),
                cache: CacheMeters {
                    added: counter("lru_cache_entry_add"),
                    updated: counter("lru_cache_entry_update"),
                    removed: counter("lru_cache_entry_remove"),
                    entries: gauge("lru_cache_record_map_size"),
                    svids: gauge("lru_cache_svid_map_size"),
                },
                bootstrap: BootstrapGauges {
                    is_over: gauge("bootstrapped"),
                    since: by_mode("bootstrap_seconds"),
                    attempts: by_mode("bootstrap_attempts"),
                },
                metrics,
            }
            .with_services(),
        )
    }

    /// A call of a method of one of the agent's services begins.
    pub(crate) fn rpc(&self, service: &str, method: &str) -> Running {
        let Some(service) = self.services.get(service) else { return Call::default().start() };
        let call = service.methods.get(method);
        call.map_or_else(|| Call::default().start(), Call::start).counted_in(&service.in_flight)
    }

    /// A node attestation by this plugin.
    pub(crate) fn node_attestation(&self, attestor: &str) -> Call {
        self.metrics.call(&["node", "attestor", "new_svid"], &[("attestor", attestor)])
    }

    /// What this plugin is asked about workloads.
    pub(crate) fn workload_attestor(&self, attestor: &str) -> Call {
        self.metrics.call(&["workload_api", "workload_attestor"], &[("attestor", attestor)])
    }

    /// Calls of this method that were too many.
    pub(crate) fn rate_exceeded(&self, method: &str) -> Counter {
        self.metrics.counter(&["workload_api", "rate_limit_exceeded"], &[("method", method)])
    }

    /// Says that the agent runs.
    pub(crate) fn started(&self, version: &str, trust_domain: &TrustDomain) {
        let labels = [("version", version), ("trust_domain_id", trust_domain.as_str())];
        self.metrics.gauge(&["started"], &labels).set(1.0);
    }

    /// Shows how far the first contact with the server is.
    pub(crate) fn show_bootstrap(&self, data: &AgentData) {
        let gauges = &self.bootstrap;
        gauges.is_over.set(if data.trying_since.is_none() { 1.0 } else { 0.0 });
        let mode = usize::from(data.bootstrap == BootstrapUse::Rebootstrap);
        // SPIRE shows the first instant of its calendar where none is recorded.
        let since = data.trying_since.map_or(NEVER, time::OffsetDateTime::unix_timestamp);
        if let (Some(shown), Some(attempts)) = (gauges.since.get(mode), gauges.attempts.get(mode)) {
            shown.set_seconds(since);
            attempts.set(f64::from(data.attempts));
        }
    }

    /// Shows what the agent holds now, and counts what became of its entries since `before`.
    pub(crate) fn show_entries(&self, before: &Entries, state: &AgentState) {
        if !self.metrics.is_on() {
            return;
        }
        let (mut added, mut updated) = (0, 0);
        for held in state.entries.iter() {
            match before.get(&held.entry.id) {
                None => added += 1,
                Some(known) if known.entry.revision_number != held.entry.revision_number => updated += 1,
                Some(_) => {}
            }
        }
        let removed = before.iter().filter(|held| state.entries.get(&held.entry.id).is_none()).count();
        let count = |counter: &Counter, count: usize| {
            if count > 0 {
                counter.add(count as u64);
            }
        };
        count(&self.cache.added, added);
        count(&self.cache.updated, updated);
        count(&self.cache.removed, removed);
        self.cache.entries.set_count(state.entries.len());
        self.cache.svids.set_count(state.entries.svid_count());
    }

    fn with_services(mut self) -> Self {
        use crate::api::SERVICES;
        for (service, in_flight) in SERVICES {
            let methods = service.methods.iter().map(|method| {
                let parts = rpc_key(&format!("/{}/{method}", service.name));
                let key: Vec<&str> = std::iter::once("rpc").chain(parts.iter().map(String::as_str)).collect();
                (*method, self.metrics.call(&key, &[]))
            });
            let methods = methods.collect();
            let in_flight = in_flight.map_or_else(InFlight::default, |api| {
                InFlight::new(&self.metrics, &[api, "connection"], &[api, "connections"])
            });
            self.services.insert(service.name, Service { methods, in_flight });
        }
        self
    }
}

/// The metrics that the configuration asks for.
pub(crate) fn metrics(config: &AgentConfig) -> Result<Metrics, SinkError> {
    let telemetry = &config.telemetry;
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

/// Whether the page cannot be served before the node is attested: it shows the agent's own SVID, or
/// knows its readers by the agent's bundles.
pub(crate) fn page_needs_identity(config: &AgentConfig) -> bool {
    let tls = config.telemetry.prometheus.as_ref().and_then(|prometheus| prometheus.tls.as_ref());
    tls.is_some_and(|tls| tls.files.is_none() || !tls.authorized.is_empty())
}

/// Serves the page for Prometheus, if it is asked for, until `stop` is cancelled. A port that is in
/// use is no reason to serve nothing else: it is told, as SPIRE does.
pub(crate) async fn serve_page(
    config: Arc<AgentConfig>,
    metrics: Metrics,
    identity: Option<(Arc<OwnCertificate>, Arc<dyn Anchors>)>,
    stop: CancellationToken,
) {
    let Some(prometheus) = &config.telemetry.prometheus else { return };
    let (host, port) = (prometheus.host.as_str(), prometheus.port);
    if host != "localhost" {
        tracing::warn!(
            "The metrics of this agent can be read from other machines; see to it that only those reach \
             the port that should"
        );
    }
    tracing::info!(subsystem_name = "telemetry", host, port, "Starting prometheus exporter");
    let served = async {
        let tls = match &prometheus.tls {
            Some(tls) => {
                let (certificate, clients) = parties(tls, identity);
                let exchanges = attest::post_quantum(&config);
                Some(pages::tls(exchanges.server()?, certificate, clients)?)
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

fn parties(
    tls: &PrometheusTls,
    identity: Option<(Arc<OwnCertificate>, Arc<dyn Anchors>)>,
) -> (Certificate, Clients) {
    let authority: Option<PathBuf> = tls.client_ca.clone();
    let (own, anchors) = identity.unzip();
    let certificate = match &tls.files {
        Some((chain, key)) => Certificate::Files { chain: chain.clone(), key: key.clone() },
        None => Certificate::Resolved(own.unwrap_or_default()),
    };
    let clients = match (authority, anchors) {
        (Some(authority), _) => Clients::SignedBy(authority),
        (None, Some(anchors)) if !tls.authorized.is_empty() => {
            let authorized = tls.authorized.clone();
            let admit = move |id: &SpiffeId| {
                if authorized.contains(id) { Ok(()) } else { Err(format!("{id} may not read metrics")) }
            };
            Clients::Verified(ClientVerifier::new(anchors, Box::new(admit), true))
        }
        (None, _) => Clients::Anybody,
    };
    (certificate, clients)
}

/// What sinks call this program.
const SERVICE: &str = "spire_agent";

/// The first second of the year 1.
const NEVER: i64 = -62_135_596_800;
