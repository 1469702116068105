//! Bundles: one row per trust domain, its authorities in SPIRE's protobuf.

use std::sync::Arc;

use prost::Message;
use proto::spire::common;
use spiffe::bundle::JwtAuthorityError;
use spiffe::{Bundle, JwtAuthority, TrustDomain, UnixSecs, X509Authority};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use crate::dialect::{Conn, Row, Tx, blob, int, text, values};
use crate::list::token;
use crate::{CaJournal, Change, Committed, Page, Store, StoreError, entries, journal};

/// What becomes of entries that federate with a deleted bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteMode {
    /// Such entries forbid the deletion.
    Restrict,
    /// They are deleted too.
    Delete,
    /// They stay, without the federation.
    Dissociate,
}

/// Which fields an update writes.
#[expect(clippy::struct_excessive_bools, reason = "a mask is a set of flags")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each names the field it selects")]
pub struct BundleMask {
    pub x509_authorities: bool,
    pub jwt_authorities: bool,
    pub wit_authorities: bool,
    pub refresh_hint: bool,
    pub sequence_number: bool,
}

impl BundleMask {
    /// Every field.
    pub const ALL: Self = Self {
        x509_authorities: true,
        jwt_authorities: true,
        wit_authorities: true,
        refresh_hint: true,
        sequence_number: true,
    };
}

/// A page of bundles.
#[derive(Clone, Debug, Default)]
pub struct BundlePage {
    /// In order of their rows; the server's own is among them.
    pub bundles: Vec<Arc<Bundle>>,
    /// Where the next page starts; empty when this one is.
    pub next_token: String,
}

