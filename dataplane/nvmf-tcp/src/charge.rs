//! What memory counts as, where a share of a pool is counted.

use basalt_dma::{Buffer, MIN_CLASS_BYTES, Payload};

/// What a buffer of this length takes of a pool.
pub(crate) fn charge_of(len: usize) -> usize {
    len.max(MIN_CLASS_BYTES).next_power_of_two()
}

/// What a payload holds of a pool: nothing if a device owns the memory.
pub(crate) fn charge_of_payload(payload: &Payload) -> usize {
    match payload {
        Payload::None | Payload::Lent(_) => 0,
        Payload::Buffer(buffer) => charge_of(buffer.len()),
        Payload::Scattered(buffers) => buffers.iter().map(Buffer::len).map(charge_of).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_a_devices_memory_are_free() {
        assert_eq!([charge_of(0), charge_of(5000), charge_of(128 << 10)], [4096, 8192, 128 << 10]);
        let pair = Payload::Scattered(vec![Buffer::zeroed(512), Buffer::zeroed(8192)]);
        assert_eq!(charge_of_payload(&pair), 4096 + 8192);
        assert_eq!(charge_of_payload(&Payload::Lent(Buffer::zeroed(512).into_lent())), 0);
    }
}
