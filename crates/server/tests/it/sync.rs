//! Watching: an agent that is told holds what one that asks is given, and only who may is told.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use client::ServerClients;
use proto::convert::entry::AGENT_MASK;
use proto::finial::sync::watch_request::{Ack, Check, Hello, Want, What};
use proto::finial::sync::{WatchRequest, WatchResponse, watch_response};
use proto::spire::server::{agent as agent_wire, bundle as bundle_wire, entry as wire};
use proto::spire::types;
use runtime::backoff::Random;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::{Place, Running, TestAgent};

/// Longer than anything takes on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than anything takes that is done at once.
const MOMENT: Duration = Duration::from_millis(300);

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
}

fn selector(value: &str) -> types::Selector {
    types::Selector { r#type: "t".to_owned(), value: value.to_owned() }
}

fn entry(name: &str, parent: Option<types::Spiffeid>, path: &str, value: &str) -> types::Entry {
    types::Entry {
        id: name.to_owned(),
        parent_id: parent,
        spiffe_id: id(path),
        selectors: vec![selector(value)],
        ..types::Entry::default()
    }
}

async fn create(server: &Running, entries: Vec<types::Entry>) {
    let request = wire::BatchCreateEntryRequest { entries, output_mask: None };
    server.local().entry().batch_create_entry(request).await.unwrap();
}

async fn delete(server: &Running, ids: Vec<String>) {
    server.local().entry().batch_delete_entry(wire::BatchDeleteEntryRequest { ids }).await.unwrap();
}

/// What the agent gets that asks.
async fn polled(clients: &ServerClients) -> BTreeMap<String, types::Entry> {
    let request = wire::GetAuthorizedEntriesRequest { output_mask: Some(AGENT_MASK) };
    let reply = clients.entry().get_authorized_entries(request).await.unwrap().into_inner();
    reply.entries.into_iter().map(|entry| (entry.id.clone(), entry)).collect()
}

/// An agent that watches.
struct Watcher {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    entries: BTreeMap<String, types::Entry>,
    bundles: BTreeMap<String, types::Bundle>,
    /// How many entries came whole.
    whole: usize,
}

impl Watcher {
    async fn open(clients: &ServerClients, token: Bytes) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(8);
        requests.send(request(What::Hello(Hello { token }))).await.unwrap();
        let answers = clients.sync().watch(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, answers, entries: BTreeMap::new(), bundles: BTreeMap::new(), whole: 0 })
    }

    async fn say(&self, what: What) {
        self.requests.send(request(what)).await.unwrap();
    }

    /// Takes messages until the end of a push, and gives its token.
    async fn push(&mut self) -> Result<Bytes, Status> {
        let (mut is_new, mut wanted) = (true, Vec::new());
        loop {
            let message = timeout(PATIENCE, self.answers.message()).await.unwrap()?;
            let WatchResponse { what, token } = message.ok_or_else(|| Status::ok("the end"))?;
            match what {
                Some(watch_response::What::Full(full)) => {
                    if std::mem::take(&mut is_new) {
                        self.entries.clear();
                    }
                    wanted.extend(full.entry_revisions.iter().map(|revision| revision.id.clone()));
                    if !full.entry_revisions.is_empty() && !full.more {
                        self.say(What::Want(Want { ids: std::mem::take(&mut wanted), more: false })).await;
                    }
                    self.set(full.entries);
                }
                Some(watch_response::What::Delta(delta)) => {
                    delta.removed.iter().for_each(|id| _ = self.entries.remove(id).unwrap());
                    self.set(delta.entries);
                }
                Some(watch_response::What::Bundles(bundles)) => {
                    if bundles.all {
                        self.bundles.clear();
                    }
                    bundles.removed.iter().for_each(|name| _ = self.bundles.remove(name));
                    let named = |bundle: types::Bundle| (bundle.trust_domain.clone(), bundle);
                    self.bundles.extend(bundles.bundles.into_iter().map(named));
                }
                None => {}
            }
            if !token.is_empty() {
                return Ok(token);
            }
        }
    }

    fn set(&mut self, entries: Vec<types::Entry>) {
        self.whole += entries.len();
        self.entries.extend(entries.into_iter().map(|entry| (entry.id.clone(), entry)));
    }

    /// Takes a push and acknowledges it.
    async fn take(&mut self) -> Bytes {
        let token = self.push().await.unwrap();
        self.say(What::Ack(Ack { token: token.clone() })).await;
        token
    }

    /// Takes what was pushed already, then has the server say that this is all.
    async fn catch_up(&mut self) {
        self.say(What::Check(Check {})).await;
        self.take().await;
        // A push that was on its way before answers the check, and there may be others behind it.
        while let Ok(token) = timeout(MOMENT, self.push()).await {
            self.say(What::Ack(Ack { token: token.unwrap() })).await;
        }
    }

    async fn is_silent(&mut self) -> bool {
        timeout(MOMENT, self.answers.message()).await.is_err()
    }

    /// How the stream ends.
    async fn end(mut self) -> Status {
        loop {
            match self.push().await {
                Ok(token) => self.say(What::Ack(Ack { token })).await,
                Err(status) => return status,
            }
        }
    }
}

