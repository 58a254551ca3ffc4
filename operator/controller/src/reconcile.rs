//! Carrying out the plans for one object until nothing is left to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_plan::{Finalizer, Plan, Progress, Requeue, Seen};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube_runtime::controller::Action;
use thiserror::Error;

use crate::backoff::Backoff;
use crate::control_plane::{ControlPlane, ControlPlaneError};
use crate::fence::{Fence, Fenced};
use crate::managed::Managed;
use crate::meters;
use crate::store::{Store, StoreError};

/// More steps than any object needs: a finalizer, some intents, a status. At the limit the object waits for its next turn.
const STEPS_MAX: usize = 8;
/// Every object is looked at this often even if nothing is heard of it, in case that an event was lost.
const RESYNC: Duration = Duration::from_secs(300);

/// Everything that reconciling needs.
pub struct Context<C> {
    /// The control plane.
    pub control: Arc<C>,
    /// The apiserver.
    pub store: Store,
    /// The right to act.
    pub fence: Fence,
    /// Who waits for how long.
    pub backoff: Arc<Backoff>,
}

/// Why a reconciliation was broken off. What was done stays done, and the next one goes on from there.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// The apiserver did not take something.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another process may act now.
    #[error(transparent)]
    Fenced(#[from] Fenced),
}

/// Plans and acts until nothing is left to do for `object`.
///
/// # Errors
/// [`ReconcileError`]; the caller tries again after [`retry_after_error`].
pub async fn reconcile<K: Managed, C: ControlPlane>(
    object: Arc<K>,
    context: Arc<Context<C>>,
) -> Result<Action, ReconcileError> {
    let started = Instant::now();
    let result = steps(object, &context).await;
    meters::reconciled(K::WORD, result.is_ok(), started.elapsed());
    result
}

/// How long to wait after an error.
#[must_use]
pub fn retry_after_error<K: Managed, C>(object: &K, error: &ReconcileError, context: &Context<C>) -> Action {
    let delay = context.backoff.next_delay(&key(object));
    match error {
        // The watch brings the changed object soon; this is for the case that it was the watch that was behind.
        ReconcileError::Store(StoreError::Changed(_)) => {
            tracing::debug!(kind = K::WORD, name = %object.name_any(), %error)
        }
        _ => tracing::warn!(kind = K::WORD, name = %object.name_any(), %error, ?delay, "will try again"),
    }
    Action::requeue(delay)
}

/// How an object is called in [`Backoff`].
pub(crate) fn key<K: Managed>(object: &K) -> String {
    format!("{}/{}", K::WORD, object.name_any())
}

async fn steps<K: Managed, C: ControlPlane>(
    object: Arc<K>,
    context: &Context<C>,
) -> Result<Action, ReconcileError> {
    let mut object = (*object).clone();
    let mut progress = Progress::default();
    let mut unavailable = None;
    for _ in 0..STEPS_MAX {
        let seen = match unavailable.take() {
            Some(message) => Seen::Unreachable { message },
            None => look(&object, context).await,
        };
        let plan = object.plan(&seen, &progress, Timestamp::now());
        object = tell(object, &plan, context).await?;
        match plan.finalizer {
            Finalizer::Keep => (),
            Finalizer::Add => {
                object = context.fence.within(context.store.add_finalizer(&object)).await??;
                continue;
            }
            Finalizer::Remove => {
                context.fence.within(context.store.remove_finalizer(&object)).await??;
                context.backoff.reset(&key(&object));
                return Ok(Action::await_change());
            }
        }
        let Some(intent) = plan.intent else {
            return Ok(rest(&object, plan.requeue, context));
        };
        let answer = context.fence.within(context.control.carry_out(&intent)).await?;
        meters::asked(intent.body.verb(), answer.as_ref().err());
        tracing::info!(
            kind = K::WORD,
            name = %object.name_any(),
            verb = intent.body.verb(),
            request = %intent.request,
            refused = answer.as_ref().err().map(tracing::field::display),
            "asked the control plane"
        );
        match answer {
            Ok(()) => progress.accepted += 1,
            Err(ControlPlaneError::Rejected(rejection)) => progress.rejection = Some(rejection),
            Err(error @ ControlPlaneError::Unavailable { .. }) => unavailable = Some(error.to_string()),
        }
    }
    tracing::warn!(kind = K::WORD, name = %object.name_any(), "does not come to rest; waits for its next turn");
    Ok(Action::requeue(context.backoff.next_delay(&key(&object))))
}

async fn look<K: Managed, C: ControlPlane>(object: &K, context: &Context<C>) -> Seen<K::Sight> {
    let answers = async {
        let cluster = context.control.cluster().await?;
        Ok::<_, ControlPlaneError>((cluster, object.look(&*context.control).await?))
    };
    match answers.await {
        Ok((cluster, found)) => Seen::Answered { cluster, found },
        Err(error) => Seen::Unreachable { message: error.to_string() },
    }
}

/// Events first, then the status: what is told twice after a crash is counted, what is not told is lost.
async fn tell<K: Managed, C>(
    object: K,
    plan: &Plan<K::Status>,
    context: &Context<C>,
) -> Result<K, ReconcileError> {
    for event in &plan.events {
        if let Err(error) = context.fence.within(context.store.publish(&object, event)).await? {
            // Events are for convenience: an apiserver that does not take one must not stop storage.
            tracing::warn!(kind = K::WORD, name = %object.name_any(), reason = event.reason, %error, "event lost");
            meters::event_lost();
        }
    }
    match &plan.status {
        None => Ok(object),
        Some(status) => Ok(context.fence.within(context.store.apply_status(&object, status)).await??),
    }
}

fn rest<K: Managed, C>(object: &K, requeue: Requeue, context: &Context<C>) -> Action {
    match requeue {
        Requeue::OnChange => {
            context.backoff.reset(&key(object));
            Action::requeue(RESYNC)
        }
        Requeue::Backoff => Action::requeue(context.backoff.next_delay(&key(object))),
    }
}
