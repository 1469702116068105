//! `agent-data.json`: the agent's own SVID and bundle, in SPIRE's form, so that either program can
//! take the other's place.
//!
//! The file is one line of JSON, mode 0600, replaced whole: a process that is killed at any moment
//! leaves the old or the new one. A file that cannot be read is an error that names it: an agent that
//! quietly attested anew could lock itself out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use runtime::blocking::{Blocking, Interrupted};
use runtime::json;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, Serialize};
use spiffe::x509::{Certificate, pem, to_pem};
use spiffe::{Bundle, TrustDomain, X509Authority};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::meters::Meters;

/// The name of the file in the data directory.
const FILE: &str = "agent-data.json";
/// Far more than a chain and a bundle take.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// What is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AgentData {
    /// The agent's chain, leaf first; empty if it has none.
    pub(crate) svid: Vec<Certificate>,
    /// The X.509 authorities of the own trust domain; empty if none are known.
    pub(crate) bundle: Vec<Certificate>,
    /// Whether the agent may attest again.
    pub(crate) reattestable: bool,
    /// What the configured source of the bundle is used for.
    pub(crate) bootstrap: BootstrapUse,
    /// Since when the agent tries; `None` while all is well.
    pub(crate) trying_since: Option<OffsetDateTime>,
    /// How often it asked the source since.
    pub(crate) attempts: u32,
}

/// What the configured source of the bundle is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BootstrapUse {
    /// Nothing yet.
    #[default]
    Unspecified,
    /// To meet the server for the first time.
    Bootstrap,
    /// To meet it again after its authorities were replaced.
    Rebootstrap,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its directory cannot be made.
    #[error("cannot make the directory {}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("failed to open storage: failed to read data: cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is damaged.
    #[error(
        "failed to open storage: cannot understand {path}: {reason}; restore it from a backup, or move it \
         away to attest the node anew",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It cannot be written.
    #[error("failed to write data file: cannot write {path}: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Writing it was interrupted.
    #[error("failed to write data file")]
    Interrupted(#[from] Interrupted),
}

/// The file, and what is in it. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    blocking: Blocking,
}

struct Shared {
    path: PathBuf,
    data: Mutex<AgentData>,
    meters: OnceLock<Arc<Meters>>,
}

impl Store {
    /// Reads the file in `directory`, which is made if it is missing; a missing file holds nothing.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        let read = |source| StoreError::Read { path: path.clone(), source };
        runtime::files::create_directory(directory, 0o755)
            .map_err(|source| StoreError::Directory { path: directory.to_path_buf(), source })?;
        let data = match load(&path) {
            Ok(text) => AgentData::from_json(&text)
                .map_err(|reason| StoreError::Damaged { path: path.clone(), reason })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => AgentData::default(),
            Err(error) => return Err(read(error)),
        };
        let shared = Arc::new(Shared { path, data: Mutex::new(data), meters: OnceLock::new() });
        Ok(Self { shared, blocking: Blocking::new(1) })
    }

    /// Shows how far the first contact with the server is, now and whenever that changes.
    pub(crate) fn measured(self, meters: Arc<Meters>) -> Self {
        meters.show_bootstrap(&self.data());
        // Set once only: there is one program.
        self.shared.meters.set(meters).ok();
        self
    }

    /// What is stored.
    #[must_use]
    pub(crate) fn data(&self) -> AgentData {
        self.shared.data.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is stored; when this returns the change is safe on disk. Dropped earlier, it may
    /// or may not be made.
    ///
    /// # Errors
    /// The file cannot be written; what is stored is then as it was.
    pub(crate) async fn update(
        &self,
        change: impl FnOnce(&mut AgentData) + Send + 'static,
    ) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        self.blocking.run(move || shared.update(change)).await?
    }
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut AgentData)) -> Result<(), StoreError> {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = data.clone();
        change(&mut next);
        if next == *data {
            return Ok(());
        }
        runtime::files::replace(&self.path, next.to_json().as_bytes(), 0o600)
            .map_err(|source| StoreError::Write { path: self.path.clone(), source })?;
        if let Some(meters) = self.meters.get() {
            meters.show_bootstrap(&next);
        }
        *data = next;
        Ok(())
    }
}

