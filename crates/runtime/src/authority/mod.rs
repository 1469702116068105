//! Lets clients through that put the path of a Unix socket where HTTP/2 wants a host.
//!
//! gRPC's C core (C++, Python, Ruby, PHP), Java and Swift send the path of the socket, plain or
//! percent-encoded, as `:authority`. The HTTP/2 library here resets every such call, as RFC 3986 has no
//! such host, and has no option to let it be (hyperium/h2#487). So on Unix sockets a [`Filtered`]
//! stands before it: it reads the header blocks of the client and puts `localhost` in the place of an
//! authority that would be refused. Everything else goes through byte by byte, and after a first call
//! with a proper authority, so does everything: a channel has one authority.
//!
//! The filter only ever replaces what was to be refused. What it does not understand it hands on for
//! the library to answer, so a hostile client gains nothing over one that is not filtered.

mod block;
mod filter;
mod hpack;
mod huffman;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use filter::Filter;

/// The server's side of an HTTP/2 connection, filtered in what it reads.
#[derive(Debug)]
pub struct Filtered<S> {
    stream: S,
    /// Nothing once the rest of the connection goes through as it is.
    inbound: Option<Box<Inbound>>,
}

#[derive(Debug)]
struct Inbound {
    filter: Filter,
    /// What went through the filter and has not been read yet.
    ready: Vec<u8>,
    /// How much of `ready` has been read.
    read: usize,
}

impl<S> Filtered<S> {
    /// For a connection of which nothing has been read yet.
    #[must_use]
    pub fn new(stream: S) -> Self {
        let inbound = Inbound { filter: Filter::new(), ready: Vec::new(), read: 0 };
        Self { stream, inbound: Some(Box::new(inbound)) }
    }
}

impl Inbound {
    /// Reads what is ready, if anything is.
    fn read(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let Some(rest) = self.ready.get(self.read..).filter(|rest| !rest.is_empty()) else { return false };
        let (now, _) = rest.split_at(rest.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.read += now.len();
        if self.read == self.ready.len() {
            self.read = 0;
            self.ready.clear();
            // What one long header block needed is not kept for a connection that idles.
            self.ready.shrink_to(PIECE);
        }
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Filtered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        while let Some(inbound) = &mut this.inbound {
            if inbound.read(buffer) {
                return Poll::Ready(Ok(()));
            }
            if inbound.filter.is_done() {
                this.inbound = None;
                break;
            }
            let mut piece = [0; PIECE];
            let mut received = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut received))?;
            if received.filled().is_empty() {
                inbound.filter.end(&mut inbound.ready);
            } else {
                inbound.filter.push(received.filled(), &mut inbound.ready);
            }
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Filtered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// How much is read at once while filtering.
const PIECE: usize = 4096;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_read_in_small_pieces_is_whole() {
        let (mut client, server) = tokio::io::duplex(7);
        let sent = filter::tests::connection("/tmp/d/x.sock");
        let expected = filter::tests::filtered(&sent);
        let mut filtered = Filtered::new(server);

        let writing = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let reading = async {
            let mut received = Vec::new();
            let mut piece = [0; 5];
            loop {
                match filtered.read(&mut piece).await.unwrap() {
                    0 => return received,
                    length => received.extend_from_slice(&piece[..length]),
                }
            }
        };
        let ((), received) = tokio::join!(writing, reading);

        assert_eq!(received, expected);
        assert!(filtered.inbound.is_none(), "nothing is left to filter after the end");
    }
}
