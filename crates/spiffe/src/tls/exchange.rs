//! Key exchanges: whether those that a quantum computer could undo are taken, and the one hybrid that
//! rustls lacks (draft-ietf-tls-ecdhe-mlkem).

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::aws_lc_rs::kx_group::{MLKEM1024, SECP256R1MLKEM768, SECP384R1, X25519MLKEM768};
use rustls::crypto::{
    ActiveKeyExchange, CompletedKeyExchange, CryptoProvider, SharedSecret, SupportedKxGroup, aws_lc_rs,
};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{
    ClientConfig, ConfigBuilder, Error, NamedGroup, PeerMisbehaved, ProtocolVersion, ServerConfig,
    WantsVerifier,
};

use super::ServerVerifier;

/// Whether key exchanges without a post-quantum part are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PostQuantum {
    /// They are taken.
    #[default]
    Optional,
    /// They are refused, and with them TLS below 1.3.
    Required,
}

impl PostQuantum {
    /// As a setting says that asks whether they are required.
    #[must_use]
    pub const fn required_if(required: bool) -> Self {
        if required { Self::Required } else { Self::Optional }
    }

    /// What a server's configuration begins with.
    ///
    /// # Errors
    /// If the provider lacks the protocol versions, which would be a build error.
    pub fn server(self) -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, Error> {
        let builder = ServerConfig::builder_with_provider(self.provider());
        match self {
            Self::Optional => builder.with_safe_default_protocol_versions(),
            Self::Required => builder.with_protocol_versions(&[&rustls::version::TLS13]),
        }
    }

    /// What a client's configuration begins with, judging servers by `verifier`.
    pub(super) fn client(
        self,
        verifier: Arc<ServerVerifier>,
    ) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
        let builder = ClientConfig::builder_with_provider(self.provider());
        let builder = match self {
            Self::Optional => builder.with_safe_default_protocol_versions()?,
            Self::Required => builder.with_protocol_versions(&[&rustls::version::TLS13])?,
        };
        Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
    }

    fn provider(self) -> Arc<CryptoProvider> {
        match self {
            Self::Optional => super::provider(),
            Self::Required => {
                let kx_groups = vec![X25519MLKEM768, SECP256R1MLKEM768, SECP384R1MLKEM1024];
                Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
            }
        }
    }
}

/// P-384 and ML-KEM-1024, in this order.
static SECP384R1MLKEM1024: &dyn SupportedKxGroup = &Hybrid;

#[derive(Debug)]
struct Hybrid;

impl SupportedKxGroup for Hybrid {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let (classical, post_quantum) = (SECP384R1.start()?, MLKEM1024.start()?);
        let pub_key = [classical.pub_key(), post_quantum.pub_key()].concat();
        Ok(Box::new(ActiveHybrid { classical, post_quantum, pub_key }))
    }

    fn start_and_complete(&self, share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let (classical, post_quantum) = parts(share)?;
        let classical = SECP384R1.start_and_complete(classical)?;
        let post_quantum = MLKEM1024.start_and_complete(post_quantum)?;
        Ok(CompletedKeyExchange {
            group: NAME,
            pub_key: [classical.pub_key, post_quantum.pub_key].concat(),
            secret: joined(&classical.secret, &post_quantum.secret),
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NAME
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

struct ActiveHybrid {
    classical: Box<dyn ActiveKeyExchange>,
    post_quantum: Box<dyn ActiveKeyExchange>,
    pub_key: Vec<u8>,
}

impl ActiveKeyExchange for ActiveHybrid {
    fn complete(self: Box<Self>, share: &[u8]) -> Result<SharedSecret, Error> {
        let (classical, post_quantum) = parts(share)?;
        let classical = self.classical.complete(classical)?;
        Ok(joined(&classical, &self.post_quantum.complete(post_quantum)?))
    }

    fn pub_key(&self) -> &[u8] {
        &self.pub_key
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        NAME
    }
}

/// The shares for the two; how long the second must be is the business of the second.
fn parts(share: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    share.split_at_checked(SECP384R1_SHARE).ok_or_else(|| PeerMisbehaved::InvalidKeyShare.into())
}

fn joined(classical: &SharedSecret, post_quantum: &SharedSecret) -> SharedSecret {
    [classical.secret_bytes(), post_quantum.secret_bytes()].concat().into()
}

/// rustls has no name for it.
const NAME: NamedGroup = NamedGroup::Unknown(0x11ed);

/// Of an uncompressed point.
const SECP384R1_SHARE: usize = 97;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_the_hybrid_come_to_the_same_secret_and_damaged_shares_to_none() {
        let client = SECP384R1MLKEM1024.start().unwrap();
        let server = SECP384R1MLKEM1024.start_and_complete(client.pub_key()).unwrap();

        assert_eq!((client.pub_key().len(), server.pub_key.len()), (97 + 1568, 97 + 1568));
        let secret = client.complete(&server.pub_key).unwrap();
        assert_eq!(secret.secret_bytes().len(), 48 + 32);
        assert_eq!(secret.secret_bytes(), server.secret.secret_bytes());
        for length in [0, 96, 97, 97 + 1567] {
            let cut = server.pub_key.get(..length).unwrap();
            assert!(SECP384R1MLKEM1024.start_and_complete(cut).is_err(), "{length}");
            assert!(SECP384R1MLKEM1024.start().unwrap().complete(cut).is_err(), "{length}");
        }
    }
}
