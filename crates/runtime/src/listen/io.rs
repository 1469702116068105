//! A connection as HTTP/2 sees it: greeted by the client, TLS and the filter of authorities behind it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::gathered::{Gathered, Outlet};
use super::socket::Socket;
use crate::authority::Filtered;

/// One type for all listeners: HTTP/2 over it is compiled once.
pub(super) enum Io {
    Tls(Gathered<Tls>),
    Unix(Filtered<Greeted<Socket>>),
    UnixTls(Filtered<Greeted<Box<TlsStream<Socket>>>>),
    /// For documents rather than calls.
    Web(Box<TlsStream<TcpStream>>),
}

type Tls = Greeted<Box<TlsStream<TcpStream>>>;

impl Io {
    /// What has to be told when the connection has been polled, so that what it wrote goes out.
    pub(super) fn outlet(&self) -> Option<Outlet<Tls>> {
        match self {
            Self::Tls(stream) => Some(stream.outlet()),
            // Private keys go over these, of which no copy may be made.
            Self::Unix(_) | Self::UnixTls(_) => None,
            Self::Web(_) => None,
        }
    }
}

/// A connection whose client has sent HTTP/2's preface, which is read again from here with what came
/// along with it.
///
/// As long as that lasts, what is sent is held back: HTTP/2 sends its settings first and then what it
/// has to say to those of the client, which have nearly always come with the preface. Both go in one
/// piece, and the client is woken once. What is held goes out with the flush that ends each turn of an
/// HTTP/2 connection, which does not wait before it has read all that is there.
pub(super) struct Greeted<S> {
    stream: S,
    /// What the client has sent; empty once it was read again.
    received: Vec<u8>,
    /// How much of it was.
    replayed: usize,
    held: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeted<S> {
    /// Waits for the preface. Not bounded in time.
    pub(super) async fn by_client(mut stream: S) -> io::Result<Self> {
        let mut received = Vec::with_capacity(PIECE);
        while received.len() < PREFACE.len() {
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if !received.starts_with(PREFACE) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the client does not speak HTTP/2"));
        }
        Ok(Self { stream, received, replayed: 0, held: Vec::new() })
    }

    /// Takes bytes to be sent later, if there is reason to wait for more or others wait already.
    fn hold(&mut self, slices: &[IoSlice<'_>]) -> Option<usize> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        let is_time = !self.received.is_empty() || !self.held.is_empty();
        (is_time && self.held.len() + length <= PIECE).then(|| {
            slices.iter().for_each(|slice| self.held.extend_from_slice(slice));
            length
        })
    }

    /// Sends what is held.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..sent);
            if self.held.is_empty() {
                self.held = Vec::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(rest) = this.received.get(this.replayed..).filter(|rest| !rest.is_empty()) {
            let (now, _) = rest.split_at(rest.len().min(buffer.remaining()));
            buffer.put_slice(now);
            this.replayed += now.len();
            if this.replayed == this.received.len() {
                this.received = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(length) = self.hold(&[IoSlice::new(bytes)]) {
            return Poll::Ready(Ok(length));
        }
        ready!(self.poll_held(context))?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.received.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_held(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(length) = self.hold(slices) {
            return Poll::Ready(Ok(length));
        }
        ready!(self.poll_held(context))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::UnixTls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Web(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::UnixTls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Web(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::UnixTls(stream) => Pin::new(stream).poll_flush(context),
            Self::Web(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::UnixTls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Web(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::UnixTls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Web(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::UnixTls(stream) => stream.is_write_vectored(),
            Self::Web(stream) => stream.is_write_vectored(),
        }
    }
}

/// What an HTTP/2 client begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much is taken at first, and held back at most. A first call is a few hundred bytes.
const PIECE: usize = 1024;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;

    async fn greeted(sent: &[u8]) -> (Greeted<DuplexStream>, DuplexStream) {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        client.write_all(sent).await.unwrap();
        (Greeted::by_client(server).await.unwrap(), client)
    }

    /// What the client finds without waiting.
    async fn arrived(client: &mut DuplexStream) -> Vec<u8> {
        let mut found = vec![0; 64 << 10];
        let read = futures::poll!(std::pin::pin!(client.read(&mut found)));
        found.truncate(match read {
            Poll::Ready(read) => read.unwrap(),
            Poll::Pending => 0,
        });
        found
    }

    #[tokio::test]
    async fn what_comes_with_the_preface_is_read_again_whole() {
        let sent = [&PREFACE[..], b"frames"].concat();
        let (mut stream, mut client) = greeted(&sent).await;
        client.write_all(b" and more").await.unwrap();
        drop(client);

        let mut received = Vec::new();
        let mut piece = [0; 7];
        while let read @ 1.. = stream.read(&mut piece).await.unwrap() {
            received.extend_from_slice(&piece[..read]);
        }

        assert_eq!(received, [&sent[..], b" and more"].concat());
    }

    #[tokio::test]
    async fn a_preface_in_pieces_is_waited_for_and_another_beginning_refused() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut waiting = Box::pin(Greeted::by_client(server));
        for piece in PREFACE.chunks(5) {
            assert!(futures::poll!(&mut waiting).is_pending());
            client.write_all(piece).await.unwrap();
        }
        assert_eq!(waiting.await.unwrap().received, PREFACE);

        for other in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &PREFACE[..23]] {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(other).await.unwrap();
            drop(client);
            assert!(Greeted::by_client(server).await.is_err());
        }
    }

    #[tokio::test]
    async fn answers_to_what_came_with_the_preface_go_in_one_piece() {
        let (mut stream, mut client) = greeted(PREFACE).await;

        stream.write_all(b"settings").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(arrived(&mut client).await, b"");
        stream.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        assert_eq!(stream.write_vectored(&[IoSlice::new(b", "), IoSlice::new(b"ack")]).await.unwrap(), 5);
        assert_eq!(arrived(&mut client).await, b"");
        stream.flush().await.unwrap();

        assert_eq!(arrived(&mut client).await, b"settings, ack");
        assert_eq!(stream.write(b"later").await.unwrap(), 5);
        assert_eq!(arrived(&mut client).await, b"later");
    }

    #[tokio::test]
    async fn what_is_too_long_to_be_held_follows_what_is() {
        let (mut stream, mut client) = greeted(PREFACE).await;
        let long = vec![7; PIECE];

        stream.write_all(b"settings").await.unwrap();
        stream.write_all(&long).await.unwrap();

        assert_eq!(arrived(&mut client).await, [b"settings", &long[..]].concat());
    }

    #[tokio::test]
    async fn what_is_held_is_sent_before_the_end() {
        let (mut stream, mut client) = greeted(PREFACE).await;

        stream.write_all(b"goodbye").await.unwrap();
        stream.shutdown().await.unwrap();

        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"goodbye");
    }
}
