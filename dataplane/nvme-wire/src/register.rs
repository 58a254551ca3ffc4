//! Controller properties (Base 3.1.3), reached by Property Get and Set in fabrics (oF 3.4, 3.5).

/// Offset of a property (Base figure 33; oF 3.4 lists those that exist in fabrics).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Property {
    /// Controller Capabilities, 8 bytes.
    Capabilities = 0x00,
    /// Version, 4 bytes.
    Version = 0x08,
    /// Controller Configuration, 4 bytes.
    Configuration = 0x14,
    /// Controller Status, 4 bytes.
    Status = 0x1c,
    /// NVM Subsystem Reset, 4 bytes.
    SubsystemReset = 0x20,
}

impl Property {
    /// The property at `offset`, if fabrics have one there.
    pub const fn from_offset(offset: u32) -> Option<Self> {
        match offset {
            0x00 => Some(Property::Capabilities),
            0x08 => Some(Property::Version),
            0x14 => Some(Property::Configuration),
            0x1c => Some(Property::Status),
            0x20 => Some(Property::SubsystemReset),
            _ => None,
        }
    }

    /// Whether the property has eight bytes.
    pub const fn is_wide(self) -> bool {
        matches!(self, Property::Capabilities)
    }
}

/// Version 2.0.0 (Base 3.1.3.2).
pub const VERSION_2_0: u32 = 0x0002_0000;

/// Controller Capabilities (Base 3.1.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Maximum Queue Entries Supported, as a count (0's based on the wire, bits 15:0).
    pub queue_entries_max: u16,
    /// Contiguous Queues Required (bit 16); set for fabrics.
    pub contiguous_queues: bool,
    /// Timeout in units of 500 ms (bits 31:24).
    pub ready_timeout_half_seconds: u8,
    /// Command Sets Supported (bits 44:37); bit 0 is the NVM command set.
    pub command_sets: u8,
}

impl Capabilities {
    /// The register's value; memory page sizes are 4 KiB only (bits 55:48 zero).
    ///
    /// # Panics
    /// If `queue_entries_max` is zero.
    pub fn emit(self) -> u64 {
        assert!(self.queue_entries_max > 0, "a queue has entries");
        u64::from(self.queue_entries_max - 1)
            | u64::from(self.contiguous_queues) << 16
            | u64::from(self.ready_timeout_half_seconds) << 24
            | u64::from(self.command_sets) << 37
    }

    /// Reads the register's value.
    pub fn parse(value: u64) -> Self {
        let bytes = value.to_le_bytes();
        Self {
            queue_entries_max: u16::from_le_bytes([bytes[0], bytes[1]]).saturating_add(1),
            contiguous_queues: value >> 16 & 1 != 0,
            ready_timeout_half_seconds: bytes[3],
            command_sets: (value >> 37).to_le_bytes()[0],
        }
    }
}

/// Shutdown notification of the host (CC.SHN, Base 3.1.3.5 bits 15:14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownNotice {
    /// No notification.
    None,
    /// Normal shutdown.
    Normal,
    /// Abrupt shutdown.
    Abrupt,
    /// The reserved value.
    Reserved,
}

/// Controller Configuration (Base 3.1.3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// Value that enables the NVM command set with 64-byte and 16-byte queue entries (IOSQES = 6, IOCQES = 4, EN).
    pub const ENABLE: Self = Self(4 << 20 | 6 << 16 | 1);
    /// Bits of a normal shutdown notification.
    pub const SHUTDOWN_NORMAL: u32 = 1 << 14;

    /// Enable (bit 0).
    pub const fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// I/O Command Set Selected (bits 6:4).
    pub const fn command_set(self) -> u32 {
        self.0 >> 4 & 7
    }

    /// Memory Page Size (bits 10:7), as a power of two above 4 KiB.
    pub const fn page_size(self) -> u32 {
        self.0 >> 7 & 0xf
    }

    /// Shutdown Notification (bits 15:14).
    pub const fn shutdown(self) -> ShutdownNotice {
        match self.0 >> 14 & 3 {
            0 => ShutdownNotice::None,
            1 => ShutdownNotice::Normal,
            2 => ShutdownNotice::Abrupt,
            _ => ShutdownNotice::Reserved,
        }
    }

    /// I/O Submission Queue Entry Size (bits 19:16), a power of two.
    pub const fn sq_entry_size(self) -> u32 {
        self.0 >> 16 & 0xf
    }

    /// I/O Completion Queue Entry Size (bits 23:20), a power of two.
    pub const fn cq_entry_size(self) -> u32 {
        self.0 >> 20 & 0xf
    }
}

/// Controller Status (Base 3.1.3.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControllerStatus {
    /// Ready (bit 0).
    pub ready: bool,
    /// Controller Fatal Status (bit 1).
    pub fatal: bool,
    /// Shutdown Status (bits 3:2).
    pub shutdown: ShutdownStatus,
}

/// Shutdown Status (CSTS.SHST, Base figure 46).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownStatus {
    /// None was asked for.
    #[default]
    Normal,
    /// It is under way.
    Occurring,
    /// It is complete.
    Complete,
}

impl ControllerStatus {
    /// The register's value.
    pub fn emit(self) -> u32 {
        let shutdown = match self.shutdown {
            ShutdownStatus::Normal => 0,
            ShutdownStatus::Occurring => 1,
            ShutdownStatus::Complete => 2,
        };
        u32::from(self.ready) | u32::from(self.fatal) << 1 | shutdown << 2
    }

    /// Reads the register's value.
    pub const fn parse(value: u32) -> Self {
        let shutdown = match value >> 2 & 3 {
            1 => ShutdownStatus::Occurring,
            2 => ShutdownStatus::Complete,
            _ => ShutdownStatus::Normal,
        };
        Self { ready: value & 1 != 0, fatal: value & 2 != 0, shutdown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_round_trip_and_golden() {
        let caps = Capabilities {
            queue_entries_max: 1024,
            contiguous_queues: true,
            ready_timeout_half_seconds: 30,
            command_sets: 1,
        };
        assert_eq!(caps.emit(), 0x0000_0020_1e01_03ff);
        assert_eq!(Capabilities::parse(caps.emit()), caps);
    }

    #[test]
    fn configuration_as_linux_writes_it() {
        let config = Configuration(0x0046_0001);
        assert_eq!(config, Configuration::ENABLE);
        assert!(config.enabled());
        assert_eq!((config.sq_entry_size(), config.cq_entry_size(), config.command_set()), (6, 4, 0));
        assert_eq!(Configuration(0x0046_4001).shutdown(), ShutdownNotice::Normal);
    }

    #[test]
    fn status_round_trips() {
        for bits in [0u32, 1, 2, 3, 8, 9, 11] {
            assert_eq!(ControllerStatus::parse(bits).emit(), bits);
        }
    }
}
