//! What of a server signs tokens, on a real TLS port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proto::raw::{self, Encoded};
use proto::spire::server::svid::{NewJwtsvidRequest, NewJwtsvidResponse};
use proto::spire::types;
use runtime::listen::{Limits, TlsListener, serve};
use runtime::tasks::Group;
use rustls::ClientConfig;
use serde_json::json;
use spiffe::SpiffeId;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::tls::{
    Anchors, ClientVerifier, OwnCertificate, ServerTrust, ServerVerifier, client_config, server_config,
};
use spiffe::x509::{CertDer, Certificate};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::authority::{Authority, NOW};

const SERVER: &str = "spiffe://example.org/spire/server";

/// A server that answers `NewJWTSVID`: entry `x` is `spiffe://example.org/x`.
#[derive(Clone)]
pub(crate) struct Signer {
    pub(crate) port: u16,
    /// How many tokens it was asked for.
    pub(crate) asked: Arc<AtomicUsize>,
    /// The entries it was asked for, in this order.
    pub(crate) entries: Arc<Mutex<Vec<String>>>,
    /// How many more answers it gives.
    pub(crate) room: Arc<Semaphore>,
    /// What it answers instead of a token.
    pub(crate) refusal: Arc<Mutex<Option<Status>>>,
}

impl Signer {
    pub(crate) fn start(authority: &Arc<Authority>, tasks: &Group) -> Self {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let own = OwnCertificate::empty();
        own.set(&[CertDer::new(authority.issue_for_ever(SERVER, &key).der())], &key).unwrap();
        let verifier = ClientVerifier::new(anchors(authority), Box::new(|_| Ok(())), false);
        let tls = Arc::new(server_config(verifier, own).unwrap());
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TlsListener::bind(address, Arc::new(move || Arc::clone(&tls))).unwrap();

        let port = listener.address().port();
        let signer = Self {
            port,
            asked: Arc::default(),
            entries: Arc::default(),
            room: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            refusal: Arc::default(),
        };
        let (answering, authority) = (signer.clone(), Arc::clone(authority));
        let service = tower::service_fn(move |request| {
            let (signer, authority) = (answering.clone(), Arc::clone(&authority));
            async move {
                let answer = |request: Request<NewJwtsvidRequest>| async move {
                    signer.entries.lock().unwrap().push(request.get_ref().entry_id.clone());
                    signer.room.acquire().await.unwrap().forget();
                    signer.token(&authority, request.get_ref())
                };
                Ok::<_, Infallible>(raw::unary(request, answer).await)
            }
        });
        tasks.spawn("signer", serve(listener, Limits::tcp(), service, tasks.token().clone()));
        signer
    }

    pub(crate) fn count(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn refuse(&self, status: Status) {
        *self.refusal.lock().unwrap() = Some(status);
    }

    /// How an agent reaches it.
    pub(crate) fn client_tls(authority: &Arc<Authority>) -> Arc<ClientConfig> {
        let trust = ServerTrust::Id(SpiffeId::parse(SERVER).unwrap(), anchors(authority));
        Arc::new(client_config(ServerVerifier::new(trust), OwnCertificate::empty()).unwrap())
    }

    fn token(&self, authority: &Authority, request: &NewJwtsvidRequest) -> Result<Response<Encoded>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let path = format!("/{}", request.entry_id);
        let (issued_at, expires_at) = (NOW.0, NOW.0 + 300);
        let token = authority.token(&json!({
            "aud": request.audience,
            "exp": expires_at,
            "iat": issued_at,
            "sub": format!("spiffe://example.org{path}"),
        }));
        let id = Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path });
        let svid = Some(types::Jwtsvid { token, id, expires_at, issued_at, hint: String::new() });
        Ok(Response::new(Encoded::of(&NewJwtsvidResponse { svid })))
    }
}

#[derive(Debug)]
struct OneDomain(Arc<[Certificate]>);

impl Anchors for OneDomain {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        (trust_domain == "example.org").then(|| Arc::clone(&self.0))
    }
}

fn anchors(authority: &Authority) -> Arc<OneDomain> {
    Arc::new(OneDomain(Arc::from([authority.certificate.clone()])))
}
