//! What follows the common header, by kind.

use super::{
    COMMON_LEN, Digests, FatalStatus, Frame, INITIALIZE_LEN, Kind, SHORT_LEN, TERMINATION_DATA_MAX, Violation,
};

fn u16_at(bytes: &[u8; SHORT_LEN], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; SHORT_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// PDU format version of NVMe/TCP 1.0 (TCP 3.6.2.1).
const FORMAT: u16 = 0;
/// Largest data alignment, 0's based dwords (TCP 3.6.2.1).
const ALIGNMENT_MAX: u8 = 31;
/// Offsets that a violation names.
const FORMAT_AT: u32 = 8;
const ALIGNMENT_AT: u32 = 10;
const MAX_H2C_AT: u32 = 12;
/// Least MAXH2CDATA (TCP 3.6.2.2).
const MAX_H2C_MIN: u32 = 4096;

/// Initialize Connection Request (TCP figure 17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitializeRequest {
    /// Host PDU data alignment in bytes: data that the controller sends starts at a multiple of it.
    pub data_alignment: usize,
    /// Digests that the host asks for.
    pub digests: Digests,
    /// Most R2Ts outstanding per command, as a count (0's based on the wire).
    pub r2t_max: u64,
}

impl InitializeRequest {
    /// Reads the header.
    ///
    /// # Errors
    /// Unsupported Parameter for another format version or an alignment above 128 bytes.
    pub fn parse(header: &[u8; INITIALIZE_LEN]) -> Result<Self, Violation> {
        let (data_alignment, digests) = parse_common(header)?;
        let r2t = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
        Ok(Self { data_alignment, digests, r2t_max: u64::from(r2t) + 1 })
    }

    /// The PDU's bytes; the alignment is that of any dword.
    pub fn emit(&self) -> [u8; INITIALIZE_LEN] {
        let value = u32::try_from(self.r2t_max.saturating_sub(1)).unwrap_or(u32::MAX);
        emit_common(Kind::InitializeRequest, self.data_alignment, self.digests, value)
    }
}

/// Initialize Connection Response (TCP figure 18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitializeResponse {
    /// Controller PDU data alignment in bytes: data that the host sends starts at a multiple of it.
    pub data_alignment: usize,
    /// Digests that the connection uses.
    pub digests: Digests,
    /// Most bytes of data in one H2CData PDU.
    pub host_data_max: u32,
}

impl InitializeResponse {
    /// Reads the header.
    ///
    /// # Errors
    /// Unsupported Parameter for another format version, an alignment above 128 bytes, or a MAXH2CDATA below 4 KiB.
    pub fn parse(header: &[u8; INITIALIZE_LEN]) -> Result<Self, Violation> {
        let (data_alignment, digests) = parse_common(header)?;
        let host_data_max = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
        if host_data_max < MAX_H2C_MIN || !host_data_max.is_multiple_of(4) {
            return Err(unsupported(MAX_H2C_AT));
        }
        Ok(Self { data_alignment, digests, host_data_max })
    }

    /// The PDU's bytes.
    pub fn emit(&self) -> [u8; INITIALIZE_LEN] {
        emit_common(Kind::InitializeResponse, self.data_alignment, self.digests, self.host_data_max)
    }
}

const fn unsupported(offset: u32) -> Violation {
    Violation { status: FatalStatus::UnsupportedParameter, information: offset }
}

fn parse_common(header: &[u8; INITIALIZE_LEN]) -> Result<(usize, Digests), Violation> {
    if u16::from_le_bytes([header[8], header[9]]) != FORMAT {
        return Err(unsupported(FORMAT_AT));
    }
    if header[10] > ALIGNMENT_MAX {
        return Err(unsupported(ALIGNMENT_AT));
    }
    Ok(((usize::from(header[10]) + 1) * 4, Digests::parse(header[11])))
}

fn emit_common(kind: Kind, alignment: usize, digests: Digests, value: u32) -> [u8; INITIALIZE_LEN] {
    assert!(alignment.is_multiple_of(4) && (4..=128).contains(&alignment), "alignment is of 1 to 32 dwords");
    let mut bytes = [0; INITIALIZE_LEN];
    bytes[..COMMON_LEN].copy_from_slice(&Frame::new(kind, 0, Digests::default(), 0, 1).emit());
    bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[10] = (alignment / 4 - 1).to_le_bytes()[0];
    bytes[11] = digests.emit();
    bytes[12..16].copy_from_slice(&value.to_le_bytes());
    bytes
}

