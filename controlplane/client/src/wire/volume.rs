//! Volumes.

use basalt_model::{
    AllowedHosts, AnaState, Bytes, Epoch, Incarnation, Lifecycle, PathObserved, Placement, Problem,
    ReclaimPolicy, Revision, Selector, Timestamp, Tombstone, Volume, VolumeHealth, VolumeIdentity,
    VolumeObserved, VolumeSpec, VolumeState,
};
use basalt_proto::api;
use uuid::Uuid;

use super::{
    WireError, address, decode_problem, encode_problem, name, optional_name, optional_uuid, required, text,
    uuid,
};

/// A volume.
pub fn encode(volume: &Volume) -> api::Volume {
    let (phase, problem) = encode_state(&volume.state);
    let tombstone = tombstone_of(&volume.lifecycle);
    api::Volume {
        id: volume.id.to_string(),
        name: volume.name.to_string(),
        spec: Some(encode_spec(&volume.spec)),
        status: Some(api::VolumeStatus {
            phase: phase.into(),
            problem,
            identity: Some(encode_identity(&volume.identity)),
            size_bytes: volume.size.0,
            footprint_bytes: volume.footprint.0,
            placement: Some(encode_placement(&volume.placement)),
            epoch: Some(encode_epoch(volume.epoch)),
            observed: volume.observed.as_ref().map(encode_observed),
            provisioned: volume.provisioned,
            released: volume.lifecycle == Lifecycle::Released,
            tombstone,
            restored_from: text(volume.restored_from.as_ref()),
        }),
        owner_uid: text(volume.uid.as_ref()),
        generation: volume.generation,
        created_at_ms: volume.created_at.0,
        created_revision: volume.created.0,
        modified_revision: volume.modified.0,
    }
}

/// A volume.
pub fn decode(volume: api::Volume) -> Result<Volume, WireError> {
    let status = required("status", volume.status)?;
    let state = decode_state(status.phase, status.problem)?;
    let lifecycle = decode_lifecycle(status.tombstone.as_ref(), status.released)?;
    Ok(Volume {
        id: uuid("id", &volume.id)?,
        name: name("name", &volume.name)?,
        uid: optional_name("owner_uid", &volume.owner_uid)?,
        spec: decode_spec(required("spec", volume.spec)?)?,
        size: Bytes(status.size_bytes),
        footprint: Bytes(status.footprint_bytes),
        identity: decode_identity(required("status.identity", status.identity)?)?,
        placement: decode_placement(required("status.placement", status.placement)?)?,
        restored_from: optional_uuid("status.restored_from", &status.restored_from)?,
        epoch: decode_epoch(required("status.epoch", status.epoch)?),
        generation: volume.generation,
        lifecycle,
        state,
        observed: status.observed.map(decode_observed).transpose()?,
        provisioned: status.provisioned,
        created_at: Timestamp(volume.created_at_ms),
        created: Revision(volume.created_revision),
        modified: Revision(volume.modified_revision),
    })
}

/// What follows from all that is known about a volume or snapshot.
pub(super) fn encode_state(state: &VolumeState) -> (api::VolumePhase, Option<api::Problem>) {
    match state {
        VolumeState::Creating => (api::VolumePhase::Creating, None),
        VolumeState::Online => (api::VolumePhase::Online, None),
        VolumeState::Unavailable { reason, message } => {
            (api::VolumePhase::Unavailable, Some(problem(reason, message)))
        }
        VolumeState::Faulted { reason, message } => {
            (api::VolumePhase::Faulted, Some(problem(reason, message)))
        }
        VolumeState::Released => (api::VolumePhase::Released, None),
        VolumeState::Deleting => (api::VolumePhase::Deleting, None),
    }
}

pub(super) fn decode_state(phase: i32, problem: Option<api::Problem>) -> Result<VolumeState, WireError> {
    let problem = problem.map(decode_problem);
    let problem = problem.unwrap_or(Problem { reason: String::new(), message: String::new() });
    Ok(match api::VolumePhase::try_from(phase) {
        Ok(api::VolumePhase::Creating) => VolumeState::Creating,
        Ok(api::VolumePhase::Online) => VolumeState::Online,
        Ok(api::VolumePhase::Unavailable) => {
            VolumeState::Unavailable { reason: problem.reason, message: problem.message }
        }
        Ok(api::VolumePhase::Faulted) => {
            VolumeState::Faulted { reason: problem.reason, message: problem.message }
        }
        Ok(api::VolumePhase::Released) => VolumeState::Released,
        Ok(api::VolumePhase::Deleting) => VolumeState::Deleting,
        Ok(api::VolumePhase::Unspecified | api::VolumePhase::Degraded) | Err(_) => {
            return Err(WireError::Unknown { field: "status.phase", value: phase });
        }
    })
}

