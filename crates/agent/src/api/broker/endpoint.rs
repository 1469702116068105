//! Where brokers connect: a Unix socket, a TCP port or both, with mutual TLS on either.
//!
//! Only the configured ids get a connection, and must prove them by the bundle of their trust domain.
//! The security header is demanded of every call, reflection's too, which is answered on the Unix socket
//! alone.

use std::convert::Infallible;
use std::sync::Arc;

use config::BrokerConfig;
use runtime::BoxError;
use runtime::listen::{self, Callers, Limits, Peer, TlsListener, TlsSource, UnixListener, UnixOptions};
use runtime::metrics::observed;
use spiffe::SpiffeId;
use spiffe::tls::{ClientVerifier, PostQuantum, server_config_for};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::service_fn;
use tracing::info;

use super::{BrokerApi, SERVICE, has_security_header};
use crate::api::reflection::{self, Reflection};
use crate::api::route;
use crate::attestors::Attestors;
use crate::context::Context;
use crate::meters::Meters;
use crate::tls::AllAnchors;

/// The sockets of brokers, bound.
pub(crate) struct BrokerEndpoint {
    socket: Option<UnixListener>,
    port: Option<TlsListener>,
}

impl BrokerEndpoint {
    /// Makes the sockets. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// See [`ListenError`](runtime::listen::ListenError), and the TLS library for a build error.
    pub(crate) fn bind(context: &Context, config: &BrokerConfig) -> Result<Self, BoxError> {
        let source = tls(context, config)?;
        let socket = config
            .socket_path
            .as_deref()
            .map(|path| UnixListener::bind(path, OPTIONS).map(|socket| socket.with_tls(Arc::clone(&source))));
        let port = config.bind.map(|address| TlsListener::bind(address, source));
        Ok(Self { socket: socket.transpose()?, port: port.transpose()? })
    }

    /// Answers until the token is cancelled.
    pub(crate) async fn run(
        self,
        context: &Arc<Context>,
        attestors: Arc<Attestors>,
        token: &CancellationToken,
    ) {
        let served = Arc::new(Served::new(context, attestors, token.clone()));
        let service = service_fn(move |request| {
            let served = Arc::clone(&served);
            async move { Ok::<_, Infallible>(served.answer(request).await) }
        });
        let local = async {
            let Some(socket) = self.socket else { return };
            info!(address = %socket.path().display(), network = "unix", "Starting SPIFFE Broker Endpoint");
            listen::serve(socket, Limits::delegates(), service.clone(), token.clone()).await;
        };
        let remote = async {
            let Some(port) = self.port else { return };
            info!(address = %port.address(), network = "tcp", "Starting SPIFFE Broker Endpoint");
            listen::serve(port, Limits { age: None, ..Limits::tcp() }, service.clone(), token.clone()).await;
        };
        tokio::join!(local, remote);
        info!("SPIFFE Broker Endpoint has stopped");
    }
}

/// What the endpoint serves.
struct Served {
    broker: Arc<BrokerApi>,
    reflection: Reflection,
    meters: Arc<Meters>,
}

impl Served {
    fn new(context: &Arc<Context>, attestors: Arc<Attestors>, stop: CancellationToken) -> Self {
        Self {
            broker: Arc::new(BrokerApi::new(Arc::clone(context), attestors, stop)),
            reflection: Reflection::new(&SERVICES),
            meters: Arc::clone(&context.meters),
        }
    }

    async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        let path = listen::method(request.uri()).to_owned();
        let (service, method) = match route::find(&path, &SERVICES) {
            Ok(found) => found,
            Err(status) => return status.into_http(),
        };
        let running = self.meters.rpc(service, method);
        let is_local = request.extensions().get::<Peer>().is_some_and(Peer::is_local);
        let answer = if service != SERVICE.name && !is_local {
            let text = "server reflection is only available over Unix sockets";
            Status::permission_denied(text).into_http()
        } else if !has_security_header(request.headers()) {
            Status::invalid_argument("security header missing from request").into_http()
        } else if service == SERVICE.name {
            Arc::clone(&self.broker).answer(method, request).await
        } else {
            self.reflection.clone().answer(request).await
        };
        observed(running, answer)
    }
}

/// Mutual TLS, with the agent's SVID as it is at each handshake.
fn tls(context: &Context, config: &BrokerConfig) -> Result<TlsSource, rustls::Error> {
    let known: Vec<SpiffeId> = config.brokers.iter().map(|broker| broker.id.clone()).collect();
    let admit = move |id: &SpiffeId| {
        if known.contains(id) { Ok(()) } else { Err(format!("{id} is no broker of this agent")) }
    };
    let anchors = Arc::new(AllAnchors(context.state.clone()));
    let verifier = ClientVerifier::new(anchors, Box::new(admit), true);
    let post_quantum = PostQuantum::required_if(context.config.experimental.require_pq_kem);
    let server = server_config_for(post_quantum, verifier, Arc::clone(&context.certificate))?;
    let server = Arc::new(server);
    Ok(Arc::new(move || Arc::clone(&server)))
}

const SERVICES: [route::Service; 3] = [SERVICE, reflection::SERVICE, reflection::OLD_SERVICE];

/// Who may open the socket must prove an id on it all the same.
const OPTIONS: UnixOptions =
    UnixOptions { directory_mode: 0o755, socket_mode: 0o770, callers: Callers::IfKnown };
