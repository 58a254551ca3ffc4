//! Fabrics commands (oF 3) and the discovery log page (oF 5.3).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::opcode::{Admin, Direction, Fabrics};
use crate::{Sqe, WireError};

/// NQN of every discovery subsystem (oF 1.5.6).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Longest NQN in bytes (Base 4.5).
pub const NQN_LEN_MAX: usize = 223;
/// Controller identifier by which a host asks for any controller (dynamic model, oF 3.3).
pub const CONTROLLER_ANY: u16 = 0xffff;

/// Connect attribute: the host disables submission queue flow control (oF 3.3, bit 2 of CATTR).
pub const ATTRIBUTE_NO_SQ_FLOW: u8 = 1 << 2;

/// The fields of Connect (oF figure 18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect {
    /// Record format; only 0 exists.
    pub format: u16,
    /// Queue identifier; 0 is the admin queue.
    pub queue_id: u16,
    /// Queue size in entries (0's based on the wire, so 1 to 65,536).
    pub queue_size: u32,
    /// Attributes.
    pub attributes: u8,
    /// Keep alive timeout in milliseconds; 0 disables it.
    pub keep_alive_ms: u32,
}

/// A fabrics command (oF 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Connect a queue; its data is [`ConnectData`].
    Connect(Connect),
    /// Read a property.
    PropertyGet {
        /// Eight bytes instead of four.
        wide: bool,
        /// Offset.
        offset: u32,
    },
    /// Write a property.
    PropertySet {
        /// Eight bytes instead of four.
        wide: bool,
        /// Offset.
        offset: u32,
        /// Value.
        value: u64,
    },
    /// Disconnect an I/O queue.
    Disconnect {
        /// Record format; only 0 exists.
        format: u16,
    },
    /// A type that this crate does not take apart (authentication, vendor specific).
    Other(u8),
}

/// The fabrics command type: the first byte of dword 1 (oF 3).
pub const fn command_type(sqe: &Sqe) -> u8 {
    sqe.nsid.get().to_le_bytes()[0]
}

/// Which way the data of any command moves, fabrics commands included.
pub const fn direction(sqe: &Sqe) -> Direction {
    if sqe.opcode == Admin::Fabrics as u8 {
        Direction::of(command_type(sqe))
    } else {
        Direction::of(sqe.opcode)
    }
}

impl Command {
    /// Reads a command whose opcode is 7Fh.
    pub fn parse(sqe: &Sqe) -> Self {
        let kind = command_type(sqe);
        let dword10 = sqe.cdw10.get();
        let low10 = dword10.to_le_bytes();
        match Fabrics::from_code(kind) {
            Some(Fabrics::Connect) => {
                let word11 = sqe.cdw11.get().to_le_bytes();
                Command::Connect(Connect {
                    format: u16::from_le_bytes([low10[0], low10[1]]),
                    queue_id: u16::from_le_bytes([low10[2], low10[3]]),
                    queue_size: u32::from(u16::from_le_bytes([word11[0], word11[1]])) + 1,
                    attributes: word11[2],
                    keep_alive_ms: sqe.cdw12.get(),
                })
            }
            Some(Fabrics::PropertyGet) => {
                Command::PropertyGet { wide: low10[0] & 7 == 1, offset: sqe.cdw11.get() }
            }
            Some(Fabrics::PropertySet) => Command::PropertySet {
                wide: low10[0] & 7 == 1,
                offset: sqe.cdw11.get(),
                value: u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32,
            },
            Some(Fabrics::Disconnect) => {
                Command::Disconnect { format: u16::from_le_bytes([low10[0], low10[1]]) }
            }
            Some(Fabrics::AuthenticationSend | Fabrics::AuthenticationReceive) | None => Command::Other(kind),
        }
    }

