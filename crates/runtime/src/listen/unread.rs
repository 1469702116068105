//! Answers that their client does not read.
//!
//! HTTP/2 asks for the next part of an answer once the client has taken in the one before. How long
//! each answer of a connection has been waiting to be asked is noted here; one look tells the longest.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

/// The answers of one connection that wait for their client. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    /// Since when, and which answer.
    since: BTreeSet<(Instant, u64)>,
    next: u64,
}

/// An answer, noted while it waits for its client.
pub(super) struct Watched {
    body: Body,
    unread: Unread,
    noted: Option<(Instant, u64)>,
}

impl Unread {
    pub(super) fn watch(&self, body: Body) -> Watched {
        Watched { body, unread: self.clone(), noted: None }
    }

    /// Whether an answer has been waiting for so long.
    pub(super) fn is_stuck_for(&self, time: Duration) -> bool {
        self.locked(|waiting| waiting.since.first().is_some_and(|(since, _)| since.elapsed() >= time))
    }

    fn note(&self) -> (Instant, u64) {
        let now = Instant::now();
        self.locked(|waiting| {
            let noted = (now, waiting.next);
            waiting.next += 1;
            waiting.since.insert(noted);
            noted
        })
    }

    fn strike(&self, noted: (Instant, u64)) {
        self.locked(|waiting| waiting.since.remove(&noted));
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Waiting) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watched {
    /// Nothing more comes, and whatever would have sent it is dropped.
    pub(super) fn end(&mut self) {
        self.body = Body::empty();
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(noted) = self.noted.take() {
            self.unread.strike(noted);
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(&frame, Poll::Ready(Some(Ok(frame))) if frame.is_data()) {
            self.noted = Some(self.unread.note());
        }
        frame
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(noted) = self.noted {
            self.unread.strike(noted);
        }
    }
}
