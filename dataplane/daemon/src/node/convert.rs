//! Between the wire's messages and the agent's types.

use std::net::{AddrParseError, SocketAddr};

use basalt_agent::{
    AllowedHosts, Content, DesiredDisk, DesiredListener, DesiredNode, DesiredPool, DesiredVolume, Provision,
    Tombstone,
};
use basalt_agent::{
    DiskHealth, DiskReport, NodeReport, PoolHealth, PoolReport, Problem, VolumeHealth, VolumeReport,
};
use basalt_lvol::id::{ClusterId, Epoch, Generation, PoolId, Revision, VolumeId};
use basalt_lvol::layout::{DiskLayout, EXTENT_BYTES};
use basalt_proto::{api, node};
use uuid::Uuid;

use crate::cores::{CoreList, CoreListError, WantedCores};

/// Why a message of the control plane makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    /// Not a UUID.
    #[error("{field} is not a UUID: {source}")]
    Uuid {
        /// Which field.
        field: &'static str,
        /// Why not.
        source: uuid::Error,
    },
    /// Not `ip:port`.
    #[error("listener {address:?}: {source}")]
    Address {
        /// What came.
        address: String,
        /// Why not.
        source: AddrParseError,
    },
    /// Cores that cannot be.
    #[error("cores: {0}")]
    Cores(#[from] CoreListError),
    /// Something is missing or out of its range.
    #[error("{0} is missing or out of range")]
    Field(&'static str),
}

/// The agent's form of a desired state.
///
/// # Errors
/// [`ConvertError`] names the first field that makes no sense.
pub(crate) fn desired(state: &node::DesiredState, index: u64) -> Result<DesiredNode, ConvertError> {
    Ok(DesiredNode {
        cluster: ClusterId(uuid("cluster_id", &state.cluster_id)?),
        revision: Revision { incarnation: state.incarnation, index },
        listeners: state.listeners.iter().map(listener).collect::<Result<_, _>>()?,
        pools: state.pools.iter().map(pool).collect::<Result<_, _>>()?,
        volumes: state.volumes.iter().map(volume).collect::<Result<_, _>>()?,
        tombstones: state.tombstones.iter().map(tombstone).collect::<Result<_, _>>()?,
    })
}

/// The cores that are wanted, if any are named.
///
/// # Errors
/// [`ConvertError::Cores`].
pub(crate) fn cores(state: &node::DesiredState) -> Result<Option<WantedCores>, ConvertError> {
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Ok(match &state.cores {
        None => None,
        Some(node::desired_state::Cores::CoreCount(count)) => Some(WantedCores::count(size(*count))?),
        Some(node::desired_state::Cores::CoreList(list)) => {
            let cores: Vec<usize> = list.cores.iter().copied().map(size).collect();
            Some(WantedCores::List(CoreList::try_from(cores)?))
        }
    })
}

fn uuid(field: &'static str, text: &str) -> Result<Uuid, ConvertError> {
    text.parse().map_err(|source| ConvertError::Uuid { field, source })
}

fn address(text: &str) -> Result<SocketAddr, ConvertError> {
    text.parse().map_err(|source| ConvertError::Address { address: text.to_owned(), source })
}

fn listener(listener: &api::Listener) -> Result<DesiredListener, ConvertError> {
    if listener.transport() != api::Transport::Tcp {
        return Err(ConvertError::Field("listener.transport"));
    }
    Ok(DesiredListener { bind: address(&listener.bind)?, advertise: address(&listener.advertise)? })
}

fn pool(pool: &node::DesiredPool) -> Result<DesiredPool, ConvertError> {
    let id = match pool.id.as_str() {
        "" => None,
        id => Some(PoolId(uuid("pool.id", id)?)),
    };
    // Overwriting foreign data is never ordered through the control plane: a person wipes such a disk at the node.
    let disk = |path: &String| DesiredDisk { path: path.clone(), overwrite_foreign_data: false };
    let layout = match pool.layout() {
        api::PoolLayout::Unspecified | api::PoolLayout::Concatenated => DiskLayout::Concatenated,
        api::PoolLayout::Striped => DiskLayout::Striped,
    };
    let extent_bytes = match pool.allocation_unit_bytes {
        0 => EXTENT_BYTES,
        bytes => bytes,
    };
    let disks = pool.disks.iter().map(disk).collect();
    Ok(DesiredPool {
        name: pool.name.clone(),
        id,
        layout,
        extent_bytes,
        disks,
        former: Vec::new(),
        checkpoint: 0,
    })
}

fn volume(volume: &node::DesiredVolume) -> Result<DesiredVolume, ConvertError> {
    let identity = volume.identity.as_ref().ok_or(ConvertError::Field("volume.identity"))?;
    let epoch = volume.epoch.as_ref().ok_or(ConvertError::Field("volume.epoch"))?;
    let allowed_hosts = if volume.allowed_hosts.iter().any(|host| host == "*") {
        AllowedHosts::Any
    } else {
        AllowedHosts::Listed(volume.allowed_hosts.iter().cloned().collect())
    };
    Ok(DesiredVolume {
        id: VolumeId(uuid("volume.id", &volume.id)?),
        generation: Generation(volume.generation),
        epoch: Epoch { incarnation: epoch.incarnation, counter: epoch.counter },
        name: if volume.name.is_empty() { volume.id.clone() } else { volume.name.clone() },
        pool: volume.pool.clone(),
        size: volume.size_bytes,
        thin: volume.thin,
        read_only: volume.read_only,
        content: content(volume)?,
        provision: match volume.provision() {
            node::Provision::Create => Provision::Create,
            node::Provision::Expect => Provision::Expect,
            node::Provision::Unspecified => return Err(ConvertError::Field("volume.provision")),
        },
        nqn: identity.nqn.clone(),
        nsid: identity.nsid,
        uuid: *uuid("volume.identity.uuid", &identity.uuid)?.as_bytes(),
        nguid: identity
            .nguid
            .as_slice()
            .try_into()
            .map_err(|_| ConvertError::Field("volume.identity.nguid"))?,
        serial: identity.serial.clone(),
        serve: volume.serve,
        allowed_hosts,
    })
}

fn content(volume: &node::DesiredVolume) -> Result<Content, ConvertError> {
    let id = |field, text| uuid(field, text).map(VolumeId);
    match (volume.snapshot_of.as_str(), volume.restored_from.as_str()) {
        ("", "") => Ok(Content::Blank),
        (origin, "") => Ok(Content::SnapshotOf(id("volume.snapshot_of", origin)?)),
        ("", snapshot) => Ok(Content::RestoredFrom(id("volume.restored_from", snapshot)?)),
        _ => Err(ConvertError::Field("volume.restored_from")),
    }
}

fn tombstone(tombstone: &api::VolumeTombstone) -> Result<Tombstone, ConvertError> {
    Ok(Tombstone {
        cluster: ClusterId(uuid("tombstone.cluster_id", &tombstone.cluster_id)?),
        volume: VolumeId(uuid("tombstone.volume_id", &tombstone.volume_id)?),
        generation: Generation(tombstone.generation),
        pool: tombstone.pool.clone(),
    })
}

/// The wire's form of a report by the node of this name, with more problems of its own.
pub(crate) fn report(node_name: &str, report: &NodeReport, more: &[Problem]) -> node::NodeReport {
    node::NodeReport {
        observed_revision: report.revision.index,
        pools: report.pools.iter().map(pool_status).collect(),
        endpoints: report.endpoints.iter().map(SocketAddr::to_string).collect(),
        problems: report.problems.iter().chain(more).map(problem).collect(),
        volumes: report.volumes.iter().map(|volume| volume_report(node_name, volume)).collect(),
        deleted: report
            .deleted
            .iter()
            .map(|deleted| node::DeletedVolume {
                volume_id: deleted.id.to_string(),
                generation: deleted.generation.0,
            })
            .collect(),
    }
}

fn problem(problem: &Problem) -> api::Problem {
    api::Problem { reason: problem.reason.to_string(), message: problem.message.clone() }
}

fn pool_status(pool: &PoolReport) -> api::PoolStatus {
    let health = match pool.health {
        PoolHealth::Pending => api::PoolHealth::Pending,
        PoolHealth::Online => api::PoolHealth::Online,
        PoolHealth::ReadOnly => api::PoolHealth::ReadOnly,
        PoolHealth::Faulted => api::PoolHealth::Faulted,
    };
    api::PoolStatus {
        name: pool.name.clone(),
        id: pool.id.map(|id| id.to_string()).unwrap_or_default(),
        health: health.into(),
        capacity_bytes: pool.capacity,
        used_bytes: pool.used,
        expected_id: String::new(),
        allocation_unit_bytes: pool.allocation_unit,
        disks: pool.disks.iter().map(disk_status).collect(),
        problem: pool.problem.as_ref().map(problem),
    }
}

fn disk_status(disk: &DiskReport) -> api::DiskStatus {
    let health = match disk.health {
        DiskHealth::Online => api::DiskHealth::Online,
        DiskHealth::Suspected => api::DiskHealth::Suspected,
        DiskHealth::Faulted => api::DiskHealth::Faulted,
        DiskHealth::Offline => api::DiskHealth::Offline,
    };
    api::DiskStatus {
        path: disk.path.clone(),
        health: health.into(),
        capacity_bytes: disk.capacity,
        problem: disk.problem.as_ref().map(problem),
    }
}

fn volume_report(node_name: &str, volume: &VolumeReport) -> node::VolumeReport {
    let (health, cause) = match &volume.health {
        VolumeHealth::Creating => (api::VolumeHealth::Creating, None),
        VolumeHealth::Online => (api::VolumeHealth::Online, None),
        VolumeHealth::Unavailable(cause) => (api::VolumeHealth::Unavailable, Some(problem(cause))),
        VolumeHealth::Faulted(cause) => (api::VolumeHealth::Faulted, Some(problem(cause))),
    };
    let path = |address: &SocketAddr| api::VolumePath {
        node: node_name.to_owned(),
        address: address.to_string(),
        ana_state: api::AnaState::Optimized.into(),
        transport: api::Transport::Tcp.into(),
    };
    let observed = api::VolumeObserved {
        health: health.into(),
        problem: cause,
        size_bytes: volume.size,
        generation: volume.generation.0,
        allocated_bytes: Some(volume.allocated),
        shortfall: volume.shortfall.as_ref().map(problem),
        paths: volume.paths.iter().map(path).collect(),
    };
    node::VolumeReport { id: volume.id.to_string(), observed: Some(observed) }
}
