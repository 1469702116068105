//! Bodies of which a copy is kept until the call has ended.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

/// What of a body has passed.
#[derive(Default)]
pub(super) struct Seen(Mutex<Vec<u8>>);

impl Seen {
    fn add(&self, data: &[u8], most: usize) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() + data.len() <= most {
            seen.extend_from_slice(data);
        }
    }

    /// The messages in it.
    pub(super) fn messages(&self) -> Vec<Bytes> {
        messages(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The whole messages in what passed of a body (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(super) fn messages(mut body: &[u8]) -> Vec<Bytes> {
    let mut found = Vec::new();
    while let Some((&[_flag, a, b, c, d], rest)) = body.split_first_chunk() {
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let Some((message, rest)) = rest.split_at_checked(length) else { break };
        found.push(Bytes::copy_from_slice(message));
        body = rest;
    }
    found
}

/// The request, of which `seen` gets a copy.
pub(super) fn watched(request: Request<Body>, seen: Arc<Seen>) -> Request<Body> {
    request.map(|body| Body::new(Tee { body, seen, most: MOST, end: None }))
}

/// The answer; when it has passed, or nobody wants it any more, `end` is told what passed of it, if that
/// is not longer than `most`, and how it ended.
pub(super) fn observed(
    answer: Response<Body>,
    most: usize,
    end: impl FnOnce(&[u8], Status) + Send + 'static,
) -> Response<Body> {
    if let Some(status) = Status::from_header_map(answer.headers()) {
        end(&[], status);
        return answer;
    }
    answer.map(|body| Body::new(Tee { body, seen: Arc::default(), most, end: Some(Box::new(end)) }))
}

struct Tee {
    body: Body,
    seen: Arc<Seen>,
    most: usize,
    end: Option<End>,
}

type End = Box<dyn FnOnce(&[u8], Status) + Send>;

impl Tee {
    fn ended(&mut self, status: Status) {
        if let Some(end) = self.end.take() {
            end(&self.seen.0.lock().unwrap_or_else(PoisonError::into_inner), status);
        }
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.ended(Status::new(Code::Cancelled, "context canceled"));
    }
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.seen.add(data, self.most);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    let status = Status::from_header_map(trailers);
                    self.ended(status.unwrap_or_else(|| Status::unknown("")));
                }
            }
            Some(Err(status)) => {
                let status = status.clone();
                self.ended(status);
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Of each body: more than any batch needs.
pub(super) const MOST: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_messages_are_found() {
        let body = b"\0\0\0\0\x02ab\0\0\0\0\0\0\0\0\0\x09cut";

        assert_eq!(messages(body), [Bytes::from_static(b"ab"), Bytes::new()]);
    }
}