pub(super) fn tombstone_of(lifecycle: &Lifecycle) -> Option<api::VolumeTombstone> {
    match lifecycle {
        Lifecycle::Deleting(tombstone) => Some(encode_tombstone(tombstone)),
        Lifecycle::Active | Lifecycle::Released => None,
    }
}

pub(super) fn decode_lifecycle(
    tombstone: Option<&api::VolumeTombstone>,
    released: bool,
) -> Result<Lifecycle, WireError> {
    Ok(match tombstone {
        Some(tombstone) => Lifecycle::Deleting(decode_tombstone(tombstone)?),
        None if released => Lifecycle::Released,
        None => Lifecycle::Active,
    })
}

pub(super) fn encode_placement(placement: &Placement) -> api::VolumePlacement {
    api::VolumePlacement { node: placement.node.to_string(), pool: placement.pool.to_string() }
}

pub(super) fn decode_placement(placement: api::VolumePlacement) -> Result<Placement, WireError> {
    Ok(Placement {
        node: name("status.placement.node", &placement.node)?,
        pool: name("status.placement.pool", &placement.pool)?,
    })
}

/// What is asked of a volume.
pub fn encode_spec(spec: &VolumeSpec) -> api::VolumeSpec {
    api::VolumeSpec {
        size_bytes: spec.size.0,
        replicas: spec.replicas.into(),
        thin: spec.thin,
        allowed_hosts: encode_hosts(&spec.allowed_hosts),
        selector: Some(api::VolumeSelector {
            node: text(spec.selector.node.as_ref()),
            pool: text(spec.selector.pool.as_ref()),
            labels: spec.selector.labels.clone(),
        }),
        reclaim_policy: encode_reclaim(spec.reclaim).into(),
        source_snapshot: text(spec.source.as_ref()),
        read_only: spec.read_only,
    }
}

/// What is asked of a volume.
pub fn decode_spec(spec: api::VolumeSpec) -> Result<VolumeSpec, WireError> {
    let reclaim = decode_reclaim("spec.reclaim_policy", spec.reclaim_policy)?;
    let selector = spec.selector.unwrap_or_default();
    Ok(VolumeSpec {
        size: Bytes(spec.size_bytes),
        replicas: spec.replicas.try_into().map_err(|_| WireError::Range { field: "spec.replicas" })?,
        thin: spec.thin,
        read_only: spec.read_only,
        allowed_hosts: decode_hosts("spec.allowed_hosts", &spec.allowed_hosts)?,
        selector: Selector {
            node: optional_name("spec.selector.node", &selector.node)?,
            pool: optional_name("spec.selector.pool", &selector.pool)?,
            labels: selector.labels,
        },
        reclaim,
        source: optional_name("spec.source_snapshot", &spec.source_snapshot)?,
    })
}

/// The hosts that may connect.
pub fn encode_hosts(hosts: &AllowedHosts) -> Vec<String> {
    hosts.0.iter().map(ToString::to_string).collect()
}

/// The hosts that may connect.
pub fn decode_hosts(field: &'static str, hosts: &[String]) -> Result<AllowedHosts, WireError> {
    hosts.iter().map(|host| name(field, host)).collect::<Result<_, _>>().map(AllowedHosts)
}

/// What happens to the data.
pub fn encode_reclaim(reclaim: ReclaimPolicy) -> api::ReclaimPolicy {
    match reclaim {
        ReclaimPolicy::Delete => api::ReclaimPolicy::Delete,
        ReclaimPolicy::Retain => api::ReclaimPolicy::Retain,
    }
}

/// What happens to the data.
pub fn decode_reclaim(field: &'static str, value: i32) -> Result<ReclaimPolicy, WireError> {
    match api::ReclaimPolicy::try_from(value) {
        Ok(api::ReclaimPolicy::Delete) => Ok(ReclaimPolicy::Delete),
        Ok(api::ReclaimPolicy::Retain) => Ok(ReclaimPolicy::Retain),
        Ok(api::ReclaimPolicy::Unspecified) | Err(_) => Err(WireError::Unknown { field, value }),
    }
}

