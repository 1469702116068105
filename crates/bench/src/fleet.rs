//! Simulated agents: attested by join tokens, each with an identity, an address and a connection of its
//! own. Keys and requests are made beforehand, so that the client is not what is measured.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::ServerClients;
use futures::{StreamExt, TryStreamExt, stream};
use proto::spire::server::agent::attest_agent_request::{Params, Step};
use proto::spire::server::agent::attest_agent_response;
use proto::spire::server::agent::{AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest};
use proto::spire::types;
use runtime::clock::{Clock, SystemClock};
use spiffe::SpiffeId;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::tls::OwnCertificate;
use spiffe::x509::{CertDer, CsrTemplate, Name};
use tokio_stream::iter;

use crate::calls::{self, Known};
use crate::judge::{text_of, wire_of};
use crate::target::Target;
use crate::traces::Traces;
use crate::{BenchError, Trouble};

/// A key with a request for it.
pub(crate) struct Request {
    pub(crate) key: PrivateKey,
    pub(crate) csr: Bytes,
}

/// An agent that is attested and connected.
pub(crate) struct SimulatedAgent {
    pub(crate) clients: ServerClients,
    /// What it was told when it connected: an agent's alias is an entry of its own, so no two know the same.
    pub(crate) known: Known,
    /// Its SPIFFE ID.
    pub(crate) id: SpiffeId,
    own: Arc<OwnCertificate>,
    number: usize,
}

/// Many of them, which share an alias and so its entries.
pub(crate) struct Fleet {
    pub(crate) agents: Vec<SimulatedAgent>,
    /// The alias below which entries are those of every agent.
    pub(crate) alias: SpiffeId,
    /// Where the ids of its workloads begin.
    path: String,
}

impl Request {
    /// `count` requests, each for a key of its own; with an id where the request has to name it.
    ///
    /// # Errors
    /// The cryptography fails.
    pub(crate) fn make(count: usize, id: Option<&SpiffeId>) -> Result<Vec<Self>, BenchError> {
        let template = CsrTemplate { subject: Name::new(&[]), id: id.cloned(), dns_names: Vec::new() };
        let one = || {
            let key = PrivateKey::generate(KeyKind::EcP256)?;
            let csr = template.sign(&key)?.into();
            Ok::<_, spiffe::key::KeyError>(Self { key, csr })
        };
        (0..count).map(|_| one()).collect::<Result<_, _>>().map_err(BenchError::crypto)
    }
}

impl SimulatedAgent {
    /// A new connection in place of the one there is.
    ///
    /// # Errors
    /// It does not open.
    pub(crate) async fn reconnect(&self, target: &Target) -> Result<ServerClients, Trouble> {
        let dialer = target.agent_dialer(self.number, Arc::clone(&self.own)).map_err(failed)?;
        Ok(ServerClients::new(dialer.connect().await.map_err(failed)?))
    }
}