/// Fields of H2CData and C2HData (TCP figures 27 and 28).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataTransfer {
    /// Command capsule's command identifier (CCCID).
    pub command_id: u16,
    /// Transfer tag of the R2T that is answered; reserved in C2HData.
    pub transfer_tag: u16,
    /// Offset of this data in the command's data (DATAO).
    pub offset: u32,
    /// Bytes of data (DATAL).
    pub length: u32,
}

/// Offset of DATAL, which a violation names.
const LENGTH_AT: u32 = 16;
/// Offset of DATAO.
const OFFSET_AT: u32 = 12;

impl DataTransfer {
    /// Reads the header of `frame`.
    ///
    /// # Errors
    /// Invalid header field where DATAL is not what PLEN leaves for data, or DATAO is no multiple of four.
    pub fn parse(header: &[u8; SHORT_LEN], frame: &Frame) -> Result<Self, Violation> {
        let transfer = Self {
            command_id: u16_at(header, 8),
            transfer_tag: u16_at(header, 10),
            offset: u32_at(header, 12),
            length: u32_at(header, 16),
        };
        if transfer.length != frame.data_len {
            return Err(Violation::field(LENGTH_AT));
        }
        if !transfer.offset.is_multiple_of(4) {
            return Err(Violation::field(OFFSET_AT));
        }
        Ok(transfer)
    }

    /// The header's bytes, without digest.
    pub fn emit(&self, frame: &Frame) -> [u8; SHORT_LEN] {
        emit_transfer(frame, self.command_id, self.transfer_tag, self.offset, self.length)
    }
}

/// Ready to Transfer (TCP figure 29).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyToTransfer {
    /// Command capsule's command identifier (CCCID).
    pub command_id: u16,
    /// Tag that the answering H2CData repeat.
    pub transfer_tag: u16,
    /// Offset of the first byte asked for (R2TO).
    pub offset: u32,
    /// Bytes asked for (R2TL).
    pub length: u32,
}

impl ReadyToTransfer {
    /// Reads the header.
    ///
    /// # Errors
    /// Invalid header field for a length of zero.
    pub fn parse(header: &[u8; SHORT_LEN]) -> Result<Self, Violation> {
        let ready = Self {
            command_id: u16_at(header, 8),
            transfer_tag: u16_at(header, 10),
            offset: u32_at(header, 12),
            length: u32_at(header, 16),
        };
        if ready.length == 0 { Err(Violation::field(LENGTH_AT)) } else { Ok(ready) }
    }

    /// The header's bytes, without digest.
    pub fn emit(&self, frame: &Frame) -> [u8; SHORT_LEN] {
        emit_transfer(frame, self.command_id, self.transfer_tag, self.offset, self.length)
    }
}

