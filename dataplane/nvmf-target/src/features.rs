//! Features (Base 5.15, 5.27) of one controller.

use basalt_nvme_wire::Status;
use basalt_nvme_wire::feature::{CAPABILITY_CHANGEABLE, FeatureId, Select, event};

use crate::controller::Kind;

/// Events that an I/O controller can report.
const IO_EVENTS: u32 = event::NAMESPACE_ATTRIBUTE | event::ANA_CHANGE;
/// Arbitration burst "no limit" (Base figure 318).
const ARBITRATION_DEFAULT: u32 = 0b111;
/// Over temperature threshold that never triggers (Base figure 320).
const TEMPERATURE_DEFAULT: u32 = 0xffff;
/// Error Recovery: the time limited part; bit 16 (DULBE) is not supported (NVM figure 88).
const ERROR_RECOVERY_BITS: u32 = 0xffff;

/// Values that a host set.
#[derive(Debug)]
pub(crate) struct Features {
    kind: Kind,
    arbitration: u32,
    temperature: u32,
    error_recovery: u32,
    write_atomicity: u32,
    pub(crate) events: u32,
    /// Advanced command retry (Host Behavior Support, byte 0).
    pub(crate) host_behavior: [u8; 512],
}

impl Features {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            arbitration: ARBITRATION_DEFAULT,
            temperature: TEMPERATURE_DEFAULT,
            error_recovery: 0,
            write_atomicity: 0,
            events: 0,
            host_behavior: [0; 512],
        }
    }

    /// Events that the controller can report.
    fn events_supported(&self) -> u32 {
        match self.kind {
            Kind::Io => IO_EVENTS,
            Kind::Discovery => event::DISCOVERY_CHANGE,
        }
    }

    /// Sets a feature that is a plain value.
    pub(crate) fn set(&mut self, feature: FeatureId, value: u32) -> Result<(), Status> {
        let invalid = Err(Status::INVALID_FIELD.dnr());
        match feature {
            FeatureId::Arbitration => self.arbitration = value,
            // There is one power state.
            FeatureId::PowerManagement if value & 0x1f != 0 => return invalid,
            FeatureId::PowerManagement => {}
            FeatureId::TemperatureThreshold => self.temperature = value & 0xffff,
            FeatureId::ErrorRecovery if value & !ERROR_RECOVERY_BITS != 0 => return invalid,
            FeatureId::ErrorRecovery => self.error_recovery = value,
            // The cache cannot be switched off.
            FeatureId::VolatileWriteCache if value & 1 == 0 => {
                return Err(Status::FEATURE_NOT_CHANGEABLE.dnr());
            }
            FeatureId::VolatileWriteCache => {}
            FeatureId::WriteAtomicity => self.write_atomicity = value & 1,
            // Unknown events are ignored, as hosts enable what later versions have (Base 5.27.1.8).
            FeatureId::AsyncEventConfig => self.events = value & self.events_supported(),
            FeatureId::NumberOfQueues
            | FeatureId::KeepAliveTimer
            | FeatureId::HostBehavior
            | FeatureId::HostIdentifier
            | FeatureId::ReservationNotificationMask
            | FeatureId::ReservationPersistence => return invalid,
        }
        Ok(())
    }

    /// A feature that is a plain value; `None` for the others.
    pub(crate) fn get(&self, feature: FeatureId, select: Select) -> Option<u32> {
        let (current, default) = match feature {
            FeatureId::Arbitration => (self.arbitration, ARBITRATION_DEFAULT),
            FeatureId::PowerManagement => (0, 0),
            FeatureId::TemperatureThreshold => (self.temperature, TEMPERATURE_DEFAULT),
            FeatureId::ErrorRecovery => (self.error_recovery, 0),
            FeatureId::VolatileWriteCache => (1, 1),
            FeatureId::WriteAtomicity => (self.write_atomicity, 0),
            FeatureId::AsyncEventConfig => (self.events, 0),
            FeatureId::NumberOfQueues
            | FeatureId::KeepAliveTimer
            | FeatureId::HostBehavior
            | FeatureId::HostIdentifier
            | FeatureId::ReservationNotificationMask
            | FeatureId::ReservationPersistence => return None,
        };
        Some(match select {
            Select::Current => current,
            Select::Default | Select::Saved => default,
            Select::Capabilities if feature == FeatureId::VolatileWriteCache => 0,
            Select::Capabilities => CAPABILITY_CHANGEABLE,
        })
    }
}

/// Features that a controller has; the Feature Identifiers page tells the same.
pub(crate) fn supported(kind: Kind, feature: FeatureId) -> bool {
    match feature {
        FeatureId::AsyncEventConfig | FeatureId::KeepAliveTimer => true,
        FeatureId::Arbitration
        | FeatureId::PowerManagement
        | FeatureId::TemperatureThreshold
        | FeatureId::ErrorRecovery
        | FeatureId::VolatileWriteCache
        | FeatureId::NumberOfQueues
        | FeatureId::WriteAtomicity
        | FeatureId::HostBehavior
        | FeatureId::HostIdentifier
        | FeatureId::ReservationNotificationMask
        | FeatureId::ReservationPersistence => kind == Kind::Io,
    }
}
