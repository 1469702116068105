//! Authorities that are replaced by force, with many workloads looking on all the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::plane::{Plane, PlaneConfig, Product};
use crate::workload::{Svid, Svids, Workload};

/// How long a new authority may take to reach a workload.
const REACH: Duration = Duration::from_secs(60);
/// How long one look at a stream takes.
const GLANCE: Duration = Duration::from_millis(2);
/// The audience of all tokens here.
const AUDIENCE: &str = "forced";
const ID: &str = "spiffe://{td}/steady";

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forced {
    /// How often both authorities were replaced.
    pub rounds: usize,
    /// How many validations were made; none failed.
    pub validations: usize,
}

/// Replaces the X.509 and the JWT authority `rounds` times, taints and revokes the old ones, while
/// `connections` workloads hold their streams open and have every SVID and token validated by what the
/// others hold.
///
/// # Errors
/// Says what failed to validate, or did not happen in time.
///
/// # Panics
/// If server or agent does not become healthy.
pub fn forced(product: &Product, rounds: usize, connections: usize) -> Result<Forced, String> {
    let extra = "default_x509_svid_ttl = \"60s\"\n  default_jwt_svid_ttl = \"30s\"";
    let config = PlaneConfig { server_extra: extra.to_owned(), agent: true, ..PlaneConfig::default() };
    let plane = Plane::start(product, &config, &BTreeMap::new());
    let mut create = vec!["entry", "create", "-socketPath", "{sock}", "-parentID", "spiffe://{td}/node"];
    create.extend(["-spiffeID", ID, "-selector", "unix:uid:{uid}"]);
    let _shown = plane.ok("server", &create);
    plane.await_identities(&[ID]);
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut crowd = Crowd::gather(&plane, connections).await?;
        for _ in 0..rounds {
            crowd.round(&plane).await?;
        }
        Ok(Forced { rounds, validations: crowd.validations })
    })
}

/// All workloads.
struct Crowd {
    members: Vec<Member>,
    validations: usize,
}

struct Member {
    workload: Workload,
    stream: Svids,
    held: Svid,
    token: String,
}

impl Crowd {
    async fn gather(plane: &Plane, count: usize) -> Result<Self, String> {
        let mut members = Vec::new();
        for _ in 0..count {
            let workload = Workload::at(plane.word("asock"));
            let mut stream = workload.svids().await.map_err(|why| format!("no stream: {why:?}"))?;
            let first = timeout(REACH, stream.next()).await.map_err(|_| "no SVID".to_owned())?;
            let held = first.map_err(|why| format!("no SVID: {why:?}"))?;
            let held = held.into_iter().next().ok_or("an empty answer")?;
            members.push(Member { workload, stream, held, token: String::new() });
        }
        Ok(Self { members, validations: 0 })
    }

    /// Both authorities are replaced once; everybody goes over before the old ones are revoked.
    async fn round(&mut self, plane: &Plane) -> Result<(), String> {
        let old = self.members.first().ok_or("nobody is here")?.held.clone();
        let (x509_old, jwt_old) =
            (command(plane, "x509", "show", "active", None)?, command(plane, "jwt", "show", "active", None)?);
        let x509_new = command(plane, "x509", "prepare", "prepared_authority", None)?;
        let jwt_new = command(plane, "jwt", "prepare", "prepared_authority", None)?;
        let known = old.bundle.len();
        self.until("the new authority is known", |held| held.bundle.len() > known).await?;

        command(plane, "x509", "activate", "activated_authority", Some(&x509_new))?;
        command(plane, "jwt", "activate", "activated_authority", Some(&jwt_new))?;
        command(plane, "x509", "taint", "tainted_authority", Some(&x509_old))?;
        command(plane, "jwt", "taint", "tainted_authority", Some(&jwt_old))?;
        let issuer = old.issuer();
        self.until("the new authority signs", |held| held.issuer() != issuer).await?;
        self.until_tokens(&jwt_new).await?;

        command(plane, "x509", "revoke", "revoked_authority", Some(&x509_old))?;
        command(plane, "jwt", "revoke", "revoked_authority", Some(&jwt_old))?;
        self.until("the old authority is gone", |held| held.bundle.len() == known).await
    }

    /// Follows everybody until `holds` is true of what each holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Svid) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + REACH;
        while !self.members.iter().all(|member| holds(&member.held)) {
            if Instant::now() > deadline {
                return Err(format!("not within {REACH:?}: {what}"));
            }
            self.look().await?;
        }
        Ok(())
    }

    /// Waits until tokens name the key `id`.
    async fn until_tokens(&mut self, id: &str) -> Result<(), String> {
        let deadline = Instant::now() + REACH;
        while !self.members.iter().all(|member| key_of(&member.token) == id) {
            if Instant::now() > deadline {
                return Err(format!("tokens are not signed by {id} within {REACH:?}"));
            }
            self.look().await?;
        }
        Ok(())
    }

    /// Takes what is new; each checks the SVID of the next one by its own bundle, and has the token of the
    /// next one validated.
    async fn look(&mut self) -> Result<(), String> {
        for member in &mut self.members {
            if let Ok(next) = timeout(GLANCE, member.stream.next()).await {
                let svids = next.map_err(|why| format!("a stream ends with {why:?}"))?;
                member.held = svids.into_iter().next().ok_or("an empty answer")?;
            }
            let token = member.workload.token(AUDIENCE).await;
            member.token = token.map_err(|why| format!("no token: {why:?}"))?;
        }
        let others = self.members.iter().cycle().skip(1);
        for (member, other) in self.members.iter().zip(others) {
            other.held.verify(&member.held.bundle)?;
            let valid = member.workload.validate(AUDIENCE, &other.token).await;
            valid.map_err(|why| format!("a token is refused: {why:?}"))?;
            self.validations += 2;
        }
        Ok(())
    }
}

/// The key id that a token names.
fn key_of(token: &str) -> String {
    let header = token.split('.').next().unwrap_or_default();
    let header = URL_SAFE_NO_PAD.decode(header).unwrap_or_default();
    let header: Value = serde_json::from_slice(&header).unwrap_or_default();
    header["kid"].as_str().unwrap_or_default().to_owned()
}

/// Commands an authority; the id of the one that the answer names `field`.
pub(crate) fn command(
    plane: &Plane,
    family: &str,
    verb: &str,
    field: &str,
    id: Option<&str>,
) -> Result<String, String> {
    let mut args = vec!["localauthority", family, verb, "-output", "json", "-socketPath", "{sock}"];
    args.extend(id.into_iter().flat_map(|id| ["-authorityID", id]));
    let answer: Value =
        serde_json::from_str(&plane.ok("server", &args)).map_err(|error| format!("{args:?}: {error}"))?;
    let id = answer[field]["authority_id"].as_str();
    id.map(str::to_owned).ok_or_else(|| format!("{args:?} answers {answer}"))
}
