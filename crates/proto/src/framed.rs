//! The messages of a call as they come: what stands before each is judged in the words of SPIRE's library.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

/// The longest message that is received, as in SPIRE.
pub const RECEIVE_LIMIT: usize = 4 << 20;

/// Before each message on the wire: a flag and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(crate) const PREFIX: usize = 5;

/// How the messages of a call are compressed.
#[derive(Clone)]
pub(crate) struct Encoding(Option<HeaderValue>);

/// The body of a call with any number of messages. It ends before a prefix that is cut short.
pub(crate) struct Framed {
    body: Body,
    encoding: Encoding,
    /// The beginning of a prefix.
    held: BytesMut,
    /// What is still to come of a message.
    left: usize,
}

impl Encoding {
    /// The one that a client names.
    ///
    /// # Errors
    /// It is one that nobody knows. That SPIRE knows may be named, though nothing may be compressed by it.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Status> {
        let encoding = Self(headers.get_all("grpc-encoding").iter().next_back().cloned());
        match encoding.name() {
            "" | "identity" | "gzip" => Ok(encoding),
            _ => Err(encoding.unknown()),
        }
    }

    /// The length of the message that this prefix announces.
    pub(crate) fn size_of(&self, prefix: [u8; PREFIX]) -> Result<usize, Status> {
        let [flag, size @ ..] = prefix;
        let size = u32::from_be_bytes(size) as usize;
        if size > RECEIVE_LIMIT {
            let text = format!("grpc: received message larger than max ({size} vs. {RECEIVE_LIMIT})");
            return Err(Status::resource_exhausted(text));
        }
        match (flag, self.name()) {
            (0, _) => Ok(size),
            (1, "" | "identity") => {
                Err(Status::internal("grpc: compressed flag set with identity or empty encoding"))
            }
            (1, _) => Err(self.unknown()),
            (other, _) => Err(Status::internal(format!("grpc: received unexpected payload format {other}"))),
        }
    }

    fn name(&self) -> &str {
        match &self.0 {
            None => "",
            Some(name) => name.to_str().unwrap_or("?"),
        }
    }

    fn unknown(&self) -> Status {
        let name = self.0.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        Status::unimplemented(format!("grpc: Decompressor is not installed for grpc-encoding {name:?}"))
    }
}

impl Framed {
    pub(crate) fn new(body: Body, encoding: Encoding) -> Self {
        Self { body, encoding, held: BytesMut::new(), left: 0 }
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
            self.left = self.encoding.size_of(*prefix)?;
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