fn load(path: &Path) -> io::Result<Vec<u8>> {
    let length = std::fs::metadata(path)?.len();
    if length > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "file is too large"));
    }
    std::fs::read(path)
}

impl Default for AgentData {
    fn default() -> Self {
        Self {
            svid: Vec::new(),
            bundle: Vec::new(),
            reattestable: false,
            bootstrap: BootstrapUse::Unspecified,
            trying_since: None,
            attempts: 0,
        }
    }
}

impl AgentData {
    /// The stored bundle as one of `trust_domain`; `None` if there is none.
    #[must_use]
    pub(crate) fn bundle(&self, trust_domain: &TrustDomain) -> Option<Bundle> {
        let authority =
            |certificate: &Certificate| X509Authority { der: certificate.to_shared(), tainted: false };
        let mut bundle = Bundle::empty(trust_domain.clone());
        bundle.x509_authorities = self.bundle.iter().map(authority).collect();
        (!bundle.x509_authorities.is_empty()).then_some(bundle)
    }

    /// The server was met: nothing is tried any more.
    pub(crate) fn settle(&mut self) {
        self.bootstrap = BootstrapUse::Rebootstrap;
        self.trying_since = None;
        self.attempts = 0;
    }

    /// Forgets the agent's SVID.
    pub(crate) fn forget_svid(&mut self) {
        self.svid = Vec::new();
        self.reattestable = false;
    }

    fn from_json(text: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let certificates = |what: &str, texts: Option<Vec<String>>| {
            texts
                .unwrap_or_default()
                .iter()
                .map(|text| certificate(text).map_err(|reason| format!("failed to parse {what}: {reason}")))
                .collect::<Result<Vec<_>, _>>()
        };
        let since = match file.bootstrap_start_time.as_deref() {
            None => None,
            Some(text) => Some(
                instant(text).map_err(|reason| format!("failed to parse bootstrap_start_time: {reason}"))?,
            )
            .filter(|since| since.year() > 1),
        };
        Ok(Self {
            svid: certificates("SVID", file.svid)?,
            bundle: certificates("bundle", file.bundle)?,
            reattestable: file.reattestable,
            bootstrap: match file.bootstrap_use {
                1 => BootstrapUse::Bootstrap,
                2 => BootstrapUse::Rebootstrap,
                _ => BootstrapUse::Unspecified,
            },
            trying_since: since,
            attempts: u32::try_from(file.connection_attempts.max(0)).unwrap_or(u32::MAX),
        })
    }

    fn to_json(&self) -> String {
        let certificates = |certificates: &[Certificate]| {
            let text =
                |certificate: &Certificate| BASE64_STANDARD.encode(to_pem("CERTIFICATE", certificate.der()));
            // SPIRE writes no list rather than an empty one.
            (!certificates.is_empty()).then(|| certificates.iter().map(text).collect())
        };
        let since = self.trying_since.and_then(|since| since.format(&Rfc3339).ok());
        let file = File {
            svid: certificates(&self.svid),
            bundle: certificates(&self.bundle),
            reattestable: self.reattestable,
            bootstrap_use: match self.bootstrap {
                BootstrapUse::Unspecified => 0,
                BootstrapUse::Bootstrap => 1,
                BootstrapUse::Rebootstrap => 2,
            },
            bootstrap_start_time: Some(since.unwrap_or_else(|| NO_TIME.to_owned())),
            connection_attempts: self.attempts.into(),
        };
        // Strings and numbers only: there is nothing that could fail.
        serde_json::to_string(&file).unwrap_or_default()
    }
}

/// A time of RFC 3339, as strictly and as leniently as Go reads it.
fn instant(text: &str) -> Result<OffsetDateTime, String> {
    if text.as_bytes().get(10) != Some(&b'T') || text.ends_with('z') {
        return Err("not a time of RFC 3339".to_owned());
    }
    OffsetDateTime::parse(&text.replacen(',', ".", 1), &Rfc3339).map_err(|error| error.to_string())
}

