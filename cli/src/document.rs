//! Nodes and volumes as JSON documents: names and words as in the custom resources, sizes in bytes.

use basalt_model::{
    Claim, Cores, DiskHealth, Node, PoolObserved, Problem, ReclaimPolicy, Snapshot, Transport, Volume,
    VolumeState,
};
use serde_json::{Value, json};

use crate::cluster::{address, node_phase, phase, pool_health, snapshot_phase, snapshot_used, used};

/// A volume.
pub(crate) fn volume(volume: &Volume) -> Value {
    let (spec, identity) = (&volume.spec, &volume.identity);
    let (reason, message) = why(&volume.state);
    let paths = volume.observed.iter().flat_map(|observed| &observed.paths).map(|path| {
        json!({ "node": path.node, "address": path.address.ip(), "port": path.address.port(), "anaState": path.ana })
    });
    json!({
        "name": volume.name,
        "id": volume.id,
        "ownerUid": volume.uid,
        "phase": phase(&volume.state),
        "reason": reason,
        "message": message,
        "sizeBytes": volume.size.0,
        "footprintBytes": volume.footprint.0,
        "usedBytes": used(volume),
        "node": volume.placement.node,
        "pool": volume.placement.pool,
        "address": address(volume),
        "paths": paths.collect::<Vec<_>>(),
        "nqn": identity.nqn,
        "nsid": identity.nsid,
        "uuid": identity.uuid,
        "nguid": identity.nguid.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "serial": identity.serial,
        "allowedHosts": spec.allowed_hosts,
        "replicas": spec.replicas,
        "thin": spec.thin,
        "readOnly": spec.read_only,
        "source": spec.source,
        "reclaimPolicy": match spec.reclaim {
            ReclaimPolicy::Delete => "Delete",
            ReclaimPolicy::Retain => "Retain",
        },
        "topology": { "node": spec.selector.node, "pool": spec.selector.pool, "poolLabels": spec.selector.labels },
        "epoch": volume.epoch.to_string(),
        "generation": volume.generation,
        "revision": volume.modified,
    })
}

/// A snapshot.
pub(crate) fn snapshot(snapshot: &Snapshot) -> Value {
    let (reason, message) = why(&snapshot.state);
    json!({
        "name": snapshot.name,
        "id": snapshot.id,
        "ownerUid": snapshot.uid,
        "volume": snapshot.volume,
        "volumeId": snapshot.source,
        "phase": snapshot_phase(&snapshot.state),
        "reason": reason,
        "message": message,
        "sizeBytes": snapshot.size.0,
        "footprintBytes": snapshot.footprint.0,
        "usedBytes": snapshot_used(snapshot),
        "node": snapshot.placement.node,
        "pool": snapshot.placement.pool,
        "takenAtMs": snapshot.taken_at,
        "epoch": snapshot.epoch.to_string(),
        "generation": snapshot.generation,
        "revision": snapshot.modified,
    })
}

/// Why something is not in service, if that is so.
fn why(state: &VolumeState) -> (Option<&String>, Option<&String>) {
    match state {
        VolumeState::Unavailable { reason, message } | VolumeState::Faulted { reason, message } => {
            (Some(reason), Some(message))
        }
        VolumeState::Creating | VolumeState::Online | VolumeState::Released | VolumeState::Deleting => {
            (None, None)
        }
    }
}

