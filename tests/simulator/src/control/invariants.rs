//! What must hold at every moment, whatever is broken.

use crate::run::Violation;
use basalt_clock::{Random, SeededRandom};
use basalt_core::{Event, EventKind, Outputs, Role, Status};
use basalt_model::{
    Bytes, Epoch, Lifecycle, MemberId, Placement, PoolHealth, RequestId, Revision, State, VolumeId,
    VolumeName,
};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// One in so many observations compares whole states.
const WHOLE_STATES_EVERY: u64 = 16;

/// Remembers what was seen, and compares.
#[derive(Debug)]
pub struct Oracle {
    random: SeededRandom,
    leaders: BTreeMap<u64, MemberId>,
    events: BTreeMap<Revision, BTreeMap<String, u64>>,
    states: BTreeMap<Revision, (MemberId, u64)>,
    epochs: BTreeMap<Epoch, VolumeId>,
    acknowledged: BTreeMap<RequestId, Revision>,
    deletions_asked: BTreeMap<VolumeName, usize>,
    deletions_begun: BTreeMap<VolumeName, BTreeSet<VolumeId>>,
    /// The highest revision that any client, daemon or watcher was told about.
    pub told: Revision,
    /// How often the cluster changed its leader.
    pub elections: u64,
}

fn broken(invariant: &'static str, detail: String) -> Violation {
    Violation::Invariant { invariant, detail }
}

