//! The status of one `StorageNode`: what was observed, never what is hoped for.

use std::collections::BTreeMap;

use basalt_crds as crds;
use basalt_crds::storage_node::{DiskState, DiskStatus, NodePhase, PoolState, PoolStatus};
use basalt_crds::{Conditions, Status, StorageNodeStatus, format_bytes};
use basalt_model::{
    Claim, ClusterId, DiskHealth, Lifecycle, Liveness, Node, PoolHealth, PoolName, PoolObserved, PoolSpec,
    Problem, space,
};
use k8s_openapi::jiff::Timestamp;

use crate::NodeSight;
use crate::intent::Rejection;
use crate::storage_node::{Departure, Situation};
use crate::word::{Word, elsewhere, one_word, refused};

const CONNECTED: &str = "Connected";
const DELETABLE: &str = "Deletable";
const POOLS_READY: &str = "PoolsReady";
const READY: &str = "Ready";
const ROOM: &str = "PoolsHaveRoom";
const SYNCED: &str = "Synced";
/// The control plane's reason for a node whose daemon is there and not let in: why it is lost.
const DAEMON_REFUSED: &str = "DaemonRefused";
/// How many of the volumes that hold a node back a message names.
const NAMES_MAX: usize = 5;

/// What every status of one object is written from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) object: &'a crds::StorageNode,
    pub(crate) generation: i64,
    /// The cluster that answered; `None` when none did.
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) now: Timestamp,
}

impl<'a> Context<'a> {
    /// The status of an object that is to stay.
    pub(crate) fn staying(
        self,
        situation: &Situation<'_>,
        rejection: Option<&Rejection>,
    ) -> StorageNodeStatus {
        let mut draft = self.draft();
        match situation {
            Situation::Unreachable(message) => draft.unreachable(message),
            Situation::Elsewhere { recorded, answering } => draft.cut_off(&elsewhere(recorded, *answering)),
            Situation::Missing => draft.cut_off(&Word::new(
                "NoRecord",
                "the control plane has no record of this node, which was registered: restore the control plane; or, if \
                 what was on it is given up, delete this object and create it again",
            )),
            Situation::Taken(node) => draft.cut_off(&taken(node)),
            Situation::Invalid { error, present } => {
                let word = Word::new("Invalid", error.to_string());
                match present {
                    Some(present) => draft.observe(present),
                    None => draft.not_ready(NodePhase::Pending, &word),
                }
                draft.not_synced(&word);
            }
            Situation::Wanted(_) => {
                let word = rejection.map_or_else(|| Word::new("Pending", "asking the control plane"), refused);
                draft.not_ready(NodePhase::Pending, &word);
                draft.not_synced(&word);
            }
            Situation::Drifted { present, .. } => {
                draft.observe(present);
                match rejection {
                    Some(rejection) => draft.not_synced(&refused(rejection)),
                    None => draft.synced(),
                }
            }
            Situation::Settled(present) => {
                draft.observe(present);
                draft.synced();
            }
        }
        draft.finish()
    }

    /// The status of an object that is to go.
    pub(crate) fn leaving(
        self,
        departure: &Departure<'_>,
        rejection: Option<&Rejection>,
    ) -> StorageNodeStatus {
        let mut draft = self.draft();
        match departure {
            Departure::Unreachable(message) => draft.unreachable(message),
            Departure::Elsewhere { recorded, answering } => {
                let word = elsewhere(recorded, *answering);
                draft.not_synced(&word);
                draft.held_back(&word);
            }
            Departure::Closing(_) | Departure::Empty(_) => {
                let word = rejection.map_or_else(|| Word::new("Deleting", "it is to go"), refused);
                draft.not_synced(&word);
                draft.held_back(&word);
            }
            Departure::Occupied(sight) => {
                draft.observe(sight);
                draft.synced();
                draft.held_back(&occupied(sight));
            }
            Departure::Gone => {
                draft.conditions.set(
                    SYNCED,
                    Status::True,
                    "Synced",
                    "the control plane holds nothing of this object",
                );
                draft.conditions.set(DELETABLE, Status::True, "Deletable", "nothing holds it back");
                draft.conditions.set(READY, Status::False, "Deleting", "nothing is left");
            }
        }
        draft.status.phase = Some(NodePhase::Deleting);
        draft.finish()
    }

