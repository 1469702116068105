//! Black-box suites: they reach the product through its front doors only.
//!
//! Main types: [`Product`] (the programs under test), [`Plane`] (a running trust domain in a folder of
//! its own) [`Scenario`] (recorded command lines with
//! what they must print) and [`ApiGroup`] (recorded calls of the server's API with what they came to). The same suites drive
//! SPIRE's own programs when `SPIRE_BIN` names their folder, which proves the suites themselves.
//! Nothing here may depend on a crate of the product.
#![expect(clippy::print_stderr, reason = "test support talks to the one who runs the tests")]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "in test support a broken premise is a failed test, and foreign processes are waited for"
)]

mod api;
mod audit;
mod brokers;
mod delegated;
mod der;
mod describe;
mod documents;
mod envoy;
mod exchanges;
mod expect;
mod federation;
mod forced;
mod foreign;
mod frames;
mod ha;
mod handshake;
mod http;
mod imposter;
mod kill;
mod lint;
mod live;
mod lures;
mod memory;
mod metrics;
mod minted;
mod nested;
mod oracle;
mod outage;
mod outcome;
mod packed;
mod pki;
mod plane;
mod policy;
mod ports;
mod scenario;
mod sds;
mod secrets;
mod siege;
mod storm;
mod takeover;
mod template;
mod tokens;
mod typed;
mod unrest;
mod wire;
mod workload;

pub use api::ApiGroup;
pub use audit::{AuditLines, audit_lines, steady};
pub use brokers::Brokers;
pub use delegated::Delegates;
pub use documents::Documents;
pub use envoy::{Envoys, Seen};
pub use exchanges::Exchanges;
pub use federation::{Bystander, Crowd, Domains, Imposters, Profile};
pub use forced::{Forced, forced};
pub use foreign::{Foreign, skip};
pub use frames::{PREFACE, answers_tls, assault, attacks, dawdlers, half_open, oversized, tcp_dawdlers};
pub use ha::Pair;
pub use handshake::{Offer, shake};
pub use http::{await_ok, get};
pub use kill::{Kills, Query, query_file};
pub use lint::Issued;
pub use live::Live;
pub use lures::lure;
pub use memory::{Copy, copies_in_memory};
pub use metrics::{Measured, MetricRow, Page, metric_rows, names_of, received, receiver};
pub use minted::Minted;
pub use nested::Nested;
pub use oracle::{Crossing, Server};
pub use outage::{Outage, Served};
pub use outcome::Outcome;
pub use packed::{bomb_of_a_stranger, packed_calls};
pub use pki::DatabaseSecrets;
pub use plane::{Plane, PlaneConfig, Product, Running, pause};
pub use policy::{Judged, refused_policy};
pub use ports::Ports;
pub use scenario::{Scenario, Verdict};
pub use sds::Discovery;
pub use secrets::Secrets;
pub use siege::{Attack, Noticed, Siege};
pub use storm::storm;
pub use takeover::Takeover;
pub use template::Binding;
pub use tokens::{Spent, kill_attestations};
pub use unrest::{Riot, Unrest, attack_agent, streams_allowed};
pub use workload::{Svids, Workload};
