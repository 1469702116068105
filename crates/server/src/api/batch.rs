//! Batches: items that have nothing to do with each other, and one reply for all.

use std::future::Future;

use futures::StreamExt;
use futures::stream;
use store::Committed;
use tonic::Status;

use crate::context::Context;

/// How many writes of one batch wait at once: more than a group that is committed together.
const AT_ONCE: usize = 1024;

/// How many items are worked on before others get their turn: some tenths of a millisecond.
const TURN: usize = 32;

/// What `work` makes of each item, in turns with all else that this thread has to do: whoever has one item
/// signed does not wait for a thousand.
pub(super) async fn in_turns<T, U>(
    items: impl IntoIterator<Item = T>,
    mut work: impl FnMut(T) -> U,
) -> Vec<U> {
    let items = items.into_iter();
    let mut done = Vec::with_capacity(items.size_hint().0);
    for item in items {
        if !done.is_empty() && done.len().is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
        done.push(work(item));
    }
    done
}

/// Runs the writes of a batch and hands back what each came to, in order.
///
/// They are queued in the order of the batch, all before the first is awaited, so that the datastore
/// commits them in few transactions. The snapshots are waited for once, for the last of them: whoever
/// is answered then reads all that it wrote.
pub(super) async fn written<T, W>(
    context: &Context,
    writes: impl IntoIterator<Item = W>,
) -> Vec<Result<T, Status>>
where
    W: Future<Output = Result<Committed<T>, Status>>,
{
    let mut latest = None;
    // Without the runtime's own idea of fairness: it would have some of the writes queue again, behind
    // those that come after them.
    let outcomes = tokio::task::unconstrained(
        stream::iter(writes)
            .buffered(AT_ONCE)
            .map(|outcome| {
                outcome.map(|committed| {
                    latest = committed.changes.or_else(|| latest.take());
                    committed.value
                })
            })
            .collect::<Vec<_>>(),
    )
    .await;
    if let Some(changes) = &latest {
        context.applied.reached(changes).await;
    }
    outcomes
}
