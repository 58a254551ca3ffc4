//! Nodes, pools and disks.

use std::collections::{BTreeMap, btree_map::Entry};

use basalt_model::{
    AllocationUnit, Bytes, Cores, DiskHealth, DiskObserved, DiskPath, Listener, Liveness, Node, NodeObserved,
    NodeSpec, OverProvisioning, PoolHealth, PoolId, PoolLayout, PoolName, PoolObserved, PoolSpec, Revision,
    Timestamp, Transport,
};
use basalt_proto::api::{self, node_spec};

use super::{
    WireError, address, decode_problem, encode_problem, name, optional_name, optional_uuid, required, text,
};

/// A node.
pub fn encode(node: &Node) -> api::Node {
    let (liveness, since) = match node.liveness {
        Liveness::Never => (api::NodeLiveness::Never, Timestamp(0)),
        Liveness::Live { since } => (api::NodeLiveness::Live, since),
        Liveness::Lost { since } => (api::NodeLiveness::Lost, since),
    };
    let mut pools = encode_pools(&node.observed);
    for pool in &mut pools {
        // What was encoded from a name parses again.
        if let Ok(key) = pool.name.parse::<PoolName>() {
            pool.expected_id = text(node.pool_ids.get(&key));
        }
    }
    api::Node {
        name: node.name.to_string(),
        spec: Some(encode_spec(&node.spec)),
        status: Some(api::NodeStatus {
            liveness: liveness.into(),
            liveness_since_ms: since.0,
            version: node.observed.version.clone(),
            instance_id: text(node.binding.as_ref()),
            boot_id: text(node.observed.boot.as_ref()),
            pools,
            endpoints: node.observed.endpoints.iter().map(ToString::to_string).collect(),
            problems: node.observed.problems.iter().map(encode_problem).collect(),
            desired_revision: node.desired.0,
            abandoned: node.abandoned,
            abandoned_pools: node.abandoned_pools.iter().map(ToString::to_string).collect(),
        }),
        owner_uid: text(node.uid.as_ref()),
        created_revision: node.created.0,
        modified_revision: node.modified.0,
    }
}

/// A node.
pub fn decode(node: api::Node) -> Result<Node, WireError> {
    let status = required("status", node.status)?;
    let since = Timestamp(status.liveness_since_ms);
    let liveness = match status.liveness() {
        api::NodeLiveness::Never => Liveness::Never,
        api::NodeLiveness::Live => Liveness::Live { since },
        api::NodeLiveness::Lost => Liveness::Lost { since },
        api::NodeLiveness::Unspecified => {
            return Err(WireError::Unknown { field: "status.liveness", value: status.liveness });
        }
    };
    let mut pool_ids = BTreeMap::new();
    for pool in &status.pools {
        if let Some(id) = optional_uuid::<PoolId>("status.pools.expected_id", &pool.expected_id)? {
            pool_ids.insert(name("status.pools.name", &pool.name)?, id);
        }
    }
    Ok(Node {
        name: name("name", &node.name)?,
        uid: optional_name("owner_uid", &node.owner_uid)?,
        spec: decode_spec(required("spec", node.spec)?)?,
        binding: optional_uuid("status.instance_id", &status.instance_id)?,
        abandoned: status.abandoned,
        abandoned_pools: status
            .abandoned_pools
            .iter()
            .map(|pool| name("status.abandoned_pools", pool))
            .collect::<Result<_, _>>()?,
        // The control plane keeps these to itself.
        forgotten: Vec::new(),
        pool_ids,
        observed: NodeObserved {
            version: status.version,
            boot: optional_uuid("status.boot_id", &status.boot_id)?,
            pools: decode_pools(status.pools)?,
            endpoints: decode_addresses("status.endpoints", &status.endpoints)?,
            problems: status.problems.into_iter().map(decode_problem).collect(),
        },
        liveness,
        desired: Revision(status.desired_revision),
        created: Revision(node.created_revision),
        modified: Revision(node.modified_revision),
    })
}

