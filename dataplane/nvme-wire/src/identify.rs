//! Identify data structures (Base 5.17.2, NVM 4.1.5).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::opcode::codes;

/// Bytes of every identify data structure.
pub const IDENTIFY_LEN: usize = 4096;

codes! {
    /// Controller or Namespace Structure (Base figure 273).
    Cns {
        /// Identify Namespace of the NVM command set (00h).
        Namespace = 0x00,
        /// Identify Controller (01h).
        Controller = 0x01,
        /// Active namespace list (02h).
        ActiveNamespaces = 0x02,
        /// Namespace identification descriptors (03h).
        NamespaceDescriptors = 0x03,
        /// I/O command set specific namespace (05h).
        CommandSetNamespace = 0x05,
        /// I/O command set specific controller (06h).
        CommandSetController = 0x06,
        /// I/O command set specific active namespace list (07h).
        CommandSetActiveNamespaces = 0x07,
        /// I/O command set independent namespace (08h).
        IndependentNamespace = 0x08,
        /// Allocated namespace list (10h).
        AllocatedNamespaces = 0x10,
        /// Identify Namespace of an allocated namespace (11h).
        AllocatedNamespace = 0x11,
    }
}

/// Identify Controller (Base figure 276). Field names are the specification's mnemonics.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor id (1:0); zero for fabrics.
    pub vid: U16,
    /// PCI subsystem vendor id (3:2).
    pub ssvid: U16,
    /// Serial number (23:4), ASCII, blank padded.
    pub sn: [u8; 20],
    /// Model number (63:24), ASCII, blank padded.
    pub mn: [u8; 40],
    /// Firmware revision (71:64), ASCII, blank padded.
    pub fr: [u8; 8],
    /// Recommended arbitration burst (72).
    pub rab: u8,
    /// IEEE OUI (75:73).
    pub ieee: [u8; 3],
    /// Controller multi-path and namespace sharing (76): bit 1 several controllers, bit 3 ANA reporting.
    pub cmic: u8,
    /// Maximum data transfer size (77), a power of two of the minimum page size; zero is no limit.
    pub mdts: u8,
    /// Controller id (79:78).
    pub cntlid: U16,
    /// Version (83:80).
    pub ver: U32,
    /// RTD3 latencies (91:84).
    pub rtd3: [U32; 2],
    /// Optional asynchronous events (95:92).
    pub oaes: U32,
    /// Controller attributes (99:96): bit 0 128-bit host id, bit 6 traffic based keep alive.
    pub ctratt: U32,
    /// Read recovery levels (101:100).
    pub rrls: U16,
    /// Reserved (110:102).
    pub reserved_102: [u8; 9],
    /// Controller type (111): 1 I/O, 2 discovery.
    pub cntrltype: u8,
    /// FRU GUID (127:112).
    pub fguid: [u8; 16],
    /// Command retry delays (133:128), 100 ms units.
    pub crdt: [U16; 3],
    /// Reserved and management interface (255:134).
    pub reserved_134: [u8; 122],
    /// Optional admin commands (257:256).
    pub oacs: U16,
    /// Abort command limit (258), 0's based.
    pub acl: u8,
    /// Asynchronous event request limit (259), 0's based.
    pub aerl: u8,
    /// Firmware updates (260): slots in bits 3:1, bit 0 first slot read only.
    pub frmw: u8,
    /// Log page attributes (261): bit 1 effects log, bit 2 extended data (offset).
    pub lpa: u8,
    /// Error log page entries (262), 0's based.
    pub elpe: u8,
    /// Power states (263), 0's based.
    pub npss: u8,
    /// Vendor specific commands and autonomous power transitions (265:264).
    pub avscc_apsta: [u8; 2],
    /// Warning and critical composite temperature thresholds (269:266), kelvin.
    pub temperature_thresholds: [U16; 2],
    /// Firmware activation time, host memory buffer, capacities, RPMB, self-test (319:270).
    pub reserved_270: [u8; 50],
    /// Keep alive granularity (321:320), 100 ms units.
    pub kas: U16,
    /// Host controlled thermal management, sanitize and host memory (339:322).
    pub reserved_322: [u8; 18],
    /// Endurance group identifiers (341:340).
    pub endgidmax: U16,
    /// ANA transition time (342), seconds.
    pub anatt: u8,
    /// ANA capabilities (343): bits 4:0 reported states, bit 6 group id stays.
    pub anacap: u8,
    /// ANA group identifier maximum (347:344).
    pub anagrpmax: U32,
    /// Number of ANA group identifiers (351:348).
    pub nanagrpid: U32,
    /// Persistent event log size and more (511:352).
    pub reserved_352: [u8; 160],
    /// Submission queue entry size (512): required in bits 3:0, maximum in bits 7:4.
    pub sqes: u8,
    /// Completion queue entry size (513).
    pub cqes: u8,
    /// Maximum outstanding commands (515:514); mandatory for fabrics.
    pub maxcmd: U16,
    /// Number of namespaces (519:516): the largest NSID.
    pub nn: U32,
    /// Optional NVM commands (521:520).
    pub oncs: U16,
    /// Fused operations (523:522): bit 0 compare and write.
    pub fuses: U16,
    /// Format NVM attributes (524).
    pub fna: u8,
    /// Volatile write cache (525): bit 0 present, bits 2:1 flush with NSID FFFFFFFFh.
    pub vwc: u8,
    /// Atomic write unit normal (527:526), 0's based blocks.
    pub awun: U16,
    /// Atomic write unit power fail (529:528), 0's based blocks.
    pub awupf: U16,
    /// Vendor specific commands and write protection (531:530).
    pub nvscc_nwpc: [u8; 2],
    /// Atomic compare and write unit (533:532), 0's based blocks.
    pub acwu: U16,
    /// Copy descriptor formats (535:534).
    pub cdfs: U16,
    /// SGL support (539:536): bits 1:0 supported, bit 20 offset in capsules, bit 21 transport SGL.
    pub sgls: U32,
    /// Maximum number of allowed namespaces (543:540); mandatory with ANA.
    pub mnan: U32,
    /// Domains and reserved (767:544).
    pub reserved_544: [u8; 224],
    /// NVM subsystem NQN (1023:768), UTF-8, zero terminated.
    pub subnqn: [u8; 256],
    /// Reserved (1791:1024).
    pub reserved_1024: [u8; 768],
    /// I/O queue command capsule size (1795:1792), 16-byte units (oF 4.1).
    pub ioccsz: U32,
    /// I/O queue response capsule size (1799:1796), 16-byte units.
    pub iorcsz: U32,
    /// In capsule data offset (1801:1800), 16-byte units.
    pub icdoff: U16,
    /// Fabrics controller attributes (1802): bit 0 static controller model.
    pub fcatt: u8,
    /// Maximum SGL data block descriptors (1803).
    pub msdbd: u8,
    /// Optional fabrics commands (1805:1804): bit 0 Disconnect.
    pub ofcs: U16,
    /// Reserved (2047:1806).
    pub reserved_1806: [u8; 242],
    /// Power state descriptors (3071:2048).
    pub power_states: [[u8; 32]; 32],
    /// Vendor specific (4095:3072).
    pub vendor: [u8; 1024],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<IdentifyController>() == IDENTIFY_LEN);
    assert!(offset_of!(IdentifyController, cntrltype) == 111);
    assert!(offset_of!(IdentifyController, oacs) == 256);
    assert!(offset_of!(IdentifyController, kas) == 320);
    assert!(offset_of!(IdentifyController, anatt) == 342);
    assert!(offset_of!(IdentifyController, sqes) == 512);
    assert!(offset_of!(IdentifyController, sgls) == 536);
    assert!(offset_of!(IdentifyController, subnqn) == 768);
    assert!(offset_of!(IdentifyController, ioccsz) == 1792);
    assert!(offset_of!(IdentifyController, power_states) == 2048);
};

