//! What workloads see of an agent: how soon a new entry is theirs, what a new connection and a token
//! cost. This process is the workload, known by its user.

use std::time::Duration;

use client::WorkloadApi;
use futures::StreamExt;
use proto::spire::server::agent::ListAgentsRequest;
use proto::spire::types;
use runtime::clock::{Clock, SystemClock, within};
use spiffe::SpiffeId;

use super::credentials::AUDIENCE;
use super::{Bench, Found, one_by_one, streams};
use crate::calls;
use crate::fleet::unable;
use crate::histogram::Histogram;
use crate::judge::text_of;
use crate::load::{Stage, Ticket};
use crate::traces::remove_entries;
use crate::{BenchError, Settings, Trouble};

/// From the creation of an entry until its X.509-SVID arrives on a stream that was open before.
pub(super) async fn propagate(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let Settings { count, patience, .. } = bench.settings;
    let clock = SystemClock;
    let resident = Resident::arrive(bench).await?;
    let agent = bench.target.agent().await?;
    let api = bench.target.workload()?;
    let (before, start) = (agent.usage(), clock.instant());
    let mut histogram = Histogram::default();
    let opened = api.watch_x509_svids().await;
    let mut updates = std::pin::pin!(opened.map_err(|error| unanswered("open a stream", &error))?);
    for number in 0..*count {
        if number.is_multiple_of(10) {
            bench.target.say(&format!("entry {number} of {count}"));
        }
        let id = bench.target.id(&format!("/bench/{}/new/{number}", bench.target.run))?;
        let created_at = clock.instant();
        let entry = resident.register(bench, &id).await?;
        let seen = async {
            while let Some(update) = updates.next().await {
                let update = update.map_err(|error| unanswered("follow the stream", &error))?;
                if update.svids.iter().any(|svid| svid.id == id) {
                    return Ok(());
                }
            }
            Err(BenchError::Unreached("the agent ended the stream".to_owned()))
        };
        let seen = within(&clock, *patience, seen).await;
        seen.ok_or_else(|| BenchError::Overdue(format!("a new entry has no SVID after {patience:?}")))??;
        histogram.record(clock.instant().saturating_duration_since(created_at));
        remove_entries(bench.target, std::slice::from_ref(&entry)).await?;
        bench.traces.entry_is_gone(&entry);
    }
    let seconds = clock.instant().saturating_duration_since(start).as_secs_f64();
    let cpu = agent.usage().since(&before).as_secs_f64();
    let phase = one_by_one("entry created to SVID on a stream".to_owned(), &histogram, seconds, cpu);
    Ok(Found { phases: vec![phase], ..Found::default() })
}

/// What the agent gives to workloads.
pub(super) async fn workload(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let resident = Resident::arrive(bench).await?;
    let id = &resident.id;
    let agent = bench.target.agent().await?;
    let stage = Stage { process: &agent, ..bench.stage() };
    let mut found = Found::default();

    let connect = async |_: Ticket| {
        let api = bench.target.workload().map_err(|error| Trouble::Failed(error.to_string()))?;
        let update = api.x509_svids().await.map_err(refused)?;
        let has = update.svids.iter().any(|svid| svid.id == *id);
        bench.judge.is_due();
        if has { Ok(1) } else { Err(Trouble::Wrong(format!("the agent gave no SVID of {id}"))) }
    };
    let name = "new connection to first X.509-SVID";
    found.phases.append(&mut stage.measure(name, "connections", bench.settings, connect).await?);

    let apis: Vec<WorkloadApi> =
        (0..bench.settings.callers).map(|_| bench.target.workload()).collect::<Result<_, _>>()?;
    let audience = [AUDIENCE.to_owned()];
    let token = async |ticket: Ticket| {
        let api = apis
            .get(ticket.caller)
            .ok_or_else(|| Trouble::Failed("a caller has no connection".to_owned()))?;
        let tokens = api.jwt_svids(&audience, Some(id)).await.map_err(refused)?;
        let token =
            tokens.first().ok_or_else(|| Trouble::Wrong(format!("the agent gave no token of {id}")))?;
        if bench.judge.is_due() {
            bench.judge.jwt(&token.token, id, AUDIENCE).await?;
        }
        Ok(1)
    };
    found.phases.append(&mut stage.measure("JWT-SVID from the cache", "SVIDs", bench.settings, token).await?);

    streams::hold(bench, &resident, &agent, &mut found).await?;
    streams::cache(bench, &resident, &agent, &mut found).await?;
    Ok(found)
}

