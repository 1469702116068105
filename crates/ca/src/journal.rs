//! The CA journal: the last authorities of each family, in the form that SPIRE stores.
//!
//! One row per server holds it, so that a server that starts again, be it SPIRE's or this one, finds
//! its authorities by their key ids. It holds no secret. The row itself is the store's.

use bytes::Bytes;
use prost::Message;
use proto::spire::journal as wire;
use spiffe::UnixSecs;

use crate::slots::{Facts, Family, SlotName, Status};

/// How many entries of a family are kept.
const KEPT: usize = 10;

/// How long an authority that was withdrawn is remembered after its end, in seconds: bundles keep what
/// has ended for a while, and who verifies tokens does not ask when an authority ends.
const REMEMBERED: i64 = 7 * 24 * 3600;

/// The journal of one server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Journal {
    entries: wire::Entries,
}

/// An X.509 authority in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Entry {
    /// The slot whose key it has.
    pub slot: SlotName,
    /// What is known of it.
    pub facts: Facts,
    /// Where it is in its life.
    pub status: Status,
    /// The CA certificate, DER.
    pub certificate: Bytes,
    /// For one signed upstream: itself and the certificates up to the upstream root, DER.
    pub upstream_chain: Vec<Bytes>,
}

/// A JWT or WIT authority in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// The slot whose key it has.
    pub slot: SlotName,
    /// What is known of it; the id is the key id.
    pub facts: Facts,
    /// Where it is in its life.
    pub status: Status,
    /// The public key, DER `SubjectPublicKeyInfo`.
    pub public_key: Bytes,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The row is damaged.
    #[error("cannot decode the CA journal")]
    Malformed(#[from] prost::DecodeError),
    /// The authority is not in the journal.
    #[error("no journal entry found with authority ID {0:?}")]
    Unknown(String),
}

impl Journal {
    /// Reads the stored form.
    ///
    /// # Errors
    /// [`JournalError::Malformed`].
    pub fn decode(stored: &[u8]) -> Result<Self, JournalError> {
        Ok(Self { entries: wire::Entries::decode(stored)? })
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.entries.encode_to_vec()
    }

    /// The X.509 authorities from the oldest to the newest. What no slot can hold is left out, but
    /// stays in the journal.
    pub fn x509(&self) -> impl DoubleEndedIterator<Item = X509Entry> {
        self.entries.x509_c_as.iter().filter_map(|entry| {
            Some(X509Entry {
                slot: SlotName::parse(&entry.slot_id)?,
                facts: Facts {
                    id: entry.authority_id.clone(),
                    issued_at: UnixSecs(entry.issued_at),
                    not_after: UnixSecs(entry.not_after),
                    upstream_authority_id: entry.upstream_authority_id.clone(),
                },
                status: status(entry.status),
                certificate: entry.certificate.clone(),
                upstream_chain: entry.upstream_chain.clone(),
            })
        })
    }

    /// The JWT authorities from the oldest to the newest.
    pub fn jwt(&self) -> impl DoubleEndedIterator<Item = KeyEntry> {
        self.entries.jwt_keys.iter().filter_map(|entry| {
            Some(KeyEntry {
                slot: SlotName::parse(&entry.slot_id)?,
                facts: Facts {
                    id: entry.kid.clone(),
                    issued_at: UnixSecs(entry.issued_at),
                    not_after: UnixSecs(entry.not_after),
                    upstream_authority_id: String::new(),
                },
                status: status(entry.status),
                public_key: entry.public_key.clone(),
            })
        })
    }

    /// The WIT authorities from the oldest to the newest.
    pub fn wit(&self) -> impl DoubleEndedIterator<Item = KeyEntry> {
        self.entries.wit_keys.iter().filter_map(|entry| {
            Some(KeyEntry {
                slot: SlotName::parse(&entry.slot_id)?,
                facts: Facts {
                    id: entry.kid.clone(),
                    issued_at: UnixSecs(entry.issued_at),
                    not_after: UnixSecs(entry.not_after),
                    upstream_authority_id: String::new(),
                },
                status: status(entry.status),
                public_key: entry.public_key.clone(),
            })
        })
    }

    /// Adds an X.509 authority; the oldest goes when there are more than ten.
    pub fn append_x509(&mut self, entry: X509Entry) {
        self.entries.x509_c_as.push(wire::X509caEntry {
            slot_id: entry.slot.as_str().to_owned(),
            issued_at: entry.facts.issued_at.0,
            certificate: entry.certificate,
            upstream_chain: entry.upstream_chain,
            status: number(entry.status),
            authority_id: entry.facts.id,
            not_after: entry.facts.not_after.0,
            upstream_authority_id: entry.facts.upstream_authority_id,
        });
        cap(&mut self.entries.x509_c_as);
    }

