//! The sealed file and its key file.
//!
//! The vault is a header, which is authenticated, and what AES-256-GCM makes of the contents. Its key
//! comes by HKDF-SHA256 (RFC 5869) from the secret in the key file, and from the service manager's
//! credential where there is one; it is bound to the agent's id, the machine and the directory, so
//! that a copy opens nowhere else.
//!
//! Each time the vault is written its secret is the next of a chain in which nobody can go back, and
//! its generation one more. The vault is written first and the key file after it: whenever the process
//! is killed, the key file opens the vault that is there, or leads to its key in one step. It opens no
//! vault of before.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use runtime::files;
use zeroize::Zeroizing;

/// The sealed file in the data directory.
pub(crate) const FILE: &str = "vault";
/// The file of its secret.
pub(super) const KEY_FILE: &str = "vault.key";
/// The name of the service manager's credential.
pub(super) const CREDENTIAL: &str = "finial-vault-key";
/// Far more than the identities of a node take.
pub(super) const MAX_FILE: u64 = 128 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"FNLVAULT";
const KEY_MAGIC: &[u8; 8] = b"FNLVLTKY";
const VERSION: u16 = 1;
const SECRET: usize = 32;
const HEADER: usize = MAGIC.len() + 2 + 8 + NONCE_LEN;
const KEY_LENGTH: usize = KEY_MAGIC.len() + 8 + SECRET;
const MAX_CREDENTIAL: u64 = 4096;
const LEAST_CREDENTIAL: usize = 16;
const MAX_MACHINE_ID: u64 = 256;

/// What the key is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    /// The agent's SPIFFE ID.
    pub(super) agent_id: String,
    /// What `/etc/machine-id` says; empty where there is none.
    pub(super) machine_id: String,
    /// The data directory, without links in it.
    pub(super) directory: PathBuf,
}

/// Why a vault cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no key file for it")]
    NoKey,
    #[error("its key file is damaged")]
    DamagedKey,
    #[error("it is no vault, or the beginning of one")]
    Truncated,
    #[error("it is of format {0}, which this version does not know")]
    Version(u16),
    #[error("it is stale: of generation {found}, and {expected} was written since")]
    Stale { found: u64, expected: u64 },
    #[error("it is of generation {found}, and its key file of {expected}: one of them was put back")]
    KeyPutBack { found: u64, expected: u64 },
    #[error("it was cut off or tampered with, or sealed for another agent, machine, directory or credential")]
    Unsealable,
}

/// Why a vault cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error("cannot write {path}: {source}", path = .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("what is to be kept is larger than a vault may be")]
    TooLarge,
    #[error("cannot seal the vault")]
    Failed,
}

/// The two files of a directory.
pub(super) struct Seal {
    directory: PathBuf,
    credential: Option<Zeroizing<Vec<u8>>>,
    /// Nothing until the key file was read or made.
    link: Option<Link>,
}

/// A link of the chain of secrets.
struct Link {
    generation: u64,
    secret: Zeroizing<[u8; SECRET]>,
}

impl Seal {
    /// The files in `directory`, neither read nor made yet.
    pub(super) fn new(directory: &Path, credential: Option<Zeroizing<Vec<u8>>>) -> Self {
        Self { directory: directory.to_owned(), credential, link: None }
    }

