//! A thousand authorities of either family, one after the other, while the clock goes through two years.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use client::ServerClients;
use proto::spire::server::bundle::GetBundleRequest;
use proto::spire::server::localauthority as wire;
use proto::spire::server::svid::{MintJwtsvidRequest, MintX509svidRequest};
use proto::spire::types;
use runtime::clock::{Clock, ManualClock};
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{Certificate, CsrTemplate, Name, verify_svid};
use spiffe::{Bundle, SpiffeId, UnixSecs, jwt};

use crate::support::{HOUR, Place, block, in_time};

const ROUNDS: usize = 1000;
const TICK: Duration = Duration::from_secs(10);

/// Both families as they are now.
struct State {
    x509: wire::GetX509AuthorityStateResponse,
    jwt: wire::GetJwtAuthorityStateResponse,
}

async fn state(clients: &ServerClients) -> State {
    let mut commands = clients.local_authority();
    let x509 = commands.get_x509_authority_state(wire::GetX509AuthorityStateRequest {}).await.unwrap();
    let jwt = commands.get_jwt_authority_state(wire::GetJwtAuthorityStateRequest {}).await.unwrap();
    State { x509: x509.into_inner(), jwt: jwt.into_inner() }
}

/// What a workload got.
struct Credentials {
    chain: Vec<Certificate>,
    token: String,
}

async fn mint(clients: &ServerClients, key: &PrivateKey) -> Credentials {
    let id = SpiffeId::parse("spiffe://example.org/web").unwrap();
    let template = CsrTemplate { subject: Name::new(&[]), id: Some(id.clone()), dns_names: Vec::new() };
    let request = MintX509svidRequest { csr: template.sign(key).unwrap().into(), ttl: 0 };
    let svid = clients.svid().mint_x509svid(request).await.unwrap().into_inner().svid.unwrap();
    let chain = svid.cert_chain.iter().map(|der| Certificate::parse(der).unwrap()).collect();
    let id = Some(types::Spiffeid::from(&id));
    let request = MintJwtsvidRequest { id, audience: vec!["a".to_owned()], ttl: 3600 };
    let token = clients.svid().mint_jwtsvid(request).await.unwrap().into_inner().svid.unwrap().token;
    Credentials { chain, token }
}

/// Whether both are valid by the bundle as it is now.
async fn verify(clients: &ServerClients, credentials: &Credentials, now: UnixSecs) -> Bundle {
    let wire = clients.bundle().get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let bundle = Bundle::try_from(&wire).unwrap();
    let roots: Vec<_> =
        bundle.x509_authorities.iter().map(|root| Certificate::parse(&root.der).unwrap()).collect();
    verify_svid(&credentials.chain, &roots, now).unwrap();
    jwt::verify(&credentials.token, "a", now, |_| Some(&bundle.jwt_authorities)).unwrap();
    bundle
}

#[tokio::test]
async fn a_thousand_authorities_follow_each_other_without_a_failed_validation() {
    let mut place = Place::new();
    place.config.plugins.retain(|plugin| plugin.kind != "KeyManager");
    place.config.plugins.push(block("KeyManager", "memory", ""));
    let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let server = place.start_at(Arc::new(clock.clone())).await;
    let (clients, key) = (server.local(), PrivateKey::generate(KeyKind::EcP256).unwrap());
    let mut commands = clients.local_authority();

    for round in 0..ROUNDS {
        let old = state(&clients).await;
        let (old_x509, old_jwt) =
            (old.x509.active.unwrap().authority_id, old.jwt.active.unwrap().authority_id);
        let (x509_id, jwt_id) = if round % 2 == 0 {
            // By the clock: prepared after half a life.
            clock.advance(12 * HOUR + TICK);
            in_time(&clock, TICK, async || {
                let now = state(&clients).await;
                now.x509
                    .prepared
                    .zip(now.jwt.prepared)
                    .map(|(x509, jwt)| (x509.authority_id, jwt.authority_id))
            })
            .await
        } else {
            // By force.
            let x509 = commands.prepare_x509_authority(wire::PrepareX509AuthorityRequest {}).await.unwrap();
            let jwt = commands.prepare_jwt_authority(wire::PrepareJwtAuthorityRequest {}).await.unwrap();
            (
                x509.into_inner().prepared_authority.unwrap().authority_id,
                jwt.into_inner().prepared_authority.unwrap().authority_id,
            )
        };
        let before = mint(&clients, &key).await;

        let authority_id = x509_id.clone();
        commands.activate_x509_authority(wire::ActivateX509AuthorityRequest { authority_id }).await.unwrap();
        let authority_id = jwt_id.clone();
        commands.activate_jwt_authority(wire::ActivateJwtAuthorityRequest { authority_id }).await.unwrap();

        let after = mint(&clients, &key).await;
        let now = UnixSecs::from(clock.now());
        verify(&clients, &before, now).await;
        verify(&clients, &after, now).await;
        let authority_id = old_x509.clone();
        commands.taint_x509_authority(wire::TaintX509AuthorityRequest { authority_id }).await.unwrap();
        let authority_id = old_jwt.clone();
        commands.taint_jwt_authority(wire::TaintJwtAuthorityRequest { authority_id }).await.unwrap();
        verify(&clients, &before, now).await;
        let authority_id = old_x509;
        commands.revoke_x509_authority(wire::RevokeX509AuthorityRequest { authority_id }).await.unwrap();
        let authority_id = old_jwt;
        commands.revoke_jwt_authority(wire::RevokeJwtAuthorityRequest { authority_id }).await.unwrap();
        let bundle = verify(&clients, &after, now).await;
        assert_eq!((bundle.x509_authorities.len(), bundle.jwt_authorities.len()), (1, 1));
        let signed_by = after.chain[0].authority_key_id().unwrap();
        assert_eq!(signed_by.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), x509_id);
        assert_eq!(bundle.jwt_authorities[0].key_id, jwt_id);
    }
    server.stop().await;
}
