//! A connection whose commands are awaited: for admin queues, and for the Connect of I/O queues.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use basalt_clock::Instant;
use basalt_dma::Buffer;
use basalt_nvmf_host::{Command, FusedPair, Outcome, QueueError};
use basalt_reactor::{Handle, PollerId, Progress, Socket};

use super::connection::{Connection, Refused};

/// Bytes that one receive may bring.
pub(crate) const STAGING_BYTES: usize = 256 << 10;

struct Waiting {
    deadline: Instant,
    waker: Option<Waker>,
    outcome: Option<Outcome>,
}

struct State {
    connection: Option<Connection<Socket>>,
    staging: Buffer,
    waiting: BTreeMap<u64, Waiting>,
    last_tag: u64,
    outcomes: Vec<Outcome>,
}

/// A queue whose commands are awaited. Cheap to clone; the connection closes with the last clone.
#[derive(Clone)]
pub(crate) struct AsyncQueue(Rc<Inner>);

struct Inner {
    handle: Handle,
    poller: RefCell<Option<PollerId>>,
    state: Rc<RefCell<State>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(poller) = self.poller.borrow_mut().take() {
            self.handle.remove_poller(poller);
        }
    }
}

impl AsyncQueue {
    pub(crate) fn new(handle: &Handle, connection: Connection<Socket>) -> Self {
        let state = State {
            connection: Some(connection),
            staging: Buffer::zeroed(STAGING_BYTES),
            waiting: BTreeMap::new(),
            last_tag: 0,
            outcomes: Vec::new(),
        };
        let state = Rc::new(RefCell::new(state));
        let polled = Rc::clone(&state);
        let clock = handle.clone();
        let poller = handle.add_poller(move || {
            let mut state = polled.borrow_mut();
            let progress = state.poll(clock.now());
            if let Some(deadline) = state.next_deadline() {
                clock.wake_at(deadline);
            }
            progress
        });
        Self(Rc::new(Inner { handle: handle.clone(), poller: RefCell::new(Some(poller)), state }))
    }

    /// Sends a command and waits for its outcome, at most for `timeout`; without one for as long as the queue lives.
    pub(crate) async fn run(
        &self,
        command: Command,
        timeout: Option<Duration>,
    ) -> Result<Outcome, QueueError> {
        let deadline = self.deadline(timeout);
        let tag = self.0.state.borrow_mut().begin(command, deadline)?;
        let _forget = Forget { state: &self.0.state, tag };
        self.outcome(tag, deadline).await
    }

    /// Sends a fused pair and waits for both outcomes.
    pub(crate) async fn run_fused(
        &self,
        pair: FusedPair,
        timeout: Option<Duration>,
    ) -> Result<[Outcome; 2], QueueError> {
        let deadline = self.deadline(timeout);
        let [compare, write] = self.0.state.borrow_mut().begin_fused(pair, deadline)?;
        let _forget = [compare, write].map(|tag| Forget { state: &self.0.state, tag });
        let compared = self.outcome(compare, deadline).await?;
        Ok([compared, self.outcome(write, deadline).await?])
    }

    fn deadline(&self, timeout: Option<Duration>) -> Instant {
        timeout.map_or(Instant::FAR_FUTURE, |timeout| self.0.handle.now() + timeout)
    }

    async fn outcome(&self, tag: u64, deadline: Instant) -> Result<Outcome, QueueError> {
        if deadline != Instant::FAR_FUTURE {
            self.0.handle.wake_at(deadline);
        }
        poll_fn(|context| {
            let mut state = self.0.state.borrow_mut();
            let Some(waiting) = state.waiting.get_mut(&tag) else {
                return Poll::Ready(Err(QueueError::ClosedHere));
            };
            if let Some(outcome) = waiting.outcome.take() {
                return Poll::Ready(Ok(outcome));
            }
            waiting.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Why the queue is over, if it is.
    pub(crate) fn over(&self) -> Option<QueueError> {
        let state = self.0.state.borrow();
        state.connection.as_ref().map_or(Some(QueueError::ClosedHere), Connection::over)
    }

    /// Ends the queue.
    pub(crate) fn end(&self, error: QueueError) {
        if let Some(connection) = &mut self.0.state.borrow_mut().connection {
            connection.end(error);
        }
    }

    /// Takes the connection out: it is polled by someone else from now on.
    pub(crate) fn into_connection(self) -> Option<Connection<Socket>> {
        self.0.state.borrow_mut().connection.take()
    }
}

/// Forgets a command whose waiter is gone.
struct Forget<'a> {
    state: &'a RefCell<State>,
    tag: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.state.borrow_mut().waiting.remove(&self.tag);
    }
}

impl State {
    fn begin(&mut self, command: Command, deadline: Instant) -> Result<u64, QueueError> {
        self.last_tag += 1;
        let tag = self.last_tag;
        let Some(connection) = &mut self.connection else { return Err(QueueError::ClosedHere) };
        connection.submit(tag, command).map_err(reason)?;
        self.waiting.insert(tag, Waiting { deadline, waker: None, outcome: None });
        Ok(tag)
    }

    fn begin_fused(&mut self, pair: FusedPair, deadline: Instant) -> Result<[u64; 2], QueueError> {
        self.last_tag += 2;
        let tags = [self.last_tag - 1, self.last_tag];
        let Some(connection) = &mut self.connection else { return Err(QueueError::ClosedHere) };
        connection.submit_fused(tags, pair).map_err(reason)?;
        for tag in tags {
            self.waiting.insert(tag, Waiting { deadline, waker: None, outcome: None });
        }
        Ok(tags)
    }

    /// When the first command that waits is late, if one ever is.
    fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.values().filter(|waiting| waiting.outcome.is_none());
        waiting.map(|waiting| waiting.deadline).min().filter(|deadline| *deadline != Instant::FAR_FUTURE)
    }

    fn poll(&mut self, now: Instant) -> Progress {
        let Some(connection) = &mut self.connection else { return Progress::Idle };
        let progress = connection.poll(&mut self.staging, &mut self.outcomes);
        let late = self.waiting.values().any(|waiting| waiting.outcome.is_none() && waiting.deadline <= now);
        if late {
            // A controller that does not answer cannot be trusted with the rest.
            connection.end(QueueError::TimedOut);
            connection.poll(&mut self.staging, &mut self.outcomes);
        }
        for outcome in self.outcomes.drain(..) {
            if let Some(waiting) = self.waiting.get_mut(&outcome.tag) {
                waiting.outcome = Some(outcome);
                if let Some(waker) = waiting.waker.take() {
                    waker.wake();
                }
            }
        }
        progress
    }
}

fn reason<C>(refused: Refused<C>) -> QueueError {
    match refused {
        Refused::Over(error) => error,
        // More commands at a time than the queue has entries: a host's own mistake, told as such.
        Refused::Full(_) => QueueError::TimedOut,
    }
}