/// CMIC: the subsystem may have two or more controllers.
pub const CMIC_MULTI_CONTROLLER: u8 = 1 << 1;
/// CMIC: Asymmetric Namespace Access Reporting.
pub const CMIC_ANA: u8 = 1 << 3;
/// CTRATT: 128-bit host identifier.
pub const CTRATT_HOST_ID_128: u32 = 1 << 0;
/// CTRATT: traffic based keep alive.
pub const CTRATT_TRAFFIC_KEEP_ALIVE: u32 = 1 << 6;
/// ANACAP: optimized, non-optimized, inaccessible, persistent loss and change states are reported.
pub const ANACAP_ALL_STATES: u8 = 0x1f;
/// LPA: commands supported and effects log.
pub const LPA_EFFECTS: u8 = 1 << 1;
/// LPA: extended data for Get Log Page (32-bit lengths and offsets).
pub const LPA_EXTENDED: u8 = 1 << 2;
/// FUSES: Compare and Write.
pub const FUSES_COMPARE_AND_WRITE: u16 = 1 << 0;
/// ONCS: Compare.
pub const ONCS_COMPARE: u16 = 1 << 0;
/// ONCS: Dataset Management.
pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS: Write Zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// ONCS: Save and Select fields of features.
pub const ONCS_FEATURE_SELECT: u16 = 1 << 4;
/// ONCS: Reservations.
pub const ONCS_RESERVATIONS: u16 = 1 << 5;
/// SGLS: SGLs without alignment, offsets into the capsule's data, transport data block.
pub const SGLS_FABRICS: u32 = 1 | 1 << 20 | 1 << 21;
/// VWC: present (bit 0); Flush with NSID FFFFFFFFh is not taken (bits 2:1 = 10b).
pub const VWC_PRESENT: u8 = 0b101;
/// VWC: not present; Flush with NSID FFFFFFFFh is not taken.
pub const VWC_ABSENT: u8 = 0b100;

