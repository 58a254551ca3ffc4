//! Reservations: the fields of their commands, the report, and the notification log page (Base 7.2 to 7.5, 5.16.1.24).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::opcode::codes;
use crate::{Sqe, WireError};

codes! {
    /// Reservation types (Base 7.2).
    ReservationType {
        /// Only the holder writes.
        WriteExclusive = 1,
        /// Only the holder reads and writes.
        ExclusiveAccess = 2,
        /// Only registrants write; one of them holds.
        WriteExclusiveRegistrants = 3,
        /// Only registrants read and write; one of them holds.
        ExclusiveAccessRegistrants = 4,
        /// Only registrants write; all of them hold.
        WriteExclusiveAll = 5,
        /// Only registrants read and write; all of them hold.
        ExclusiveAccessAll = 6,
    }
}

codes! {
    /// What a reservation notification tells (Base 5.16.1.24).
    Notice {
        /// The host's registration was removed by another host.
        RegistrationPreempted = 1,
        /// A reservation that kept the host out, or that it shared, is released.
        ReservationReleased = 2,
        /// The host's registration and the reservation were cleared by another host.
        ReservationPreempted = 3,
    }
}

impl Notice {
    /// Its bit in the Reservation Notification Mask (Base 5.27.1.26).
    pub const fn mask(self) -> u32 {
        1 << self as u32
    }
}

/// All bits of the Reservation Notification Mask.
pub const NOTICE_MASK_ALL: u32 = Notice::RegistrationPreempted.mask()
    | Notice::ReservationReleased.mask()
    | Notice::ReservationPreempted.mask();

/// RESCAP: reservations may be kept through a loss of power.
pub const RESCAP_PERSISTENT: u8 = 1 << 0;
/// RESCAP: all six types (bits 6:1), and IEKEY as of version 1.3 (bit 7).
pub const RESCAP_ALL_TYPES: u8 = 0xfe;

/// A host's key: never zero where one is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReservationKey(pub u64);

/// CPTPL: what becomes of the Persist Through Power Loss state (Base 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersistenceChange {
    /// Nothing.
    Keep,
    /// Reservations end with a loss of power.
    Off,
    /// Reservations are kept.
    On,
}

/// RREGA (Base 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterAction {
    /// Register the new key.
    Register,
    /// Remove the registration.
    Unregister,
    /// Put the new key into the place of the current one.
    Replace,
}

/// Reservation Register (Base 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// What to do.
    pub action: RegisterAction,
    /// IEKEY: the current key is not compared.
    pub ignore_key: bool,
    /// CPTPL.
    pub persistence: PersistenceChange,
    /// CRKEY.
    pub current: ReservationKey,
    /// NRKEY.
    pub new: ReservationKey,
}

/// RACQA (Base 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcquireAction {
    /// Take a reservation that nobody holds.
    Acquire,
    /// Remove registrations, and take the reservation if a holder is among them.
    Preempt,
    /// The same; commands of the hosts whose registrations go are aborted.
    PreemptAndAbort,
}

/// Reservation Acquire (Base 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acquire {
    /// What to do.
    pub action: AcquireAction,
    /// IEKEY; a controller refuses it.
    pub ignore_key: bool,
    /// RTYPE.
    pub kind: ReservationType,
    /// CRKEY.
    pub current: ReservationKey,
    /// PRKEY.
    pub preempted: ReservationKey,
}

/// RRELA (Base 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseAction {
    /// Give the reservation up; its type must be the one that is named.
    Release,
    /// Remove all registrations and the reservation.
    Clear,
}

/// Reservation Release (Base 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// What to do.
    pub action: ReleaseAction,
    /// IEKEY; a controller refuses it.
    pub ignore_key: bool,
    /// RTYPE as it came: a number that is no type is not that of a reservation.
    pub kind: u8,
    /// CRKEY.
    pub current: ReservationKey,
}

/// Bytes of the data of Register and Acquire.
pub const TWO_KEYS_LEN: usize = 16;
/// Bytes of the data of Release.
pub const ONE_KEY_LEN: usize = 8;

