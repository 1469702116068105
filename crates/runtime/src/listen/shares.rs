//! How many connections one user, or one network address, has at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections by whose they are. Clones are the same.
#[derive(Debug)]
pub(super) struct Shares<K: Eq + Hash>(Arc<Mutex<HashMap<K, usize>>>);

/// One connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Share<K: Copy + Eq + Hash> {
    shares: Shares<K>,
    owner: K,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    /// A share for one more connection, unless the owner has `limit` already.
    pub(super) fn enter(&self, owner: K, limit: usize) -> Option<Share<K>> {
        self.locked(|shares| {
            let connections = shares.entry(owner).or_default();
            if *connections >= limit {
                return None;
            }
            *connections += 1;
            Some(Share { shares: self.clone(), owner })
        })
    }

    fn locked<T>(&self, act: impl FnOnce(&mut HashMap<K, usize>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<K: Eq + Hash> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Copy + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        self.shares.locked(|shares| {
            if let Some(connections) = shares.get_mut(&self.owner) {
                *connections -= 1;
                if *connections == 0 {
                    shares.remove(&self.owner);
                }
            }
        });
    }
}

/// What counts as one address: of IPv6, where a host has as many as it likes, the network.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_has_as_many_as_the_limit_and_one_more_when_one_has_gone() {
        let shares = Shares::default();
        let first = shares.enter(7, 2);
        let second = shares.enter(7, 2);

        assert!(first.is_some() && second.is_some());
        assert!(shares.enter(7, 2).is_none());
        assert!(shares.enter(8, 2).is_some(), "others are not affected");
        drop(first);
        assert!(shares.enter(7, 2).is_some());
    }

    #[test]
    fn nothing_is_kept_of_owners_without_connections() {
        let shares = Shares::default();

        drop(shares.enter(7, 1));

        assert!(shares.locked(|shares| shares.is_empty()));
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let network = |text: &str| network_of(text.parse().expect("address"));

        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::9"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