impl Store {
    /// Creates a bundle.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub async fn create_bundle(&self, bundle: Bundle) -> Result<Committed<()>, StoreError> {
        self.write(move |tx| create(tx, &bundle)).await
    }

    /// Creates a bundle or replaces it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn set_bundle(&self, bundle: Bundle) -> Result<Committed<()>, StoreError> {
        self.write(move |tx| set(tx, &bundle)).await
    }

    /// Adds the authorities that are not there yet, and marks the keys that are there but come as
    /// compromised, raising the sequence number if there are any; creates the bundle if there is none.
    /// The bundle as it is now.
    ///
    /// # Errors
    /// `InvalidArgument` for a key under the id of another one.
    pub async fn append_bundle(&self, bundle: Bundle) -> Result<Committed<Arc<Bundle>>, StoreError> {
        self.write(move |tx| append(tx, &bundle)).await
    }

    /// [`Self::append_bundle`] and [`Self::set_ca_journal`] in one transaction: an authority is never
    /// in use without being known, nor known without its owner.
    ///
    /// # Errors
    /// As those two.
    pub async fn append_bundle_with_journal(
        &self,
        bundle: Bundle,
        journal: CaJournal,
    ) -> Result<Committed<(Arc<Bundle>, CaJournal)>, StoreError> {
        self.write(move |tx| Ok((append(tx, &bundle)?, journal::set(tx, &journal)?))).await
    }

    /// Writes the masked fields. The bundle as it is now.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn update_bundle(
        &self,
        bundle: Bundle,
        mask: BundleMask,
    ) -> Result<Committed<Arc<Bundle>>, StoreError> {
        self.write(move |tx| {
            let mut now = must_fetch(tx, &bundle.trust_domain)?;
            if mask.x509_authorities {
                now.x509_authorities.clone_from(&bundle.x509_authorities);
            }
            if mask.jwt_authorities {
                now.jwt_authorities.clone_from(&bundle.jwt_authorities);
            }
            if mask.wit_authorities {
                now.wit_authorities.clone_from(&bundle.wit_authorities);
            }
            if mask.refresh_hint {
                now.refresh_hint = bundle.refresh_hint;
            }
            if mask.sequence_number {
                now.sequence_number = bundle.sequence_number;
            }
            replace(tx, now)
        })
        .await
    }

    /// Deletes a bundle. Entries that the mode deletes or changes get their event rows.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if entries federate with it and the mode is to restrict.
    pub async fn delete_bundle(
        &self,
        trust_domain: TrustDomain,
        mode: DeleteMode,
    ) -> Result<Committed<()>, StoreError> {
        self.write(move |tx| delete(tx, &trust_domain, mode)).await
    }

    /// One bundle.
    ///
    /// # Errors
    /// If the database fails or the row cannot be understood.
    pub async fn fetch_bundle(&self, trust_domain: TrustDomain) -> Result<Option<Arc<Bundle>>, StoreError> {
        self.read(move |conn| Ok(fetch(conn, &trust_domain)?.map(Arc::new))).await
    }

    /// Lists bundles, a page or all.
    ///
    /// # Errors
    /// `InvalidArgument` for an unusable page.
    pub async fn list_bundles(&self, page: Option<Page>) -> Result<BundlePage, StoreError> {
        self.read(move |conn| list(conn, page.as_ref())).await
    }

    /// Counts the bundles, the server's own included.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn count_bundles(&self) -> Result<i32, StoreError> {
        self.read(|conn| {
            let count = conn.first("SELECT count(*) FROM bundles", values![], |row| int(row, 0))?;
            Ok(i32::try_from(count.unwrap_or(0)).unwrap_or(i32::MAX))
        })
        .await
    }

    /// Removes the authorities that expired at `before` or earlier; whether there were any.
    ///
    /// # Errors
    /// If it would remove the last authority of a kind: nothing is removed then.
    pub async fn prune_bundle(
        &self,
        trust_domain: TrustDomain,
        before: UnixSecs,
    ) -> Result<Committed<bool>, StoreError> {
        self.write(move |tx| prune(tx, &trust_domain, before)).await
    }

    /// Marks an X.509 authority as compromised.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if it is marked.
    pub async fn taint_x509_authority(
        &self,
        trust_domain: TrustDomain,
        subject_key_id: String,
    ) -> Result<Committed<Arc<Bundle>>, StoreError> {
        self.write(move |tx| taint_x509(tx, &trust_domain, &subject_key_id)).await
    }

    /// Removes a compromised X.509 authority.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if it is not marked as compromised.
    pub async fn revoke_x509_authority(
        &self,
        trust_domain: TrustDomain,
        subject_key_id: String,
    ) -> Result<Committed<Arc<Bundle>>, StoreError> {
        self.write(move |tx| revoke_x509(tx, &trust_domain, &subject_key_id)).await
    }

    /// Marks a JWT authority as compromised.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if it is marked.
    pub async fn taint_jwt_authority(
        &self,
        trust_domain: TrustDomain,
        key_id: String,
    ) -> Result<Committed<JwtAuthority>, StoreError> {
        self.write(move |tx| {
            let mut bundle = must_fetch(tx, &trust_domain)?;
            let mut named = bundle.jwt_authorities.iter_mut().filter(|key| key.key_id == key_id);
            let key = named.next().ok_or_else(no_such_jwt_key)?;
            if key.tainted {
                return Err(StoreError::InvalidArgument("key is already tainted".to_owned()));
            }
            key.tainted = true;
            let tainted = key.clone();
            if named.next().is_some() {
                return Err(StoreError::Internal("another JWT Key found with the same KeyID".to_owned()));
            }
            raise(tx, bundle)?;
            Ok(tainted)
        })
        .await
    }

    /// Removes a compromised JWT authority.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if it is not marked as compromised.
    pub async fn revoke_jwt_authority(
        &self,
        trust_domain: TrustDomain,
        key_id: String,
    ) -> Result<Committed<JwtAuthority>, StoreError> {
        self.write(move |tx| revoke_jwt(tx, &trust_domain, &key_id)).await
    }

    /// Removes a compromised JWT authority and stores the journal that says so, both or neither.
    ///
    /// # Errors
    /// As for [`Self::revoke_jwt_authority`] and [`Self::set_ca_journal`].
    pub async fn revoke_jwt_authority_with_journal(
        &self,
        trust_domain: TrustDomain,
        key_id: String,
        journal: CaJournal,
    ) -> Result<Committed<(JwtAuthority, CaJournal)>, StoreError> {
        self.write(move |tx| Ok((revoke_jwt(tx, &trust_domain, &key_id)?, journal::set(tx, &journal)?))).await
    }
}

/// Reads one bundle.
const ONE: &str = "SELECT trust_domain, data FROM bundles WHERE trust_domain = ?1";

