//! Log pages (Base 5.16).

use std::collections::BTreeSet;
use std::sync::Arc;

use basalt_bdev::Capabilities;
use basalt_nvme_wire::feature::FeatureId;
use basalt_nvme_wire::log::{
    ANA_GROUPS_ONLY, AnaGroup, AnaHeader, CHANGED_NAMESPACES_LEN, CHANGED_NAMESPACES_MAX, CommandEffects,
    EFFECT_CONTENT_CHANGE, EFFECT_SUPPORTED, ERROR_ENTRY_LEN, FEATURE_EFFECTS_LEN, FIRMWARE_SLOT_LEN, Health,
    LogId, SUPPORTED_PAGES_LEN,
};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::{NSID_ALL, identify};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::controller::Kind;
use crate::identify::all_can;
use crate::namespace::{Namespace, Nsid};

/// Pages that a controller has.
pub(crate) fn supported(kind: Kind, page: LogId) -> bool {
    match page {
        LogId::SupportedPages | LogId::ErrorInformation => true,
        LogId::Health
        | LogId::FirmwareSlot
        | LogId::ChangedNamespaces
        | LogId::CommandEffects
        | LogId::Ana
        | LogId::FeatureEffects
        | LogId::ReservationNotification => kind == Kind::Io,
        LogId::Discovery => kind == Kind::Discovery,
    }
}

/// Supported Log Pages: one dword per identifier, bit 0 (LSUPP).
pub(crate) fn supported_pages(kind: Kind) -> Vec<u8> {
    let mut page = vec![0; SUPPORTED_PAGES_LEN];
    for id in LogId::ALL {
        page[usize::from(id.code()) * 4] = u8::from(supported(kind, *id));
    }
    page
}

/// Feature Identifiers Supported and Effects: bit 0 (FSUPP).
pub(crate) fn feature_effects(has: impl Fn(FeatureId) -> bool) -> Vec<u8> {
    let mut page = vec![0; FEATURE_EFFECTS_LEN];
    for id in FeatureId::ALL {
        page[usize::from(id.code()) * 4] = u8::from(has(*id));
    }
    page
}

/// Error Information: one entry with an error count of zero, which says that there was no error.
pub(crate) fn errors() -> Vec<u8> {
    vec![0; ERROR_ENTRY_LEN]
}

/// SMART / Health: no wear and no warnings; the temperature is not known.
pub(crate) fn health() -> Vec<u8> {
    let mut page: Health = identify::zeroed();
    page.spare = 100;
    page.spare_threshold = 10;
    page.as_bytes().to_vec()
}

/// Firmware Slot Information: slot 1 is active and holds this build.
pub(crate) fn firmware() -> Vec<u8> {
    let mut page = vec![0; FIRMWARE_SLOT_LEN];
    page[0] = 1;
    page[8..16].copy_from_slice(&identify::blank_padded::<8>(env!("CARGO_PKG_VERSION")));
    page
}

/// Commands Supported and Effects; optional commands as identify tells them.
pub(crate) fn command_effects(namespaces: &[Arc<Namespace>]) -> Vec<u8> {
    let mut page: CommandEffects = identify::zeroed();
    for command in Admin::ALL {
        page.admin[usize::from(command.code())] = U32::new(EFFECT_SUPPORTED);
    }
    for command in Io::ALL {
        let effect = match command {
            Io::Compare if !all_can(namespaces, Capabilities::COMPARE) => 0,
            Io::WriteZeroes if !all_can(namespaces, Capabilities::WRITE_ZEROES) => 0,
            Io::Flush
            | Io::Read
            | Io::Compare
            | Io::ReservationRegister
            | Io::ReservationReport
            | Io::ReservationAcquire
            | Io::ReservationRelease => EFFECT_SUPPORTED,
            Io::Write | Io::WriteZeroes | Io::DatasetManagement => EFFECT_SUPPORTED | EFFECT_CONTENT_CHANGE,
            Io::WriteUncorrectable | Io::Verify => 0,
        };
        page.io[usize::from(command.code())] = U32::new(effect);
    }
    page.as_bytes().to_vec()
}

/// Changed Namespace List: ascending numbers, or one FFFFFFFFh when there are too many.
pub(crate) fn changed_namespaces(changed: &BTreeSet<Nsid>) -> Vec<u8> {
    let mut page = vec![0; CHANGED_NAMESPACES_LEN];
    if changed.len() > CHANGED_NAMESPACES_MAX {
        page[..4].copy_from_slice(&NSID_ALL.to_le_bytes());
        return page;
    }
    for (place, nsid) in page.chunks_exact_mut(4).zip(changed) {
        place.copy_from_slice(&nsid.0.to_le_bytes());
    }
    page
}

/// Asymmetric Namespace Access: one group per namespace.
pub(crate) fn ana(namespaces: &[Arc<Namespace>], specific: u8, change_count: u64) -> Vec<u8> {
    let groups_only = specific & ANA_GROUPS_ONLY != 0;
    let header = AnaHeader {
        change_count: U64::new(change_count),
        groups: U16::new(u16::try_from(namespaces.len()).unwrap_or(u16::MAX)),
        ..AnaHeader::default()
    };
    let mut page = header.as_bytes().to_vec();
    for namespace in namespaces {
        let group = AnaGroup {
            group: U32::new(namespace.ana_group()),
            namespaces: U32::new(u32::from(!groups_only)),
            change_count: U64::new(namespace.ana_changes()),
            state: namespace.ana() as u8,
            ..AnaGroup::default()
        };
        page.extend_from_slice(group.as_bytes());
        if !groups_only {
            page.extend_from_slice(&namespace.nsid().0.to_le_bytes());
        }
    }
    page
}
