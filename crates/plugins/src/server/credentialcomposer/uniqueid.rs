//! `uniqueid`: the subject of a workload's SVID says whose it is, for databases and other programs that
//! know a client by its subject alone. It takes no configuration.

use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use plugin::{BuiltIn, CredentialComposer, Plugin, PluginError, PluginInfo, PluginKind, SvidAttributes};
use spiffe::SpiffeId;
use spiffe::key::PublicKey;
use spiffe::x509::Attribute;

use crate::shared::hex;

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn CredentialComposer> = BuiltIn {
    name: "uniqueid",
    load: |config, _| {
        let info = PluginInfo::new(PluginKind::CredentialComposer, &config.name);
        Box::pin(async move { Ok(Arc::new(UniqueId { info }) as Arc<_>) })
    },
};

struct UniqueId {
    info: PluginInfo,
}

impl Plugin for UniqueId {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl CredentialComposer for UniqueId {
    async fn workload_svid(
        &self,
        id: &SpiffeId,
        _public_key: &PublicKey,
        attributes: SvidAttributes,
    ) -> Result<SvidAttributes, PluginError> {
        let subject = attributes.subject.with(Attribute::UniqueIdentifier, &unique_id(id));
        Ok(SvidAttributes { subject, ..attributes })
    }
}

/// The first half of the digest of the id: what SPIRE takes.
fn unique_id(id: &SpiffeId) -> String {
    let digest = digest(&SHA256, id.as_str().as_bytes());
    let (half, _) = digest.as_ref().split_at(digest.as_ref().len() / 2);
    hex(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_half_a_digest() {
        let id = SpiffeId::parse("spiffe://example.org/foo").unwrap();

        // printf %s spiffe://example.org/foo | sha256sum
        assert_eq!(unique_id(&id), "c3406f9b12ceb4f9c948318c579b905b");
    }
}
