//! Ports for programs that bind them by themselves, some time after a test chose them.
//!
//! A port that the kernel chose, and that was let go, may be anybody's by then: the kernel gives it to the
//! next outgoing connection. So these lie below the range that it chooses from, and a lock keeps other
//! tests away from them, those of other processes too, until the test ends.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::ops::Range;

/// Ports that are nobody else's as long as this lives.
#[derive(Debug)]
pub struct Ports {
    /// The port and what keeps others away.
    held: Vec<(u16, File)>,
}

impl Ports {
    /// So many ports that are free.
    ///
    /// # Panics
    /// If there are not so many, or nothing can be written where temporary files stand.
    #[must_use]
    pub fn hold(count: usize) -> Self {
        let range = range();
        // Tests that start at the same time begin at different places.
        let start = std::process::id() as usize * 37 % range.len();
        let folder = std::env::temp_dir().join("finial-ports");
        fs::create_dir_all(&folder).expect("the folder of locks");
        let free = range.clone().cycle().skip(start).take(range.len()).filter_map(|port| {
            let path = folder.join(port.to_string());
            let lock = OpenOptions::new().create(true).append(true).open(path).expect("a file to lock");
            let is_free = lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok();
            is_free.then_some((port, lock))
        });
        let held: Vec<_> = free.take(count).collect();
        assert_eq!(held.len(), count, "not so many ports of {range:?} are free");
        Self { held }
    }

    /// The ports.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.held.iter().map(|(port, _)| *port)
    }
}

/// Where the kernel gives no port by itself.
fn range() -> Range<u16> {
    let given = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = given.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768);
    if first > 12_000 { 11_000..first } else { 11_000..32_768 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_tests_until_it_lets_it_go() {
        let (one, two) = (Ports::hold(20), Ports::hold(20));
        let mut all: Vec<u16> = one.iter().chain(two.iter()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 40);

        let first = one.iter().next().unwrap();
        drop(one);
        TcpListener::bind(("127.0.0.1", first)).unwrap();
    }
}
