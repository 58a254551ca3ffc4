/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum IoError {
    /// A part of the range lies beyond the device's end.
    #[error("beyond the end of the device")]
    OutOfRange,
    /// The request contradicts itself: no blocks, or a payload of another length or of the wrong kind.
    #[error("the request is malformed")]
    Malformed,
    /// More blocks than [`crate::DeviceInfo::max_transfer`] allows.
    #[error("the request is too large")]
    TooLarge,
    /// The device does not know the operation.
    #[error("the device does not support the operation")]
    Unsupported,
    /// The medium could not give the data, or could not store it.
    #[error("the medium reported an error")]
    Medium,
    /// There is no room to store the data: a thin pool or the file system below is full.
    #[error("no capacity left to store the data")]
    CapacityExceeded,
    /// The device takes no writes.
    #[error("the device is read-only")]
    ReadOnly,
    /// A comparison found other data.
    #[error("the compared data differs")]
    Miscompare,
    /// The request was aborted, by its consumer or by a reset.
    #[error("the request was aborted")]
    Aborted,
    /// The device was removed or its backing store is gone.
    #[error("the device is gone")]
    DeviceGone,
    /// The file below the device was cut. What was behind is lost, so nothing is served until the device is opened anew.
    #[error("the file was cut while it was in use")]
    Shortened,
    /// The device belongs to a newer epoch now.
    #[error("fenced: the device belongs to a newer epoch")]
    Fenced,
    /// A part of the device did not answer in time.
    #[error("timed out")]
    TimedOut,
    /// There was not enough memory for the data; trying again later may help.
    #[error("out of buffers")]
    NoMemory,
}

impl IoError {
    /// True if the same request may succeed later without anyone's help.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::NoMemory | Self::TimedOut | Self::Aborted)
    }

    /// True if the device failed a request that it should have carried out: what a person should look into. Not so where the
    /// request asked for what the device does not do, was aborted, or is to be tried again.
    #[must_use]
    pub fn is_fault(self) -> bool {
        match self {
            Self::Medium
            | Self::CapacityExceeded
            | Self::DeviceGone
            | Self::Shortened
            | Self::Fenced
            | Self::TimedOut => true,
            Self::OutOfRange
            | Self::Malformed
            | Self::TooLarge
            | Self::Unsupported
            | Self::ReadOnly
            | Self::Miscompare
            | Self::Aborted
            | Self::NoMemory => false,
        }
    }
}
