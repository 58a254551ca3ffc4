//! Between the control plane's types and the agent's, as the daemon does it by way of the wire.

use basalt_agent as agent;
use basalt_core::Report;
use basalt_lvol::id as lvol;
use basalt_lvol::layout::DiskLayout;
use basalt_model as model;
use basalt_model::{AnaState, BootId, Bytes, DiskPath, NodeName, PathObserved, PoolName};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The agent's form of a desired state.
pub(crate) fn desired(desired: &model::DesiredNode) -> agent::DesiredNode {
    agent::DesiredNode {
        cluster: lvol::ClusterId(desired.cluster.0),
        revision: lvol::Revision { incarnation: desired.incarnation.0, index: desired.revision.0 },
        listeners: desired
            .listeners
            .iter()
            .map(|listener| agent::DesiredListener { bind: listener.bind, advertise: listener.advertise })
            .collect(),
        pools: desired.pools.iter().map(pool).collect(),
        volumes: desired.volumes.iter().map(volume).collect(),
        tombstones: desired
            .tombstones
            .iter()
            .map(|tombstone| agent::Tombstone {
                cluster: lvol::ClusterId(tombstone.cluster.0),
                volume: lvol::VolumeId(tombstone.volume.0),
                generation: lvol::Generation(tombstone.generation),
                pool: tombstone.pool.to_string(),
            })
            .collect(),
    }
}

fn pool(pool: &model::DesiredPool) -> agent::DesiredPool {
    let disk = |path: &DiskPath| agent::DesiredDisk { path: path.to_string(), overwrite_foreign_data: false };
    agent::DesiredPool {
        name: pool.name.to_string(),
        id: pool.id.map(|id| lvol::PoolId(id.0)),
        layout: match pool.layout {
            model::PoolLayout::Concatenated => DiskLayout::Concatenated,
            model::PoolLayout::Striped => DiskLayout::Striped,
        },
        extent_bytes: pool.allocation_unit.0,
        disks: pool.disks.iter().map(disk).collect(),
        former: Vec::new(),
        checkpoint: 0,
    }
}

fn volume(volume: &model::DesiredVolume) -> agent::DesiredVolume {
    let hosts = &volume.allowed_hosts;
    agent::DesiredVolume {
        id: lvol::VolumeId(volume.id.0),
        generation: lvol::Generation(volume.generation),
        epoch: lvol::Epoch { incarnation: volume.epoch.incarnation.0, counter: volume.epoch.counter },
        name: volume.name.clone(),
        pool: volume.pool.to_string(),
        size: volume.size.0,
        thin: volume.thin,
        read_only: volume.read_only,
        content: match volume.content {
            model::Content::Blank => agent::Content::Blank,
            model::Content::SnapshotOf(id) => agent::Content::SnapshotOf(lvol::VolumeId(id.0)),
            model::Content::RestoredFrom(id) => agent::Content::RestoredFrom(lvol::VolumeId(id.0)),
        },
        provision: match volume.provision {
            model::Provision::Create => agent::Provision::Create,
            model::Provision::Expect => agent::Provision::Expect,
        },
        nqn: volume.identity.nqn.clone(),
        nsid: volume.identity.nsid,
        uuid: *volume.identity.uuid.as_bytes(),
        nguid: volume.identity.nguid,
        serial: volume.identity.serial.clone(),
        serve: volume.serve,
        allowed_hosts: match hosts.any() {
            true => agent::AllowedHosts::Any,
            false => agent::AllowedHosts::Listed(hosts.0.iter().map(ToString::to_string).collect()),
        },
    }
}

/// The control plane's form of a report.
pub(crate) fn report(node: &NodeName, boot: BootId, report: &agent::NodeReport) -> Report {
    Report {
        full: true,
        observed: Some(model::NodeObserved {
            version: "simulated".to_owned(),
            boot: Some(boot),
            pools: report.pools.iter().filter_map(pool_observed).collect(),
            endpoints: report.endpoints.clone(),
            problems: report.problems.iter().map(problem).collect(),
        }),
        volumes: report
            .volumes
            .iter()
            .map(|volume| (model::VolumeId(volume.id.0), volume_observed(node, volume)))
            .collect(),
        deleted: report
            .deleted
            .iter()
            .map(|deleted| (model::VolumeId(deleted.id.0), deleted.generation.0))
            .collect(),
    }
}

fn problem(problem: &agent::Problem) -> model::Problem {
    model::Problem { reason: problem.reason.to_string(), message: problem.message.clone() }
}

fn pool_observed(pool: &agent::PoolReport) -> Option<(PoolName, model::PoolObserved)> {
    let disks = pool.disks.iter().filter_map(|disk| {
        let observed = model::DiskObserved {
            health: match disk.health {
                agent::DiskHealth::Online => model::DiskHealth::Online,
                agent::DiskHealth::Suspected => model::DiskHealth::Suspected,
                agent::DiskHealth::Faulted => model::DiskHealth::Faulted,
                agent::DiskHealth::Offline => model::DiskHealth::Offline,
            },
            capacity: Bytes(disk.capacity),
            problem: disk.problem.as_ref().map(problem),
        };
        Some((DiskPath::new(disk.path.clone()).ok()?, observed))
    });
    let observed = model::PoolObserved {
        id: pool.id.map(|id| model::PoolId(id.0)),
        health: match pool.health {
            agent::PoolHealth::Pending => model::PoolHealth::Pending,
            agent::PoolHealth::Online => model::PoolHealth::Online,
            agent::PoolHealth::ReadOnly => model::PoolHealth::ReadOnly,
            agent::PoolHealth::Faulted => model::PoolHealth::Faulted,
        },
        capacity: Bytes(pool.capacity),
        used: Bytes(pool.used),
        allocation_unit: Bytes(pool.allocation_unit),
        disks: disks.collect::<BTreeMap<_, _>>(),
        problem: pool.problem.as_ref().map(problem),
    };
    Some((PoolName::new(pool.name.clone()).ok()?, observed))
}

fn volume_observed(node: &NodeName, volume: &agent::VolumeReport) -> model::VolumeObserved {
    let path = |address: &SocketAddr| PathObserved {
        node: node.clone(),
        address: *address,
        ana: AnaState::Optimized,
    };
    let cause = |cause: &agent::Problem| (cause.reason.to_string(), cause.message.clone());
    model::VolumeObserved {
        health: match &volume.health {
            agent::VolumeHealth::Creating => model::VolumeHealth::Creating,
            agent::VolumeHealth::Online => model::VolumeHealth::Online,
            agent::VolumeHealth::Unavailable(problem) => {
                let (reason, message) = cause(problem);
                model::VolumeHealth::Unavailable { reason, message }
            }
            agent::VolumeHealth::Faulted(problem) => {
                let (reason, message) = cause(problem);
                model::VolumeHealth::Faulted { reason, message }
            }
        },
        size: Bytes(volume.size),
        generation: volume.generation.0,
        allocated: Some(Bytes(volume.allocated)),
        shortfall: volume.shortfall.as_ref().map(problem),
        paths: volume.paths.iter().map(path).collect(),
    }
}
