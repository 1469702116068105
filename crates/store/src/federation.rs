//! Federation relationships: where the bundle of a foreign trust domain is fetched from.

use std::sync::Arc;

use proto::convert::federation::EndpointProfile;
use spiffe::{Bundle, SpiffeId, TrustDomain};

use crate::bundles;
use crate::dialect::{Conn, Row, Tx, Value, int, text, values};
use crate::list::token;
use crate::{Change, Committed, Page, Store, StoreError};

/// A relationship, with the bundle that is stored for its trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationRelationship {
    /// With whom.
    pub trust_domain: TrustDomain,
    /// Where.
    pub bundle_endpoint_url: String,
    /// How.
    pub profile: EndpointProfile,
    /// In a write: stored too, if given. In a read: what is stored.
    pub bundle: Option<Arc<Bundle>>,
}

/// Which fields an update writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each names the field it selects")]
pub struct FederationMask {
    pub bundle_endpoint_url: bool,
    pub profile: bool,
    pub bundle: bool,
}

impl FederationMask {
    /// Every field.
    pub const ALL: Self = Self { bundle_endpoint_url: true, profile: true, bundle: true };
}

/// A page of relationships.
#[derive(Clone, Debug, Default)]
pub struct FederationRelationshipPage {
    /// In order of their rows.
    pub relationships: Vec<FederationRelationship>,
    /// Where the next page starts; empty when this one is.
    pub next_token: String,
}

impl Store {
    /// Creates a relationship, and sets the bundle if one comes with it.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub async fn create_federation_relationship(
        &self,
        relationship: FederationRelationship,
    ) -> Result<Committed<FederationRelationship>, StoreError> {
        self.write(move |tx| create(tx, &relationship)).await
    }

    /// Writes the masked fields.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn update_federation_relationship(
        &self,
        relationship: FederationRelationship,
        mask: FederationMask,
    ) -> Result<Committed<FederationRelationship>, StoreError> {
        self.write(move |tx| update(tx, &relationship, mask)).await
    }

    /// Deletes a relationship; the bundle stays.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_federation_relationship(
        &self,
        trust_domain: TrustDomain,
    ) -> Result<Committed<()>, StoreError> {
        self.write(move |tx| {
            let sql = "DELETE FROM federated_trust_domains WHERE trust_domain = ?1";
            if tx.conn.execute(sql, values![trust_domain.as_str()])? == 0 {
                return Err(StoreError::not_found());
            }
            tx.changed(Change::FederationDeleted(trust_domain.clone()));
            Ok(())
        })
        .await
    }

    /// One relationship.
    ///
    /// # Errors
    /// If the database fails or the row cannot be understood.
    pub async fn fetch_federation_relationship(
        &self,
        trust_domain: TrustDomain,
    ) -> Result<Option<FederationRelationship>, StoreError> {
        self.read(move |conn| fetch(conn, &trust_domain)).await
    }

    /// Lists relationships, a page or all.
    ///
    /// # Errors
    /// `InvalidArgument` for an unusable page.
    pub async fn list_federation_relationships(
        &self,
        page: Option<Page>,
    ) -> Result<FederationRelationshipPage, StoreError> {
        self.read(move |conn| list(conn, page.as_ref())).await
    }
}

/// A row as it is stored.
struct Stored {
    id: i64,
    trust_domain: String,
    url: String,
    profile: String,
    endpoint_id: String,
}

fn create(
    tx: &mut Tx<'_>,
    relationship: &FederationRelationship,
) -> Result<FederationRelationship, StoreError> {
    if let Some(bundle) = &relationship.bundle {
        bundles::set(tx, bundle)?;
    }
    let (profile, endpoint_id) = columns(&relationship.profile);
    tx.conn.insert(
        "INSERT INTO federated_trust_domains (created_at, updated_at, trust_domain, \
         bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id, implicit) \
         VALUES (?1, ?1, ?2, ?3, ?4, ?5, false)",
        values![
            tx.now,
            relationship.trust_domain.as_str(),
            &relationship.bundle_endpoint_url,
            profile,
            endpoint_id.unwrap_or_default(),
        ],
    )?;
    tx.changed(Change::FederationSet(relationship.clone().into()));
    Ok(relationship.clone())
}

