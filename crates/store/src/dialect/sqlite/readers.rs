//! The reader threads: each with a connection of its own, each read in one snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::conn::Conn;
use crate::StoreError;

/// One queued read.
pub(crate) type Read = Box<dyn FnOnce(&Conn) + Send>;

/// Serves reads until the queue is closed. Several threads share one queue.
pub(crate) fn run(conn: &Conn, queue: &Arc<Mutex<mpsc::Receiver<Read>>>) {
    loop {
        // One thread waits inside the lock, the others for the lock: whoever gets the job lets go.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(job) = job else { return };
        job(conn);
    }
}

/// Runs a read in one transaction, so that its statements see the same state.
pub(crate) fn in_snapshot<T>(
    conn: &Conn,
    work: impl FnOnce(&Conn) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    if !conn.is_idle() {
        return work(conn);
    }
    conn.execute("BEGIN", [])?;
    let outcome = work(conn);
    if !conn.is_idle() {
        conn.execute("COMMIT", [])?;
    }
    outcome
}
