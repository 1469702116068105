//! What the health checks show: the parts of the server are tried out now and then, as a client would
//! use them.

use std::sync::Arc;
use std::time::Duration;

use ca::issue::X509Request;
use runtime::clock;
use runtime::health::Check;
use spiffe::key::{KeyKind, PrivateKey, PublicKey};
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// How often they are tried out, and how long the datastore may take.
const EVERY: Duration = Duration::from_secs(60);

/// Tries the parts out until the token is cancelled; what is wrong is shown and tried again.
///
/// # Errors
/// If the system makes no key, which nothing works without.
pub(crate) async fn watch(
    context: Arc<Context>,
    token: CancellationToken,
) -> Result<(), spiffe::key::KeyError> {
    let key = PrivateKey::generate(KeyKind::EcP256)?.public().clone();
    let (datastore, authority) =
        (context.health.check("catalog.datastore"), context.health.check("server.ca"));
    loop {
        tell(&datastore, "list_bundle_err", read(&context).await);
        tell(&authority, "sign_x509_svid_err", sign(&context, &key).await);
        tokio::select! {
            biased;
            () = token.cancelled() => return Ok(()),
            () = context.clock.sleep(EVERY) => {}
        }
    }
}

fn tell(check: &Check, key: &str, outcome: Result<(), String>) {
    check.started();
    match outcome {
        Ok(()) => check.cleared(key),
        Err(why) => {
            tracing::warn!(error = why, "Health check failed");
            check.failing(key, why);
        }
    }
}

async fn read(context: &Context) -> Result<(), String> {
    let listing = clock::within(&*context.clock, EVERY, context.store.list_bundles(None)).await;
    let listed = listing.ok_or("the datastore does not answer")?;
    listed.map(drop).map_err(|error| error.to_string())
}

async fn sign(context: &Context, public_key: &PublicKey) -> Result<(), String> {
    let id = context.trust_domain().id_with_path("/for/health/check/only");
    let request = X509Request::Workload {
        id: id.map_err(|error| error.to_string())?,
        public_key: public_key.clone(),
        dns_names: Vec::new(),
        ttl: 0,
        subject: None,
    };
    let text = |error: ca::issue::IssueError| runtime::chain(&error);
    let prepared = context.issuer.prepare_x509(request, context.now()).map_err(text)?;
    prepared.sign().await.map(drop).map_err(text)
}
