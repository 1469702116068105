//! Servers that share a `PostgreSQL` database, and what they hear of each other.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use finial_store::{DatabaseType, News, Options, Store};
use futures::poll;
use spiffe::{Bundle, TrustDomain};
use testkit::database::{Make, Server};
use tokio::time::{Instant, timeout};

use crate::support::{Home, clock, entry, id};

const PATIENCE: Duration = Duration::from_secs(10);

/// How the connections that listen show in the database.
const LISTENERS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN \"finial_changes\"%'";

async fn until(mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "it does not become so");
        tokio::task::yield_now().await;
    }
}

async fn until_listening(home: &Home, count: usize) {
    until(|| home.sql(&format!("SELECT count(*) {LISTENERS};")).trim() == count.to_string()).await;
}

/// A server's news, from now on.
async fn news(store: &Store) -> News {
    let mut news = store.news();
    // A connection that is new tells of what may have been missed.
    timeout(PATIENCE, news.heard()).await.unwrap();
    news
}

async fn hears(news: &mut News) {
    timeout(PATIENCE, news.heard()).await.unwrap();
}

async fn is_silent(news: &mut News) -> bool {
    poll!(Box::pin(news.heard())).is_pending()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_commits_is_heard_by_the_others_alone() {
    let Some(home) = Home::new(DatabaseType::Postgres) else { return };
    let (first, second) = (home.open(), home.open());
    let (mut of_first, mut of_second) = (news(&first).await, news(&second).await);

    let made = first.create_entry(entry("/a", &["a:1"])).await.unwrap().value.stored.entry;
    hears(&mut of_second).await;
    first.set_bundle(Bundle::empty(TrustDomain::parse("a.test").unwrap())).await.unwrap();
    hears(&mut of_second).await;
    first.delete_entry(made.id.clone()).await.unwrap();
    hears(&mut of_second).await;
    assert!(is_silent(&mut of_first).await, "its own writes are no news to a server");

    // What is refused, or is nobody else's business, is not told: the next that is comes alone.
    first.delete_entry(made.id.clone()).await.unwrap_err();
    first.prune_events(Duration::from_secs(1)).await.unwrap();
    first.load_entries().await.unwrap();
    second.create_entry(entry("/b", &["a:1"])).await.unwrap();
    hears(&mut of_first).await;
    assert!(is_silent(&mut of_second).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_connection_that_is_killed_is_made_again() {
    let Some(home) = Home::new(DatabaseType::Postgres) else { return };
    let (first, second) = (home.open(), home.open());
    let mut of_second = news(&second).await;
    until_listening(&home, 2).await;

    let killed = home.sql(&format!("SELECT pg_terminate_backend(pid) {LISTENERS};"));
    assert_eq!(killed.matches('t').count(), 2, "{killed}");
    first.create_entry(entry("/meanwhile", &["a:1"])).await.unwrap();
    hears(&mut of_second).await;
    until_listening(&home, 2).await;
    of_second.seen();

    first.create_entry(entry("/after", &["a:1"])).await.unwrap();
    hears(&mut of_second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_away_is_listened_to_again() {
    let Some(server) = Server::start(Make::Postgres) else { return };
    let made = server.database().unwrap();
    let options =
        Options { database: DatabaseType::Postgres, ..Options::new(made.connection_string(), clock()) };
    let (first, second) = (Store::open(&options).unwrap(), Store::open(&options).unwrap());
    let (_of_first, mut of_second) = (news(&first).await, news(&second).await);

    server.down().unwrap();
    first.load_entries().await.unwrap_err();
    second.load_entries().await.unwrap_err();
    assert!(is_silent(&mut of_second).await);
    server.up().unwrap();
    // Of what was missed, and then of what is new.
    hears(&mut of_second).await;
    let started = Instant::now();
    while first.create_entry(entry("/after", &["a:1"])).await.is_err() {
        assert!(started.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }

    hears(&mut of_second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listens_who_may_not() {
    let Some(home) = Home::new(DatabaseType::Postgres) else { return };
    let off = Store::open(&Options { notifications: false, ..home.options() }).unwrap();
    let few = Store::open(&Options { max_open_conns: 2, ..home.options() }).unwrap();
    let enough = Store::open(&Options { max_open_conns: 3, ..home.options() }).unwrap();
    let (mut of_off, mut of_few, mut of_enough) = (off.news(), few.news(), news(&enough).await);

    off.create_entry(entry("/off", &["a:1"])).await.unwrap();
    few.create_entry(entry("/few", &["a:1"])).await.unwrap();
    hears(&mut of_enough).await;
    enough.create_entry(entry("/enough", &["a:1"])).await.unwrap();

    assert!(is_silent(&mut of_off).await && is_silent(&mut of_few).await);
    assert_eq!(enough.load_entries().await.unwrap().len(), 3);
    until_listening(&home, 1).await;
}

/// Something before the database that changes what clients say, by words of equal length.
struct Proxy {
    folder: tempfile::TempDir,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    fn start(home: &Home, from: &'static str, to: &'static str) -> (Self, Options) {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let said = Arc::<Mutex<Vec<u8>>>::default();
        let mut options = home.options();
        let there = options.connection_string.strip_prefix("host=").unwrap().split(' ').next().unwrap();
        let (real, all) = (Path::new(there).join(".s.PGSQL.5432"), Arc::clone(&said));
        let here = folder.path().to_str().unwrap();
        options.connection_string = options.connection_string.replace(there, here);
        std::thread::spawn(move || {
            while let Ok((client, _)) = socket.accept() {
                let database = UnixStream::connect(&real).unwrap();
                let (up, down) = (client.try_clone().unwrap(), database.try_clone().unwrap());
                let all = Arc::clone(&all);
                std::thread::spawn(move || {
                    pass(up, database, |bytes| {
                        all.lock().unwrap().extend_from_slice(bytes);
                        *bytes = replaced(bytes, from.as_bytes(), to.as_bytes());
                    });
                });
                std::thread::spawn(move || pass(down, client, |_| {}));
            }
        });
        (Self { folder, said }, options)
    }

    fn has_heard(&self, text: &str) -> bool {
        assert!(self.folder.path().exists());
        let said = self.said.lock().unwrap();
        said.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let places = 0..bytes.len().saturating_sub(from.len()) + 1;
    for place in places {
        if bytes[place..].starts_with(from) {
            bytes[place..place + to.len()].copy_from_slice(to);
        }
    }
    bytes
}

fn pass(mut from: UnixStream, mut to: UnixStream, mut change: impl FnMut(&mut Vec<u8>)) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        change(&mut bytes);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    to.shutdown(std::net::Shutdown::Both).ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pooler_a_server_tells_and_does_not_listen() {
    let Some(home) = Home::new(DatabaseType::Postgres) else { return };
    let direct = home.open();
    let mut of_direct = news(&direct).await;
    // As a pooler does it: settings of the session do not reach the session.
    let (proxy, options) = Proxy::start(&home, "options\0", "x.pools\0");
    let pooled = Store::open(&options).unwrap();
    let mut of_pooled = pooled.news();

    until(|| proxy.has_heard("current_setting('finial.listener'")).await;
    pooled.create_entry(entry("/a", &["a:1"])).await.unwrap();
    hears(&mut of_direct).await;
    direct.create_entry(entry("/b", &["a:1"])).await.unwrap();

    assert_eq!(pooled.load_entries().await.unwrap().len(), 2);
    assert!(is_silent(&mut of_pooled).await);
    assert!(!proxy.has_heard("LISTEN"));
    until_listening(&home, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_refuses_notifications_takes_writes() {
    let Some(home) = Home::new(DatabaseType::Postgres) else { return };
    let (proxy, options) = Proxy::start(&home, "NOTIFY finial_changes", "NOTIFX finial_changes");
    let store = Store::open(&options).unwrap();

    let first = store.create_entry(entry("/a", &["a:1"])).await.unwrap().value.stored;
    assert!(proxy.has_heard("NOTIFY finial_changes"));
    let second = store.create_entry(entry("/b", &["a:1"])).await.unwrap().value.stored;

    assert_eq!([&first.entry.spiffe_id, &second.entry.spiffe_id], [&id("/a"), &id("/b")]);
    assert_eq!(store.load_entries().await.unwrap().len(), 2);
    assert_eq!(store.latest_events().await.unwrap().entries, 3, "one was taken back");
}
