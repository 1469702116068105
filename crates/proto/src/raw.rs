//! Replies that were encoded before: sent as they are.
//!
//! A reply is a list of `Bytes` whose concatenation is one message, since repeated fields simply
//! follow each other. Many callers share the same bytes; nothing is encoded per call, and nothing copied
//! but short pieces, up to a frame of them at a time. A reply that holds a private key is one of those
//! that are sent as they are, and leaves no copies behind.
//!
//! The generated servers know only messages, so a program that sends such replies answers the path
//! of the method with one of the functions here and hands every other path to the generated server.
//! What is wrong with a request before it is a message is told in the words of SPIRE's library.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::{Body as _, Frame};
use prost::encoding::{WireType, encode_key, encode_varint};
use prost::{DecodeError, Message, Name};
use tonic::body::Body;
use tonic::codegen::tokio_stream::{self, Stream};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::{Request, Response, Status, Streaming};

use crate::codec::{AsWritten, decoded, unreadable};
pub use crate::framed::RECEIVE_LIMIT;
use crate::framed::{Framed, PREFIX, check_encoding, size_of};

/// Short pieces are copied together up to this length: cheaper than a frame for each.
const COPIED: usize = 16 << 10;

/// An encoded message in pieces.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    pieces: Vec<Bytes>,
    /// The first piece begins with the prefix.
    is_prefixed: bool,
}

impl Encoded {
    /// A message made of these pieces.
    #[must_use]
    pub const fn new(pieces: Vec<Bytes>) -> Self {
        Self { pieces, is_prefixed: false }
    }

    /// `message`, encoded.
    #[must_use]
    pub fn of(message: &impl Message) -> Self {
        Self::new(vec![message.encode_to_vec().into()])
    }

    /// `message`, encoded into one buffer that is sent as it is, to each caller, however long it is.
    /// `own` turns the buffer into `Bytes`; to wipe it when the last caller has it, let it be
    /// [`Bytes::from_owner`] of something that wipes itself.
    #[must_use]
    pub fn prefixed(message: &impl Message, own: impl FnOnce(Vec<u8>) -> Bytes) -> Self {
        let length = message.encoded_len();
        let mut buffer = Vec::with_capacity(PREFIX + length);
        put_prefix(&mut buffer, length);
        message.encode_raw(&mut buffer);
        Self { pieces: vec![own(buffer)], is_prefixed: true }
    }

    /// A message made of these pieces, none of which is copied, however short they are: for messages
    /// that are put together of pieces with secrets in them.
    #[must_use]
    pub fn uncopied(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let mut pieces: Vec<Bytes> = std::iter::once(Bytes::new()).chain(pieces).collect();
        let mut prefix = Vec::with_capacity(PREFIX);
        put_prefix(&mut prefix, pieces.iter().map(Bytes::len).sum());
        if let Some(first) = pieces.first_mut() {
            *first = prefix.into();
        }
        Self { pieces, is_prefixed: true }
    }

    /// Adds a piece: whole fields. Not to be done to a prefixed one, whose length is fixed.
    pub fn push(&mut self, piece: Bytes) {
        debug_assert!(!self.is_prefixed, "the length is written already");
        self.pieces.push(piece);
    }

    /// This message as the field of another. Not to be done to a prefixed one.
    #[must_use]
    pub fn nested(mut self, field: u32) -> Self {
        debug_assert!(!self.is_prefixed, "a prefix belongs before the outer message");
        let mut head = Vec::with_capacity(8);
        encode_key(field, WireType::LengthDelimited, &mut head);
        encode_varint(self.len() as u64, &mut head);
        self.pieces.insert(0, head.into());
        self
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        let all = self.pieces.iter().map(Bytes::len).sum::<usize>();
        if self.is_prefixed { all - PREFIX } else { all }
    }

    /// Whether it is the empty message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The message in one piece.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match self.pieces.as_slice() {
            [one] if self.is_prefixed => one.slice(PREFIX..),
            [one] => one.clone(),
            several if self.is_prefixed => Bytes::from(several.concat()).slice(PREFIX..),
            several => several.concat().into(),
        }
    }

    /// What goes onto the wire.
    fn into_wire(mut self) -> Wire {
        if !self.is_prefixed {
            let mut prefix = Vec::with_capacity(PREFIX);
            put_prefix(&mut prefix, self.len());
            self.pieces.insert(0, prefix.into());
        }
        Wire { pieces: self.pieces.into(), may_copy: !self.is_prefixed }
    }
}