/// A list of `ip:port`.
pub fn decode_addresses(
    field: &'static str,
    addresses: &[String],
) -> Result<Vec<std::net::SocketAddr>, WireError> {
    addresses.iter().map(|text| address(field, text)).collect()
}

/// What is asked of a node.
pub fn encode_spec(spec: &NodeSpec) -> api::NodeSpec {
    let pools = spec.pools.iter().map(|(name, pool)| api::PoolSpec {
        name: name.to_string(),
        disks: pool.disks.iter().map(ToString::to_string).collect(),
        labels: pool.labels.clone(),
        over_provisioning_percent: pool.over_provisioning.0,
        layout: encode_layout(pool.layout).into(),
        allocation_unit_bytes: pool.allocation_unit.0,
    });
    api::NodeSpec {
        address: spec.address.to_string(),
        listeners: spec.listeners.iter().map(encode_listener).collect(),
        pools: pools.collect(),
        unschedulable: spec.unschedulable,
        cores: Some(match &spec.cores {
            Cores::Count(count) => node_spec::Cores::CoreCount(*count),
            Cores::List(cores) => node_spec::Cores::CoreList(api::CoreList { cores: cores.clone() }),
        }),
    }
}

/// From which of its disks a pool takes space.
pub fn encode_layout(layout: PoolLayout) -> api::PoolLayout {
    match layout {
        PoolLayout::Concatenated => api::PoolLayout::Concatenated,
        PoolLayout::Striped => api::PoolLayout::Striped,
    }
}

/// The same; unspecified is what a client sends that does not know the field.
fn decode_layout(layout: api::PoolLayout) -> PoolLayout {
    match layout {
        api::PoolLayout::Unspecified | api::PoolLayout::Concatenated => PoolLayout::Concatenated,
        api::PoolLayout::Striped => PoolLayout::Striped,
    }
}

/// What is asked of a node.
pub fn decode_spec(spec: api::NodeSpec) -> Result<NodeSpec, WireError> {
    let mut pools = BTreeMap::new();
    for pool in spec.pools {
        let disks = pool.disks.iter().map(|disk| name("spec.pools.disks", disk)).collect::<Result<_, _>>()?;
        // 0 is what a client sends that does not know the field.
        let over_provisioning = match pool.over_provisioning_percent {
            0 => OverProvisioning::default(),
            percent => OverProvisioning(percent),
        };
        let allocation_unit = match pool.allocation_unit_bytes {
            0 => AllocationUnit::default(),
            bytes => AllocationUnit(bytes),
        };
        let layout = decode_layout(pool.layout());
        let value = PoolSpec { disks, labels: pool.labels, over_provisioning, layout, allocation_unit };
        insert_once(&mut pools, "spec.pools", name("spec.pools.name", &pool.name)?, value)?;
    }
    Ok(NodeSpec {
        address: spec
            .address
            .parse()
            .map_err(|source| WireError::Address { field: "spec.address", source })?,
        listeners: spec.listeners.iter().map(decode_listener).collect::<Result<_, _>>()?,
        pools,
        cores: match required("spec.cores", spec.cores)? {
            node_spec::Cores::CoreCount(count) => Cores::Count(count),
            node_spec::Cores::CoreList(list) => Cores::List(list.cores),
        },
        unschedulable: spec.unschedulable,
    })
}

/// A listener.
pub fn encode_listener(listener: &Listener) -> api::Listener {
    api::Listener {
        transport: match listener.transport {
            Transport::Tcp => api::Transport::Tcp.into(),
        },
        bind: listener.bind.to_string(),
        advertise: listener.advertise.to_string(),
    }
}

