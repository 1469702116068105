//! Batches: items that have nothing to do with each other, and one reply for all.

use std::future::Future;

use futures::StreamExt;
use futures::stream;
use store::Committed;
use tonic::Status;

use crate::context::Context;

/// How many writes of one batch wait at once: more than a group that is committed together.
const AT_ONCE: usize = 1024;

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
