//! Completion status (Base 3.3.3.2.1).

use std::fmt;

/// The status field of a completion: status code type, status code, command retry delay, more, do not retry.
///
/// Held as the 15 bits 31:17 of completion dword 3, without the phase tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(u16);

const SC_BITS: u16 = 0x00ff;
const SCT_SHIFT: u16 = 8;
const SCT_BITS: u16 = 0x0700;
const CRD_SHIFT: u16 = 11;
const CRD_BITS: u16 = 0x1800;
const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;

const GENERIC: u8 = 0;
const SPECIFIC: u8 = 1;
const MEDIA: u8 = 2;
const PATH: u8 = 3;

macro_rules! statuses {
    ($(#[doc = $doc:literal] $name:ident = $sct:ident, $sc:literal;)*) => {
        impl Status {
            $(#[doc = $doc] pub const $name: Status = Status::new($sct, $sc);)*

            /// What the specification calls it, in words, where this crate knows it.
            pub fn words(self) -> Option<&'static str> {
                match (self.code_type(), self.code()) {
                    // The documentation of each is these words, and its number in brackets.
                    $(($sct, $sc) => $doc.split(" (").next().map(str::trim),)*
                    _ => None,
                }
            }

            /// The name of the constant, where this crate knows the code.
            pub const fn name(self) -> Option<&'static str> {
                match (self.code_type(), self.code()) {
                    $(($sct, $sc) => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// Successful completion (00h).
    SUCCESS = GENERIC, 0x00;
    /// Invalid Command Opcode (01h).
    INVALID_OPCODE = GENERIC, 0x01;
    /// Invalid Field in Command (02h).
    INVALID_FIELD = GENERIC, 0x02;
    /// Command ID Conflict (03h).
    COMMAND_ID_CONFLICT = GENERIC, 0x03;
    /// Data Transfer Error (04h).
    DATA_TRANSFER_ERROR = GENERIC, 0x04;
    /// Internal Error (06h).
    INTERNAL_ERROR = GENERIC, 0x06;
    /// Command Abort Requested (07h).
    ABORT_REQUESTED = GENERIC, 0x07;
    /// Command Aborted due to SQ Deletion (08h).
    ABORTED_SQ_DELETION = GENERIC, 0x08;
    /// Command Aborted due to Failed Fused Command (09h).
    ABORTED_FAILED_FUSED = GENERIC, 0x09;
    /// Command Aborted due to Missing Fused Command (0Ah).
    ABORTED_MISSING_FUSED = GENERIC, 0x0a;
    /// Invalid Namespace or Format (0Bh).
    INVALID_NAMESPACE = GENERIC, 0x0b;
    /// Command Sequence Error (0Ch).
    COMMAND_SEQUENCE_ERROR = GENERIC, 0x0c;
    /// Invalid SGL Segment Descriptor (0Dh).
    INVALID_SGL_SEGMENT = GENERIC, 0x0d;
    /// Invalid Number of SGL Descriptors (0Eh).
    INVALID_SGL_COUNT = GENERIC, 0x0e;
    /// Data SGL Length Invalid (0Fh).
    SGL_LENGTH_INVALID = GENERIC, 0x0f;
    /// SGL Descriptor Type Invalid (11h).
    SGL_TYPE_INVALID = GENERIC, 0x11;
    /// Atomic Write Unit Exceeded (14h).
    ATOMIC_WRITE_UNIT_EXCEEDED = GENERIC, 0x14;
    /// SGL Offset Invalid (16h).
    SGL_OFFSET_INVALID = GENERIC, 0x16;
    /// Host Identifier Inconsistent Format (18h).
    HOST_ID_INCONSISTENT = GENERIC, 0x18;
    /// Keep Alive Timer Expired (19h).
    KEEP_ALIVE_EXPIRED = GENERIC, 0x19;
    /// Keep Alive Timeout Invalid (1Ah).
    KEEP_ALIVE_INVALID = GENERIC, 0x1a;
    /// Command Aborted due to Preempt and Abort (1Bh).
    ABORTED_PREEMPT = GENERIC, 0x1b;
    /// Transient Transport Error (22h).
    TRANSIENT_TRANSPORT = GENERIC, 0x22;
    /// Namespace is Write Protected (20h).
    NAMESPACE_WRITE_PROTECTED = GENERIC, 0x20;
    /// Command Interrupted (21h).
    COMMAND_INTERRUPTED = GENERIC, 0x21;
    /// LBA Out of Range (80h; NVM 1.0 section 3.2).
    LBA_OUT_OF_RANGE = GENERIC, 0x80;
    /// Capacity Exceeded (81h).
    CAPACITY_EXCEEDED = GENERIC, 0x81;
    /// Namespace Not Ready (82h).
    NAMESPACE_NOT_READY = GENERIC, 0x82;
    /// Reservation Conflict (83h).
    RESERVATION_CONFLICT = GENERIC, 0x83;

    /// Invalid Queue Identifier (Base figure 97, 01h).
    INVALID_QUEUE_ID = SPECIFIC, 0x01;
    /// Abort Command Limit Exceeded (03h).
    ABORT_LIMIT_EXCEEDED = SPECIFIC, 0x03;
    /// Asynchronous Event Request Limit Exceeded (05h).
    AER_LIMIT_EXCEEDED = SPECIFIC, 0x05;
    /// Invalid Log Page (09h).
    INVALID_LOG_PAGE = SPECIFIC, 0x09;
    /// Feature Identifier Not Saveable (0Dh).
    FEATURE_NOT_SAVEABLE = SPECIFIC, 0x0d;
    /// Feature Not Changeable (0Eh).
    FEATURE_NOT_CHANGEABLE = SPECIFIC, 0x0e;
    /// Feature Not Namespace Specific (0Fh).
    FEATURE_NOT_NAMESPACE_SPECIFIC = SPECIFIC, 0x0f;
    /// Invalid Controller Identifier (1Fh).
    INVALID_CONTROLLER_ID = SPECIFIC, 0x1f;
    /// Connect Incompatible Format (oF 1.1 figure 20, 80h).
    CONNECT_INCOMPATIBLE_FORMAT = SPECIFIC, 0x80;
    /// Connect Controller Busy (81h).
    CONNECT_CONTROLLER_BUSY = SPECIFIC, 0x81;
    /// Connect Invalid Parameters (82h).
    CONNECT_INVALID_PARAMETERS = SPECIFIC, 0x82;
    /// Connect Restart Discovery (83h).
    CONNECT_RESTART_DISCOVERY = SPECIFIC, 0x83;
    /// Connect Invalid Host (84h).
    CONNECT_INVALID_HOST = SPECIFIC, 0x84;
    /// Invalid Queue Type (85h).
    INVALID_QUEUE_TYPE = SPECIFIC, 0x85;
    /// Discover Restart (90h).
    DISCOVER_RESTART = SPECIFIC, 0x90;
    /// Authentication Required (91h).
    AUTHENTICATION_REQUIRED = SPECIFIC, 0x91;

    /// Write Fault (80h).
    WRITE_FAULT = MEDIA, 0x80;
    /// Unrecovered Read Error (81h).
    UNRECOVERED_READ = MEDIA, 0x81;
    /// Compare Failure (85h).
    COMPARE_FAILURE = MEDIA, 0x85;
    /// Access Denied (86h).
    ACCESS_DENIED = MEDIA, 0x86;

    /// Internal Path Error (00h).
    INTERNAL_PATH_ERROR = PATH, 0x00;
    /// Asymmetric Access Persistent Loss (01h).
    ANA_PERSISTENT_LOSS = PATH, 0x01;
    /// Asymmetric Access Inaccessible (02h).
    ANA_INACCESSIBLE = PATH, 0x02;
    /// Asymmetric Access Transition (03h).
    ANA_TRANSITION = PATH, 0x03;
    /// Host Aborted Command (71h).
    HOST_ABORTED = PATH, 0x71;
}

impl Status {
    /// A status from its code type (three bits) and code.
    pub const fn new(code_type: u8, code: u8) -> Self {
        Self(((code_type as u16) << SCT_SHIFT) & SCT_BITS | code as u16)
    }

    /// Reads bits 31:16 of completion dword 3; the phase tag is dropped.
    pub const fn from_field(field: u16) -> Self {
        Self(field >> 1)
    }

    /// Bits 31:16 of completion dword 3 with the phase tag clear (fabrics have none, oF 2.2).
    pub const fn to_field(self) -> u16 {
        self.0 << 1
    }

    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.0 & (SC_BITS | SCT_BITS) == 0
    }

    /// Status code (bits 7:0).
    pub const fn code(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Status code type (bits 10:8).
    pub const fn code_type(self) -> u8 {
        ((self.0 & SCT_BITS) >> SCT_SHIFT).to_le_bytes()[0]
    }

    /// Command retry delay index (bits 12:11).
    pub const fn retry_delay(self) -> u8 {
        ((self.0 & CRD_BITS) >> CRD_SHIFT).to_le_bytes()[0]
    }

    /// Whether the error log has more about this command (bit 13).
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Whether the same command would fail again (bit 14).
    pub const fn do_not_retry(self) -> bool {
        self.0 & DNR != 0
    }

    /// The same status with Do Not Retry set.
    #[must_use]
    pub const fn dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// The same status with More set.
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// The same status without its Do Not Retry, More and retry-delay bits: what a caller compares.
    #[must_use]
    pub const fn bare(self) -> Self {
        Self(self.0 & (SC_BITS | SCT_BITS))
    }
}

/// The constant's name: what developers compare.
impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{:x}h/{:02x}h", self.code_type(), self.code())?,
        }
        if self.do_not_retry() { f.write_str("+DNR") } else { Ok(()) }
    }
}

/// In words: what users read.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            Some(words) => f.write_str(words)?,
            None => write!(f, "status {:02x}h of type {:x}h", self.code(), self.code_type())?,
        }
        if self.do_not_retry() { f.write_str(" (do not retry)") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_the_field_survives_a_round_trip() {
        for field in 0..=u16::MAX {
            let status = Status::from_field(field);
            assert_eq!(status.to_field(), field & !1);
            let rebuilt = Status::new(status.code_type(), status.code());
            assert_eq!(rebuilt, status.bare());
        }
    }

    #[test]
    fn golden_fields() {
        assert_eq!(Status::INVALID_FIELD.to_field(), 0x0004);
        assert_eq!(Status::INVALID_FIELD.dnr().to_field(), 0x8004);
        assert_eq!(Status::CONNECT_INVALID_HOST.to_field(), (1 << 9) | (0x84 << 1));
        assert_eq!(Status::ANA_INACCESSIBLE.to_field(), (3 << 9) | (2 << 1));
        assert_eq!(Status::COMPARE_FAILURE.with_more().to_field(), (1 << 14) | (2 << 9) | (0x85 << 1));
    }

    #[test]
    fn users_read_words_and_developers_names() {
        let range = Status::LBA_OUT_OF_RANGE.dnr();
        assert_eq!(
            (range.to_string(), format!("{range:?}")),
            ("LBA Out of Range (do not retry)".to_owned(), "LBA_OUT_OF_RANGE+DNR".to_owned())
        );
        assert_eq!(Status::COMMAND_ID_CONFLICT.to_string(), "Command ID Conflict");
        let unknown = Status::new(7, 0xfe);
        assert_eq!(
            (unknown.to_string(), format!("{unknown:?}")),
            ("status feh of type 7h".to_owned(), "7h/feh".to_owned())
        );
        let known = (0..8).flat_map(|kind| (0..=u8::MAX).map(move |code| Status::new(kind, code)));
        for status in known.filter(|status| status.name().is_some()) {
            let words = status.to_string();
            assert!(words.len() > 4 && !words.contains(['_', '(', '.']), "{words}");
        }
    }
}
