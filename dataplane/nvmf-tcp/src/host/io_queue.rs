//! An I/O queue pair of a host, used like a block device's channel.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use basalt_dma::Buffer;
use basalt_nvmf_host::{Command, Outcome, QueueError};
use basalt_reactor::{Progress, Socket};

use super::connection::{Connection, Refused};
use super::controller::Shared;

/// An I/O queue pair: commands go in, outcomes come out, nothing blocks. Makes progress only while it is polled: call
/// [`IoQueue::poll`] from a poller, once per turn.
pub struct IoQueue {
    connection: Connection<Socket>,
    staging: Rc<RefCell<Buffer>>,
    shared: Rc<Shared>,
}

impl IoQueue {
    pub(crate) fn new(
        connection: Connection<Socket>,
        staging: Rc<RefCell<Buffer>>,
        shared: Rc<Shared>,
    ) -> Self {
        Self { connection, staging, shared }
    }

    /// Takes a command; `tag` comes back with its outcome. What is submitted in one turn is sent together by the next poll.
    ///
    /// # Errors
    /// [`Refused::Full`] hands the command back; [`Refused::Over`] says that the queue has ended.
    pub fn submit(&mut self, tag: u64, command: Command) -> Result<(), Refused> {
        self.connection.submit(tag, command)
    }

    /// Sends, receives, and appends outcomes.
    pub fn poll(&mut self, outcomes: &mut Vec<Outcome>) -> Progress {
        if let Some(error) = self.shared.over.get() {
            self.connection.end(error);
        }
        self.connection.poll(&mut self.staging.borrow_mut(), outcomes)
    }

    /// Commands without outcome.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.connection.outstanding()
    }

    /// Why the queue is over, if it is.
    #[must_use]
    pub fn over(&self) -> Option<QueueError> {
        self.connection.over()
    }
}

impl fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoQueue").field("outstanding", &self.outstanding()).finish_non_exhaustive()
    }
}
