//! From what users write to what the control plane understands.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{AddrParseError, SocketAddr};
use std::num::TryFromIntError;

use basalt_crds::storage_node::{CoreSet, Pool, PoolLayout, StorageNodeSpec};
use basalt_crds::volume::{ReclaimPolicy, Transport, VolumeSpec};
use basalt_crds::{Size, SizeError, SnapshotSpec};
use basalt_model as model;
use basalt_model::{Cores, DiskPath, HostNqn, InvalidName, NodeName, PoolName, Selector, SnapshotName};

/// Most cores that a list may name.
const CORES_MAX: usize = 1_024;

/// Why a specification means nothing. The rules of the custom resource refuse nearly all of this at `kubectl apply`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// A size.
    #[error("spec.size: {0}")]
    Size(#[from] SizeError),
    /// A name, path or NQN.
    #[error("{field}: {source}")]
    Name {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        source: InvalidName,
    },
    /// An address.
    #[error("{field}: {value:?} is not an address")]
    Address {
        /// Which field.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What the parser says.
        source: AddrParseError,
    },
    /// A list of cores.
    #[error("spec.cores: {0:?} is not a list of at most {CORES_MAX} cores such as \"0,2-5\"")]
    Cores(String),
    /// A number of replicas.
    #[error("spec.replicas: {value} is not a number of copies")]
    Replicas {
        /// What stands there.
        value: i32,
        /// What the conversion says.
        source: TryFromIntError,
    },
    /// A number.
    #[error("{field}: {source}")]
    Number {
        /// Which field.
        field: &'static str,
        /// What the conversion says.
        source: TryFromIntError,
    },
    /// A snapshot id.
    #[error("spec.snapshotId: {value:?} is not a UUID")]
    SnapshotId {
        /// What stands there.
        value: String,
    },
    /// A volume id.
    #[error("spec.volumeId: {value:?} is not a UUID")]
    VolumeId {
        /// What stands there.
        value: String,
    },
}

/// What a `StorageNode` asks of the control plane.
///
/// # Errors
/// [`InvalidSpec`] names the field.
pub fn node_spec(spec: &StorageNodeSpec) -> Result<model::NodeSpec, InvalidSpec> {
    let listeners = spec.listeners.iter().map(|listener| {
        let Transport::Tcp = listener.transport;
        Ok(model::Listener {
            transport: model::Transport::Tcp,
            bind: socket("spec.listeners[].bind", &listener.bind)?,
            advertise: socket("spec.listeners[].advertise", listener.advertised())?,
        })
    });
    Ok(model::NodeSpec {
        address: spec.address.parse().map_err(|source| InvalidSpec::Address {
            field: "spec.address",
            value: spec.address.clone(),
            source,
        })?,
        listeners: listeners.collect::<Result<_, InvalidSpec>>()?,
        pools: spec.pools.iter().map(pool).collect::<Result<BTreeMap<_, _>, _>>()?,
        cores: cores(&spec.cores)?,
        unschedulable: spec.unschedulable,
    })
}

/// What a `Volume` asks of the control plane.
///
/// # Errors
/// [`InvalidSpec`] names the field.
pub fn volume_spec(spec: &VolumeSpec) -> Result<model::VolumeSpec, InvalidSpec> {
    let topology = spec.topology.clone().unwrap_or_default();
    let hosts = spec.allowed_hosts.iter().map(|host| named("spec.allowedHosts", HostNqn::new(host.as_str())));
    Ok(model::VolumeSpec {
        size: bytes(&spec.size)?,
        replicas: u8::try_from(spec.replicas)
            .map_err(|source| InvalidSpec::Replicas { value: spec.replicas, source })?,
        thin: spec.thin,
        read_only: spec.read_only,
        allowed_hosts: model::AllowedHosts(hosts.collect::<Result<BTreeSet<_>, _>>()?),
        selector: Selector {
            node: topology.node.map(|node| named("spec.topology.node", NodeName::new(node))).transpose()?,
            pool: topology.pool.map(|pool| named("spec.topology.pool", PoolName::new(pool))).transpose()?,
            labels: topology.pool_labels,
        },
        reclaim: match spec.reclaim_policy {
            ReclaimPolicy::Delete => model::ReclaimPolicy::Delete,
            ReclaimPolicy::Retain => model::ReclaimPolicy::Retain,
        },
        source: spec
            .source
            .as_ref()
            .map(|source| named("spec.source.snapshot", SnapshotName::new(source.snapshot.as_str())))
            .transpose()?,
    })
}

