//! Endpoints that are not what they should be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{FAR, REFRESH, foreign, set_bundle};
use crate::imposter::{Behaviour, Imposter};
use crate::pki::{Authority, Key, pem};
use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::Shown;

/// Endpoints under control of the test, which a server on a plane of its own asks for the bundle of
/// `far.test`.
pub struct Imposters {
    plane: Plane,
    authority: Authority,
    endpoint: Imposter,
    other: Imposter,
}

impl Imposters {
    /// Starts a server of `product` that federates with `far.test` and knows its authority, and two
    /// servers of that trust domain: one is the endpoint, the other is not.
    ///
    /// # Panics
    /// If something does not start.
    #[must_use]
    pub fn start(product: &Product) -> Self {
        let authority = Authority::of(FAR);
        let nothing = Behaviour::answer("200 OK", "", "");
        let endpoint = Imposter::start(&identity(&authority, "endpoint"), nothing.clone());
        let other = Imposter::start(&identity(&authority, "other"), nothing);
        let plane = Plane::start(product, &PlaneConfig::default(), &BTreeMap::new());
        plane.write("{dir}/far.pem", &pem("CERTIFICATE", &authority.certificate));
        set_bundle(&plane, "pem", "{dir}/far.pem");
        let imposters = Self { plane, authority, endpoint, other };
        imposters.relate("create", FAR, imposters.endpoint.port);
        imposters
    }

