//! What the control plane's watch has shown, and which objects have to be looked at because of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use basalt_client::Event;
use basalt_model::{NodeName, Snapshot, Volume, VolumeId};

/// A copy of the control plane's volumes and snapshots, which is a little old.
#[derive(Debug, Default)]
pub struct Mirror {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    volumes: BTreeMap<VolumeId, Volume>,
    by_node: BTreeMap<NodeName, BTreeSet<VolumeId>>,
    snapshots: BTreeMap<VolumeId, Snapshot>,
    nodes: BTreeSet<NodeName>,
    /// Whether everything that exists has been seen.
    complete: bool,
    /// What was held before the watch began anew: what does not come again is gone.
    before: Option<Box<Held>>,
}

/// Objects to look at, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// `Volume`s.
    pub volumes: BTreeSet<String>,
    /// `StorageNode`s.
    pub nodes: BTreeSet<String>,
    /// `Snapshot`s.
    pub snapshots: BTreeSet<String>,
    /// Whether there may be now what others wait for: room, a volume, a snapshot.
    pub room: bool,
}

impl Mirror {
    /// The volumes on a node, by id; `None` before everything has been seen.
    #[must_use]
    pub fn volumes_on(&self, node: &NodeName) -> Option<Vec<Volume>> {
        let held = self.held();
        if !held.complete {
            return None;
        }
        let ids = held.by_node.get(node).into_iter().flatten();
        Some(ids.filter_map(|id| held.volumes.get(id)).cloned().collect())
    }

    /// The snapshots on a node, by id; `None` before everything has been seen.
    #[must_use]
    pub fn snapshots_on(&self, node: &NodeName) -> Option<Vec<Snapshot>> {
        let held = self.held();
        let here = held.snapshots.values().filter(|snapshot| snapshot.placement.node == *node);
        held.complete.then(|| here.cloned().collect())
    }

    /// Takes an event in.
    pub fn take(&self, event: &Event) -> Touched {
        let mut touched = Touched::default();
        let mut held = self.held();
        match event {
            Event::Node(node) => {
                held.nodes.insert(node.name.clone());
                touched.nodes.insert(node.name.to_string());
                touched.room = true;
            }
            Event::NodeDeleted(name) => {
                held.nodes.remove(name);
                touched.nodes.insert(name.to_string());
            }
            Event::Volume(volume) => {
                // Only what a node's status tells of its volumes concerns the node.
                let before = held.remove(volume.id);
                if before.is_none_or(|before| before.claim().total() != volume.claim().total()) {
                    touched.nodes.insert(volume.placement.node.to_string());
                }
                touched.volumes.insert(volume.name.to_string());
                held.insert((**volume).clone());
                // A snapshot may wait for it to be there, or wait to go until it is restored.
                touched.room |= volume.provisioned;
            }
            Event::VolumeDeleted { id, name } => {
                if let Some(volume) = held.remove(*id) {
                    touched.nodes.insert(volume.placement.node.to_string());
                }
                touched.volumes.insert(name.to_string());
                touched.room = true;
            }
            Event::Snapshot(snapshot) => {
                let before = held.snapshots.insert(snapshot.id, (**snapshot).clone());
                if before.is_none() {
                    touched.nodes.insert(snapshot.placement.node.to_string());
                }
                touched.snapshots.insert(snapshot.name.to_string());
                // A volume may wait to be restored from it, or wait to go until it is taken.
                touched.room |= snapshot.taken_at.is_some();
            }
            Event::SnapshotDeleted { id, name } => {
                if let Some(snapshot) = held.snapshots.remove(id) {
                    touched.nodes.insert(snapshot.placement.node.to_string());
                }
                touched.snapshots.insert(name.to_string());
                touched.room = true;
            }
            Event::Reset => {
                let before = std::mem::take(&mut *held);
                held.before = Some(Box::new(before));
            }
            Event::Synced(_) => {
                held.complete = true;
                if let Some(before) = held.before.take() {
                    let volumes = before.volumes.into_values();
                    for volume in volumes.filter(|volume| !held.volumes.contains_key(&volume.id)) {
                        touched.volumes.insert(volume.name.to_string());
                        touched.nodes.insert(volume.placement.node.to_string());
                    }
                    let snapshots = before.snapshots.into_values();
                    for snapshot in snapshots.filter(|seen| !held.snapshots.contains_key(&seen.id)) {
                        touched.snapshots.insert(snapshot.name.to_string());
                        touched.nodes.insert(snapshot.placement.node.to_string());
                    }
                    touched.nodes.extend(before.nodes.difference(&held.nodes).map(ToString::to_string));
                }
            }
        }
        touched
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn insert(&mut self, volume: Volume) {
        self.by_node.entry(volume.placement.node.clone()).or_default().insert(volume.id);
        self.volumes.insert(volume.id, volume);
    }

    fn remove(&mut self, id: VolumeId) -> Option<Volume> {
        let volume = self.volumes.remove(&id)?;
        if let Some(ids) = self.by_node.get_mut(&volume.placement.node) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_node.remove(&volume.placement.node);
            }
        }
        Some(volume)
    }
}

