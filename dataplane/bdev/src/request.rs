use std::fmt;

use basalt_dma::Payload;

use crate::error::IoError;
use crate::units::{BlockCount, Lba};

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads the range into the payload's buffers. With [`Payload::None`] the device chooses the memory: a lent view of its
    /// own, or a buffer of the reactor's pool; it then comes with the completion.
    Read,
    /// Stores the payload.
    Write {
        /// Complete only when the data is durable ("force unit access").
        fua: bool,
    },
    /// Makes every write durable that completed before this was submitted. Takes no range.
    Flush,
    /// The range's content is not needed any more.
    Unmap,
    /// The range reads as zeroes from now on.
    WriteZeroes {
        /// The device may free the range's storage.
        unmap: bool,
        /// Complete only when the zeroes are durable.
        fua: bool,
    },
    /// Succeeds if the range holds the payload's bytes, else fails with [`IoError::Miscompare`].
    Compare,
    /// If the range holds the first half of the payload's bytes, stores the second half, else fails with
    /// [`IoError::Miscompare`]. One step to everything else that changes the range, through any channel; a device that cannot hold
    /// other writes off does not offer it. A power failure tears it like a write.
    CompareAndWrite {
        /// Complete only when the data is durable.
        fua: bool,
    },
}

impl Operation {
    /// True if the operation changes what the device holds.
    #[must_use]
    pub fn modifies(self) -> bool {
        match self {
            Self::Write { .. } | Self::Unmap | Self::WriteZeroes { .. } | Self::CompareAndWrite { .. } => {
                true
            }
            Self::Read | Self::Flush | Self::Compare => false,
        }
    }

    /// True if the operation's completion says that something is durable.
    #[must_use]
    pub fn forces(self) -> bool {
        match self {
            Self::Write { fua } | Self::WriteZeroes { fua, .. } | Self::CompareAndWrite { fua } => fua,
            Self::Flush => true,
            Self::Read | Self::Unmap | Self::Compare => false,
        }
    }
}

/// One request. Build it with the constructor of its operation.
#[derive(Debug)]
pub struct Request {
    /// The consumer's own name for the request; comes back with the completion. Need not be unique.
    pub tag: u64,
    /// What to do.
    pub operation: Operation,
    /// First block.
    pub lba: Lba,
    /// Number of blocks.
    pub blocks: BlockCount,
    /// Memory to read into or write from.
    pub payload: Payload,
}

impl Request {
    /// A read into the payload, or with [`Payload::None`] into memory that the device chooses.
    #[must_use]
    pub fn read(tag: u64, lba: Lba, blocks: BlockCount, payload: impl Into<Payload>) -> Self {
        Self { tag, operation: Operation::Read, lba, blocks, payload: payload.into() }
    }

    /// A write of the payload.
    #[must_use]
    pub fn write(tag: u64, lba: Lba, blocks: BlockCount, payload: impl Into<Payload>) -> Self {
        Self { tag, operation: Operation::Write { fua: false }, lba, blocks, payload: payload.into() }
    }

    /// A write that is durable when it completes.
    #[must_use]
    pub fn write_durably(tag: u64, lba: Lba, blocks: BlockCount, payload: impl Into<Payload>) -> Self {
        Self { tag, operation: Operation::Write { fua: true }, lba, blocks, payload: payload.into() }
    }

    /// A flush.
    #[must_use]
    pub fn flush(tag: u64) -> Self {
        Self::bare(tag, Operation::Flush, Lba::ZERO, BlockCount(0))
    }

    /// An unmap.
    #[must_use]
    pub fn unmap(tag: u64, lba: Lba, blocks: BlockCount) -> Self {
        Self::bare(tag, Operation::Unmap, lba, blocks)
    }

    /// A write of zeroes.
    #[must_use]
    pub fn write_zeroes(tag: u64, lba: Lba, blocks: BlockCount) -> Self {
        Self::bare(tag, Operation::WriteZeroes { unmap: false, fua: false }, lba, blocks)
    }

    fn bare(tag: u64, operation: Operation, lba: Lba, blocks: BlockCount) -> Self {
        Self { tag, operation, lba, blocks, payload: Payload::None }
    }

    /// The request's end.
    #[must_use]
    pub fn complete(self, result: Result<(), IoError>) -> Completion {
        Completion { tag: self.tag, result, payload: self.payload }
    }
}

/// The end of one request.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// How it went. After a failed read the memory holds anything; after a failed write the range does.
    pub result: Result<(), IoError>,
    /// The request's memory, or what the device chose for a read without.
    pub payload: Payload,
}

/// A request that a channel did not take because its bounded queue is full: submit it again after [`crate::Channel::poll`].
#[derive(Debug)]
pub struct Rejected(pub Request);

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the channel's queue is full")
    }
}

impl std::error::Error for Rejected {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_completions_stay_small() {
        assert!(size_of::<Request>() <= 64, "{}", size_of::<Request>());
        assert!(size_of::<Completion>() <= 48, "{}", size_of::<Completion>());
    }
}
