//! The whole agent but for its sockets, against a server that behaves as it is told.

mod identity;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use config::{Bootstrap, BundleFormat, HealthConfig, JoinTokenText, PluginBlock, PluginData};
use plugin::KeyId;
use proto::raw::Encoded;
use proto::spire::types;
use proto::spire::types::permission_denied_details::Reason;
use runtime::clock::{ManualClock, SystemClock};
use runtime::log::{Log, Options};
use spiffe::key::KeyKind;
use spiffe::{Selector, SelectorSet, UnixSecs};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::fixtures::server::{Behaviour, Lie, StandIn, start_time};
use crate::fixtures::{self, agent_id, entry};
use crate::state::Held;
use crate::stored::AgentData;
use crate::subscribe::Update;

/// An agent that runs beside its server.
struct Running {
    server: StandIn,
    context: Arc<Context>,
    directory: TempDir,
    key_manager: Arc<dyn plugin::KeyManager>,
    tasks: Tasks,
}

fn wire(id: &str, selectors: &[&str]) -> types::Entry {
    let entry = entry(id, &format!("/{id}"), selectors);
    proto::convert::entry::masked(&entry, Some(&proto::convert::entry::AGENT_MASK))
}

fn set(values: &[&str]) -> SelectorSet {
    values.iter().map(|value| Selector::new("unix", value)).collect()
}

async fn build(server: &StandIn, directory: &TempDir, clock: Arc<dyn Clock>) -> Agent {
    let block = |kind: &str, name: &str, data| PluginBlock {
        kind: kind.to_owned(),
        name: name.to_owned(),
        command: String::new(),
        args: Vec::new(),
        checksum: String::new(),
        enabled: true,
        data,
    };
    let keys = format!("{{\"directory\": {:?}}}", directory.path());
    let mut config = fixtures::config();
    config.server_port = server.port;
    config.data_dir = directory.path().to_owned();
    config.join_token = Some(JoinTokenText("token".to_owned()));
    config.experimental.sync_interval = Duration::from_millis(20);
    config.plugins = vec![
        block("KeyManager", "disk", PluginData::Inline(keys)),
        block("NodeAttestor", "join_token", PluginData::Absent),
        block("WorkloadAttestor", "unix", PluginData::Absent),
    ];
    let (_, log) = Log::new(&Options::default()).unwrap();
    Agent::build(config, log, clock).await.unwrap()
}

fn attester(agent: &Agent) -> Arc<Attester> {
    Arc::new(Attester {
        config: Arc::clone(&agent.config),
        clock: Arc::clone(&agent.clock),
        key_manager: Arc::clone(&agent.plugins.key_manager),
        node_attestor: node_attestor(&agent.config, &agent.plugins),
        store: agent.store.clone(),
        servers: Servers::of(&agent.config, Arc::clone(&agent.clock)),
        vault: agent.vault.clone(),
        meters: Arc::default(),
    })
}

impl Running {
    async fn start(server: StandIn, directory: TempDir, clock: Arc<dyn Clock>) -> Self {
        let agent = build(&server, &directory, clock).await;
        Self::run(server, directory, agent).await
    }

    async fn run(server: StandIn, directory: TempDir, agent: Agent) -> Self {
        let key_manager = Arc::clone(&agent.plugins.key_manager);
        let attester = attester(&agent);
        let attested = attester.until_attested(&Shutdown::new()).await.unwrap().unwrap();
        let mut tasks = Tasks::new(CancellationToken::new());
        let context = agent.start(attester, attested, &mut tasks).unwrap();
        Self { server, context, directory, key_manager, tasks }
    }

    /// With these entries and a clock of its own.
    async fn with(entries: Vec<types::Entry>) -> Self {
        let server = StandIn::start().await;
        server.behaviour().entries = entries;
        Self::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await
    }

