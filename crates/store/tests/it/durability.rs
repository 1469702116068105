//! kill -9, group commit and many writers at once.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use finial_store::{Changes, EntryFilter, EntryMask, NewEntry, Options, Store};
use spiffe::EntryId;
use tokio::sync::mpsc;

use crate::support::{entry, id, on_each_database, open, selector};

/// Names the database to the child process that is going to be killed.
const CHILD: &str = "FINIAL_STORE_CHILD";
/// How many times a writer is killed.
const ROUNDS: &str = "FINIAL_KILL_ROUNDS";
const WRITERS: usize = 64;

fn numbered(name: &str) -> NewEntry {
    let mut new = entry(&format!("/{name}"), &["unix:uid:1", "unix:gid:2"]);
    new.id = Some(EntryId::new(name));
    new.dns_names = vec![format!("{name}.example.org")];
    new
}

/// Not a test by itself: the body of the process that is killed. Says each id once it is acknowledged.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(file) = std::env::var(CHILD) else { return };
    let (file, round) = file.rsplit_once('#').unwrap();
    let store = open(Path::new(file));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let handles: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, runtime, round) = (store.clone(), runtime.handle().clone(), round.to_owned());
            std::thread::spawn(move || {
                for number in 0.. {
                    let name = format!("r{round}-w{writer}-{number}");
                    runtime.block_on(store.create_entry(numbered(&name))).unwrap();
                    println!("ack {name}");
                }
            })
        })
        .collect();
    for handle in handles {
        handle.join().unwrap();
    }
}

#[tokio::test]
async fn k04_killing_the_writer_loses_nothing_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("datastore.sqlite3");
    let rounds: usize = std::env::var(ROUNDS).map_or(3, |text| text.parse().unwrap());
    let mut acknowledged = HashSet::new();
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durability::child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, format!("{}#{round}", file.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = 0;
        for line in lines.by_ref() {
            if let Some((_, name)) = line.unwrap().split_once("ack ") {
                acknowledged.insert(name.to_owned());
                heard += 1;
            }
            if heard == 300 + 97 * (round % 7) {
                child.kill().unwrap();
                break;
            }
        }
        // What it said before it died counts too, but for a line that was cut.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let whole = rest.len().saturating_sub(1);
        for line in &rest[..whole] {
            if let Some((_, name)) = line.split_once("ack ") {
                acknowledged.insert(name.to_owned());
            }
        }
        child.wait().unwrap();
        check_whole(&file, &acknowledged).await;
    }
}

/// Every acknowledged entry is there, every entry that is there is whole.
async fn check_whole(file: &Path, acknowledged: &HashSet<String>) {
    let store = open(file);
    let stored = store.load_entries().await.unwrap();
    let events: HashSet<String> =
        store.entry_events_since(0).await.unwrap().into_iter().map(|event| event.subject).collect();
    let mut found = HashSet::new();
    for stored in &stored {
        let name = stored.entry.id.as_str();
        assert_eq!(stored.entry.selectors.len(), 2, "{name}");
        assert_eq!(stored.entry.dns_names.len(), 1, "{name}");
        assert!(events.contains(name), "{name} has no event");
        found.insert(name.to_owned());
    }
    assert_eq!(events.len(), found.len());
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "lost {lost:?}");
    drop(store);
    let raw = rusqlite::Connection::open(file).unwrap();
    let check: String = raw.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