/// A node, with the volumes and snapshots that are placed on it.
pub(crate) fn node(node: &Node, volumes: &[Volume], snapshots: &[Snapshot]) -> Value {
    let observed = &node.observed;
    let here = volumes.iter().filter(|volume| volume.placement.node == node.name);
    let kept = snapshots.iter().filter(|snapshot| snapshot.placement.node == node.name);
    let listeners = node.spec.listeners.iter().map(|listener| {
        let Transport::Tcp = listener.transport;
        json!({ "transport": "tcp", "bind": listener.bind, "advertise": listener.advertise })
    });
    let pools = node.spec.pools.iter().map(|(name, spec)| {
        let mut claim = Claim::default();
        let on_it = here.clone().filter(|volume| volume.placement.pool == *name);
        on_it.for_each(|volume| claim.add(volume.claim()));
        let kept = kept.clone().filter(|snapshot| snapshot.placement.pool == *name);
        kept.for_each(|snapshot| claim.add(snapshot.claim()));
        let seen = observed.pools.get(name);
        let disks = spec.disks.iter().map(|path| {
            let disk = seen.and_then(|pool| pool.disks.get(path));
            json!({
                "path": path,
                "health": disk.map_or("Unknown", |disk| disk_health(disk.health)),
                "capacityBytes": disk.map(|disk| disk.capacity.0),
                "problem": problem(disk.and_then(|disk| disk.problem.as_ref())),
            })
        });
        json!({
            "name": name,
            "id": seen.and_then(|pool| pool.id),
            "health": seen.map_or("Unknown", |pool| pool_health(pool.health)),
            "capacityBytes": seen.map(|pool| pool.capacity.0),
            "usedBytes": seen.map(|pool| pool.used.0),
            "committedBytes": claim.guaranteed.0,
            "provisionedBytes": claim.total().0,
            "overProvisioningPercent": spec.over_provisioning.0,
            "layout": spec.layout,
            "allocationUnitBytes": seen.map(|pool: &PoolObserved| pool.allocation_unit.0),
            "labels": spec.labels,
            "disks": disks.collect::<Vec<_>>(),
            "problem": problem(seen.and_then(|pool| pool.problem.as_ref())),
        })
    });
    json!({
        "name": node.name,
        "ownerUid": node.uid,
        "status": node_phase(node),
        "address": node.spec.address,
        "cores": match &node.spec.cores {
            Cores::Count(count) => json!(count),
            Cores::List(list) => json!(list),
        },
        "unschedulable": node.spec.unschedulable,
        "listeners": listeners.collect::<Vec<_>>(),
        "endpoints": observed.endpoints,
        "version": observed.version,
        "pools": pools.collect::<Vec<_>>(),
        "volumes": here.clone().count(),
        "snapshots": kept.clone().count(),
        "problems": observed.problems.iter().map(|one| problem(Some(one))).collect::<Vec<_>>(),
        "revision": node.modified,
    })
}

fn problem(problem: Option<&Problem>) -> Value {
    problem.map_or(Value::Null, |problem| json!({ "reason": problem.reason, "message": problem.message }))
}