    /// Opens the vault: the contents, or `None` where there is none.
    pub(super) fn open(&mut self, binding: &Binding) -> Result<Option<Zeroizing<Vec<u8>>>, Refused> {
        let path = self.directory.join(FILE);
        let sealed = match read(&path, MAX_FILE) {
            Ok(sealed) => sealed,
            Err(Refused::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let link = self.load_link()?;
        let header = Header::parse(&sealed)?;
        let expected = link.generation;
        let link = match header.generation.checked_sub(expected) {
            Some(0) => link,
            Some(1) => link.next().map_err(|_| Refused::Unsealable)?,
            None => return Err(Refused::Stale { found: header.generation, expected }),
            Some(_) => return Err(Refused::KeyPutBack { found: header.generation, expected }),
        };
        let contents = self.unseal(sealed, &header, &link, binding).map_err(|_| Refused::Unsealable)?;
        // The process was killed between the two files: the older vault must not open any more.
        if link.generation != expected {
            self.store_link(&link).map_err(|error| match error {
                SealError::Write { path, source } => Refused::Read { path, source },
                SealError::TooLarge | SealError::Failed => Refused::DamagedKey,
            })?;
        }
        self.link = Some(link);
        Ok(Some(contents))
    }

    /// Writes the vault. What was written before cannot be opened any more once this returns.
    pub(super) fn write(
        &mut self,
        mut contents: Zeroizing<Vec<u8>>,
        binding: &Binding,
    ) -> Result<usize, SealError> {
        if self.link.is_none() {
            // Never the key of what could not be used.
            let first = Link::first().map_err(|_| SealError::Failed)?;
            self.store_link(&first)?;
            self.link = Some(first);
        }
        let link = self.link.as_ref().ok_or(SealError::Failed)?.next().map_err(|_| SealError::Failed)?;
        let mut nonce = [0_u8; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Failed)?;
        let header = Header { generation: link.generation, nonce };
        let bytes = header.to_bytes();
        let key = self.key(&link, binding).map_err(|_| SealError::Failed)?;
        let tag = key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&bytes),
            contents.as_mut_slice(),
        );
        let tag = tag.map_err(|_| SealError::Failed)?;
        let sealed = [&bytes[..], &contents, tag.as_ref()].concat();
        if u64::try_from(sealed.len()).is_ok_and(|length| length > MAX_FILE) {
            return Err(SealError::TooLarge);
        }
        let path = self.directory.join(FILE);
        files::replace(&path, &sealed, 0o600).map_err(|source| SealError::Write { path, source })?;
        self.store_link(&link)?;
        self.link = Some(link);
        Ok(sealed.len())
    }

    /// Removes both files, the key first: without it the rest is noise.
    pub(super) fn destroy(&mut self) -> Result<(), SealError> {
        self.link = None;
        let mut is_changed = false;
        for name in [KEY_FILE, FILE, "vault.tmp", "vault.key.tmp"] {
            let path = self.directory.join(name);
            match std::fs::remove_file(&path) {
                Ok(()) => is_changed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(SealError::Write { path, source }),
            }
        }
        if is_changed {
            let path = self.directory.clone();
            let synced = std::fs::File::open(&path).and_then(|directory| directory.sync_all());
            synced.map_err(|source| SealError::Write { path, source })?;
        }
        Ok(())
    }

    fn load_link(&self) -> Result<Link, Refused> {
        let path = self.directory.join(KEY_FILE);
        let bytes = match read(&path, KEY_LENGTH as u64) {
            Ok(bytes) => bytes,
            Err(Refused::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Refused::NoKey);
            }
            Err(Refused::Read { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => {
                return Err(Refused::DamagedKey);
            }
            Err(error) => return Err(error),
        };
        Link::parse(&bytes).ok_or(Refused::DamagedKey)
    }

    fn store_link(&self, link: &Link) -> Result<(), SealError> {
        let path = self.directory.join(KEY_FILE);
        files::replace(&path, &link.to_bytes(), 0o600).map_err(|source| SealError::Write { path, source })
    }

    fn unseal(
        &self,
        mut sealed: Zeroizing<Vec<u8>>,
        header: &Header,
        link: &Link,
        binding: &Binding,
    ) -> Result<Zeroizing<Vec<u8>>, Unspecified> {
        let key = self.key(link, binding)?;
        let mut body = Zeroizing::new(sealed.split_off(HEADER));
        let nonce = Nonce::assume_unique_for_key(header.nonce);
        let length = key.open_in_place(nonce, Aad::from(&header.to_bytes()), &mut body)?.len();
        body.truncate(length);
        Ok(body)
    }

    fn key(&self, link: &Link, binding: &Binding) -> Result<LessSafeKey, Unspecified> {
        let mut material = Zeroizing::new(link.secret.to_vec());
        if let Some(credential) = &self.credential {
            material.extend_from_slice(credential);
        }
        let context = binding.context(link.generation);
        let derived = Salt::new(HKDF_SHA256, b"finial vault 1").extract(&material);
        let info = [context.as_slice()];
        Ok(LessSafeKey::new(UnboundKey::from(derived.expand(&info, &AES_256_GCM)?)))
    }
}

impl Binding {
    /// Each part with its length, so that no two bindings read the same.
    fn context(&self, generation: u64) -> Vec<u8> {
        use std::os::unix::ffi::OsStrExt;
        let parts =
            [self.agent_id.as_bytes(), self.machine_id.as_bytes(), self.directory.as_os_str().as_bytes()];
        let mut context = generation.to_be_bytes().to_vec();
        for part in parts {
            context.extend_from_slice(&(part.len() as u64).to_be_bytes());
            context.extend_from_slice(part);
        }
        context
    }
}

impl Link {
    fn first() -> Result<Self, Unspecified> {
        let mut secret = Zeroizing::new([0_u8; SECRET]);
        SystemRandom::new().fill(secret.as_mut_slice())?;
        Ok(Self { generation: 0, secret })
    }

