//! Log pages (Base 5.16.1) and asynchronous events (Base 5.2.1).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Sqe;
use crate::opcode::codes;

codes! {
    /// Log page identifiers (Base figure 202).
    LogId {
        /// Supported Log Pages (Base 5.16.1.1).
        SupportedPages = 0x00,
        /// Error Information (Base 5.16.1.2).
        ErrorInformation = 0x01,
        /// SMART / Health Information (Base 5.16.1.3).
        Health = 0x02,
        /// Firmware Slot Information (Base 5.16.1.4).
        FirmwareSlot = 0x03,
        /// Changed Namespace List (Base 5.16.1.5).
        ChangedNamespaces = 0x04,
        /// Commands Supported and Effects (Base 5.16.1.6).
        CommandEffects = 0x05,
        /// Asymmetric Namespace Access (Base 5.16.1.13).
        Ana = 0x0c,
        /// Feature Identifiers Supported and Effects (Base 5.16.1.18).
        FeatureEffects = 0x12,
        /// Discovery (oF 5.3; Base 5.16.1.23).
        Discovery = 0x70,
        /// Reservation Notification (Base 5.16.1.24).
        ReservationNotification = 0x80,
    }
}

/// Get Log Page's dwords (Base 5.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetLogPage {
    /// Log page identifier (dword 10, bits 7:0).
    pub page: u8,
    /// Log specific field (dword 10, bits 14:8).
    pub specific: u8,
    /// Retain asynchronous event (dword 10, bit 15).
    pub retain_event: bool,
    /// Bytes wanted (dwords 10 and 11, 0's based dwords on the wire).
    pub length: u64,
    /// Offset (dwords 12 and 13).
    pub offset: u64,
    /// Offset is an index of entries, not bytes (dword 14, bit 23).
    pub index_offset: bool,
}

impl GetLogPage {
    /// Reads the fields of `sqe`.
    pub fn parse(sqe: &Sqe) -> Self {
        let dword10 = sqe.cdw10.get();
        let bytes = dword10.to_le_bytes();
        let dwords = u64::from(dword10 >> 16) | u64::from(sqe.cdw11.get() & 0xffff) << 16;
        Self {
            page: bytes[0],
            specific: bytes[1] & 0x7f,
            retain_event: bytes[1] & 0x80 != 0,
            length: (dwords + 1) * 4,
            offset: u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32,
            index_offset: sqe.cdw14.get() >> 23 & 1 != 0,
        }
    }

    /// Writes the fields into `sqe`.
    ///
    /// # Panics
    /// If `length` is not a positive multiple of four that fits 32 bits of dwords.
    pub fn emit(&self, sqe: &mut Sqe) {
        assert!(self.length > 0 && self.length.is_multiple_of(4), "log pages are read in dwords");
        let dwords = (self.length / 4 - 1).to_le_bytes();
        assert_eq!(dwords[4..], [0; 4], "length fits");
        let flags = self.specific & 0x7f | u8::from(self.retain_event) << 7;
        sqe.cdw10 = U32::from_bytes([self.page, flags, dwords[0], dwords[1]]);
        sqe.cdw11 = U32::from_bytes([dwords[2], dwords[3], 0, 0]);
        let offset = self.offset.to_le_bytes();
        sqe.cdw12 = U32::from_bytes([offset[0], offset[1], offset[2], offset[3]]);
        sqe.cdw13 = U32::from_bytes([offset[4], offset[5], offset[6], offset[7]]);
        sqe.cdw14 = U32::new(u32::from(self.index_offset) << 23);
    }
}

/// An asynchronous event: completion dword 0 (Base figure 146).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AsyncEvent {
    /// Notice: Namespace Attribute Changed (02h/00h), log page 04h.
    NamespaceAttributeChanged,
    /// Notice: ANA Change (02h/03h), log page 0Ch.
    AnaChange,
    /// Notice: Discovery Log Page Change (02h/F0h), log page 70h.
    DiscoveryLogChange,
    /// I/O command set: Reservation Log Page Available (06h/00h), log page 80h.
    ReservationLogAvailable,
}

impl AsyncEvent {
    /// Every event.
    pub const ALL: [AsyncEvent; 4] = [
        AsyncEvent::NamespaceAttributeChanged,
        AsyncEvent::AnaChange,
        AsyncEvent::DiscoveryLogChange,
        AsyncEvent::ReservationLogAvailable,
    ];

    /// Completion dword 0: type in bits 2:0, information in 15:8, log page in 23:16.
    pub const fn emit(self) -> u32 {
        let (kind, information, page) = match self {
            AsyncEvent::NamespaceAttributeChanged => (2, 0x00, LogId::ChangedNamespaces),
            AsyncEvent::AnaChange => (2, 0x03, LogId::Ana),
            AsyncEvent::DiscoveryLogChange => (2, 0xf0, LogId::Discovery),
            AsyncEvent::ReservationLogAvailable => (6, 0x00, LogId::ReservationNotification),
        };
        kind | information << 8 | (page as u32) << 16
    }

    /// Reads completion dword 0; `None` for an event that this crate does not know.
    pub fn parse(dword: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.emit() == dword & 0x00ff_ff07)
    }

    /// The page whose reading clears the event (Base 5.2.1).
    pub const fn page(self) -> LogId {
        match self {
            AsyncEvent::NamespaceAttributeChanged => LogId::ChangedNamespaces,
            AsyncEvent::AnaChange => LogId::Ana,
            AsyncEvent::DiscoveryLogChange => LogId::Discovery,
            AsyncEvent::ReservationLogAvailable => LogId::ReservationNotification,
        }
    }
}