fn decode_listener(listener: &api::Listener) -> Result<Listener, WireError> {
    Ok(Listener {
        transport: match listener.transport() {
            api::Transport::Tcp => Transport::Tcp,
            api::Transport::Unspecified => {
                return Err(WireError::Unknown {
                    field: "spec.listeners.transport",
                    value: listener.transport,
                });
            }
        },
        bind: address("spec.listeners.bind", &listener.bind)?,
        advertise: address("spec.listeners.advertise", &listener.advertise)?,
    })
}

/// The pools that a node reported, without what the control plane adds.
pub fn encode_pools(observed: &NodeObserved) -> Vec<api::PoolStatus> {
    let encode = |(name, pool): (&PoolName, &PoolObserved)| api::PoolStatus {
        name: name.to_string(),
        id: text(pool.id.as_ref()),
        health: match pool.health {
            PoolHealth::Pending => api::PoolHealth::Pending,
            PoolHealth::Online => api::PoolHealth::Online,
            PoolHealth::ReadOnly => api::PoolHealth::ReadOnly,
            PoolHealth::Faulted => api::PoolHealth::Faulted,
        }
        .into(),
        capacity_bytes: pool.capacity.0,
        used_bytes: pool.used.0,
        allocation_unit_bytes: pool.allocation_unit.0,
        disks: pool.disks.iter().map(|(path, disk)| encode_disk(path, disk)).collect(),
        problem: pool.problem.as_ref().map(encode_problem),
        expected_id: String::new(),
    };
    observed.pools.iter().map(encode).collect()
}

fn encode_disk(path: &DiskPath, disk: &DiskObserved) -> api::DiskStatus {
    api::DiskStatus {
        path: path.to_string(),
        health: match disk.health {
            DiskHealth::Online => api::DiskHealth::Online,
            DiskHealth::Suspected => api::DiskHealth::Suspected,
            DiskHealth::Faulted => api::DiskHealth::Faulted,
            DiskHealth::Offline => api::DiskHealth::Offline,
        }
        .into(),
        capacity_bytes: disk.capacity.0,
        problem: disk.problem.as_ref().map(encode_problem),
    }
}

/// The pools that a node reports.
pub fn decode_pools(pools: Vec<api::PoolStatus>) -> Result<BTreeMap<PoolName, PoolObserved>, WireError> {
    let mut decoded = BTreeMap::new();
    for pool in pools {
        let health = match pool.health() {
            api::PoolHealth::Pending => PoolHealth::Pending,
            api::PoolHealth::Online => PoolHealth::Online,
            api::PoolHealth::ReadOnly => PoolHealth::ReadOnly,
            api::PoolHealth::Faulted => PoolHealth::Faulted,
            api::PoolHealth::Unspecified => {
                return Err(WireError::Unknown { field: "pools.health", value: pool.health });
            }
        };
        let mut disks = BTreeMap::new();
        for disk in pool.disks {
            let (path, observed) = decode_disk(disk)?;
            insert_once(&mut disks, "pools.disks", path, observed)?;
        }
        let id = optional_uuid("pools.id", &pool.id)?;
        let observed = PoolObserved {
            id,
            health,
            capacity: Bytes(pool.capacity_bytes),
            used: Bytes(pool.used_bytes),
            allocation_unit: Bytes(pool.allocation_unit_bytes),
            disks,
            problem: pool.problem.map(decode_problem),
        };
        insert_once(&mut decoded, "pools", name("pools.name", &pool.name)?, observed)?;
    }
    Ok(decoded)
}

fn decode_disk(disk: api::DiskStatus) -> Result<(DiskPath, DiskObserved), WireError> {
    let health = match disk.health() {
        api::DiskHealth::Online => DiskHealth::Online,
        api::DiskHealth::Suspected => DiskHealth::Suspected,
        api::DiskHealth::Faulted => DiskHealth::Faulted,
        api::DiskHealth::Offline => DiskHealth::Offline,
        api::DiskHealth::Unspecified => {
            return Err(WireError::Unknown { field: "pools.disks.health", value: disk.health });
        }
    };
    let observed = DiskObserved {
        health,
        capacity: Bytes(disk.capacity_bytes),
        problem: disk.problem.map(decode_problem),
    };
    Ok((name("pools.disks.path", &disk.path)?, observed))
}