/// Creates or replaces a bundle.
pub(crate) fn set(tx: &mut Tx<'_>, bundle: &Bundle) -> Result<(), StoreError> {
    if fetch_locked(tx, &bundle.trust_domain)?.is_none() {
        return create(tx, bundle).map_err(|error| tx.lost_race(error));
    }
    replace(tx, bundle.clone()).map(drop)
}

fn revoke_jwt(tx: &mut Tx<'_>, trust_domain: &TrustDomain, key_id: &str) -> Result<JwtAuthority, StoreError> {
    let mut bundle = must_fetch(tx, trust_domain)?;
    let mut named = bundle.jwt_authorities.iter().filter(|key| key.key_id == key_id);
    let key = named.next().ok_or_else(no_such_jwt_key)?.clone();
    if !key.tainted {
        return Err(StoreError::InvalidArgument("it is not possible to revoke an untainted key".to_owned()));
    }
    if named.next().is_some() {
        return Err(StoreError::Internal("another key found with the same KeyID".to_owned()));
    }
    bundle.jwt_authorities.retain(|other| other.key_id != key_id);
    raise(tx, bundle)?;
    Ok(key)
}

/// The bundle of a trust domain.
pub(crate) fn fetch(conn: &Conn, trust_domain: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
    conn.first(ONE, values![trust_domain.id().as_str()], read)
}

/// [`fetch`] before a change: nobody else may change it meanwhile.
fn fetch_locked(tx: &Tx<'_>, trust_domain: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
    tx.conn.first_locked(ONE, values![trust_domain.id().as_str()], read)
}

fn read(row: &Row<'_>) -> Result<Bundle, StoreError> {
    decode(&text(row, 0)?, &blob(row, 1)?)
}

fn create(tx: &mut Tx<'_>, bundle: &Bundle) -> Result<(), StoreError> {
    tx.conn.insert(
        "INSERT INTO bundles (created_at, updated_at, trust_domain, data) VALUES (?1, ?1, ?2, ?3)",
        values![tx.now, bundle.trust_domain.id().as_str(), encode(bundle)],
    )?;
    tx.changed(Change::BundleSet(bundle.clone().into()));
    Ok(())
}

fn must_fetch(tx: &Tx<'_>, trust_domain: &TrustDomain) -> Result<Bundle, StoreError> {
    fetch_locked(tx, trust_domain)?.ok_or_else(StoreError::not_found)
}

fn replace(tx: &mut Tx<'_>, bundle: Bundle) -> Result<Arc<Bundle>, StoreError> {
    tx.conn.execute(
        "UPDATE bundles SET updated_at = ?1, data = ?2 WHERE trust_domain = ?3",
        values![tx.now, encode(&bundle), bundle.trust_domain.id().as_str()],
    )?;
    let bundle = Arc::new(bundle);
    tx.changed(Change::BundleSet(Arc::clone(&bundle)));
    Ok(bundle)
}

fn raise(tx: &mut Tx<'_>, mut bundle: Bundle) -> Result<Arc<Bundle>, StoreError> {
    bundle.sequence_number = bundle.sequence_number.saturating_add(1);
    replace(tx, bundle)
}

fn append(tx: &mut Tx<'_>, more: &Bundle) -> Result<Arc<Bundle>, StoreError> {
    let Some(mut bundle) = fetch_locked(tx, &more.trust_domain)? else {
        create(tx, more).map_err(|error| tx.lost_race(error))?;
        return Ok(Arc::new(more.clone()));
    };
    let changed = add_missing(&mut bundle.x509_authorities, &more.x509_authorities)
        | add_keys(&mut bundle.jwt_authorities, &more.jwt_authorities)?
        | add_keys(&mut bundle.wit_authorities, &more.wit_authorities)?;
    if changed { raise(tx, bundle) } else { Ok(Arc::new(bundle)) }
}

/// Tokens name keys by their ids: another key under an id that is in use would break either, and the
/// same key a second time could not be told from the first when it is tainted. Judged here, where no
/// other writer can come between.
fn add_keys(all: &mut Vec<JwtAuthority>, more: &[JwtAuthority]) -> Result<bool, StoreError> {
    let mut changed = false;
    for key in more {
        let is_same =
            |known: &&mut JwtAuthority| known.key_id == key.key_id && known.public_key == key.public_key;
        if let Some(known) = all.iter_mut().find(is_same) {
            changed |= key.tainted && !known.tainted;
            known.tainted |= key.tainted;
        } else if all.iter().any(|known| known.key_id == key.key_id) {
            let why = JwtAuthorityError::Ambiguous(key.key_id.clone());
            return Err(StoreError::InvalidArgument(why.to_string()));
        } else {
            all.push(key.clone());
            changed = true;
        }
    }
    Ok(changed)
}

