//! Channels of devices that are done with a request as soon as they have it.

use basalt_bdev::provider::DEFAULT_QUEUE_DEPTH;
use basalt_bdev::{BlockSize, Channel, Completion, IoError, Rejected, Request};

/// Carries a request out at once.
pub(crate) trait Execute {
    fn execute(&self, request: &mut Request) -> Result<(), IoError>;
}

/// A channel that only keeps completions until they are asked for.
pub(crate) struct Immediate<E> {
    executor: E,
    done: Vec<Completion>,
}

impl<E: Execute> Immediate<E> {
    pub(crate) fn new(executor: E) -> Self {
        Self { executor, done: Vec::new() }
    }
}

impl<E: Execute> Channel for Immediate<E> {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        if self.done.len() >= DEFAULT_QUEUE_DEPTH {
            return Err(Rejected(request));
        }
        let result = self.executor.execute(&mut request);
        self.done.push(request.complete(result));
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
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
