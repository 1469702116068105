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

/// Runs a read in one transaction, so that its statements see the same state. Where only this connection
/// broke, which a restarted database does to all of them, it is made again and the read with it.
pub(crate) fn in_snapshot<T>(
    conn: &Conn,
    work: impl Fn(&Conn) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    if !conn.is_idle() {
        return work(conn);
    }
    let outcome = once(conn, &work);
    if outcome.is_err() && conn.trouble().is_some() { once(conn, &work) } else { outcome }
}

fn once<T>(conn: &Conn, work: impl Fn(&Conn) -> Result<T, StoreError>) -> Result<T, StoreError> {
    conn.begin_read()?;
    let outcome = work(conn);
    let ended = if conn.is_idle() { Ok(()) } else { conn.commit() };
    outcome.and_then(|value| ended.map(|()| value))
}
