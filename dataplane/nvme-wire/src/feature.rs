//! Features (Base 5.27.1): identifiers and the fields of their dword 11 and results.

use crate::opcode::codes;

codes! {
    /// Feature identifiers (Base figure 317) that this target knows.
    FeatureId {
        /// Arbitration (Base 5.27.1.1).
        Arbitration = 0x01,
        /// Power Management (Base 5.27.1.2).
        PowerManagement = 0x02,
        /// Temperature Threshold (Base 5.27.1.3).
        TemperatureThreshold = 0x04,
        /// Error Recovery (NVM 4.1.3.2).
        ErrorRecovery = 0x05,
        /// Volatile Write Cache (Base 5.27.1.4).
        VolatileWriteCache = 0x06,
        /// Number of Queues (Base 5.27.1.5).
        NumberOfQueues = 0x07,
        /// Write Atomicity Normal (NVM 4.1.3.3).
        WriteAtomicity = 0x0a,
        /// Asynchronous Event Configuration (Base 5.27.1.8).
        AsyncEventConfig = 0x0b,
        /// Keep Alive Timer (Base 5.27.1.12).
        KeepAliveTimer = 0x0f,
        /// Host Behavior Support (Base 5.27.1.18).
        HostBehavior = 0x16,
        /// Host Identifier (Base 5.27.1.25).
        HostIdentifier = 0x81,
        /// Reservation Notification Mask (Base 5.27.1.26).
        ReservationNotificationMask = 0x82,
        /// Reservation Persistence (Base 5.27.1.27).
        ReservationPersistence = 0x83,
    }
}

/// Select field of Get Features (Base figure 186).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The current value.
    Current,
    /// The default value.
    Default,
    /// The saved value.
    Saved,
    /// What the feature supports.
    Capabilities,
}

impl Select {
    /// Reads bits 10:8 of dword 10; `None` for reserved values.
    pub const fn parse(dword10: u32) -> Option<Self> {
        match dword10 >> 8 & 7 {
            0 => Some(Select::Current),
            1 => Some(Select::Default),
            2 => Some(Select::Saved),
            3 => Some(Select::Capabilities),
            _ => None,
        }
    }
}

/// Save bit of Set Features (dword 10, bit 31).
pub const SAVE: u32 = 1 << 31;

/// Answer to Select "capabilities": the feature is changeable (Base figure 189, bit 2).
pub const CAPABILITY_CHANGEABLE: u32 = 1 << 2;
/// The same: the feature is each namespace's own (bit 1).
pub const CAPABILITY_OF_NAMESPACE: u32 = 1 << 1;

/// Asynchronous Event Configuration bits (Base figure 326), equal to the OAES bits of identify (Base figure 276).
pub mod event {
    /// Namespace Attribute Notices.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware Activation Notices.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// Asymmetric Namespace Access Change Notices.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Discovery Log Page Change Notification.
    pub const DISCOVERY_CHANGE: u32 = 1 << 31;
}

/// Number of Queues (Base figures 321 and 322): both numbers are 0's based and share one dword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueCount {
    /// I/O submission queues, as a count.
    pub submission: u32,
    /// I/O completion queues, as a count.
    pub completion: u32,
}

impl QueueCount {
    /// Reads dword 11 or completion dword 0; `None` where a number is the forbidden FFFFh.
    pub const fn parse(dword: u32) -> Option<Self> {
        let (submission, completion) = (dword & 0xffff, dword >> 16);
        if submission == 0xffff || completion == 0xffff {
            return None;
        }
        Some(Self { submission: submission + 1, completion: completion + 1 })
    }

    /// The dword.
    ///
    /// # Panics
    /// If a count is not within 1 to 65,535.
    pub fn emit(self) -> u32 {
        assert!((1..=65_535).contains(&self.submission) && (1..=65_535).contains(&self.completion));
        (self.submission - 1) | (self.completion - 1) << 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_counts_round_trip() {
        let counts = QueueCount { submission: 4, completion: 65_535 };
        assert_eq!(counts.emit(), 0xfffe_0003);
        assert_eq!(QueueCount::parse(counts.emit()), Some(counts));
        assert_eq!(QueueCount::parse(0xffff_0000), None);
        assert_eq!(QueueCount::parse(0x0000_ffff), None);
    }

    #[test]
    fn select_values() {
        assert_eq!(Select::parse(0x0300), Some(Select::Capabilities));
        assert_eq!(Select::parse(0x0400), None);
    }
}
