//! Trust domains that federate ([`Domains`]), endpoints that are not what they should be
//! ([`Imposters`]), many who know each other ([`Crowd`]), and workloads that look on ([`Bystander`]).

mod bystander;
mod crowd;
mod imposters;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub use bystander::Bystander;
pub use crowd::Crowd;
pub use imposters::Imposters;

use crate::imposter::exchange;
use crate::live::{REACH, Stage, seen};
use crate::pki::{Authority, Key, pem};
use crate::plane::{Plane, PlaneConfig, Product, pause};
use crate::wire::Messages;

const FAR: &str = "far.test";
const AUDIENCE: &str = "federation";

/// How long a bundle may take to arrive. SPIRE asks an endpoint that it could not verify at first again
/// after a minute.
const ARRIVAL: Duration = Duration::from_secs(90);

/// How endpoints prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// By the SVID of their server.
    Spiffe,
    /// By a certificate of the web's authorities.
    Web,
}

/// Two trust domains that federate with each other: `example.org`, with an agent and this process as a
/// workload, and `far.test`.
pub struct Domains {
    near: Stage,
    far: Plane,
    web: Option<Web>,
}

impl Domains {
    /// Starts both, each with a bundle endpoint; the one knows the other by its configuration, the
    /// other way round the relationship is made by command. `recorded` has the descriptors of the API.
    ///
    /// # Errors
    /// Says what is refused.
    ///
    /// # Panics
    /// If something does not start.
    pub fn federate(
        near: &Product,
        far: &Product,
        recorded: &Path,
        profile: Profile,
    ) -> Result<Self, String> {
        let messages = Messages::load(&recorded.join("api/api.fds"));
        let web = (profile == Profile::Web).then(Web::new);
        let (own, theirs) = match &web {
            None => (
                "\"https_spiffe\" {}".to_owned(),
                format!("\"https_spiffe\" {{ endpoint_spiffe_id = \"spiffe://{FAR}/spire/server\" }}"),
            ),
            Some(web) => (web.profile(), "\"https_web\" {}".to_owned()),
        };
        let endpoint = format!(
            "bundle_endpoint {{ address = \"127.0.0.1\" port = {{p1}} refresh_hint = \"1m\" profile {own} }}"
        );
        let env = web.iter().map(|web| ("SSL_CERT_FILE".to_owned(), web.path("roots.pem"))).collect();
        let far_config = PlaneConfig {
            trust_domain: FAR.to_owned(),
            server_extra: format!("federation {{ {endpoint} }}"),
            env,
            ..PlaneConfig::default()
        };
        let far = Plane::start(far, &far_config, &BTreeMap::new());
        let near_config = PlaneConfig {
            server_extra: format!(
                "federation {{ {endpoint} federates_with \"{FAR}\" {{ bundle_endpoint_url = \
                 \"https://127.0.0.1:{}\" bundle_endpoint_profile {theirs} }} }}",
                far.word("p1")
            ),
            trust_domain: "example.org".to_owned(),
            ..far_config
        };
        let near = Stage::with(near, &messages, near_config)?;
        let domains = Self { near, far, web };
        domains.introduce(profile);
        Ok(domains)
    }

    /// Hands each the bundle of the other where the profile needs it, and makes one relationship.
    fn introduce(&self, profile: Profile) {
        let (near, far) = (&self.near.plane, &self.far);
        let show = ["bundle", "show", "-format", "spiffe", "-socketPath", "{sock}"];
        near.write("{dir}/far.json", &far.ok("server", &show));
        far.write("{dir}/near.json", &near.ok("server", &show));
        let url = format!("https://127.0.0.1:{}", near.word("p1"));
        let mut create =
            vec!["federation", "create", "-trustDomain", "example.org", "-bundleEndpointURL", &url];
        match profile {
            Profile::Spiffe => {
                set_bundle(near, "spiffe", "{dir}/far.json");
                create.extend(["-bundleEndpointProfile", "https_spiffe"]);
                create.extend(["-endpointSpiffeID", "spiffe://example.org/spire/server"]);
                create.extend(["-trustDomainBundlePath", "{dir}/near.json"]);
                create.extend(["-trustDomainBundleFormat", "spiffe"]);
            }
            Profile::Web => create.extend(["-bundleEndpointProfile", "https_web"]),
        }
        create.extend(["-socketPath", "{sock}"]);
        let _shown = far.ok("server", &create);
        for (plane, of) in [(near, FAR), (far, "example.org")] {
            let _refreshed =
                plane.ok("server", &["federation", "refresh", "-id", of, "-socketPath", "{sock}"]);
        }
    }

