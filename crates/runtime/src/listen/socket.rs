//! A local connection, watched only for what somebody waits for.
//!
//! Tokio's own is watched both ways from the start, so that its thread is woken each time the client
//! takes in what was sent to it, for nothing. Here it is watched for what the client sends; only when a
//! write had to wait for the client it is watched for that too.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, SocketFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sys;

/// A Unix socket that accepts. Watched from the first time that somebody waits for a connection, by the
/// runtime that this happens in.
#[derive(Debug)]
pub(super) struct Accepting {
    socket: OwnedFd,
    watched: Option<AsyncFd<OwnedFd>>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Socket {
    readable: AsyncFd<OwnedFd>,
    /// Another descriptor of the same connection, once a write had to wait.
    writable: Option<AsyncFd<OwnedFd>>,
    /// Nobody has read yet. Who connects mostly has sent something by then, so that it need not be waited
    /// for to be told of it.
    is_new: bool,
}

impl Accepting {
    /// Takes a socket that listens and does not block.
    pub(super) const fn new(socket: OwnedFd) -> Self {
        Self { socket, watched: None }
    }

    /// The next connection. Cancel-safe.
    pub(super) async fn accept(&mut self) -> io::Result<Socket> {
        let watched = match &mut self.watched {
            Some(watched) => watched,
            none => none.insert(sys::watched(self.socket.try_clone()?)?),
        };
        loop {
            let mut ready = watched.readable().await?;
            match rustix::net::accept_with(watched.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    // Asking whether there are more costs a tenth of accepting in vain, for which the
                    // kernel makes a socket and a file first.
                    if sys::can_be_read(watched.get_ref().as_fd()).is_ok_and(|more| !more) {
                        ready.clear_ready();
                    }
                    return Ok(Socket { readable: sys::watched(socket)?, writable: None, is_new: true });
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Accepting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.get_ref().as_fd()
    }
}

impl Socket {
    /// Sends what can be sent now; if that is nothing, the task is woken when it can.
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        send: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = match &self.writable {
                Some(writable) => Some(ready!(writable.poll_write_ready(context))?),
                None => None,
            };
            match (send(self.as_fd()), &mut ready) {
                (Ok(sent), _) => return Poll::Ready(Ok(sent)),
                (Err(Errno::INTR), _) => {}
                (Err(Errno::AGAIN), Some(ready)) => ready.clear_ready(),
                (Err(Errno::AGAIN), None) => {
                    let another = self.readable.get_ref().try_clone()?;
                    self.writable = Some(sys::watched_for_room(another)?);
                }
                (Err(error), _) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.is_new) && sys::read(self.as_fd(), buffer).is_ok_and(|read| read > 0) {
            return Poll::Ready(Ok(()));
        }
        let wanted = buffer.remaining();
        loop {
            let mut ready = ready!(self.readable.poll_read_ready(context))?;
            match sys::read(self.as_fd(), buffer) {
                Ok(read) => {
                    // Less than there was room for: it was all there is, and more will be told. The end
                    // of the connection stays told.
                    if 0 < read && read < wanted {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, |socket| rustix::net::send(socket, bytes, SendFlags::NOSIGNAL))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(self.as_fd(), Shutdown::Write).map_err(Into::into))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, |socket| rustix::io::writev(socket, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn pair(folder: &Path) -> (Socket, tokio::net::UnixStream) {
        let path = folder.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut accepting = Accepting::new(listener.into());
        let client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        (accepting.accept().await.unwrap(), tokio::net::UnixStream::from_std(client).unwrap())
    }

    #[tokio::test]
    async fn what_does_not_fit_waits_for_the_client_and_arrives_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (mut socket, mut client) = pair(folder.path()).await;
        let sent: Vec<u8> = (0..4_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();

        let writing = async {
            socket.write_all(&sent).await.unwrap();
            assert!(socket.writable.is_some(), "it had to wait");
            socket.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, read) = tokio::join!(writing, client.read_to_end(&mut received));

        assert_eq!(read.unwrap(), sent.len());
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn who_comes_together_with_others_is_accepted_and_so_is_who_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut accepting = Accepting::new(listener.into());

        for together in [3, 1, 2] {
            let clients: Vec<_> = (0..together).map(|_| UnixStream::connect(&path).unwrap()).collect();
            for _ in &clients {
                accepting.accept().await.unwrap();
            }
            assert!(futures::poll!(std::pin::pin!(accepting.accept())).is_pending());
        }
    }

    #[tokio::test]
    async fn what_was_sent_before_somebody_read_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (mut socket, mut client) = pair(folder.path()).await;
        client.write_all(b"early").await.unwrap();

        let mut received = [0; 8];
        assert_eq!(socket.read(&mut received).now_or_never().unwrap().unwrap(), 5);
        assert!(socket.read(&mut received).now_or_never().is_none());
        client.write_all(b"late").await.unwrap();
        assert_eq!(socket.read(&mut received).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn what_comes_in_pieces_is_read_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut socket, mut client) = pair(folder.path()).await;

        let writing = async {
            for piece in ["a", "bc", "def"] {
                client.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let mut received = String::new();
        let ((), read) = tokio::join!(writing, socket.read_to_string(&mut received));

        assert_eq!((read.unwrap(), received.as_str()), (6, "abcdef"));
    }

    #[tokio::test]
    async fn a_client_that_has_gone_ends_reading_and_writing() {
        let folder = tempfile::tempdir().unwrap();
        let (mut socket, client) = pair(folder.path()).await;
        drop(client);

        assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(socket.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let pieces = [IoSlice::new(b"x"), IoSlice::new(b"y")];
        assert_eq!(socket.write_vectored(&pieces).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