fn insert_once<K: Ord + ToString, V>(
    map: &mut BTreeMap<K, V>,
    field: &'static str,
    key: K,
    value: V,
) -> Result<(), WireError> {
    match map.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(value);
            Ok(())
        }
        Entry::Occupied(entry) => Err(WireError::Duplicate { field, key: entry.key().to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use basalt_model::{BootId, InstanceId, Problem};

    use super::*;

    fn node() -> Node {
        let problem = Problem { reason: "DiskMissing".into(), message: "not there".into() };
        let disk =
            DiskObserved { health: DiskHealth::Offline, capacity: Bytes(5), problem: Some(problem.clone()) };
        let pool = PoolObserved {
            id: Some(PoolId::from_random(3)),
            health: PoolHealth::ReadOnly,
            capacity: Bytes(100),
            used: Bytes(10),
            allocation_unit: Bytes(4),
            disks: BTreeMap::from([("/dev/a".parse().unwrap(), disk)]),
            problem: Some(problem.clone()),
        };
        let pool_name = "p1".parse::<PoolName>().unwrap();
        Node {
            name: "n1".parse().unwrap(),
            uid: Some("u".parse().unwrap()),
            spec: NodeSpec {
                address: [127, 0, 0, 1].into(),
                listeners: vec![Listener {
                    transport: Transport::Tcp,
                    bind: "0.0.0.0:4420".parse().unwrap(),
                    advertise: "[::1]:4420".parse().unwrap(),
                }],
                pools: BTreeMap::from([(
                    pool_name.clone(),
                    PoolSpec {
                        disks: vec!["/dev/a".parse().unwrap()],
                        labels: BTreeMap::from([("k".into(), "v".into())]),
                        over_provisioning: OverProvisioning(150),
                        layout: PoolLayout::Striped,
                        allocation_unit: AllocationUnit(64 << 10),
                    },
                )]),
                cores: Cores::List(vec![1, 3]),
                unschedulable: true,
            },
            binding: Some(InstanceId::from_random(1)),
            abandoned: true,
            abandoned_pools: [pool_name.clone()].into(),
            forgotten: Vec::new(),
            pool_ids: BTreeMap::from([(pool_name.clone(), PoolId::from_random(4))]),
            observed: NodeObserved {
                version: "1".into(),
                boot: Some(BootId::from_random(2)),
                pools: BTreeMap::from([(pool_name, pool)]),
                endpoints: vec!["10.0.0.1:4420".parse().unwrap()],
                problems: vec![problem],
            },
            liveness: Liveness::Lost { since: Timestamp(9) },
            desired: Revision(5),
            created: Revision(4),
            modified: Revision(6),
        }
    }

    #[test]
    fn nodes_round_trip() {
        assert_eq!(decode(encode(&node())).unwrap(), node());
    }

    #[test]
    fn foreign_input_is_refused_by_field() {
        let refused = |change: fn(&mut api::NodeSpec), expected: &str| {
            let mut spec = encode_spec(&node().spec);
            change(&mut spec);
            assert_eq!(decode_spec(spec).unwrap_err().field(), expected);
        };
        refused(|spec| spec.address = "localhost".into(), "spec.address");
        refused(|spec| spec.cores = None, "spec.cores");
        refused(|spec| spec.pools[0].name = "P!".into(), "spec.pools.name");
        refused(|spec| spec.pools.push(spec.pools[0].clone()), "spec.pools");
        refused(|spec| spec.pools[0].disks.push(String::new()), "spec.pools.disks");
        refused(|spec| spec.listeners[0].transport = 77, "spec.listeners.transport");
        refused(|spec| spec.listeners[0].bind = "4420".into(), "spec.listeners.bind");
    }
}
