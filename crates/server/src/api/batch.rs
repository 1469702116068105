//! Batches: items that have nothing to do with each other, and one reply for all.

use std::future::Future;

use futures::StreamExt;
use futures::stream;
use runtime::bulk::Bulk;
use store::{Committed, StoreError};
use tonic::Status;

use crate::context::Context;

/// How many writes of one batch wait at once: more than a group that is committed together.
const AT_ONCE: usize = 1024;

/// How many items hold nobody up: some tenths of a millisecond.
const FEW: usize = 32;

/// How many items are a turn: some tens of microseconds.
const TURN: usize = 8;

/// Does the work on `count` items: if they are many, where it holds up nobody who has one item signed.
pub(super) async fn in_bulk<T: Send + 'static>(
    bulk: &Bulk,
    count: usize,
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    if count <= FEW {
        return work.await;
    }
    bulk.run(work).await.unwrap_or_else(|| Err(Status::unavailable("server is shutting down")))
}

/// The items, between which the processor is offered to other threads, if they are many: whoever is to be
/// answered by one of those does not wait until the kernel takes it away.
pub(super) fn in_turns<I: ExactSizeIterator>(items: I) -> impl ExactSizeIterator<Item = I::Item> {
    let are_many = items.len() > FEW;
    items.enumerate().map(move |(n, item)| {
        if are_many && n.is_multiple_of(TURN) {
            std::thread::yield_now();
        }
        item
    })
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
    let refusals: Vec<_> =
        in_turns(items.into_iter()).map(|item| item.map(|item| wanted.push(item)).err()).collect();
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
