//! Changing the members of the control plane.

use basalt_model::{DiskId, FeatureLevel, MemberId, RequestId, Revision};
use basalt_proto::membership as proto;

use crate::{
    Client, ClientError,
    client::membership,
    wire::{self, WireError},
};

/// What a member is in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// Leads.
    Leader,
    /// Votes.
    Voter,
    /// Receives the log and does not vote.
    Learner,
    /// Known and not in the group: it has not announced itself yet.
    Waiting,
}

/// A member as the one that answered sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its id.
    pub id: MemberId,
    /// What it is.
    pub role: MemberRole,
    /// Where the other members reach it.
    pub peer_address: String,
    /// Where clients and daemons reach it.
    pub api_address: String,
    /// The disk that it is bound to, once it has announced itself.
    pub disk: Option<DiskId>,
    /// Its program's version.
    pub version: String,
    /// The highest feature level that it supports.
    pub supports: FeatureLevel,
    /// The last log entry that it is known to hold; only the leader knows.
    pub matched: Option<u64>,
    /// How many entries it is behind; only the leader knows.
    pub lag: Option<u64>,
    /// Whether the leader heard of it lately; only the leader knows.
    pub active: Option<bool>,
}

/// The members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembersInfo {
    /// By id.
    pub members: Vec<MemberInfo>,
    /// The leader, when one is known.
    pub leader: Option<MemberId>,
    /// The raft term.
    pub term: u64,
    /// The revision of the answer.
    pub revision: Revision,
}

/// A member to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMember {
    /// Its id, never used before.
    pub id: MemberId,
    /// Where the other members reach it: `host:port`.
    pub peer_address: String,
    /// Where clients and daemons reach it: `host:port`.
    pub api_address: String,
}

impl Client {
    /// The members.
    pub async fn list_members(&self) -> Result<MembersInfo, ClientError> {
        let request = proto::ListMembersRequest {};
        let answer = self
            .call(request, |channel, request| async move { membership(channel).list_members(request).await })
            .await?;
        Ok(MembersInfo {
            members: answer.members.into_iter().map(decode).collect::<Result<_, _>>()?,
            leader: MemberId::new(answer.leader_id),
            term: answer.term,
            revision: Revision(answer.revision),
        })
    }

    /// Lets a member take part as soon as it announces itself.
    pub async fn add_member(&self, request: &RequestId, member: &NewMember) -> Result<Revision, ClientError> {
        let request = proto::AddMemberRequest {
            request_id: request.to_string(),
            id: member.id.get(),
            peer_address: member.peer_address.clone(),
            api_address: member.api_address.clone(),
        };
        let answer = self
            .call(request, |channel, request| async move { membership(channel).add_member(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Takes a member out for good.
    pub async fn remove_member(&self, request: &RequestId, id: MemberId) -> Result<Revision, ClientError> {
        let request = proto::RemoveMemberRequest { request_id: request.to_string(), id: id.get() };
        let answer = self
            .call(request, |channel, request| async move { membership(channel).remove_member(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Takes one member out and another in, once that one has caught up.
    pub async fn replace_member(
        &self,
        request: &RequestId,
        old: MemberId,
        new: &NewMember,
    ) -> Result<Revision, ClientError> {
        let request = proto::ReplaceMemberRequest {
            request_id: request.to_string(),
            old_id: old.get(),
            new_id: new.id.get(),
            peer_address: new.peer_address.clone(),
            api_address: new.api_address.clone(),
        };
        let answer =
            self.call(request, |channel, request| async move {
                membership(channel).replace_member(request).await
            })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Makes another voter the leader; `None` chooses the one that is furthest. The transfer is under way when this returns.
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<MemberId, ClientError> {
        let request = proto::TransferLeadershipRequest { to: to.map_or(0, MemberId::get) };
        let answer = self
            .call(request, |channel, request| async move {
                membership(channel).transfer_leadership(request).await
            })
            .await?;
        MemberId::new(answer.to).ok_or_else(|| WireError::Missing { field: "to" }.into())
    }

    /// Raises the feature level.
    pub async fn set_feature_level(
        &self,
        request: &RequestId,
        level: FeatureLevel,
    ) -> Result<Revision, ClientError> {
        let request = proto::SetFeatureLevelRequest { request_id: request.to_string(), level: level.0 };
        let answer =
            self.call(request, |channel, request| async move {
                membership(channel).set_feature_level(request).await
            })
            .await?;
        Ok(Revision(answer.revision))
    }
}

fn decode(member: proto::Member) -> Result<MemberInfo, WireError> {
    let role = match member.role() {
        proto::MemberRole::Leader => MemberRole::Leader,
        proto::MemberRole::Voter => MemberRole::Voter,
        proto::MemberRole::Learner => MemberRole::Learner,
        proto::MemberRole::Waiting => MemberRole::Waiting,
        proto::MemberRole::Unspecified => {
            return Err(WireError::Unknown { field: "members.role", value: member.role });
        }
    };
    Ok(MemberInfo {
        id: MemberId::new(member.id).ok_or(WireError::Range { field: "members.id" })?,
        role,
        disk: wire::optional_uuid("members.disk", &member.disk)?,
        peer_address: member.peer_address,
        api_address: member.api_address,
        version: member.version,
        supports: FeatureLevel(member.feature_level),
        matched: member.matched_index,
        lag: member.lag,
        active: member.active,
    })
}
