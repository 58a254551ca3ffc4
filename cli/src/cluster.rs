//! Nodes, volumes, and whether it is all right.

use anyhow::{Context, bail};
use basalt_client::{Client, MemberInfo, MemberRole, Mutation};
use basalt_model::{
    Claim, DiskHealth, Liveness, Node, NodeName, Placement, PoolHealth, PoolObserved, Snapshot, SnapshotName,
    Volume, VolumeName, VolumeState,
};
use serde_json::json;

use crate::document;
use crate::output::{Format, bytes, counted, print_json, print_line, print_table, table};

/// The cluster in figures, and what is not in order.
pub(crate) async fn status(client: &Client, format: Format) -> anyhow::Result<()> {
    let status = client.cluster_status().await?;
    let nodes = client.nodes().all().await?.items;
    let mut volumes = client.volumes().all().await?.items;
    let all = volumes.len();
    volumes.retain(|volume| volume.state != VolumeState::Released);
    let put_aside = all - volumes.len();
    let live = nodes.iter().filter(|node| node.liveness.is_live()).count();
    let online = volumes.iter().filter(|volume| volume.state == VolumeState::Online).count();
    let members = client.list_members().await?.members;
    let problems = members
        .iter()
        .filter_map(member_problem)
        .chain(nodes.iter().flat_map(node_problems))
        .chain(volumes.iter().filter_map(|volume| volume_problem(volume, &nodes)))
        .chain(client.snapshots().all().await?.items.iter().filter_map(snapshot_problem))
        .collect::<Vec<_>>();
    if format == Format::Json {
        return print_json(&json!({
            "cluster": { "id": status.cluster, "name": status.name, "incarnation": status.incarnation,
                "featureLevel": status.level, "version": status.version },
            "leader": status.leader, "term": status.term, "revision": status.revision,
            "members": status.members,
            "nodes": { "total": nodes.len(), "online": live },
            "volumes": { "total": volumes.len(), "online": online, "putAside": put_aside },
            "snapshots": { "total": status.snapshots },
            "problems": problems,
        }));
    }
    let mut shown = table(["cluster", "leader", "members", "nodes", "volumes", "revision", "version"]);
    shown.add_row([
        status.name,
        status.leader.map_or("none".to_owned(), |leader| format!("member {leader}")),
        status.members.to_string(),
        format!("{live}/{} online", nodes.len()),
        match put_aside {
            0 => format!("{online}/{} online", volumes.len()),
            aside => format!("{online}/{} online, {aside} put aside", volumes.len()),
        },
        status.revision.to_string(),
        status.version,
    ]);
    print_table(&shown, "");
    if problems.is_empty() {
        print_line("\nall is in order");
    } else {
        print_line("\nnot in order:");
        for problem in problems {
            print_line(&format!("  {problem}"));
        }
    }
    Ok(())
}

fn member_problem(member: &MemberInfo) -> Option<String> {
    let id = member.id;
    match (member.role, member.active) {
        (MemberRole::Waiting, _) => {
            Some(format!("member {id} is let in and has not been heard of: start it, or remove it"))
        }
        (_, Some(false)) => {
            Some(format!("member {id} does not answer the leader at {}", member.peer_address))
        }
        _ => None,
    }
}

/// Nodes and their pools.
pub(crate) async fn nodes(client: &Client, name: Option<String>, format: Format) -> anyhow::Result<()> {
    let nodes = match name {
        Some(name) => {
            let name: NodeName = name.parse()?;
            let node = client.get_node(&name).await?;
            vec![node.with_context(|| format!("there is no node {name}"))?]
        }
        None => client.nodes().all().await?.items,
    };
    let volumes = client.volumes().all().await?.items;
    let snapshots = client.snapshots().all().await?.items;
    if format == Format::Json {
        let nodes = nodes.iter().map(|node| document::node(node, &volumes, &snapshots)).collect::<Vec<_>>();
        return print_json(&json!({ "nodes": nodes }));
    }
    let mut shown = table([
        "name",
        "status",
        "pool",
        "health",
        "capacity",
        "used",
        "committed",
        "provisioned",
        "volumes",
        "endpoint",
        "version",
    ]);
    for node in &nodes {
        let endpoint = node.observed.endpoints.first().map(ToString::to_string).unwrap_or_default();
        for pool in node.spec.pools.keys() {
            let placement = Placement { node: node.name.clone(), pool: pool.clone() };
            let here = volumes.iter().filter(|volume| volume.placement == placement).collect::<Vec<_>>();
            let mut claim = Claim::default();
            here.iter().for_each(|volume| claim.add(volume.claim()));
            let kept = snapshots.iter().filter(|snapshot| snapshot.placement == placement);
            kept.for_each(|snapshot| claim.add(snapshot.claim()));
            let observed = node.observed.pools.get(pool);
            shown.add_row([
                node.name.to_string(),
                node_phase(node).to_owned(),
                pool.to_string(),
                observed.map_or("Unknown", told_health).to_owned(),
                observed.map_or_else(String::new, |pool| bytes(pool.capacity.0)),
                observed.map_or_else(String::new, |pool| bytes(pool.used.0)),
                bytes(claim.guaranteed.0),
                bytes(claim.total().0),
                here.len().to_string(),
                endpoint.clone(),
                node.observed.version.clone(),
            ]);
        }
    }
    print_table(&shown, "there are no nodes");
    Ok(())
}

