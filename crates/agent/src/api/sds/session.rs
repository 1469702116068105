//! What a stream asked for and was sent: versions, nonces, and when an answer is due.
//!
//! Pure: nonces are given to it. A version is the number of updates that were seen since the first
//! response, so that another content never goes by the version of the one before.

use bytes::{BufMut, Bytes};
use prost::encoding::encode_varint;
use proto::raw::Encoded;
use proto::sds::discovery::DiscoveryRequest;

use super::secrets::{Resource, Validation};
use super::select::{Names, validation};
use config::SdsConfig;

/// The state of a stream.
pub(super) struct Session {
    version: u64,
    asked: Option<Asked>,
    sent: Option<Sent>,
    /// The last request that counted has no answer yet.
    is_due: bool,
    /// How the Envoy is told whom to trust, by what it last said of itself.
    how: Validation,
}

/// The last request that counted.
struct Asked {
    names: Names,
    /// How many names there were, with those that are none.
    count: usize,
    kind: String,
}

/// The last response.
struct Sent {
    version: String,
    nonce: String,
    resources: Vec<Resource>,
}

/// What a request turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It asks for something: an answer is due.
    News,
    /// It takes the last response.
    Accepted,
    /// It does not take the last response, and stays with what it had.
    Rejected,
    /// The same, and it asks for something else.
    RejectedWithNews,
    /// It was sent before the last response came: what it says is out of date.
    Stale,
}

impl Session {
    /// Of a stream that has said nothing yet.
    pub(super) fn new(config: &SdsConfig) -> Self {
        Self { version: 1, asked: None, sent: None, is_due: false, how: validation(config, None) }
    }

    /// A request came.
    pub(super) fn hear(&mut self, config: &SdsConfig, request: DiscoveryRequest) -> Heard {
        if self.sent.as_ref().is_some_and(|sent| sent.nonce != request.response_nonce) {
            return Heard::Stale;
        }
        let is_rejected = self.sent.as_ref().is_some_and(|sent| sent.version != request.version_info);
        if request.node.is_some() {
            self.how = validation(config, request.node.as_ref());
        }
        let count = request.resource_names.len();
        let names = Names::new(request.resource_names);
        let is_news = self.asked.as_ref().is_none_or(|asked| asked.names != names || asked.count != count);
        self.asked = Some(Asked { names, count, kind: request.type_url });
        self.is_due |= is_news;
        match (is_rejected, is_news) {
            (false, false) => Heard::Accepted,
            (false, true) => Heard::News,
            (true, false) => Heard::Rejected,
            (true, true) => Heard::RejectedWithNews,
        }
    }

    /// There is an update.
    pub(super) const fn updated(&mut self) {
        if self.sent.is_some() {
            self.version += 1;
        }
    }

    /// What is asked for, and in which form.
    pub(super) fn asked(&self) -> Option<(&Names, Validation)> {
        self.asked.as_ref().map(|asked| (&asked.names, self.how))
    }

    /// The nonce and the version that the next request should name.
    pub(super) fn expected(&self) -> Option<(&str, &str)> {
        self.sent.as_ref().map(|sent| (sent.nonce.as_str(), sent.version.as_str()))
    }

    /// The response with these secrets, unless it would say what the last one said.
    pub(super) fn respond(
        &mut self,
        resources: Vec<Resource>,
        nonce: impl FnOnce() -> String,
    ) -> Option<Encoded> {
        let is_same = self.sent.as_ref().is_some_and(|sent| sent.resources == resources);
        if is_same && !self.is_due {
            return None;
        }
        let kind = self.asked.as_ref().map_or("", |asked| asked.kind.as_str());
        let (version, nonce) = (self.version.to_string(), nonce());
        let encoded = response(&version, &resources, kind, &nonce);
        self.sent = Some(Sent { version, nonce, resources });
        self.is_due = false;
        Some(encoded)
    }
}

/// A `DiscoveryResponse`. Its secrets are those of other responses too, and are not copied.
pub(super) fn response(version: &str, resources: &[Resource], kind: &str, nonce: &str) -> Encoded {
    let mut tail = Vec::new();
    put_text(&mut tail, 4, kind);
    put_text(&mut tail, 5, nonce);
    let mut head = Vec::new();
    put_text(&mut head, 1, version);
    let resources = resources.iter().flat_map(|resource| [resource.head(), resource.content.clone()]);
    let pieces = [Bytes::from(head)].into_iter().chain(resources).chain([Bytes::from(tail)]);
    Encoded::uncopied(pieces.filter(|piece| !piece.is_empty()))
}

/// Writes a field, unless it is empty.
fn put_text(buffer: &mut Vec<u8>, number: u8, text: &str) {
    if !text.is_empty() {
        buffer.put_u8(number << 3 | 2);
        encode_varint(text.len() as u64, buffer);
        buffer.put_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests;