    /// The state once it is so.
    async fn until(&self, is_so: impl Fn(&AgentState) -> bool) -> Arc<AgentState> {
        let mut changed = self.context.state.changed();
        let waiting = async {
            loop {
                let state = self.context.state.load();
                if is_so(&state) {
                    return state;
                }
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it becomes so")
    }

    async fn until_signed(&self, count: usize) -> Arc<AgentState> {
        self.until(|state| state.entries.svid_count() == count).await
    }

    fn stored(&self) -> AgentData {
        Store::open(self.directory.path()).unwrap().data()
    }
}

/// Longer than anything takes on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

fn paths(update: &Update) -> Vec<&str> {
    update.identities().map(|(held, _)| held.entry.spiffe_id.path()).collect()
}

fn held(state: &AgentState, id: &str) -> Arc<Held> {
    Arc::clone(state.entries.get(&spiffe::EntryId::new(id)).unwrap())
}

#[tokio::test]
async fn an_agent_attests_syncs_and_has_its_entries_signed() {
    let running = Running::with(vec![wire("a", &["uid:1"]), wire("b", &["uid:1", "gid:1"])]).await;

    let state = running.until_signed(2).await;

    assert_eq!(state.agent.id, agent_id());
    assert!(state.synced_at.is_some());
    let svid = held(&state, "a").svid.clone().unwrap();
    assert_eq!(svid.id.as_str(), "spiffe://example.org/a");
    assert_eq!(svid.certificates().collect::<Vec<_>>().concat(), svid.chain());
    spiffe::key::PrivateKey::from_der(&svid.secret_pkcs8()).unwrap();
    assert_eq!(running.server.calls("PostStatus"), 1);
    assert_eq!(running.server.behaviour().batches, [2]);
    let stored = running.stored();
    assert_eq!(stored.svid, state.agent.chain.to_vec());
    assert_eq!(stored.bundle.len(), 2);
    assert!(stored.trying_since.is_none());
}

#[tokio::test]
async fn a_start_from_what_is_stored_asks_for_no_attestation() {
    let running = Running::with(Vec::new()).await;
    running.until(|state| state.synced_at.is_some()).await;
    let Running { server, directory, tasks, .. } = running;
    drop(tasks);

    let again = Running::start(server, directory, Arc::new(SystemClock)).await;

    again.until(|state| state.synced_at.is_some()).await;
    assert_eq!(again.server.calls("AttestAgent"), 1);
}

#[tokio::test]
async fn a_server_that_does_not_push_is_asked_and_not_told_again_that_it_could() {
    let running = Running::with(vec![wire("a", &["uid:1"])]).await;

    called(&running.server, "SyncAuthorizedEntries", 5).await;

    running.until_signed(1).await;
    assert_eq!(running.server.calls("Watch"), 1);
    assert!(!running.context.is_pushed.load(std::sync::atomic::Ordering::Relaxed));
}

#[tokio::test]
async fn an_entry_that_is_new_is_found_before_its_workload_is_refused() {
    let server = StandIn::start().await;
    server.behaviour().entries = vec![wire("a", &["uid:1"])];
    // A clock that stands still: no interval ends, and no patience.
    let clock = ManualClock::new(start_time());
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(clock)).await;
    running.until_signed(1).await;
    running.server.behaviour().entries.push(wire("b", &["uid:2"]));

    let mut subscription = running.context.subscriptions.join(set(&["uid:2"]));
    let looking = running
        .context
        .last_look
        .wait(&mut subscription, running.tasks.token(), |update| update.identities().next().is_some());
    let update = tokio::time::timeout(PATIENCE, looking).await.expect("it is found");

    assert_eq!(paths(&update), ["/b"]);
    assert_eq!(running.server.calls("SyncAuthorizedEntries"), 2);
}

#[tokio::test]
async fn many_who_would_be_refused_at_once_cost_the_server_one_request() {
    let clock = ManualClock::new(start_time());
    let server = StandIn::start().await;
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(clock.clone())).await;
    running.until(|state| state.synced_at.is_some()).await;
    let before = running.server.calls("SyncAuthorizedEntries");

