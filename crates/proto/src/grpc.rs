//! What the generated clients and servers have in common: all but their messages.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::{Message, Name};
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::{DecodeBuf, EncodeBuf};
use tonic::codegen::StdError;
use tonic::codegen::tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::codec::{Codec, Decoder, decoded};
use crate::raw::{self, Encoded, Replied, Replies};

/// What carries calls to a server: a channel, or something before one.
pub trait Carrier:
    GrpcService<
        Body,
        Error: Into<StdError>,
        ResponseBody: http_body::Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
    >
{
}

impl<T> Carrier for T where
    T: GrpcService<
            Body,
            Error: Into<StdError>,
            ResponseBody: http_body::Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
        >
{
}

/// Makes calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller<T>(Grpc<T>);

impl<T: Carrier> Caller<T> {
    pub(crate) fn new(carrier: T) -> Self {
        Self(Grpc::new(carrier))
    }

    pub(crate) fn max_decoding_message_size(self, limit: usize) -> Self {
        Self(self.0.max_decoding_message_size(limit))
    }

    pub(crate) async fn unary<M, R>(
        &mut self,
        path: &'static str,
        request: Request<M>,
    ) -> Result<Response<R>, Status>
    where
        M: Message,
        R: Message + Default + Name,
    {
        let request = request.map(|message| Bytes::from(message.encode_to_vec()));
        // On the heap, and so the same for all messages.
        let (metadata, answer, extensions) = Box::pin(self.carry(path, request)).await?.into_parts();
        let answer = decoded(&answer).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::from_parts(metadata, answer, extensions))
    }

    async fn carry(
        &mut self,
        path: &'static str,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        self.ready().await?;
        self.0.unary(request, PathAndQuery::from_static(path), Plain).await
    }

    pub(crate) async fn server_streaming<M, R>(
        &mut self,
        path: &'static str,
        request: Request<M>,
    ) -> Result<Response<Streaming<R>>, Status>
    where
        M: Message + Send + Sync + 'static,
        R: Message + Default + Name + Send + Sync + 'static,
    {
        self.ready().await?;
        self.0.server_streaming(request, PathAndQuery::from_static(path), Codec::default()).await
    }

    pub(crate) async fn streaming<S, M, R>(
        &mut self,
        path: &'static str,
        request: Request<S>,
    ) -> Result<Response<Streaming<R>>, Status>
    where
        S: Stream<Item = M> + Send + 'static,
        M: Message + Send + Sync + 'static,
        R: Message + Default + Name + Send + Sync + 'static,
    {
        self.ready().await?;
        self.0.streaming(request, PathAndQuery::from_static(path), Codec::default()).await
    }

    async fn ready(&mut self) -> Result<(), Status> {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unknown(format!("Service was not ready: {}", error.into())))
    }
}

/// Messages that are written already, and not read yet.
struct Plain;

impl tonic::codec::Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl tonic::codec::Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// A call that is being answered.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

/// What reads a message, answers it and writes the answer.
type Method = Box<dyn FnOnce(Request<Bytes>) -> Written + Send>;

type Written = Pin<Box<dyn Future<Output = Result<Response<Encoded>, Status>> + Send>>;

pub(crate) fn unary<M, R, F, A>(request: http::Request<Body>, answer: F) -> Answering
where
    M: Message + Default + Name + Send + 'static,
    R: Message + 'static,
    F: FnOnce(Request<M>) -> A + Send + 'static,
    A: Future<Output = Result<Response<R>, Status>> + Send + 'static,
{
    let method = |request| match raw::read(request, Replied::Once) {
        Ok(request) => {
            let answer = answer(request);
            Box::pin(async { Ok(answer.await?.map(|message| encoded(&message))) }) as Written
        }
        Err(status) => Box::pin(std::future::ready(Err(status))),
    };
    Box::pin(answered(request, Box::new(method)))
}

/// The same for all methods.
async fn answered(request: http::Request<Body>, method: Method) -> Result<http::Response<Body>, Infallible> {
    let answered = match raw::gathered(request, Replied::Once).await {
        Ok(request) => method(request).await,
        Err(status) => Err(status),
    };
    Ok(raw::reply_once(answered))
}

pub(crate) fn server_streaming<M, R, S, F, A>(request: http::Request<Body>, answer: F) -> Answering
where
    M: Message + Default + Name + Send + 'static,
    R: Message + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
    F: FnOnce(Request<M>) -> A + Send + 'static,
    A: Future<Output = Result<Response<S>, Status>> + Send,
{
    Box::pin(async move {
        let answer = |request| async move { answer(request).await.map(replies) };
        Ok(raw::server_streaming(request, answer).await)
    })
}

pub(crate) fn streaming<M, R, S, F, A>(request: http::Request<Body>, answer: F) -> Answering
where
    M: Message + Default + Name + Send + 'static,
    R: Message + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
    F: FnOnce(Request<Streaming<M>>) -> A + Send + 'static,
    A: Future<Output = Result<Response<S>, Status>> + Send,
{
    Box::pin(async move {
        let answer = |request| async move { answer(request).await.map(replies) };
        Ok(raw::streaming_by(Decoder::default(), request, answer).await)
    })
}

fn encoded(message: &impl Message) -> Encoded {
    Encoded::prefixed(message, Bytes::from)
}

fn replies<R, S>(response: Response<S>) -> Response<Replies>
where
    R: Message + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    response
        .map(|messages| Box::pin(messages.map(|message| message.map(|message| encoded(&message)))) as Replies)
}

/// A method that the service does not have.
pub(crate) fn unimplemented() -> Answering {
    Box::pin(std::future::ready(Ok(Status::unimplemented("").into_http())))
}