/// Volumes, where they are and how they are reached.
pub(crate) async fn volumes(client: &Client, name: Option<String>, format: Format) -> anyhow::Result<()> {
    let volumes = match name {
        Some(name) => vec![volume(client, &name).await?],
        None => client.volumes().all().await?.items,
    };
    if format == Format::Json {
        let volumes = volumes.iter().map(document::volume).collect::<Vec<_>>();
        return print_json(&json!({ "volumes": volumes }));
    }
    let mut shown = table(["name", "phase", "size", "used", "node", "pool", "address", "hosts", "nqn"]);
    for volume in &volumes {
        let hosts = if volume.spec.allowed_hosts.any() {
            "any".to_owned()
        } else {
            volume.spec.allowed_hosts.0.len().to_string()
        };
        shown.add_row([
            volume.name.to_string(),
            phase(&volume.state).to_owned(),
            bytes(volume.size.0),
            used(volume).map(bytes).unwrap_or_default(),
            volume.placement.node.to_string(),
            volume.placement.pool.to_string(),
            address(volume).unwrap_or_default(),
            hosts,
            volume.identity.nqn.clone(),
        ]);
    }
    print_table(&shown, "there are no volumes");
    Ok(())
}

/// Snapshots, what they are of and where they are.
pub(crate) async fn snapshots(client: &Client, name: Option<String>, format: Format) -> anyhow::Result<()> {
    let snapshots = match name {
        Some(name) => {
            let name: SnapshotName = name.parse()?;
            let snapshot = client.get_snapshot(&name).await?;
            vec![snapshot.with_context(|| {
                format!("there is no snapshot {name}; `kubectl basalt snapshots` lists them")
            })?]
        }
        None => client.snapshots().all().await?.items,
    };
    if format == Format::Json {
        let snapshots = snapshots.iter().map(document::snapshot).collect::<Vec<_>>();
        return print_json(&json!({ "snapshots": snapshots }));
    }
    let mut shown = table(["name", "phase", "volume", "size", "used", "node", "pool", "id"]);
    for snapshot in &snapshots {
        shown.add_row([
            snapshot.name.to_string(),
            snapshot_phase(&snapshot.state).to_owned(),
            snapshot.volume.to_string(),
            bytes(snapshot.size.0),
            snapshot_used(snapshot).map(bytes).unwrap_or_default(),
            snapshot.placement.node.to_string(),
            snapshot.placement.pool.to_string(),
            snapshot.id.to_string(),
        ]);
    }
    print_table(&shown, "there are no snapshots");
    Ok(())
}

/// The phase of a snapshot as its custom resource names it.
pub(crate) fn snapshot_phase(state: &VolumeState) -> &'static str {
    match state {
        VolumeState::Online => "Ready",
        other => phase(other),
    }
}

/// What of a snapshot lies on disks, as its node said last.
pub(crate) fn snapshot_used(snapshot: &Snapshot) -> Option<u64> {
    Some(snapshot.observed.as_ref()?.allocated?.0)
}

/// The volume of this name.
pub(crate) async fn volume(client: &Client, name: &str) -> anyhow::Result<Volume> {
    let name: VolumeName = name.parse()?;
    if let Some(volume) = client.get_volume(&name).await? {
        return Ok(volume);
    }
    let volumes = client.volumes().all().await?.items;
    match volumes.iter().find(|volume| volume.name == name && volume.state == VolumeState::Released) {
        Some(aside) => bail!(
            "volume {name} was put aside and is served to nobody; a Volume object with spec.volumeId: {} serves it again",
            aside.id
        ),
        None => bail!("there is no volume {name}; `kubectl basalt volumes` lists them"),
    }
}