    let callers = (0..50).map(async |_| {
        let mut subscription = running.context.subscriptions.join(set(&["uid:9"]));
        let look = &running.context.last_look;
        look.wait(&mut subscription, running.tasks.token(), |update| !update.entries.is_empty()).await
    });
    let mut refused = Box::pin(futures::future::join_all(callers));
    // All of them wait; the clock stands still, so none of them is through.
    assert!(futures::poll!(&mut refused).is_pending());
    called(&running.server, "SyncAuthorizedEntries", before + 1).await;
    clock.advance(LastLook::PATIENCE);

    assert!(
        tokio::time::timeout(PATIENCE, refused).await.unwrap().iter().all(|update| update.entries.is_empty())
    );
    assert_eq!(running.server.calls("SyncAuthorizedEntries"), before + 1);
}

#[tokio::test]
async fn an_svid_without_its_key_is_not_used() {
    let running = Running::with(Vec::new()).await;
    let Running { server, directory, tasks, .. } = running;
    drop(tasks);
    std::fs::remove_file(directory.path().join("keys.json")).unwrap();

    let again = Running::start(server, directory, Arc::new(SystemClock)).await;

    assert_eq!(again.server.calls("AttestAgent"), 2);
}

#[tokio::test]
async fn a_server_that_refuses_ends_the_agent_and_one_that_is_away_does_not() {
    let server = StandIn::start().await;
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(start_time());
    let agent = build(&server, &directory, Arc::new(clock.clone())).await;
    let attester = attester(&agent);
    let shutdown = Shutdown::new();
    server.behaviour().is_away = true;

    let attesting = attester.until_attested(&shutdown);
    let coming_back = async {
        called(&server, "AttestAgent", 3).await;
        server.behaviour().is_away = false;
        std::future::pending::<()>().await;
    };
    let attested = tokio::select! {
        attested = attesting => attested,
        () = coming_back => unreachable!(),
        () = moving(&clock) => unreachable!(),
    };

    assert!(attested.unwrap().is_some());
    let mut refused = Attester { config: Arc::clone(&attester.config), ..clone(&attester) };
    refused.node_attestor =
        plugins::agent::nodeattestor::join_token::with_token(Zeroizing::new("other".to_owned()));
    refused.store.update(AgentData::forget_svid).await.unwrap();
    let error = refused.until_attested(&shutdown).await.err().unwrap();
    assert!(error.to_string().contains("PermissionDenied"), "{error}");
}

fn clone(attester: &Attester) -> Attester {
    Attester {
        config: Arc::clone(&attester.config),
        clock: Arc::clone(&attester.clock),
        key_manager: Arc::clone(&attester.key_manager),
        node_attestor: Arc::clone(&attester.node_attestor),
        store: attester.store.clone(),
        servers: attester.servers.clone(),
        vault: attester.vault.clone(),
        meters: Arc::default(),
    }
}

/// Moves the clock while something else is waited for, slowly enough for calls to end in time.
async fn moving(clock: &ManualClock) {
    move_by(clock, TICK * 3).await;
}

async fn manual(server: StandIn) -> (Running, ManualClock) {
    let clock = ManualClock::new(start_time());
    let directory = tempfile::tempdir().unwrap();
    (Running::start(server, directory, Arc::new(clock.clone())).await, clock)
}

async fn move_by(clock: &ManualClock, step: Duration) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        clock.advance(step);
    }
}

const TICK: Duration = Duration::from_millis(50);

/// Ends when the server was called so often.
async fn called(server: &StandIn, method: &str, times: usize) {
    let mut ticks = tokio::time::interval(TICK);
    while server.calls(method) < times {
        ticks.tick().await;
    }
}