    /// The command as a submission entry.
    ///
    /// # Panics
    /// If a Connect's queue size is not within 1 to 65,536.
    pub fn emit(&self, command_id: u16) -> Sqe {
        let mut sqe = Sqe::new(Admin::Fabrics.code(), command_id);
        let kind = match *self {
            Command::Connect(connect) => {
                assert!((1..=65_536).contains(&connect.queue_size), "queue size fits");
                let queue = connect.queue_id.to_le_bytes();
                let format = connect.format.to_le_bytes();
                let size = (connect.queue_size - 1).to_le_bytes();
                sqe.cdw10 = U32::from_bytes([format[0], format[1], queue[0], queue[1]]);
                sqe.cdw11 = U32::from_bytes([size[0], size[1], connect.attributes, 0]);
                sqe.cdw12 = U32::new(connect.keep_alive_ms);
                Fabrics::Connect.code()
            }
            Command::PropertyGet { wide, offset } => {
                sqe.cdw10 = U32::new(u32::from(wide));
                sqe.cdw11 = U32::new(offset);
                Fabrics::PropertyGet.code()
            }
            Command::PropertySet { wide, offset, value } => {
                let bytes = value.to_le_bytes();
                sqe.cdw10 = U32::new(u32::from(wide));
                sqe.cdw11 = U32::new(offset);
                sqe.cdw12 = U32::from_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                sqe.cdw13 = U32::from_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                Fabrics::PropertySet.code()
            }
            Command::Disconnect { format } => {
                sqe.cdw10 = U32::new(u32::from(format));
                Fabrics::Disconnect.code()
            }
            Command::Other(kind) => kind,
        };
        sqe.nsid = U32::new(u32::from(kind));
        sqe
    }
}

/// Data of Connect (oF figure 19).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier (15:0).
    pub host_id: [u8; 16],
    /// Controller identifier (17:16).
    pub controller_id: U16,
    /// Reserved (255:18).
    pub reserved_18: [u8; 238],
    /// Subsystem NQN (511:256).
    pub subsystem_nqn: [u8; 256],
    /// Host NQN (767:512).
    pub host_nqn: [u8; 256],
    /// Reserved (1023:768). Bytes 775:768 carry the epoch of an association between Basalt nodes; zero from others.
    pub reserved_768: [u8; 256],
}

const _: () = assert!(size_of::<ConnectData>() == 1024);

impl ConnectData {
    /// Data of a Connect.
    ///
    /// # Errors
    /// [`WireError::Field`] for an NQN that is too long, empty or holds a zero byte.
    pub fn new(
        host_id: [u8; 16],
        controller_id: u16,
        subsystem_nqn: &str,
        host_nqn: &str,
    ) -> Result<Self, WireError> {
        let mut data = Self::new_zeroed();
        data.host_id = host_id;
        data.controller_id = U16::new(controller_id);
        data.subsystem_nqn = nqn_field(subsystem_nqn).ok_or(WireError::Field("SUBNQN"))?;
        data.host_nqn = nqn_field(host_nqn).ok_or(WireError::Field("HOSTNQN"))?;
        Ok(data)
    }
}

/// `nqn` as a zero-terminated field; `None` where it is empty, too long or holds a zero byte.
pub fn nqn_field(nqn: &str) -> Option<[u8; 256]> {
    if nqn.is_empty() || nqn.len() > NQN_LEN_MAX || nqn.bytes().any(|byte| byte == 0) {
        return None;
    }
    let mut field = [0; 256];
    field[..nqn.len()].copy_from_slice(nqn.as_bytes());
    Some(field)
}

/// The NQN in a field; `None` where it is empty, not terminated within 224 bytes, or not UTF-8.
pub fn parse_nqn(field: &[u8; 256]) -> Option<&str> {
    let len = field.iter().take(NQN_LEN_MAX + 1).position(|byte| *byte == 0)?;
    if len == 0 {
        return None;
    }
    core::str::from_utf8(&field[..len]).ok()
}

/// Header of the discovery log page (oF figure 33).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// Generation counter (7:0).
    pub generation: U64,
    /// Records (15:8).
    pub records: U64,
    /// Record format (17:16); 0.
    pub format: U16,
    /// Reserved (1023:18).
    pub reserved: [u8; 1006],
}