/// Bytes of an error information entry (Base figure 206).
pub const ERROR_ENTRY_LEN: usize = 64;
/// Bytes of the firmware slot page (Base figure 209).
pub const FIRMWARE_SLOT_LEN: usize = 512;
/// Bytes of the changed namespace list (Base 5.16.1.5).
pub const CHANGED_NAMESPACES_LEN: usize = 4096;
/// Most NSIDs in the changed namespace list; more are shown as one FFFFFFFFh.
pub const CHANGED_NAMESPACES_MAX: usize = CHANGED_NAMESPACES_LEN / 4;
/// Bytes of the supported log pages, one dword per identifier (Base figure 203).
pub const SUPPORTED_PAGES_LEN: usize = 1024;
/// Bytes of the feature effects page (Base figure 256).
pub const FEATURE_EFFECTS_LEN: usize = 1024;

/// SMART / Health Information (Base figure 207).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Health {
    /// Critical warning (0).
    pub critical_warning: u8,
    /// Composite temperature (2:1), kelvin.
    pub temperature: U16,
    /// Available spare (3), percent.
    pub spare: u8,
    /// Available spare threshold (4), percent.
    pub spare_threshold: u8,
    /// Percentage used (5).
    pub used: u8,
    /// Endurance group warnings (6).
    pub endurance_warning: u8,
    /// Reserved (31:7).
    pub reserved_7: [u8; 25],
    /// Data units read (47:32), thousands of 512 bytes.
    pub data_units_read: [U64; 2],
    /// Data units written (63:48).
    pub data_units_written: [U64; 2],
    /// Host read commands (79:64).
    pub read_commands: [U64; 2],
    /// Host write commands (95:80).
    pub write_commands: [U64; 2],
    /// Busy time, power cycles, power-on hours, unsafe shutdowns, media errors, error entries (191:96).
    pub reserved_96: [[U64; 2]; 6],
    /// Temperature times and sensors, reserved (511:192).
    pub reserved_192: [u8; 320],
}

const _: () = assert!(size_of::<Health>() == 512);

/// Commands Supported and Effects (Base figure 210).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CommandEffects {
    /// Admin commands by opcode (1023:0).
    pub admin: [U32; 256],
    /// I/O commands by opcode (2047:1024).
    pub io: [U32; 256],
    /// Reserved (4095:2048).
    pub reserved: [u8; 2048],
}

const _: () = assert!(size_of::<CommandEffects>() == 4096);

/// Effects bit: Command Supported.
pub const EFFECT_SUPPORTED: u32 = 1 << 0;
/// Effects bit: Logical Block Content Change.
pub const EFFECT_CONTENT_CHANGE: u32 = 1 << 1;

/// Access state of an ANA group (Base figure 231).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AnaState {
    /// Optimized.
    Optimized = 0x01,
    /// Non-optimized.
    NonOptimized = 0x02,
    /// Inaccessible.
    Inaccessible = 0x03,
    /// Persistent loss.
    PersistentLoss = 0x04,
    /// Change.
    Change = 0x0f,
}

impl AnaState {
    /// Reads bits 3:0 of the state byte.
    pub const fn parse(byte: u8) -> Option<Self> {
        match byte & 0xf {
            0x01 => Some(AnaState::Optimized),
            0x02 => Some(AnaState::NonOptimized),
            0x03 => Some(AnaState::Inaccessible),
            0x04 => Some(AnaState::PersistentLoss),
            0x0f => Some(AnaState::Change),
            _ => None,
        }
    }
}

/// Header of the ANA log page (Base figure 229).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct AnaHeader {
    /// Change count (7:0).
    pub change_count: U64,
    /// Group descriptors (9:8).
    pub groups: U16,
    /// Reserved (15:10).
    pub reserved: [u8; 6],
}

/// ANA group descriptor without its NSIDs (Base figure 230).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct AnaGroup {
    /// Group identifier (3:0).
    pub group: U32,
    /// NSIDs that follow (7:4).
    pub namespaces: U32,
    /// Change count (15:8).
    pub change_count: U64,
    /// State (16).
    pub state: u8,
    /// Reserved (31:17).
    pub reserved: [u8; 15],
}

const _: () = assert!(size_of::<AnaHeader>() == 16 && size_of::<AnaGroup>() == 32);

/// ANA log specific field: Return Groups Only (Base figure 228).
pub const ANA_GROUPS_ONLY: u8 = 1 << 0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_round_trip_and_golden() {
        for event in AsyncEvent::ALL {
            assert_eq!(AsyncEvent::parse(event.emit()), Some(event));
        }
        assert_eq!(AsyncEvent::NamespaceAttributeChanged.emit(), 0x0004_0002);
        assert_eq!(AsyncEvent::AnaChange.emit(), 0x000c_0302);
        assert_eq!(AsyncEvent::DiscoveryLogChange.emit(), 0x0070_f002);
        assert_eq!(AsyncEvent::parse(0x0002_0001), None);
    }

    #[test]
    fn ana_states_round_trip() {
        for byte in 0..16u8 {
            assert!(AnaState::parse(byte).is_none_or(|state| state as u8 == byte));
        }
    }

    proptest! {
        #[test]
        fn get_log_page_round_trips(
            page: u8, specific in 0u8..128, retain_event: bool, dwords in 1u64..=0xffff_ffff, offset: u64, index_offset: bool,
        ) {
            let fields = GetLogPage { page, specific, retain_event, length: dwords * 4, offset, index_offset };
            let mut sqe = Sqe::default();
            fields.emit(&mut sqe);
            prop_assert_eq!(GetLogPage::parse(&sqe), fields);
        }
    }
}