const fn request(what: What) -> WatchRequest {
    WatchRequest { what: Some(what) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_a_change_concerns_is_told_at_once_and_nobody_else() {
    let place = Place::new();
    let server = place.start().await;
    let (one, other) = (server.agent("one").await, server.agent("other").await);
    let mut watching = Watcher::open(&server.remote(one.own.clone()), Bytes::new()).await.unwrap();
    let mut bystander = Watcher::open(&server.remote(other.own.clone()), Bytes::new()).await.unwrap();
    let _tokens = tokio::join!(watching.take(), bystander.take());
    assert_eq!(watching.bundles.keys().collect::<Vec<_>>(), ["example.org"]);

    create(&server, vec![entry("a", Some(one.id.clone()), "/a", "x")]).await;
    watching.take().await;
    assert_eq!(watching.entries.keys().collect::<Vec<_>>(), ["a"]);

    // Below an entry that is below the agent; moved away and back; deleted.
    create(&server, vec![entry("b", id("/a"), "/b", "x")]).await;
    watching.take().await;
    assert_eq!(watching.entries.len(), 2);
    let moved = |parent: types::Spiffeid| {
        let input_mask = Some(types::EntryMask { parent_id: true, ..types::EntryMask::default() });
        let entries =
            vec![types::Entry { id: "a".to_owned(), parent_id: Some(parent), ..types::Entry::default() }];
        wire::BatchUpdateEntryRequest { entries, input_mask, output_mask: None }
    };
    server.local().entry().batch_update_entry(moved(other.id.clone())).await.unwrap();
    let _tokens = tokio::join!(watching.take(), bystander.take());
    assert_eq!((watching.entries.len(), bystander.entries.len()), (0, 2));
    server.local().entry().batch_update_entry(moved(one.id.clone())).await.unwrap();
    let _tokens = tokio::join!(watching.take(), bystander.take());
    assert_eq!((watching.entries.len(), bystander.entries.len()), (2, 0));
    delete(&server, vec!["a".to_owned()]).await;
    let token = watching.take().await;
    assert_eq!(watching.entries.len(), 0);

    assert!(watching.is_silent().await && bystander.is_silent().await);
    // Who comes back with the token has everything.
    let mut again = Watcher::open(&server.remote(one.own.clone()), token).await.unwrap();
    again.take().await;
    assert_eq!((again.whole, again.bundles.len()), (0, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_before_a_push_is_acknowledged_is_part_of_the_next() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("one").await;
    let mut watching = Watcher::open(&server.remote(agent.own.clone()), Bytes::new()).await.unwrap();
    let token = watching.push().await.unwrap();

    for number in 0..20 {
        let name = format!("e{number}");
        create(&server, vec![entry(&name, Some(agent.id.clone()), &format!("/{name}"), "x")]).await;
    }
    delete(&server, vec!["e3".to_owned()]).await;
    assert!(watching.is_silent().await);
    watching.say(What::Ack(Ack { token: Bytes::from_static(b"another") })).await;
    assert!(watching.is_silent().await);

    watching.say(What::Ack(Ack { token })).await;
    watching.take().await;

    assert_eq!(watching.entries.len(), 19);
    assert_eq!(watching.whole, 19, "what came and went is not told");
    assert!(watching.is_silent().await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_entries_are_told_by_their_revisions() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("one").await;
    let parent = || Some(agent.id.clone());
    let named = |number: usize| entry(&format!("e{number}"), parent(), &format!("/{number}"), "x");
    create(&server, (0..1100).map(named).collect()).await;
    let clients = server.remote(agent.own.clone());
    let mut watching = Watcher::open(&clients, Bytes::new()).await.unwrap();
    watching.take().await;
    assert_eq!((watching.whole, watching.entries == polled(&clients).await), (1100, true));

    create(&server, (1100..1101).map(named).collect()).await;
    watching.take().await;
    assert_eq!((watching.whole, watching.entries == polled(&clients).await), (1101, true));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_pushed_when_they_change_and_when_an_entry_wants_them() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("one").await;
    let clients = server.remote(agent.own.clone());
    let mut watching = Watcher::open(&clients, Bytes::new()).await.unwrap();
    watching.take().await;
    let local = server.local();
    let own = local.bundle().get_bundle(bundle_wire::GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(watching.bundles["example.org"], own);
    let foreign = types::Bundle { trust_domain: "other.org".to_owned(), ..own.clone() };
    let create_bundle =
        bundle_wire::BatchCreateFederatedBundleRequest { bundle: vec![foreign], output_mask: None };
    local.bundle().batch_create_federated_bundle(create_bundle).await.unwrap();
    assert!(watching.is_silent().await, "no entry federates with it");

    let federating = types::Entry {
        federates_with: vec!["other.org".to_owned()],
        ..entry("f", Some(agent.id.clone()), "/f", "x")
    };
    create(&server, vec![federating]).await;
    watching.take().await;
    assert_eq!(watching.bundles.keys().collect::<Vec<_>>(), ["example.org", "other.org"]);

    let request = bundle_wire::AppendBundleRequest {
        x509_authorities: Vec::new(),
        jwt_authorities: vec![types::JwtKey { key_id: "more".to_owned(), ..own.jwt_authorities[0].clone() }],
        ..Default::default()
    };
    local.bundle().append_bundle(request).await.unwrap();
    watching.take().await;
    assert_eq!(watching.bundles["example.org"].jwt_authorities.len(), own.jwt_authorities.len() + 1);

    delete(&server, vec!["f".to_owned()]).await;
    watching.take().await;
    assert_eq!(watching.bundles.keys().collect::<Vec<_>>(), ["example.org"]);
    server.stop().await;
}

/// An alias for the agents that attested with this token: their selector.
fn alias(agent: &TestAgent, path: &str) -> types::Entry {
    let value = agent.id.path.trim_start_matches("/spire/agent/join_token/").to_owned();
    let selectors = vec![types::Selector {
        r#type: "spiffe_id".to_owned(),
        value: format!("spiffe://example.org/spire/agent/join_token/{value}"),
    }];
    types::Entry { selectors, ..entry("alias", id("/spire/server"), path, "") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_an_agent_is_told_what_it_would_be_given() {
    let place = Place::new();
    let server = place.start().await;
    let agents = [server.agent("one").await, server.agent("two").await];
    let mut watchers = Vec::new();
    for agent in &agents {
        let clients = server.remote(agent.own.clone());
        let mut watcher = Watcher::open(&clients, Bytes::new()).await.unwrap();
        watcher.take().await;
        watchers.push((clients, watcher));
    }
    let mut random = Random::new();
    let mut below = |most: usize| (random.unit() * most as f64) as usize;
    let parents =
        [Some(agents[0].id.clone()), Some(agents[1].id.clone()), id("/p"), id("/q"), id("/spire/server")];
    let paths = ["/p", "/q", "/leaf", "/other"];
    for round in 0..120 {
        let name = format!("e{}", below(12));
        match below(5) {
            0 => delete(&server, vec![name]).await,
            1 => {
                let entries = vec![types::Entry {
                    id: name,
                    parent_id: parents[below(4)].clone(),
                    spiffe_id: id(paths[below(4)]),
                    hint: round.to_string(),
                    ..types::Entry::default()
                }];
                let input_mask = Some(types::EntryMask {
                    parent_id: below(2) == 0,
                    spiffe_id: below(2) == 0,
                    hint: true,
                    ..types::EntryMask::default()
                });
                let request = wire::BatchUpdateEntryRequest { entries, input_mask, output_mask: None };
                server.local().entry().batch_update_entry(request).await.unwrap();
            }
            2 => {
                delete(&server, vec!["alias".to_owned()]).await;
                create(&server, vec![alias(&agents[below(2)], ["/p", "/q"][below(2)])]).await;
            }
            _ => {
                let made =
                    entry(&name, parents[below(5)].clone(), paths[below(4)], &format!("v{}", below(3)));
                create(&server, vec![made]).await;
            }
        }
        if round % 10 == 9 {
            for (clients, watcher) in &mut watchers {
                watcher.catch_up().await;
                assert_eq!(watcher.entries, polled(clients).await, "after {round} rounds");
            }
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_and_a_newer_svid_end_the_stream() {
    let place = Place::new();
    let server = place.start().await;
    let mut agent = server.agent("one").await;
    let mut watching = Watcher::open(&server.remote(agent.as_it_is()), Bytes::new()).await.unwrap();
    watching.take().await;

    let old = server.remote(agent.as_it_is());
    agent.renew(&old).await.unwrap();
    assert!(watching.is_silent().await, "the new one was not used yet");
    let renewed = server.remote(agent.own.clone());
    let mut again = Watcher::open(&renewed, Bytes::new()).await.unwrap();
    again.take().await;
    let ended = watching.end().await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");

    let ban = agent_wire::BanAgentRequest { id: Some(agent.id.clone()) };
    server.local().agent().ban_agent(ban).await.unwrap();
    let ended = again.end().await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    assert!(Watcher::open(&renewed, Bytes::new()).await.is_err());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_ends_its_streams_and_nonsense_is_refused() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("one").await;
    let clients = server.remote(agent.own.clone());
    let first = |what| {
        let requests = tokio_stream::iter([request(what)]).chain(tokio_stream::pending());
        let mut sync = clients.sync();
        async move { sync.watch(requests).await.unwrap().into_inner().message().await.unwrap_err() }
    };
    assert_eq!(first(What::Check(Check {})).await.code(), Code::InvalidArgument);
    assert_eq!(first(What::Ack(Ack::default())).await.code(), Code::InvalidArgument);
    let mut watching = Watcher::open(&clients, Bytes::new()).await.unwrap();
    watching.take().await;
    watching.say(What::Want(Want::default())).await;
    assert_eq!(watching.end().await.code(), Code::InvalidArgument);

    let mut watching = Watcher::open(&clients, Bytes::new()).await.unwrap();
    watching.take().await;
    let (ended, ()) = tokio::join!(watching.end(), server.stop());
    assert_eq!(ended.code(), Code::Ok, "{ended:?}");
}