fn add_missing<T: Clone + PartialEq>(all: &mut Vec<T>, more: &[T]) -> bool {
    let before = all.len();
    for item in more {
        // Compared with what was there: a caller's own duplicates are its affair.
        if !all.iter().take(before).any(|known| known == item) {
            all.push(item.clone());
        }
    }
    all.len() > before
}

fn delete(tx: &mut Tx<'_>, trust_domain: &TrustDomain, mode: DeleteMode) -> Result<(), StoreError> {
    let sql = "SELECT id FROM bundles WHERE trust_domain = ?1";
    let id = tx.conn.first_locked(sql, values![trust_domain.id().as_str()], |row| int(row, 0))?;
    let id = id.ok_or_else(StoreError::not_found)?;
    let federated = tx.conn.rows(
        "SELECT e.id, e.entry_id FROM registered_entries e \
         INNER JOIN federated_registration_entries f ON f.registered_entry_id = e.id \
         WHERE f.bundle_id = ?1 ORDER BY e.id",
        values![id],
        |row| Ok((int(row, 0)?, text(row, 1)?)),
    )?;
    if mode == DeleteMode::Restrict && !federated.is_empty() {
        return Err(StoreError::FailedPrecondition(format!(
            "datastore-sql: cannot delete bundle; federated with {} registration entries",
            federated.len()
        )));
    }
    if mode == DeleteMode::Delete {
        for (row_id, entry_id) in &federated {
            entries::delete_row(tx, *row_id, entry_id)?;
        }
    }
    // Join rows of entries that are gone are cleared too: a later bundle must not inherit them.
    tx.conn.execute("DELETE FROM federated_registration_entries WHERE bundle_id = ?1", values![id])?;
    tx.conn.execute("DELETE FROM bundles WHERE id = ?1", values![id])?;
    if mode == DeleteMode::Dissociate {
        // SPIRE tells nobody that these entries changed. An event makes other servers look.
        let row_ids: Vec<i64> = federated.iter().map(|(row_id, _)| *row_id).collect();
        for (_, entry_id) in &federated {
            entries::event(tx, entry_id)?;
        }
        for stored in entries::by_ids(tx.conn, &row_ids, false)?.entries {
            tx.changed(Change::EntrySet { row_id: stored.row_id, entry: stored.entry });
        }
    }
    tx.changed(Change::BundleDeleted(trust_domain.clone()));
    Ok(())
}

fn list(conn: &Conn, page: Option<&Page>) -> Result<BundlePage, StoreError> {
    let (after, limit) = match page {
        Some(page) => (page.after()?, i64::from(page.size)),
        None => (i64::MIN, i64::MAX),
    };
    let sql = "SELECT id, trust_domain, data FROM bundles WHERE id > ?1 ORDER BY id LIMIT ?2";
    let rows = conn.rows(sql, values![after, limit], |row| {
        let (id, trust_domain) = (int(row, 0)?, text(row, 1)?);
        let bundle = decode(&trust_domain, &blob(row, 2)?);
        // One that is damaged is no reason to be without the others. Who asks for it is told.
        let skipped =
            |error: &StoreError| tracing::warn!(row = id, trust_domain, %error, "bundle row skipped");
        Ok((id, bundle.inspect_err(skipped).ok()))
    })?;
    let next_token = token(rows.last().map(|(id, _)| *id).filter(|_| page.is_some()));
    let bundles = rows.into_iter().filter_map(|(_, bundle)| bundle.map(Arc::new)).collect();
    Ok(BundlePage { bundles, next_token })
}