#[tokio::test]
async fn an_entry_that_is_not_signed_for_holds_up_no_other() {
    let server = StandIn::start().await;
    server.behaviour().entries = ["a", "b", "c"].map(|id| wire(id, &["uid:1"])).to_vec();
    server.behaviour().refused.insert("b".to_owned());
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;

    let mut subscription = running.context.subscriptions.join(set(&["uid:1"]));
    running.until_signed(2).await;
    let update = subscription.settled(&SystemClock, PATIENCE).await;

    assert_eq!(paths(&update), ["/a", "/c"]);
    assert_eq!((update.entries.len(), update.is_pending()), (3, false));
    running.server.behaviour().refused.clear();
    running.until_signed(3).await;
}

#[tokio::test]
async fn who_is_not_signed_for_by_a_server_in_trouble_is_waited_for() {
    let server = StandIn::start().await;
    server.behaviour().entries = vec![wire("a", &["uid:1"])];
    server.behaviour().is_troubled = true;
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;
    called(&running.server, "BatchNewX509SVID", 2).await;

    let mut subscription = running.context.subscriptions.join(set(&["uid:1"]));
    assert!(subscription.current().is_pending());
    running.server.behaviour().is_troubled = false;

    assert_eq!(paths(&*subscription.settled(&SystemClock, PATIENCE).await), ["/a"]);
}

#[tokio::test]
async fn an_svid_that_has_expired_is_served_to_nobody() {
    let server = StandIn::start().await;
    server.behaviour().entries = vec![wire("a", &["uid:1"])];
    server.behaviour().svid_life = 300;
    let (running, clock) = manual(server).await;
    running.until_signed(1).await;
    let mut subscription = running.context.subscriptions.join(set(&["uid:1"]));
    assert_eq!(paths(&subscription.current()), ["/a"]);

    running.server.behaviour().is_away = true;
    clock.advance(Duration::from_secs(299));
    assert_eq!(paths(&subscription.current()), ["/a"]);
    tokio::select! {
        _ = running.until(|state| state.entries.svid_count() == 0) => {}
        () = moving(&clock) => unreachable!(),
    }

    let update = subscription.current();
    assert_eq!((paths(&update).len(), update.is_pending()), (0, true));
    // The server's clock did not move.
    running.server.behaviour().svid_life = 3600;
    running.server.behaviour().is_away = false;
    tokio::select! {
        _ = running.until_signed(1) => {}
        () = moving(&clock) => unreachable!(),
    }
}

#[tokio::test]
async fn health_is_told_from_the_start() {
    let server = StandIn::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut agent = build(&server, &directory, Arc::new(SystemClock)).await;
    let health = HealthConfig { enabled: true, bind_port: "0".to_owned(), ..agent.config.health.clone() };
    agent.listener = listener(&health).await.unwrap();
    let address = agent.listener.as_ref().unwrap().address();
    server.behaviour().is_away = true;
    let shutdown = Shutdown::new();

    let ask = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let asking = async {
        let answers = (ask("/live").await, ask("/ready").await);
        shutdown.trigger();
        answers
    };
    let (ended, answers) = tokio::join!(agent.run(&shutdown), asking);

    ended.unwrap();
    assert_eq!(answers, ("200".to_owned(), "500".to_owned()));
}

#[tokio::test]
async fn a_batch_too_large_is_halved_until_it_passes() {
    let server = StandIn::start().await;
    server.behaviour().entries = (0..40).map(|n| wire(&format!("e{n:02}"), &["uid:1"])).collect();
    server.behaviour().largest_batch = 12;
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;

    running.until_signed(40).await;

    let batches = running.server.behaviour().batches.clone();
    assert_eq!(batches.iter().sum::<usize>(), 40);
    assert!(batches.iter().all(|size| *size <= 12), "{batches:?}");
}

#[tokio::test]
async fn keys_that_take_long_are_made_in_small_batches() {
    let server = StandIn::start().await;
    server.behaviour().entries = (0..35).map(|n| wire(&format!("e{n:02}"), &["uid:1"])).collect();
    let directory = tempfile::tempdir().unwrap();
    let mut agent = build(&server, &directory, Arc::new(SystemClock)).await;
    agent.config = Arc::new(AgentConfig { workload_key: KeyKind::Rsa2048, ..(*agent.config).clone() });

    let running = Running::run(server, directory, agent).await;
    let state = running.until_signed(35).await;

    assert_eq!(running.server.behaviour().batches, [32, 3]);
    let svid = held(&state, "e07").svid.clone().unwrap();
    let key = spiffe::key::PrivateKey::from_der(&svid.secret_pkcs8()).unwrap();
    assert_eq!(key.kind(), Some(KeyKind::Rsa2048));
}