/// One entry of the discovery log page (oF figure 34).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// Transport type (0): 3 is TCP.
    pub transport: u8,
    /// Address family (1): 1 IPv4, 2 IPv6.
    pub family: u8,
    /// Subsystem type (2): 2 NVM, 3 this discovery subsystem.
    pub subsystem_type: u8,
    /// Transport requirements (3): bits 1:0 secure channel (2 not required), bit 2 flow control may be disabled.
    pub requirements: u8,
    /// Port identifier (5:4).
    pub port_id: U16,
    /// Controller identifier (7:6); FFFFh for the dynamic model.
    pub controller_id: U16,
    /// Admin queue size maximum (9:8).
    pub admin_queue_size: U16,
    /// Entry flags (11:10).
    pub flags: U16,
    /// Reserved (31:12).
    pub reserved_12: [u8; 20],
    /// Transport service identifier (63:32), ASCII, blank padded: the port.
    pub service: [u8; 32],
    /// Reserved (255:64).
    pub reserved_64: [u8; 192],
    /// Subsystem NQN (511:256).
    pub subsystem_nqn: [u8; 256],
    /// Transport address (767:512), ASCII, blank padded.
    pub address: [u8; 256],
    /// Transport specific address subtype (1023:768): byte 0 is the security type for TCP (TCP 3.4).
    pub specific: [u8; 256],
}

const _: () = assert!(size_of::<DiscoveryHeader>() == 1024 && size_of::<DiscoveryEntry>() == 1024);

/// Transport type TCP.
pub const TRANSPORT_TCP: u8 = 3;
/// Address family IPv4.
pub const FAMILY_IPV4: u8 = 1;
/// Address family IPv6.
pub const FAMILY_IPV6: u8 = 2;
/// Subsystem type: an NVM subsystem.
pub const SUBSYSTEM_NVM: u8 = 2;
/// Subsystem type: the current discovery subsystem.
pub const SUBSYSTEM_DISCOVERY: u8 = 3;
/// Requirements: secure channel not required, submission queue flow control may be disabled.
pub const REQUIREMENTS_OPEN: u8 = 0b110;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_connect() {
        let connect =
            Connect { format: 0, queue_id: 3, queue_size: 128, attributes: 4, keep_alive_ms: 15_000 };
        let sqe = Command::Connect(connect).emit(9);
        let bytes = sqe.as_bytes();
        assert_eq!(bytes[..5], [0x7f, 0x40, 9, 0, 1]);
        assert_eq!(bytes[40..52], [0, 0, 3, 0, 127, 0, 4, 0, 0x98, 0x3a, 0, 0]);
        assert_eq!(Command::parse(&sqe), Command::Connect(connect));
    }

    #[test]
    fn nqns() {
        let field = nqn_field("nqn.2026-01.io.basalt:a").unwrap();
        assert_eq!(parse_nqn(&field), Some("nqn.2026-01.io.basalt:a"));
        assert_eq!(nqn_field(""), None);
        assert_eq!(nqn_field(&"a".repeat(224)), None);
        assert_eq!(parse_nqn(&[b'a'; 256]), None);
        assert_eq!(parse_nqn(&[0; 256]), None);
        let mut invalid = [0; 256];
        invalid[0] = 0xff;
        assert_eq!(parse_nqn(&invalid), None);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_and_emit_the_same_command(bytes: [u8; 32], kind: u8) {
            let mut sqe = Sqe::new(Admin::Fabrics.code(), 1);
            sqe.nsid = U32::new(u32::from(kind));
            sqe.cdw10 = U32::from_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            sqe.cdw11 = U32::from_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            sqe.cdw12 = U32::from_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            sqe.cdw13 = U32::from_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
            let command = Command::parse(&sqe);
            prop_assert_eq!(Command::parse(&command.emit(1)), command);
        }
    }
}
