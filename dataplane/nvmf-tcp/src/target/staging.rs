//! The memory that a reactor receives into.

use basalt_dma::{Buffer, BufferPool, Lent};

/// Bytes that one receive may bring.
pub(crate) const STAGING_BYTES: usize = 256 << 10;

/// One reactor's receive memory, used by one connection at a time. In-capsule data is lent from it to devices that take it
/// in at once.
///
/// There is always some: whatever else holds the pool, hosts are listened to.
pub(crate) struct Staging {
    pool: BufferPool,
    buffer: Buffer,
    /// The memory while pieces of it are lent.
    lent: Option<Lent>,
    /// Outside the pool, and never lent: for when all else is.
    reserve: Buffer,
    on_reserve: bool,
}

impl Staging {
    pub(crate) fn new(pool: BufferPool) -> Self {
        let reserve = Buffer::zeroed(STAGING_BYTES);
        Self { pool, buffer: Buffer::default(), lent: None, reserve, on_reserve: false }
    }

    /// Takes the memory to receive into, to be given back by [`Staging::put_back`].
    pub(crate) fn take(&mut self) -> Buffer {
        if let Some(lent) = self.lent.take() {
            // If a device still looks at it, its last user gives it back to the pool.
            self.buffer = lent.try_into_buffer().unwrap_or_default();
        }
        if self.buffer.is_empty() {
            self.buffer = self.pool.take(STAGING_BYTES).unwrap_or_default();
        }
        self.on_reserve = self.buffer.is_empty();
        std::mem::take(if self.on_reserve { &mut self.reserve } else { &mut self.buffer })
    }

    /// Gives the memory back; it holds what was received until it is taken again.
    pub(crate) fn put_back(&mut self, buffer: Buffer) {
        *(if self.on_reserve { &mut self.reserve } else { &mut self.buffer }) = buffer;
    }

    /// A view of a part of what was received. The memory is not written again while views exist. `None` if it is needed for the next
    /// receive: [`Staging::received`] is to be copied then.
    pub(crate) fn lend(&mut self, at: usize, len: usize) -> Option<Lent> {
        if self.on_reserve {
            return None;
        }
        let whole = match self.lent.take() {
            Some(lent) => lent,
            None => std::mem::take(&mut self.buffer).into_lent(),
        };
        let part = whole.slice(at, len);
        self.lent = Some(whole);
        Some(part)
    }

    /// A part of what was received last, if it is not lent.
    pub(crate) fn received(&self, at: usize, len: usize) -> &[u8] {
        &self.reserve[at..at + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_memory_to_receive_into_though_all_of_it_is_lent() {
        let pool = BufferPool::new(STAGING_BYTES);
        let mut staging = Staging::new(pool.clone());
        let mut buffer = staging.take();
        buffer[7] = 1;
        staging.put_back(buffer);
        let view = staging.lend(7, 1).unwrap();
        // A device looks at it, and the pool has no more.
        let mut buffer = staging.take();
        assert_eq!(buffer.len(), STAGING_BYTES);
        buffer[7] = 2;
        staging.put_back(buffer);
        assert!(staging.lend(7, 1).is_none());
        assert_eq!((staging.received(7, 1), view.to_vec()), (&[2][..], vec![1]));
        drop(view);
        let buffer = staging.take();
        staging.put_back(buffer);
        assert!(staging.lend(0, 4096).is_some(), "the pool's memory came back");
    }
}