#[tokio::test]
async fn a16_what_is_signed_for_somebody_else_reaches_nobody() {
    let server = StandIn::start().await;
    server.behaviour().entries = vec![wire("a", &["uid:1"])];
    server.behaviour().impostor = Some("spiffe://example.org/b".parse().unwrap());
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;

    let state = running.until(|state| state.entries.iter().any(|held| held.refused)).await;

    assert_eq!(state.entries.svid_count(), 0);
    let error = running.context.jwt_svids.fetch(&held(&state, "a").entry, &["x".to_owned()]).await;
    assert!(error.err().unwrap().to_string().contains("spiffe://example.org/b"));
}

/// How many of two SVIDs an agent takes from a server that lies so; then the server tells the truth.
async fn taken_from(lie: impl Fn(&mut Behaviour)) -> usize {
    let server = StandIn::start().await;
    server.behaviour().entries = vec![wire("a", &["uid:1"]), wire("b", &["uid:1"])];
    lie(&mut server.behaviour());
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;
    let mut subscription = running.context.subscriptions.join(set(&["uid:1"]));

    // What is wrong is asked for again.
    called(&running.server, "BatchNewX509SVID", 2).await;
    let served = paths(&subscription.current()).len();

    running.server.behaviour().tell_the_truth();
    running.until_signed(2).await;
    served
}

#[tokio::test]
async fn a16_what_was_not_asked_for_is_neither_taken_nor_held_against_the_rest() {
    use Lie::{NoCertificate, NoChain, OtherAuthority, OtherKey, TooFew};

    for lie in [OtherKey, OtherAuthority, NoChain, NoCertificate] {
        assert_eq!(taken_from(|behaviour| behaviour.lie = Some(lie)).await, 0, "{lie:?}");
    }
    assert_eq!(taken_from(|behaviour| behaviour.lie = Some(TooFew)).await, 1);
    let other = "spiffe://other.org/a".parse().ok();
    assert_eq!(taken_from(|behaviour| behaviour.impostor.clone_from(&other)).await, 0);
    // It has ended already.
    assert_eq!(taken_from(|behaviour| behaviour.svid_life = -5).await, 0);
    let server = StandIn::start().await;
    server.behaviour().entries = vec![wire("a", &["uid:1"]), wire("b", &["uid:1"])];
    server.behaviour().lie = Some(Lie::TooMany);
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;
    running.until_signed(2).await;
}

#[tokio::test]
async fn a16_a_huge_list_that_names_each_entry_twice_is_one_of_each() {
    const COUNT: usize = 3000;
    let server = StandIn::start().await;
    let entries = (0..2 * COUNT).map(|number| wire(&format!("e{:05}", number % COUNT), &["uid:1"]));
    server.behaviour().entries = entries.collect();
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;

    let state = running.until(|state| state.entries.len() == COUNT).await;
    running.server.behaviour().entries.truncate(1);
    running.until(|state| state.entries.len() == 1 && state.entries.svid_count() == 1).await;

    assert_eq!(state.entries.iter().map(|held| &held.entry.id).collect::<HashSet<_>>().len(), COUNT);
}

