//! A connection that reads and writes so much in one step of its user's turn.
//!
//! HTTP/2 takes in all that there is, calls by the hundred, and has answers go out as long as there are any:
//! in one step, for which all other users would wait. Here it finds nothing more in this step, and is
//! woken at once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::turns::Turns;

/// A connection; without turns one like any other.
pub(super) struct Paced<S> {
    stream: S,
    turns: Option<Turns<u32>>,
}

impl<S> Paced<S> {
    pub(super) const fn new(stream: S, turns: Option<Turns<u32>>) -> Self {
        Self { stream, turns }
    }
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    fn poll_paced(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let Some(turns) = &self.turns else { return write(stream, context) };
        if !turns.allowance().may_write() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = ready!(write(stream, context))?;
        turns.allowance().wrote(written);
        Poll::Ready(Ok(written))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, turns } = self.get_mut();
        let Some(turns) = turns else { return Pin::new(stream).poll_read(context, buffer) };
        let most = turns.allowance().to_read().min(buffer.remaining());
        if most == 0 && buffer.remaining() > 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(stream).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        turns.allowance().read(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_paced(context, |stream, context| stream.poll_write(context, bytes))
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
        self.poll_paced(context, |stream, context| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future as _, poll_fn};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::tasks::Group;
    use crate::turns::{READ, WRITE};

    #[tokio::test]
    async fn r00_a_step_reads_and_writes_so_much_and_the_next_goes_on() {
        let group = Group::new(CancellationToken::new());
        let turns = Turns::new(group.clone(), 4);
        let sent = vec![7; 3 * WRITE];
        let (mut theirs, ours) = tokio::io::duplex(64 << 10);
        theirs.write_all(&sent).await.unwrap();
        let mut paced = Paced::new(ours, Some(turns.clone()));
        let mut echo = Box::pin(async move {
            let mut read = vec![0; 3 * WRITE];
            paced.read_exact(&mut read).await.unwrap();
            for piece in read.chunks(WRITE / 2) {
                paced.write_all(piece).await.unwrap();
            }
        });
        let steps = Arc::new(AtomicUsize::new(0));

        let counted = Arc::clone(&steps);
        let echo = poll_fn(move |context| {
            counted.fetch_add(1, Ordering::Relaxed);
            echo.as_mut().poll(context)
        });
        turns.spawn(7, "echo", echo);
        group.ended().await;

        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        assert_eq!(steps.load(Ordering::Relaxed), 3 * WRITE / READ + 2);
    }
}
