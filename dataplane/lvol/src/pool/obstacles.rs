//! What keeps volumes from being served although they are understood, and which groups of the journal are believed.

use std::collections::BTreeSet;

use basalt_bdev::{BlockSize, DeviceInfo};

use super::VolumeData;
use crate::id::VolumeId;
use crate::layout::{DISKS_MAX, DamageReason, Trust};
use crate::volume::lifetime_of;

/// What keeps volumes that are understood from being served.
pub(super) struct Obstacles {
    /// Blocks of the disks that are there.
    pub(super) blocks: Vec<Option<BlockSize>>,
    /// The first disk that is not.
    pub(super) missing: Option<u32>,
    /// Volumes with changes that are believed, or not, once it is there: what they held before must not be served meanwhile.
    pub(super) doubted: BTreeSet<VolumeId>,
    /// A group of the journal is lost. It may have given what one volume had to another one, which has written there since.
    pub(super) damaged: bool,
}

impl Obstacles {
    /// Why a volume cannot be served now.
    pub(super) fn of(&self, data: &VolumeData) -> Option<DamageReason> {
        let named = (0..).zip(0..DISKS_MAX).filter(|(_, disk)| data.disks & 1 << disk != 0);
        let mut reasons = named.filter_map(|(number, disk)| match self.blocks.get(disk) {
            Some(Some(block)) if block.bytes() == data.record.block_bytes => None,
            Some(Some(_)) => Some(DamageReason::Field("its block is not that of its disks")),
            _ => Some(DamageReason::DiskMissing(number)),
        });
        let doubt = || self.missing.filter(|_| self.doubted.contains(&data.record.id));
        let journal = || self.damaged.then_some(DamageReason::Journal);
        reasons.next().or_else(|| doubt().map(DamageReason::DiskMissing)).or_else(journal)
    }
}

/// Whether a group that was found may be believed; `None`: that is not known before a disk is there.
pub(super) fn judge(present: &[Option<&DeviceInfo>], trust: Trust) -> Option<bool> {
    let Trust::While { lifetime, disks } = trust else { return Some(true) };
    let missing = (0..).zip(present).any(|(index, disk): (u32, _)| disk.is_none() && disks & 1 << index != 0);
    (!missing).then(|| lifetime_of(present.iter().copied(), disks) == Some(lifetime))
}
