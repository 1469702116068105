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

/// One receiver.
#[derive(Debug)]
pub(super) struct Lines {
    dialect: Dialect,
    address: String,
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
    /// A receiver of `StatsD`.
    pub(super) fn statsd(address: &str) -> Result<Arc<Self>, SinkError> {
        Self::new(Dialect::Statsd, address, "Statsd")
    }

    /// A receiver of `DogStatsD`.
    pub(super) fn dogstatsd(address: &str) -> Result<Arc<Self>, SinkError> {
        Self::new(Dialect::Dogstatsd, address, "DogStatsd")
    }

    fn new(dialect: Dialect, address: &str, sink: &'static str) -> Result<Arc<Self>, SinkError> {
        let is_local = dialect == Dialect::Dogstatsd && address.starts_with(LOCAL);
        if !is_local && !is_host_and_port(address) {
            return Err(SinkError::Address { sink, address: address.to_owned() });
        }
        Ok(Arc::new(Self { dialect, address: address.to_owned(), waiting: Mutex::default() }))
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
                let tags: Vec<String> = named.labels.iter().map(tag).collect();
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
                tracing::error!(sink = self.dialect.name(), address = self.address, %error, "Cannot send metrics");
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
    let address = if address.starts_with(':') { format!("localhost{address}") } else { address.to_owned() };
    let found: Vec<_> = tokio::net::lookup_host(&address).await?.collect();
    // As Go has it, who is reached by both kinds of address is reached by IPv4.
    let target = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    let target = *target.ok_or(io::ErrorKind::NotFound)?;
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// Whether it may be an address of UDP.
pub(super) fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
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
        let lines = Lines::statsd("localhost:8125").unwrap();

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
        let lines = Lines::dogstatsd("localhost:8125").unwrap();

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
    fn what_is_no_address_is_refused_by_name() {
        let refused = Lines::statsd("nowhere").unwrap_err();

        assert_eq!(refused.to_string(), "telemetry.Statsd: \"nowhere\" is no address of the form host:port");
        Lines::dogstatsd("unix:///run/dogstatsd").unwrap();
    }
}