    /// Adds a JWT authority; the oldest goes when there are more than ten.
    pub fn append_jwt(&mut self, entry: KeyEntry) {
        self.entries.jwt_keys.push(wire::JwtKeyEntry {
            slot_id: entry.slot.as_str().to_owned(),
            issued_at: entry.facts.issued_at.0,
            not_after: entry.facts.not_after.0,
            kid: entry.facts.id.clone(),
            public_key: entry.public_key,
            status: number(entry.status),
            authority_id: entry.facts.id,
        });
        cap(&mut self.entries.jwt_keys);
    }

    /// Adds a WIT authority; the oldest goes when there are more than ten.
    pub fn append_wit(&mut self, entry: KeyEntry) {
        self.entries.wit_keys.push(wire::WitKeyEntry {
            slot_id: entry.slot.as_str().to_owned(),
            issued_at: entry.facts.issued_at.0,
            not_after: entry.facts.not_after.0,
            kid: entry.facts.id.clone(),
            public_key: entry.public_key,
            status: number(entry.status),
            authority_id: entry.facts.id,
        });
        cap(&mut self.entries.wit_keys);
    }

    /// Gives the newest entry of the authority `id` another status.
    ///
    /// # Errors
    /// [`JournalError::Unknown`].
    pub fn set_status(&mut self, family: Family, id: &str, status: Status) -> Result<(), JournalError> {
        let entries = &mut self.entries;
        let place = match family {
            Family::X509 => {
                let found = entries.x509_c_as.iter_mut().rev().find(|entry| entry.authority_id == id);
                found.map(|entry| &mut entry.status)
            }
            Family::Jwt => {
                let found = entries.jwt_keys.iter_mut().rev().find(|entry| entry.authority_id == id);
                found.map(|entry| &mut entry.status)
            }
            Family::Wit => {
                let found = entries.wit_keys.iter_mut().rev().find(|entry| entry.authority_id == id);
                found.map(|entry| &mut entry.status)
            }
        };
        *place.ok_or_else(|| JournalError::Unknown(id.to_owned()))? = number(status);
        Ok(())
    }

    /// Notes that this JWT authority was revoked here, and does not come back from servers above.
    pub fn withdraw_jwt(&mut self, id: String, not_after: UnixSecs, now: UnixSecs) {
        let withdrawn = &mut self.entries.withdrawn_jwt_keys;
        // 0 is no end.
        withdrawn.retain(|key| {
            key.kid != id && (key.not_after == 0 || key.not_after.saturating_add(REMEMBERED) > now.0)
        });
        withdrawn.push(wire::WithdrawnKey { kid: id, not_after: not_after.0 });
    }

    /// The ids of the JWT authorities that were revoked here.
    pub fn withdrawn_jwt(&self) -> impl Iterator<Item = &str> {
        self.entries.withdrawn_jwt_keys.iter().map(|key| key.kid.as_str())
    }

    /// The id of the X.509 authority that signs, which the row is found by.
    #[must_use]
    pub fn active_x509(&self) -> Option<&str> {
        let active = number(Status::Active);
        let found = self.entries.x509_c_as.iter().rev().find(|entry| entry.status == active);
        found.map(|entry| entry.authority_id.as_str())
    }

    /// When the last of the authorities ends: long after that the row can go.
    #[must_use]
    pub fn ends(&self) -> Option<UnixSecs> {
        let x509 = self.entries.x509_c_as.iter().map(|entry| entry.not_after);
        let jwt = self.entries.jwt_keys.iter().map(|entry| entry.not_after);
        let wit = self.entries.wit_keys.iter().map(|entry| entry.not_after);
        x509.chain(jwt).chain(wit).max().map(UnixSecs)
    }

    /// How many entries there are of each family: X.509, JWT, WIT.
    #[must_use]
    pub const fn counts(&self) -> (usize, usize, usize) {
        (self.entries.x509_c_as.len(), self.entries.jwt_keys.len(), self.entries.wit_keys.len())
    }
}

fn cap<T>(entries: &mut Vec<T>) {
    let excess = entries.len().saturating_sub(KEPT);
    entries.drain(..excess);
}

/// What is neither prepared nor active must not sign again.
fn status(number: i32) -> Status {
    match wire::Status::try_from(number) {
        Ok(wire::Status::Prepared) => Status::Prepared,
        Ok(wire::Status::Active) => Status::Active,
        Ok(wire::Status::Old | wire::Status::Unknown) | Err(_) => Status::Old,
    }
}

const fn number(status: Status) -> i32 {
    match status {
        Status::Prepared => wire::Status::Prepared as i32,
        Status::Active => wire::Status::Active as i32,
        Status::Old => wire::Status::Old as i32,
    }
}
