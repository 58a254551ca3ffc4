//! Identify data (Base 5.17.2) of a controller and its namespaces.

use std::sync::Arc;

use basalt_bdev::{Capabilities, DeviceInfo};
use basalt_nvme_wire::identify::{
    ANACAP_ALL_STATES, CMIC_ANA, CMIC_MULTI_CONTROLLER, CTRATT_HOST_ID_128, CTRATT_TRAFFIC_KEEP_ALIVE, Cns,
    DLFEAT_ZEROES, FUSES_COMPARE_AND_WRITE, IDENTIFY_LEN, IdentifyController, IdentifyNamespace,
    IndependentNamespace, LPA_EFFECTS, LPA_EXTENDED, NMIC_SHARED, NSFEAT_OPTIMAL, NSTAT_READY, NamespaceId,
    NvmController, ONCS_COMPARE, ONCS_DATASET_MANAGEMENT, ONCS_FEATURE_SELECT, ONCS_RESERVATIONS,
    ONCS_WRITE_ZEROES, SGLS_FABRICS, VWC_ABSENT, VWC_PRESENT, blank_padded, zeroed,
};
use basalt_nvme_wire::register::VERSION_2_0;
use basalt_nvme_wire::reservation::{RESCAP_ALL_TYPES, RESCAP_PERSISTENT};
use basalt_nvme_wire::{NSID_ALL, Sqe, Status, fabrics, feature};
use basalt_nvmf_transport::{ControllerId, TransportLimits};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::controller::Kind;
use crate::events;
use crate::namespace::Namespace;
use crate::subsystem::{NAMESPACES_MAX, SubsystemConfig};

/// Aborts that a host may have outstanding, 0's based (ACL).
pub(crate) const ABORT_LIMIT: u8 = 3;
/// Keep alive granularity in units of 100 ms.
pub(crate) const KEEP_ALIVE_GRANULARITY: u16 = 10;
/// Longest time in seconds that an ANA change takes (ANATT); Linux drops the path when it takes longer.
const ANA_TRANSITION_SECONDS: u8 = 30;
/// ANACAP bit 6: a namespace keeps its group while it is attached.
const ANA_GROUP_STAYS: u8 = 1 << 6;
/// The most Write Zeroes and Dataset Management take is bounded by their fields; zero tells no other limit.
const NO_LIMIT: u8 = 0;

/// What identify pages tell about a controller.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) kind: Kind,
    pub(crate) id: ControllerId,
    pub(crate) config: &'a SubsystemConfig,
    pub(crate) limits: TransportLimits,
    pub(crate) namespaces: &'a [Arc<Namespace>],
}