/// Identify Namespace of the NVM command set (NVM figure 97).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size in blocks (7:0).
    pub nsze: U64,
    /// Capacity in blocks (15:8).
    pub ncap: U64,
    /// Utilization in blocks (23:16).
    pub nuse: U64,
    /// Features (24): bit 0 thin, bit 2 deallocated error, bit 4 optimal I/O fields.
    pub nsfeat: u8,
    /// LBA formats (25), 0's based.
    pub nlbaf: u8,
    /// Formatted LBA size (26).
    pub flbas: u8,
    /// Metadata capabilities (27).
    pub mc: u8,
    /// Protection capabilities and settings (29:28).
    pub dpc_dps: [u8; 2],
    /// Multi-path and sharing (30): bit 0 shared.
    pub nmic: u8,
    /// Reservation capabilities (31).
    pub rescap: u8,
    /// Format progress (32).
    pub fpi: u8,
    /// Deallocate features (33): bits 2:0 value read (001b zeroes), bit 3 deallocate in Write Zeroes.
    pub dlfeat: u8,
    /// Atomic write units, boundaries and offset (45:34).
    pub atomics: [U16; 6],
    /// Optimal I/O boundary (47:46).
    pub noiob: U16,
    /// NVM capacity in bytes (63:48).
    pub nvmcap: [u8; 16],
    /// Preferred write and deallocate granularity and alignment, optimal write size (73:64), 0's based.
    pub preferred: [U16; 5],
    /// Copy limits and reserved (91:74).
    pub reserved_74: [u8; 18],
    /// ANA group identifier (95:92).
    pub anagrpid: U32,
    /// Reserved (98:96).
    pub reserved_96: [u8; 3],
    /// Attributes (99): bit 0 write protected.
    pub nsattr: u8,
    /// NVM set and endurance group (103:100).
    pub set_and_group: [U16; 2],
    /// NGUID (119:104), big-endian.
    pub nguid: [u8; 16],
    /// EUI-64 (127:120), big-endian.
    pub eui64: [u8; 8],
    /// LBA formats (383:128): metadata size in bits 15:0, data size exponent in bits 23:16.
    pub lbaf: [U32; 64],
    /// Vendor specific (4095:384).
    pub vendor: [u8; 3712],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<IdentifyNamespace>() == IDENTIFY_LEN);
    assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
    assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
    assert!(offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
};

/// NSFEAT: thin provisioning.
pub const NSFEAT_THIN: u8 = 1 << 0;
/// NSFEAT: the optimal I/O fields (NPWG to NOWS) are meant.
pub const NSFEAT_OPTIMAL: u8 = 1 << 4;
/// NMIC: may be attached to two or more controllers.
pub const NMIC_SHARED: u8 = 1 << 0;
/// DLFEAT: deallocated blocks read as zeroes, Write Zeroes honours Deallocate.
pub const DLFEAT_ZEROES: u8 = 0b1001;

impl IdentifyNamespace {
    /// Exponent of the formatted block size in bytes.
    pub fn block_shift(&self) -> u8 {
        let format = usize::from(self.flbas & 0xf) | usize::from(self.flbas >> 5 & 3) << 4;
        self.lbaf[format & 63].get().to_le_bytes()[2]
    }
}

/// I/O command set independent Identify Namespace (Base figure 281).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IndependentNamespace {
    /// Common features (0).
    pub nsfeat: u8,
    /// Multi-path and sharing (1).
    pub nmic: u8,
    /// Reservation capabilities (2).
    pub rescap: u8,
    /// Format progress (3).
    pub fpi: u8,
    /// ANA group identifier (7:4).
    pub anagrpid: U32,
    /// Attributes (8).
    pub nsattr: u8,
    /// Reserved (9).
    pub reserved_9: u8,
    /// NVM set (11:10).
    pub nvmsetid: U16,
    /// Endurance group (13:12).
    pub endgid: U16,
    /// Status (14): bit 0 ready.
    pub nstat: u8,
    /// Reserved (4095:15).
    pub reserved_15: [u8; 4081],
}

const _: () = assert!(size_of::<IndependentNamespace>() == IDENTIFY_LEN);

