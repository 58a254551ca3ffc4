//! Going on after a majority of the members' disks was lost.

use crate::api::{Config, Fatal};
use basalt_clock::{Random, SeededRandom};
use basalt_model::{Body, Command, DiskId, FeatureLevel, Incarnation, Member, Revision, State, Timestamp};
use basalt_raft::{Disk, EntryKind, Log, LogConfig, LogError, Membership};

/// What a recovery did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The new incarnation.
    pub incarnation: Incarnation,
    /// The revision at which it begins. Higher than any that the lost members can have given out.
    pub revision: Revision,
    /// The members that are no more, whose disks must never be used again.
    pub retired: Vec<Member>,
}

/// Makes this stopped member's disk the only voter of a new incarnation of the cluster, after a majority of the members'
/// disks was lost. The other old members must never run again.
///
/// Everything in this member's log is taken as committed: it may have been, and the members that know are gone.
pub fn recover<D: Disk>(config: &Config, disk: D, now: Timestamp, seed: u64) -> Result<Recovered, Fatal> {
    let mut random = SeededRandom::new(seed);
    let bits = (u128::from(random.next_u64()) << 64) | u128::from(random.next_u64());
    let log_config = LogConfig {
        member: config.member.id,
        new_disk: DiskId::from_random(bits),
        segment_bytes: config.limits.segment_bytes,
    };
    let mut log = Log::open(disk, log_config)?;
    let snapshot = log.snapshot().ok_or(Fatal::Log(LogError::Empty))?;
    let (index, source_data) = (snapshot.index, std::sync::Arc::clone(&snapshot.data));
    let mut state = State::decode(&source_data).map_err(|source| Fatal::Snapshot { index, source })?;
    for entry in log.entries_after(index) {
        let revision = Revision(entry.index);
        if entry.kind == EntryKind::Membership || entry.data.is_empty() {
            state.advance(revision);
            continue;
        }
        let command =
            Command::decode(&entry.data).map_err(|source| Fatal::Decode { index: entry.index, source })?;
        state.apply(revision, &command);
    }
    let mut revision = Revision(state.revision().0 + State::RECOVERY_JUMP);
    let mut apply = |state: &mut State, body: Body| {
        let outcome = state.apply(revision, &Command::new(now, None, body));
        revision = Revision(revision.0 + 1);
        outcome.result.map(|_| ()).map_err(Fatal::Recovery)
    };
    let me = Member { disk: Some(log.identity().disk), replaces: None, ..config.member.clone() };
    let supports = me.supports.max(FeatureLevel::FIRST);
    let retired: Vec<Member> =
        state.members().values().filter(|member| member.id != me.id).cloned().collect();
    apply(&mut state, Body::PutMember(Member { supports, ..me }))?;
    for member in &retired {
        apply(&mut state, Body::RemoveMember { id: member.id })?;
    }
    let incarnation = Incarnation(state.incarnation().0 + 1);
    apply(&mut state, Body::StartIncarnation { incarnation })?;
    let membership = Membership { voters: vec![config.member.id.get()], ..Membership::default() };
    log.restart_from(state.revision().0, membership, state.encode()?)?;
    basalt_clock::mark!("recovered-from-lost-majority");
    Ok(Recovered { incarnation, revision: state.revision(), retired })
}