impl Subject<'_> {
    /// The page that an Identify command asks for.
    pub(crate) fn page(&self, sqe: &Sqe) -> Result<Vec<u8>, Status> {
        let cns = Cns::from_code(sqe.cdw10.get().to_le_bytes()[0]).ok_or(Status::INVALID_FIELD.dnr())?;
        if self.kind == Kind::Discovery && cns != Cns::Controller {
            return Err(Status::INVALID_FIELD.dnr());
        }
        // Command set identifier, dword 11 bits 31:24: only NVM (0) exists here.
        let command_set = sqe.cdw11.get().to_le_bytes()[3];
        let nsid = sqe.nsid.get();
        match cns {
            Cns::Controller => Ok(self.controller().as_bytes().to_vec()),
            Cns::Namespace | Cns::AllocatedNamespace => self.namespace(nsid),
            Cns::ActiveNamespaces | Cns::AllocatedNamespaces => self.active(nsid),
            Cns::NamespaceDescriptors => self.descriptors(nsid),
            Cns::IndependentNamespace => self.independent(nsid),
            Cns::CommandSetNamespace | Cns::CommandSetController | Cns::CommandSetActiveNamespaces
                if command_set != 0 =>
            {
                Err(Status::INVALID_FIELD.dnr())
            }
            // NVM figure 100: nothing but protection information, which namespaces do not have.
            Cns::CommandSetNamespace => self.find(nsid)?.map_or_else(empty, |_| empty()),
            Cns::CommandSetController => {
                let mut page: NvmController = zeroed();
                page.wzsl = NO_LIMIT;
                page.dmrl = NO_LIMIT;
                Ok(page.as_bytes().to_vec())
            }
            Cns::CommandSetActiveNamespaces => self.active(nsid),
        }
    }

    /// `Ok(None)` for a number without a namespace; an error for a number that no namespace can have.
    fn find(&self, nsid: u32) -> Result<Option<&Arc<Namespace>>, Status> {
        if nsid == 0 || nsid > NAMESPACES_MAX {
            return Err(Status::INVALID_NAMESPACE.dnr());
        }
        let place = self.namespaces.binary_search_by_key(&nsid, |namespace| namespace.nsid().0);
        Ok(place.ok().map(|place| &self.namespaces[place]))
    }

    fn controller(&self) -> IdentifyController {
        let mut page: IdentifyController = zeroed();
        page.sn = blank_padded(&self.config.serial);
        page.mn = blank_padded(&self.config.model);
        page.fr = blank_padded(env!("CARGO_PKG_VERSION"));
        page.mdts = self.transfer_exponent();
        page.cntlid = U16::new(self.id.0);
        page.ver = U32::new(VERSION_2_0);
        page.ctratt = U32::new(CTRATT_HOST_ID_128 | CTRATT_TRAFFIC_KEEP_ALIVE);
        page.acl = ABORT_LIMIT;
        page.aerl = u8::try_from(events::REQUESTS_MAX - 1).unwrap_or(u8::MAX);
        // One firmware slot, read only.
        page.frmw = 1 << 1 | 1;
        page.lpa = LPA_EXTENDED;
        page.kas = U16::new(KEEP_ALIVE_GRANULARITY);
        page.maxcmd = U16::new(self.limits.queue_entries_max);
        page.sgls = U32::new(SGLS_FABRICS);
        page.subnqn = fabrics::nqn_field(self.config.nqn.as_str()).unwrap_or([0; 256]);
        // Capsule sizes in units of 16 bytes: a 64-byte command with its data, and a 16-byte response.
        page.ioccsz = U32::new(4 + self.limits.in_capsule_bytes_max / 16);
        page.iorcsz = U32::new(1);
        page.msdbd = 1;
        page.ofcs = U16::new(1);
        match self.kind {
            Kind::Discovery => {
                page.cntrltype = 2;
                page.oaes = U32::new(feature::event::DISCOVERY_CHANGE);
            }
            Kind::Io => self.io_controller(&mut page),
        }
        page
    }

    fn io_controller(&self, page: &mut IdentifyController) {
        page.cntrltype = 1;
        page.cmic = CMIC_MULTI_CONTROLLER | CMIC_ANA;
        page.oaes = U32::new(feature::event::NAMESPACE_ATTRIBUTE | feature::event::ANA_CHANGE);
        page.lpa |= LPA_EFFECTS;
        page.anatt = ANA_TRANSITION_SECONDS;
        page.anacap = ANACAP_ALL_STATES | ANA_GROUP_STAYS;
        page.anagrpmax = U32::new(NAMESPACES_MAX);
        page.nanagrpid = U32::new(NAMESPACES_MAX);
        page.mnan = U32::new(NAMESPACES_MAX);
        page.nn = U32::new(NAMESPACES_MAX);
        // 64-byte submission and 16-byte completion entries, required and at most.
        page.sqes = 0x66;
        page.cqes = 0x44;
        let always = ONCS_DATASET_MANAGEMENT | ONCS_FEATURE_SELECT | ONCS_RESERVATIONS;
        let claims = |capability, bit| if all_can(self.namespaces, capability) { bit } else { 0 };
        page.oncs = U16::new(
            always
                | claims(Capabilities::COMPARE, ONCS_COMPARE)
                | claims(Capabilities::WRITE_ZEROES, ONCS_WRITE_ZEROES),
        );
        page.vwc = if volatile_cache(self.namespaces) { VWC_PRESENT } else { VWC_ABSENT };
        let atomic = self.namespaces.iter().map(|namespace| namespace.device().info().atomic_write().0);
        let atomic = u16::try_from(atomic.min().unwrap_or(1).saturating_sub(1)).unwrap_or(u16::MAX);
        page.awun = U16::new(atomic);
        page.awupf = U16::new(atomic);
        if !self.namespaces.is_empty() && self.namespaces.iter().all(|namespace| namespace.fuses()) {
            page.fuses = U16::new(FUSES_COMPARE_AND_WRITE);
            page.acwu = U16::new(atomic);
        }
    }

    /// MDTS: the transfer limit as a power of two of 4 KiB.
    fn transfer_exponent(&self) -> u8 {
        (self.limits.transfer_bytes_max / 4096).checked_ilog2().unwrap_or(0).to_le_bytes()[0]
    }

    fn namespace(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        if nsid == NSID_ALL {
            // What all namespaces have in common, for controllers with namespace management: there is none.
            return Err(Status::INVALID_NAMESPACE.dnr());
        }
        let Some(namespace) = self.find(nsid)? else { return empty() };
        let info = namespace.device().info();
        let mut page: IdentifyNamespace = zeroed();
        let blocks = U64::new(info.blocks().0);
        (page.nsze, page.ncap, page.nuse) = (blocks, blocks, blocks);
        page.nmic = NMIC_SHARED;
        page.rescap = reservation_capabilities(namespace);
        page.dlfeat = DLFEAT_ZEROES;
        page.nsattr = u8::from(info.read_only());
        page.nvmcap[..8].copy_from_slice(&info.bytes().to_le_bytes());
        page.anagrpid = U32::new(namespace.ana_group());
        page.nguid = namespace.identity().nguid;
        page.lbaf[0] = U32::new(info.block_size().shift() << 16);
        optimal(&mut page, info);
        Ok(page.as_bytes().to_vec())
    }

    fn independent(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        let Some(namespace) = self.find(nsid)? else { return Err(Status::INVALID_NAMESPACE.dnr()) };
        let mut page: IndependentNamespace = zeroed();
        page.nmic = NMIC_SHARED;
        page.rescap = reservation_capabilities(namespace);
        page.anagrpid = U32::new(namespace.ana_group());
        page.nsattr = u8::from(namespace.device().info().read_only());
        page.nstat = NSTAT_READY;
        Ok(page.as_bytes().to_vec())
    }

    /// Up to 1,024 numbers above `above`, ascending (Base 5.17.2.2).
    fn active(&self, above: u32) -> Result<Vec<u8>, Status> {
        if above >= 0xffff_fffe {
            return Err(Status::INVALID_NAMESPACE.dnr());
        }
        let mut page = vec![0; IDENTIFY_LEN];
        let numbers = self.namespaces.iter().map(|namespace| namespace.nsid().0).filter(|nsid| *nsid > above);
        for (place, nsid) in page.chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&nsid.to_le_bytes());
        }
        Ok(page)
    }

    fn descriptors(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        let Some(namespace) = self.find(nsid)? else { return Err(Status::INVALID_NAMESPACE.dnr()) };
        let identity = namespace.identity();
        let mut page = vec![0; IDENTIFY_LEN];
        let mut at = 0;
        for id in
            [NamespaceId::Uuid(identity.uuid), NamespaceId::Nguid(identity.nguid), NamespaceId::CommandSet(0)]
        {
            // Three short descriptors fit a page.
            at = id.emit(&mut page, at).unwrap_or(at);
        }
        Ok(page)
    }
}

