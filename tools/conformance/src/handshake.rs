//! TLS handshakes that offer few key exchanges.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, SECP256R1MLKEM768, SECP384R1, X25519, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::wire::client_config_of;

/// What a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Elliptic curves alone, as clients did before there was anything else.
    Classical,
    /// The same, in TLS 1.2.
    Old,
    /// Hybrids of an elliptic curve and ML-KEM alone.
    PostQuantum,
    /// A hybrid and elliptic curves, with shares for both kinds.
    Whole,
}

/// Shakes hands with the server on this port of this machine; the key exchange that was agreed on.
///
/// # Errors
/// What the handshake failed with.
///
/// # Panics
/// If nobody listens there.
pub async fn shake(port: &str, offer: Offer, protocol: &[u8]) -> Result<String, String> {
    let versions: &[_] = if offer == Offer::Old { &[&rustls::version::TLS12] } else { rustls::ALL_VERSIONS };
    let kx_groups: Vec<&'static dyn SupportedKxGroup> = match offer {
        Offer::Classical | Offer::Old => vec![X25519, SECP256R1, SECP384R1],
        Offer::PostQuantum => vec![SECP256R1MLKEM768, X25519MLKEM768],
        Offer::Whole => vec![X25519MLKEM768, X25519, SECP256R1],
    };
    let versions = if offer == Offer::PostQuantum { &[&rustls::version::TLS13][..] } else { versions };
    let provider = CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() };
    let mut config = client_config_of(provider, None, versions);
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).await.expect("somebody listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let group = stream.get_ref().1.negotiated_key_exchange_group().map(|group| group.name());
    Ok(format!("{group:?}"))
}
