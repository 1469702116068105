//! Agents that have changes pushed to them: what a change costs that concerns one of very many, how soon
//! that one knows, and what it takes of memory to wait.
//!
//! Only Finial's servers push.

use std::pin::Pin;

use bytes::Bytes;
use futures::stream::{SelectAll, select_all};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use proto::finial::sync::watch_request::{Ack, Hello, What};
use proto::finial::sync::{WatchRequest, WatchResponse, watch_response};
use runtime::clock::{Clock, SystemClock, within};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Bench, Found, one_by_one};
use crate::calls;
use crate::fleet::{Fleet, SimulatedAgent, unable};
use crate::histogram::Histogram;
use crate::report::Memory;
use crate::traces::remove_entries;
use crate::{BenchError, Settings, Trouble};

/// What all streams say, with the number of the agent.
type Told = SelectAll<Pin<Box<dyn Stream<Item = (usize, Result<WatchResponse, Status>)> + Send>>>;

/// The agents' ends of all streams.
struct Watchers {
    requests: Vec<mpsc::Sender<WatchRequest>>,
    told: Told,
    /// Pushes to agents that nothing concerned.
    strays: u64,
}

pub(super) async fn watch(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let Settings { entries, agents, count, patience, .. } = bench.settings;
    let clock = SystemClock;
    let mut fleet = Fleet::gather(bench.target, bench.traces, "watch", *agents).await?;
    fleet.furnish(bench.target, bench.traces, Settings::first(entries), *patience).await?;
    fleet.connect().await?;
    let resident = bench.target.server.memory();
    bench.target.say(&format!("opening {agents} streams"));
    let mut watchers = Watchers::open(&fleet.agents).await?;
    let memory = Memory::of("agents that watch".to_owned(), resident, bench.target.server.memory(), *agents);

    let mut histogram = Histogram::default();
    let (before, start) = (bench.target.server.usage(), clock.instant());
    for number in 0..*count {
        let index = number % fleet.agents.len().max(1);
        let agent = fleet.turn(u64::try_from(index).unwrap_or_default());
        let agent = agent.map_err(|trouble| unable("find an agent", trouble))?;
        let id = bench.target.id(&format!("/bench/{}/watched/{number}", bench.target.run))?;
        let entry = calls::entry(&id, &agent.id, number);
        let created_at = clock.instant();
        let created = calls::create(&bench.target.admin, vec![entry]).await;
        let created = created.map_err(|trouble| unable("create an entry", trouble))?;
        created.iter().for_each(|entry| bench.traces.entry(entry.clone()));
        let told = within(&clock, *patience, watchers.until_told(index, created.first())).await;
        told.ok_or_else(|| BenchError::Overdue(format!("an agent is not told within {patience:?}")))??;
        histogram.record(clock.instant().saturating_duration_since(created_at));
        remove_entries(bench.target, &created).await?;
        created.iter().for_each(|entry| bench.traces.entry_is_gone(entry));
        let told = within(&clock, *patience, watchers.until_told(index, None)).await;
        told.ok_or_else(|| BenchError::Overdue(format!("an agent is not told within {patience:?}")))??;
    }
    let seconds = clock.instant().saturating_duration_since(start).as_secs_f64();
    let cpu = bench.target.server.usage().since(&before).as_secs_f64();
    if watchers.strays > 0 {
        let strays = watchers.strays;
        return Err(BenchError::Wrong(format!("{strays} pushes went to agents that nothing concerned")));
    }
    let name = format!("entry created to push, one of {agents} agents");
    Ok(Found { phases: vec![one_by_one(name, &histogram, seconds, cpu)], memory: vec![memory] })
}

impl Watchers {
    /// Opens a stream for each agent and takes what it is told first.
    async fn open(agents: &[SimulatedAgent]) -> Result<Self, BenchError> {
        let opened: Vec<_> = stream::iter(agents)
            .map(|agent| async move {
                let (requests, receiver) = mpsc::channel(4);
                say(&requests, What::Hello(Hello::default())).await?;
                let answers = agent.clients.sync().watch(ReceiverStream::new(receiver)).await?;
                let mut answers = answers.into_inner();
                loop {
                    let message = answers.message().await?;
                    let message = message.ok_or_else(|| Trouble::Failed("a stream ended".to_owned()))?;
                    if !message.token.is_empty() {
                        say(&requests, What::Ack(Ack { token: message.token })).await?;
                        return Ok::<_, Trouble>((requests, answers));
                    }
                }
            })
            .buffered(16)
            .try_collect()
            .await
            .map_err(|trouble| unable("watch as a simulated agent", trouble))?;
        let (requests, answers): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let numbered = answers
            .into_iter()
            .enumerate()
            .map(|(index, answers)| answers.map(move |message| (index, message)).boxed());
        Ok(Self { requests, told: select_all(numbered), strays: 0 })
    }

    /// Waits until the agent has a whole push, with this entry in it if there is one.
    async fn until_told(&mut self, wanted: usize, entry: Option<&String>) -> Result<(), BenchError> {
        let mut is_there = entry.is_none();
        while let Some((index, message)) = self.told.next().await {
            let message = message.map_err(BenchError::call("follow a stream"))?;
            let has_news = message.what.is_some();
            if let Some(watch_response::What::Delta(delta)) = &message.what {
                is_there |= delta.entries.iter().any(|told| Some(&told.id) == entry);
            }
            if index != wanted && has_news {
                self.strays += 1;
            }
            if message.token.is_empty() {
                continue;
            }
            self.acknowledge(index, message.token).await?;
            if index == wanted && is_there {
                return Ok(());
            }
        }
        Err(BenchError::Unreached("all streams have ended".to_owned()))
    }

    async fn acknowledge(&self, index: usize, token: Bytes) -> Result<(), BenchError> {
        let Some(requests) = self.requests.get(index) else { return Ok(()) };
        let said = say(requests, What::Ack(Ack { token })).await;
        said.map_err(|trouble| unable("answer a push", trouble))
    }
}

async fn say(requests: &mpsc::Sender<WatchRequest>, what: What) -> Result<(), Trouble> {
    let said = requests.send(WatchRequest { what: Some(what) }).await;
    said.map_err(|_| Trouble::Failed("the server ended a stream".to_owned()))
}
