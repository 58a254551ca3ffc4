//! Snapshots.

use basalt_model::{Bytes, Revision, Snapshot, Timestamp};
use basalt_proto::api;

use super::volume::{
    decode_epoch, decode_identity, decode_lifecycle, decode_observed, decode_placement, decode_state,
    encode_epoch, encode_identity, encode_observed, encode_placement, encode_state, tombstone_of,
};
use super::{WireError, name, optional_name, required, text, uuid};

/// A snapshot.
pub fn encode(snapshot: &Snapshot) -> api::Snapshot {
    let (phase, problem) = encode_state(&snapshot.state);
    api::Snapshot {
        id: snapshot.id.to_string(),
        name: snapshot.name.to_string(),
        volume: snapshot.volume.to_string(),
        source_volume_id: snapshot.source.to_string(),
        owner_uid: text(snapshot.uid.as_ref()),
        status: Some(api::SnapshotStatus {
            phase: phase.into(),
            problem,
            identity: Some(encode_identity(&snapshot.identity)),
            size_bytes: snapshot.size.0,
            footprint_bytes: snapshot.footprint.0,
            placement: Some(encode_placement(&snapshot.placement)),
            epoch: Some(encode_epoch(snapshot.epoch)),
            observed: snapshot.observed.as_ref().map(encode_observed),
            taken_at_ms: snapshot.taken_at.map(|taken| taken.0),
            released: snapshot.lifecycle == basalt_model::Lifecycle::Released,
            tombstone: tombstone_of(&snapshot.lifecycle),
        }),
        generation: snapshot.generation,
        created_at_ms: snapshot.created_at.0,
        created_revision: snapshot.created.0,
        modified_revision: snapshot.modified.0,
    }
}

/// A snapshot.
pub fn decode(snapshot: api::Snapshot) -> Result<Snapshot, WireError> {
    let status = required("status", snapshot.status)?;
    Ok(Snapshot {
        id: uuid("id", &snapshot.id)?,
        name: name("name", &snapshot.name)?,
        uid: optional_name("owner_uid", &snapshot.owner_uid)?,
        volume: name("volume", &snapshot.volume)?,
        source: uuid("source_volume_id", &snapshot.source_volume_id)?,
        size: Bytes(status.size_bytes),
        footprint: Bytes(status.footprint_bytes),
        identity: decode_identity(required("status.identity", status.identity)?)?,
        placement: decode_placement(required("status.placement", status.placement)?)?,
        epoch: decode_epoch(required("status.epoch", status.epoch)?),
        generation: snapshot.generation,
        lifecycle: decode_lifecycle(status.tombstone.as_ref(), status.released)?,
        state: decode_state(status.phase, status.problem)?,
        observed: status.observed.map(decode_observed).transpose()?,
        taken_at: status.taken_at_ms.map(Timestamp),
        created_at: Timestamp(snapshot.created_at_ms),
        created: Revision(snapshot.created_revision),
        modified: Revision(snapshot.modified_revision),
    })
}

#[cfg(test)]
mod tests {
    use basalt_model::{
        ClusterId, Epoch, Incarnation, Lifecycle, Placement, Tombstone, VolumeHealth, VolumeId,
        VolumeIdentity, VolumeObserved, VolumeState,
    };

    use super::*;

    fn snapshot(lifecycle: Lifecycle, state: VolumeState, taken_at: Option<Timestamp>) -> Snapshot {
        let id = VolumeId::from_random(1);
        Snapshot {
            id,
            name: "s1".parse().unwrap(),
            uid: Some("u".parse().unwrap()),
            volume: "v1".parse().unwrap(),
            source: VolumeId::from_random(2),
            size: Bytes(1 << 20),
            footprint: Bytes(4 << 20),
            identity: VolumeIdentity::of(id),
            placement: Placement { node: "n1".parse().unwrap(), pool: "p1".parse().unwrap() },
            epoch: Epoch { incarnation: Incarnation(2), counter: 3 },
            generation: 4,
            lifecycle,
            state,
            observed: taken_at.map(|_| VolumeObserved {
                health: VolumeHealth::Online,
                size: Bytes(1 << 20),
                generation: 3,
                allocated: Some(Bytes(9)),
                shortfall: None,
                paths: Vec::new(),
            }),
            taken_at,
            created_at: Timestamp(5),
            created: Revision(6),
            modified: Revision(7),
        }
    }

    #[test]
    fn snapshots_round_trip_in_every_state() {
        let tombstone = Tombstone {
            cluster: ClusterId::from_random(9),
            volume: VolumeId::from_random(1),
            generation: 4,
            node: "n1".parse().unwrap(),
            pool: "p1".parse().unwrap(),
        };
        for (lifecycle, state, taken_at) in [
            (Lifecycle::Active, VolumeState::Creating, None),
            (Lifecycle::Active, VolumeState::Online, Some(Timestamp(0))),
            (Lifecycle::Released, VolumeState::Released, Some(Timestamp(8))),
            (Lifecycle::Deleting(tombstone), VolumeState::Deleting, None),
        ] {
            let snapshot = snapshot(lifecycle, state, taken_at);
            assert_eq!(decode(encode(&snapshot)).unwrap(), snapshot);
        }
    }

    #[test]
    fn foreign_input_is_refused_by_field() {
        let refused = |change: fn(&mut api::Snapshot), expected: &str| {
            let mut wire = encode(&snapshot(Lifecycle::Active, VolumeState::Creating, None));
            change(&mut wire);
            assert_eq!(decode(wire).unwrap_err().field(), expected);
        };
        refused(|wire| wire.id = "1".into(), "id");
        refused(|wire| wire.volume = String::new(), "volume");
        refused(|wire| wire.status = None, "status");
        refused(|wire| wire.status.as_mut().unwrap().phase = 99, "status.phase");
    }
}