impl Fleet {
    /// Attests `count` agents, which all have the entries below one new alias. They connect with their
    /// first call.
    ///
    /// # Errors
    /// One does not get in.
    pub(crate) async fn gather(
        target: &Target,
        traces: &Traces,
        name: &str,
        count: usize,
    ) -> Result<Self, BenchError> {
        target.say(&format!("attesting {count} agents"));
        let path = format!("/bench/{}/{name}", target.run);
        let alias = target.id(&format!("{path}/node"))?;
        traces.alias(&alias);
        let tokens = join_tokens(target, count, Some(&alias)).await?;
        let requests = Request::make(count, None)?;
        let first = target.numbers(count);
        let agents: Vec<SimulatedAgent> = stream::iter(tokens.iter().zip(&requests).zip(first..))
            .map(|((token, request), number)| async move {
                let own = OwnCertificate::empty();
                let svid = attest(target, number, token, request).await?;
                let id = id_of(&svid)?;
                traces.agent(id.clone());
                let chain: Vec<CertDer> = svid.cert_chain.iter().map(|der| CertDer::new(der)).collect();
                own.set(&chain, &request.key).map_err(failed)?;
                let channel = target.agent_dialer(number, Arc::clone(&own)).map_err(failed)?.channel();
                Ok::<_, Trouble>(SimulatedAgent {
                    clients: ServerClients::new(channel.map_err(failed)?),
                    known: Known::default(),
                    id,
                    own,
                    number,
                })
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await
            .map_err(|trouble| unable("attest a simulated agent", trouble))?;
        Ok(Self { agents, alias, path })
    }

    /// Connects all agents: each syncs once.
    ///
    /// # Errors
    /// One cannot.
    pub(crate) async fn connect(&mut self) -> Result<(), BenchError> {
        let known: Vec<Known> = stream::iter(&self.agents)
            .map(|agent| async {
                Ok::<_, Trouble>(calls::sync(&agent.clients, &Known::default()).await?.known)
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await
            .map_err(|trouble| unable("connect a simulated agent", trouble))?;
        for (agent, known) in self.agents.iter_mut().zip(known) {
            agent.known = known;
        }
        Ok(())
    }

    /// The agent whose turn it is.
    ///
    /// # Errors
    /// There are none.
    pub(crate) fn turn(&self, number: u64) -> Result<&SimulatedAgent, Trouble> {
        let count = u64::try_from(self.agents.len()).unwrap_or(u64::MAX).max(1);
        let index = usize::try_from(number % count).unwrap_or_default();
        self.agents.get(index).ok_or_else(|| Trouble::Failed("there are no agents".to_owned()))
    }

    /// Creates `count` entries of all agents and waits until the server lets them have these. Hands back
    /// the ids of the entries with the SPIFFE IDs they are for.
    ///
    /// # Errors
    /// They are refused, or not there in time.
    pub(crate) async fn furnish(
        &self,
        target: &Target,
        traces: &Traces,
        count: usize,
        patience: Duration,
    ) -> Result<Vec<(String, SpiffeId)>, BenchError> {
        target.say(&format!("creating {count} entries for them"));
        let ids: Vec<SpiffeId> = (0..count)
            .map(|number| target.id(&format!("{}/workload/{number}", self.path)))
            .collect::<Result<_, _>>()?;
        let mut furnished = Vec::with_capacity(count);
        for (chunk, ids) in ids.chunks(BATCH).enumerate() {
            let entries =
                ids.iter().enumerate().map(|(at, id)| calls::entry(id, &self.alias, chunk * BATCH + at));
            let created = calls::create(&target.admin, entries.collect()).await;
            for (entry, id) in
                created.map_err(|trouble| unable("create entries", trouble))?.into_iter().zip(ids)
            {
                traces.entry(entry.clone());
                furnished.push((entry, id.clone()));
            }
        }
        self.await_entries(count, patience).await?;
        Ok(furnished)
    }

    /// Waits until the first and the last agent have `count` entries beside what the alias itself is.
    async fn await_entries(&self, count: usize, patience: Duration) -> Result<(), BenchError> {
        let clock = SystemClock;
        let start = clock.instant();
        for agent in self.agents.first().into_iter().chain(self.agents.last()) {
            loop {
                let found = calls::sync(&agent.clients, &Known::default()).await;
                let found = found.map_err(|trouble| unable("sync a simulated agent", trouble))?.known.count;
                if found > count {
                    break;
                }
                if clock.instant().saturating_duration_since(start) > patience {
                    return Err(BenchError::Overdue(format!(
                        "of {count} new entries an agent has {} after {patience:?}",
                        found.saturating_sub(1)
                    )));
                }
                clock.sleep(BETWEEN_LOOKS).await;
            }
        }
        Ok(())
    }
}

/// Tokens for `count` agents.
///
/// # Errors
/// One is refused.
pub(crate) async fn join_tokens(
    target: &Target,
    count: usize,
    alias: Option<&SpiffeId>,
) -> Result<Vec<String>, BenchError> {
    let one = |_| {
        let request =
            CreateJoinTokenRequest { ttl: 3600, token: String::new(), agent_id: alias.map(wire_of) };
        let mut client = target.admin.agent();
        async move { client.create_join_token(request).await }
    };
    let tokens: Vec<_> = stream::iter(0..count)
        .map(one)
        .buffered(AT_ONCE)
        .try_collect()
        .await
        .map_err(BenchError::call("create a join token"))?;
    Ok(tokens.into_iter().map(|token| token.into_inner().value).collect())
}

/// Attests as the agent number `number`, on a connection of its own that is closed again.
///
/// # Errors
/// The server refuses, or answers without an SVID.
pub(crate) async fn attest(
    target: &Target,
    number: usize,
    token: &str,
    request: &Request,
) -> Result<types::X509svid, Trouble> {
    let dialer = target.agent_dialer(number, OwnCertificate::empty()).map_err(failed)?;
    let channel = dialer.connect().await.map_err(failed)?;
    let params = Params {
        data: Some(types::AttestationData {
            r#type: "join_token".to_owned(),
            payload: Bytes::copy_from_slice(token.as_bytes()),
        }),
        params: Some(AgentX509svidParams { csr: request.csr.clone() }),
    };
    let steps = iter([AttestAgentRequest { step: Some(Step::Params(params)) }]);
    let mut answers = ServerClients::new(channel).agent().attest_agent(steps).await?.into_inner();
    match answers.message().await?.and_then(|answer| answer.step) {
        Some(attest_agent_response::Step::Result(result)) => {
            result.svid.ok_or_else(|| Trouble::Wrong("an agent was attested without an SVID".to_owned()))
        }
        Some(attest_agent_response::Step::Challenge(_)) | None => {
            Err(Trouble::Wrong("a join token was answered with no result".to_owned()))
        }
    }
}

/// The id that a server gave an agent.
///
/// # Errors
/// It is none.
pub(crate) fn id_of(svid: &types::X509svid) -> Result<SpiffeId, Trouble> {
    let text = svid.id.as_ref().map(text_of).unwrap_or_default();
    SpiffeId::parse(&text).map_err(|error| Trouble::Wrong(format!("agent {text:?}: {error}")))
}

fn failed(error: impl std::error::Error + 'static) -> Trouble {
    Trouble::Failed(runtime::chain(&error))
}

/// What keeps a run from starting.
pub(crate) fn unable(doing: &str, trouble: Trouble) -> BenchError {
    match trouble {
        Trouble::Failed(why) => BenchError::Unreached(format!("cannot {doing}: {why}")),
        Trouble::Wrong(why) => BenchError::Wrong(why),
    }
}

const BATCH: usize = 1000;
const AT_ONCE: usize = 16;
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
