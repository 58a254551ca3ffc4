use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What has become of the file that a device stands on, as far as somebody has looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Nothing that matters; or it stands on something else.
    #[default]
    Sound,
    /// It was deleted, and goes with the process that has it open.
    Deleted,
    /// Its path leads to another file, or to none.
    Elsewhere,
    /// It is shorter than the device: what was behind is lost, and nothing is served any more, whatever becomes of the length.
    Shortened {
        /// Bytes of the device.
        was: u64,
        /// Bytes that were found.
        is: u64,
    },
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sound => f.write_str("the file is as it was"),
            Self::Deleted => f.write_str(
                "the file was deleted; its data is kept only as long as the daemon runs: copy what the volumes hold elsewhere before it ends",
            ),
            Self::Elsewhere => f.write_str(
                "this path does not lead to the disk any more, which has another one now: name that, or move the disk back, before the daemon \
                 is started again",
            ),
            Self::Shortened { was, is } => write!(
                f,
                "the file was cut from {was} to {is} bytes; what was behind is lost, and nothing is read or written any more: bring back \
                 the whole file from a copy, and restart the daemon"
            ),
        }
    }
}

/// Where the file is that a device stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At its path.
    AtItsPath,
    /// Nowhere: it was deleted.
    Deleted,
    /// At another path.
    Elsewhere,
}

const AT_ITS_PATH: u8 = 0;
const DELETED: u8 = 1;
const ELSEWHERE: u8 = 2;

/// The place that was found last.
#[derive(Debug, Default)]
pub(crate) struct PlaceFound(AtomicU8);

impl PlaceFound {
    pub(crate) fn note(&self, place: Place) {
        let place = match place {
            Place::AtItsPath => AT_ITS_PATH,
            Place::Deleted => DELETED,
            Place::Elsewhere => ELSEWHERE,
        };
        self.0.store(place, Ordering::Release);
    }

    pub(crate) fn backing(&self) -> Backing {
        match self.0.load(Ordering::Acquire) {
            DELETED => Backing::Deleted,
            ELSEWHERE => Backing::Elsewhere,
            _ => Backing::Sound,
        }
    }
}

/// Lengths of a file that was cut: the device's, and the least that was found.
#[derive(Debug)]
pub(crate) struct Cut {
    was: AtomicU64,
    is: AtomicU64,
}

impl Default for Cut {
    fn default() -> Self {
        Self { was: AtomicU64::new(0), is: AtomicU64::new(u64::MAX) }
    }
}

impl Cut {
    /// Several reactors may find it out at a time.
    pub(crate) fn note(&self, was: u64, is: u64) {
        self.was.fetch_max(was, Ordering::AcqRel);
        self.is.fetch_min(is, Ordering::AcqRel);
    }

    pub(crate) fn backing(&self) -> Backing {
        Backing::Shortened { was: self.was.load(Ordering::Acquire), is: self.is.load(Ordering::Acquire) }
    }
}