fn prune(tx: &mut Tx<'_>, trust_domain: &TrustDomain, before: UnixSecs) -> Result<bool, StoreError> {
    let Some(old) = fetch_locked(tx, trust_domain)? else { return Ok(false) };
    let mut bundle = old.clone();
    let mut x509_authorities = Vec::new();
    for authority in &old.x509_authorities {
        let expiries = expiries(authority).map_err(|error| {
            StoreError::Database(format!("prune failed: cannot parse certificates: {error}"))
        })?;
        if expiries.iter().all(|not_after| *not_after > before.0) {
            x509_authorities.push(authority.clone());
        }
    }
    bundle.x509_authorities = x509_authorities;
    bundle.jwt_authorities.retain(|key| key.expires_at > before);
    bundle.wit_authorities.retain(|key| key.expires_at > before);
    for (what, had, has) in [
        ("certificates", true, !bundle.x509_authorities.is_empty()),
        ("JWT signing keys", !old.jwt_authorities.is_empty(), !bundle.jwt_authorities.is_empty()),
        ("WIT signing keys", !old.wit_authorities.is_empty(), !bundle.wit_authorities.is_empty()),
    ] {
        if had && !has {
            return Err(StoreError::Database(format!("prune failed: would prune all {what}")));
        }
    }
    if bundle == old {
        return Ok(false);
    }
    raise(tx, bundle)?;
    Ok(true)
}

fn taint_x509(
    tx: &mut Tx<'_>,
    trust_domain: &TrustDomain,
    subject_key_id: &str,
) -> Result<Arc<Bundle>, StoreError> {
    let mut bundle = must_fetch(tx, trust_domain)?;
    let mut found = false;
    for authority in &mut bundle.x509_authorities {
        if subject_key_id_of(authority, "rootCA")? != subject_key_id {
            continue;
        }
        if authority.tainted {
            return Err(StoreError::InvalidArgument("root CA is already tainted".to_owned()));
        }
        authority.tainted = true;
        found = true;
    }
    if !found {
        return Err(StoreError::NotFound("no ca found with provided subject key ID".to_owned()));
    }
    raise(tx, bundle)
}

fn revoke_x509(
    tx: &mut Tx<'_>,
    trust_domain: &TrustDomain,
    subject_key_id: &str,
) -> Result<Arc<Bundle>, StoreError> {
    let mut bundle = must_fetch(tx, trust_domain)?;
    let mut kept = Vec::with_capacity(bundle.x509_authorities.len());
    for authority in &bundle.x509_authorities {
        if subject_key_id_of(authority, "root CA")? != subject_key_id {
            kept.push(authority.clone());
        } else if !authority.tainted {
            return Err(StoreError::InvalidArgument(
                "it is not possible to revoke an untainted root CA".to_owned(),
            ));
        }
    }
    if kept.len() == bundle.x509_authorities.len() {
        return Err(StoreError::NotFound("no root CA found with provided subject key ID".to_owned()));
    }
    bundle.x509_authorities = kept;
    raise(tx, bundle)
}

fn no_such_jwt_key() -> StoreError {
    StoreError::NotFound("no JWT Key found with provided key ID".to_owned())
}

/// The expiries of the certificates in an authority: old rows hold several in one item.
fn expiries(authority: &X509Authority) -> Result<Vec<i64>, String> {
    let mut rest: &[u8] = &authority.der;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (after, certificate) = X509Certificate::from_der(rest).map_err(|error| error.to_string())?;
        all.push(certificate.validity().not_after.timestamp());
        rest = after;
    }
    Ok(all)
}

/// The subject key id of an authority in hexadecimal digits; empty if it has none.
fn subject_key_id_of(authority: &X509Authority, what: &str) -> Result<String, StoreError> {
    let (_, certificate) = X509Certificate::from_der(&authority.der)
        .map_err(|error| StoreError::Internal(format!("failed to parse {what}: {error}")))?;
    let id = certificate.extensions().iter().find_map(|extension| {
        if let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() {
            Some(id.0)
        } else {
            None
        }
    });
    Ok(id.unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn encode(bundle: &Bundle) -> Vec<u8> {
    common::Bundle::from(bundle).encode_to_vec()
}

fn decode(trust_domain: &str, data: &[u8]) -> Result<Bundle, StoreError> {
    let mut wire = common::Bundle::decode(data)
        .map_err(|error| StoreError::sql(&format!("bundle of {trust_domain} is malformed: {error}")))?;
    // The column is the key: a document that names another trust domain is a damaged one, but the
    // row is still this trust domain's.
    trust_domain.clone_into(&mut wire.trust_domain_id);
    Bundle::try_from(&wire)
        .map_err(|error| StoreError::sql(&format!("bundle of {trust_domain} is malformed: {error}")))
}
