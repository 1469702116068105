//! Calls of any method with messages made from JSON, and what came back.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::AsciiMetadataKey;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};
use tower::ServiceExt as _;

use crate::pki::Key;

/// How long a call may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The messages of the API, known by their descriptors.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    pool: DescriptorPool,
}

impl Messages {
    /// Reads a `FileDescriptorSet`.
    pub(crate) fn load(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("the descriptors can be read");
        Self { pool: DescriptorPool::decode(bytes.as_slice()).expect("descriptors") }
    }

    fn method(&self, path: &str) -> Option<MethodDescriptor> {
        let (service, method) = path.trim_start_matches('/').split_once('/')?;
        self.pool.get_service_by_name(service)?.methods().find(|found| found.name() == method)
    }

    /// The request of `method` as bytes.
    fn request(&self, method: &str, json: &Value) -> Result<Bytes, String> {
        let descriptor = self.method(method).ok_or_else(|| format!("unknown method {method}"))?;
        let message = DynamicMessage::deserialize(descriptor.input(), json)
            .map_err(|error| format!("cannot write a request of {method}: {error}"))?;
        Ok(message.encode_to_vec().into())
    }

    /// A response of `method` as JSON.
    pub(crate) fn response(&self, method: &str, bytes: Bytes) -> Result<Value, String> {
        let descriptor = self.method(method).ok_or_else(|| format!("unknown method {method}"))?;
        let message = DynamicMessage::decode(descriptor.output(), bytes)
            .map_err(|error| format!("cannot read a response of {method}: {error}"))?;
        to_json(&message)
    }

    /// The details inside a serialised `google.rpc.Status`.
    fn details(&self, bytes: &[u8]) -> Result<Vec<Value>, String> {
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let status = status_details(bytes)?;
        let one = |any: prost_types::Any| {
            let name = any.type_url.rsplit('/').next().unwrap_or_default();
            let descriptor =
                self.pool.get_message_by_name(name).ok_or_else(|| format!("unknown detail {name}"))?;
            let message = DynamicMessage::decode(descriptor, any.value.as_slice())
                .map_err(|error| format!("cannot read detail {name}: {error}"))?;
            let mut json = to_json(&message)?;
            if let Some(fields) = json.as_object_mut() {
                fields.insert("@type".to_owned(), json!(name));
            }
            Ok(json)
        };
        status.into_iter().map(one).collect()
    }
}

fn to_json(message: &DynamicMessage) -> Result<Value, String> {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(true)
        .stringify_64_bit_integers(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| format!("cannot write a message as JSON: {error}"))
}

/// The details (field 3) of a `google.rpc.Status`.
fn status_details(bytes: &[u8]) -> Result<Vec<prost_types::Any>, String> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct RpcStatus {
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    let status = RpcStatus::decode(bytes).map_err(|error| format!("cannot read status details: {error}"))?;
    Ok(status.details)
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The code by its gRPC name, or `CONNECTION`.
    pub(crate) code: String,
    /// The status message.
    pub(crate) message: String,
    /// The status details.
    pub(crate) details: Vec<Value>,
    /// All responses.
    pub(crate) answers: Vec<Value>,
}

/// What a TLS client shows.
pub(crate) struct Shown {
    /// DER of its certificates, leaf first.
    pub(crate) chain: Vec<Vec<u8>>,
    /// The leaf's private key as PKCS #8.
    pub(crate) key: Vec<u8>,
}

/// One caller of the API.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    messages: Messages,
    channel: Connection,
}

impl Caller {
    /// Over the local socket.
    pub(crate) fn local(messages: &Messages, socket: &str) -> Self {
        Self { messages: messages.clone(), channel: Connection::local(socket) }
    }

    /// Over TLS.
    pub(crate) fn tls(messages: &Messages, port: &str, shown: Option<&Shown>) -> Self {
        Self { messages: messages.clone(), channel: Connection::tls(port, shown) }
    }

    /// Calls `method` with requests in JSON, sent one after the other before the half-close.
    pub(crate) async fn call(
        &self,
        method: &str,
        requests: &[Value],
        metadata: &[(String, String)],
    ) -> Result<Reply, String> {
        let raw =
            requests.iter().map(|json| self.messages.request(method, json)).collect::<Result<_, _>>()?;
        self.call_raw(method, raw, metadata).await
    }

    /// Calls `method` with messages as they are.
    pub(crate) async fn call_raw(
        &self,
        method: &str,
        messages: Vec<Bytes>,
        metadata: &[(String, String)],
    ) -> Result<Reply, String> {
        let (answers, status) = self.channel.exchange(method, messages, metadata).await?;
        let answers = answers
            .into_iter()
            .map(|bytes| self.messages.response(method, bytes))
            .collect::<Result<_, _>>()?;
        Ok(Reply {
            code: code_of(&status).to_owned(),
            message: status.message().to_owned(),
            details: self.messages.details(status.details())?,
            answers,
        })
    }

    /// Sends messages as they are and hands back what came, as it is.
    pub(crate) async fn exchange(
        &self,
        method: &str,
        messages: Vec<Bytes>,
    ) -> Result<(Vec<Bytes>, Status), String> {
        self.channel.exchange(method, messages, &[]).await
    }

    /// Calls a method that must succeed and hands back its one answer.
    pub(crate) async fn ask(&self, method: &str, request: Value) -> Result<Value, String> {
        let reply = self.call(method, &[request], &[]).await?;
        match reply.answers.into_iter().next() {
            Some(answer) if reply.code == "OK" => Ok(answer),
            _ => Err(format!("{method}: {} {}", reply.code, reply.message)),
        }
    }