fn update(
    tx: &mut Tx<'_>,
    relationship: &FederationRelationship,
    mask: FederationMask,
) -> Result<FederationRelationship, StoreError> {
    let name = relationship.trust_domain.as_str();
    let sql = "SELECT 1 FROM federated_trust_domains WHERE trust_domain = ?1";
    if tx.conn.first_locked(sql, values![name], |_| Ok(()))?.is_none() {
        return Err(StoreError::NotFound(
            "unable to fetch federation relationship: record not found".to_owned(),
        ));
    }
    let (profile, endpoint_id) = columns(&relationship.profile);
    let mut set = vec!["updated_at = ?"];
    let mut values = vec![Value::from(tx.now)];
    if mask.bundle_endpoint_url {
        set.push("bundle_endpoint_url = ?");
        values.push((&relationship.bundle_endpoint_url).into());
    }
    if mask.profile {
        set.push("bundle_endpoint_profile = ?");
        values.push(profile.into());
        // A switch to `https_web` leaves the old id where it was, as SPIRE does.
        if let Some(endpoint_id) = endpoint_id {
            set.push("endpoint_spiffe_id = ?");
            values.push(endpoint_id.into());
        }
    }
    values.push(name.into());
    let sql = format!("UPDATE federated_trust_domains SET {} WHERE trust_domain = ?", set.join(", "));
    tx.conn.execute(&sql, &values)?;
    if let Some(bundle) = relationship.bundle.as_ref().filter(|_| mask.bundle) {
        bundles::set(tx, bundle)?;
    }
    let now = fetch(tx.conn, &relationship.trust_domain)?.ok_or_else(StoreError::not_found)?;
    tx.changed(Change::FederationSet(now.clone().into()));
    Ok(now)
}

fn fetch(conn: &Conn, trust_domain: &TrustDomain) -> Result<Option<FederationRelationship>, StoreError> {
    let sql = "SELECT id, trust_domain, bundle_endpoint_url, bundle_endpoint_profile, \
               endpoint_spiffe_id FROM federated_trust_domains WHERE trust_domain = ?1";
    let row = conn.first(sql, values![trust_domain.as_str()], read)?;
    row.map(|row| finish(conn, &row)).transpose()
}

fn list(conn: &Conn, page: Option<&Page>) -> Result<FederationRelationshipPage, StoreError> {
    let sql = "SELECT id, trust_domain, bundle_endpoint_url, bundle_endpoint_profile, \
               endpoint_spiffe_id FROM federated_trust_domains WHERE id > ?1 ORDER BY id LIMIT ?2";
    let (after, limit) = match page {
        Some(page) => (page.after()?, i64::from(page.size)),
        None => (i64::MIN, i64::MAX),
    };
    let rows = conn.rows(sql, values![after, limit], read)?;
    let next_token = token(rows.last().map(|row| row.id).filter(|_| page.is_some()));
    let mut relationships = Vec::with_capacity(rows.len());
    for row in &rows {
        match understood(row) {
            Ok((trust_domain, profile)) => {
                // A bundle that is damaged is fetched anew.
                let bundle = bundles::fetch(conn, &trust_domain);
                let is_damaged = matches!(bundle, Err(StoreError::Database(_)));
                let bundle = if is_damaged { None } else { bundle? };
                relationships.push(relationship(row, trust_domain, profile, bundle));
            }
            Err(error) => tracing::warn!(
                row = row.id,
                trust_domain = row.trust_domain,
                %error,
                "federation relationship row skipped"
            ),
        }
    }
    Ok(FederationRelationshipPage { relationships, next_token })
}

fn read(row: &Row<'_>) -> Result<Stored, StoreError> {
    Ok(Stored {
        id: int(row, 0)?,
        trust_domain: text(row, 1)?,
        url: text(row, 2)?,
        profile: text(row, 3)?,
        endpoint_id: text(row, 4)?,
    })
}

fn finish(conn: &Conn, row: &Stored) -> Result<FederationRelationship, StoreError> {
    let (trust_domain, profile) = understood(row)?;
    let bundle = bundles::fetch(conn, &trust_domain)?;
    Ok(relationship(row, trust_domain, profile, bundle))
}

fn relationship(
    row: &Stored,
    trust_domain: TrustDomain,
    profile: EndpointProfile,
    bundle: Option<Bundle>,
) -> FederationRelationship {
    let bundle = bundle.map(Arc::new);
    FederationRelationship { trust_domain, bundle_endpoint_url: row.url.clone(), profile, bundle }
}

/// What a row says by itself.
fn understood(row: &Stored) -> Result<(TrustDomain, EndpointProfile), StoreError> {
    let trust_domain =
        TrustDomain::parse(&row.trust_domain).map_err(|error| StoreError::sql(&error.to_string()))?;
    let profile = match row.profile.as_str() {
        "https_web" => EndpointProfile::HttpsWeb,
        "https_spiffe" => {
            EndpointProfile::HttpsSpiffe(SpiffeId::parse(&row.endpoint_id).map_err(|error| {
                StoreError::Database(format!("unable to parse bundle endpoint SPIFFE ID: {error}"))
            })?)
        }
        other => {
            return Err(StoreError::Database(format!("unknown bundle endpoint profile type: {other:?}")));
        }
    };
    Ok((trust_domain, profile))
}

fn columns(profile: &EndpointProfile) -> (&'static str, Option<&str>) {
    match profile {
        EndpointProfile::HttpsWeb => ("https_web", None),
        EndpointProfile::HttpsSpiffe(endpoint_id) => ("https_spiffe", Some(endpoint_id.as_str())),
    }
}