fn emit_transfer(frame: &Frame, command_id: u16, tag: u16, offset: u32, length: u32) -> [u8; SHORT_LEN] {
    let mut bytes = [0; SHORT_LEN];
    bytes[..COMMON_LEN].copy_from_slice(&frame.emit());
    bytes[8..10].copy_from_slice(&command_id.to_le_bytes());
    bytes[10..12].copy_from_slice(&tag.to_le_bytes());
    bytes[12..16].copy_from_slice(&offset.to_le_bytes());
    bytes[16..20].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Termination request of either side (TCP figures 20 and 22).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Termination {
    /// Fatal error status as sent; [`FatalStatus::parse`] names it.
    pub status: u16,
    /// Fatal error information.
    pub information: u32,
}

impl Termination {
    /// Reads the header.
    pub fn parse(header: &[u8; SHORT_LEN]) -> Self {
        Self { status: u16_at(header, 8), information: u32_at(header, 10) }
    }

    /// Appends the whole PDU that answers `violation`; `offending` is the start of the PDU that committed it.
    pub fn emit(kind: Kind, violation: Violation, offending: &[u8], target: &mut Vec<u8>) {
        debug_assert!(matches!(kind, Kind::HostTermination | Kind::ControllerTermination));
        let offending = &offending[..offending.len().min(TERMINATION_DATA_MAX)];
        let len = u32::try_from(offending.len()).unwrap_or(0);
        let mut frame = Frame::new(kind, 0, Digests::default(), 0, 1);
        frame.data_len = len;
        let mut bytes = [0; SHORT_LEN];
        bytes[..COMMON_LEN].copy_from_slice(&frame.emit());
        bytes[8..10].copy_from_slice(&(violation.status as u16).to_le_bytes());
        bytes[10..14].copy_from_slice(&violation.information.to_le_bytes());
        target.extend_from_slice(&bytes);
        target.extend_from_slice(offending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::{FLAG_LAST, Receiver};
    use proptest::prelude::*;

    const HEADER_ONLY: Digests = Digests { header: true, data: false };

    #[test]
    fn golden_initialization() {
        let bytes = InitializeRequest { data_alignment: 4, digests: HEADER_ONLY, r2t_max: 1 }.emit();
        assert_eq!(bytes[..16], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        let bytes =
            InitializeResponse { data_alignment: 128, digests: HEADER_ONLY, host_data_max: 131_072 }.emit();
        assert_eq!(bytes[..16], [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 31, 1, 0, 0, 2, 0]);
    }

    #[test]
    fn unsupported_parameters_are_named() {
        let mut bytes = InitializeRequest { data_alignment: 4, digests: HEADER_ONLY, r2t_max: 1 }.emit();
        bytes[8] = 1;
        assert_eq!(InitializeRequest::parse(&bytes), Err(unsupported(8)));
        bytes[8] = 0;
        bytes[10] = 32;
        assert_eq!(InitializeRequest::parse(&bytes), Err(unsupported(10)));
        let response = InitializeResponse { data_alignment: 4, digests: HEADER_ONLY, host_data_max: 4092 };
        assert_eq!(InitializeResponse::parse(&response.emit()), Err(unsupported(12)));
    }

    #[test]
    fn golden_termination() {
        let mut bytes = Vec::new();
        Termination::emit(Kind::ControllerTermination, Violation::field(3), &[0xaa; 200], &mut bytes);
        assert_eq!(bytes.len(), 24 + 128);
        assert_eq!(bytes[..16], [3, 0, 24, 0, 152, 0, 0, 0, 1, 0, 3, 0, 0, 0, 0, 0]);
        let header: [u8; 24] = bytes[..24].try_into().unwrap();
        assert_eq!(Termination::parse(&header), Termination { status: 1, information: 3 });
        let common: [u8; 8] = bytes[..8].try_into().unwrap();
        let frame = Frame::parse(&common, Receiver::Host, Digests::default(), 0).unwrap();
        assert_eq!(frame.total_len(), bytes.len());
    }

    proptest! {
        #[test]
        fn initializations_round_trip(dwords in 1usize..=32, header: bool, data: bool, r2t in 1u64..=1 << 32, h2c in 1024u32..1 << 20) {
            let digests = Digests { header, data };
            let request = InitializeRequest { data_alignment: dwords * 4, digests, r2t_max: r2t };
            prop_assert_eq!(InitializeRequest::parse(&request.emit()), Ok(request));
            let response = InitializeResponse { data_alignment: dwords * 4, digests, host_data_max: h2c * 4 };
            prop_assert_eq!(InitializeResponse::parse(&response.emit()), Ok(response));
        }

        #[test]
        fn transfers_round_trip(command_id: u16, transfer_tag: u16, dwords in 0u32..1 << 30, length in 1u32..) {
            let offset = dwords * 4;
            let frame = Frame::new(Kind::ReadyToTransfer, 0, HEADER_ONLY, 0, 1);
            let ready = ReadyToTransfer { command_id, transfer_tag, offset, length };
            prop_assert_eq!(ReadyToTransfer::parse(&ready.emit(&frame)), Ok(ready));
            let frame = Frame::new(Kind::HostData, FLAG_LAST, HEADER_ONLY, length, 4);
            let transfer = DataTransfer { command_id, transfer_tag, offset, length };
            prop_assert_eq!(DataTransfer::parse(&transfer.emit(&frame), &frame), Ok(transfer));
        }

        #[test]
        fn any_bytes_are_read_or_refused(long in prop::array::uniform32(any::<[u8; 4]>()), short in prop::array::uniform24(any::<u8>())) {
            let header: [u8; 128] = long.concat().try_into().unwrap();
            let _ = InitializeRequest::parse(&header).is_ok();
            let _ = InitializeResponse::parse(&header).is_ok();
            let _ = ReadyToTransfer::parse(&short).is_ok();
            let _ = Termination::parse(&short);
            let frame = Frame::new(Kind::HostData, 0, HEADER_ONLY, 512, 4);
            let _ = DataTransfer::parse(&short, &frame).is_ok();
        }
    }
}