/// What hosts know a volume by.
pub fn encode_identity(identity: &VolumeIdentity) -> api::VolumeIdentity {
    api::VolumeIdentity {
        nqn: identity.nqn.clone(),
        nsid: identity.nsid,
        uuid: identity.uuid.to_string(),
        nguid: identity.nguid.to_vec(),
        serial: identity.serial.clone(),
    }
}

pub(super) fn decode_identity(identity: api::VolumeIdentity) -> Result<VolumeIdentity, WireError> {
    Ok(VolumeIdentity {
        nqn: identity.nqn,
        nsid: identity.nsid,
        uuid: uuid::<Uuid>("status.identity.uuid", &identity.uuid)?,
        nguid: identity.nguid.try_into().map_err(|_| WireError::Range { field: "status.identity.nguid" })?,
        serial: identity.serial,
    })
}

/// An epoch.
pub fn encode_epoch(epoch: Epoch) -> api::Epoch {
    api::Epoch { incarnation: epoch.incarnation.0, counter: epoch.counter }
}

pub(super) fn decode_epoch(epoch: api::Epoch) -> Epoch {
    Epoch { incarnation: Incarnation(epoch.incarnation), counter: epoch.counter }
}

/// The order to delete one volume.
pub fn encode_tombstone(tombstone: &Tombstone) -> api::VolumeTombstone {
    api::VolumeTombstone {
        cluster_id: tombstone.cluster.to_string(),
        volume_id: tombstone.volume.to_string(),
        generation: tombstone.generation,
        node: tombstone.node.to_string(),
        pool: tombstone.pool.to_string(),
    }
}

fn decode_tombstone(tombstone: &api::VolumeTombstone) -> Result<Tombstone, WireError> {
    Ok(Tombstone {
        cluster: uuid("tombstone.cluster_id", &tombstone.cluster_id)?,
        volume: uuid("tombstone.volume_id", &tombstone.volume_id)?,
        generation: tombstone.generation,
        node: name("tombstone.node", &tombstone.node)?,
        pool: name("tombstone.pool", &tombstone.pool)?,
    })
}

/// What a node reported about a volume.
pub fn encode_observed(observed: &VolumeObserved) -> api::VolumeObserved {
    let (health, problem) = match &observed.health {
        VolumeHealth::Creating => (api::VolumeHealth::Creating, None),
        VolumeHealth::Online => (api::VolumeHealth::Online, None),
        VolumeHealth::Unavailable { reason, message } => {
            (api::VolumeHealth::Unavailable, Some(problem(reason, message)))
        }
        VolumeHealth::Faulted { reason, message } => {
            (api::VolumeHealth::Faulted, Some(problem(reason, message)))
        }
    };
    let path = |path: &PathObserved| api::VolumePath {
        node: path.node.to_string(),
        address: path.address.to_string(),
        ana_state: match path.ana {
            AnaState::Optimized => api::AnaState::Optimized,
            AnaState::NonOptimized => api::AnaState::NonOptimized,
            AnaState::Inaccessible => api::AnaState::Inaccessible,
        }
        .into(),
        transport: api::Transport::Tcp.into(),
    };
    api::VolumeObserved {
        health: health.into(),
        problem,
        size_bytes: observed.size.0,
        generation: observed.generation,
        allocated_bytes: observed.allocated.map(|allocated| allocated.0),
        shortfall: observed.shortfall.as_ref().map(encode_problem),
        paths: observed.paths.iter().map(path).collect(),
    }
}

/// What a node reports about a volume.
pub fn decode_observed(observed: api::VolumeObserved) -> Result<VolumeObserved, WireError> {
    let unknown = WireError::Unknown { field: "observed.health", value: observed.health };
    let problem = |problem: Option<api::Problem>| problem.map(decode_problem).ok_or("observed.problem");
    let missing = |field| WireError::Missing { field };
    let health = match api::VolumeHealth::try_from(observed.health) {
        Ok(api::VolumeHealth::Creating) => VolumeHealth::Creating,
        Ok(api::VolumeHealth::Online) => VolumeHealth::Online,
        Ok(api::VolumeHealth::Unavailable) => {
            let Problem { reason, message } = problem(observed.problem).map_err(missing)?;
            VolumeHealth::Unavailable { reason, message }
        }
        Ok(api::VolumeHealth::Faulted) => {
            let Problem { reason, message } = problem(observed.problem).map_err(missing)?;
            VolumeHealth::Faulted { reason, message }
        }
        Ok(api::VolumeHealth::Unspecified) | Err(_) => return Err(unknown),
    };
    Ok(VolumeObserved {
        health,
        size: Bytes(observed.size_bytes),
        generation: observed.generation,
        allocated: observed.allocated_bytes.map(Bytes),
        shortfall: observed.shortfall.map(decode_problem),
        paths: observed.paths.iter().map(decode_path).collect::<Result<_, _>>()?,
    })
}

