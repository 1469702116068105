//! What a workload sees: fetches its identities as any client would, and verifies them.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use client::workload::{SOCKET_VARIABLE, WorkloadApi};
use runtime::clock::{Clock as _, SystemClock};
use spiffe::x509::{Certificate, verify_svid};
use spiffe::{Bundle, UnixSecs, jwt};

/// For whom the token is asked.
const AUDIENCE: &str = "finial-dev";

/// Fetches an X.509-SVID and a JWT-SVID from the Workload API that the environment names, verifies
/// both against the bundle, and hands back what it saw.
pub(super) async fn probe() -> Result<String> {
    let environment = std::env::var(SOCKET_VARIABLE).ok();
    let api = WorkloadApi::configured(None, environment.as_deref())?;
    let now = UnixSecs::from(SystemClock.now());
    let mut seen = String::new();

    let update = api.x509_svids().await.context("cannot fetch an X.509-SVID")?;
    for svid in &update.svids {
        let trust_domain = svid.id.trust_domain();
        let anchors = update.bundles.get(&trust_domain).map(Vec::as_slice).unwrap_or_default();
        let parsed = |ders: &[rustls::pki_types::CertificateDer<'static>]| {
            ders.iter().map(|der| Certificate::parse(der)).collect::<Result<Vec<_>, _>>()
        };
        let chain = parsed(&svid.chain).context("cannot parse the X.509-SVID")?;
        let anchors = parsed(anchors).context("cannot parse the trust bundle")?;
        let id = verify_svid(&chain, &anchors, now).context("the X.509-SVID does not verify")?;
        if id != svid.id {
            bail!("the X.509-SVID of {} names {id}", svid.id);
        }
        let left = chain.first().map_or(0, |leaf| leaf.not_after().since(now));
        writeln!(seen, "X.509-SVID  {id}  verified, {} left", duration(left))?;
    }

    let tokens = api.jwt_svids(&[AUDIENCE.to_owned()], None).await.context("cannot fetch a JWT-SVID")?;
    let bundles = api.jwt_bundles().await.context("cannot fetch the JWT bundles")?;
    for token in &tokens {
        let trust_domain = token.id.trust_domain();
        let jwks = bundles.bundles.get(&trust_domain).map(|jwks| &**jwks).unwrap_or_default();
        let bundle = Bundle::from_jwt_jwks(trust_domain, jwks).context("cannot read the JWT bundle")?;
        let verified = jwt::verify(&token.token, AUDIENCE, now, |_| Some(&bundle.jwt_authorities))
            .context("the JWT-SVID does not verify")?;
        if verified.id != token.id {
            bail!("the JWT-SVID of {} names {}", token.id, verified.id);
        }
        let left = duration(verified.expires_at.since(now));
        writeln!(seen, "JWT-SVID    {}  verified, {left} left", verified.id)?;
    }
    Ok(seen)
}

/// Seconds as people read them: the two largest units.
fn duration(seconds: i64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min {} s", seconds % 60),
        _ => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_units() {
        assert_eq!(duration(42), "42 s");
        assert_eq!(duration(299), "4 min 59 s");
        assert_eq!(duration(3600), "1 h 0 min");
    }
}
