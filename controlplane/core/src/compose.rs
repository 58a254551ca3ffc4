//! From what a client asks to a command with everything decided: identifiers, placement, sizes.

use crate::api::Mutation;
use basalt_clock::{Random, SeededRandom};
use basalt_model::{
    Body, Claim, CreateVolume, Demand, FeatureLevel, Member, ObjectUid, Placement, Refusal, State, Volume,
    VolumeId, VolumeIdentity, VolumeName, VolumeSpec, placement,
};
use std::collections::BTreeMap;

/// A command's body, and the space that it will take.
#[derive(Debug)]
pub(crate) struct Composed {
    pub(crate) body: Body,
    pub(crate) reserved: Option<(Placement, Claim)>,
}

impl From<Body> for Composed {
    fn from(body: Body) -> Self {
        Self { body, reserved: None }
    }
}

/// Decides everything that a mutation leaves open. `me` is the member that does, which may not be listed yet.
pub(crate) fn compose(
    state: &State,
    me: &Member,
    reserved: &BTreeMap<Placement, Claim>,
    random: &mut SeededRandom,
    mutation: &Mutation,
) -> Result<Composed, Refusal> {
    let body = match mutation.clone() {
        Mutation::PutNode { name, uid, spec } => Body::PutNode { name, uid, spec },
        Mutation::DeleteNode { name, uid } => Body::DeleteNode { name, uid },
        Mutation::UnbindNode { name } => Body::UnbindNode { name },
        Mutation::AbandonNode { name } => Body::AbandonNode { name },
        Mutation::CreateVolume { name, uid, adopt, spec } => {
            return create_volume(state, reserved, random, name, uid, adopt, spec);
        }
        Mutation::UpdateVolume { name, uid, change } => Body::UpdateVolume { name, uid, change },
        Mutation::DeleteVolume { name, uid } => Body::DeleteVolume { name, uid },
        Mutation::ReleaseVolume { name, uid } => Body::ReleaseVolume { name, uid },
        Mutation::AddMember { id, peer_address, api_address } => {
            Body::PutMember(new_member(state, me, id, None, peer_address, api_address)?)
        }
        Mutation::ReplaceMember { old, new, peer_address, api_address } => {
            if !state.members().contains_key(&old) {
                return Err(Refusal::NoSuchMember { member: old });
            }
            Body::PutMember(new_member(state, me, new, Some(old), peer_address, api_address)?)
        }
        Mutation::RemoveMember { id } => {
            if !state.members().contains_key(&id) && !state.is_retired(id) {
                return Err(Refusal::NoSuchMember { member: id });
            }
            Body::RemoveMember { id }
        }
        Mutation::SetFeatureLevel { level } => Body::SetFeatureLevel { level },
    };
    Ok(body.into())
}

fn new_member(
    state: &State,
    me: &Member,
    id: basalt_model::MemberId,
    replaces: Option<basalt_model::MemberId>,
    peer_address: String,
    api_address: String,
) -> Result<Member, Refusal> {
    let present = state.members().get(&id);
    // Until it has a disk it does not take part, and a wrong address can be put right.
    if present.is_some_and(|member| {
        let same = member.peer_address == peer_address && member.api_address == api_address;
        member.disk.is_some() && !(same && member.replaces == replaces)
    }) {
        return Err(Refusal::MemberExists { member: id });
    }
    let member = Member {
        id,
        disk: present.and_then(|member| member.disk),
        replaces,
        peer_address,
        api_address,
        supports: present.map_or(FeatureLevel::FIRST.max(state.level()), |member| member.supports),
        version: present.map_or_else(String::new, |member| member.version.clone()),
    };
    match member.address_taken(state.members().values().chain([me])) {
        Some(taken) => Err(taken),
        None => Ok(member),
    }
}

fn create_volume(
    state: &State,
    reserved: &BTreeMap<Placement, Claim>,
    random: &mut SeededRandom,
    name: VolumeName,
    uid: Option<ObjectUid>,
    adopt: Option<VolumeId>,
    spec: VolumeSpec,
) -> Result<Composed, Refusal> {
    let size = spec.size.round_up(Volume::SIZE_UNIT).unwrap_or(spec.size);
    let bits = (u128::from(random.next_u64()) << 64) | u128::from(random.next_u64());
    let id = adopt.unwrap_or_else(|| VolumeId::from_random(bits));
    let known = state.volume_named(&name).or_else(|| adopt.and_then(|id| state.volumes().get(&id)));
    if let Some(volume) = known {
        // It exists: whether this is the same request is for `apply` to say. Should the volume be gone by then, a new one
        // takes its place, and never its identity.
        let create = CreateVolume {
            name,
            uid,
            id,
            adopt: adopt.is_some(),
            spec,
            size,
            identity: VolumeIdentity::of(id),
            placement: volume.placement.clone(),
        };
        return Ok(Body::CreateVolume(create).into());
    }
    if let Some(id) = adopt {
        return Err(Refusal::NothingToAdopt { id });
    }
    let demand = Demand { size, thin: spec.thin };
    let placement = placement::place(state, &spec.selector, demand, reserved).map_err(Refusal::NoFit)?;
    let unit = state
        .nodes()
        .get(&placement.node)
        .and_then(|node| node.pool(&placement.pool))
        .map_or(Volume::SIZE_UNIT, |pool| pool.allocation_unit);
    let claim = demand.claim(unit).unwrap_or_default();
    let create = CreateVolume {
        name,
        uid,
        id,
        adopt: false,
        spec,
        size,
        identity: VolumeIdentity::of(id),
        placement: placement.clone(),
    };
    Ok(Composed { body: Body::CreateVolume(create), reserved: Some((placement, claim)) })
}
