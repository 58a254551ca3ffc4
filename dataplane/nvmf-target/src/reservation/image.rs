//! The bytes in which a state is saved (docs/reservations.md).

use std::collections::BTreeMap;

use basalt_nvme_wire::digest::crc32c;
use basalt_nvme_wire::reservation::{ReservationKey, ReservationType};
use basalt_nvmf_transport::HostId;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::state::{Held, REGISTRANTS_MAX, ReservationState};

const MAGIC: [u8; 8] = *b"BSLTRESV";
const VERSION: u32 = 1;

/// Why bytes are no saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// They do not begin like one, or are too few.
    #[error("this is no saved reservation")]
    Foreign,
    /// A later version wrote them.
    #[error("the saved reservation has version {0}, which is newer than this program")]
    Version(u32),
    /// They were changed.
    #[error("the saved reservation is damaged")]
    Damaged,
    /// They belong to another namespace.
    #[error("the saved reservation is another namespace's")]
    Namespace,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    checksum: U32,
    namespace: [u8; 16],
    generation: U32,
    kind: u8,
    reserved_37: u8,
    registrants: U16,
    reserved_40: [u8; 8],
    holder: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Registrant {
    host: [u8; 16],
    key: U64,
    reserved: [u8; 8],
}

const _: () = assert!(size_of::<Header>() == 64 && size_of::<Registrant>() == 32);
const CHECKED_FROM: usize = 16;

impl ReservationState {
    /// The bytes in which the state of the namespace with this UUID is saved.
    pub fn encode(&self, namespace: [u8; 16]) -> Vec<u8> {
        let (kind, holder) = match self.held {
            None => (0, [0; 16]),
            Some(Held::ByAll { kind }) => (kind.code(), [0; 16]),
            Some(Held::By { kind, holder }) => (kind.code(), holder.0),
        };
        let mut header = Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            checksum: U32::ZERO,
            namespace,
            generation: U32::new(self.generation),
            kind,
            reserved_37: 0,
            registrants: U16::new(u16::try_from(self.registrants.len()).unwrap_or(u16::MAX)),
            reserved_40: [0; 8],
            holder,
        };
        let mut rest = header.as_bytes()[CHECKED_FROM..].to_vec();
        for (host, key) in &self.registrants {
            let entry = Registrant { host: host.0, key: U64::new(key.0), reserved: [0; 8] };
            rest.extend_from_slice(entry.as_bytes());
        }
        header.checksum = U32::new(crc32c(&rest));
        let mut bytes = header.as_bytes()[..CHECKED_FROM].to_vec();
        bytes.append(&mut rest);
        bytes
    }

    /// Reads what [`ReservationState::encode`] gave; only persistent states are saved, so this one is.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn decode(namespace: [u8; 16], bytes: &[u8]) -> Result<Self, ImageError> {
        let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| ImageError::Foreign)?;
        if header.magic != MAGIC {
            return Err(ImageError::Foreign);
        }
        match header.version.get() {
            VERSION => {}
            0 => return Err(ImageError::Damaged),
            later => return Err(ImageError::Version(later)),
        }
        if crc32c(&bytes[CHECKED_FROM..]) != header.checksum.get() {
            return Err(ImageError::Damaged);
        }
        if header.namespace != namespace {
            return Err(ImageError::Namespace);
        }
        let entries = <[Registrant]>::ref_from_bytes(rest).map_err(|_| ImageError::Damaged)?;
        let registrants: BTreeMap<HostId, ReservationKey> =
            entries.iter().map(|entry| (HostId(entry.host), ReservationKey(entry.key.get()))).collect();
        let state = Self {
            generation: header.generation.get(),
            persistent: true,
            held: held(header.kind, header.holder)?,
            registrants,
        };
        let counted = entries.len() == usize::from(header.registrants.get());
        if counted && state.registrants.len() == entries.len() && state.is_sound() {
            Ok(state)
        } else {
            Err(ImageError::Damaged)
        }
    }

    fn is_sound(&self) -> bool {
        let held = match self.held {
            None => true,
            Some(Held::By { holder, .. }) => self.registrants.contains_key(&holder),
            Some(Held::ByAll { .. }) => !self.registrants.is_empty(),
        };
        held && self.registrants.len() <= REGISTRANTS_MAX && self.registrants.values().all(|key| key.0 != 0)
    }
}

fn held(kind: u8, holder: [u8; 16]) -> Result<Option<Held>, ImageError> {
    match (kind, ReservationType::from_code(kind)) {
        (0, _) if holder == [0; 16] => Ok(None),
        (_, Some(kind)) => match Held::new(kind, HostId(holder)) {
            // All registrants hold it, so that it names none.
            Held::ByAll { .. } if holder != [0; 16] => Err(ImageError::Damaged),
            held => Ok(Some(held)),
        },
        (_, None) => Err(ImageError::Damaged),
    }
}
