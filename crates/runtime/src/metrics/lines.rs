//! `StatsD` and `DogStatsD`: a line per emission, in packets over UDP.
//!
//! Lines gather in one bounded buffer and go ten times a second. Where the receiver is gone they are
//! lost, as the protocols have it: nobody waits for metrics.

use std::fmt::Write;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::{Kind, Named, SinkError};
use crate::clock::{Clock, SystemClock};
use crate::in_system_words;

/// One receiver.
#[derive(Debug)]
pub(super) struct Lines {
    dialect: Dialect,
    address: String,
    /// Tags of all lines, of `DogStatsD`.
    tags: Vec<String>,
    /// Whole lines, each with its line feed.
    waiting: Mutex<String>,
}

/// The two ways to write a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// Labels are parts of the key.
    Statsd,
    /// Labels are tags.
    Dogstatsd,
}

/// One series: what stands before and after its values.
pub(super) struct Series {
    lines: Arc<Lines>,
    before: String,
    after: String,
    kind: Kind,
}

enum Socket {
    Udp(UdpSocket),
    Local(UnixDatagram),
}

impl Lines {
    /// A receiver of `StatsD`. What is no address is told when it is to be reached, as in SPIRE.
    pub(super) fn statsd(address: &str) -> Arc<Self> {
        Self::new(Dialect::Statsd, address.to_owned(), Vec::new())
    }

    /// A receiver of `DogStatsD`, with what `environment` says where DataDog's own clients ask it.
    pub(super) fn dogstatsd(
        address: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Arc<Self>, SinkError> {
        let refused = |reason: String| SinkError::Address { sink: "DogStatsd", reason };
        let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
        let (mut address, port) = if address.is_empty() {
            let host = environment("DD_AGENT_HOST");
            let none = || refused("address is empty, and the environment has no DD_AGENT_HOST".to_owned());
            (host.ok_or_else(none)?, environment("DD_DOGSTATSD_PORT"))
        } else {
            (address.to_owned(), None)
        };
        if !address.starts_with(LOCAL) {
            if !address.contains(':') {
                address = format!("{address}:{}", port.as_deref().unwrap_or(DOGSTATSD_PORT));
            }
            host_and_port(&address).map_err(refused)?;
        }
        let tag = |(name, tag): &(&str, &str)| {
            environment(name).map(|value| format!("{tag}:{}", value.replace(['\n', '|', '#', ','], "_")))
        };
        Ok(Self::new(Dialect::Dogstatsd, address, TAGS_OF_ENVIRONMENT.iter().filter_map(tag).collect()))
    }

    fn new(dialect: Dialect, address: String, tags: Vec<String>) -> Arc<Self> {
        Arc::new(Self { dialect, address, tags, waiting: Mutex::default() })
    }

    pub(super) fn series(self: &Arc<Self>, named: &Named) -> Series {
        let kind = match named.kind {
            Kind::Counter => "c",
            Kind::Gauge => "g",
            Kind::Sample | Kind::Timer => "ms",
        };
        let mut key = named.parts.join(".");
        let mut after = format!("|{kind}");
        match self.dialect {
            Dialect::Statsd => {
                for (_, value) in &named.labels {
                    key.push('.');
                    key.push_str(value);
                }
            }
            Dialect::Dogstatsd => {
                let tag = |(name, value): &(String, String)| {
                    let (name, value) = (clean(name), clean(value));
                    if value.is_empty() { name } else { format!("{name}:{value}") }
                };
                let labels = named.labels.iter().map(tag);
                let tags: Vec<String> = self.tags.iter().cloned().chain(labels).collect();
                if !tags.is_empty() {
                    after.push_str("|#");
                    after.push_str(&tags.join(","));
                }
            }
        }
        after.push('\n');
        Series { lines: Arc::clone(self), before: format!("{}:", clean(&key)), after, kind: named.kind }
    }

    /// Sends what waits until `stop` is cancelled, then what is left.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        let mut socket: Option<Socket> = None;
        loop {
            let is_last = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = SystemClock.sleep(FLUSH_EVERY) => false,
            };
            let lines = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !lines.is_empty()
                && let Err(error) = self.send(&mut socket, &lines).await
            {
                socket = None;
                let error = in_system_words(&error.to_string());
                tracing::error!(
                    sink = self.dialect.name(),
                    address = self.address,
                    error,
                    "Cannot send metrics"
                );
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = SystemClock.sleep(PAUSE) => {}
                }
                self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            if is_last {
                return;
            }
        }
    }

    async fn send(&self, socket: &mut Option<Socket>, lines: &str) -> io::Result<()> {
        if socket.is_none() {
            *socket = Some(self.connect().await?);
        }
        let Some(socket) = socket else { return Ok(()) };
        for packet in packets(lines) {
            match socket {
                Socket::Udp(socket) => {
                    socket.send(packet.as_bytes()).await?;
                }
                Socket::Local(socket) => match socket.send(packet.as_bytes()) {
                    // A receiver that does not keep up loses what it has no room for.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    sent => drop(sent?),
                },
            }
        }
        Ok(())
    }

    async fn connect(&self) -> io::Result<Socket> {
        if let Some(path) = self.address.strip_prefix(LOCAL) {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect(path)?;
            return Ok(Socket::Local(socket));
        }
        connect(&self.address).await.map(Socket::Udp)
    }
}

