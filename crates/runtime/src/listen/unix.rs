//! Unix sockets: made, given their modes, and removed again.

use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::socket::{Accepting, Socket};
use super::{ListenError, Peer, TlsSource, handed};
use crate::peer::{Caller, CallerError};
use crate::sys::{self, PeerCredentials};

/// How a socket is made and who may call.
#[derive(Clone, Copy, Debug)]
pub struct UnixOptions {
    /// The mode of the folders above it, where they are missing.
    pub directory_mode: u32,
    /// The mode of the socket.
    pub socket_mode: u32,
    /// Whether a caller must be known.
    pub callers: Callers,
}

/// Whether the process at the other end must be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// A connection whose process cannot be told is closed.
    Required,
    /// It is taken all the same: who may open the socket may call.
    IfKnown,
}

/// A Unix socket that is listened on; dropping it removes the socket.
pub struct UnixListener {
    socket: Accepting,
    name: Name,
    callers: Callers,
    tls: Option<TlsSource>,
}

/// The socket's name in the file system. Removed only while it is still ours: another process may
/// have put its own there.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Whether it is to be removed at all: who made a socket that was passed to us does that.
    is_ours: bool,
}

impl UnixListener {
    /// Makes the socket, with the folders above it. One that nobody answers on any more is replaced, one
    /// that was passed to this program is taken as it is. Clients may connect from now on; the runtime
    /// that serves them need not run yet.
    ///
    /// # Errors
    /// A process answers on it, something that is no socket has the name, or what the system says.
    pub fn bind(path: &Path, options: UnixOptions) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Socket { path: path.to_owned(), source };
        if let Some(taken) = handed::take_unix(path) {
            let is_ours = !taken.is_managers;
            let socket = BlockingListener::from(taken.socket);
            return Self::over(socket, path, is_ours, options.callers).map_err(failed);
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_folders(folder, options.directory_mode).map_err(failed)?;
        }
        remove_stale(path)?;
        let socket = BlockingListener::bind(path).map_err(|source| {
            // Somebody was faster.
            let is_taken = source.kind() == io::ErrorKind::AddrInUse;
            if is_taken { ListenError::InUse { path: path.to_owned() } } else { failed(source) }
        })?;
        // Until here its mode is what the umask leaves, which is less than what is asked for. Nobody
        // can connect before it is set: a client that could, may.
        fs::set_permissions(path, Permissions::from_mode(options.socket_mode)).map_err(failed)?;
        Self::over(socket, path, true, options.callers).map_err(failed)
    }

    /// Speaks TLS: for callers who must prove more than that they may open the socket.
    #[must_use]
    pub fn with_tls(mut self, config: TlsSource) -> Self {
        self.tls = Some(config);
        self
    }

    fn over(socket: BlockingListener, path: &Path, is_ours: bool, callers: Callers) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        handed::keep(&socket, !is_ours)?;
        let metadata = fs::symlink_metadata(path)?;
        let name = Name { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino(), is_ours };
        Ok(Self { socket: Accepting::new(socket.into()), name, callers, tls: None })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.name.path
    }

    pub(super) async fn accept(&mut self) -> io::Result<Arrival> {
        let socket = self.socket.accept().await?;
        let credentials = sys::peer_credentials(socket.as_fd());
        Ok(Arrival { socket, credentials, callers: self.callers, tls: self.tls.as_ref().map(|tls| tls()) })
    }
}

impl fmt::Debug for UnixListener {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("UnixListener").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if !self.is_ours || handed::is_handing_over() {
            return;
        }
        let ours = |metadata: fs::Metadata| metadata.dev() == self.device && metadata.ino() == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // It is gone, or will be found stale by the next who wants the name.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// A process that connected.
pub(super) struct Arrival {
    socket: Socket,
    credentials: io::Result<PeerCredentials>,
    callers: Callers,
    tls: Option<Arc<ServerConfig>>,
}

/// A connection to a socket.
pub(super) enum Opened {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Arrival {
    /// The user who connected.
    pub(super) fn user(&self) -> Option<u32> {
        self.credentials.as_ref().ok().map(|credentials| credentials.uid)
    }

    /// The connection and who made it. A TLS handshake is not bounded in time.
    pub(super) async fn identify(self) -> Result<(Opened, Peer), CallerError> {
        let socket = self.socket.as_fd();
        let credentials = self.credentials.map_err(CallerError::from);
        let caller = match credentials.and_then(|found| Caller::with_credentials(socket, found)) {
            Ok(caller) => Some(caller),
            Err(_) if self.callers == Callers::IfKnown => None,
            Err(error) => return Err(error),
        };
        let Some(config) = self.tls else { return Ok((Opened::Plain(self.socket), Peer::local(caller))) };
        let stream = TlsAcceptor::from(config).accept(self.socket).await?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(b"h2") {
            let text = "the client does not speak HTTP/2";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text).into());
        }
        let certificates = session.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Ok((Opened::Tls(Box::new(stream)), Peer::local_with(caller, certificates)))
    }
}

/// Refuses a path for a socket where everybody could put another one in its place: below a folder that
/// everybody may write to, unless it keeps what others made (the sticky bit).
///
/// # Errors
/// [`ListenError::Exposed`] with that folder.
pub fn check_exposure(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(failed)?;
    // Those that are missing are made, with a mode that is known.
    let Some(real) = absolute.ancestors().skip(1).find_map(|folder| folder.canonicalize().ok()) else {
        return Ok(());
    };
    for folder in real.ancestors() {
        let mode = fs::metadata(folder).map_err(failed)?.permissions().mode();
        if mode & WRITABLE_BY_ALL != 0 && mode & STICKY == 0 {
            return Err(ListenError::Exposed { path: path.to_owned(), folder: folder.to_owned() });
        }
    }
    Ok(())
}

const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Makes the folders that are missing, with exactly this mode: the umask would take away from it what
/// callers who run as somebody else need.
fn make_folders(folder: &Path, mode: u32) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    for path in missing.into_iter().rev() {
        match DirBuilder::new().mode(mode).create(path) {
            Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode))?,
            // Somebody was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NoSocket { path: path.to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match BlockingStream::connect(path) {
        Ok(_) => Err(ListenError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e05_a_folder_that_everybody_may_write_to_is_no_place_for_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("a/b");
        make_folders(&folder, 0o755).unwrap();
        let socket = folder.join("missing/api.sock");
        let exposed = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            check_exposure(&socket).is_err()
        };

        for path in [folder.as_path(), folder.parent().unwrap()] {
            assert!(!exposed(path, 0o770) && !exposed(path, 0o1777) && !exposed(path, 0o755));
            assert!(exposed(path, 0o777) && exposed(path, 0o702));
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        // Whatever leads there.
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        let refused = check_exposure(&link.join("api.sock")).unwrap_err();
        assert!(
            matches!(&refused, ListenError::Exposed { folder: named, .. }
            if *named == folder.canonicalize().unwrap()),
            "{refused}"
        );
    }

    #[test]
    fn folders_get_their_mode_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("a/b");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let before = mode(directory.path());

        make_folders(&folder, 0o777).unwrap();
        make_folders(&folder, 0o700).unwrap();

        assert_eq!((mode(&folder), mode(folder.parent().unwrap())), (0o777, 0o777));
        assert_eq!(mode(directory.path()), before);
    }
}