/// The volume that is to be adopted, if one is.
pub(crate) fn adopted_id(spec: &VolumeSpec) -> Result<Option<model::VolumeId>, InvalidSpec> {
    spec.volume_id
        .as_ref()
        .map(|text| text.parse().map_err(|_| InvalidSpec::VolumeId { value: text.clone() }))
        .transpose()
}

/// The snapshot that is to be adopted, if one is.
pub(crate) fn adopted_snapshot(spec: &SnapshotSpec) -> Result<Option<model::VolumeId>, InvalidSpec> {
    spec.snapshot_id
        .as_ref()
        .map(|text| text.parse().map_err(|_| InvalidSpec::SnapshotId { value: text.clone() }))
        .transpose()
}

fn bytes(size: &Size) -> Result<model::Bytes, InvalidSpec> {
    Ok(model::Bytes(size.bytes()?))
}

fn pool(pool: &Pool) -> Result<(PoolName, model::PoolSpec), InvalidSpec> {
    let disks = pool.disks.iter().map(|disk| named("spec.pools[].disks", DiskPath::new(disk.as_str())));
    let over_provisioning = pool.over_provisioning_percent.map(|percent| {
        let percent = u32::try_from(percent);
        percent
            .map(model::OverProvisioning)
            .map_err(|source| InvalidSpec::Number { field: "spec.pools[].overProvisioningPercent", source })
    });
    let spec = model::PoolSpec {
        disks: disks.collect::<Result<_, _>>()?,
        labels: pool.labels.clone(),
        over_provisioning: over_provisioning.transpose()?.unwrap_or_default(),
        layout: match pool.layout {
            PoolLayout::Concatenated => model::PoolLayout::Concatenated,
            PoolLayout::Striped => model::PoolLayout::Striped,
        },
        allocation_unit: model::AllocationUnit(pool.allocation_unit.bytes()),
    };
    Ok((named("spec.pools[].name", PoolName::new(pool.name.as_str()))?, spec))
}

fn socket(field: &'static str, value: &str) -> Result<SocketAddr, InvalidSpec> {
    value.parse().map_err(|source| InvalidSpec::Address { field, value: value.to_owned(), source })
}

pub(crate) fn named<T>(field: &'static str, name: Result<T, InvalidName>) -> Result<T, InvalidSpec> {
    name.map_err(|source| InvalidSpec::Name { field, source })
}

fn cores(cores: &CoreSet) -> Result<Cores, InvalidSpec> {
    match cores {
        CoreSet::Count(count) => Ok(Cores::Count(*count)),
        CoreSet::List(text) => {
            core_list(text).map(Cores::List).ok_or_else(|| InvalidSpec::Cores(text.clone()))
        }
    }
}

fn core_list(text: &str) -> Option<Vec<u32>> {
    let mut list = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (one, other): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // No rule of the apiserver can compare the two (its cost estimate takes a string to be as long as a request): a range
        // reads the same from either end.
        let (first, last) = (one.min(other), one.max(other));
        if usize::try_from(last - first).ok()? >= CORES_MAX {
            return None;
        }
        list.extend(first..=last);
    }
    (list.len() <= CORES_MAX).then(|| list.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores() {
        assert_eq!(core_list("0"), Some(vec![0]));
        assert_eq!(core_list("0,2-5"), Some(vec![0, 2, 3, 4, 5]));
        assert_eq!(core_list("2,1-3"), Some(vec![1, 2, 3]));
        assert_eq!(core_list("5-2"), Some(vec![2, 3, 4, 5]));
        for wrong in ["", "1,", "a", "0-4294967295", "0-1023,2000"] {
            assert_eq!(core_list(wrong), None, "{wrong:?}");
        }
    }
}
