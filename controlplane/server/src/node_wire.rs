//! Conversions between the node messages of `basalt-core` and the wire.

use std::collections::{BTreeMap, BTreeSet};

use basalt_client::wire::{self, WireError};
use basalt_core::{Hello, Report, SessionRefusal};
use basalt_model::{BootId, Content, Cores, DesiredNode, NodeObserved, Provision, Revision};
use basalt_proto::node::{self as proto, desired_state};

/// The first message of a daemon.
pub(crate) fn decode_hello(hello: &proto::NodeHello, revision: u64) -> Result<Hello, WireError> {
    Ok(Hello {
        cluster: wire::optional_uuid("hello.cluster_id", &hello.cluster_id)?,
        node: wire::name("hello.node_name", &hello.node_name)?,
        instance: wire::uuid("hello.instance_id", &hello.instance_id)?,
        boot: wire::uuid("hello.boot_id", &hello.boot_id)?,
        version_min: hello.version_min,
        version_max: hello.version_max,
        features: hello.features.iter().cloned().collect::<BTreeSet<_>>(),
        revision: Revision(revision),
    })
}

/// What is so on a node. `version` and `boot` are those of the session's hello.
pub(crate) fn decode_report(
    report: proto::NodeReport,
    version: &str,
    boot: BootId,
) -> Result<Report, WireError> {
    let mut volumes = BTreeMap::new();
    for volume in report.volumes {
        let observed = volume.observed.ok_or(WireError::Missing { field: "report.volumes.observed" })?;
        let id = wire::uuid("report.volumes.id", &volume.id)?;
        if volumes.insert(id, wire::volume::decode_observed(observed)?).is_some() {
            return Err(WireError::Duplicate { field: "report.volumes", key: volume.id });
        }
    }
    let mut deleted = BTreeMap::new();
    for volume in report.deleted {
        deleted.insert(wire::uuid("report.deleted.volume_id", &volume.volume_id)?, volume.generation);
    }
    Ok(Report {
        full: true,
        observed: Some(NodeObserved {
            version: version.to_owned(),
            boot: Some(boot),
            pools: wire::node::decode_pools(report.pools)?,
            endpoints: wire::node::decode_addresses("report.endpoints", &report.endpoints)?,
            problems: report.problems.into_iter().map(wire::decode_problem).collect(),
        }),
        volumes,
        deleted,
    })
}

/// What a node should hold.
pub(crate) fn encode_desired(desired: &DesiredNode) -> proto::DesiredState {
    let pool = |pool: &basalt_model::DesiredPool| proto::DesiredPool {
        name: pool.name.to_string(),
        disks: pool.disks.iter().map(ToString::to_string).collect(),
        id: pool.id.map(|id| id.to_string()).unwrap_or_default(),
        layout: wire::node::encode_layout(pool.layout).into(),
        allocation_unit_bytes: pool.allocation_unit.0,
    };
    let volume = |volume: &basalt_model::DesiredVolume| proto::DesiredVolume {
        id: volume.id.to_string(),
        name: volume.name.clone(),
        pool: volume.pool.to_string(),
        size_bytes: volume.size.0,
        thin: volume.thin,
        read_only: volume.read_only,
        snapshot_of: match volume.content {
            Content::SnapshotOf(id) => id.to_string(),
            Content::Blank | Content::RestoredFrom(_) => String::new(),
        },
        restored_from: match volume.content {
            Content::RestoredFrom(id) => id.to_string(),
            Content::Blank | Content::SnapshotOf(_) => String::new(),
        },
        generation: volume.generation,
        epoch: Some(wire::volume::encode_epoch(volume.epoch)),
        provision: match volume.provision {
            Provision::Create => proto::Provision::Create,
            Provision::Expect => proto::Provision::Expect,
        }
        .into(),
        identity: Some(wire::volume::encode_identity(&volume.identity)),
        allowed_hosts: wire::volume::encode_hosts(&volume.allowed_hosts),
        serve: volume.serve,
    };
    proto::DesiredState {
        listeners: desired.listeners.iter().map(wire::node::encode_listener).collect(),
        pools: desired.pools.iter().map(pool).collect(),
        volumes: desired.volumes.iter().map(volume).collect(),
        tombstones: desired.tombstones.iter().map(wire::volume::encode_tombstone).collect(),
        cluster_id: desired.cluster.to_string(),
        incarnation: desired.incarnation.0,
        node_name: desired.node.to_string(),
        cores: Some(match &desired.cores {
            Cores::Count(count) => desired_state::Cores::CoreCount(*count),
            Cores::List(cores) => {
                desired_state::Cores::CoreList(basalt_proto::api::CoreList { cores: cores.clone() })
            }
        }),
    }
}

/// Why a session ends; `leader_address` is where to go instead, if that is known.
pub(crate) fn encode_refusal(refusal: &SessionRefusal, leader_address: Option<String>) -> proto::Refusal {
    let reason = match refusal {
        SessionRefusal::NotLeader { .. } => proto::RefusalReason::NotLeader,
        SessionRefusal::WrongCluster { .. } => proto::RefusalReason::OtherCluster,
        SessionRefusal::NotBootstrapped => proto::RefusalReason::NotBootstrapped,
        SessionRefusal::UnknownNode { .. } => proto::RefusalReason::UnknownNode,
        SessionRefusal::OtherInstance { .. } | SessionRefusal::Duplicate { .. } => {
            proto::RefusalReason::DuplicateIdentity
        }
        SessionRefusal::Version { .. } => proto::RefusalReason::Version,
        SessionRefusal::Future { .. } => proto::RefusalReason::RevisionAhead,
        SessionRefusal::Protocol => proto::RefusalReason::Protocol,
        SessionRefusal::Silent => proto::RefusalReason::Silent,
        SessionRefusal::Overloaded => proto::RefusalReason::Overloaded,
    };
    proto::Refusal {
        reason: reason.into(),
        message: refusal.to_string(),
        leader_address: leader_address.unwrap_or_default(),
    }
}