/// What is still to be sent of a message, its prefix before it.
#[derive(Default)]
struct Wire {
    pieces: VecDeque<Bytes>,
    may_copy: bool,
}

impl Wire {
    /// The content of the next frame: the next piece, with those behind it if they are short.
    fn next(&mut self) -> Option<Bytes> {
        let first = self.pieces.pop_front()?;
        let mut length = first.len();
        let mut together = 0;
        if self.may_copy {
            for piece in &self.pieces {
                if length + piece.len() > COPIED {
                    break;
                }
                length += piece.len();
                together += 1;
            }
        }
        if together == 0 {
            return Some(first);
        }
        let mut joined = Vec::with_capacity(length);
        joined.extend_from_slice(&first);
        self.pieces.drain(..together).for_each(|piece| joined.extend_from_slice(&piece));
        Some(joined.into())
    }
}

/// Lengths that do not fit cannot be built: a message of 4 GiB.
fn put_prefix(buffer: &mut impl BufMut, length: usize) {
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({} bytes in {} pieces)", self.len(), self.pieces.len())
    }
}

/// Replies as a stream.
pub type Replies = Pin<Box<dyn Stream<Item = Result<Encoded, Status>> + Send>>;

/// Answers a unary method.
pub async fn unary<M, F, A>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + Name + Send + 'static,
    F: FnOnce(Request<M>) -> A + Send,
    A: Future<Output = Result<Response<Encoded>, Status>> + Send,
{
    let answered = match received(request, Replied::Once).await {
        Ok(request) => answer(request).await,
        Err(status) => Err(status),
    };
    reply_once(answered)
}

/// The reply to a unary call.
pub(crate) fn reply_once(answered: Result<Response<Encoded>, Status>) -> http::Response<Body> {
    reply(answered.map(|response| response.map(|encoded| tokio_stream::once(Ok(encoded)))))
}

/// Answers a method with a stream of replies.
pub async fn server_streaming<M, F, A>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + Name + Send + 'static,
    F: FnOnce(Request<M>) -> A + Send,
    A: Future<Output = Result<Response<Replies>, Status>> + Send,
{
    match received(request, Replied::Often).await {
        Ok(request) => reply(answer(request).await),
        Err(status) => status.into_http(),
    }
}

/// Answers a method with streams both ways.
pub async fn streaming<M, F, A>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + Send + 'static,
    F: FnOnce(Request<Streaming<M>>) -> A + Send,
    A: Future<Output = Result<Response<Replies>, Status>> + Send,
{
    streaming_by(AsWritten::default(), request, answer).await
}

/// The same with another reader of messages.
pub(crate) async fn streaming_by<M, D, F, A>(
    decoder: D,
    request: http::Request<Body>,
    answer: F,
) -> http::Response<Body>
where
    D: tonic::codec::Decoder<Item = M, Error = Status> + Send + 'static,
    F: FnOnce(Request<Streaming<M>>) -> A + Send,
    A: Future<Output = Result<Response<Replies>, Status>> + Send,
{
    if let Err(status) = check_encoding(request.headers()) {
        return status.into_http();
    }
    let request = request.map(|body| {
        let body = Body::new(Framed::new(body));
        Streaming::new_request(decoder, body, None, Some(RECEIVE_LIMIT))
    });
    reply(answer(Request::from_http(request)).await)
}

/// How many replies the one message of a request gets: what is wrong with it is told by that.
#[derive(Clone, Copy)]
pub(crate) enum Replied {
    Once,
    Often,
}

impl Replied {
    /// There is no message, or not even the whole of what stands before it.
    fn missing(self) -> Status {
        match self {
            Self::Once => Status::unknown("EOF"),
            Self::Often => Status::internal(
                "cardinality violation: received no request message from non-client-streaming RPC",
            ),
        }
    }

    /// The message is cut short.
    fn cut(self) -> Status {
        match self {
            Self::Once => Status::unknown("unexpected EOF"),
            Self::Often => Status::internal("unexpected EOF"),
        }
    }

    pub(crate) fn unreadable(self, error: &DecodeError) -> Status {
        match self {
            Self::Once => Status::internal(format!("grpc: error unmarshalling request: {error}")),
            Self::Often => unreadable(error),
        }
    }
}

/// The one message of a request. What a client sends behind it is not waited for.
async fn received<M: Message + Default + Name>(
    request: http::Request<Body>,
    replied: Replied,
) -> Result<Request<M>, Status> {
    read(gathered(request, replied).await?, replied)
}

