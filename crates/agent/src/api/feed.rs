//! Streams of answers that go on until something must be refused.

use std::future::Future;

use futures::stream::{self, StreamExt};
use proto::raw::{Encoded, Replies};
use tonic::{Response, Status};

/// What makes the answers of one stream.
pub(super) trait Feed: Send + 'static {
    /// The next answer, once there is one; a refusal ends the stream.
    fn next(&mut self) -> impl Future<Output = Result<Encoded, Status>> + Send;
}

/// The stream of what `feed` makes.
pub(super) fn replies(feed: impl Feed) -> Response<Replies> {
    let replies = stream::unfold(Some(feed), async |feed| {
        let mut feed = feed?;
        match feed.next().await {
            Ok(answer) => Some((Ok(answer), Some(feed))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Response::new(replies.boxed())
}