/// This process as a workload of the agent, with one identity of its own.
pub(super) struct Resident {
    pub(super) parent: SpiffeId,
    pub(super) id: SpiffeId,
    /// The entry of it.
    pub(super) entry: String,
    /// By what the agent knows this process.
    selector: types::Selector,
}

impl Resident {
    /// Registers this process and waits until the agent knows it.
    async fn arrive(bench: &Bench<'_>) -> Result<Self, BenchError> {
        let api = bench.target.workload()?;
        let parent = match &bench.settings.parent_id {
            Some(text) => {
                SpiffeId::parse(text).map_err(|error| BenchError::Setting(format!("{text:?}: {error}")))?
            }
            None => only_agent(bench).await?,
        };
        let id = bench.target.id(&format!("/bench/{}/resident", bench.target.run))?;
        let selector = types::Selector { r#type: "unix".to_owned(), value: format!("uid:{}", own_uid()?) };
        let mut resident = Self { parent, id, entry: String::new(), selector };
        resident.entry = resident.register(bench, &resident.id).await?;
        let clock = SystemClock;
        let known = async {
            loop {
                let update = api.x509_svids().await;
                if update.is_ok_and(|update| update.svids.iter().any(|svid| svid.id == resident.id)) {
                    return;
                }
                clock.sleep(Duration::from_millis(100)).await;
            }
        };
        let patience = bench.settings.patience;
        within(&clock, patience, known).await.ok_or_else(|| {
            BenchError::Overdue(format!(
                "the agent gives this process no SVID of {} within {patience:?}: has it the workload attestor unix, and is it below {}?",
                resident.id, resident.parent
            ))
        })?;
        Ok(resident)
    }

    async fn register(&self, bench: &Bench<'_>, id: &SpiffeId) -> Result<String, BenchError> {
        let mut entry = calls::entry(id, &self.parent, 0);
        entry.selectors = vec![self.selector.clone()];
        let created = calls::create(&bench.target.admin, vec![entry]).await;
        let created = created.map_err(|trouble| unable("create an entry", trouble))?;
        let id = created.into_iter().next().unwrap_or_default();
        bench.traces.entry(id.clone());
        Ok(id)
    }
}

/// The agent, if there is one only.
async fn only_agent(bench: &Bench<'_>) -> Result<SpiffeId, BenchError> {
    let request = ListAgentsRequest { page_size: 2, ..ListAgentsRequest::default() };
    let listed = bench.target.admin.agent().list_agents(request).await;
    let agents = listed.map_err(BenchError::call("list agents"))?.into_inner().agents;
    match agents.as_slice() {
        [only] => {
            let text = only.id.as_ref().map(text_of).unwrap_or_default();
            SpiffeId::parse(&text).map_err(|error| BenchError::Wrong(format!("agent {text:?}: {error}")))
        }
        [] => Err(BenchError::Setting("no agent is attested".to_owned())),
        [..] => {
            let why = "several agents are attested: -parentID says below whom the entries of this one are";
            Err(BenchError::Setting(why.to_owned()))
        }
    }
}

/// The user that this process runs as, as an agent sees it.
fn own_uid() -> Result<u32, BenchError> {
    use std::os::unix::fs::MetadataExt as _;
    let about = std::fs::metadata("/proc/self");
    about
        .map(|about| about.uid())
        .map_err(|error| BenchError::Setting(format!("cannot tell the own user: {error}")))
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of the error alone")]
fn refused(error: client::WorkloadError) -> Trouble {
    Trouble::Failed(runtime::chain(&error))
}

pub(super) fn unanswered(doing: &str, error: &client::WorkloadError) -> BenchError {
    BenchError::Unreached(format!("cannot {doing}: {}", runtime::chain(error)))
}
