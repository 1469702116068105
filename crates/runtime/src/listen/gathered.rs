//! Writes that go out together.
//!
//! HTTP/2 flushes after nearly every frame, so an answer would be written as its headers and first data,
//! more data, and trailers: each a system call, a TLS record and a packet of its own, for which the client
//! wakes up. Here they gather until the connection has said all that it has to say for now. Only whoever
//! drives the connection knows when that is: it calls [`Outlet::poll_send`] each time the connection has
//! been polled.
//!
//! What gathers is copied and not wiped, so this is not for connections over which private keys go.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes gather.
pub(super) struct Gathered<S>(Arc<Mutex<Gathering<S>>>);

/// Where what has gathered goes out.
pub(super) struct Outlet<S>(Arc<Mutex<Gathering<S>>>);

struct Gathering<S> {
    stream: S,
    /// Without room while nothing waits, so that idle connections hold no memory for it.
    bytes: Vec<u8>,
    /// How many of them the stream has taken.
    taken: usize,
}

impl<S> Gathered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Gathering { stream, bytes: Vec::new(), taken: 0 })))
    }

    pub(super) fn outlet(&self) -> Outlet<S> {
        Outlet(Arc::clone(&self.0))
    }
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// Sends what has gathered. Where the other end does not take it, the task is woken when it does.
    pub(super) fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_send(context)
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.bytes.get(self.taken..).filter(|rest| !rest.is_empty()) {
            let taken = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += taken;
        }
        (self.bytes, self.taken) = (Vec::new(), 0);
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Takes what there is room for, and makes room first if there is none.
    fn poll_gather<'a>(
        &mut self,
        context: &mut Context<'_>,
        slices: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() - self.taken >= LIMIT {
            ready!(self.poll_send(context))?;
        }
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let before = self.bytes.len();
        for slice in slices {
            let (now, _) = slice.split_at(slice.len().min(LIMIT - self.bytes.len()));
            if self.bytes.capacity() < LIMIT && now.len() >= LIMIT / 8 {
                self.bytes.reserve_exact(LIMIT - self.bytes.len());
            }
            self.bytes.extend_from_slice(now);
        }
        Poll::Ready(Ok(self.bytes.len() - before))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_gather(context, std::iter::once(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_gather(context, slices.iter().map(|slice| &**slice))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = lock(&self.0);
        ready!(gathering.poll_send(context))?;
        Pin::new(&mut gathering.stream).poll_shutdown(context)
    }
}

fn lock<S>(gathering: &Mutex<Gathering<S>>) -> MutexGuard<'_, Gathering<S>> {
    gathering.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sent at once when it has gathered: as much as TLS takes in one go.
const LIMIT: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use futures::future::poll_fn;
    use futures::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    async fn sent(outlet: &Outlet<DuplexStream>) -> io::Result<()> {
        poll_fn(|context| outlet.poll_send(context)).await
    }

    #[tokio::test]
    async fn writes_and_flushes_wait_until_all_is_said() {
        let (stream, mut other) = tokio::io::duplex(1024);
        let mut gathered = Gathered::new(stream);
        let outlet = gathered.outlet();
        gathered.write_all(b"headers, ").await.unwrap();
        gathered.flush().await.unwrap();
        let pieces = [IoSlice::new(b"data, "), IoSlice::new(b"trailers")];
        assert_eq!(gathered.write_vectored(&pieces).await.unwrap(), 14);
        gathered.flush().await.unwrap();
        let mut received = [0; 64];
        let mut reading = Box::pin(other.read(&mut received));
        assert!(poll!(&mut reading).is_pending());

        sent(&outlet).await.unwrap();

        let count = reading.await.unwrap();
        assert_eq!(&received[..count], b"headers, data, trailers");
    }

    #[tokio::test]
    async fn no_more_gathers_than_the_limit_while_the_other_end_takes_nothing() {
        let (stream, mut other) = tokio::io::duplex(1000);
        let mut gathered = Gathered::new(stream);
        let outlet = gathered.outlet();
        let all: Vec<u8> = (0..3 * LIMIT).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut writing = Box::pin(async {
            gathered.write_all(&all).await.unwrap();
            gathered
        });

        assert!(poll!(&mut writing).is_pending());
        assert_eq!(lock(&outlet.0).bytes.len(), LIMIT);
        let mut received = vec![0; all.len()];
        let ((), _) = tokio::join!(
            async {
                let _gathered = writing.await;
                sent(&outlet).await.unwrap();
            },
            async { other.read_exact(&mut received).await.unwrap() },
        );

        assert!(received == all);
        assert_eq!(lock(&outlet.0).bytes.capacity(), 0);
    }

    #[tokio::test]
    async fn what_has_gathered_goes_out_before_the_end() {
        let (stream, mut other) = tokio::io::duplex(1024);
        let mut gathered = Gathered::new(stream);
        gathered.write_all(b"goodbye").await.unwrap();

        gathered.shutdown().await.unwrap();

        let mut received = Vec::new();
        other.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"goodbye");
    }
}
