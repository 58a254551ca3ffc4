//! The common header and what it says about the rest of a PDU.

use super::{
    COMMON_LEN, FLAG_DATA_DIGEST, FLAG_HEADER_DIGEST, FLAG_LAST, FLAG_SUCCESS, Kind, TERMINATION_DATA_MAX,
    Violation,
};
use crate::digest::DIGEST_LEN;

/// Which digests a connection uses (TCP figures 17 and 18, DGST).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digests {
    /// Header digests (bit 0).
    pub header: bool,
    /// Data digests (bit 1).
    pub data: bool,
}

impl Digests {
    /// Reads the DGST byte; reserved bits are ignored.
    pub const fn parse(byte: u8) -> Self {
        Self { header: byte & 1 != 0, data: byte & 2 != 0 }
    }

    /// The DGST byte.
    pub fn emit(self) -> u8 {
        u8::from(self.header) | u8::from(self.data) << 1
    }
}

/// Who reads: decides which kinds may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// The controller's end.
    Controller,
    /// The host's end.
    Host,
}

impl Receiver {
    fn accepts(self, kind: Kind) -> bool {
        let to_controller =
            matches!(kind, Kind::InitializeRequest | Kind::HostTermination | Kind::Command | Kind::HostData);
        to_controller == (self == Receiver::Controller)
    }
}

/// Offsets of the common header's fields, which a violation names (TCP figure 15).
const TYPE_AT: u32 = 0;
const FLAGS_AT: u32 = 1;
const HLEN_AT: u32 = 2;
const PDO_AT: u32 = 3;
const PLEN_AT: u32 = 4;

/// What the common header says: where the parts of a PDU lie and which digests it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The type.
    pub kind: Kind,
    /// The flags.
    pub flags: u8,
    /// Whether a digest follows the header.
    pub header_digest: bool,
    /// Whether a digest follows the data.
    pub data_digest: bool,
    /// Offset of the data; the end of header and digest where there is none.
    pub data_offset: u8,
    /// Bytes of data.
    pub data_len: u32,
}

impl Frame {
    /// Checks the common header of a PDU that `receiver` reads on a connection with these digests.
    ///
    /// `data_len_max` bounds the data of any one PDU (in-capsule data, or MAXH2CDATA).
    ///
    /// # Errors
    /// The violation of TCP 3.5 that the header commits.
    pub fn parse(
        common: &[u8; COMMON_LEN],
        receiver: Receiver,
        digests: Digests,
        data_len_max: u32,
    ) -> Result<Self, Violation> {
        let [code, flags, header_len, data_offset, l0, l1, l2, l3] = *common;
        let total = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind =
            Kind::from_code(code).filter(|kind| receiver.accepts(*kind)).ok_or(Violation::field(TYPE_AT))?;
        if usize::from(header_len) != kind.header_len() {
            return Err(Violation::field(HLEN_AT));
        }
        let digested = !matches!(
            kind,
            Kind::InitializeRequest
                | Kind::InitializeResponse
                | Kind::HostTermination
                | Kind::ControllerTermination
        );
        let header_digest = digested && digests.header;
        if (flags & FLAG_HEADER_DIGEST != 0) != header_digest || flags & !allowed_flags(kind) != 0 {
            return Err(Violation::field(FLAGS_AT));
        }
        let header_end = u32::from(header_len) + if header_digest { 4 } else { 0 };
        if total < header_end {
            return Err(Violation::field(PLEN_AT));
        }
        let bare = Self {
            kind,
            flags,
            header_digest,
            data_digest: false,
            data_offset: header_end.to_le_bytes()[0],
            data_len: 0,
        };
        match kind {
            Kind::HostTermination | Kind::ControllerTermination => {
                bare.with_termination_data(total - header_end)
            }
            Kind::Command | Kind::HostData | Kind::ControllerData => {
                bare.with_data(data_offset, total, header_end, digests, data_len_max)
            }
            Kind::InitializeRequest | Kind::InitializeResponse | Kind::Response | Kind::ReadyToTransfer => {
                if total == header_end {
                    Ok(bare)
                } else {
                    Err(Violation::field(PLEN_AT))
                }
            }
        }
    }

