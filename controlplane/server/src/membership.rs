//! The service `basalt.membership.v1.Membership`.

use basalt_client::wire::WireError;
use basalt_core::{ClientRequest, MemberRole, MemberView, Mutation, Read, ReadResult, Reply, RequestError};
use basalt_model::{FeatureLevel, MemberId};
use basalt_proto::membership::{
    self as proto, membership_client::MembershipClient, membership_server::Membership,
};
use tonic::{Request, Response, Status};

use crate::{
    driver::About,
    edge::{self, Changed, Edge},
    errors,
};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct MembershipService {
    edge: Edge,
}

impl MembershipService {
    pub(crate) fn new(edge: Edge) -> Self {
        Self { edge }
    }
}

/// Carries a change out here or forwards the very message to the leader, which answers in our place.
macro_rules! change_or_forward {
    ($service:ident, $caller:ident, $mutation:expr, $message:ident, $method:ident) => {{
        let id = edge::request_id("request_id", &$message.request_id)?;
        match $service.edge.change(&$caller, id, $mutation, About::Nothing).await? {
            Changed::Here(done) => done.revision.0,
            Changed::AtLeader(channel) => {
                let request = $service.edge.forwarded(&$caller, $message)?;
                return MembershipClient::new(channel).$method(request).await;
            }
        }
    }};
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn list_members(
        &self,
        request: Request<proto::ListMembersRequest>,
    ) -> Result<Response<proto::ListMembersResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (own, leader) = {
            let status = self.edge.driver.status();
            let status = status.borrow();
            (status.id, status.leader)
        };
        // Only the leader knows how far the others are.
        if leader.is_some_and(|leader| leader != own)
            && let Ok(channel) = self.edge.leader_channel(&caller, leader)
        {
            let request = self.edge.forwarded(&caller, message)?;
            if let Ok(answer) = MembershipClient::new(channel).list_members(request).await {
                return Ok(answer);
            }
        }
        let (revision, ReadResult::Cluster(view)) = self.edge.read(Read::Cluster).await? else {
            return Err(edge::mismatch());
        };
        Ok(Response::new(proto::ListMembersResponse {
            members: view.members.into_iter().map(encode).collect(),
            leader_id: view.leader.map_or(0, MemberId::get),
            term: view.term,
            revision: revision.0,
        }))
    }

    async fn add_member(
        &self,
        request: Request<proto::AddMemberRequest>,
    ) -> Result<Response<proto::AddMemberResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let mutation = Mutation::AddMember {
            id: member_id("id", message.id)?,
            peer_address: address("peer_address", &message.peer_address)?,
            api_address: address("api_address", &message.api_address)?,
        };
        let revision = change_or_forward!(self, caller, mutation, message, add_member);
        Ok(Response::new(proto::AddMemberResponse { revision }))
    }

    async fn remove_member(
        &self,
        request: Request<proto::RemoveMemberRequest>,
    ) -> Result<Response<proto::RemoveMemberResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let mutation = Mutation::RemoveMember { id: member_id("id", message.id)? };
        let revision = change_or_forward!(self, caller, mutation, message, remove_member);
        Ok(Response::new(proto::RemoveMemberResponse { revision }))
    }

    async fn replace_member(
        &self,
        request: Request<proto::ReplaceMemberRequest>,
    ) -> Result<Response<proto::ReplaceMemberResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let mutation = Mutation::ReplaceMember {
            old: member_id("old_id", message.old_id)?,
            new: member_id("new_id", message.new_id)?,
            peer_address: address("peer_address", &message.peer_address)?,
            api_address: address("api_address", &message.api_address)?,
        };
        let revision = change_or_forward!(self, caller, mutation, message, replace_member);
        Ok(Response::new(proto::ReplaceMemberResponse { revision }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<proto::TransferLeadershipRequest>,
    ) -> Result<Response<proto::TransferLeadershipResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let transfer = ClientRequest::TransferLeader { to: MemberId::new(message.to) };
        let answer = self.edge.driver.ask(transfer, About::Nothing).await.map_err(errors::refused)?;
        match answer.reply {
            Reply::Transferring { to } => {
                Ok(Response::new(proto::TransferLeadershipResponse { to: to.get() }))
            }
            Reply::Failed(RequestError::NotLeader { leader }) => {
                let channel = self.edge.leader_channel(&caller, leader)?;
                let request = self.edge.forwarded(&caller, message)?;
                MembershipClient::new(channel).transfer_leadership(request).await
            }
            Reply::Failed(error) => Err(errors::failed(&error, None)),
            Reply::Done { .. } | Reply::Read { .. } | Reply::Watching { .. } => Err(edge::mismatch()),
        }
    }

    async fn set_feature_level(
        &self,
        request: Request<proto::SetFeatureLevelRequest>,
    ) -> Result<Response<proto::SetFeatureLevelResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let mutation = Mutation::SetFeatureLevel { level: FeatureLevel(message.level) };
        let revision = change_or_forward!(self, caller, mutation, message, set_feature_level);
        Ok(Response::new(proto::SetFeatureLevelResponse { revision }))
    }
}

fn encode(view: MemberView) -> proto::Member {
    proto::Member {
        id: view.member.id.get(),
        peer_address: view.member.peer_address,
        api_address: view.member.api_address,
        role: match view.role {
            MemberRole::Leader => proto::MemberRole::Leader,
            MemberRole::Voter => proto::MemberRole::Voter,
            MemberRole::Learner => proto::MemberRole::Learner,
            MemberRole::Waiting => proto::MemberRole::Waiting,
        }
        .into(),
        disk: view.member.disk.map(|disk| disk.to_string()).unwrap_or_default(),
        version: view.member.version,
        feature_level: view.member.supports.0,
        matched_index: view.matched,
        lag: view.lag,
        active: view.active,
    }
}

fn member_id(field: &'static str, id: u64) -> Result<MemberId, Status> {
    MemberId::new(id).ok_or_else(|| errors::invalid(&WireError::Range { field }))
}

/// `host:port`.
fn address(field: &'static str, text: &str) -> Result<String, Status> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match parts.and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(1..) => Ok(text.to_owned()),
        Some(0) | None => Err(errors::invalid(&WireError::HostPort { field, value: text.to_owned() })),
    }
}
