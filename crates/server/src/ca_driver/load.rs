//! Finding out, at start, which authorities this server has: its journal is the one that names one of
//! its keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use ca::authority::{ActiveAuthorities, AuthorityError, TokenSigner, Unusable, X509Signer};
use ca::journal::{Journal, KeyEntry, X509Entry};
use ca::slots::{Facts, Family, Held, SlotName, Slots, Status};
use plugin::{Key, KeyId};
use runtime::snapshot::Publisher;
use spiffe::{Bundle, UnixSecs};
use store::CaJournal;

use super::record::Record;
use super::upstream::Upstream;
use super::{Driver, DriverError, Parts, Tokens};

type Keys = BTreeMap<KeyId, Arc<dyn Key>>;
type Restored<M> = Result<Vec<(SlotName, Held<Arc<M>>)>, DriverError>;

impl Driver {
    /// Loads what there is; nothing is made yet.
    ///
    /// # Errors
    /// If keys or journal cannot be read, or the journal holds what can be no authority: then it is
    /// damaged, and a new authority in its place would go unnoticed.
    pub(crate) async fn load(parts: Parts) -> Result<Self, DriverError> {
        let keys: Keys = parts.keys.keys().await?.into_iter().map(|key| (key.id().clone(), key)).collect();
        let record = find(&parts, &keys).await?;
        let trust_domain = parts.profile.trust_domain.clone();
        let stored = parts.store.fetch_bundle(trust_domain.clone()).await?;
        let bundle = stored.map_or_else(|| Bundle::empty(trust_domain), |bundle| (*bundle).clone());
        let (x509_cas, jwt_keys, wit_keys) = record.journal.counts();
        tracing::info!(subsystem_name = "ca_manager", jwt_keys, wit_keys, x509_cas, "Journal loaded");

        let now = UnixSecs::from(parts.clock.now());
        // What is signed above stands in no bundle; its roots do.
        let trusted = parts.upstream.is_none().then_some(&bundle);
        let x509 = Slots::restore(x509_entries(&record.journal, trusted, &keys, now)?.into_iter());
        let tokens = |family, name, kind: Option<_>| {
            let Some(kind) = kind else { return Ok(None) };
            let entries = token_entries(family, &record.journal, &bundle, &keys, now)?;
            Ok::<_, DriverError>(Some(Tokens {
                family,
                name,
                kind,
                slots: Slots::restore(entries.into_iter()),
            }))
        };
        let jwt = tokens(Family::Jwt, "JWT key", parts.kinds.jwt)?;
        let wit = tokens(Family::Wit, "WIT key", parts.kinds.wit)?;

        let active = Publisher::new(ActiveAuthorities::default());
        parts.check.started();
        let upstream = parts.upstream.clone().map(Upstream::new);
        let driver = Self { parts, x509, jwt, wit, record, upstream, active, served: None };
        driver.publish_active();
        driver.show_active_x509();
        for tokens in [&driver.jwt, &driver.wit].into_iter().flatten() {
            tokens.show_active(&driver.parts.meters);
        }
        Ok(driver)
    }
}

/// The stored journal that names one of the keys as its active X.509 authority.
async fn find(parts: &Parts, keys: &Keys) -> Result<Record, DriverError> {
    for key in keys.values() {
        let id: String = key.public().key_id().iter().map(|byte| format!("{byte:02x}")).collect();
        let Some(CaJournal { id: row, data, active_x509_authority_id }) =
            parts.store.fetch_ca_journal(id).await?
        else {
            continue;
        };
        tracing::debug!(
            subsystem_name = "ca_manager",
            ca_journal_id = row,
            local_authority_id = active_x509_authority_id,
            "Found a CA journal record that matches with a local X509 authority ID"
        );
        return Ok(Record { journal: Journal::decode(&data)?, row, needs_saving: false });
    }
    tracing::info!(
        subsystem_name = "ca_manager",
        "There is not a CA journal record that matches any of the local X509 authority IDs"
    );
    if !parts.store.list_ca_journals().await?.is_empty() {
        tracing::warn!(
            subsystem_name = "ca_manager",
            "The key manager holds the key of no authority in the datastore: new authorities are made and \
             added to the trust bundle"
        );
    }
    Ok(Record::default())
}