    /// Answers that are no bundle, or none that may be taken, are refused, each with its reason in the
    /// answer to the command and in the log, and the bundle that is there stays. Then a good one is
    /// taken.
    ///
    /// # Errors
    /// Says what was taken, or which reason is missing.
    pub fn misbehave(&self) -> Result<(), String> {
        let before = foreign(&self.plane, FAR)?;
        let root = document(&[x509(&self.authority.certificate)]);
        let leaf = self.authority.certify(&Key::generate(), "spiffe://far.test/w");
        let key = |id: &str| {
            let public = document_key(&Authority::of(FAR).certificate);
            format!("{{\"use\":\"jwt-svid\",\"kid\":\"{id}\",{public}}}")
        };
        let found = |to: &str| Behaviour::answer("302 Found", &format!("Location: {to}\r\n"), "");
        let ok = |body: &str| Behaviour::answer("200 OK", "Content-Type: application/json\r\n", body);
        let large = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(10 << 20));
        let many = (0..1001).map(|number| key(&number.to_string())).collect::<Vec<_>>();
        let elsewhere = format!("https://127.0.0.1:{}/", self.other.port);
        self.other.behave(ok(&root));
        for (behaviour, reason) in [
            (
                Behaviour::answer("500 Oh", "", "<b>\u{1b}[31mdown</b>"),
                "unexpected status 500 fetching bundle: <b> [31mdown</b>",
            ),
            (ok("<html>"), "failed to decode bundle: unable to parse JWKS"),
            (ok(&root[..root.len() - 2]), "failed to decode bundle: unable to parse JWKS"),
            (ok("{}"), "no authorities found"),
            (ok(&large), "the document is larger than 10485760 bytes"),
            (ok(&document(&many)), "the bundle has more than 1000 keys"),
            (ok(&document(&[x509(&leaf)])), "certificate is not a CA"),
            (ok(&document(&[key("a"), key("a")])), "key ID a is used twice"),
            (ok(&root.replace("\"kty\"", "\"d\":\"AA\",\"kty\"")), "key has private members"),
            (ok(&root.replace("{\"keys\"", "{\"spiffe_refresh_hint\":-1,\"keys\"")), "spiffe_refresh_hint"),
            (found("http://127.0.0.1:1/"), "scheme must be https: http://127.0.0.1:1/"),
            (found("/"), "unexpected status 302"),
            (found(&elsewhere), "server is spiffe://far.test/other instead of spiffe://far.test/endpoint"),
            (Behaviour::Answer(b"\0\0\0\x04\0\0".to_vec()), "cannot read the answer"),
            (
                Behaviour::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_vec()),
                "cannot read the document",
            ),
        ] {
            self.endpoint.behave(behaviour);
            self.refused(reason)?;
            // No more than ten lines of one kind are logged in a second.
            std::thread::park_timeout(Duration::from_millis(110));
            let after = foreign(&self.plane, FAR)?;
            if after != before {
                return Err(format!("{reason}: the bundle is {after:?}"));
            }
        }
        self.endpoint.behave(ok(&document(&[x509(&self.authority.certificate), key("new")])));
        let _refreshed = self.plane.ok("server", &REFRESH);
        let after = foreign(&self.plane, FAR)?;
        if after.1.contains("new") { Ok(()) } else { Err(format!("a good bundle came to {after:?}")) }
    }

    /// A sequence number that goes back, or stays while the bundle changes, is warned of; the bundle is
    /// taken, even one without any key.
    ///
    /// # Errors
    /// Says what was not taken or not told.
    pub fn go_back(&self) -> Result<(), String> {
        let root = x509(&self.authority.certificate);
        let serve = |sequence: u32, keys: &[String]| {
            let body = document(keys).replacen('{', &format!("{{\"spiffe_sequence\":{sequence},"), 1);
            self.endpoint.behave(Behaviour::answer("200 OK", "", &body));
            let _refreshed = self.plane.ok("server", &REFRESH);
            let log = std::fs::read_to_string(self.plane.dir().join("server.log")).unwrap_or_default();
            let warnings = log.matches("Bundle endpoint went back in its sequence").count();
            foreign(&self.plane, FAR).map(|(x509, _)| (x509.len(), warnings))
        };
        let other = x509(&Authority::of(FAR).certificate);
        let both = [root, other];
        for (sequence, keys, expected) in [
            (7, &both[..1], (1, 0)),
            (8, &both[..], (2, 0)),
            (8, &both[..], (2, 0)),
            (7, &both[..1], (1, 1)),
            (7, &both[..], (2, 2)),
            (9, &[][..], (0, 2)),
        ] {
            let came_to = serve(sequence, keys)?;
            if came_to != expected {
                return Err(format!("{sequence} with {} keys came to {came_to:?}", keys.len()));
            }
        }
        // Nobody is trusted now, the endpoint included.
        self.refused("invalid peer certificate: UnknownIssuer")
    }

    /// An endpoint that is somebody else, under another authority or with a certificate of the web is
    /// refused, and so is one whose trust domain is not known.
    ///
    /// # Errors
    /// Says who was believed.
    pub fn pretend(&self) -> Result<(), String> {
        let root = document(&[x509(&self.authority.certificate)]);
        let good = Behaviour::answer("200 OK", "", &root);
        let stranger = Authority::of(FAR);
        let third = Authority::of("third.test");
        let web_key = Key::generate();
        let web = Shown { chain: vec![self.authority.certify_web(&web_key)], key: web_key.pkcs8() };
        for (shown, reason) in [
            (identity(&self.authority, "other"), "server is spiffe://far.test/other instead of"),
            (identity(&stranger, "endpoint"), "invalid peer certificate: UnknownIssuer"),
            (web, "cannot connect to 127.0.0.1"),
            (
                {
                    // The right authority for the wrong trust domain.
                    let key = Key::generate();
                    let chain = vec![self.authority.certify(&key, "spiffe://third.test/endpoint")];
                    Shown { chain, key: key.pkcs8() }
                },
                "invalid peer certificate: UnknownIssuer",
            ),
            (
                {
                    // The right id, vouched for by an authority of another trust domain that is known.
                    let key = Key::generate();
                    Shown { chain: vec![third.certify(&key, "spiffe://far.test/endpoint")], key: key.pkcs8() }
                },
                "invalid peer certificate: UnknownIssuer",
            ),
        ] {
            self.plane.write("{dir}/third.pem", &pem("CERTIFICATE", &third.certificate));
            let set = ["bundle", "set", "-id", "third.test", "-path", "{dir}/third.pem"];
            let _set = self.plane.ok("server", &[&set[..], &["-socketPath", "{sock}"]].concat());
            let imposter = Imposter::start(&shown, good.clone());
            self.relate("update", FAR, imposter.port);
            self.refused(reason)?;
        }
        self.relate("create", "nobody.test", self.endpoint.port);
        let refresh = ["federation", "refresh", "-id", "nobody.test", "-socketPath", "{sock}"];
        let (code, _, stderr) = self.plane.run("server", &refresh);
        if code != 1
            || !stderr.contains("can't perform SPIFFE Authentication: local copy of bundle not found")
        {
            return Err(format!("an endpoint that cannot be known: {stderr}"));
        }
        Ok(())
    }

    /// While one endpoint sends a byte a second, another trust domain's bundle is refreshed and a SVID
    /// is minted; the slow one is given up after half a minute.
    ///
    /// # Errors
    /// Says who had to wait.
    pub fn dawdle(&self) -> Result<(), String> {
        let root = document(&[x509(&self.authority.certificate)]);
        self.endpoint.behave(Behaviour::answer("200 OK", "", &root));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", root.len());
        self.other.behave(Behaviour::Drip((head + &root).into_bytes()));
        self.plane.write("{dir}/slow.pem", &pem("CERTIFICATE", &self.authority.certificate));
        let url = format!("https://127.0.0.1:{}", self.other.port);
        let create = [
            "federation",
            "create",
            "-trustDomain",
            "slow.test",
            "-bundleEndpointURL",
            &url,
            "-bundleEndpointProfile",
            "https_spiffe",
            "-endpointSpiffeID",
            "spiffe://far.test/other",
            "-socketPath",
            "{sock}",
        ];
        let _created = self.plane.ok("server", &create);
        let refresh = ["federation", "refresh", "-id", "slow.test", "-socketPath", "{sock}"];
        let mut slow = self.plane.spawn("server", &refresh);
        let started = Instant::now();
        let _refreshed = self.plane.ok("server", &REFRESH);
        let mint = ["x509", "mint", "-spiffeID", "spiffe://{td}/w", "-socketPath", "{sock}"];
        let _minted = self.plane.ok("server", &mint);
        let waited = started.elapsed();
        if waited > Duration::from_secs(10) || !slow.is_running() {
            return Err(format!("the others waited {waited:?}"));
        }
        let code = slow.wait(Duration::from_secs(90));
        let (_, stderr) = slow.printed();
        if code == 1 && stderr.contains("no answer within 30 s") { Ok(()) } else { Err(stderr) }
    }

    fn relate(&self, verb: &str, trust_domain: &str, port: u16) {
        let url = format!("https://127.0.0.1:{port}/bundle?x=y");
        let endpoint = format!("spiffe://{trust_domain}/endpoint");
        let relate = [
            "federation",
            verb,
            "-trustDomain",
            trust_domain,
            "-bundleEndpointURL",
            &url,
            "-bundleEndpointProfile",
            "https_spiffe",
            "-endpointSpiffeID",
            &endpoint,
            "-socketPath",
            "{sock}",
        ];
        let _related = self.plane.ok("server", &relate);
    }

    /// A refresh must fail for this reason.
    fn refused(&self, reason: &str) -> Result<(), String> {
        let (code, stdout, stderr) = self.plane.run("server", &REFRESH);
        if code != 1 || !stderr.contains(reason) {
            return Err(format!("{reason}: exit {code}, {stdout}{stderr}"));
        }
        let log = std::fs::read_to_string(self.plane.dir().join("server.log")).unwrap_or_default();
        let is_told = |line: &str| {
            line.contains("level=error") && line.contains("Error updating bundle") && line.contains(reason)
        };
        // Only quotes look otherwise in the log.
        if reason.contains('"') || log.lines().any(is_told) {
            Ok(())
        } else {
            Err(format!("not logged: {reason}"))
        }
    }
}

fn identity(authority: &Authority, path: &str) -> Shown {
    let key = Key::generate();
    Shown { chain: vec![authority.certify(&key, &format!("spiffe://{FAR}/{path}"))], key: key.pkcs8() }
}

fn document(keys: &[String]) -> String {
    format!("{{\"keys\":[{}]}}", keys.join(","))
}

fn x509(certificate: &[u8]) -> String {
    let x5c = STANDARD.encode(certificate);
    format!("{{\"use\":\"x509-svid\",{},\"x5c\":[\"{x5c}\"]}}", document_key(certificate))
}

/// The key of a certificate as members of a JWK.
fn document_key(certificate: &[u8]) -> String {
    let (_, parsed) = X509Certificate::from_der(certificate).expect("a certificate");
    let point = parsed.public_key().subject_public_key.data.as_ref();
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    format!(
        "\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"{}\",\"y\":\"{}\"",
        encode(&point[1..33]),
        encode(&point[33..65])
    )
}