/// NSTAT: the namespace is ready.
pub const NSTAT_READY: u8 = 1 << 0;

/// Identify Controller of the NVM command set (NVM figure 101).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NvmController {
    /// Verify size limit (0).
    pub vsl: u8,
    /// Write Zeroes size limit (1), a power of two of the minimum page size.
    pub wzsl: u8,
    /// Write Uncorrectable size limit (2).
    pub wusl: u8,
    /// Dataset Management ranges limit (3).
    pub dmrl: u8,
    /// Dataset Management range size limit (7:4), blocks.
    pub dmrsl: U32,
    /// Dataset Management size limit (15:8), blocks.
    pub dmsl: U64,
    /// Reserved (4095:16).
    pub reserved: [u8; 4080],
}

const _: () = assert!(size_of::<NvmController>() == IDENTIFY_LEN);

/// Type of a namespace identification descriptor (Base figure 278).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceId {
    /// IEEE EUI-64.
    Eui64([u8; 8]),
    /// NGUID.
    Nguid([u8; 16]),
    /// UUID, big-endian (RFC 4122).
    Uuid([u8; 16]),
    /// Command set identifier; 0 is NVM.
    CommandSet(u8),
}

impl NamespaceId {
    /// Appends the descriptor at `at`; answers the offset behind it, `None` where it does not fit.
    pub fn emit(&self, target: &mut [u8], at: usize) -> Option<usize> {
        let (kind, bytes): (u8, &[u8]) = match self {
            NamespaceId::Eui64(id) => (1, id),
            NamespaceId::Nguid(id) => (2, id),
            NamespaceId::Uuid(id) => (3, id),
            NamespaceId::CommandSet(id) => (4, core::slice::from_ref(id)),
        };
        let end = at + 4 + bytes.len();
        let place = target.get_mut(at..end)?;
        place[0] = kind;
        place[1] = u8::try_from(bytes.len()).ok()?;
        place[2..4].fill(0);
        place[4..].copy_from_slice(bytes);
        Some(end)
    }

    /// Reads the descriptors of a list; unknown types are passed over, a zero length ends the list.
    pub fn list(bytes: &[u8]) -> impl Iterator<Item = NamespaceId> + '_ {
        let mut rest = bytes;
        std::iter::from_fn(move || {
            loop {
                let (&[kind, len, _, _], tail) = rest.split_first_chunk::<4>()?;
                if len == 0 {
                    return None;
                }
                let (id, tail) = tail.split_at_checked(usize::from(len))?;
                rest = tail;
                let known = match kind {
                    1 => id.try_into().ok().map(NamespaceId::Eui64),
                    2 => id.try_into().ok().map(NamespaceId::Nguid),
                    3 => id.try_into().ok().map(NamespaceId::Uuid),
                    4 => id.first().copied().map(NamespaceId::CommandSet),
                    _ => None,
                };
                if known.is_some() {
                    return known;
                }
            }
        })
    }
}

/// Copies `text` into an ASCII field, blank padded and cut to fit (Base 1.4.2).
pub fn blank_padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (place, byte) in field.iter_mut().zip(text.bytes()) {
        *place = if (0x20..0x7f).contains(&byte) { byte } else { b'?' };
    }
    field
}

/// A zeroed structure to be filled in.
pub fn zeroed<T: FromZeros>() -> T {
    T::new_zeroed()
}

/// Reads any of this module's structures from the start of `bytes`.
///
/// # Errors
/// [`WireError::Short`](crate::WireError::Short).
pub fn parse<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<&T, crate::WireError> {
    T::ref_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_| crate::WireError::Short { need: size_of::<T>(), have: bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn descriptors_round_trip() {
        let ids = [NamespaceId::Uuid([7; 16]), NamespaceId::Nguid([9; 16]), NamespaceId::CommandSet(0)];
        let mut page = [0u8; IDENTIFY_LEN];
        let mut at = 0;
        for id in &ids {
            at = id.emit(&mut page, at).unwrap();
        }
        assert_eq!(&page[..4], [3, 16, 0, 0]);
        assert_eq!(at, 20 + 20 + 5);
        assert_eq!(NamespaceId::list(&page).collect::<Vec<_>>(), ids);
        assert_eq!(ids[0].emit(&mut page, IDENTIFY_LEN - 19), None);
    }

    #[test]
    fn padding() {
        assert_eq!(&blank_padded::<6>("ab"), b"ab    ");
        assert_eq!(&blank_padded::<2>("abc"), b"ab");
        assert_eq!(&blank_padded::<3>("a\u{e4}"), b"a??");
    }

    proptest! {
        #[test]
        fn descriptor_lists_of_any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(NamespaceId::list(&bytes).count() <= bytes.len());
        }
    }
}