    fn draft(self) -> Draft<'a> {
        let old = self.object.status.as_ref();
        let conditions =
            Conditions::new(old.map_or(&[], |old| old.conditions.as_slice()), self.generation, self.now);
        let mut status = old.cloned().unwrap_or_default();
        status.observed_generation = Some(self.generation);
        status.conditions = Vec::new();
        Draft { status, cluster: self.cluster, conditions }
    }
}

struct Draft<'a> {
    status: StorageNodeStatus,
    cluster: Option<ClusterId>,
    conditions: Conditions<'a>,
}

impl Draft<'_> {
    /// Nothing can be said now; what was seen last stays.
    fn unreachable(&mut self, message: &str) {
        let message = format!("the control plane cannot be reached: {message}");
        self.status.phase.get_or_insert(NodePhase::Pending);
        for type_ in [CONNECTED, READY, SYNCED] {
            self.conditions.set(type_, Status::Unknown, "ControlPlaneUnreachable", message.clone());
        }
        self.conditions.keep(POOLS_READY);
        self.conditions.keep(ROOM);
        self.conditions.keep(DELETABLE);
    }

    /// The control plane answers, but what it holds is not this object's node.
    fn cut_off(&mut self, word: &Word) {
        let registered = self.status.cluster_id.is_some();
        self.not_ready(if registered { NodePhase::Offline } else { NodePhase::Pending }, word);
        self.not_synced(word);
    }

    fn not_ready(&mut self, phase: NodePhase, word: &Word) {
        self.status.phase = Some(phase);
        self.conditions.set(READY, Status::False, &word.reason, word.message.clone());
    }

    fn not_synced(&mut self, word: &Word) {
        self.conditions.set(SYNCED, Status::False, &word.reason, word.message.clone());
    }

    fn synced(&mut self) {
        self.conditions.set(
            SYNCED,
            Status::True,
            "Synced",
            "the control plane has accepted the specification",
        );
    }

    fn held_back(&mut self, word: &Word) {
        self.conditions.set(DELETABLE, Status::False, &word.reason, word.message.clone());
        self.conditions.set(READY, Status::False, "Deleting", word.message.clone());
    }

    /// Writes down what the control plane says of our node.
    fn observe(&mut self, sight: &NodeSight) {
        let Some(node) = &sight.node else { return };
        let live = node.liveness.is_live();
        let observed = &node.observed;
        self.status.cluster_id = self.cluster.map(|cluster| cluster.to_string());
        self.status.version = Some(observed.version.clone()).filter(|version| !version.is_empty());
        self.status.endpoint = observed.endpoints.first().map(ToString::to_string);
        self.status.volumes = Some(i64::try_from(sight.volumes.len()).unwrap_or(i64::MAX));
        self.status.pools = pools(sight, node);
        self.status.disks = disks(node);
        let sum = |field: fn(&PoolObserved) -> u64| -> Option<String> {
            let total: u64 = observed.pools.values().map(field).sum();
            (!observed.pools.is_empty()).then(|| format_bytes(total))
        };
        self.status.capacity = sum(|pool| pool.capacity.0);
        self.status.used = sum(|pool| pool.used.0);

        let connection = connection(node);
        self.conditions.set(CONNECTED, live.into(), &connection.reason, connection.message.clone());
        let trouble = pool_trouble(node);
        let (pools_ready, word) = match &trouble {
            _ if !live => (Status::Unknown, connection.clone()),
            None => (Status::True, Word::new("Online", "every pool is online")),
            Some(trouble) => (Status::False, trouble.clone()),
        };
        self.conditions.set(POOLS_READY, pools_ready, &word.reason, word.message);
        let (have_room, word) = if live { room(node) } else { (Status::Unknown, connection.clone()) };
        self.conditions.set(ROOM, have_room, &word.reason, word.message);
        let fault = observed.problems.first().map(of_problem).or(trouble);
        match (node.liveness, fault) {
            (Liveness::Never | Liveness::Lost { .. }, _) => {
                let refused = observed.problems.iter().find(|problem| problem.reason == DAEMON_REFUSED);
                let phase =
                    if node.liveness == Liveness::Never { NodePhase::Pending } else { NodePhase::Offline };
                self.not_ready(phase, &refused.map_or(connection, of_problem));
            }
            (Liveness::Live { .. }, Some(fault)) => self.not_ready(NodePhase::Degraded, &fault),
            (Liveness::Live { .. }, None) => {
                self.status.phase = Some(NodePhase::Online);
                self.conditions.set(
                    READY,
                    Status::True,
                    "Online",
                    "the daemon is there and all pools are online",
                );
            }
        }
    }

    fn finish(mut self) -> StorageNodeStatus {
        self.status.conditions = self.conditions.finish();
        self.status
    }
}

