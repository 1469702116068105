//! The agent's own identity: how it is renewed, lost, and had again.

use super::*;

/// How the agent ended.
async fn end(running: Running, clock: &ManualClock) -> (String, TempDir) {
    let Running { tasks, directory, .. } = running;
    let ended = tokio::select! {
        ended = tasks.join() => ended,
        () = moving(clock) => unreachable!(),
    };
    (runtime::chain(&ended.unwrap_err()), directory)
}

#[tokio::test]
async fn a08_a_banned_agent_forgets_its_svid_and_ends() {
    let (running, clock) = manual(StandIn::start().await).await;
    assert_eq!(running.stored().svid.len(), 1);

    running.server.behaviour().deny = Some(Reason::AgentBanned);
    let (error, directory) = end(running, &clock).await;

    assert_eq!(error, "own SVID failed: agent is banned: its SVID was removed");
    let stored = Store::open(directory.path()).unwrap().data();
    assert_eq!((stored.svid.len(), stored.bundle.len()), (0, 2));
}

#[tokio::test]
async fn an_agent_that_cannot_attest_again_ends_when_it_must() {
    let (running, clock) = manual(StandIn::start().await).await;

    running.server.behaviour().deny = Some(Reason::AgentNotAttested);
    let (error, directory) = end(running, &clock).await;

    assert_eq!(error, "own SVID failed: agent needs to re-attest: its SVID was removed");
    assert_eq!(Store::open(directory.path()).unwrap().data().svid.len(), 0);
}

#[tokio::test]
async fn an_agent_that_can_attest_again_does_when_it_must() {
    let server = StandIn::start().await;
    server.behaviour().reattestable = true;
    let (running, clock) = manual(server).await;
    let before = running.until(|state| state.synced_at.is_some()).await;

    running.server.behaviour().deny = Some(Reason::AgentNotActive);
    let after = tokio::select! {
        after = running.until(|state| state.agent.chain != before.agent.chain) => after,
        () = moving(&clock) => unreachable!(),
    };
    running.server.behaviour().deny = None;

    assert_eq!(running.stored().svid, after.agent.chain.to_vec());
    assert!(running.stored().reattestable);
    let synced_at = after.synced_at.unwrap();
    tokio::select! {
        _ = running.until(|state| state.synced_at.unwrap() > synced_at) => {}
        () = moving(&clock) => unreachable!(),
    }
}

#[tokio::test]
async fn the_agents_svid_is_renewed_at_half_its_life_with_keys_in_turn() {
    let (running, clock) = manual(StandIn::start().await).await;
    let first = running.context.state.load();
    let key = |id: &'static str| {
        let key_manager = Arc::clone(&running.key_manager);
        async move { key_manager.key(&KeyId::new(id)).await.unwrap().map(|key| key.public().clone()) }
    };
    assert_eq!(key("agent-svid-A").await.as_ref(), Some(first.agent.chain[0].public_key()));

    clock.advance(Duration::from_secs(1500));
    assert_eq!(running.server.calls("RenewAgent"), 0);
    clock.advance(Duration::from_secs(500));
    assert!(UnixSecs::from(clock.now()) < first.agent.expires_at());
    let second = tokio::select! {
        state = running.until(|state| state.agent.chain != first.agent.chain) => state,
        () = moving(&clock) => unreachable!(),
    };

    assert_eq!(running.server.calls("RenewAgent"), 1);
    assert_eq!(running.server.calls("AttestAgent"), 1);
    assert_eq!(running.stored().svid, second.agent.chain.to_vec());
    assert_eq!(key("agent-svid-B").await.as_ref(), Some(second.agent.chain[0].public_key()));
    // Killed now or before, the agent finds a key for what is stored.
    assert_eq!(key("agent-svid-A").await.as_ref(), Some(first.agent.chain[0].public_key()));
}

#[tokio::test]
async fn an_agent_outlives_its_own_svid_and_attests_anew_when_the_server_is_back() {
    let server = StandIn::start().await;
    server.behaviour().reattestable = true;
    server.behaviour().entries = vec![wire("a", &["uid:1"])];
    server.behaviour().svid_life = 100_000;
    let (running, clock) = manual(server).await;
    let before = running.until_signed(1).await;

    running.server.behaviour().is_away = true;
    clock.advance(Duration::from_secs(3700));
    assert!(UnixSecs::from(clock.now()) > before.agent.expires_at());
    let tried = running.server.calls("AttestAgent");
    tokio::select! {
        () = called(&running.server, "AttestAgent", tried + 2) => {}
        () = moving(&clock) => unreachable!(),
    }
    let mut subscription = running.context.subscriptions.join(set(&["uid:1"]));
    assert_eq!(paths(&subscription.current()), ["/a"]);

    // The server's clock did not move.
    running.server.behaviour().agent_life = 100_000;
    running.server.behaviour().is_away = false;
    tokio::select! {
        _ = running.until(|state| state.agent.chain != before.agent.chain) => {}
        () = moving(&clock) => unreachable!(),
    }
    assert_eq!(running.server.calls("RenewAgent"), 0);
}

#[tokio::test]
async fn an_svid_that_cannot_be_stored_is_not_used() {
    let (running, clock) = manual(StandIn::start().await).await;
    let first = running.context.state.load();
    let file = running.directory.path().join("agent-data.json.tmp");
    // A directory in the way of the temporary file.
    std::fs::create_dir(&file).unwrap();

    clock.advance(Duration::from_secs(2200));
    tokio::select! {
        () = called(&running.server, "RenewAgent", 2) => {}
        () = moving(&clock) => unreachable!(),
    }

    assert_eq!(running.context.state.load().agent.chain, first.agent.chain);
    std::fs::remove_dir(&file).unwrap();
    let second = tokio::select! {
        state = running.until(|state| state.agent.chain != first.agent.chain) => state,
        () = moving(&clock) => unreachable!(),
    };
    assert_eq!(running.stored().svid, second.agent.chain.to_vec());
}