    fn next(&self) -> Result<Self, Unspecified> {
        let derived = Salt::new(HKDF_SHA256, b"finial vault chain").extract(self.secret.as_slice());
        let mut secret = Zeroizing::new([0_u8; SECRET]);
        derived.expand(&[b"next"], HKDF_SHA256)?.fill(secret.as_mut_slice())?;
        Ok(Self { generation: self.generation.checked_add(1).ok_or(Unspecified)?, secret })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(KEY_MAGIC)?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let secret: [u8; SECRET] = rest.try_into().ok()?;
        Some(Self { generation: u64::from_be_bytes(*generation), secret: Zeroizing::new(secret) })
    }

    fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_LENGTH));
        bytes.extend_from_slice(KEY_MAGIC);
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(self.secret.as_slice());
        bytes
    }
}

struct Header {
    generation: u64,
    nonce: [u8; NONCE_LEN],
}

impl Header {
    fn parse(sealed: &[u8]) -> Result<Self, Refused> {
        let rest = sealed.strip_prefix(MAGIC).ok_or(Refused::Truncated)?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(Refused::Truncated)?;
        let version = u16::from_be_bytes(*version);
        if version != VERSION {
            return Err(Refused::Version(version));
        }
        let (generation, rest) = rest.split_first_chunk::<8>().ok_or(Refused::Truncated)?;
        let (nonce, _) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Refused::Truncated)?;
        Ok(Self { generation: u64::from_be_bytes(*generation), nonce: *nonce })
    }

    fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0_u8; HEADER];
        let parts = [&MAGIC[..], &VERSION.to_be_bytes(), &self.generation.to_be_bytes(), &self.nonce];
        for (to, from) in bytes.iter_mut().zip(parts.concat()) {
            *to = from;
        }
        bytes
    }
}

/// The service manager's credential, where there is one.
pub(super) fn credential() -> Result<Option<Zeroizing<Vec<u8>>>, Refused> {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return Ok(None) };
    let path = Path::new(&directory).join(CREDENTIAL);
    // Service managers give their own modes; what is in their directory is for this process alone.
    let text = match std::fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Refused::Read { path, source }),
        Ok(metadata) if metadata.len() > MAX_CREDENTIAL => {
            return Err(Refused::Read { path, source: io::ErrorKind::FileTooLarge.into() });
        }
        Ok(_) => std::fs::read(&path).map(Zeroizing::new),
    };
    let text = text.map_err(|source| Refused::Read { path: path.clone(), source })?;
    if text.len() < LEAST_CREDENTIAL {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it is shorter than 16 bytes");
        return Err(Refused::Read { path, source });
    }
    Ok(Some(text))
}

/// What tells this machine from others; empty where nothing does.
pub(super) fn machine_id() -> String {
    let known = ["/etc/machine-id", "/var/lib/dbus/machine-id"].into_iter().find_map(|path| {
        let is_small = std::fs::metadata(path).is_ok_and(|file| file.len() <= MAX_MACHINE_ID);
        let text = is_small.then(|| std::fs::read_to_string(path).ok()).flatten()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    });
    known.unwrap_or_default()
}