const IGNORE_KEY: u32 = 1 << 3;
const KIND_SHIFT: u32 = 8;
const PERSISTENCE_SHIFT: u32 = 30;

fn key(data: &[u8], at: usize) -> Result<ReservationKey, WireError> {
    let short = WireError::Short { need: at + 8, have: data.len() };
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or(short)?;
    Ok(ReservationKey(u64::from_le_bytes(*bytes)))
}

fn keys(first: ReservationKey, second: ReservationKey) -> [u8; TWO_KEYS_LEN] {
    let mut data = [0; TWO_KEYS_LEN];
    data[..8].copy_from_slice(&first.0.to_le_bytes());
    data[8..].copy_from_slice(&second.0.to_le_bytes());
    data
}

fn kind_of(dword: u32) -> u8 {
    dword.to_le_bytes()[1]
}

impl Register {
    /// Reads the fields of `sqe` and its data.
    ///
    /// # Errors
    /// [`WireError`] for reserved values and too little data.
    pub fn parse(sqe: &Sqe, data: &[u8]) -> Result<Self, WireError> {
        let dword = sqe.cdw10.get();
        Ok(Self {
            action: match dword & 7 {
                0 => RegisterAction::Register,
                1 => RegisterAction::Unregister,
                2 => RegisterAction::Replace,
                _ => return Err(WireError::Field("RREGA")),
            },
            ignore_key: dword & IGNORE_KEY != 0,
            persistence: match dword >> PERSISTENCE_SHIFT {
                0 => PersistenceChange::Keep,
                2 => PersistenceChange::Off,
                3 => PersistenceChange::On,
                _ => return Err(WireError::Field("CPTPL")),
            },
            current: key(data, 0)?,
            new: key(data, 8)?,
        })
    }

    /// Writes the fields into `sqe`; answers the data.
    pub fn emit(&self, sqe: &mut Sqe) -> [u8; TWO_KEYS_LEN] {
        let action = match self.action {
            RegisterAction::Register => 0,
            RegisterAction::Unregister => 1,
            RegisterAction::Replace => 2,
        };
        let persistence = match self.persistence {
            PersistenceChange::Keep => 0,
            PersistenceChange::Off => 2,
            PersistenceChange::On => 3,
        };
        let ignore = if self.ignore_key { IGNORE_KEY } else { 0 };
        sqe.cdw10 = U32::new(action | ignore | persistence << PERSISTENCE_SHIFT);
        keys(self.current, self.new)
    }
}

impl Acquire {
    /// Reads the fields of `sqe` and its data.
    ///
    /// # Errors
    /// [`WireError`] for reserved values and too little data.
    pub fn parse(sqe: &Sqe, data: &[u8]) -> Result<Self, WireError> {
        let dword = sqe.cdw10.get();
        Ok(Self {
            action: match dword & 7 {
                0 => AcquireAction::Acquire,
                1 => AcquireAction::Preempt,
                2 => AcquireAction::PreemptAndAbort,
                _ => return Err(WireError::Field("RACQA")),
            },
            ignore_key: dword & IGNORE_KEY != 0,
            kind: ReservationType::from_code(kind_of(dword)).ok_or(WireError::Field("RTYPE"))?,
            current: key(data, 0)?,
            preempted: key(data, 8)?,
        })
    }

    /// Writes the fields into `sqe`; answers the data.
    pub fn emit(&self, sqe: &mut Sqe) -> [u8; TWO_KEYS_LEN] {
        let action = match self.action {
            AcquireAction::Acquire => 0,
            AcquireAction::Preempt => 1,
            AcquireAction::PreemptAndAbort => 2,
        };
        let ignore = if self.ignore_key { IGNORE_KEY } else { 0 };
        sqe.cdw10 = U32::new(action | ignore | u32::from(self.kind.code()) << KIND_SHIFT);
        keys(self.current, self.preempted)
    }
}