    /// An SVID of `id` that an operator has the server mint.
    pub(crate) async fn mint(&self, id: &str) -> Result<Shown, String> {
        let key = Key::generate();
        let request = json!({"csr": BASE64_STANDARD.encode(key.request(id)), "ttl": 86_000});
        let answer = self.ask("/spire.api.server.svid.v1.SVID/MintX509SVID", request).await?;
        let chain = answer["svid"]["cert_chain"].as_array().into_iter().flatten();
        let chain = chain.filter_map(|der| BASE64_STANDARD.decode(der.as_str()?).ok()).collect();
        Ok(Shown { chain, key: key.pkcs8() })
    }
}

/// A connection to something that speaks gRPC; it is made at the first call.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: Channel,
}

impl Connection {
    /// To a local socket.
    pub(crate) fn local(socket: &str) -> Self {
        let socket = PathBuf::from(socket);
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Self { channel: Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector) }
    }

    /// Over a connection that is there already; a second one cannot be made.
    pub(crate) fn over(stream: UnixStream) -> Self {
        let stream = Arc::new(Mutex::new(Some(stream)));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("it has ended")) }
        });
        Self { channel: Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector) }
    }

    /// To a TLS port of this machine.
    pub(crate) fn tls(port: &str, shown: Option<&Shown>) -> Self {
        let port: u16 = port.parse().expect("a port");
        let connector = TlsConnector::from(Arc::new(client_config(shown, rustls::DEFAULT_VERSIONS)));
        let connect = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(("127.0.0.1", port)).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").expect("a DNS name");
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Self { channel: Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect) }
    }

    /// To a local socket that speaks TLS.
    pub(crate) fn local_tls(socket: &str, shown: Option<&Shown>) -> Self {
        let socket = PathBuf::from(socket);
        let connector = TlsConnector::from(Arc::new(client_config(shown, rustls::DEFAULT_VERSIONS)));
        let connect = tower::service_fn(move |_: Uri| {
            let (socket, connector) = (socket.clone(), connector.clone());
            async move {
                let stream = UnixStream::connect(socket).await?;
                let name = ServerName::try_from("localhost").expect("a DNS name");
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Self { channel: Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect) }
    }

    /// Sends all `messages` and hands back all answers and the status.
    pub(crate) async fn exchange(
        &self,
        method: &str,
        messages: Vec<Bytes>,
        metadata: &[(String, String)],
    ) -> Result<(Vec<Bytes>, Status), String> {
        let mut answers = Vec::new();
        let all = async {
            let mut stream = self.open(method, messages, metadata).await?;
            while let Some(answer) = stream.message().await? {
                answers.push(answer);
            }
            Ok(())
        };
        let ended = tokio::time::timeout(PATIENCE, all).await;
        let ended: Result<(), Status> =
            ended.map_err(|_| format!("{method} has no end within {PATIENCE:?}"))?;
        Ok((answers, ended.err().unwrap_or_else(|| Status::ok(""))))
    }

    /// Sends all `messages` and hands back the stream of answers.
    pub(crate) async fn open(
        &self,
        method: &str,
        messages: Vec<Bytes>,
        metadata: &[(String, String)],
    ) -> Result<Streaming<Bytes>, Status> {
        self.converse(method, tokio_stream::iter(messages), metadata).await
    }

    /// Sends a request without a message, that is perhaps no call; tells the statuses of HTTP and gRPC and
    /// the kind of content of the answer.
    pub(crate) async fn knock(&self, request: http::Request<Body>) -> Result<String, String> {
        let answer = self.answer(request).await?;
        let status = Status::from_header_map(answer.headers()).ok_or("an answer without a status")?;
        let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        Ok(format!("{} {kind:?} {:?}: {}", answer.status(), status.code(), status.message()))
    }

    /// The answer to a request as it is.
    pub(crate) async fn answer(&self, request: http::Request<Body>) -> Result<http::Response<Body>, String> {
        let answer = tokio::time::timeout(PATIENCE, self.channel.clone().oneshot(request)).await;
        answer.map_err(|_| "no answer")?.map_err(|error| error.to_string())
    }

    /// Sends what `messages` brings, as it comes, and hands back the stream of answers.
    pub(crate) async fn converse(
        &self,
        method: &str,
        messages: impl Stream<Item = Bytes> + Send + 'static,
        metadata: &[(String, String)],
    ) -> Result<Streaming<Bytes>, Status> {
        let mut request = Request::new(messages);
        for (name, value) in metadata {
            let name: AsciiMetadataKey = name.parse().expect("a metadata key");
            request.metadata_mut().append(name, value.parse().expect("a metadata value"));
        }
        let mut client = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let path = PathAndQuery::try_from(method).expect("a path");
        Ok(client.streaming(request, path, Raw).await?.into_inner())
    }
}

/// The name of a status code; `CONNECTION` if the status is not the server's.
pub(crate) fn code_of(status: &Status) -> &'static str {
    if std::error::Error::source(status).is_some() { "CONNECTION" } else { name_of(status.code()) }
}

const fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// TLS of these versions to any server, over which HTTP/2 is spoken.
pub(crate) fn client_config(
    shown: Option<&Shown>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    client_config_of(aws_lc_rs::default_provider(), shown, versions)
}

/// The same by this provider.
pub(crate) fn client_config_of(
    provider: CryptoProvider,
    shown: Option<&Shown>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("the provider has the usual versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(Shown { chain, key }) => {
            let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
            let key = aws_lc_rs::sign::any_supported_type(&key).expect("a key that can sign");
            builder.with_client_cert_resolver(Arc::new(Always(Arc::new(CertifiedKey::new(chain, key)))))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Shows the same certificates to every server, whatever is wrong with them.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any server: what it shows is judged by other suites.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Messages as the bytes they are.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
