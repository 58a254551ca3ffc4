//! What the queues of one controller share across reactors.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use basalt_nvme_wire::reservation::Notice;
use basalt_nvmf_transport::{Association, ControllerId, QueueId};

use crate::namespace::Nsid;

/// The shared part of a controller: its admin queue owns the rest.
#[derive(Debug)]
pub(crate) struct ControllerLink {
    pub(crate) id: ControllerId,
    pub(crate) association: Association,
    /// CSTS.RDY: I/O queues may be connected.
    ready: AtomicBool,
    /// The controller is over; its queues close.
    gone: AtomicBool,
    /// Counts resets, the end among them; an I/O queue of an earlier count runs nothing any more, and closes.
    resets: AtomicU32,
    /// A queue saw a command, or data of one, since the admin queue last looked (Base 3.9.4.1, traffic based keep alive).
    traffic: AtomicBool,
    queues: Mutex<IoQueues>,
    /// Reservation notices that the admin queue has not taken.
    notices: Mutex<NoticeInbox>,
}

/// Notices that wait for the admin queue to look.
#[derive(Debug, Default)]
pub(crate) struct NoticeInbox {
    pub(crate) notices: Vec<(Nsid, Notice)>,
    /// Those beyond the limit.
    pub(crate) lost: u64,
}

/// Notices that wait; later ones are only counted.
const NOTICES_MAX: usize = 255;

#[derive(Debug)]
struct IoQueues {
    /// I/O queues that Set Features granted; before that, the most there can be.
    granted: u16,
    /// The most there can be.
    most: u16,
    connected: BTreeSet<QueueId>,
}

/// Why an I/O queue cannot join its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinError {
    /// The controller is not ready, or over.
    NotReady,
    /// The queue identifier is above the number of queues.
    QueueId,
    /// The queue is connected already.
    Connected,
}

impl ControllerLink {
    pub(crate) fn new(id: ControllerId, association: Association, queues_max: u16) -> Self {
        Self {
            id,
            association,
            ready: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            resets: AtomicU32::new(0),
            traffic: AtomicBool::new(false),
            queues: Mutex::new(IoQueues {
                granted: queues_max,
                most: queues_max,
                connected: BTreeSet::new(),
            }),
            notices: Mutex::default(),
        }
    }

    /// Leaves a notice for the admin queue.
    pub(crate) fn notify(&self, nsid: Nsid, notice: Notice) {
        let mut inbox = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.notices.len() < NOTICES_MAX {
            inbox.notices.push((nsid, notice));
        } else {
            inbox.lost += 1;
        }
    }

    /// Notices since the last call.
    pub(crate) fn take_notices(&self) -> NoticeInbox {
        std::mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn queues(&self) -> MutexGuard<'_, IoQueues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enable(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Disables the controller: its I/O queues are gone (Base 3.7.2).
    pub(crate) fn reset(&self) {
        // A queue joins before it or is refused.
        let mut state = self.queues();
        self.ready.store(false, Ordering::Release);
        self.resets.fetch_add(1, Ordering::AcqRel);
        state.connected.clear();
        state.granted = state.most;
    }

    /// Ends the controller for all its queues.
    pub(crate) fn end(&self) {
        let _state = self.queues();
        self.ready.store(false, Ordering::Release);
        self.gone.store(true, Ordering::Release);
        self.resets.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether an I/O queue that joined at `resets` still belongs to the controller.
    pub(crate) fn holds(&self, resets: u32) -> bool {
        self.resets.load(Ordering::Acquire) == resets
    }

    pub(crate) fn note_traffic(&self) {
        if !self.traffic.load(Ordering::Relaxed) {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn take_traffic(&self) -> bool {
        self.traffic.swap(false, Ordering::Relaxed)
    }

    /// Sets the number of I/O queues; `None` when some are connected already (Base 5.27.1.5).
    pub(crate) fn grant(&self, queues: u16) -> Option<()> {
        let mut state = self.queues();
        if !state.connected.is_empty() {
            return None;
        }
        state.granted = queues;
        Some(())
    }

    pub(crate) fn granted(&self) -> u16 {
        self.queues().granted
    }

    /// Adds an I/O queue; answers the count of resets that it belongs to.
    pub(crate) fn join(&self, queue: QueueId) -> Result<u32, JoinError> {
        let mut state = self.queues();
        if self.is_gone() || !self.ready.load(Ordering::Acquire) {
            return Err(JoinError::NotReady);
        }
        if queue.is_admin() || queue.0 > state.granted {
            return Err(JoinError::QueueId);
        }
        if !state.connected.insert(queue) {
            return Err(JoinError::Connected);
        }
        Ok(self.resets.load(Ordering::Acquire))
    }

    /// Removes an I/O queue that joined at `resets`.
    pub(crate) fn leave(&self, queue: QueueId, resets: u32) {
        let mut state = self.queues();
        if self.resets.load(Ordering::Acquire) == resets {
            state.connected.remove(&queue);
        }
    }
}