#[tokio::test]
async fn more_entries_than_a_page_come_by_revisions_and_only_once() {
    let server = StandIn::start().await;
    server.behaviour().entries = (0..25).map(|n| wire(&format!("e{n:02}"), &["uid:1"])).collect();
    server.behaviour().page = 10;
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;
    running.until_signed(25).await;
    let first_time = running.server.behaviour().sent.len();
    let synced = running.server.calls("SyncAuthorizedEntries");

    {
        let mut behaviour = running.server.behaviour();
        behaviour.entries[3].revision_number = 1;
        behaviour.entries.remove(24);
    }
    let state = running
        .until(|state| state.entries.len() == 24 && held(state, "e03").svid.as_ref().unwrap().revision == 1)
        .await;

    assert_eq!(first_time, 25);
    assert_eq!(running.server.behaviour().sent[25..], ["e03"]);
    assert!(running.server.calls("SyncAuthorizedEntries") > synced);
    assert_eq!(state.entries.svid_count(), 24);
}

#[tokio::test]
async fn streams_see_what_changes_and_never_a_moment_without_an_svid() {
    let running = Running::with(vec![wire("a", &["uid:1"])]).await;
    running.until_signed(1).await;
    let mut subscription = running.context.subscriptions.join(set(&["uid:1", "gid:7"]));
    let mut seen = vec![subscription.current()];
    assert_eq!(paths(&seen[0]), ["/a"]);

    let behaviour = || running.server.behaviour();
    behaviour().entries[0].revision_number = 1;
    behaviour().entries.push(wire("b", &["gid:7"]));
    behaviour().entries.push(wire("c", &["uid:2"]));
    running.until_signed(3).await;
    behaviour().entries[0].hint = "internal".to_owned();
    while !seen.last().unwrap().entries.iter().any(|held| held.entry.hint == "internal") {
        seen.push(tokio::time::timeout(PATIENCE, subscription.changed()).await.unwrap());
    }
    behaviour().entries.clear();
    while !seen.last().unwrap().entries.is_empty() {
        seen.push(tokio::time::timeout(PATIENCE, subscription.changed()).await.unwrap());
    }

    let with_entries = seen.iter().filter(|update| !update.entries.is_empty());
    assert!(with_entries.into_iter().all(|update| paths(update).contains(&"/a")));
    assert!(seen.iter().any(|update| paths(update) == ["/a", "/b"]));
    assert!(!seen.iter().any(|update| paths(update).contains(&"/c")));
}

#[tokio::test]
async fn equal_selectors_share_one_update_and_go_with_the_last_who_has_them() {
    let running = Running::with(vec![wire("a", &["uid:1"])]).await;
    running.until_signed(1).await;
    let subscriptions = &running.context.subscriptions;

    let (mut one, mut other) = (subscriptions.join(set(&["uid:1"])), subscriptions.join(set(&["uid:1"])));
    let mut stranger = subscriptions.join(set(&["uid:2"]));

    assert!(Arc::ptr_eq(&one.current(), &other.current()));
    assert_eq!(stranger.current().entries.len(), 0);
    let first = one.current().x509_svids.get(|| Encoded::new(vec![bytes::Bytes::from_static(b"encoded")]));
    assert_eq!(other.current().x509_svids.get(|| unreachable!("encoded twice")), first);
    assert_eq!(subscriptions.in_use().len(), 1);
    drop((one, other));
    assert_eq!(subscriptions.in_use().len(), 0);
}

#[tokio::test]
async fn federated_bundles_come_with_their_entries_and_go_with_them() {
    let server = StandIn::start().await;
    let mut federated = wire("a", &["uid:1"]);
    federated.federates_with = vec!["other.org".to_owned(), "missing.org".to_owned()];
    let mut bundle = types::Bundle::from(&server.bundle());
    bundle.trust_domain = "other.org".to_owned();
    server.behaviour().entries = vec![federated];
    server.behaviour().federated.insert("other.org".to_owned(), bundle);
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(SystemClock)).await;
    running.until_signed(1).await;

    let update = running.context.subscriptions.join(set(&["uid:1"])).current();

    assert_eq!(update.federated.keys().map(AsRef::as_ref).collect::<Vec<&str>>(), ["other.org"]);
    running.server.behaviour().entries[0].federates_with.clear();
    let state = running.until(|state| state.bundles.federated.is_empty()).await;
    assert_eq!(state.bundles.own.x509_authorities.len(), 2);
}