/// Lets the next daemon be this node.
pub(crate) async fn unbind_node(client: &Client, name: &str, format: Format) -> anyhow::Result<()> {
    let name: NodeName = name.parse()?;
    let Some(node) = client.get_node(&name).await? else { bail!("there is no node {name}") };
    if node.liveness.is_live() {
        bail!("the daemon of node {name} is connected; stop it first");
    }
    let revision = client.unbind_node(&Mutation::once(None), &name).await?;
    match format {
        Format::Json => print_json(&json!({ "revision": revision })),
        Format::Table => {
            print_line(&format!("the next daemon that connects as {name} is the node"));
            Ok(())
        }
    }
}

/// Says that a node's disks are gone for good.
pub(crate) async fn abandon_node(
    client: &Client,
    name: &str,
    disks_are_lost: bool,
    format: Format,
) -> anyhow::Result<()> {
    let name: NodeName = name.parse()?;
    let Some(node) = client.get_node(&name).await? else { bail!("there is no node {name}") };
    let volumes = client.volumes().all().await?.items;
    let (going, others): (Vec<_>, Vec<_>) = volumes
        .iter()
        .filter(|volume| volume.placement.node == node.name)
        .partition(|volume| volume.state == VolumeState::Deleting);
    if !disks_are_lost {
        bail!(
            "node {name} holds {}, of which {} being deleted would be forgotten, and so would every one that is deleted later: use \
             --disks-are-lost if its disks are gone for good",
            counted(going.len() + others.len(), "volume"),
            going.len()
        );
    }
    let revision = client.abandon_node(&Mutation::once(None), &name).await?;
    match format {
        Format::Json => print_json(&json!({ "revision": revision, "volumesLeft": others.len() })),
        Format::Table if others.is_empty() => {
            print_line(&format!("node {name} holds nothing any more; delete its StorageNode"));
            Ok(())
        }
        Format::Table => {
            print_line(&format!(
                "deletions do not wait for node {name} any more; left on it: {}; delete what is left and then its StorageNode",
                counted(others.len(), "volume")
            ));
            Ok(())
        }
    }
}

/// Says that the disks of one pool are gone for good.
pub(crate) async fn abandon_pool(
    client: &Client,
    node: &str,
    pool: &str,
    disks_are_lost: bool,
    format: Format,
) -> anyhow::Result<()> {
    let place = Placement { node: node.parse()?, pool: pool.parse()? };
    let (volumes, snapshots) = (client.volumes().all().await?.items, client.snapshots().all().await?.items);
    let volumes = volumes.iter().filter(|volume| volume.placement == place).map(Volume::is_going);
    let snapshots = snapshots.iter().filter(|snapshot| snapshot.placement == place).map(Snapshot::is_going);
    let (going, left): (Vec<_>, Vec<_>) = volumes.chain(snapshots).partition(|going| *going);
    if !disks_are_lost {
        bail!(
            "pool {pool} of node {node} holds {} volumes and snapshots, of which {} being deleted would be forgotten, and so would every one that \
             is deleted later: use --disks-are-lost if its disks are gone for good",
            going.len() + left.len(),
            going.len()
        );
    }
    let revision = client.abandon_pool(&Mutation::once(None), &place.node, &place.pool).await?;
    match format {
        Format::Json => print_json(&json!({ "revision": revision, "left": left.len() })),
        Format::Table if left.is_empty() => {
            print_line(&format!(
                "pool {pool} of node {node} holds nothing any more; take it out of spec.pools of the StorageNode"
            ));
            Ok(())
        }
        Format::Table => {
            print_line(&format!(
                "deletions do not wait for pool {pool} of node {node} any more; left on it: {}; delete what is left, then take the pool \
                 out of spec.pools of the StorageNode",
                left.len()
            ));
            Ok(())
        }
    }
}

/// Where hosts reach a volume.
pub(crate) fn address(volume: &Volume) -> Option<String> {
    let paths = &volume.observed.as_ref()?.paths;
    let optimized = paths.iter().find(|path| path.ana == basalt_model::AnaState::Optimized);
    optimized.or(paths.first()).map(|path| path.address.to_string())
}