impl Series {
    pub(super) fn send_count(&self, count: u64) {
        match self.lines.dialect {
            Dialect::Statsd => self.line(format_args!("{:.6}", count as f64)),
            Dialect::Dogstatsd => self.line(format_args!("{count}")),
        }
    }

    pub(super) fn send(&self, value: f64) {
        match (self.lines.dialect, self.kind) {
            (Dialect::Dogstatsd, Kind::Gauge) => self.line(format_args!("{value}")),
            (Dialect::Dogstatsd, _) | (Dialect::Statsd, _) => self.line(format_args!("{value:.6}")),
        }
    }

    fn line(&self, value: std::fmt::Arguments<'_>) {
        let mut waiting = self.lines.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MOST_WAITING {
            // Writing to a string cannot fail.
            write!(waiting, "{}{value}{}", self.before, self.after).ok();
        }
    }
}

impl Dialect {
    const fn name(self) -> &'static str {
        match self {
            Self::Statsd => "Statsd",
            Self::Dogstatsd => "DogStatsd",
        }
    }
}

/// A socket to `host:port`; without a host to this machine.
pub(super) async fn connect(address: &str) -> io::Result<UdpSocket> {
    let invalid = |reason| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let (host, port) = host_and_port(address).map_err(invalid)?;
    let host = if host.is_empty() { "localhost" } else { host };
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    // As Go has it, who is reached by both kinds of address is reached by IPv4.
    let target = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    let target = *target.ok_or(io::ErrorKind::NotFound)?;
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// The host and port of an address of UDP, or what is wrong with it, in the words of Go's library. Ports
/// are numbers; none behind the colon is port 0, as there.
pub(super) fn host_and_port(address: &str) -> Result<(&str, u16), String> {
    if address.is_empty() {
        return Err("missing address".to_owned());
    }
    let wrong = |what: &str| format!("address {address}: {what}");
    let missing = || wrong("missing port in address");
    let (host, port) = if let Some(inner) = address.strip_prefix('[') {
        let (host, rest) = inner.split_once(']').ok_or_else(|| wrong("missing ']' in address"))?;
        (host, rest.strip_prefix(':').ok_or_else(missing)?)
    } else {
        address.rsplit_once(':').ok_or_else(missing)?
    };
    if !address.starts_with('[') && host.contains(':') {
        return Err(wrong("too many colons in address"));
    }
    if port.is_empty() {
        return Ok((host, 0));
    }
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    let invalid = || {
        if is_number {
            format!("address {port}: invalid port")
        } else {
            format!("lookup udp/{port}: unknown port")
        }
    };
    Ok((host, port.parse().map_err(|_| invalid())?))
}

/// Lines as packets that fit any network, none cut.
fn packets(mut lines: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if lines.is_empty() {
            return None;
        }
        let whole = lines.len();
        let end = if whole <= PACKET {
            whole
        } else {
            let room = lines.floor_char_boundary(PACKET);
            let fitting = lines.get(..room).and_then(|head| head.rfind('\n'));
            // A line that fits no packet goes alone.
            fitting.or_else(|| lines.find('\n')).map_or(whole, |end| end + 1)
        };
        let (packet, rest) = lines.split_at(end);
        lines = rest;
        Some(packet)
    })
}

fn clean(text: &str) -> String {
    text.replace([':', ' '], "_").replace(['\n', '|', '#', ','], "_")
}