#[tokio::test]
async fn a15_a_server_from_another_authority_ends_an_agent_that_may_not_bootstrap_anew() {
    let (running, clock) = manual(StandIn::start().await).await;
    let Running { directory, tasks, .. } = running;
    drop(tasks);
    let other = StandIn::start().await;
    let agent = build(&other, &directory, Arc::new(clock.clone())).await;
    let attester = attester(&agent);

    let attested = attester.until_attested(&Shutdown::new()).await.unwrap().unwrap();
    let mut tasks = Tasks::new(CancellationToken::new());
    agent.start(attester, attested, &mut tasks).unwrap();
    let ended = tokio::select! {
        ended = tasks.join() => ended,
        () = moving(&clock) => unreachable!(),
    };

    let error = runtime::chain(&ended.unwrap_err());
    assert!(error.contains("certificate signed by unknown authority"), "{error}");
    assert_eq!(other.calls("SyncAuthorizedEntries"), 0);
    // The SVID stays: the server may be put right.
    let data = Store::open(directory.path()).unwrap().data();
    assert_eq!(data.svid.len(), 1);
    // And nothing of the other one's has come into the bundle.
    assert!(
        !data.bundle.iter().any(|known| other
            .bundle()
            .x509_authorities
            .iter()
            .any(|own| known.der() == &*own.der))
    );
}

#[tokio::test]
async fn a15_a_first_bundle_that_does_not_vouch_for_the_server_is_asked_for_again() {
    let (server, other) = (StandIn::start().await, StandIn::start().await);
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bundle.pem");
    std::fs::write(&bundle, other.bundle().to_pem()).unwrap();
    let clock = ManualClock::new(start_time());
    let mut agent = build(&server, &directory, Arc::new(clock.clone())).await;
    let bootstrap = Bootstrap::File { path: bundle.clone(), format: BundleFormat::Pem };
    agent.config = Arc::new(AgentConfig { bootstrap, ..(*agent.config).clone() });
    let (attester, shutdown) = (attester(&agent), Shutdown::new());

    let attempts = async {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            clock.advance(TICK * 5);
            if agent.store.data().attempts == 2 {
                std::fs::write(&bundle, server.bundle().to_pem()).unwrap();
            }
        }
    };
    let attested = tokio::select! {
        attested = attester.until_attested(&shutdown) => attested,
        () = attempts => unreachable!(),
    };

    assert!(attested.unwrap().is_some());
    assert_eq!(server.calls("AttestAgent"), 1);
    let data = agent.store.data();
    assert_eq!((data.attempts, data.trying_since), (0, None));
}

/// What an agent stored, and the agent started again after `later`, what it stored changed in between.
async fn restarted(
    later: Duration,
    change: impl FnOnce(&std::path::Path),
    adapt: impl FnOnce(&StandIn, &mut AgentConfig),
) -> (AgentData, Running) {
    let (running, clock) = manual(StandIn::start().await).await;
    let Running { server, directory, tasks, .. } = running;
    drop(tasks);
    let before = Store::open(directory.path()).unwrap().data();
    change(directory.path());
    clock.advance(later);
    let mut agent = build(&server, &directory, Arc::new(clock)).await;
    let mut config = (*agent.config).clone();
    adapt(&server, &mut config);
    agent.config = Arc::new(config);
    (before, Running::run(server, directory, agent).await)
}

fn forget_bundle(directory: &std::path::Path) {
    let file = directory.join("agent-data.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut data: serde_json::Value = serde_json::from_str(&text).unwrap();
    data["bundle"] = serde_json::Value::Null;
    std::fs::write(&file, data.to_string()).unwrap();
}

#[tokio::test]
async fn a_stored_svid_is_used_whatever_its_key_is_called() {
    let rename = |directory: &std::path::Path| {
        let file = directory.join("keys.json");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("agent-svid-A", "another")).unwrap();
    };

    let (before, running) = restarted(Duration::ZERO, rename, |_, _| {}).await;

    assert_eq!(running.context.state.load().agent.chain.to_vec(), before.svid);
    assert_eq!(running.server.calls("AttestAgent"), 1);
    let ids: Vec<_> =
        running.key_manager.keys().await.unwrap().iter().map(|key| key.id().as_str().to_owned()).collect();
    assert_eq!(ids, ["another"]);
}

#[tokio::test]
async fn a_stored_svid_without_a_bundle_is_used_with_that_of_the_source() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("bundle.pem");

    let (before, running) = restarted(Duration::ZERO, forget_bundle, |server, config| {
        std::fs::write(&path, server.bundle().to_pem()).unwrap();
        config.bootstrap = Bootstrap::File { path: path.clone(), format: BundleFormat::Pem };
    })
    .await;

    assert_eq!(running.context.state.load().agent.chain.to_vec(), before.svid);
    assert_eq!(running.server.calls("AttestAgent"), 1);
    // The first synchronisation proves the bundle.
    running.until(|state| state.synced_at.is_some()).await;
    assert_eq!(running.stored(), before);
}

#[tokio::test]
async fn an_expired_svid_without_a_bundle_is_replaced() {
    let (before, running) = restarted(Duration::from_secs(3700), forget_bundle, |server, _| {
        server.behaviour().agent_life = 100_000;
    })
    .await;

    assert_eq!(running.server.calls("AttestAgent"), 2);
    let after = running.stored();
    assert_ne!(after.svid, before.svid);
    assert_eq!(after.bundle, before.bundle);
}
