//! From what a client asks to a command with everything decided: identifiers, placement, sizes.

use crate::api::Mutation;
use basalt_clock::{Random, SeededRandom};
use basalt_model::{
    Body, Claim, CreateSnapshot, CreateVolume, Demand, FeatureLevel, Member, ObjectUid, Placement, Refusal,
    Selector, State, Volume, VolumeId, VolumeIdentity, VolumeName, VolumeSpec, placement,
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
        Mutation::AbandonPool { node, pool } => Body::AbandonPool { node, pool },
        Mutation::CreateVolume { name, uid, adopt, spec } => {
            return create_volume(state, reserved, random, name, uid, adopt, spec);
        }
        Mutation::UpdateVolume { name, uid, change } => Body::UpdateVolume { name, uid, change },
        Mutation::DeleteVolume { name, uid } => Body::DeleteVolume { name, uid },
        Mutation::ReleaseVolume { name, uid } => Body::ReleaseVolume { name, uid },
        Mutation::CreateSnapshot { name, uid, volume, adopt } => {
            needs_thin(state)?;
            let id = adopt.unwrap_or_else(|| new_id(random));
            let identity = VolumeIdentity::of(id);
            let adopt = adopt.is_some();
            Body::CreateSnapshot(CreateSnapshot { name, uid, id, adopt, volume, identity })
        }
        Mutation::DeleteSnapshot { name, uid } => {
            needs_thin(state)?;
            Body::DeleteSnapshot { name, uid }
        }
        Mutation::ReleaseSnapshot { name, uid } => {
            needs_thin(state)?;
            Body::ReleaseSnapshot { name, uid }
        }
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

/// Refuses what older members could not read.
fn needs_thin(state: &State) -> Result<(), Refusal> {
    let (needed, level) = (FeatureLevel::THIN, state.level());
    if level < needed { Err(Refusal::FeatureLevel { needed, level }) } else { Ok(()) }
}

fn new_id(random: &mut SeededRandom) -> VolumeId {
    VolumeId::from_random((u128::from(random.next_u64()) << 64) | u128::from(random.next_u64()))
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
    let id = adopt.unwrap_or_else(|| new_id(random));
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
            restored_from: volume.restored_from,
        };
        return Ok(Body::CreateVolume(create).into());
    }
    if let Some(id) = adopt {
        return Err(Refusal::NothingToAdopt { id });
    }
    let demand = Demand { size, thin: spec.thin };
    let (selector, restored_from) = where_source_is(state, &spec)?;
    let placement = placement::place(state, &selector, demand, reserved).map_err(Refusal::NoFit)?;
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
        restored_from,
    };
    Ok(Composed { body: Body::CreateVolume(create), reserved: Some((placement, claim)) })
}

/// Where a volume may be placed: what is restored is placed where its snapshot is, if that is what was asked for.
fn where_source_is(state: &State, spec: &VolumeSpec) -> Result<(Selector, Option<VolumeId>), Refusal> {
    let Some(name) = &spec.source else { return Ok((spec.selector.clone(), None)) };
    needs_thin(state)?;
    let missing = || Refusal::NoSuchSnapshot { snapshot: name.clone() };
    let snapshot = state.snapshot_named(name).ok_or_else(missing)?;
    if !snapshot.is_usable() {
        return Err(Refusal::SnapshotNotReady { snapshot: name.clone() });
    }
    let Placement { node, pool } = snapshot.placement.clone();
    let asked = &spec.selector;
    let elsewhere = asked.node.as_ref().is_some_and(|asked| *asked != node)
        || asked.pool.as_ref().is_some_and(|asked| *asked != pool);
    if elsewhere {
        return Err(Refusal::SnapshotElsewhere { snapshot: name.clone(), node, pool });
    }
    let labels = asked.labels.clone();
    Ok((Selector { node: Some(node), pool: Some(pool), labels }, Some(snapshot.id)))
}
