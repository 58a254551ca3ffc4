//! Devices that `basaltd serve` is given on the command line: `kind,key=value,...`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use basalt_bdev::BlockSize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Size of a RAM or null device that names none.
const DEFAULT_BYTES: u64 = 256 << 20;
/// Block of a device that names none.
const DEFAULT_BLOCK: BlockSize = BlockSize::B512;

/// What a namespace stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceSpec {
    /// The kind, with what it needs.
    pub(crate) kind: DeviceKind,
    /// Logical block.
    pub(crate) block: BlockSize,
}

/// Kinds of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    /// Memory, lost with the process.
    Ram {
        /// Size in bytes.
        bytes: u64,
    },
    /// Takes everything, keeps nothing, reads as zeroes: for measurements.
    Null {
        /// Size in bytes.
        bytes: u64,
    },
    /// A file or a block device.
    File {
        /// Where it is.
        path: PathBuf,
        /// Made with this size in bytes if it does not exist.
        bytes: Option<u64>,
    },
}

/// Why a text is not a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceSpecError {
    /// Not a kind of device.
    #[error("{0:?} is not a kind of device; use ram, null or file")]
    Kind(String),
    /// Not a key of this kind, or a key without a value.
    #[error("{part:?} does not belong to a {kind} device; possible are {possible}")]
    Key {
        /// What was given.
        part: String,
        /// The kind.
        kind: &'static str,
        /// What it takes.
        possible: &'static str,
    },
    /// A key that was given before.
    #[error("{0} is given twice")]
    Twice(String),
    /// Not a size.
    #[error("{0:?} is not a size; write a number of bytes, or one with KiB, MiB, GiB or TiB")]
    Size(String),
    /// Not a block size.
    #[error("{0:?} is not a block size; use 512 or 4096")]
    Block(String),
    /// A file device without a path.
    #[error("a file device needs path=...")]
    NoPath,
    /// Not a whole number of blocks, or nothing at all.
    #[error("the size of a device must be a positive multiple of its block, as size=256MiB is")]
    Blocks,
}

impl FromStr for DeviceSpec {
    type Err = DeviceSpecError;

    fn from_str(text: &str) -> Result<Self, DeviceSpecError> {
        let (kind, rest) = text.split_once(',').unwrap_or((text, ""));
        let (name, possible) = match kind {
            "ram" => ("ram", "size=BYTES and block=512|4096"),
            "null" => ("null", "size=BYTES and block=512|4096"),
            "file" => ("file", "path=PATH, size=BYTES (to create it) and block=512|4096"),
            other => return Err(DeviceSpecError::Kind(other.to_owned())),
        };
        let (mut bytes, mut path, mut block) = (None, None, DEFAULT_BLOCK);
        let mut keys = BTreeSet::new();
        for part in rest.split(',').filter(|part| !part.is_empty()) {
            let key = part.split_once('=').map_or(part, |(key, _)| key);
            if !keys.insert(key) {
                return Err(DeviceSpecError::Twice(key.to_owned()));
            }
            match part.split_once('=') {
                Some(("size", value)) => bytes = Some(size(value)?),
                Some(("block", "512")) => block = BlockSize::B512,
                Some(("block", "4096")) => block = BlockSize::B4096,
                Some(("block", value)) => return Err(DeviceSpecError::Block(value.to_owned())),
                Some(("path", value)) if name == "file" && !value.is_empty() => {
                    path = Some(PathBuf::from(value))
                }
                _ => return Err(DeviceSpecError::Key { part: part.to_owned(), kind: name, possible }),
            }
        }
        if bytes.is_some_and(|bytes| bytes == 0 || bytes % u64::from(block.bytes()) != 0) {
            return Err(DeviceSpecError::Blocks);
        }
        let memory = bytes.unwrap_or(DEFAULT_BYTES);
        let kind = match name {
            "ram" => DeviceKind::Ram { bytes: memory },
            "null" => DeviceKind::Null { bytes: memory },
            _ => DeviceKind::File { path: path.ok_or(DeviceSpecError::NoPath)?, bytes },
        };
        Ok(Self { kind, block })
    }
}

/// The UUID that follows from a name: version 8 (RFC 9562, 5.8) of the first bytes of its SHA-256.
pub(crate) fn named_uuid(name: &str) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::digest(name.as_bytes())[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// A number of bytes with an optional binary unit.
fn size(text: &str) -> Result<u64, DeviceSpecError> {
    let wrong = || DeviceSpecError::Size(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        let read = |text: &str| text.parse::<DeviceSpec>();
        let ram = DeviceKind::Ram { bytes: 256 << 20 };
        assert_eq!(read("ram,size=256MiB").unwrap(), DeviceSpec { kind: ram, block: BlockSize::B512 });
        let null = DeviceKind::Null { bytes: 4096 };
        assert_eq!(
            read("null,size=4096,block=4096").unwrap(),
            DeviceSpec { kind: null, block: BlockSize::B4096 }
        );
        let file = DeviceKind::File { path: "/d/a".into(), bytes: None };
        assert_eq!(read("file,path=/d/a").unwrap().kind, file);
    }

    #[test]
    fn a_name_has_one_uuid() {
        let uuid = named_uuid("a");
        assert_eq!(uuid.to_string(), "ca978112-ca1b-8dca-bac2-31b39a23dc4d");
        assert_eq!(uuid.get_version_num(), 8);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<DeviceSpec>().unwrap_err();
        assert_eq!(error("tape"), DeviceSpecError::Kind("tape".into()));
        assert_eq!(error("file"), DeviceSpecError::NoPath);
        assert_eq!(error("ram,size=1MB"), DeviceSpecError::Size("1MB".into()));
        assert_eq!(error("ram,size=99999999T"), DeviceSpecError::Size("99999999T".into()));
        assert_eq!(error("ram,size=100"), DeviceSpecError::Blocks);
        assert_eq!(error("null,size=0"), DeviceSpecError::Blocks);
        assert_eq!(error("ram,block=7"), DeviceSpecError::Block("7".into()));
        assert!(matches!(error("ram,path=/x"), DeviceSpecError::Key { .. }));
        assert!(matches!(error("ram,size"), DeviceSpecError::Key { .. }));
    }
}