    fn with_termination_data(self, data_len: u32) -> Result<Self, Violation> {
        if data_len as usize > TERMINATION_DATA_MAX {
            return Err(Violation::field(PLEN_AT));
        }
        Ok(Self { data_len, ..self })
    }

    fn with_data(
        self,
        data_offset: u8,
        total: u32,
        header_end: u32,
        digests: Digests,
        data_len_max: u32,
    ) -> Result<Self, Violation> {
        let data_required = self.kind != Kind::Command;
        if total == header_end && !data_required {
            // TCP 3.6.2.5: without data there is no data digest.
            return if self.flags & FLAG_DATA_DIGEST == 0 {
                Ok(self)
            } else {
                Err(Violation::field(FLAGS_AT))
            };
        }
        if (self.flags & FLAG_DATA_DIGEST != 0) != digests.data {
            return Err(Violation::field(FLAGS_AT));
        }
        if u32::from(data_offset) < header_end || !data_offset.is_multiple_of(4) {
            return Err(Violation::field(PDO_AT));
        }
        let overhead = u32::from(data_offset) + if digests.data { 4 } else { 0 };
        match total.checked_sub(overhead) {
            Some(data_len) if data_len > 0 && data_len <= data_len_max => {
                Ok(Self { data_digest: digests.data, data_offset, data_len, ..self })
            }
            _ => Err(Violation::field(PLEN_AT)),
        }
    }

    /// Header length without digest.
    pub const fn header_len(&self) -> usize {
        self.kind.header_len()
    }

    /// Bytes before the data: header, its digest, padding.
    pub fn prefix_len(&self) -> usize {
        usize::from(self.data_offset)
    }

    /// Bytes behind the data.
    pub const fn suffix_len(&self) -> usize {
        if self.data_digest { DIGEST_LEN } else { 0 }
    }

    /// Bytes of the whole PDU.
    pub fn total_len(&self) -> usize {
        self.prefix_len() + self.data_len as usize + self.suffix_len()
    }

    /// A PDU of `kind` with `data_len` bytes of data whose offset is a multiple of `alignment`.
    ///
    /// # Panics
    /// If the aligned header does not fit the offset's byte; alignments are at most 128 (TCP 3.6.2.2).
    pub fn new(kind: Kind, flags: u8, digests: Digests, data_len: u32, alignment: usize) -> Self {
        let digested = !matches!(
            kind,
            Kind::InitializeRequest
                | Kind::InitializeResponse
                | Kind::HostTermination
                | Kind::ControllerTermination
        );
        let header_digest = digested && digests.header;
        let data_digest = digested && digests.data && data_len > 0;
        let header_end = kind.header_len() + if header_digest { DIGEST_LEN } else { 0 };
        let offset = if data_len > 0 { header_end.next_multiple_of(alignment.max(1)) } else { header_end };
        let Ok(data_offset) = u8::try_from(offset) else { panic!("data offset {offset} above a byte") };
        let flags = flags
            | if header_digest { FLAG_HEADER_DIGEST } else { 0 }
            | if data_digest { FLAG_DATA_DIGEST } else { 0 };
        Self { kind, flags, header_digest, data_digest, data_offset, data_len }
    }

    /// The common header's bytes.
    pub fn emit(&self) -> [u8; COMMON_LEN] {
        let header_end = self.header_len() + if self.header_digest { DIGEST_LEN } else { 0 };
        // PDO is reserved where there is no data, and in termination requests (TCP 3.6.2).
        let has_offset =
            self.data_len > 0 && !matches!(self.kind, Kind::HostTermination | Kind::ControllerTermination);
        let total = if self.data_len > 0 { self.total_len() } else { header_end };
        let length = total.to_le_bytes();
        let header_len = self.header_len().to_le_bytes()[0];
        let offset = if has_offset { self.data_offset } else { 0 };
        [self.kind.code(), self.flags, header_len, offset, length[0], length[1], length[2], length[3]]
    }
}

