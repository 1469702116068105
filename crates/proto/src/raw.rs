//! Replies that were encoded before: sent as they are.
//!
//! A reply is a list of `Bytes` whose concatenation is one message, since repeated fields simply
//! follow each other. Many callers share the same bytes; nothing is encoded per call.
//!
//! The generated servers know only messages, so a program that sends such replies answers the path
//! of the method with one of the functions here and hands every other path to the generated server.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::tokio_stream::Stream;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstDecoder;

/// An encoded message in pieces.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Encoded(Vec<Bytes>);

impl Encoded {
    /// A message made of these pieces.
    #[must_use]
    pub const fn new(pieces: Vec<Bytes>) -> Self {
        Self(pieces)
    }

    /// `message`, encoded.
    #[must_use]
    pub fn of(message: &impl Message) -> Self {
        Self(vec![message.encode_to_vec().into()])
    }

    /// Adds a piece: whole fields.
    pub fn push(&mut self, piece: Bytes) {
        self.0.push(piece);
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// Whether it is the empty message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Bytes::is_empty)
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({} bytes in {} pieces)", self.len(), self.0.len())
    }
}

/// Decodes requests of type `M`, sends [`Encoded`] replies.
#[derive(Debug)]
pub struct RawCodec<M>(PhantomData<fn() -> M>);

impl<M> Default for RawCodec<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + Default + Send + 'static> Codec for RawCodec<M> {
    type Encode = Encoded;
    type Decode = M;
    type Encoder = RawEncoder;
    type Decoder = ProstDecoder<M>;

    fn encoder(&mut self) -> RawEncoder {
        RawEncoder(())
    }

    fn decoder(&mut self) -> ProstDecoder<M> {
        ProstDecoder::default()
    }
}

/// The sending half of [`RawCodec`].
#[derive(Debug)]
pub struct RawEncoder(());

impl Encoder for RawEncoder {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, message: Encoded, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.len());
        for piece in message.0 {
            buffer.put(piece);
        }
        Ok(())
    }
}

/// Replies as a stream.
pub type Replies = Pin<Box<dyn Stream<Item = Result<Encoded, Status>> + Send>>;

/// Answers a unary method.
pub async fn unary<M, F, A>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + Send + 'static,
    F: FnMut(Request<M>) -> A + Send,
    A: Future<Output = Result<Response<Encoded>, Status>> + Send,
{
    Grpc::new(RawCodec::<M>::default()).unary(Answer(answer), request).await
}

/// Answers a method with a stream of replies.
pub async fn server_streaming<M, F, A>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + Send + 'static,
    F: FnMut(Request<M>) -> A + Send,
    A: Future<Output = Result<Response<Replies>, Status>> + Send,
{
    Grpc::new(RawCodec::<M>::default()).server_streaming(Answer(answer), request).await
}

/// Answers a method with streams both ways.
pub async fn streaming<M, F, A>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + Send + 'static,
    F: FnMut(Request<Streaming<M>>) -> A + Send,
    A: Future<Output = Result<Response<Replies>, Status>> + Send,
{
    Grpc::new(RawCodec::<M>::default()).streaming(Answer(answer), request).await
}

/// A closure as one of tonic's service traits.
struct Answer<F>(F);

impl<M, F, A> UnaryService<M> for Answer<F>
where
    F: FnMut(Request<M>) -> A,
    A: Future<Output = Result<Response<Encoded>, Status>>,
{
    type Response = Encoded;
    type Future = A;

    fn call(&mut self, request: Request<M>) -> A {
        (self.0)(request)
    }
}

impl<M, F, A> ServerStreamingService<M> for Answer<F>
where
    F: FnMut(Request<M>) -> A,
    A: Future<Output = Result<Response<Replies>, Status>>,
{
    type Response = Encoded;
    type ResponseStream = Replies;
    type Future = A;

    fn call(&mut self, request: Request<M>) -> A {
        (self.0)(request)
    }
}

impl<M, F, A> StreamingService<M> for Answer<F>
where
    F: FnMut(Request<Streaming<M>>) -> A,
    A: Future<Output = Result<Response<Replies>, Status>>,
{
    type Response = Encoded;
    type ResponseStream = Replies;
    type Future = A;

    fn call(&mut self, request: Request<Streaming<M>>) -> A {
        (self.0)(request)
    }
}