/// How Go writes a time that is not set.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

#[derive(Default, Serialize)]
struct File {
    svid: Option<Vec<String>>,
    bundle: Option<Vec<String>>,
    reattestable: bool,
    bootstrap_use: i64,
    bootstrap_start_time: Option<String>,
    connection_attempts: i64,
}

/// Read as SPIRE reads it: names of members may be in any case, `null` is nothing, and of members called
/// alike the last counts.
impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json::object(deserializer)
    }
}

impl json::Object for File {
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
        match name {
            "svid" => self.svid = texts(members)?,
            "bundle" => self.bundle = texts(members)?,
            "reattestable" => {
                self.reattestable = members.next_value::<Option<bool>>()?.unwrap_or(self.reattestable);
            }
            "bootstrap_use" => {
                self.bootstrap_use = members.next_value::<Option<i64>>()?.unwrap_or(self.bootstrap_use);
            }
            "bootstrap_start_time" => {
                if let Some(time) = members.next_value()? {
                    self.bootstrap_start_time = Some(time);
                }
            }
            "connection_attempts" => {
                let attempts = members.next_value::<Option<i64>>()?;
                self.connection_attempts = attempts.unwrap_or(self.connection_attempts);
            }
            _ => json::pass_over(members)?,
        }
        Ok(())
    }
}

/// A list of texts, in which nothing is an empty one.
fn texts<'de, A: MapAccess<'de>>(members: &mut A) -> Result<Option<Vec<String>>, A::Error> {
    let texts: Option<Vec<Option<String>>> = members.next_value()?;
    Ok(texts.map(|texts| texts.into_iter().map(Option::unwrap_or_default).collect()))
}

