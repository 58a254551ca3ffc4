//! The memory that a reactor receives into.

use basalt_dma::{Buffer, BufferPool, Lent};

/// Bytes that one receive may bring.
pub(crate) const STAGING_BYTES: usize = 256 << 10;

/// One reactor's receive memory, used by one connection at a time. In-capsule data is lent from it to devices that take it
/// in at once.
pub(crate) struct Staging {
    pool: BufferPool,
    buffer: Buffer,
    /// The memory while pieces of it are lent.
    lent: Option<Lent>,
}

impl Staging {
    pub(crate) fn new(pool: BufferPool) -> Self {
        Self { pool, buffer: Buffer::default(), lent: None }
    }

    /// Memory to receive into; `None` if there is none now.
    pub(crate) fn buffer(&mut self) -> Option<&mut Buffer> {
        if let Some(lent) = self.lent.take() {
            // If a device still looks at it, its last user gives it back to the pool.
            self.buffer = lent.try_into_buffer().unwrap_or_default();
        }
        if self.buffer.is_empty() {
            self.buffer = self.pool.take(STAGING_BYTES)?;
        }
        Some(&mut self.buffer)
    }

    /// Gives the memory back that [`Staging::buffer`] showed and its user took out.
    pub(crate) fn put_back(&mut self, buffer: Buffer) {
        self.buffer = buffer;
    }

    /// A view of a part of what was received. The memory is not written again while views exist.
    pub(crate) fn lend(&mut self, at: usize, len: usize) -> Lent {
        let whole = match self.lent.take() {
            Some(lent) => lent,
            None => std::mem::take(&mut self.buffer).into_lent(),
        };
        let part = whole.slice(at, len);
        self.lent = Some(whole);
        part
    }
}