impl Release {
    /// Reads the fields of `sqe` and its data.
    ///
    /// # Errors
    /// [`WireError`] for reserved values and too little data.
    pub fn parse(sqe: &Sqe, data: &[u8]) -> Result<Self, WireError> {
        let dword = sqe.cdw10.get();
        Ok(Self {
            action: match dword & 7 {
                0 => ReleaseAction::Release,
                1 => ReleaseAction::Clear,
                _ => return Err(WireError::Field("RRELA")),
            },
            ignore_key: dword & IGNORE_KEY != 0,
            kind: kind_of(dword),
            current: key(data, 0)?,
        })
    }

    /// Writes the fields into `sqe`; answers the data.
    pub fn emit(&self, sqe: &mut Sqe) -> [u8; ONE_KEY_LEN] {
        let action = match self.action {
            ReleaseAction::Release => 0,
            ReleaseAction::Clear => 1,
        };
        let ignore = if self.ignore_key { IGNORE_KEY } else { 0 };
        sqe.cdw10 = U32::new(action | ignore | u32::from(self.kind) << KIND_SHIFT);
        self.current.0.to_le_bytes()
    }
}

/// Reservation Report (Base 7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Bytes wanted (NUMD, 0's based dwords on the wire).
    pub length: u64,
    /// EDS: the extended structures, with host identifiers of 128 bits.
    pub extended: bool,
}

impl Report {
    /// Reads the fields of `sqe`.
    pub const fn parse(sqe: &Sqe) -> Self {
        Self { length: (sqe.cdw10.get() as u64 + 1) * 4, extended: sqe.cdw11.get() & 1 != 0 }
    }

    /// Writes the fields into `sqe`.
    ///
    /// # Panics
    /// If `length` is not a positive multiple of four that fits 32 bits of dwords.
    pub fn emit(&self, sqe: &mut Sqe) {
        assert!(self.length > 0 && self.length.is_multiple_of(4), "reports are read in dwords");
        let dwords = (self.length / 4 - 1).to_le_bytes();
        assert_eq!(dwords[4..], [0; 4], "length fits");
        sqe.cdw10 = U32::from_bytes([dwords[0], dwords[1], dwords[2], dwords[3]]);
        sqe.cdw11 = U32::new(u32::from(self.extended));
    }
}

/// Reservation Status, extended, without its registrants (Base 7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ReportHeader {
    /// Generation (3:0).
    pub generation: U32,
    /// Type of the reservation (4); zero is none.
    pub kind: u8,
    /// Registrants (6:5).
    pub registrants: U16,
    /// Reserved (8:7).
    pub reserved_7: [u8; 2],
    /// Persist Through Power Loss state (9).
    pub persistent: u8,
    /// Reserved (63:10).
    pub reserved_10: [u8; 54],
}

/// A registrant of the extended report (Base 7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ReportRegistrant {
    /// Controller (1:0); [`CONTROLLER_ANY`](crate::fabrics::CONTROLLER_ANY) where controllers are dynamic.
    pub controller: U16,
    /// Status (2): bit 0 says that it holds the reservation.
    pub status: u8,
    /// Reserved (7:3).
    pub reserved_3: [u8; 5],
    /// Its key (15:8).
    pub key: U64,
    /// Host identifier (31:16).
    pub host_id: [u8; 16],
    /// Reserved (63:32).
    pub reserved_32: [u8; 32],
}

const _: () = assert!(size_of::<ReportHeader>() == 64 && size_of::<ReportRegistrant>() == 64);

/// Registrant status: it holds the reservation.
pub const REGISTRANT_HOLDS: u8 = 1 << 0;

/// What an extended report says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedReport<'a> {
    /// Its header.
    pub header: ReportHeader,
    /// Its registrants; as many as there was room for.
    pub registrants: &'a [ReportRegistrant],
}