#[cfg(test)]
mod tests {
    use basalt_model::{
        AllowedHosts, Bytes, Epoch, Lifecycle, Placement, PoolName, ReclaimPolicy, Revision, Selector,
        Timestamp, VolumeIdentity, VolumeName, VolumeSpec, VolumeState,
    };

    use super::*;

    fn volume(number: u128, node: &str) -> Volume {
        let id = VolumeId::from_random(number);
        Volume {
            id,
            name: VolumeName::new(format!("v-{number}")).unwrap(),
            uid: None,
            spec: VolumeSpec {
                size: Bytes(1 << 20),
                replicas: 1,
                thin: false,
                read_only: false,
                allowed_hosts: AllowedHosts::default(),
                selector: Selector::default(),
                reclaim: ReclaimPolicy::Delete,
                source: None,
            },
            size: Bytes(1 << 20),
            footprint: Bytes(1 << 20),
            identity: VolumeIdentity::of(id),
            placement: Placement { node: NodeName::new(node).unwrap(), pool: PoolName::new("p").unwrap() },
            restored_from: None,
            epoch: Epoch::default(),
            generation: 1,
            lifecycle: Lifecycle::Active,
            state: VolumeState::Creating,
            observed: None,
            provisioned: false,
            created_at: Timestamp(0),
            created: Revision(1),
            modified: Revision(1),
        }
    }

    fn put(volume: &Volume) -> Event {
        Event::Volume(Box::new(volume.clone()))
    }

    #[test]
    fn nothing_is_said_before_all_was_seen() {
        let mirror = Mirror::default();
        let node = NodeName::new("n").unwrap();
        mirror.take(&put(&volume(1, "n")));
        assert_eq!(mirror.volumes_on(&node), None);
        mirror.take(&Event::Synced(Revision(1)));
        assert_eq!(mirror.volumes_on(&node).unwrap().len(), 1);
    }

    #[test]
    fn a_node_is_touched_by_what_comes_and_goes_on_it() {
        let mirror = Mirror::default();
        let one = volume(1, "n");
        assert!(mirror.take(&put(&one)).nodes.contains("n"));
        assert!(mirror.take(&put(&one)).nodes.is_empty());
        let gone = mirror.take(&Event::VolumeDeleted { id: one.id, name: one.name });
        assert!(gone.nodes.contains("n") && gone.volumes.contains("v-1") && gone.room);
    }

    #[test]
    fn what_does_not_come_again_after_a_reset_is_gone() {
        let mirror = Mirror::default();
        let (one, two) = (volume(1, "n"), volume(2, "m"));
        for event in [put(&one), put(&two), Event::Synced(Revision(1)), Event::Reset, put(&one)] {
            mirror.take(&event);
        }
        let touched = mirror.take(&Event::Synced(Revision(2)));
        assert_eq!(touched.volumes, BTreeSet::from(["v-2".to_owned()]));
        assert_eq!(mirror.volumes_on(&NodeName::new("m").unwrap()), Some(Vec::new()));
    }
}
