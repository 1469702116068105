//! Where connections from a network are opened: addresses take turns at it.
//!
//! A thread takes what can go on in the order in which it was woken. When a thousand connections that never
//! became any are hung up all at once, whose calls are running would wait until all of them are put away.
//! Here they are a few tasks for the threads, one for each, that take a step and go to the end of the line
//! again; and among those who come, an address with many connections has as many turns as one with one.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;

use crate::tasks::Group;
use crate::turns::Turns;

/// The doors of one listener. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct Doors {
    doors: Arc<[Turns<IpAddr>]>,
    /// How many came. All doors in turn, so that those who come from one address, as behind a balancer, are
    /// opened by all threads.
    came: Arc<AtomicUsize>,
}

impl Doors {
    /// As many as there are threads to open them; what is opened there is counted among the group's.
    pub(super) fn new(group: &Group) -> Self {
        let threads = Handle::current().metrics().num_workers();
        let doors = (0..threads.max(1)).map(|_| Turns::new(group.clone(), AT_ONCE)).collect();
        Self { doors, came: Arc::default() }
    }

    /// Opens a connection from this address.
    pub(super) fn spawn(&self, address: IpAddr, opening: impl Future<Output = ()> + Send + 'static) {
        let came = self.came.fetch_add(1, Ordering::Relaxed);
        if let Some(door) = self.doors.get(came % self.doors.len()) {
            door.spawn(address, "opening", opening);
        }
    }
}

/// A step may be half a handshake.
const AT_ONCE: usize = 1;