fn allowed_flags(kind: Kind) -> u8 {
    let digests = FLAG_HEADER_DIGEST | FLAG_DATA_DIGEST;
    match kind {
        Kind::InitializeRequest | Kind::InitializeResponse => 0,
        Kind::HostTermination | Kind::ControllerTermination => 0,
        Kind::Command => digests,
        Kind::Response | Kind::ReadyToTransfer => FLAG_HEADER_DIGEST,
        Kind::HostData => digests | FLAG_LAST,
        Kind::ControllerData => digests | FLAG_LAST | FLAG_SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digests() -> impl Strategy<Value = Digests> {
        (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data })
    }

    const BOTH: Digests = Digests { header: true, data: true };

    #[test]
    fn golden_frames() {
        let frame = Frame::new(Kind::Command, 0, BOTH, 4096, 1);
        assert_eq!(frame.emit(), [4, 3, 72, 76, 0x50, 0x10, 0, 0]);
        let frame = Frame::new(Kind::Response, 0, BOTH, 0, 1);
        assert_eq!(frame.emit(), [5, 1, 24, 0, 28, 0, 0, 0]);
        let frame = Frame::new(Kind::ControllerData, FLAG_LAST | FLAG_SUCCESS, Digests::default(), 512, 128);
        assert_eq!(frame.emit(), [7, 0x0c, 24, 128, 0x80, 0x02, 0, 0]);
        let frame = Frame::new(Kind::InitializeRequest, 0, BOTH, 0, 1);
        assert_eq!(frame.emit(), [0, 0, 128, 0, 128, 0, 0, 0]);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let parse = |common: [u8; 8]| Frame::parse(&common, Receiver::Controller, Digests::default(), 8192);
        let offset = |common| parse(common).map_err(|violation| violation.information);
        assert_eq!(offset([8, 0, 24, 0, 24, 0, 0, 0]), Err(0));
        assert_eq!(offset([5, 0, 24, 0, 24, 0, 0, 0]), Err(0), "a response does not go to a controller");
        assert_eq!(offset([4, 0, 71, 0, 72, 0, 0, 0]), Err(2));
        assert_eq!(offset([4, 1, 72, 0, 76, 0, 0, 0]), Err(1), "a digest that was not negotiated");
        assert_eq!(offset([4, 0, 72, 70, 0, 1, 0, 0]), Err(3));
        assert_eq!(offset([4, 0, 72, 73, 0, 1, 0, 0]), Err(3));
        assert_eq!(offset([4, 0, 72, 0, 71, 0, 0, 0]), Err(4));
        assert_eq!(offset([4, 0, 72, 72, 73, 32, 0, 0]), Err(4), "more data than the limit");
        assert_eq!(offset([6, 0, 24, 24, 24, 0, 0, 0]), Err(4), "data PDU without data");
        assert_eq!(offset([2, 0, 24, 0, 24 + 129, 0, 0, 0]), Err(4));
        assert!(parse([4, 0, 72, 72, 72, 32, 0, 0]).is_ok());
        assert!(parse([4, 0, 72, 0, 72, 0, 0, 0]).is_ok());
    }

    proptest! {
        #[test]
        fn frames_round_trip(
            code in prop::sample::select(Kind::ALL), digests in digests(), data_len in 0u32..10_000, alignment in 1usize..33,
        ) {
            let has_data = matches!(code, Kind::Command | Kind::HostData | Kind::ControllerData);
            let data_len = if has_data { data_len.max(u32::from(code != Kind::Command)) } else { 0 };
            let frame = Frame::new(code, 0, digests, data_len, alignment * 4);
            let receiver = [Receiver::Controller, Receiver::Host].into_iter().find(|end| end.accepts(code)).unwrap();
            prop_assert_eq!(Frame::parse(&frame.emit(), receiver, digests, 10_000), Ok(frame));
        }

        #[test]
        fn any_bytes_are_read_or_refused(common: [u8; 8], digests in digests(), limit: u32) {
            for receiver in [Receiver::Controller, Receiver::Host] {
                if let Ok(frame) = Frame::parse(&common, receiver, digests, limit) {
                    prop_assert!(frame.prefix_len() >= frame.header_len());
                    prop_assert!(frame.data_len <= limit.max(128));
                }
            }
        }
    }
}