#[tokio::test]
async fn svids_and_tokens_of_a_tainted_authority_are_replaced_while_they_are_used() {
    let running = Running::with(vec![wire("a", &["uid:1"])]).await;
    let state = running.until_signed(1).await;
    let before = held(&state, "a").svid.clone().unwrap();
    let jwt_svids = &running.context.jwt_svids;
    let audience = ["x".to_owned()];
    jwt_svids.fetch(&held(&state, "a").entry, &audience).await.unwrap();
    assert_eq!(jwt_svids.count(), 1);

    running.server.behaviour().tainted = true;
    let state = running
        .until(|state| {
            let svid = held(state, "a").svid.clone().expect("there is always one");
            svid.authority() != before.authority()
        })
        .await;

    assert!(!state.bundles.tainted_keys.is_empty());
    assert_eq!(jwt_svids.count(), 0);
}

#[tokio::test]
async fn a_token_is_asked_for_once_however_many_want_it() {
    let running = Running::with(vec![wire("a", &["uid:1"])]).await;
    let state = running.until_signed(1).await;
    let entry = Arc::clone(&held(&state, "a").entry);
    let (xy, yx) = (["x".to_owned(), "y".to_owned()], ["y".to_owned(), "x".to_owned()]);
    let jwt_svids = &running.context.jwt_svids;

    let fetches = (0..20).map(|n| jwt_svids.fetch(&entry, if n % 2 == 0 { &xy } else { &yx }));
    let tokens = futures::future::join_all(fetches).await;

    let first = tokens[0].as_ref().unwrap();
    assert!(tokens.iter().all(|token| Arc::ptr_eq(token.as_ref().unwrap(), first)));
    assert_eq!(running.server.calls("NewJWTSVID"), 1);
    jwt_svids.fetch(&entry, &xy[..1]).await.unwrap();
    assert_eq!(running.server.calls("NewJWTSVID"), 2);
}

#[tokio::test]
async fn a_token_to_be_used_once_is_never_cached() {
    let running = Running::with(vec![wire("a", &["uid:1"])]).await;
    running.server.behaviour().entries[0].additional_attributes =
        Some(types::entry::AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() });
    let state = running
        .until(|state| {
            let mut entries = state.entries.iter();
            entries.any(|held| held.entry.additional_attributes.is_some())
        })
        .await;
    let entry = Arc::clone(&held(&state, "a").entry);

    let one = running.context.jwt_svids.fetch(&entry, &["x".to_owned()]).await.unwrap();
    let other = running.context.jwt_svids.fetch(&entry, &["x".to_owned()]).await.unwrap();

    assert_ne!(one.token, other.token);
    assert_eq!(running.context.jwt_svids.count(), 0);
}

#[tokio::test]
async fn a_token_that_holds_is_served_while_the_server_is_away() {
    let server = StandIn::start().await;
    server.behaviour().entries = vec![wire("a", &["uid:1"])];
    let clock = ManualClock::new(start_time());
    let running = Running::start(server, tempfile::tempdir().unwrap(), Arc::new(clock.clone())).await;
    let state = running.until_signed(1).await;
    let entry = Arc::clone(&held(&state, "a").entry);
    let audience = ["x".to_owned()];
    let fetch = || running.context.jwt_svids.fetch(&entry, &audience);
    // The server answers at once that it is away: no call needs the time.
    let fetch_in_vain = || async {
        tokio::select! {
            token = fetch() => token,
            () = move_by(&clock, TICK * 20) => unreachable!(),
        }
    };
    let first = fetch().await.unwrap();
    running.server.behaviour().is_away = true;

    clock.advance(Duration::from_secs(170));
    let stale = fetch_in_vain().await.unwrap();
    clock.advance(Duration::from_secs(130));
    let error = fetch_in_vain().await.err().unwrap();

    assert!(Arc::ptr_eq(&first, &stale));
    assert_eq!(error.to_string(), "failed to fetch JWT SVID: rpc error: code = Unavailable desc = away");
}
