//! `spire.api.server.svid.v1.SVID`: minting and signing.
//!
//! What agents ask for is signed from the snapshot: the entry says what goes into the SVID, the request
//! only brings the key. Nothing is read from the datastore and nothing is written to it.

mod wit;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use ca::issue::{JwtRequest, X509Request, X509Svid};
use proto::convert::id;
use proto::spire::server::svid as wire;
use proto::spire::types;
use spiffe::dns::covered_by_wildcard;
use spiffe::x509::{Csr, CsrError};
use spiffe::{DnsName, Entry, EntryId, SpiffeId};
use tonic::{Request, Response, Status};

use super::status::{self, failed_because, invalid, limited};
use crate::caller::Caller;
use crate::context::Context;

/// After so many signatures of a batch others get their turn.
const IN_ONE_GO: usize = 16;

/// The service.
pub(crate) struct Svids(Arc<Context>);

impl Svids {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// The entries of these ids that the caller is authorised for. Awaits the changes of other
    /// servers: what was deleted anywhere is not signed here, and nothing for who was banned anywhere.
    async fn authorised<'a>(
        &self,
        caller: &Caller,
        ids: impl Iterator<Item = &'a str>,
    ) -> Result<HashMap<EntryId, Arc<Entry>>, Status> {
        self.0.confirm(caller).await?;
        let ids: Vec<EntryId> = ids.map(EntryId::new).collect();
        let entries = self.0.graph.load().pick(caller.id()?, &ids);
        Ok(entries.into_iter().map(|entry| (entry.id.clone(), entry)).collect())
    }

    async fn sign_x509(&self, request: X509Request) -> Result<types::X509svid, Status> {
        let svid = self.signed(request, "failed to sign X509-SVID").await?;
        Ok(types::X509svid {
            cert_chain: chain(&svid),
            id: Some((&svid.id).into()),
            expires_at: svid.not_after.0,
            hint: String::new(),
        })
    }

    async fn signed(&self, request: X509Request, what: &str) -> Result<X509Svid, Status> {
        let prepared = self.0.issuer.prepare_x509(request, self.0.now());
        let signed = match prepared {
            Ok(prepared) => prepared.sign().await,
            Err(why) => Err(why),
        };
        signed.map_err(|why| failed_because(what, &why))
    }

    /// Lets a batch of so many signatures in.
    async fn admit_batch(&self, caller: &Caller, count: usize) -> Result<(), Status> {
        if count == 0 {
            return Err(Status::invalid_argument("missing parameters"));
        }
        let admitted = self.0.limits.admit(caller, count).await;
        admitted.map_err(|refusal| {
            limited("rejecting request due to certificate signing rate limiting", &refusal)
        })
    }

    /// One item of a batch.
    async fn new_x509(
        &self,
        params: &wire::NewX509svidParams,
        entries: &HashMap<EntryId, Arc<Entry>>,
    ) -> Result<types::X509svid, Status> {
        if params.entry_id.is_empty() {
            return Err(Status::invalid_argument("missing entry ID"));
        }
        if params.csr.is_empty() {
            return Err(Status::invalid_argument("missing CSR"));
        }
        let entry = entries.get(&EntryId::new(&params.entry_id)).ok_or_else(not_authorised)?;
        let csr = checked_csr(&params.csr, "invalid CSR signature")?;
        self.sign_x509(X509Request::Workload {
            id: entry.spiffe_id.clone(),
            public_key: csr.public_key,
            dns_names: entry.dns_names.to_vec(),
            ttl: i64::from(entry.x509_svid_ttl),
            subject: None,
        })
        .await
    }

    async fn sign_jwt(&self, request: JwtRequest) -> Result<types::Jwtsvid, Status> {
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("at least one audience is required"));
        }
        let prepared = self.0.issuer.prepare_jwt(&request, self.0.now());
        let signed = match prepared {
            Ok(prepared) => prepared.sign().await,
            Err(why) => Err(why),
        };
        let svid = signed.map_err(|why| failed_because("failed to sign JWT-SVID", &why))?;
        Ok(types::Jwtsvid {
            token: svid.token,
            id: Some((&svid.id).into()),
            expires_at: svid.expires_at.0,
            issued_at: svid.issued_at.0,
            hint: String::new(),
        })
    }

    fn check_jwt_enabled(&self) -> Result<(), Status> {
        if self.0.config.disable_jwt_svids {
            return Err(Status::unimplemented("JWT functionality is disabled"));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl wire::svid_server::Svid for Svids {
    async fn mint_x509svid(
        &self,
        request: Request<wire::MintX509svidRequest>,
    ) -> Result<Response<wire::MintX509svidResponse>, Status> {
        let wire::MintX509svidRequest { csr, ttl } = request.into_inner();
        if csr.is_empty() {
            return Err(Status::invalid_argument("missing CSR"));
        }
        let csr = checked_csr(&csr, "failed to verify CSR signature")?;
        let id = match csr.uris.as_slice() {
            [] => return Err(Status::invalid_argument("CSR URI SAN is required")),
            [uri] => parsed_uri(uri),
            _ => return Err(Status::invalid_argument("only one URI SAN is expected")),
        };
        let id = id.and_then(|id| id::workload_of(self.0.trust_domain(), id));
        let id = id.map_err(|why| invalid("CSR URI SAN is invalid", why))?;
        for name in &csr.dns_names {
            DnsName::parse(name).map_err(|why| invalid("CSR DNS name is invalid", why))?;
        }
        let names: Vec<&str> = csr.dns_names.iter().map(String::as_str).collect();
        if let Some(name) = covered_by_wildcard(&names) {
            return Err(invalid(
                "CSR DNS name contains a wildcard that covers another non-wildcard name",
                format_args!(
                    "name {name:?} overlaps with an existing wildcard name in the list: wildcard overlap"
                ),
            ));
        }
        let svid = self
            .sign_x509(X509Request::Workload {
                id,
                public_key: csr.public_key,
                dns_names: csr.dns_names,
                ttl: checked_ttl(ttl)?,
                subject: Some(csr.subject),
            })
            .await?;
        Ok(Response::new(wire::MintX509svidResponse { svid: Some(svid) }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<wire::MintJwtsvidRequest>,
    ) -> Result<Response<wire::MintJwtsvidResponse>, Status> {
        self.check_jwt_enabled()?;
        let wire::MintJwtsvidRequest { id, audience, ttl } = request.into_inner();
        let id = id::workload(self.0.trust_domain(), id.as_ref()).and_then(id::issuable);
        let id = id.map_err(|why| invalid("invalid SPIFFE ID", why))?;
        let ttl = checked_ttl(ttl)?;
        let svid = self.sign_jwt(JwtRequest { id, audience, ttl, jti: false }).await?;
        Ok(Response::new(wire::MintJwtsvidResponse { svid: Some(svid) }))
    }

    async fn mint_witsvid(
        &self,
        request: Request<wire::MintWitsvidRequest>,
    ) -> Result<Response<wire::MintWitsvidResponse>, Status> {
        if !self.0.config.experimental.wit_svid {
            return Err(Status::unimplemented("WIT functionality is disabled"));
        }
        let svid = self.mint_wit(request.into_inner()).await?;
        Ok(Response::new(wire::MintWitsvidResponse { svid: Some(svid) }))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<wire::BatchNewX509svidRequest>,
    ) -> Result<Response<wire::BatchNewX509svidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let params = request.into_inner().params;
        self.admit_batch(&caller, params.len()).await?;
        let entries = self.authorised(&caller, params.iter().map(|params| params.entry_id.as_str())).await?;

        let mut results = Vec::with_capacity(params.len());
        for (done, params) in params.iter().enumerate() {
            yield_after(done).await;
            let (status, svid) = status::item(self.new_x509(params, &entries).await);
            results.push(wire::batch_new_x509svid_response::Result { status, svid });
        }
        Ok(Response::new(wire::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<wire::NewJwtsvidRequest>,
    ) -> Result<Response<wire::NewJwtsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let wire::NewJwtsvidRequest { entry_id, audience } = request.into_inner();
        let admitted = self.0.limits.admit(&caller, 1).await;
        admitted.map_err(|refusal| {
            limited("rejecting request due to JWT signing request rate limiting", &refusal)
        })?;
        self.check_jwt_enabled()?;
        let mut entries = self.authorised(&caller, std::iter::once(entry_id.as_str())).await?;
        let entry = entries.remove(&EntryId::new(&entry_id)).ok_or_else(not_authorised)?;

        let id = id::workload_of(self.0.trust_domain(), entry.spiffe_id.clone());
        let request = JwtRequest {
            id: id.map_err(|why| invalid("invalid SPIFFE ID", why))?,
            audience,
            ttl: i64::from(entry.jwt_svid_ttl),
            jti: entry.additional_attributes.is_some_and(|set| set.jwt_svid_include_jti),
        };
        let svid = self.sign_jwt(request).await?;
        Ok(Response::new(wire::NewJwtsvidResponse { svid: Some(svid) }))
    }

    async fn batch_new_witsvid(
        &self,
        request: Request<wire::BatchNewWitsvidRequest>,
    ) -> Result<Response<wire::BatchNewWitsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let params = request.into_inner().params;
        self.admit_batch(&caller, params.len()).await?;
        let entries = self.authorised(&caller, params.iter().map(|params| params.entry_id.as_str())).await?;

        let mut results = Vec::with_capacity(params.len());
        for (done, params) in params.iter().enumerate() {
            yield_after(done).await;
            let entry = entries.get(&EntryId::new(&params.entry_id)).map(Arc::as_ref);
            // Items that went well have no status, in SPIRE as here.
            let (status, svid) = status::item(self.new_wit(params, entry).await);
            let status = status.filter(|_| svid.is_none());
            results.push(wire::batch_new_witsvid_response::Result { status, svid });
        }
        Ok(Response::new(wire::BatchNewWitsvidResponse { results }))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<wire::NewDownstreamX509caRequest>,
    ) -> Result<Response<wire::NewDownstreamX509caResponse>, Status> {
        let caller = Caller::of(&request)?;
        let wire::NewDownstreamX509caRequest { csr, preferred_ttl } = request.into_inner();
        let admitted = self.0.limits.admit(&caller, 1).await;
        admitted.map_err(|refusal| {
            limited("rejecting request due to downstream CA signing rate limit", &refusal)
        })?;
        let csr = checked_csr(&csr, "invalid CSR signature")?;
        // Only the key counts: what the request says of names and extensions is not looked at.
        let request =
            X509Request::DownstreamCa { public_key: csr.public_key, ttl: checked_ttl(preferred_ttl)? };
        self.0.confirm(&caller).await?;
        let authority = self.signed(request, "failed to sign downstream X.509 CA").await?;
        let own = self.0.own_bundle().ok_or_else(|| Status::not_found("bundle not found"))?;
        Ok(Response::new(wire::NewDownstreamX509caResponse {
            ca_cert_chain: chain(&authority),
            x509_authorities: own
                .bundle
                .x509_authorities
                .iter()
                .map(|authority| Bytes::copy_from_slice(&authority.der))
                .collect(),
        }))
    }
}

/// The same whether there is no such entry or it is another agent's.
fn not_authorised() -> Status {
    Status::not_found("entry not found or not authorized")
}

/// A request whose owner holds the key.
fn checked_csr(der: &[u8], if_badly_signed: &str) -> Result<Csr, Status> {
    Csr::verify(der).map_err(|why| match why {
        CsrError::Malformed | CsrError::TooLong | CsrError::WeakKey => invalid("malformed CSR", why),
        CsrError::BadSignature => invalid(if_badly_signed, why),
    })
}

/// SPIRE reads URIs by Go's rules before it reads SPIFFE IDs: there a scheme is a scheme in any letter
/// case. The certificate gets it in lower case.
fn parsed_uri(uri: &str) -> Result<SpiffeId, id::RequestIdError> {
    let lower = match uri.split_once(':') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("spiffe") => format!("spiffe:{rest}"),
        _ => uri.to_owned(),
    };
    Ok(SpiffeId::parse(&lower)?)
}

/// The lifetime asked for; 0 is the default. SPIRE takes negative ones for the default too.
fn checked_ttl(ttl: i32) -> Result<i64, Status> {
    if ttl < 0 {
        return Err(invalid("invalid TTL", format_args!("{ttl} is negative")));
    }
    Ok(i64::from(ttl))
}

fn chain(svid: &X509Svid) -> Vec<Bytes> {
    svid.chain.iter().map(|der| Bytes::copy_from_slice(der.as_bytes())).collect()
}

/// Gives others their turn, now and then.
async fn yield_after(done: usize) {
    if done % IN_ONE_GO == IN_ONE_GO - 1 {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_a_scheme_in_any_letter_case() {
        assert_eq!(parsed_uri("SPIFFE://td/a").unwrap().as_str(), "spiffe://td/a");
        assert!(parsed_uri("SPIFFE://TD/a").is_err());
        assert!(parsed_uri("https://td/a").is_err());
        assert!(parsed_uri("/a").is_err());
    }

    #[test]
    fn a_negative_lifetime_is_refused() {
        assert_eq!(checked_ttl(0).unwrap(), 0);
        assert_eq!(checked_ttl(-1).unwrap_err().message(), "invalid TTL: -1 is negative");
    }
}