/// One certificate: base64 of its PEM, which may be broken into lines.
fn certificate(text: &str) -> Result<Certificate, String> {
    let text: String = text.chars().filter(|character| !matches!(character, '\r' | '\n')).collect();
    let blocks = pem(&BASE64_STANDARD.decode(text).map_err(|_| "not base64".to_owned())?);
    if let Some(block) = blocks.iter().find(|block| block.label != "CERTIFICATE") {
        return Err(format!("expected block type \"CERTIFICATE\"; got {:?}", block.label));
    }
    match blocks.as_slice() {
        [] => Err("no PEM blocks".to_owned()),
        [block] => Certificate::parse(&block.contents)
            .map_err(|error| format!("unable to parse \"CERTIFICATE\" PEM block 1: {error}")),
        several => Err(format!("expected 1 PEM blocks; got {}", several.len())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const STORED: [&str; 3] = [
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../conformance/keys/agent-join_token/agent-data.json"
        )),
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../conformance/keys/agent-x509pop-node-1/agent-data.json"
        )),
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../conformance/keys/agent-banned/agent-data.json"
        )),
    ];

    fn check_refused(contents: &str, why: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        std::fs::write(&path, contents).unwrap();

        let error = Store::open(directory.path()).err().unwrap().to_string();

        assert!(error.contains(why) && error.contains(path.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
    }

    #[test]
    fn files_of_spire_are_read_and_written_back_byte_by_byte() {
        for stored in STORED {
            let data = AgentData::from_json(stored.as_bytes()).unwrap();

            assert_eq!((data.svid.len(), data.bundle.len()), (1, 2));
            assert_eq!(data.bootstrap, BootstrapUse::Rebootstrap);
            assert_eq!(data.to_json(), stored.trim_end());
        }
        assert!(AgentData::from_json(STORED[1].as_bytes()).unwrap().reattestable);
    }

    #[test]
    fn an_attempt_under_way_is_kept() {
        let text = r#"{"svid":null,"bundle":null,"reattestable":false,"bootstrap_use":1,"bootstrap_start_time":"2026-11-27T08:01:02.345678901+01:00","connection_attempts":3}"#;

        let data = AgentData::from_json(text.as_bytes()).unwrap();

        assert_eq!((data.bootstrap, data.attempts), (BootstrapUse::Bootstrap, 3));
        assert!(data.trying_since.is_some());
        assert_eq!(data.to_json(), text);
    }

    #[test]
    fn fields_of_a_later_version_are_ignored_and_missing_ones_are_empty() {
        let data = AgentData::from_json(br#"{"wit":{"a":[1]},"reattestable":true}"#).unwrap();

        assert_eq!(data, AgentData { reattestable: true, ..AgentData::default() });
    }

    #[test]
    fn names_in_any_case_null_and_repeated_members_are_read() {
        let data = |text: &str| AgentData::from_json(text.as_bytes()).unwrap();
        let stored = STORED[1].trim_end();
        let upper = ["svid", "bundle", "reattestable", "bootstrap_use", "connection_attempts"]
            .into_iter()
            .fold(stored.to_owned(), |text, name| {
                text.replace(&format!("\"{name}\""), &format!("\"{}\"", name.to_uppercase()))
            });
        let more = |members: &str| format!("{},{members}}}", stored.trim_end_matches('}'));

        assert_eq!(data(&upper), data(stored));
        assert_eq!(data("null"), AgentData::default());
        let nothing = r#""reattestable":null,"bootstrap_use":null,"bootstrap_start_time":null,"connection_attempts":null"#;
        assert_eq!(data(&more(nothing)), data(stored));
        assert_eq!(data(&more(r#""svid":null"#)).svid, []);
        assert_eq!(data(&more(r#""connection_attempts":-1"#)).attempts, 0);
    }

    #[test]
    fn a_certificate_is_one_block_whose_base64_may_have_line_breaks() {
        let file: serde_json::Value = serde_json::from_str(STORED[0]).unwrap();
        let text = file["svid"][0].as_str().unwrap();
        let pem = BASE64_STANDARD.decode(text).unwrap();
        let with = |pem: &[u8]| format!(r#"{{"svid":["{}"]}}"#, BASE64_STANDARD.encode(pem));
        let (first, second) = text.split_at(40);

        let broken = AgentData::from_json(format!(r#"{{"svid":["{first}\r\n{second}"]}}"#).as_bytes());

        assert_eq!(broken.unwrap().svid, AgentData::from_json(with(&pem).as_bytes()).unwrap().svid);
        check_refused(&with(&pem.repeat(2)), "failed to parse SVID: expected 1 PEM blocks; got 2");
        let key = to_pem("PRIVATE KEY", &[0]).into_bytes();
        let why = "failed to parse SVID: expected block type \"CERTIFICATE\"; got \"PRIVATE KEY\"";
        check_refused(&with(&[key, pem].concat()), why);
    }

    #[test]
    fn a_damaged_file_is_refused_by_name_and_left_alone() {
        check_refused("", "EOF while parsing");
        check_refused(STORED[0].split_at(900).0, "EOF while parsing");
        check_refused(r#"{"svid":["%"]}"#, "failed to parse SVID: not base64");
        check_refused(r#"{"bundle":["AAAA"]}"#, "failed to parse bundle: no PEM block");
        check_refused(r#"{"svid":[null]}"#, "failed to parse SVID: no PEM blocks");
        check_refused("[]", "invalid type: sequence");
        for time in ["yesterday", "2026-11-27 08:01:02Z", "2026-11-27t08:01:02Z", "2026-11-27T08:01:02z"] {
            let text = format!(r#"{{"bootstrap_start_time":"{time}"}}"#);
            check_refused(&text, "failed to parse bootstrap_start_time");
        }
    }

    #[tokio::test]
    async fn what_is_changed_is_on_disk_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("data")).unwrap();
        assert_eq!(store.data(), AgentData::default());
        let data = AgentData::from_json(STORED[0].as_bytes()).unwrap();

        store.update(move |stored| *stored = data).await.unwrap();

        let path = directory.path().join("data").join(FILE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), STORED[0].trim_end());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let again = Store::open(&directory.path().join("data")).unwrap();
        assert_eq!(again.data(), store.data());
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("data")).unwrap();
        std::fs::remove_dir(directory.path().join("data")).unwrap();

        store.update(|data| data.attempts = 1).await.unwrap_err();

        assert_eq!(store.data().attempts, 0);
    }
}