fn connection(node: &Node) -> Word {
    match node.liveness {
        Liveness::Never => Word::new(
            "NeverConnected",
            format!(
                "no daemon has connected as {0} yet: start basaltd for node {0} on its machine",
                node.name
            ),
        ),
        Liveness::Live { .. } => Word::new("Connected", "the daemon has a session with the control plane"),
        _ if node.abandoned => Word::new(
            "Abandoned",
            "its disks were declared lost: volumes that are deleted on it are forgotten at once",
        ),
        Liveness::Lost { since } => {
            let since = i64::try_from(since.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
            let since = since.map_or_else(String::new, |since| format!(" since {since}"));
            Word::new("NodeNotConnected", format!("the daemon has not been heard{since}"))
        }
    }
}

/// The first pool that is not online, with all that are named.
fn pool_trouble(node: &Node) -> Option<Word> {
    let mut troubles = node.spec.pools.keys().filter_map(|name| trouble_of(node, name));
    let first = troubles.next()?;
    let more = troubles.count();
    if more == 0 {
        return Some(first);
    }
    Some(Word::new(first.reason, format!("{}; and {more} more pools are not online", first.message)))
}

/// Whether every pool has room, and if not, what follows for the fullest one.
fn room(node: &Node) -> (Status, Word) {
    let filled = |pool: &PoolObserved| space::is_near_full(pool.used, pool.capacity) || space::is_full(pool);
    let pools = node.observed.pools.iter().filter(|(_, pool)| filled(pool));
    let percent = |pool: &PoolObserved| u128::from(pool.used.0) * 100 / u128::from(pool.capacity.0.max(1));
    let fullest = pools.max_by_key(|(_, pool)| percent(pool));
    let Some((name, pool)) = fullest else {
        return (Status::True, Word::new("HaveRoom", "no pool is nearly full"));
    };
    let (reason, follows) = match space::is_full(pool) {
        true => (
            "Full",
            "hosts are refused first writes to thin volumes (Capacity Exceeded); what is written can be overwritten",
        ),
        false => ("NearFull", "no thin volume is placed on it"),
    };
    let message = format!(
        "{}% of pool {name} is used: {follows}; discard or delete what is not needed, or give the pool more room",
        percent(pool)
    );
    (Status::False, Word::new(reason, message))
}

fn trouble_of(node: &Node, name: &PoolName) -> Option<Word> {
    let Some(observed) = node.observed.pools.get(name) else {
        return Some(Word::new("PoolPending", format!("pool {name} has not been reported yet")));
    };
    let problem = observed.problem.as_ref().map(of_problem);
    let disk = observed.disks.values().find_map(|disk| disk.problem.as_ref()).map(of_problem);
    let said = |reason: &str, what: &str| {
        let word = problem.clone().or_else(|| disk.clone());
        word.map_or_else(
            || Word::new(reason, format!("pool {name} {what}")),
            |word| Word::new(word.reason, format!("pool {name} {what}: {}", word.message)),
        )
    };
    if node.abandoned_pools.contains(name) {
        let what = "was declared lost, so that volumes which are deleted on it are forgotten at once; delete what is on it, then take it \
                    out of spec.pools";
        return Some(said("PoolAbandoned", what));
    }
    match observed.health {
        PoolHealth::Pending => Some(said("PoolPending", "is being created or imported")),
        PoolHealth::ReadOnly => Some(said("PoolReadOnly", "is in service for reading only")),
        PoolHealth::Faulted => Some(said("PoolFaulted", "is not in service")),
        PoolHealth::Online if node.pool(name).is_none() => Some(Word::new(
            "OtherPool",
            format!(
                "the disks of pool {name} hold another pool than the one that belongs here: attach the right disks"
            ),
        )),
        PoolHealth::Online => {
            let word = problem.or(disk);
            word.map(|word| Word::new(word.reason, format!("pool {name}: {}", word.message)))
        }
    }
}

fn pools(sight: &NodeSight, node: &Node) -> Vec<PoolStatus> {
    let mut claims: BTreeMap<&PoolName, Claim> = BTreeMap::new();
    for volume in &sight.volumes {
        claims.entry(&volume.placement.pool).or_default().add(volume.claim());
    }
    for snapshot in &sight.snapshots {
        claims.entry(&snapshot.placement.pool).or_default().add(snapshot.claim());
    }
    let status = |(name, _): (&PoolName, &PoolSpec)| {
        let observed = node.observed.pools.get(name);
        let trouble = trouble_of(node, name);
        let claim = claims.get(name).copied().unwrap_or_default();
        let state = match observed.map(|observed| observed.health) {
            None => PoolState::Pending,
            Some(_) if !node.liveness.is_live() => PoolState::Unknown,
            Some(PoolHealth::Pending) => PoolState::Pending,
            Some(PoolHealth::Online) if trouble.is_none() => PoolState::Online,
            Some(PoolHealth::Online | PoolHealth::ReadOnly) => PoolState::Degraded,
            Some(PoolHealth::Faulted) => PoolState::Faulted,
        };
        PoolStatus {
            name: name.to_string(),
            state,
            capacity: observed.map(|observed| format_bytes(observed.capacity.0)),
            used: observed.map(|observed| format_bytes(observed.used.0)),
            committed: Some(format_bytes(claim.guaranteed.0)),
            provisioned: Some(format_bytes(claim.total().0)),
            allocation_unit: observed.map(|observed| format_bytes(observed.allocation_unit.0)),
            message: trouble.map(|trouble| trouble.message),
        }
    };
    node.spec.pools.iter().map(status).collect()
}

fn disks(node: &Node) -> Vec<DiskStatus> {
    let live = node.liveness.is_live();
    let of_pool = |(name, spec): (&PoolName, &PoolSpec)| {
        let observed = node.observed.pools.get(name);
        let status = |path: &basalt_model::DiskPath| {
            let disk = observed.and_then(|observed| observed.disks.get(path));
            DiskStatus {
                path: path.to_string(),
                pool: name.to_string(),
                state: match disk.map(|disk| disk.health) {
                    _ if !live => DiskState::Offline,
                    None | Some(DiskHealth::Offline) => DiskState::Offline,
                    Some(DiskHealth::Online) => DiskState::Online,
                    Some(DiskHealth::Suspected) => DiskState::Suspected,
                    Some(DiskHealth::Faulted) => DiskState::Faulted,
                },
                message: disk.and_then(|disk| disk.problem.as_ref()).map(|problem| problem.message.clone()),
            }
        };
        spec.disks.iter().map(status).collect::<Vec<_>>()
    };
    let mut disks: Vec<_> = node.spec.pools.iter().flat_map(of_pool).collect();
    disks.sort_by(|a, b| a.path.cmp(&b.path));
    disks
}

fn of_problem(problem: &Problem) -> Word {
    Word::new(one_word(&problem.reason).unwrap_or("Problem"), problem.message.clone())
}

fn occupied(sight: &NodeSight) -> Word {
    let count = sight.volumes.len() + sight.snapshots.len();
    let name = |volume: &basalt_model::Volume| match volume.lifecycle {
        Lifecycle::Released => format!("{}, put aside as {}", volume.name, volume.id),
        Lifecycle::Active | Lifecycle::Deleting(_) => volume.name.to_string(),
    };
    let snapshot = |snapshot: &basalt_model::Snapshot| match snapshot.lifecycle {
        Lifecycle::Released => format!("snapshot {}, put aside as {}", snapshot.name, snapshot.id),
        Lifecycle::Active | Lifecycle::Deleting(_) => format!("snapshot {}", snapshot.name),
    };
    let snapshots = sight.snapshots.iter().map(snapshot);
    let mut names: Vec<String> = sight.volumes.iter().map(name).chain(snapshots).collect();
    names.sort();
    let more = count.saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let lost = sight.node.as_ref().filter(|node| !node.liveness.is_live() && !node.abandoned);
    let remedy = lost.map_or_else(String::new, |node| {
        format!(
            ". Its daemon is not connected; if its disks are gone for good: kubectl basalt abandon-node {} --disks-are-lost",
            node.name
        )
    });
    Word::new(
        "NodeHoldsVolumes",
        format!(
            "{count} {} are on it ({}{more}): the node stays until they are deleted{remedy}",
            if sight.snapshots.is_empty() { "volumes" } else { "volumes and snapshots" },
            names.join("; ")
        ),
    )
}

fn taken(node: &Node) -> Word {
    let uid = node.uid.as_ref().map_or_else(String::new, ToString::to_string);
    Word::new(
        "NameTaken",
        format!(
            "node {} belongs to an object with UID {uid}: use another name; or, if that object is lost for good, take \
             over its node by annotating this one with {}={uid}",
            node.name,
            crds::OWNER_UID_ANNOTATION
        ),
    )
}
