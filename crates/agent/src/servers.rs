//! Which of several servers is called: the first in the order of the configuration that is not known to
//! be in trouble. One that failed is passed over for a while, longer each time; if all are, the one
//! whose time is over first is tried. The one that answers is kept until it fails.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::Address;
use config::AgentConfig;
use runtime::backoff::Backoff;
use runtime::clock::Clock;
use tracing::warn;

/// For how long a server is passed over at first.
const FIRST: Duration = Duration::from_secs(10);
/// And at most.
const LONGEST: Duration = Duration::from_secs(5 * 60);

/// The servers of a trust domain. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Servers(Arc<Shared>);

struct Shared {
    first: Server,
    further: Vec<Server>,
    clock: Arc<dyn Clock>,
}

struct Server {
    address: Address,
    standing: Mutex<Standing>,
}

struct Standing {
    /// It is passed over until then.
    until: Option<Instant>,
    backoff: Backoff,
}

/// One of several servers, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen(usize);

impl Servers {
    /// These servers, in the order of preference.
    #[must_use]
    pub fn new(first: Address, further: impl IntoIterator<Item = Address>, clock: Arc<dyn Clock>) -> Self {
        let server = |address| {
            let standing = Standing { until: None, backoff: Backoff::new(FIRST).with_cap(LONGEST) };
            Server { address, standing: Mutex::new(standing) }
        };
        let further = further.into_iter().map(server).collect();
        Self(Arc::new(Shared { first: server(first), further, clock }))
    }

    /// Those of the configuration.
    #[must_use]
    pub fn of(config: &AgentConfig, clock: Arc<dyn Clock>) -> Self {
        let first = Address::tcp(&config.server_address, config.server_port);
        let further = config.finial.server_addresses.iter().map(|(host, port)| Address::tcp(host, *port));
        Self::new(first, further, clock)
    }

    /// The one to call now.
    #[must_use]
    pub fn choose(&self) -> (Chosen, &Address) {
        let now = self.0.clock.instant();
        let trouble = |server: &Server| server.lock().until.filter(|until| *until > now);
        let best = self.iter().enumerate().min_by_key(|(_, server)| trouble(server));
        let (place, server) = best.unwrap_or((0, &self.0.first));
        (Chosen(place), &server.address)
    }

    fn iter(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.0.first).chain(&self.0.further)
    }

    /// A call to it failed for reasons of its own.
    pub fn failed(&self, chosen: Chosen) {
        let Some(server) = self.iter().nth(chosen.0) else { return };
        let now = self.0.clock.instant();
        let mut standing = server.lock();
        // Calls that were under way together fail together.
        if standing.until.is_some_and(|until| until > now) {
            return;
        }
        let wait = standing.backoff.next();
        standing.until = Some(now + wait);
        drop(standing);
        if self.has_another() {
            warn!(server = ?server.address, passed_over_for = ?wait, "A server is in trouble; trying another");
        }
    }

    /// It answered.
    pub fn answered(&self, chosen: Chosen) {
        if let Some(server) = self.iter().nth(chosen.0) {
            let mut standing = server.lock();
            standing.until = None;
            standing.backoff.reset();
        }
    }

    /// Whether some server is not known to be in trouble.
    #[must_use]
    pub fn has_another(&self) -> bool {
        let now = self.0.clock.instant();
        self.iter().any(|server| server.lock().until.is_none_or(|until| until <= now))
    }
}

impl Server {
    fn lock(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use runtime::clock::ManualClock;

    use super::*;

    fn servers(names: &[&str]) -> (Servers, ManualClock) {
        let clock = ManualClock::new(UNIX_EPOCH);
        let mut addresses = names.iter().map(|name| Address::tcp(name, 8081));
        (Servers::new(addresses.next().unwrap(), addresses, Arc::new(clock.clone())), clock)
    }

    fn place(servers: &Servers) -> usize {
        servers.choose().0.0
    }

    #[test]
    fn the_first_that_is_not_in_trouble_is_called() {
        let (servers, clock) = servers(&["a", "b", "c"]);
        assert_eq!(place(&servers), 0);

        servers.failed(Chosen(0));
        servers.failed(Chosen(0));
        assert_eq!(place(&servers), 1);
        servers.failed(Chosen(1));
        assert_eq!((place(&servers), servers.has_another()), (2, true));
        servers.failed(Chosen(2));
        assert!(!servers.has_another());

        clock.advance(Duration::from_secs(12));
        assert_eq!((place(&servers), servers.has_another()), (0, true));
    }

    #[test]
    fn one_that_fails_again_is_passed_over_for_longer_until_it_answers() {
        let (servers, clock) = servers(&["a", "b"]);
        servers.failed(Chosen(0));
        clock.advance(Duration::from_secs(12));
        servers.failed(Chosen(0));

        clock.advance(Duration::from_secs(12));
        assert_eq!(place(&servers), 1);
        servers.answered(Chosen(0));
        assert_eq!(place(&servers), 0);
        servers.failed(Chosen(0));
        clock.advance(Duration::from_secs(12));
        assert_eq!(place(&servers), 0);
    }

    #[test]
    fn where_all_are_in_trouble_the_one_whose_time_is_over_first_is_tried() {
        let (servers, clock) = servers(&["a", "b"]);
        servers.failed(Chosen(1));
        clock.advance(Duration::from_secs(5));
        servers.failed(Chosen(0));

        assert_eq!(place(&servers), 1);
    }
}
