//! An I/O queue pair of a host, used like a block device's channel.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use basalt_dma::Buffer;
use basalt_nvmf_host::{Command, FusedPair, Outcome, QueueError};
use basalt_reactor::{Handle, Progress, Socket};

use super::admin::AsyncQueue;
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

    /// Takes a fused pair; `tags` come back with the outcomes of its halves.
    ///
    /// # Errors
    /// As [`IoQueue::submit`]; a queue of less than three entries is always full.
    pub fn submit_fused(&mut self, tags: [u64; 2], pair: FusedPair) -> Result<(), Refused<FusedPair>> {
        self.connection.submit_fused(tags, pair)
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

impl IoQueue {
    /// The same queue for code that would rather await: it polls itself from now on.
    #[must_use]
    pub fn into_async(self, handle: &Handle) -> AsyncIoQueue {
        AsyncIoQueue(AsyncQueue::new(handle, self.connection))
    }
}

/// An I/O queue pair whose commands are awaited. Cheap to clone; closes with the last clone.
#[derive(Clone)]
pub struct AsyncIoQueue(AsyncQueue);

impl AsyncIoQueue {
    /// Runs a command and waits for its outcome, at most for `timeout`; then the whole queue is given up.
    ///
    /// # Errors
    /// Why the queue is over.
    pub async fn run(&self, command: Command, timeout: Option<Duration>) -> Result<Outcome, QueueError> {
        self.0.run(command, timeout).await
    }

    /// Runs a fused pair and waits for the outcomes of both halves, as [`AsyncIoQueue::run`] does for one command.
    ///
    /// # Errors
    /// Why the queue is over.
    pub async fn run_fused(
        &self,
        pair: FusedPair,
        timeout: Option<Duration>,
    ) -> Result<[Outcome; 2], QueueError> {
        self.0.run_fused(pair, timeout).await
    }

    /// Why the queue is over, if it is.
    #[must_use]
    pub fn over(&self) -> Option<QueueError> {
        self.0.over()
    }
}

impl fmt::Debug for AsyncIoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncIoQueue").field("over", &self.over()).finish_non_exhaustive()
    }
}

impl fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoQueue").field("outstanding", &self.outstanding()).finish_non_exhaustive()
    }
}
