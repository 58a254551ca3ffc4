//! What a transport can carry.

/// What a transport can carry; a controller tells its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportLimits {
    /// Most bytes of data in a command capsule of an I/O queue: a multiple of 16.
    pub in_capsule_bytes_max: u32,
    /// Most bytes of data that one command moves: 4 KiB times a power of two.
    pub transfer_bytes_max: u32,
    /// Most entries of a queue.
    pub queue_entries_max: u16,
}