fn read(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let bytes = files::read_private(path, limit);
    bytes.map(Zeroizing::new).map_err(|source| Refused::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    const SECRET_TEXT: &[u8] = b"what workloads get";

    struct World {
        directory: TempDir,
        binding: Binding,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let binding = Binding {
                agent_id: "spiffe://example.org/spire/agent/x".to_owned(),
                machine_id: "4f1d".to_owned(),
                directory: directory.path().to_owned(),
            };
            Self { directory, binding }
        }

        fn seal(&self) -> Seal {
            Seal::new(self.directory.path(), None)
        }

        fn written(text: &[u8]) -> (Self, Seal) {
            let world = Self::new();
            let mut seal = world.seal();
            seal.write(Zeroizing::new(text.to_vec()), &world.binding).unwrap();
            (world, seal)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// What the next start finds.
        fn open(&self) -> Result<Option<Vec<u8>>, String> {
            let opened = self.seal().open(&self.binding);
            opened.map(|contents| contents.map(|bytes| bytes.to_vec())).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn what_is_sealed_is_read_by_the_next_start() {
        let (world, mut seal) = World::written(b"first");
        assert_eq!(world.open(), Ok(Some(b"first".to_vec())));

        seal.write(Zeroizing::new(SECRET_TEXT.to_vec()), &world.binding).unwrap();

        assert_eq!(world.open(), Ok(Some(SECRET_TEXT.to_vec())));
        for name in [FILE, KEY_FILE] {
            assert_eq!(std::fs::metadata(world.file(name)).unwrap().permissions().mode() & 0o7777, 0o600);
            let bytes = std::fs::read(world.file(name)).unwrap();
            assert!(!bytes.windows(SECRET_TEXT.len()).any(|window| window == SECRET_TEXT));
        }
    }

    #[test]
    fn a_directory_without_a_vault_holds_nothing() {
        assert_eq!(World::new().open(), Ok(None));
    }

    #[test]
    fn any_changed_byte_and_any_missing_end_is_refused() {
        let (world, _) = World::written(SECRET_TEXT);
        let whole = std::fs::read(world.file(FILE)).unwrap();

        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(world.file(FILE), changed).unwrap();
            assert!(world.open().is_err(), "byte {at}");
            std::fs::write(world.file(FILE), &whole[..at]).unwrap();
            assert!(world.open().is_err(), "{at} bytes");
        }
        std::fs::write(world.file(FILE), &whole).unwrap();
        assert!(world.open().is_ok());
    }

    #[test]
    fn a_format_of_the_future_is_refused_by_its_number() {
        let (world, _) = World::written(SECRET_TEXT);
        let mut whole = std::fs::read(world.file(FILE)).unwrap();
        whole[MAGIC.len() + 1] = 2;
        std::fs::write(world.file(FILE), whole).unwrap();

        assert_eq!(world.open().unwrap_err(), "it is of format 2, which this version does not know");
    }

    #[test]
    fn an_older_vault_that_is_put_back_is_stale_and_its_key_is_gone() {
        let (world, mut seal) = World::written(b"with the deleted entry");
        let older = std::fs::read(world.file(FILE)).unwrap();
        seal.write(Zeroizing::new(b"without it".to_vec()), &world.binding).unwrap();

        std::fs::write(world.file(FILE), &older).unwrap();
        assert_eq!(world.open().unwrap_err(), "it is stale: of generation 1, and 2 was written since");
        // Nor does it help to claim another generation.
        let mut forged = older;
        forged[MAGIC.len() + 2 + 7] = 2;
        std::fs::write(world.file(FILE), forged).unwrap();
        assert!(world.open().unwrap_err().starts_with("it was cut off or tampered with"));
    }

    #[test]
    fn a_key_file_that_is_put_back_opens_nothing() {
        let (world, mut seal) = World::written(b"1");
        let older = std::fs::read(world.file(KEY_FILE)).unwrap();
        for text in [b"2", b"3"] {
            seal.write(Zeroizing::new(text.to_vec()), &world.binding).unwrap();
        }

        std::fs::write(world.file(KEY_FILE), older).unwrap();

        assert!(world.open().unwrap_err().contains("one of them was put back"));
    }

    #[test]
    fn killed_between_the_two_files_the_newer_vault_counts_and_the_older_is_dead() {
        let (world, mut seal) = World::written(b"older");
        let (older, key) =
            (std::fs::read(world.file(FILE)).unwrap(), std::fs::read(world.file(KEY_FILE)).unwrap());
        seal.write(Zeroizing::new(b"newer".to_vec()), &world.binding).unwrap();
        std::fs::write(world.file(KEY_FILE), key).unwrap();
        std::fs::set_permissions(world.file(KEY_FILE), std::fs::Permissions::from_mode(0o600)).unwrap();

        assert_eq!(world.open(), Ok(Some(b"newer".to_vec())));
        std::fs::write(world.file(FILE), older).unwrap();
        assert!(world.open().unwrap_err().contains("stale"));
    }

    #[test]
    fn it_opens_for_no_other_agent_machine_directory_or_credential() {
        let (world, _) = World::written(SECRET_TEXT);
        let own = &world.binding;
        let others = [
            Binding { agent_id: "spiffe://example.org/spire/agent/y".to_owned(), ..own.clone() },
            Binding { machine_id: String::new(), ..own.clone() },
            Binding { directory: "/elsewhere".into(), ..own.clone() },
        ];

        for other in others {
            let refused = world.seal().open(&other).unwrap_err().to_string();
            assert!(
                refused.starts_with("it was cut off or tampered with, or sealed for another agent"),
                "{other:?}"
            );
        }
        let credential = Some(Zeroizing::new(b"from the service manager".to_vec()));
        let mut with = Seal::new(world.directory.path(), credential.clone());
        assert!(with.open(own).is_err());
        with.write(Zeroizing::new(b"more".to_vec()), own).unwrap();
        assert!(world.open().is_err());
        let mut with = Seal::new(world.directory.path(), credential);
        assert_eq!(with.open(own).unwrap().unwrap().as_slice(), b"more");
    }

    #[test]
    fn files_open_to_others_and_files_too_long_are_refused() {
        let (world, _) = World::written(SECRET_TEXT);
        let mode = |name: &str, mode| {
            std::fs::set_permissions(world.file(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for name in [FILE, KEY_FILE] {
            mode(name, 0o640);
            assert!(world.open().unwrap_err().contains("others than its owner have access"), "{name}");
            mode(name, 0o600);
        }
        let longer = [std::fs::read(world.file(KEY_FILE)).unwrap(), vec![0]].concat();
        std::fs::write(world.file(KEY_FILE), longer).unwrap();
        assert_eq!(world.open().unwrap_err(), "its key file is damaged");
        std::fs::remove_file(world.file(KEY_FILE)).unwrap();
        assert_eq!(world.open().unwrap_err(), "there is no key file for it");
    }

    #[test]
    fn what_was_refused_is_made_anew_under_another_secret() {
        let (world, _) = World::written(SECRET_TEXT);
        let before = std::fs::read(world.file(KEY_FILE)).unwrap();
        std::fs::write(world.file(FILE), b"garbage").unwrap();
        let mut seal = world.seal();
        assert!(seal.open(&world.binding).is_err());

        seal.write(Zeroizing::new(b"anew".to_vec()), &world.binding).unwrap();

        assert_eq!(world.open(), Ok(Some(b"anew".to_vec())));
        assert_ne!(std::fs::read(world.file(KEY_FILE)).unwrap(), before);
    }

    #[test]
    fn what_is_destroyed_leaves_no_file() {
        let (world, mut seal) = World::written(SECRET_TEXT);

        seal.destroy().unwrap();

        assert_eq!(std::fs::read_dir(world.directory.path()).unwrap().count(), 0);
        seal.destroy().unwrap();
    }

    #[test]
    fn a_link_leads_forward_only() {
        let first = Link::first().unwrap();
        let next = first.next().unwrap();

        assert_eq!((first.generation, next.generation), (0, 1));
        assert_ne!(first.secret, next.secret);
        assert_eq!(first.next().unwrap().secret, next.secret);
    }
}
