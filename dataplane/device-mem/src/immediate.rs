//! Channels of devices that are done with a request as soon as they have it.

use std::collections::VecDeque;

use basalt_bdev::provider::DEFAULT_QUEUE_DEPTH;
use basalt_bdev::{BlockSize, Channel, Completion, IoError, Rejected, Request};

/// Carries a request out at once.
pub(crate) trait Execute {
    /// Requests that wait for those behind them: while one is carried out, the memory of the next ones is on its way to the processor.
    const AHEAD: usize = 0;

    /// Asks for the memory that a request will touch; false if it is not worth a wait.
    fn prepare(&self, request: &Request) -> bool {
        let _: &Request = request;
        false
    }

    fn execute(&self, request: &mut Request) -> Result<(), IoError>;
}

/// A channel that only keeps completions until they are asked for.
pub(crate) struct Immediate<E> {
    executor: E,
    /// At most [`Execute::AHEAD`], in the order in which they came.
    ahead: VecDeque<Request>,
    done: Vec<Completion>,
}

impl<E: Execute> Immediate<E> {
    pub(crate) fn new(executor: E) -> Self {
        Self { executor, ahead: VecDeque::new(), done: Vec::new() }
    }

    fn execute(&mut self, mut request: Request) {
        let result = self.executor.execute(&mut request);
        self.done.push(request.complete(result));
    }

    /// Carries out what waits until no more than `left` do.
    fn execute_ahead(&mut self, left: usize) {
        while self.ahead.len() > left
            && let Some(request) = self.ahead.pop_front()
        {
            self.execute(request);
        }
    }
}

impl<E: Execute> Channel for Immediate<E> {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        if self.done.len() + self.ahead.len() >= DEFAULT_QUEUE_DEPTH {
            return Err(Rejected(request));
        }
        if E::AHEAD > 0 && self.executor.prepare(&request) {
            self.ahead.push_back(request);
            self.execute_ahead(E::AHEAD);
        } else {
            self.execute_ahead(0);
            self.execute(request);
        }
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        self.execute_ahead(0);
        let count = self.done.len();
        completions.append(&mut self.done);
        count
    }
}

/// A checked request's place in memory: offset and length in bytes.
pub(crate) fn range(block_size: BlockSize, request: &Request) -> Result<(usize, usize), IoError> {
    let offset = usize::try_from(block_size.offset_of(request.lba)).map_err(|_| IoError::OutOfRange)?;
    let len = usize::try_from(block_size.bytes_of(request.blocks)).map_err(|_| IoError::OutOfRange)?;
    Ok((offset, len))
}
