//! One namespace's reservation, shared between reactors: commands in order, saved before they take effect.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use basalt_nvme_wire::Status;
use basalt_nvmf_transport::HostId;

use super::state::{Change, Command, ReservationState, Rights};
use super::store::{ReservationStore, StoreError};
use crate::abort::{AbortOrder, Drain};
use crate::changes::Changes;
use crate::namespace::Namespace;
use crate::subsystem::Subsystem;

/// Commands of a namespace that wait while a change is saved; one more ends with Command Interrupted.
const WAITING_MAX: usize = 64;

/// How a command ends, some time.
#[derive(Debug, Default)]
pub(crate) struct Ticket(Mutex<Option<Status>>);

impl Ticket {
    fn status(&self) -> Option<Status> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status, once the command has ended. A ticket that nobody else has is not finished any more: its namespace is gone.
    pub(crate) fn outcome(this: &Arc<Self>) -> Option<Status> {
        let abandoned = || (Arc::strong_count(this) == 1).then_some(Status::INVALID_NAMESPACE.dnr());
        this.status().or_else(abandoned)
    }

    pub(crate) fn finish(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }
}

/// What became of a command.
#[derive(Debug)]
pub(crate) enum Outcome {
    Now(Status),
    Later(Arc<Ticket>),
}

#[derive(Debug)]
struct Job {
    host: HostId,
    command: Command,
    ticket: Arc<Ticket>,
}

#[derive(Debug, Default)]
struct Inner {
    state: ReservationState,
    /// The change that is being saved, and whose it is.
    saving: Option<(Change, Arc<Ticket>)>,
    /// Commands that wait for that, in order.
    waiting: VecDeque<Job>,
}

/// One namespace's reservation.
#[derive(Debug)]
pub(crate) struct Reservations {
    namespace: Weak<Namespace>,
    subsystem: Weak<Subsystem>,
    changes: Arc<Changes>,
    store: Option<Arc<dyn ReservationStore>>,
    /// Grows with every change: who remembers it knows whether rights may have changed.
    version: AtomicU64,
    inner: Mutex<Inner>,
}

impl Reservations {
    pub(crate) fn new(
        namespace: Weak<Namespace>,
        subsystem: Weak<Subsystem>,
        changes: Arc<Changes>,
        store: Option<Arc<dyn ReservationStore>>,
        state: ReservationState,
    ) -> Self {
        let inner = Mutex::new(Inner { state, ..Inner::default() });
        Self { namespace, subsystem, changes, store, version: AtomicU64::new(1), inner }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a store.
    pub(crate) fn can_persist(&self) -> bool {
        self.store.is_some()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What `host` may do, and the version in which it may.
    pub(crate) fn rights(&self, host: HostId) -> (Rights, u64) {
        let inner = self.inner();
        (inner.state.rights(host), self.version())
    }

    /// The state now.
    pub(crate) fn state(&self) -> ReservationState {
        self.inner().state.clone()
    }

    /// Runs a command.
    pub(crate) fn submit(&self, host: HostId, command: Command) -> Outcome {
        let ticket = Arc::<Ticket>::default();
        let job = Job { host, command, ticket: Arc::clone(&ticket) };
        let mut inner = self.inner();
        if inner.saving.is_some() {
            if inner.waiting.len() >= WAITING_MAX {
                return Outcome::Now(Status::COMMAND_INTERRUPTED);
            }
            inner.waiting.push_back(job);
        } else {
            self.run(inner, job);
        }
        match ticket.status() {
            Some(status) => Outcome::Now(status),
            None => Outcome::Later(ticket),
        }
    }

    /// Runs one command; nothing is being saved.
    fn run(&self, mut inner: MutexGuard<'_, Inner>, job: Job) {
        let change = match inner.state.apply(job.host, &job.command, self.can_persist()) {
            Ok(change) => change,
            Err(status) => return job.ticket.finish(status),
        };
        let persistent = change.state.is_persistent();
        let differs = change.state != inner.state;
        let saved = (persistent || inner.state.is_persistent()) && differs;
        let (Some(store), true, Some(namespace)) = (&self.store, saved, self.namespace.upgrade()) else {
            self.commit(&mut inner, change, job.ticket);
            return;
        };
        let state = persistent.then(|| change.state.clone());
        inner.saving = Some((change, job.ticket));
        // The store may answer at once.
        drop(inner);
        let weak = self.namespace.clone();
        let saved = move |result| {
            if let Some(namespace) = weak.upgrade() {
                namespace.reservations().saved(result);
            }
        };
        store.save(namespace.identity().uuid, state.as_ref(), Box::new(saved));
    }

    /// The store has the change that was being saved, or failed.
    fn saved(&self, result: Result<(), StoreError>) {
        let mut inner = self.inner();
        let Some((change, ticket)) = inner.saving.take() else { return };
        match result {
            Ok(()) => self.commit(&mut inner, change, ticket),
            // The store has said why.
            Err(_) => ticket.finish(Status::INTERNAL_ERROR),
        }
        while inner.saving.is_none() {
            let Some(job) = inner.waiting.pop_front() else { break };
            self.run(inner, job);
            inner = self.inner();
        }
        drop(inner);
        self.changes.note();
    }

    /// Puts a change into force and completes its command, or leaves that to who fulfils the orders to abort.
    fn commit(&self, inner: &mut Inner, change: Change, ticket: Arc<Ticket>) {
        if change.state != inner.state {
            inner.state = change.state;
            self.version.fetch_add(1, Ordering::AcqRel);
        }
        let (Some(namespace), Some(subsystem)) = (self.namespace.upgrade(), self.subsystem.upgrade()) else {
            return ticket.finish(Status::INVALID_NAMESPACE.dnr());
        };
        namespace.gate().set_held(inner.state.restricts());
        for (host, notice) in &change.notices {
            subsystem.notify(*host, namespace.nsid(), *notice);
        }
        let fences = subsystem.fences(&change.aborted);
        if fences.is_empty() {
            ticket.finish(Status::SUCCESS);
        } else {
            let drain = Arc::new(Drain::new(ticket, &self.changes));
            for fence in &fences {
                fence.give(AbortOrder::namespace(namespace.identity().uuid, &drain));
            }
        }
        if !change.notices.is_empty() || !fences.is_empty() {
            self.changes.note();
        }
    }
}
