//! Answers to reads, from the applied state.

use crate::api::{ClusterView, MemberRole, MemberView, Page, Read, ReadResult};
use crate::member::Member;
use basalt_model::{NodeName, Snapshot, SnapshotName, Volume, VolumeId, VolumeName};
use basalt_raft::Disk;
use std::ops::Bound;
use std::sync::Arc;

/// Begins the token of a released volume or snapshot; no name does.
const RELEASED: &str = "released/";

impl<D: Disk> Member<D> {
    pub(crate) fn answer(&self, read: &Read) -> ReadResult {
        match read {
            Read::Node(name) => ReadResult::Node(self.state.nodes().get(name).cloned().map(Arc::new)),
            Read::Nodes(page) => self.list_nodes(page),
            Read::Volume(name) => ReadResult::Volume(self.state.volume_named(name).cloned().map(Arc::new)),
            Read::VolumeById(id) => ReadResult::Volume(self.state.volumes().get(id).cloned().map(Arc::new)),
            Read::Volumes(page) => self.list_volumes(page),
            Read::Snapshot(name) => {
                ReadResult::Snapshot(self.state.snapshot_named(name).cloned().map(Arc::new))
            }
            Read::SnapshotById(id) => {
                ReadResult::Snapshot(self.state.snapshots().get(id).cloned().map(Arc::new))
            }
            Read::Snapshots(page) => self.list_snapshots(page),
            Read::Cluster => ReadResult::Cluster(self.cluster_view()),
        }
    }

    fn page_size(&self, page: &Page) -> usize {
        let most = self.config.limits.page.max(1);
        if page.limit == 0 { most } else { page.limit.min(most) }
    }

    fn list_nodes(&self, page: &Page) -> ReadResult {
        let limit = self.page_size(page);
        let after = page.after.as_ref().and_then(|token| NodeName::new(token.clone()).ok());
        let start = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.state.nodes().range((start, Bound::Unbounded)).map(|(_, node)| node);
        let items: Vec<_> = rest.by_ref().take(limit).cloned().map(Arc::new).collect();
        let next = rest.next().and(items.last()).map(|node| node.name.to_string());
        ReadResult::Nodes { items, next }
    }

    fn list_volumes(&self, page: &Page) -> ReadResult {
        let limit = self.page_size(page);
        let token = page.after.as_deref().unwrap_or_default();
        let released_after = token.strip_prefix(RELEASED);
        let name = released_after.is_none().then(|| VolumeName::new(token).ok()).flatten();
        let named = self.state.named_volumes(name.as_ref()).take_while(|_| released_after.is_none());
        let id: Option<VolumeId> = released_after.and_then(|id| id.parse().ok());
        let mut rest = named.chain(self.state.released_volumes(id));
        let items: Vec<Arc<Volume>> = rest.by_ref().take(limit).cloned().map(Arc::new).collect();
        let next = rest.next().and(items.last()).map(|volume| match volume.lifecycle {
            basalt_model::Lifecycle::Released => format!("{RELEASED}{}", volume.id),
            _ => volume.name.to_string(),
        });
        ReadResult::Volumes { items, next }
    }

    fn list_snapshots(&self, page: &Page) -> ReadResult {
        let limit = self.page_size(page);
        let token = page.after.as_deref().unwrap_or_default();
        let released_after = token.strip_prefix(RELEASED);
        let name = released_after.is_none().then(|| SnapshotName::new(token).ok()).flatten();
        let named = self.state.named_snapshots(name.as_ref()).take_while(|_| released_after.is_none());
        let id: Option<VolumeId> = released_after.and_then(|id| id.parse().ok());
        let mut rest = named.chain(self.state.released_snapshots(id));
        let items: Vec<Arc<Snapshot>> = rest.by_ref().take(limit).cloned().map(Arc::new).collect();
        let next = rest.next().and(items.last()).map(|snapshot| match snapshot.lifecycle {
            basalt_model::Lifecycle::Released => format!("{RELEASED}{}", snapshot.id),
            _ => snapshot.name.to_string(),
        });
        ReadResult::Snapshots { items, next }
    }

    fn cluster_view(&self) -> ClusterView {
        let status = self.group.status();
        let membership = self.group.membership();
        let progress = self.group.members();
        let members = self
            .state
            .members()
            .values()
            .map(|member| {
                let id = member.id.get();
                let role = if status.leader == Some(member.id) {
                    MemberRole::Leader
                } else if membership.voters.contains(&id) || membership.voters_outgoing.contains(&id) {
                    MemberRole::Voter
                } else if membership.learners.contains(&id) {
                    MemberRole::Learner
                } else {
                    MemberRole::Waiting
                };
                let known = progress.iter().find(|p| p.member == member.id).filter(|_| status.is_leader);
                MemberView {
                    member: member.clone(),
                    role,
                    matched: known.map(|p| p.matched),
                    lag: known.map(|p| status.last.saturating_sub(p.matched)),
                    active: known.map(|p| p.active),
                }
            })
            .collect();
        ClusterView {
            cluster: self.state.cluster(),
            incarnation: self.state.incarnation(),
            level: self.state.level(),
            term: status.term,
            leader: status.leader,
            members,
            nodes: self.state.nodes().len(),
            volumes: self.state.volumes().len(),
            snapshots: self.state.snapshots().len(),
        }
    }
}