    /// What both have of each other is what both have, the workload gets it, and a token of the other
    /// trust domain is valid for it. A new authority over there arrives without anybody's doing.
    ///
    /// # Errors
    /// Says what does not arrive.
    pub fn follow(&self) -> Result<(), String> {
        let (near, far) = (&self.near.plane, &self.far);
        await_same(near, far, FAR)?;
        await_same(far, near, "example.org")?;
        let entry = json!({"federates_with": [FAR]});
        let mut stream = self.near.run(async {
            self.near.create("federated", "/federated", entry).await?;
            let stream = self.near.stream_with(&["/federated"]).await?;
            self.check_token().await?;
            Ok(stream)
        })?;

        for family in ["x509", "jwt"] {
            let _prepared = far.ok("server", &["localauthority", family, "prepare", "-socketPath", "{sock}"]);
        }

        await_same(near, far, FAR)?;
        let authorities = own(far)?.0;
        if authorities.len() != 2 {
            return Err(format!("{FAR} has the authorities {authorities:?}"));
        }
        self.near.run(async {
            let foreign = format!("spiffe://{FAR}");
            seen(&mut stream, &["/federated"], |svids| {
                svids.iter().all(|svid| svid.federated.get(&foreign).is_some_and(|bundle| bundle.len() == 2))
            })
            .await
        })
    }

