//! The messages of a call as they come: what stands before each is judged in the words of SPIRE's library.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

/// The longest message that is received, as in SPIRE.
pub const RECEIVE_LIMIT: usize = 4 << 20;

/// Where a client names how its messages are compressed.
pub(crate) const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Before each message on the wire: a flag and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(crate) const PREFIX: usize = 5;

/// The body of a call with any number of messages. It ends before a prefix that is cut short.
pub(crate) struct Framed {
    body: Body,
    /// The beginning of a prefix.
    held: BytesMut,
    /// What is still to come of a message.
    left: usize,
}

/// The encoding that a client names: the last one, where it names several.
pub(crate) fn named(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get_all(ENCODING).iter().next_back()
}

/// Looks at how the messages of a call are compressed.
///
/// # Errors
/// In a way that nobody knows here. Where gzip is known, it was [undone](crate::packed) before.
pub(crate) fn check_encoding(headers: &HeaderMap) -> Result<(), Status> {
    let name = named(headers).map(HeaderValue::as_bytes).unwrap_or_default();
    if matches!(name, b"" | b"identity") {
        return Ok(());
    }
    let name = String::from_utf8_lossy(name);
    Err(Status::unimplemented(format!("grpc: Decompressor is not installed for grpc-encoding {name:?}")))
}

/// The length of the message that this prefix announces.
pub(crate) fn size_of(prefix: [u8; PREFIX]) -> Result<usize, Status> {
    let [flag, size @ ..] = prefix;
    let size = u32::from_be_bytes(size) as usize;
    if size > RECEIVE_LIMIT {
        let text = format!("grpc: received message larger than max ({size} vs. {RECEIVE_LIMIT})");
        return Err(Status::resource_exhausted(text));
    }
    match flag {
        0 => Ok(size),
        1 => Err(Status::internal("grpc: compressed flag set with identity or empty encoding")),
        other => Err(Status::internal(format!("grpc: received unexpected payload format {other}"))),
    }
}

impl Framed {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, held: BytesMut::new(), left: 0 }
    }

    /// Judges the prefixes in `data`, and says where one begins that is not there whole.
    fn judge(&mut self, data: &[u8]) -> Result<usize, Status> {
        let mut rest = data;
        loop {
            let (_, behind) = rest.split_at(self.left.min(rest.len()));
            self.left -= rest.len() - behind.len();
            let Some((prefix, message)) = behind.split_first_chunk::<PREFIX>() else {
                return Ok(data.len() - behind.len());
            };
            self.left = size_of(*prefix)?;
            rest = message;
        }
    }
}

impl http_body::Body for Framed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            let data = match ready!(Pin::new(&mut self.body).poll_frame(task)?) {
                None if self.left > 0 => {
                    self.left = 0;
                    return Poll::Ready(Some(Err(Status::internal("unexpected EOF"))));
                }
                None => return Poll::Ready(None),
                Some(frame) => match frame.into_data() {
                    Ok(data) => data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
            };
            let data = if self.held.is_empty() {
                data
            } else {
                self.held.extend_from_slice(&data);
                self.held.split().freeze()
            };
            let whole = self.judge(&data)?;
            self.held.extend_from_slice(data.get(whole..).unwrap_or_default());
            if whole > 0 {
                return Poll::Ready(Some(Ok(Frame::data(data.slice(..whole)))));
            }
        }
    }
}