fn digest(bytes: &[u8]) -> u64 {
    // Only compared within one process, so the unspecified algorithm does no harm; its keys are constant.
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Oracle {
    /// An oracle that has seen nothing.
    pub fn new(random: SeededRandom) -> Self {
        Self {
            random,
            leaders: BTreeMap::new(),
            events: BTreeMap::new(),
            states: BTreeMap::new(),
            epochs: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            deletions_asked: BTreeMap::new(),
            deletions_begun: BTreeMap::new(),
            told: Revision(0),
            elections: 0,
        }
    }

    /// A client was told that its request took effect.
    pub fn acknowledged(&mut self, request: &RequestId, revision: Revision) -> Result<(), Violation> {
        self.told = self.told.max(revision);
        match self.acknowledged.insert(request.clone(), revision) {
            Some(before) if before != revision => Err(broken(
                "a request takes effect once",
                format!("request {request} was acknowledged at revisions {before} and {revision}"),
            )),
            _ => Ok(()),
        }
    }

    /// A client asks, with a new request id, for the deletion of the volume of this name.
    pub fn deletion_asked(&mut self, name: &VolumeName) {
        *self.deletions_asked.entry(name.clone()).or_insert(0) += 1;
    }

    /// A majority of disks is gone, and with them what was committed and nobody was told about.
    pub fn majority_lost(&mut self) {
        self.deletions_begun.clear();
        // The survivor does not know the terms of the others; leaders of theirs will never speak again.
        self.leaders.clear();
    }

    /// A volume is being deleted: no more volumes of a name can be than deletions of that name were asked for.
    pub fn deletion_begun(&mut self, volume: VolumeId, name: &VolumeName) -> Result<(), Violation> {
        let begun = self.deletions_begun.entry(name.clone()).or_default();
        begun.insert(volume);
        let asked = self.deletions_asked.get(name).copied().unwrap_or(0);
        if begun.len() <= asked {
            return Ok(());
        }
        let detail =
            format!("volumes {begun:?} of name {name} were deleted, and {asked} deletions were asked for");
        Err(broken("only a deletion deletes", detail))
    }

    /// A member did some work.
    pub fn observe(&mut self, member: MemberId, outputs: &Outputs, state: &State) -> Result<(), Violation> {
        if let Some(status) = &outputs.status {
            self.observe_status(status)?;
        }
        for event in &outputs.events {
            self.observe_event(member, event)?;
        }
        if !outputs.events.is_empty() && self.random.chance(1, WHOLE_STATES_EVERY) {
            self.observe_state(member, state)?;
        }
        Ok(())
    }

    fn observe_status(&mut self, status: &Status) -> Result<(), Violation> {
        if status.role != Role::Leader {
            return Ok(());
        }
        match self.leaders.insert(status.term, status.id) {
            Some(other) if other != status.id => Err(broken(
                "a term has one leader",
                format!("members {other} and {} both lead in term {}", status.id, status.term),
            )),
            Some(_) => Ok(()),
            None => {
                self.elections += 1;
                Ok(())
            }
        }
    }

    fn observe_event(&mut self, member: MemberId, event: &Event) -> Result<(), Violation> {
        let (subject, content) = match &event.kind {
            EventKind::Volume(volume) => {
                self.issued(volume.epoch, volume.id)?;
                if matches!(volume.lifecycle, Lifecycle::Deleting(_)) {
                    self.deletion_begun(volume.id, &volume.name)?;
                }
                (format!("volume {}", volume.id), format!("{volume:?}"))
            }
            EventKind::Node(node) => (format!("node {}", node.name), format!("{node:?}")),
            EventKind::NodeRemoved(name) => (format!("node {name}"), "removed".to_owned()),
            EventKind::VolumeRemoved { id, name } => {
                self.deletion_begun(*id, name)?;
                (format!("volume {id}"), format!("removed {name}"))
            }
            EventKind::Snapshot(snapshot) => {
                self.issued(snapshot.epoch, snapshot.id)?;
                (format!("snapshot {}", snapshot.id), format!("{snapshot:?}"))
            }
            EventKind::SnapshotRemoved { id, name } => (format!("snapshot {id}"), format!("removed {name}")),
            EventKind::Cluster | EventKind::Resync => return Ok(()),
        };
        let content = digest(content.as_bytes());
        let seen = self.events.entry(event.revision).or_default();
        match seen.insert(subject.clone(), content) {
            Some(other) if other != content => Err(broken(
                "members that applied the same commands hold the same state",
                format!(
                    "member {member} differs from another about {subject} at revision {}",
                    event.revision
                ),
            )),
            _ => Ok(()),
        }
    }

    fn issued(&mut self, epoch: Epoch, volume: VolumeId) -> Result<(), Violation> {
        match self.epochs.insert(epoch, volume) {
            Some(other) if other != volume => Err(broken(
                "an epoch is issued once",
                format!("epoch {epoch} belongs to volumes {other} and {volume}"),
            )),
            _ => Ok(()),
        }
    }

    /// Compares a member's whole state with those that other members had at the same revision.
    pub fn observe_state(&mut self, member: MemberId, state: &State) -> Result<(), Violation> {
        overcommitted(state)?;
        let bytes = state.encode().map_err(|error| broken("a state can be encoded", error.to_string()))?;
        let revision = state.revision();
        match self.states.insert(revision, (member, digest(&bytes))) {
            Some((other, before)) if before != digest(&bytes) => Err(broken(
                "members that applied the same commands hold the same state",
                format!("members {other} and {member} differ at revision {revision}"),
            )),
            _ => Ok(()),
        }
    }

    /// What was acknowledged is in the final state.
    pub fn nothing_lost(&self, state: &State) -> Result<(), Violation> {
        for (request, revision) in &self.acknowledged {
            let age = state.revision().0.saturating_sub(revision.0) % State::RECOVERY_JUMP;
            if age >= State::REQUEST_WINDOW {
                continue;
            }
            let found = state.request(request).map(|(revision, _, _)| revision);
            if found != Some(*revision) {
                return Err(broken(
                    "an acknowledged command is never lost",
                    format!(
                        "request {request} was acknowledged at revision {revision}, the state says {found:?}"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// How many requests were acknowledged.
    pub fn acknowledgements(&self) -> usize {
        self.acknowledged.len()
    }
}

/// No pool is guaranteed to more volumes than it holds.
fn overcommitted(state: &State) -> Result<(), Violation> {
    let mut promised: BTreeMap<Placement, u64> = BTreeMap::new();
    for volume in state.volumes().values() {
        *promised.entry(volume.placement.clone()).or_default() += volume.footprint.0;
    }
    for snapshot in state.snapshots().values() {
        *promised.entry(snapshot.placement.clone()).or_default() += snapshot.footprint.0;
    }
    for (placement, bytes) in promised {
        let pool = state.nodes().get(&placement.node).and_then(|node| node.pool(&placement.pool));
        // A pool that is not in service yet has no capacity to speak of.
        let pool = pool.filter(|pool| pool.health == PoolHealth::Online && pool.capacity.0 > 0);
        let capacity = pool.map_or(Bytes(u64::MAX), |pool| pool.capacity);
        if bytes > capacity.0 {
            return Err(broken(
                "a pool is not over-committed",
                format!("{bytes} bytes are promised of {placement:?}, which has {capacity}"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(id: u64, term: u64) -> Status {
        Status {
            id: MemberId::new(id).unwrap(),
            disk: basalt_model::DiskId::from_random(1),
            cluster: None,
            role: Role::Leader,
            term,
            leader: MemberId::new(id),
            committed: 0,
            applied: 0,
            last: 0,
            snapshot: 0,
            sessions: 0,
            refused: None,
            founding: None,
        }
    }

    #[test]
    fn a_second_leader_of_a_term_is_noticed() {
        let mut oracle = Oracle::new(SeededRandom::new(1));
        assert!(oracle.observe_status(&leader(1, 5)).is_ok());
        assert!(oracle.observe_status(&leader(1, 5)).is_ok());
        assert!(oracle.observe_status(&leader(2, 6)).is_ok());
        assert!(oracle.observe_status(&leader(3, 5)).is_err());
        assert_eq!(oracle.elections, 2);
    }

    #[test]
    fn an_epoch_of_two_volumes_is_noticed() {
        let mut oracle = Oracle::new(SeededRandom::new(1));
        let (one, other) = (VolumeId::from_random(1), VolumeId::from_random(2));
        assert!(oracle.issued(Epoch::default(), one).is_ok());
        assert!(oracle.issued(Epoch::default(), one).is_ok());
        assert!(oracle.issued(Epoch::default(), other).is_err());
    }

    #[test]
    fn a_deletion_that_nobody_asked_for_is_noticed() {
        let mut oracle = Oracle::new(SeededRandom::new(1));
        let name = VolumeName::new("v").unwrap();
        assert!(oracle.deletion_begun(VolumeId::from_random(1), &name).is_err());
        oracle.deletion_asked(&name);
        assert!(oracle.deletion_begun(VolumeId::from_random(1), &name).is_ok());
        assert!(oracle.deletion_begun(VolumeId::from_random(2), &name).is_err());
    }

    #[test]
    fn an_acknowledged_command_that_is_missing_is_noticed() {
        let mut oracle = Oracle::new(SeededRandom::new(1));
        let request = RequestId::new("r".to_owned()).unwrap();
        assert!(oracle.nothing_lost(&State::new()).is_ok());
        oracle.acknowledged(&request, Revision(5)).unwrap();
        assert!(oracle.nothing_lost(&State::new()).is_err());
        assert!(oracle.acknowledged(&request, Revision(6)).is_err());
    }
}
