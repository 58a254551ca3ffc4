//! Messages between members: who may speak, and how a member makes itself known.

use crate::api::{Fatal, Start};
use crate::member::Member;
use crate::pending::Topic;
use basalt_clock::mark;
use basalt_model::{Body, ClusterId, Member as Listed, MemberId};
use basalt_raft::{Disk, PeerBody, PeerMessage, PeerRefusal};
use std::collections::{BTreeMap, BTreeSet};

/// Ticks between announcements, and between looks at everything that may have got lost.
const ANNOUNCE_TICKS: u64 = 10;

/// After how many election timeouts of silence a member asks everybody whether it still belongs to them.
const SILENT_ELECTIONS: u64 = 2;

/// The most members that peers may name to one that wants to join.
const INTRODUCED_MAX: usize = 64;

impl<D: Disk> Member<D> {
    /// A message of another member arrived.
    pub fn peer_message(&mut self, message: PeerMessage) {
        if message.to != self.config.member.id || message.from == self.config.member.id {
            return;
        }
        self.note_for_founding(&message);
        if let PeerBody::Refused(refusal) = message.body {
            let known = self.state.members().contains_key(&message.from) || self.is_acquainted(message.from);
            return if known {
                self.refused_by(&message, refusal)
            };
        }
        if message.to_disk.is_some_and(|disk| disk != self.group.log().identity().disk) {
            // They mean the disk that this id was given to first.
            mark!("meant-for-another-disk");
            return self.refused_by(&message, PeerRefusal::WrongDisk);
        }
        if let Err(refusal) = self.check_peer(&message) {
            mark!("peer-refused");
            return self.send_to(message.from, None, PeerBody::Refused(refusal));
        }
        self.answer_founder(&message);
        match message.body {
            PeerBody::Announce { member, .. } => self.announced(message.from, member, message.from_disk),
            PeerBody::Introduce(members) => self.introduced_to(message.from, members),
            PeerBody::Refused(_) => {}
            PeerBody::Raft(_) | PeerBody::SnapshotChunk(_) | PeerBody::SnapshotAck(_) => {
                if !self.take_part_in(message.cluster) {
                    return;
                }
                self.refused = None;
                self.silent_ticks = 0;
                match message.body {
                    PeerBody::Raft(raft) => self.group.step(message.from, raft),
                    PeerBody::SnapshotChunk(chunk) => self.group.snapshot_chunk(message.from, chunk),
                    PeerBody::SnapshotAck(ack) => self.group.snapshot_ack(message.from, ack),
                    PeerBody::Announce { .. } | PeerBody::Introduce(_) | PeerBody::Refused(_) => {}
                }
            }
        }
    }

    /// Whether a message comes from a member of this group.
    fn check_peer(&self, message: &PeerMessage) -> Result<(), PeerRefusal> {
        let ours = self.cluster();
        if let (Some(ours), Some(theirs)) = (ours, message.cluster)
            && ours != theirs
        {
            mark!("peer-of-another-cluster");
            return Err(PeerRefusal::WrongCluster { cluster: ours });
        }
        if self.state.is_retired(message.from) && !self.takes_part(message.from) {
            return Err(PeerRefusal::Removed);
        }
        let known = self.state.members().get(&message.from).and_then(|member| member.disk);
        if known.is_some_and(|disk| disk != message.from_disk) {
            mark!("peer-with-another-disk");
            return Err(PeerRefusal::WrongDisk);
        }
        Ok(())
    }

    /// Whether a member is in the group: one that is to be removed is, until the change is made, and may be needed to make it.
    fn takes_part(&self, member: MemberId) -> bool {
        let membership = self.group.membership();
        let mut everybody =
            membership.voters.iter().chain(&membership.learners).chain(&membership.voters_outgoing);
        everybody.any(|id| *id == member.get())
    }

    /// A peer will have nothing to do with this member. It may be right, or be the one that does not belong here.
    fn refused_by(&mut self, message: &PeerMessage, refusal: PeerRefusal) {
        let from = message.from;
        if self.state.is_retired(from) && !self.takes_part(from) {
            // Of an earlier incarnation, or removed itself.
            return;
        }
        let refusal = match (refusal, message.cluster) {
            // Told to create a cluster, and another one is there.
            (PeerRefusal::Unknown, Some(cluster)) if self.founder.is_some() => {
                PeerRefusal::WrongCluster { cluster }
            }
            _ => refusal,
        };
        let counts = match refusal {
            // Nothing takes a removal back, and whoever still hears a leader will soon hear none.
            PeerRefusal::Removed => self.cluster().is_none_or(|ours| message.cluster == Some(ours)),
            // A member that takes part with others is not put off by a stranger under a peer's name.
            PeerRefusal::WrongCluster { .. } | PeerRefusal::WrongDisk | PeerRefusal::Unknown => {
                !self.is_confirmed()
            }
        };
        if counts && self.refused != Some(refusal) && !self.is_expelled() {
            tracing::warn!(%from, %refusal, "a peer refuses this member");
            self.refused = Some(refusal);
        }
    }

    /// Whether others take part with this member: it hears a leader, or leads and needs others for a majority. The only voter
    /// of a group has nobody's word for it but its own.
    fn is_confirmed(&self) -> bool {
        match self.group.status().leader {
            Some(leader) if leader == self.config.member.id => self.group.membership().voters.len() > 1,
            Some(_) => !self.hears_nobody(),
            None => false,
        }
    }