/// The message of a request that was received.
pub(crate) fn read<M: Message + Default + Name>(
    request: Request<Bytes>,
    replied: Replied,
) -> Result<Request<M>, Status> {
    let (metadata, extensions, bytes) = request.into_parts();
    let message = decoded::<M>(&bytes).map_err(|error| replied.unreadable(&error))?;
    Ok(Request::from_parts(metadata, extensions, message))
}

/// The same before it is read.
pub(crate) async fn gathered(
    request: http::Request<Body>,
    replied: Replied,
) -> Result<Request<Bytes>, Status> {
    let (parts, body) = request.into_parts();
    check_encoding(&parts.headers)?;
    let bytes = first_message(body, replied).await?;
    Ok(Request::from_parts(MetadataMap::from_headers(parts.headers), parts.extensions, bytes))
}

/// The message of a request as it came, and the request, which still has it.
///
/// # Errors
/// There is none, it is too long, or compressed.
pub async fn peeked(request: http::Request<Body>) -> Result<(http::Request<Body>, Bytes), Status> {
    let (parts, body) = request.into_parts();
    check_encoding(&parts.headers)?;
    let message = first_message(body, Replied::Once).await?;
    let mut whole = BytesMut::with_capacity(PREFIX + message.len());
    whole.extend_from_slice(&[0]);
    whole.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    whole.extend_from_slice(&message);
    Ok((http::Request::from_parts(parts, Body::new(Whole(Some(whole.freeze())))), message))
}

/// A body that is there already.
struct Whole(Option<Bytes>);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

async fn first_message(body: Body, replied: Replied) -> Result<Bytes, Status> {
    let mut body = std::pin::pin!(body);
    let mut gathered = BytesMut::new();
    loop {
        let Some(frame) = std::future::poll_fn(|task| body.as_mut().poll_frame(task)).await else {
            return Err(if gathered.len() < PREFIX { replied.missing() } else { replied.cut() });
        };
        let Ok(data) = frame?.into_data() else { continue };
        if gathered.is_empty()
            && let Some(end) = message_end(&data)?
        {
            // Nearly always: all of it comes at once, and nothing is copied.
            return Ok(data.slice(PREFIX..end));
        }
        gathered.extend_from_slice(&data);
        if let Some(end) = message_end(&gathered)? {
            return Ok(gathered.freeze().slice(PREFIX..end));
        }
    }
}

/// Where the message ends that `bytes` begin with, once all of it is there.
fn message_end(bytes: &[u8]) -> Result<Option<usize>, Status> {
    let Some((prefix, _)) = bytes.split_first_chunk() else { return Ok(None) };
    let end = PREFIX + size_of(*prefix)?;
    Ok((end <= bytes.len()).then_some(end))
}

fn reply<S>(answered: Result<Response<S>, Status>) -> http::Response<Body>
where
    S: Stream<Item = Result<Encoded, Status>> + Send + 'static,
{
    let response = match answered {
        Ok(response) => response,
        Err(status) => return status.into_http(),
    };
    let (metadata, replies, extensions) = response.into_parts();
    let body = Outgoing { replies: Box::pin(replies), wire: Wire::default(), state: State::Open };
    let mut response = http::Response::new(Body::new(body));
    *response.headers_mut() = metadata.into_headers();
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    *response.extensions_mut() = extensions;
    response
}

/// The body of a response: messages with their prefixes, then the status.
struct Outgoing<S> {
    replies: Pin<Box<S>>,
    wire: Wire,
    state: State,
}

enum State {
    Open,
    /// The replies are over; the status follows what is on its way.
    Ending(Status),
    Over,
}

impl<S: Stream<Item = Result<Encoded, Status>>> http_body::Body for Outgoing<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(content) = self.wire.next() {
                return Poll::Ready(Some(Ok(Frame::data(content))));
            }
            match std::mem::replace(&mut self.state, State::Over) {
                State::Open => {
                    self.state = State::Open;
                    match ready!(self.replies.as_mut().poll_next(task)) {
                        Some(Ok(encoded)) => self.wire = encoded.into_wire(),
                        Some(Err(status)) => self.state = State::Ending(status),
                        None => self.state = State::Ending(Status::ok("")),
                    }
                }
                State::Ending(status) => {
                    let mut trailers = HeaderMap::with_capacity(3);
                    status.add_header(&mut trailers)?;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                State::Over => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Over)
    }
}
