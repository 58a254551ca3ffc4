//! Daemons and members that do not belong here, and bytes that are not what they were.

use crate::control::admin::{member, node_name};
use crate::control::world::World;
use crate::event;
use basalt_clock::Random;
use basalt_core::{Hello, NODE_PROTOCOL, NodeMessage, SessionId};
use basalt_model::{BootId, ClusterId, DiskId, InstanceId, MemberId, Revision};
use basalt_raft::{Disk, MemoryDisk, PeerBody, PeerMessage};
use std::collections::BTreeSet;

impl World {
    /// Somebody speaks to a member who should not.
    pub(crate) fn stranger(&mut self, victim: MemberId) {
        self.tally.fault("stranger", 1);
        match self.random.below(2) {
            0 => self.strange_daemon(),
            _ => self.strange_member(victim),
        }
    }

    /// A daemon of another cluster, or a second one under the name of a node.
    fn strange_daemon(&mut self) {
        let Some(leader) = self.leader() else { return };
        let bound = self.state_of(leader).and_then(|state| state.nodes().get(&node_name(0))?.binding);
        if bound.is_none() {
            return;
        }
        let bits = u128::from(self.random.next_u64());
        let foreign = self.random.chance(1, 2);
        let hello = Hello {
            cluster: foreign.then(|| ClusterId::from_random(bits)),
            node: node_name(0),
            instance: InstanceId::from_random(bits),
            boot: BootId::from_random(bits),
            version_min: NODE_PROTOCOL.0,
            version_max: NODE_PROTOCOL.1,
            features: BTreeSet::new(),
            revision: Revision(0),
        };
        self.sessions += 1;
        let session = SessionId(self.sessions);
        event!("a strange daemon comes to member {leader}, of another cluster: {foreign}");
        if let Some(running) = self.processes.get_mut(&leader).and_then(|process| process.running.as_mut()) {
            running.member.node_message(session, NodeMessage::Hello(hello));
            running.member.node_closed(session);
        }
        self.work_soon(leader);
    }

    /// A member of another cluster, on another disk, or one that means another disk.
    fn strange_member(&mut self, victim: MemberId) {
        let others: Vec<MemberId> = self.processes.keys().copied().filter(|id| *id != victim).collect();
        let cluster = self.state_of(victim).and_then(basalt_model::State::cluster);
        let (Some(from), Some(cluster)) = (others.first().copied(), cluster) else { return };
        let bits = u128::from(self.random.next_u64());
        let own = self.state_of(victim).and_then(|state| state.members().get(&from)?.disk);
        let (random_disk, random_cluster) = (DiskId::from_random(bits), ClusterId::from_random(bits));
        let kind = self.random.below(3);
        let message = PeerMessage {
            cluster: Some(if kind == 0 { random_cluster } else { cluster }),
            from,
            from_disk: if kind == 1 { random_disk } else { own.unwrap_or(random_disk) },
            to: victim,
            to_disk: (kind == 2).then_some(random_disk),
            body: PeerBody::Announce { member: member(from), founds: false },
        };
        event!("a stranger speaks to member {victim} as member {from}, kind {kind}");
        if let Some(running) = self.processes.get_mut(&victim).and_then(|process| process.running.as_mut()) {
            running.member.peer_message(message);
        }
        self.work_soon(victim);
    }
}

/// Changes a byte of a part of a snapshot in a way that its own checksum does not notice.
pub(crate) fn damage(message: &mut PeerMessage) -> bool {
    let PeerBody::SnapshotChunk(chunk) = &mut message.body else { return false };
    let Some(byte) = chunk.data.first_mut() else { return false };
    *byte ^= 1;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &chunk.data);
    chunk.crc = u32::try_from(crc).unwrap_or(0);
    true
}

/// Lets the oldest of several snapshots rot.
pub(crate) fn rot(disk: &MemoryDisk) -> bool {
    let names = disk.list().unwrap_or_default();
    let snapshots: Vec<&String> = names.iter().filter(|name| is_snapshot(name)).collect();
    let [oldest, _, ..] = snapshots[..] else { return false };
    let Some(mut content) = disk.content(oldest) else { return false };
    let Some(last) = content.last_mut() else { return false };
    *last ^= 0x55;
    disk.set_content(oldest, content);
    true
}

fn is_snapshot(name: &str) -> bool {
    name.starts_with("snapshot-") && !name.ends_with(".tmp")
}