fn decode_path(path: &api::VolumePath) -> Result<PathObserved, WireError> {
    Ok(PathObserved {
        node: name("observed.paths.node", &path.node)?,
        address: address("observed.paths.address", &path.address)?,
        ana: match path.ana_state() {
            api::AnaState::Optimized => AnaState::Optimized,
            api::AnaState::NonOptimized => AnaState::NonOptimized,
            api::AnaState::Inaccessible => AnaState::Inaccessible,
            api::AnaState::Unspecified => {
                return Err(WireError::Unknown { field: "observed.paths.ana_state", value: path.ana_state });
            }
        },
    })
}

fn problem(reason: &str, message: &str) -> api::Problem {
    api::Problem { reason: reason.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use basalt_model::{ClusterId, VolumeId};

    use super::*;

    fn volume(lifecycle: Lifecycle, state: VolumeState) -> Volume {
        let id = VolumeId::from_random(1);
        Volume {
            id,
            name: "v1".parse().unwrap(),
            uid: None,
            spec: VolumeSpec {
                size: Bytes(10),
                replicas: 1,
                thin: true,
                read_only: true,
                allowed_hosts: AllowedHosts(BTreeSet::from(["*".parse().unwrap()])),
                selector: Selector {
                    node: Some("n1".parse().unwrap()),
                    pool: None,
                    labels: BTreeMap::from([("k".into(), "v".into())]),
                },
                reclaim: ReclaimPolicy::Retain,
                source: Some("s1".parse().unwrap()),
            },
            size: Bytes(1 << 20),
            footprint: Bytes(4 << 20),
            identity: VolumeIdentity::of(id),
            placement: Placement { node: "n1".parse().unwrap(), pool: "p1".parse().unwrap() },
            restored_from: Some(VolumeId::from_random(8)),
            epoch: Epoch { incarnation: Incarnation(2), counter: 3 },
            generation: 4,
            lifecycle,
            state,
            observed: Some(VolumeObserved {
                health: VolumeHealth::Unavailable { reason: "R".into(), message: "m".into() },
                size: Bytes(1 << 20),
                generation: 3,
                allocated: Some(Bytes(9)),
                shortfall: Some(Problem { reason: "PoolFull".into(), message: "m".into() }),
                paths: vec![PathObserved {
                    node: "n1".parse().unwrap(),
                    address: "10.0.0.1:4420".parse().unwrap(),
                    ana: AnaState::Inaccessible,
                }],
            }),
            provisioned: true,
            created_at: Timestamp(5),
            created: Revision(6),
            modified: Revision(7),
        }
    }

    #[test]
    fn volumes_round_trip_in_every_state() {
        let tombstone = Tombstone {
            cluster: ClusterId::from_random(9),
            volume: VolumeId::from_random(1),
            generation: 4,
            node: "n1".parse().unwrap(),
            pool: "p1".parse().unwrap(),
        };
        let (reason, message) = ("R".to_owned(), "m".to_owned());
        for (lifecycle, state) in [
            (Lifecycle::Active, VolumeState::Creating),
            (Lifecycle::Active, VolumeState::Online),
            (
                Lifecycle::Active,
                VolumeState::Unavailable { reason: reason.clone(), message: message.clone() },
            ),
            (Lifecycle::Active, VolumeState::Faulted { reason, message }),
            (Lifecycle::Released, VolumeState::Released),
            (Lifecycle::Deleting(tombstone), VolumeState::Deleting),
        ] {
            let volume = volume(lifecycle, state);
            assert_eq!(decode(encode(&volume)).unwrap(), volume);
        }
    }

    #[test]
    fn foreign_input_is_refused_by_field() {
        let refused = |change: fn(&mut api::VolumeSpec), expected: &str| {
            let mut spec = encode_spec(&volume(Lifecycle::Active, VolumeState::Online).spec);
            change(&mut spec);
            assert_eq!(decode_spec(spec).unwrap_err().field(), expected);
        };
        refused(|spec| spec.replicas = 256, "spec.replicas");
        refused(|spec| spec.reclaim_policy = 0, "spec.reclaim_policy");
        refused(|spec| spec.allowed_hosts.push("a b".into()), "spec.allowed_hosts");
        refused(|spec| spec.selector.as_mut().unwrap().node = "N".into(), "spec.selector.node");
    }
}