    /// A token that was signed over there is valid here, for the workload whose entry says so.
    async fn check_token(&self) -> Result<(), String> {
        let subject = format!("spiffe://{FAR}/caller");
        let mint = ["jwt", "mint", "-spiffeID", &subject, "-audience", AUDIENCE, "-socketPath", "{sock}"];
        let minted = self.far.ok("server", &mint);
        let deadline = Instant::now() + REACH;
        loop {
            let validated = self.near.workload.validate(AUDIENCE, minted.trim()).await;
            match validated {
                Ok(validated) if validated.spiffe_id == subject => return Ok(()),
                other if Instant::now() > deadline => {
                    return Err(format!("a token of {FAR} is judged {other:?}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// The certificate of the endpoints is replaced by one of another authority: who knows only the
    /// first is refused from then on, by all that is served without a restart.
    ///
    /// # Errors
    /// Says what still works.
    ///
    /// # Panics
    /// If the endpoints present SVIDs.
    pub fn replace_certificate(&self) -> Result<(), String> {
        let web = self.web.as_ref().expect("endpoints with certificates of the web");
        let refresh = || self.near.plane.run("server", &REFRESH);
        let (code, _, stderr) = refresh();
        if code != 0 {
            return Err(format!("refused at first: {stderr}"));
        }
        web.write_certificate(&Authority::of("other-web.test"));
        let deadline = Instant::now() + REACH;
        loop {
            let (code, _, stderr) = refresh();
            if code == 1 && stderr.contains("certificate") {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("a certificate of nobody is taken: {stderr}"));
            }
            pause();
        }
        web.write_certificate(&web.authority);
        let deadline = Instant::now() + REACH;
        while refresh().0 != 0 {
            if Instant::now() > deadline {
                return Err("the certificate that is back is refused".to_owned());
            }
            pause();
        }
        Ok(())
    }

    /// A certificate of the web is good for its own names alone.
    ///
    /// # Errors
    /// Says what is believed.
    pub fn mistake_name(&self) -> Result<(), String> {
        let near = &self.near.plane;
        let url = format!("https://localhost:{}", self.far.word("p1"));
        let mut create =
            vec!["federation", "create", "-trustDomain", "misnamed.test", "-bundleEndpointURL", &url];
        create.extend(["-bundleEndpointProfile", "https_web", "-socketPath", "{sock}"]);
        let _created = near.ok("server", &create);
        let refresh = ["federation", "refresh", "-id", "misnamed.test", "-socketPath", "{sock}"];
        let (code, _, stderr) = near.run("server", &refresh);
        let list = ["bundle", "list", "-id", "misnamed.test", "-socketPath", "{sock}"];
        let is_stored = near.run("server", &list).0 == 0;
        let is_told = stderr.contains("certificate") && stderr.contains("localhost");
        if code == 1 && is_told && !is_stored { Ok(()) } else { Err(format!("{code} {stderr}")) }
    }

    /// While the partner is away its bundle stays, over a restart too; once it is back, with an
    /// authority that it got meanwhile, its bundle is fetched again.
    ///
    /// # Errors
    /// Says what was lost.
    ///
    /// # Panics
    /// If a server does not start again.
    pub fn outlive(&mut self) -> Result<(), String> {
        let before = foreign(&self.near.plane, FAR)?;
        stop(&mut self.far)?;
        let (code, _, stderr) = self.near.plane.run("server", &REFRESH);
        if code != 1 || !stderr.contains("refused") {
            return Err(format!("who is away is heard: {stderr}"));
        }
        stop(&mut self.near.plane)?;
        self.near.plane.start_server_again();
        let after = foreign(&self.near.plane, FAR)?;
        if after != before {
            return Err(format!("the bundle was {before:?} and is {after:?}"));
        }
        self.far.start_server_again();
        let prepare = ["localauthority", "x509", "prepare", "-socketPath", "{sock}"];
        let _prepared = self.far.ok("server", &prepare);
        await_same(&self.near.plane, &self.far, FAR)
    }

    /// What the bundle endpoint of `far.test` answers to a request; `None` for nothing.
    #[must_use]
    pub fn ask(&self, request: &str, is_old_tls: bool) -> Option<String> {
        let versions: &[_] = if is_old_tls { &[&rustls::version::TLS12] } else { rustls::DEFAULT_VERSIONS };
        let port = self.far.word("p1").parse().ok()?;
        self.near.run(async { Ok(exchange(port, request, versions, REACH).await) }).ok().flatten()
    }
}

const REFRESH: [&str; 6] = ["federation", "refresh", "-id", FAR, "-socketPath", "{sock}"];

/// A web certificate for endpoints on this machine, and the authority that a plane is told to believe.
struct Web {
    authority: Authority,
    dir: TempDir,
}

impl Web {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("finial-web-").tempdir().expect("a temporary folder");
        let web = Self { authority: Authority::of("web.test"), dir };
        web.write("roots.pem", &pem("CERTIFICATE", &web.authority.certificate));
        web.write_certificate(&web.authority);
        web
    }

    fn profile(&self) -> String {
        format!(
            "\"https_web\" {{ serving_cert_file {{ cert_file_path = \"{}\" key_file_path = \"{}\" \
             file_sync_interval = \"1s\" }} }}",
            self.path("cert.pem"),
            self.path("key.pem")
        )
    }

    fn write_certificate(&self, authority: &Authority) {
        let key = Key::generate();
        self.write("key.pem", &pem("PRIVATE KEY", &key.pkcs8()));
        self.write("cert.pem", &pem("CERTIFICATE", &authority.certify_web(&key)));
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).expect("a file");
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

fn set_bundle(plane: &Plane, format: &str, path: &str) {
    let set = ["bundle", "set", "-id", FAR, "-format", format, "-path", path, "-socketPath", "{sock}"];
    let _set = plane.ok("server", &set);
}

fn stop(plane: &mut Plane) -> Result<(), String> {
    let server = plane.server().ok_or("no server")?;
    server.signal("TERM");
    match server.wait(Duration::from_secs(30)) {
        0 => Ok(()),
        other => Err(format!("the server ends with {other}")),
    }
}

/// The X.509 authorities and the ids of the JWT authorities in a bundle.
type Contents = (BTreeSet<String>, BTreeSet<String>);

fn own(plane: &Plane) -> Result<Contents, String> {
    contents(&plane.ok("server", &["bundle", "show", "-format", "spiffe", "-socketPath", "{sock}"]))
}

fn foreign(plane: &Plane, of: &str) -> Result<Contents, String> {
    let list = ["bundle", "list", "-id", of, "-format", "spiffe", "-socketPath", "{sock}"];
    contents(&plane.ok("server", &list))
}

fn contents(document: &str) -> Result<Contents, String> {
    let document: Value = serde_json::from_str(document).map_err(|error| format!("{error}: {document}"))?;
    // Where there are none they are null, as both programs print it.
    let keys = document.get("keys").filter(|keys| keys.is_null() || keys.is_array());
    let keys = keys.ok_or("a bundle has no keys")?.as_array().map_or(&[][..], Vec::as_slice);
    let texts = |of: &dyn Fn(&Value) -> Option<String>| keys.iter().filter_map(of).collect();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok((texts(&|key| text(&key["x5c"][0])), texts(&|key| text(&key["kid"]))))
}

/// Waits until `plane` has of `other` what that has itself.
fn await_same(plane: &Plane, other: &Plane, of: &str) -> Result<(), String> {
    let deadline = Instant::now() + ARRIVAL;
    loop {
        let (theirs, ours) = (own(other)?, foreign(plane, of)?);
        if theirs == ours {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("the bundle of {of} is {theirs:?} there and {ours:?} here"));
        }
        pause();
    }
}
