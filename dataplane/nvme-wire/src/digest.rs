//! CRC32C digests of NVMe/TCP PDUs (TCP 3.1.2: reflected Castagnoli polynomial, little-endian on the wire).

/// Bytes of a header or data digest.
pub const DIGEST_LEN: usize = 4;

/// The digest of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// A digest over pieces that arrive one after the other.
#[derive(Debug, Clone)]
pub struct Crc32c(crc_fast::Digest);

impl Crc32c {
    /// A digest of nothing.
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    /// Takes the next piece in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything taken in.
    pub fn value(&self) -> u32 {
        let bytes = self.0.finalize().to_le_bytes();
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 3720 B.4: 32 bytes of zeroes.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| i.to_le_bytes()[0]).collect();
        let mut digest = Crc32c::new();
        for piece in bytes.chunks(37) {
            digest.update(piece);
        }
        assert_eq!(digest.value(), crc32c(&bytes));
    }
}