/// The X.509 authorities that can be used; only those in `bundle`, if one is given.
fn x509_entries(
    journal: &Journal,
    bundle: Option<&Bundle>,
    keys: &Keys,
    now: UnixSecs,
) -> Restored<X509Signer> {
    let in_bundle = |entry: &X509Entry| {
        bundle.is_none_or(|bundle| {
            bundle.x509_authorities.iter().any(|authority| *authority.der == *entry.certificate)
        })
    };
    let entries = newest_of_each_slot(journal.x509().filter(in_bundle), |entry| entry.slot);
    let mut restored = Vec::new();
    for entry in entries {
        let key = keys.get(&KeyId::new(Family::X509.key_id(entry.slot))).cloned();
        let signer = entry.signer(key, now);
        let X509Entry { slot, facts, status, .. } = entry;
        if let Some(held) = held(signer.map(Arc::new), "X509CA", slot, facts, status)? {
            restored.push((slot, held));
        }
    }
    Ok(restored)
}

fn token_entries(
    family: Family,
    journal: &Journal,
    bundle: &Bundle,
    keys: &Keys,
    now: UnixSecs,
) -> Restored<TokenSigner> {
    let (entries, authorities, name): (Vec<KeyEntry>, _, _) = match family {
        Family::X509 => return Ok(Vec::new()),
        Family::Jwt => (journal.jwt().collect(), &bundle.jwt_authorities, "JWT key"),
        Family::Wit => (journal.wit().collect(), &bundle.wit_authorities, "WIT key"),
    };
    let in_bundle = |entry: &KeyEntry| authorities.iter().any(|authority| authority.key_id == entry.facts.id);
    let entries = newest_of_each_slot(entries.into_iter().filter(in_bundle), |entry| entry.slot);
    let mut restored = Vec::new();
    for entry in entries {
        let key = keys.get(&KeyId::new(family.key_id(entry.slot))).cloned();
        let signer = entry.signer(key, now);
        let KeyEntry { slot, facts, status, .. } = entry;
        if let Some(held) = held(signer.map(Arc::new), name, slot, facts, status)? {
            restored.push((slot, held));
        }
    }
    Ok(restored)
}

/// The newest entry of either slot, the older first: the keys of those before were replaced.
fn newest_of_each_slot<T>(
    entries: impl DoubleEndedIterator<Item = T>,
    slot: impl Fn(&T) -> SlotName,
) -> Vec<T> {
    let mut newest: Vec<T> = Vec::new();
    for entry in entries.rev() {
        if newest.iter().all(|held| slot(held) != slot(&entry)) {
            newest.push(entry);
        }
    }
    newest.reverse();
    newest
}

/// What a slot holds by an entry of the journal; nothing if that cannot be used any more.
fn held<M>(
    signer: Result<M, Unusable>,
    name: &str,
    slot: SlotName,
    facts: Facts,
    status: Status,
) -> Result<Option<Held<M>>, DriverError> {
    match signer {
        Ok(signer) => Ok(Some(match status {
            Status::Prepared => Held::Prepared(facts, signer),
            Status::Active => Held::Active(facts, signer),
            Status::Old => Held::Old(facts),
        })),
        Err(Unusable::Authority(source)) => Err(damaged(facts, source)),
        Err(reason @ (Unusable::Expired | Unusable::NoKey | Unusable::KeyMismatch)) => {
            tracing::warn!(
                subsystem_name = "ca_manager",
                slot = slot.as_str(),
                local_authority_id = facts.id,
                error = %reason,
                "{name} slot unusable"
            );
            Ok(None)
        }
    }
}

fn damaged(facts: Facts, source: AuthorityError) -> DriverError {
    DriverError::Authority { id: facts.id, source }
}