impl<'a> ParsedReport<'a> {
    /// Reads a report from the start of `bytes`.
    ///
    /// # Errors
    /// [`WireError::Short`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let short = WireError::Short { need: size_of::<ReportHeader>(), have: bytes.len() };
        let (header, rest) = ReportHeader::read_from_prefix(bytes).map_err(|_| short)?;
        let room = rest.len() / size_of::<ReportRegistrant>();
        let count = usize::from(header.registrants.get()).min(room);
        let registrants = <[ReportRegistrant]>::ref_from_prefix_with_elems(rest, count);
        Ok(Self { header, registrants: registrants.map_or(&[], |(registrants, _)| registrants) })
    }
}

/// Reservation Notification log page (Base 5.16.1.24).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NotificationPage {
    /// Counts pages, from one on and over the end to one again (7:0); zero is the empty page.
    pub count: U64,
    /// [`Notice`] (8); zero is the empty page.
    pub kind: u8,
    /// Pages that are still to be read after this one (9), at most 255.
    pub available: u8,
    /// Reserved (11:10).
    pub reserved_10: [u8; 2],
    /// Namespace (15:12).
    pub nsid: U32,
    /// Reserved (63:16).
    pub reserved_16: [u8; 48],
}

const _: () = assert!(size_of::<NotificationPage>() == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_register() {
        let register = Register {
            action: RegisterAction::Replace,
            ignore_key: true,
            persistence: PersistenceChange::On,
            current: ReservationKey(1),
            new: ReservationKey(0x0102),
        };
        let mut sqe = Sqe::default();
        assert_eq!(register.emit(&mut sqe), [1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sqe.cdw10.get(), 0xc000_000a);
    }

    #[test]
    fn golden_acquire_release_and_report() {
        let mut sqe = Sqe::default();
        let acquire = Acquire {
            action: AcquireAction::PreemptAndAbort,
            ignore_key: false,
            kind: ReservationType::ExclusiveAccessAll,
            current: ReservationKey(3),
            preempted: ReservationKey(4),
        };
        assert_eq!(acquire.emit(&mut sqe)[8], 4);
        assert_eq!(sqe.cdw10.get(), 0x0602);
        let release =
            Release { action: ReleaseAction::Clear, ignore_key: true, kind: 0, current: ReservationKey(5) };
        assert_eq!(release.emit(&mut sqe), [5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sqe.cdw10.get(), 9);
        Report { length: 4096, extended: true }.emit(&mut sqe);
        assert_eq!((sqe.cdw10.get(), sqe.cdw11.get()), (1023, 1));
        assert_eq!(NOTICE_MASK_ALL, 0b1110);
    }

    #[test]
    fn reports_show_what_there_was_room_for() {
        let mut bytes = vec![0; 64 + 64 + 63];
        (bytes[0], bytes[4], bytes[5], bytes[64], bytes[80]) = (9, 3, 2, 0xff, 7);
        let report = ParsedReport::parse(&bytes).unwrap();
        assert_eq!((report.header.generation.get(), report.header.kind), (9, 3));
        assert_eq!((report.header.registrants.get(), report.registrants.len()), (2, 1));
        assert_eq!(report.registrants[0].host_id[0], 7);
        assert!(ParsedReport::parse(&bytes[..63]).is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_round_trips(dword: u32, data: [u8; 16], length in 0usize..=16) {
            let sqe = Sqe { cdw10: U32::new(dword), ..Sqe::default() };
            let mut again = Sqe::default();
            if let Ok(register) = Register::parse(&sqe, &data[..length]) {
                let emitted = register.emit(&mut again);
                prop_assert_eq!(emitted, data);
                prop_assert_eq!(Register::parse(&again, &emitted), Ok(register));
            }
            if let Ok(acquire) = Acquire::parse(&sqe, &data[..length]) {
                let emitted = acquire.emit(&mut again);
                prop_assert_eq!(emitted, data);
                prop_assert_eq!(Acquire::parse(&again, &emitted), Ok(acquire));
            }
            if let Ok(release) = Release::parse(&sqe, &data[..length]) {
                let emitted = release.emit(&mut again);
                prop_assert_eq!(&emitted[..], &data[..8]);
                prop_assert_eq!(Release::parse(&again, &emitted), Ok(release));
            }
        }
    }
}