fn disk_health(health: DiskHealth) -> &'static str {
    match health {
        DiskHealth::Online => "Online",
        DiskHealth::Suspected => "Suspected",
        DiskHealth::Faulted => "Faulted",
        DiskHealth::Offline => "Offline",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use basalt_model::{
        AllocationUnit, AllowedHosts, AnaState, Bytes, DiskObserved, DiskPath, Epoch, Lifecycle, Listener,
        Liveness, NodeName, NodeObserved, NodeSpec, OverProvisioning, PathObserved, Placement, PoolHealth,
        PoolLayout, PoolName, PoolSpec, Revision, Selector, Timestamp, VolumeHealth, VolumeId,
        VolumeIdentity, VolumeName, VolumeObserved, VolumeSpec,
    };

    use super::*;

    fn a_volume() -> Volume {
        let id = VolumeId::from_random(7);
        let node = NodeName::new("node-1").unwrap();
        let path = PathObserved {
            node: node.clone(),
            address: "192.0.2.7:4420".parse().unwrap(),
            ana: AnaState::Optimized,
        };
        Volume {
            id,
            name: VolumeName::new("data").unwrap(),
            uid: None,
            spec: VolumeSpec {
                size: Bytes(1 << 20),
                replicas: 1,
                thin: false,
                read_only: false,
                allowed_hosts: AllowedHosts(BTreeSet::new()),
                selector: Selector::default(),
                reclaim: ReclaimPolicy::Retain,
                source: None,
            },
            size: Bytes(1 << 20),
            footprint: Bytes(1 << 20),
            identity: VolumeIdentity::of(id),
            placement: Placement { node, pool: PoolName::new("fast").unwrap() },
            restored_from: None,
            epoch: Epoch::default(),
            generation: 1,
            lifecycle: Lifecycle::Active,
            state: VolumeState::Faulted { reason: "DiskGone".into(), message: "it is gone".into() },
            observed: Some(VolumeObserved {
                health: VolumeHealth::Online,
                size: Bytes(1 << 20),
                generation: 1,
                allocated: Some(Bytes(1 << 20)),
                shortfall: None,
                paths: vec![path],
            }),
            provisioned: true,
            created_at: Timestamp(0),
            created: Revision(1),
            modified: Revision(2),
        }
    }

    fn a_node() -> Node {
        let (pool, path) = (PoolName::new("fast").unwrap(), DiskPath::new("/dev/x").unwrap());
        let disk = DiskObserved { health: DiskHealth::Offline, capacity: Bytes(1 << 30), problem: None };
        let seen = PoolObserved {
            id: None,
            health: PoolHealth::ReadOnly,
            capacity: Bytes(1 << 30),
            used: Bytes(0),
            allocation_unit: Bytes(1 << 20),
            disks: BTreeMap::from([(path.clone(), disk)]),
            problem: Some(Problem { reason: "DiskGone".into(), message: "it is gone".into() }),
        };
        let address = "192.0.2.7:4420".parse().unwrap();
        Node {
            name: NodeName::new("node-1").unwrap(),
            uid: None,
            spec: NodeSpec {
                address: "192.0.2.7".parse().unwrap(),
                listeners: vec![Listener { transport: Transport::Tcp, bind: address, advertise: address }],
                pools: BTreeMap::from([(
                    pool.clone(),
                    PoolSpec {
                        disks: vec![path],
                        labels: BTreeMap::new(),
                        over_provisioning: OverProvisioning::default(),
                        layout: PoolLayout::default(),
                        allocation_unit: AllocationUnit::default(),
                    },
                )]),
                cores: Cores::List(vec![0, 2]),
                unschedulable: false,
            },
            binding: None,
            abandoned: false,
            abandoned_pools: BTreeSet::new(),
            forgotten: Vec::new(),
            pool_ids: BTreeMap::new(),
            observed: NodeObserved { pools: BTreeMap::from([(pool, seen)]), ..NodeObserved::default() },
            liveness: Liveness::Never,
            desired: Revision(1),
            created: Revision(1),
            modified: Revision(1),
        }
    }

    fn keys(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                found.push(key.clone());
                keys(value, found);
            }),
            Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_name_is_in_camel_case() {
        let mut found = Vec::new();
        keys(&volume(&a_volume()), &mut found);
        keys(&node(&a_node(), &[a_volume()], &[]), &mut found);
        let camel = |key: &String| {
            key.chars().all(|c| c.is_ascii_alphanumeric()) && !key.starts_with(char::is_uppercase)
        };
        assert!(found.len() > 40 && found.iter().all(camel), "{found:?}");
    }

    #[test]
    fn words_and_sizes_are_those_of_the_custom_resources() {
        let shown = volume(&a_volume());
        assert_eq!(shown["phase"], "Faulted");
        assert_eq!(shown["reason"], "DiskGone");
        assert_eq!(shown["address"], "192.0.2.7:4420");
        assert_eq!(shown["paths"][0]["anaState"], "optimized");
        assert_eq!(shown["nguid"].as_str().map(str::len), Some(32));
        assert_eq!(shown["reclaimPolicy"], "Retain");
        assert_eq!(shown["usedBytes"], 1 << 20);
        let shown = node(&a_node(), &[a_volume()], &[]);
        assert_eq!(shown["status"], "Pending");
        let live = Node { liveness: Liveness::Live { since: Timestamp(1) }, ..a_node() };
        assert_eq!(node(&live, &[], &[])["status"], "Degraded", "its pool is read-only");
        assert_eq!(shown["pools"][0]["health"], "ReadOnly");
        assert_eq!(shown["pools"][0]["committedBytes"], 1 << 20);
        assert_eq!(shown["pools"][0]["provisionedBytes"], 1 << 20);
        assert_eq!(shown["pools"][0]["disks"][0]["health"], "Offline");
        assert_eq!(shown["volumes"], 1);
    }
}