on_each_database! {
    async fn waiting_writes_share_a_transaction_and_fail_alone(home: &Home) {
        let store = home.open();

        // All are queued before the first is answered; every tenth has an id that is taken.
        let waiting: Vec<_> = (0..200)
            .map(|number| {
                let mut new = numbered(&format!("n{number}"));
                if number % 10 == 9 {
                    new.id = Some(EntryId::new("n0"));
                }
                let store = store.clone();
                async move { store.create_entry(new).await }
            })
            .collect();
        let outcomes = join_all(waiting).await;

        for (number, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(_) => assert_ne!(number % 10, 9),
                Err(error) => {
                    assert_eq!(number % 10, 9);
                    home.assert_taken(
                        error,
                        "registered_entries.entry_id",
                        "uix_registered_entries_entry_id",
                    );
                }
            }
        }
        assert_eq!(store.count_entries(EntryFilter::default()).await.unwrap(), 180);
        assert_eq!(store.entry_events_since(0).await.unwrap().len(), 180);
        assert!(store.commits() < 20, "{} commits for 180 writes", store.commits());
        let sequences: HashSet<u64> =
            outcomes.iter().flatten().map(|done| done.changes.as_ref().unwrap().sequence).collect();
        assert_eq!(sequences, (1..=180).collect());
    }

    async fn writes_that_are_handed_over_together_are_answered_in_their_order_and_fail_alone(home: &Home) {
        let store = home.open();
        // Every hundredth has an id that is taken.
        let named = |number: usize| {
            let mut new = numbered(&format!("n{number}"));
            new.id = new.id.filter(|_| number % 100 != 99).or_else(|| Some(EntryId::new("n0")));
            new
        };

        let created = store.create_entries((0..1100).map(named).collect()).await;
        let mut renamed: Vec<NewEntry> = (0..1100).map(named).collect();
        renamed.iter_mut().for_each(|new| new.hint = "renamed".to_owned());
        renamed[7].id = Some(EntryId::new("nobody"));
        let mask = EntryMask { hint: true, ..EntryMask::NONE };
        let updated = store.update_entries(renamed, mask).await;
        let deleted = store.delete_entries(vec![EntryId::new("n1"), EntryId::new("nobody")]).await;
        let none = store.create_entries(Vec::new()).await;

        assert_eq!(created.len(), 1100);
        for (number, outcome) in created.iter().enumerate() {
            match outcome {
                Ok(done) => assert_eq!(done.value.stored.entry.id.as_str(), format!("n{number}")),
                Err(_) => assert_eq!(number % 100, 99),
            }
        }
        assert_eq!(created.iter().filter(|outcome| outcome.is_err()).count(), 11);
        assert!(updated[7].as_ref().unwrap_err().to_string().contains("not found"));
        assert_eq!(updated.iter().filter(|outcome| outcome.is_err()).count(), 1);
        assert_eq!(updated[8].as_ref().unwrap().value.entry.hint, "renamed");
        assert_eq!(deleted[0].as_ref().unwrap().value.as_str(), "n1");
        assert!(deleted[1].is_err());
        assert!(none.is_empty());
        assert_eq!(store.count_entries(EntryFilter::default()).await.unwrap(), 1088);
        assert!(store.commits() < 20, "{} commits", store.commits());
    }

    async fn changes_arrive_in_commit_order_even_if_the_caller_is_gone(home: &Home) {
        let (sender, mut receiver) = mpsc::channel::<Vec<Changes>>(1000);
        let options = Options { changes: Some(sender), ..home.options() };
        let store = Store::open(&options).unwrap();

        for number in 0..20 {
            let new = numbered(&format!("n{number}"));
            // Polled once, so that it is queued, then dropped.
            let mut write = Box::pin(store.create_entry(new));
            let polled = futures_poll(&mut write);
            assert!(polled.is_none_or(|outcome| outcome.is_ok()));
            drop(write);
        }
        store.create_entry(numbered("last")).await.unwrap();
        drop((store, options));

        let mut sequences = Vec::new();
        while let Some(changes) = receiver.recv().await {
            sequences.extend(changes.iter().map(|changes| changes.sequence));
        }
        assert_eq!(sequences, (1..=21).collect::<Vec<_>>());
    }

    async fn readers_see_whole_entries_while_writers_write(home: &Home) {
        let store = home.open();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let store = store.clone();
            tasks.spawn(async move {
                for number in 0..30 {
                    let name = format!("w{writer}-{number}");
                    store.create_entry(numbered(&name)).await.unwrap();
                    if number % 3 == 0 {
                        store.delete_entry(EntryId::new(&name)).await.unwrap();
                    }
                }
            });
        }
        for _ in 0..4 {
            let store = store.clone();
            tasks.spawn(async move {
                for _ in 0..20 {
                    for stored in store.load_entries().await.unwrap() {
                        assert_eq!(stored.entry.selectors.len(), 2);
                        assert_eq!(stored.entry.dns_names.len(), 1);
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }

        assert_eq!(store.count_entries(EntryFilter::default()).await.unwrap(), 8 * 20);
    }

    async fn one_of_many_uses_a_join_token(home: &Home) {
        use finial_store::{Agent, Attestation, Attested, JoinToken, Reattest};
        let store = home.open();
        let expires_at = spiffe::UnixSecs(2_000_000_000);
        let token = JoinToken { token: "t".to_owned(), expires_at };
        store.create_join_token(token, None).await.unwrap();

        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..16 {
            let store = store.clone();
            tasks.spawn(async move {
                let agent = Agent {
                    id: id(&format!("/spire/agent/join_token/{number}")),
                    attestation_type: "join_token".to_owned(),
                    serial: number.to_string(),
                    expires_at,
                    new_serial: String::new(),
                    new_expires_at: spiffe::UnixSecs(0),
                    can_reattest: false,
                    agent_version: String::new(),
                    selectors: Arc::from([selector("a:b")]),
                };
                let join_token = Some("t".to_owned());
                let attestation = Attestation { agent, reattest: Reattest::Refused, join_token };
                store.attest_agent(attestation).await.unwrap().value
            });
        }
        let outcomes = tasks.join_all().await;

        let done = outcomes.iter().filter(|outcome| matches!(outcome, Attested::Done(_))).count();
        assert_eq!(done, 1);
        let gone = outcomes.iter().filter(|outcome| **outcome == Attested::TokenGone).count();
        assert_eq!(gone, 15);
        assert_eq!(store.load_agents().await.unwrap().len(), 1);
        assert_eq!(store.agent_events_since(0).await.unwrap().len(), 2);
    }
}

/// Polls all of them in turn until each is done.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(context)
            {
                *output = Some(done);
            }
        }
        if outputs.iter().all(Option::is_some) {
            std::task::Poll::Ready(outputs.drain(..).flatten().collect())
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

fn futures_poll<F: Future>(future: &mut std::pin::Pin<Box<F>>) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}
