//! Batches: items that have nothing to do with each other, and one reply for all.

use std::future::Future;

use futures::StreamExt;
use futures::stream;
use store::{Committed, StoreError};
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
/// commits them in few transactions.
pub(super) async fn written<T, W>(
    context: &Context,
    writes: impl IntoIterator<Item = W>,
) -> Vec<Result<T, Status>>
where
    W: Future<Output = Result<Committed<T>, Status>>,
{
    // Without the runtime's own idea of fairness: it would have some of the writes queue again, behind
    // those that come after them.
    let writes = stream::iter(writes).buffered(AT_ONCE).collect::<Vec<_>>();
    shown(context, tokio::task::unconstrained(writes).await).await
}

/// Has the items of a batch that are in order written together and hands back what became of each, in the
/// order of the batch: for batches of thousands, where a future for each item costs more than the item.
pub(super) async fn written_together<I, T, W>(
    context: &Context,
    items: Vec<Result<I, Status>>,
    write: impl FnOnce(Vec<I>) -> W,
    refused: impl Fn(&StoreError) -> Status,
) -> Vec<Result<T, Status>>
where
    W: Future<Output = Vec<Result<Committed<T>, StoreError>>>,
{
    let mut wanted = Vec::with_capacity(items.len());
    let refusals: Vec<_> = items.into_iter().map(|item| item.map(|item| wanted.push(item)).err()).collect();
    let mut written = write(wanted).await.into_iter();
    let outcome = |refusal: Option<Status>| match refusal {
        Some(refusal) => Err(refusal),
        None => written.next().unwrap_or(Err(StoreError::Closed)).map_err(|why| refused(&why)),
    };
    shown(context, refusals.into_iter().map(outcome).collect()).await
}

/// Outcomes, once the snapshots show them: they are waited for once, for the last. Whoever is answered then
/// reads all that it wrote.
async fn shown<T>(context: &Context, outcomes: Vec<Result<Committed<T>, Status>>) -> Vec<Result<T, Status>> {
    let latest = outcomes.iter().rev().flatten().find_map(|committed| committed.changes.as_ref());
    if let Some(changes) = latest {
        context.applied.reached(changes).await;
    }
    outcomes.into_iter().map(|outcome| outcome.map(|committed| committed.value)).collect()
}
