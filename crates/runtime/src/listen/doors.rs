//! Where connections from a network are opened: addresses take turns at it.
//!
//! A thread takes what can go on in the order in which it was woken. When a thousand connections that never
//! became any are hung up all at once, whose calls are running would wait until all of them are put away.
//! Here they are a few tasks for the threads, one for each, that take a step and go to the end of the line
//! again; and among those who come, an address with many connections has as many turns as one with one.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::tasks::Group;
use crate::turns::Turns;

/// The doors of one listener. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct Doors {
    doors: Arc<[Turns<IpAddr>]>,
    /// Nobody chooses whom to stand in line with.
    chance: RandomState,
}

impl Doors {
    /// As many as there are threads to open them; what is opened there is counted among the group's.
    pub(super) fn new(group: &Group) -> Self {
        let threads = Handle::current().metrics().num_workers();
        let doors = (0..threads.max(1)).map(|_| Turns::new(group.clone(), AT_ONCE)).collect();
        Self { doors, chance: RandomState::new() }
    }

    /// Opens a connection from this address.
    pub(super) fn spawn(&self, address: IpAddr, opening: impl Future<Output = ()> + Send + 'static) {
        let hash = self.chance.hash_one(address);
        let door = usize::try_from(hash % self.doors.len() as u64).unwrap_or_default();
        if let Some(door) = self.doors.get(door) {
            door.spawn(address, "opening", opening);
        }
    }
}

/// A step may be half a handshake.
const AT_ONCE: usize = 1;
