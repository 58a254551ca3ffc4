//! What a device's implementer uses.
//!
//! A provider implements [`BlockDevice`] (shared, `Send + Sync`) and [`Channel`] (one per reactor, `!Send`). It calls [`check`] first
//! for every request, so that all devices refuse the same things in the same way, and answers what fails with an
//! ordinary completion. A queue has a bound: beyond it `submit` hands the request back. A channel that must act at some time
//! without being triggered asks for a turn with [`basalt_reactor::Handle::wake_at`].

use basalt_dma::Payload;

pub use crate::backing::Place;
pub use crate::device::{BlockDevice, Capabilities, Channel, DeviceInfo, DeviceState, OpenError};
use crate::error::IoError;
pub use crate::request::{Completion, Operation, Rejected, Request};
use crate::units::{BlockCount, Lba};

/// Requests that a channel holds unless its provider has a reason for another bound.
pub const DEFAULT_QUEUE_DEPTH: usize = 1024;

/// Checks a request against a device's properties.
///
/// # Errors
/// The first of: removed, cut, unsupported, read-only, malformed, out of range, too large.
pub fn check(info: &DeviceInfo, request: &Request) -> Result<(), IoError> {
    match info.state() {
        DeviceState::Present => {}
        DeviceState::Removed => return Err(IoError::DeviceGone),
        DeviceState::Shortened => return Err(IoError::Shortened),
    }
    let needs = match request.operation {
        Operation::Unmap => Capabilities::UNMAP,
        Operation::WriteZeroes { .. } => Capabilities::WRITE_ZEROES,
        Operation::Compare => Capabilities::COMPARE,
        Operation::CompareAndWrite { .. } => Capabilities::COMPARE_AND_WRITE,
        Operation::Read | Operation::Write { .. } | Operation::Flush => Capabilities::NONE,
    };
    if !info.capabilities().contains(needs) {
        return Err(IoError::Unsupported);
    }
    if request.operation == Operation::Flush {
        return Ok(());
    }
    if info.read_only() && request.operation.modifies() {
        return Err(IoError::ReadOnly);
    }
    check_payload(info, request)?;
    check_range(info, request.lba, request.blocks)
}

/// Checks that a range is not empty and lies on the device.
///
/// # Errors
/// [`IoError::Malformed`] or [`IoError::OutOfRange`].
pub fn check_range(info: &DeviceInfo, lba: Lba, blocks: BlockCount) -> Result<(), IoError> {
    if blocks.0 == 0 {
        return Err(IoError::Malformed);
    }
    match lba.checked_add(blocks) {
        Some(end) if end.0 <= info.blocks().0 => Ok(()),
        _ => Err(IoError::OutOfRange),
    }
}

fn check_payload(info: &DeviceInfo, request: &Request) -> Result<(), IoError> {
    let moves = match request.operation {
        Operation::Read | Operation::Write { .. } | Operation::Compare => 1,
        Operation::CompareAndWrite { .. } => 2,
        Operation::Flush | Operation::Unmap | Operation::WriteZeroes { .. } => return Ok(()),
    };
    if request.blocks > info.max_transfer() {
        return Err(IoError::TooLarge);
    }
    match (request.operation, &request.payload) {
        (Operation::Read, Payload::None) => return Ok(()),
        (Operation::Read, Payload::Lent(_)) => return Err(IoError::Malformed),
        _ => {}
    }
    let wanted = info.block_size().bytes_of(request.blocks) * moves;
    if request.payload.len() as u64 == wanted { Ok(()) } else { Err(IoError::Malformed) }
}

#[cfg(test)]
mod tests {
    use basalt_dma::Buffer;
    use uuid::Uuid;

    use super::*;
    use crate::backing::Backing;
    use crate::units::BlockSize;

    fn info() -> DeviceInfo {
        DeviceInfo::new("test", Uuid::nil(), BlockSize::B512, BlockCount(100))
            .with_max_transfer(BlockCount(8))
            .with_capabilities(Capabilities::UNMAP)
    }

    fn read(lba: u64, blocks: u64, bytes: usize) -> Request {
        Request::read(0, Lba(lba), BlockCount(blocks), Buffer::zeroed(bytes))
    }

    #[test]
    fn ranges_are_checked_at_both_ends() {
        assert_eq!(check(&info(), &read(98, 2, 1024)), Ok(()));
        assert_eq!(check(&info(), &read(99, 2, 1024)), Err(IoError::OutOfRange));
        assert_eq!(check(&info(), &read(u64::MAX, 1, 512)), Err(IoError::OutOfRange));
        assert_eq!(check(&info(), &read(0, 0, 0)), Err(IoError::Malformed));
    }

    #[test]
    fn payloads_fit_their_operation() {
        assert_eq!(check(&info(), &read(0, 2, 512)), Err(IoError::Malformed));
        assert_eq!(check(&info(), &read(0, 9, 9 * 512)), Err(IoError::TooLarge));
        assert_eq!(check(&info(), &Request::read(0, Lba(0), BlockCount(1), Payload::None)), Ok(()));
        let write = Request::write(0, Lba(0), BlockCount(1), Payload::None);
        assert_eq!(check(&info(), &write), Err(IoError::Malformed));
        let lent = Request::read(0, Lba(0), BlockCount(1), Buffer::zeroed(512).into_lent());
        assert_eq!(check(&info(), &lent), Err(IoError::Malformed));
        assert_eq!(check(&info(), &Request::unmap(0, Lba(0), BlockCount(100))), Ok(()));
    }

    #[test]
    fn state_and_capabilities_come_first() {
        assert_eq!(
            check(&info(), &Request::write_zeroes(0, Lba(0), BlockCount(1))),
            Err(IoError::Unsupported)
        );
        let read_only = info().with_read_only(true);
        assert_eq!(check(&read_only, &Request::unmap(0, Lba(0), BlockCount(1))), Err(IoError::ReadOnly));
        assert_eq!(check(&read_only, &Request::flush(0)), Ok(()));
        let gone = info();
        assert_eq!(gone.generation(), 0);
        gone.set_removed();
        assert_eq!((check(&gone, &Request::flush(0)), gone.generation()), (Err(IoError::DeviceGone), 1));
        let cut = info();
        for is in [700, 600, 800] {
            cut.set_shortened(is);
        }
        assert_eq!((check(&cut, &read(0, 1, 512)), cut.generation()), (Err(IoError::Shortened), 1));
        assert_eq!(cut.backing(), Backing::Shortened { was: 51_200, is: 600 });
        cut.set_removed();
        assert_eq!(check(&cut, &Request::flush(0)), Err(IoError::DeviceGone));
    }
}