    /// Whether the group has been silent for longer than an election takes to begin.
    fn hears_nobody(&self) -> bool {
        self.silent_ticks > SILENT_ELECTIONS * u64::from(self.config.timing.election_ticks)
    }

    /// The cluster that this member belongs to, or would join.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        let chosen = match &self.config.start {
            Start::Join { cluster } => *cluster,
            Start::Bootstrap { .. } => None,
        };
        self.group.log().identity().cluster.or(chosen)
    }

    /// Binds this member's disk to the cluster of its first message.
    fn take_part_in(&mut self, cluster: Option<ClusterId>) -> bool {
        let Some(cluster) = cluster else { return false };
        match self.group.log_mut().bind_cluster(cluster) {
            Ok(()) => true,
            Err(error) => {
                self.failed.get_or_insert(Fatal::Log(error));
                false
            }
        }
    }

    /// A member says who it is. The leader notes what changed; another member introduces one that has not joined, which
    /// may know nobody else.
    fn announced(&mut self, from: MemberId, member: Listed, disk: basalt_model::DiskId) {
        if member.id != from || member.disk != Some(disk) {
            return;
        }
        if !self.ready_to_lead() {
            let members = self.state.members();
            if members.get(&from).is_none_or(|listed| listed.disk.is_none()) && !members.is_empty() {
                mark!("newcomer-introduced");
                let others = members.values().filter(|other| other.id != from).cloned().collect();
                self.send_to(from, Some(disk), PeerBody::Introduce(others));
            }
            return;
        }
        match self.state.members().get(&from) {
            // Will be listed in a moment.
            None if self.is_initial(from) => {}
            None => self.send_to(from, Some(disk), PeerBody::Refused(PeerRefusal::Unknown)),
            Some(listed) => {
                let merged = Listed { replaces: listed.replaces, ..member };
                if *listed != merged {
                    self.propose_own(Topic::Member(from), Body::PutMember(merged));
                }
            }
        }
    }

    /// A peer says whom else to announce oneself to. One that has joined knows better.
    fn introduced_to(&mut self, from: MemberId, members: Vec<Listed>) {
        let me = self.config.member.id;
        if self.state.members().contains_key(&me) || !self.is_acquainted(from) {
            return;
        }
        for member in members.into_iter().filter(|member| member.id != me) {
            let full = self.introduced.len() >= INTRODUCED_MAX;
            let news = self.introduced.get(&member.id) != Some(&member);
            if news && (!full || self.introduced.contains_key(&member.id)) {
                self.introduced.insert(member.id, member);
                self.outputs.introduced = true;
            }
        }
    }

    fn is_acquainted(&self, peer: MemberId) -> bool {
        self.config.peers.contains(&peer) || self.introduced.contains_key(&peer)
    }

    /// The members that peers have named to this one, which has not joined yet.
    pub fn introduced(&self) -> &BTreeMap<MemberId, Listed> {
        &self.introduced
    }

    /// Makes this member known until the state says what it says, and lists the members that a new cluster begins with.
    pub(crate) fn tick_announcements(&mut self) {
        self.announce_in = self.announce_in.saturating_sub(1);
        if self.announce_in > 0 {
            return;
        }
        self.announce_in = ANNOUNCE_TICKS;
        self.recheck_sessions();
        if self.ready_to_lead() {
            self.list_initial_members();
        }
        let id = self.config.member.id;
        let listed = self.state.members().get(&id);
        let me = Listed { replaces: listed.and_then(|listed| listed.replaces), ..self.config.member.clone() };
        if listed.is_some() {
            self.introduced.clear();
        }
        // Who is out of the group, or in it and hears nobody, may have been removed: the leader does not say so.
        let alone = !self.ready_to_lead() && (!self.takes_part(id) || self.hears_nobody());
        if listed == Some(&me) && !alone {
            return;
        }
        if self.ready_to_lead() {
            return self.propose_own(Topic::Member(id), Body::PutMember(me));
        }
        let mut peers: BTreeSet<MemberId> = self.config.peers.iter().copied().collect();
        peers.extend(self.state.members().keys().copied());
        peers.extend(self.introduced.keys().copied());
        peers.remove(&id);
        for peer in peers {
            let announcement = self.announcement();
            self.send_to(peer, None, announcement);
        }
    }

    /// Whether a member is one of those that this one's cluster begins with.
    fn is_initial(&self, member: MemberId) -> bool {
        let Start::Bootstrap { others, .. } = &self.config.start else { return false };
        others.iter().any(|other| other.id == member) && !self.state.is_retired(member)
    }

    fn list_initial_members(&mut self) {
        let Start::Bootstrap { others, .. } = &self.config.start else { return };
        let unlisted: Vec<Listed> = others
            .iter()
            .filter(|other| !self.state.members().contains_key(&other.id) && !self.state.is_retired(other.id))
            .cloned()
            .collect();
        for member in unlisted {
            self.propose_own(Topic::Member(member.id), Body::PutMember(Listed { disk: None, ..member }));
        }
    }

    pub(crate) fn send_to(&mut self, to: MemberId, disk: Option<basalt_model::DiskId>, body: PeerBody) {
        let identity = self.group.log().identity();
        let to_disk = disk.or_else(|| self.state.members().get(&to).and_then(|member| member.disk));
        let message = PeerMessage {
            cluster: identity.cluster,
            from: identity.member,
            from_disk: identity.disk,
            to,
            to_disk,
            body,
        };
        self.outputs.peers.push(message);
    }
}