/// In front of the path of a local socket.
const LOCAL: &str = "unix://";
/// Where DataDog's agent listens unless it is said otherwise.
const DOGSTATSD_PORT: &str = "8125";
/// Variables of the environment that DataDog's clients have as tags on everything.
const TAGS_OF_ENVIRONMENT: [(&str, &str); 4] = [
    ("DD_ENTITY_ID", "dd.internal.entity_id"),
    ("DD_ENV", "env"),
    ("DD_SERVICE", "service"),
    ("DD_VERSION", "version"),
];
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// After a receiver could not be reached.
const PAUSE: Duration = Duration::from_secs(5);
const PACKET: usize = 1400;
/// What ten thousand emissions in a tenth of a second need; more are lost.
const MOST_WAITING: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: Kind) -> Named {
        Named {
            kind,
            parts: vec!["spire_server".into(), "rpc".into(), "a b:c".into()],
            labels: vec![("status".into(), "OK".into()), ("host".into(), "box-1".into())],
        }
    }

    fn line(lines: &Arc<Lines>, kind: Kind, act: impl FnOnce(&Series)) -> String {
        act(&lines.series(&named(kind)));
        std::mem::take(&mut *lines.waiting.lock().unwrap())
    }

    #[test]
    fn statsd_has_the_values_of_labels_in_the_key() {
        let lines = Lines::statsd("localhost:8125");

        assert_eq!(
            line(&lines, Kind::Counter, |series| series.send_count(1)),
            "spire_server.rpc.a_b_c.OK.box-1:1.000000|c\n"
        );
        assert_eq!(
            line(&lines, Kind::Timer, |series| series.send(0.25)),
            "spire_server.rpc.a_b_c.OK.box-1:0.250000|ms\n"
        );
    }

    #[test]
    fn dogstatsd_has_labels_as_tags() {
        let lines = Lines::dogstatsd("localhost:8125", |_| None).unwrap();

        assert_eq!(
            line(&lines, Kind::Counter, |series| series.send_count(3)),
            "spire_server.rpc.a_b_c:3|c|#status:OK,host:box-1\n"
        );
        assert_eq!(
            line(&lines, Kind::Gauge, |series| series.send(1.5)),
            "spire_server.rpc.a_b_c:1.5|g|#status:OK,host:box-1\n"
        );
        assert_eq!(
            line(&lines, Kind::Sample, |series| series.send(2.0)),
            "spire_server.rpc.a_b_c:2.000000|ms|#status:OK,host:box-1\n"
        );
    }

    #[test]
    fn packets_hold_whole_lines_and_fit() {
        let lines: String = (0..300).map(|number| format!("key{number}:1|c\n")).collect();

        let packets: Vec<&str> = packets(&lines).collect();

        assert_eq!(packets.concat(), lines);
        assert!(packets.len() > 2);
        for packet in packets {
            assert!(packet.len() <= PACKET && packet.ends_with('\n'));
        }
    }

    #[test]
    fn addresses_of_dogstatsd_are_completed_as_its_own_clients_do() {
        let environment = |name: &str| match name {
            "DD_AGENT_HOST" => Some("10.0.0.1".to_owned()),
            "DD_DOGSTATSD_PORT" => Some("81".to_owned()),
            _ => None,
        };
        let address = |text| Lines::dogstatsd(text, environment).unwrap().address.clone();

        assert_eq!(address("127.0.0.1"), "127.0.0.1:8125");
        assert_eq!(address("127.0.0.1:9"), "127.0.0.1:9");
        assert_eq!(address(":9"), ":9");
        assert_eq!(address("unix:///run/dogstatsd"), "unix:///run/dogstatsd");
        assert_eq!(address(""), "10.0.0.1:81");
        let refused = Lines::dogstatsd("", |name| (name == "DD_DOGSTATSD_PORT").then(|| "81".to_owned()));
        let text = "telemetry.DogStatsd: address is empty, and the environment has no DD_AGENT_HOST";
        assert_eq!(refused.unwrap_err().to_string(), text);
    }

    #[test]
    fn variables_of_the_environment_are_tags_of_all_lines() {
        let environment = |name: &str| match name {
            "DD_ENV" => Some("a,b".to_owned()),
            "DD_VERSION" => Some("1:2".to_owned()),
            "DD_SERVICE" => Some(String::new()),
            _ => None,
        };
        let lines = Lines::dogstatsd("localhost:8125", environment).unwrap();

        assert_eq!(
            line(&lines, Kind::Counter, |series| series.send_count(1)),
            "spire_server.rpc.a_b_c:1|c|#env:a_b,version:1:2,status:OK,host:box-1\n"
        );
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        let refused = Lines::dogstatsd("nowhere:99999", |_| None).unwrap_err();
        assert_eq!(refused.to_string(), "telemetry.DogStatsd: address 99999: invalid port");

        assert_eq!(host_and_port("a:1"), Ok(("a", 1)));
        assert_eq!(host_and_port(":1"), Ok(("", 1)));
        assert_eq!(host_and_port("a:"), Ok(("a", 0)));
        assert_eq!(host_and_port("[::1]:1"), Ok(("::1", 1)));
        let wrong = |address| host_and_port(address).unwrap_err();
        assert_eq!(wrong(""), "missing address");
        assert_eq!(wrong("nowhere"), "address nowhere: missing port in address");
        assert_eq!(wrong("::1:1"), "address ::1:1: too many colons in address");
        assert_eq!(wrong("[::1]"), "address [::1]: missing port in address");
        assert_eq!(wrong("[::1:1"), "address [::1:1: missing ']' in address");
        assert_eq!(wrong("a:65536"), "address 65536: invalid port");
        assert_eq!(wrong("a:b"), "lookup udp/b: unknown port");
    }

    #[tokio::test]
    async fn an_address_of_statsd_is_looked_at_when_it_is_to_be_reached() {
        let lines = Lines::statsd("nowhere");

        let failed = lines.send(&mut None, "a:1|c\n").await.unwrap_err();

        assert_eq!(failed.to_string(), "address nowhere: missing port in address");
    }
}
