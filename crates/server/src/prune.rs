//! What is deleted when its time is over: entries, agents, join tokens, events, authorities, journals.
//!
//! Nothing is pruned at start: a server that comes up with the wrong time, or over an old database,
//! must leave its operator time to notice.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use runtime::backoff::Random;
use runtime::tasks::Tasks;
use store::StoreError;

use crate::context::Context;
use crate::meters::of_store;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: i64 = 24 * 3600;
/// How long authorities stay in the bundle after their end.
const AUTHORITIES_KEPT: i64 = DAY;
/// How long journals stay after the end of all their authorities.
const JOURNALS_KEPT: i64 = 14 * DAY;
/// How long join tokens stay, so that who comes late is told why.
const TOKENS_KEPT: i64 = DAY;

/// Starts all that prunes.
pub(crate) fn spawn(tasks: &mut Tasks, context: &Arc<Context>) {
    every(tasks, context, "pruning of entries", 5 * MINUTE, |context| async move {
        let pruned = context.store.prune_entries(context.now());
        let pruned = of_store(&context.meters.entry_prune, pruned).await?.value;
        if !pruned.is_empty() {
            tracing::info!(
                subsystem_name = "registration_manager",
                count = pruned.len(),
                "Pruned expired entries"
            );
        }
        Ok(())
    });
    every(tasks, context, "pruning of join tokens", HOUR, |context| async move {
        context.store.prune_join_tokens(context.now().plus(-TOKENS_KEPT)).await.map(drop)
    });
    every(tasks, context, "pruning of authorities", 6 * HOUR, |context| async move {
        let before = context.now().plus(-AUTHORITIES_KEPT);
        let pruned = context.store.prune_bundle(context.trust_domain().clone(), before);
        let pruned = of_store(&context.meters.bundle_prune, pruned).await?;
        if context.applied(pruned).await {
            context.meters.bundle_pruned.increment();
            tracing::debug!(
                subsystem_name = "ca_manager",
                "Expired certificates were successfully pruned from bundle"
            );
        }
        Ok(())
    });
    every(tasks, context, "pruning of CA journals", 8 * HOUR, |context| async move {
        context.store.prune_ca_journals(context.now().plus(-JOURNALS_KEPT)).await.map(drop)
    });
    let events_kept = context.config.experimental.prune_events_older_than;
    every(tasks, context, "pruning of events", (events_kept / 2).max(MINUTE), move |context| async move {
        context.store.prune_events(events_kept).await.map(drop)
    });
    if let Some(rule) = context.config.prune_agents {
        // Servers that share a database do not all do it at once.
        let period = Random::new().spread(HOUR, 0.25);
        every(tasks, context, "pruning of agents", period, move |context| async move {
            let kept = i64::try_from(rule.expired_for.as_secs()).unwrap_or(i64::MAX);
            let before = context.now().plus(-kept);
            let pruned = context.store.prune_agents(before, rule.tofu, rule.batch_size);
            of_store(&context.meters.agent_prune, pruned).await.map(drop)
        });
    }
}

/// Does `step` again and again, `period` after it last ended; a failure is logged.
fn every<F>(
    tasks: &mut Tasks,
    context: &Arc<Context>,
    name: &'static str,
    period: Duration,
    step: impl Fn(Arc<Context>) -> F + Send + 'static,
) where
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let (context, token) = (Arc::clone(context), tasks.token().clone());
    tasks.spawn(name, async move {
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok::<_, StoreError>(()),
                () = context.clock.sleep(period) => {}
            }
            if let Err(error) = step(Arc::clone(&context)).await {
                tracing::error!(task = name, %error, "Pruning failed");
            }
        }
    });
}