/// What of a volume takes space in its pool, as its node said last.
pub(crate) fn used(volume: &Volume) -> Option<u64> {
    Some(volume.observed.as_ref()?.allocated?.0)
}

/// The phase of a volume as its custom resource names it.
pub(crate) fn phase(state: &VolumeState) -> &'static str {
    match state {
        VolumeState::Creating => "Creating",
        VolumeState::Online => "Online",
        VolumeState::Unavailable { .. } => "Unavailable",
        VolumeState::Faulted { .. } => "Faulted",
        VolumeState::Released => "Released",
        VolumeState::Deleting => "Deleting",
    }
}

/// The phase of a node as its custom resource names it.
pub(crate) fn node_phase(node: &Node) -> &'static str {
    match node.liveness {
        Liveness::Never => "Pending",
        Liveness::Live { .. } if node_problems(node).is_empty() => "Online",
        Liveness::Live { .. } => "Degraded",
        Liveness::Lost { .. } => "Offline",
    }
}

/// One word for a pool: one that is in service may lack something, which `status` tells.
fn told_health(pool: &PoolObserved) -> &'static str {
    match (pool.health, &pool.problem) {
        (PoolHealth::Online, Some(_)) => "Degraded",
        (health, _) => pool_health(health),
    }
}

pub(crate) fn pool_health(health: PoolHealth) -> &'static str {
    match health {
        PoolHealth::Pending => "Pending",
        PoolHealth::Online => "Online",
        PoolHealth::ReadOnly => "ReadOnly",
        PoolHealth::Faulted => "Faulted",
    }
}

fn node_problems(node: &Node) -> Vec<String> {
    let name = &node.name;
    let mut problems = Vec::new();
    match node.liveness {
        Liveness::Live { .. } => {}
        Liveness::Never => problems.push(format!("node {name}: its daemon has never connected")),
        _ if node.abandoned => problems.push(format!("node {name}: its disks were declared lost")),
        Liveness::Lost { .. } => problems.push(format!("node {name}: its daemon is not connected")),
    }
    for problem in &node.observed.problems {
        problems.push(format!("node {name}: {}: {}", problem.reason, problem.message));
    }
    for pool in &node.abandoned_pools {
        problems.push(format!("node {name}, pool {pool}: its disks were declared lost"));
    }
    // What an absent daemon said of its pools was so once.
    let pools = node.observed.pools.iter().filter(|_| node.liveness.is_live());
    for (pool, observed) in pools {
        if let Some(problem) = &observed.problem {
            problems.push(format!("node {name}, pool {pool}: {}: {}", problem.reason, problem.message));
        }
        for (disk, observed) in observed.disks.iter().filter(|(_, disk)| disk.health != DiskHealth::Online) {
            let why = observed.problem.as_ref().map_or("not online", |problem| &problem.message);
            // A pool says what is wrong with its disk in the same words.
            if !problems.iter().any(|told| told.ends_with(why)) {
                problems.push(format!("node {name}, pool {pool}, disk {disk}: {why}"));
            }
        }
    }
    problems
}

fn snapshot_problem(snapshot: &Snapshot) -> Option<String> {
    match &snapshot.state {
        VolumeState::Unavailable { reason, message } | VolumeState::Faulted { reason, message } => Some(
            format!("snapshot {}: {}: {reason}: {message}", snapshot.name, snapshot_phase(&snapshot.state)),
        ),
        _ => None,
    }
}

fn volume_problem(volume: &Volume, nodes: &[Node]) -> Option<String> {
    match &volume.state {
        VolumeState::Unavailable { reason, message } | VolumeState::Faulted { reason, message } => {
            Some(format!("volume {}: {}: {reason}: {message}", volume.name, phase(&volume.state)))
        }
        VolumeState::Creating => {
            Some(format!("volume {}: Creating: node {} is at it", volume.name, volume.placement.node))
        }
        VolumeState::Deleting => {
            let Placement { node: name, pool } = &volume.placement;
            let node = nodes.iter().find(|node| node.name == *name);
            let why =
                node.and_then(|node| node.hindrance(pool)).map_or(String::new(), |why| format!(": {why}"));
            Some(format!("volume {}: Deleting: waiting for node {name}{why}", volume.name))
        }
        VolumeState::Online => {
            let shortfall = volume.shortfall()?;
            Some(format!("volume {}: {}: {}", volume.name, shortfall.reason, shortfall.message))
        }
        VolumeState::Released => None,
    }
}