fn reservation_capabilities(namespace: &Namespace) -> u8 {
    let persistent = if namespace.reservations().can_persist() { RESCAP_PERSISTENT } else { 0 };
    RESCAP_ALL_TYPES | persistent
}

fn empty() -> Result<Vec<u8>, Status> {
    Ok(vec![0; IDENTIFY_LEN])
}

/// Whether any namespace may lose completed writes before a flush; true also while there is none yet, as hosts ask once.
pub(crate) fn volatile_cache(namespaces: &[Arc<Namespace>]) -> bool {
    namespaces.is_empty()
        || namespaces.iter().any(|namespace| namespace.device().info().volatile_write_cache())
}

/// Whether every namespace's device can do something; true also while there is none yet, as hosts ask once.
pub(crate) fn all_can(namespaces: &[Arc<Namespace>], capability: Capabilities) -> bool {
    namespaces.iter().all(|namespace| namespace.device().info().capabilities().contains(capability))
}

/// Preferred granularities, 0's based (NVM 5.8.2).
fn optimal(page: &mut IdentifyNamespace, info: &DeviceInfo) {
    if info.optimal_io().0 > 1 {
        let blocks = U16::new(u16::try_from(info.optimal_io().0 - 1).unwrap_or(u16::MAX));
        page.nsfeat |= NSFEAT_OPTIMAL;
        page.preferred = [blocks; 5];
    }
}
