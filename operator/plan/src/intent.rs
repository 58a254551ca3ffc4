//! What is asked of the control plane, and why it may refuse.

use basalt_model::{
    NodeName, NodeSpec, ObjectUid, RequestId, SnapshotName, VolumeChange, VolumeId, VolumeName, VolumeSpec,
};
use sha2::{Digest, Sha256};

use crate::object::Facts;

/// One mutation, keyed so that sending it twice is the same as once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Follows from the owner, the object's generation, what was seen, and the content: a retry after a crash has the same
    /// one, another content never has.
    pub request: RequestId,
    /// The UID of the object for which it is asked; the control plane refuses when another one owns the name.
    pub owner: ObjectUid,
    /// What is asked.
    pub body: IntentBody,
}

/// The mutations that the operator makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntentBody {
    /// Creates the node or replaces what is asked of it.
    PutNode {
        /// Its name.
        name: NodeName,
        /// What is asked of it.
        spec: NodeSpec,
    },
    /// Forgets the node.
    DeleteNode {
        /// Its name.
        name: NodeName,
    },
    /// Creates the volume, or adopts a released one.
    CreateVolume {
        /// Its name.
        name: VolumeName,
        /// What is asked of it.
        spec: VolumeSpec,
        /// The released volume to take over.
        adopt: Option<VolumeId>,
    },
    /// Changes the volume.
    UpdateVolume {
        /// Its name.
        name: VolumeName,
        /// What changes.
        change: VolumeChange,
    },
    /// Deletes the volume and its data.
    DeleteVolume {
        /// Its name.
        name: VolumeName,
    },
    /// Puts the volume aside with its data.
    ReleaseVolume {
        /// Its name.
        name: VolumeName,
    },
    /// Takes the snapshot, or adopts a released one.
    CreateSnapshot {
        /// Its name.
        name: SnapshotName,
        /// The volume that it is of.
        volume: VolumeName,
        /// The released snapshot to take over.
        adopt: Option<VolumeId>,
    },
    /// Deletes the snapshot.
    DeleteSnapshot {
        /// Its name.
        name: SnapshotName,
    },
    /// Puts the snapshot aside with its data.
    ReleaseSnapshot {
        /// Its name.
        name: SnapshotName,
    },
}

impl IntentBody {
    /// All words of [`IntentBody::verb`].
    pub const VERBS: [&str; 9] = [
        "put_node",
        "delete_node",
        "create_volume",
        "update_volume",
        "delete_volume",
        "release_volume",
        "create_snapshot",
        "delete_snapshot",
        "release_snapshot",
    ];

    /// A bounded word for logs and metrics.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::PutNode { .. } => "put_node",
            Self::DeleteNode { .. } => "delete_node",
            Self::CreateVolume { .. } => "create_volume",
            Self::UpdateVolume { .. } => "update_volume",
            Self::DeleteVolume { .. } => "delete_volume",
            Self::ReleaseVolume { .. } => "release_volume",
            Self::CreateSnapshot { .. } => "create_snapshot",
            Self::DeleteSnapshot { .. } => "delete_snapshot",
            Self::ReleaseSnapshot { .. } => "release_snapshot",
        }
    }
}

impl Intent {
    /// Keys a mutation. `seen` is the revision of what it changes, 0 where it creates: an intent that was carried out
    /// and then undone by somebody else is a new intent. So is one that was accepted and yet is still to be done, because
    /// the control plane remembers the key from before the object was restored from a copy.
    pub(crate) fn new(facts: &Facts<'_>, seen: u64, body: IntentBody) -> Self {
        let Facts { owner, generation, accepted, .. } = facts;
        let mut hasher = Sha256::new();
        hasher.update(format!("{}\n{owner}\n{generation}\n{seen}\n{accepted}\n{body:?}", body.verb()));
        let digest = hex::encode(&hasher.finalize()[..16]);
        let text = format!("operator.{}.{generation}.{digest}", body.verb());
        let request = RequestId::new(text).unwrap_or_else(|error| {
            unreachable!("a verb, a number and hex digits are visible ASCII and short: {error}")
        });
        Self { request, owner: owner.clone(), body }
    }
}

/// The control plane has refused an intent; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// What kind of refusal.
    pub kind: RejectionKind,
    /// The control plane's sentence.
    pub message: String,
}

/// Kinds of refusal that users can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionKind {
    /// Something that the request names does not exist.
    NotFound,
    /// The name is taken, or the thing differs.
    Conflict,
    /// The request is wrong in itself.
    Invalid,
    /// Not possible in the present state.
    Precondition,
    /// There is no room.
    Exhausted,
    /// No pool is in service yet.
    NoPool,
    /// Not supported yet.
    Unsupported,
    /// The operator itself may not do this.
    Forbidden,
}

impl RejectionKind {
    /// The reason that stands in a condition.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "NotFound",
            Self::Conflict => "Conflict",
            Self::Invalid => "Invalid",
            Self::Precondition => "NotPossibleNow",
            Self::Exhausted => "NoRoom",
            Self::NoPool => "WaitingForPool",
            Self::Unsupported => "Unsupported",
            Self::Forbidden => "Forbidden",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(owner: &str, generation: i64, seen: u64, name: &str) -> Intent {
        let facts = Facts {
            name,
            owner: ObjectUid::new(owner).unwrap(),
            generation,
            deleting: true,
            has_finalizer: true,
            accepted: 0,
        };
        Intent::new(&facts, seen, IntentBody::DeleteVolume { name: VolumeName::new(name).unwrap() })
    }

    #[test]
    fn a_key_follows_from_all_that_is_asked_and_from_nothing_else() {
        let first = intent("u", 1, 2, "a");
        assert_eq!(first, intent("u", 1, 2, "a"));
        for other in
            [intent("v", 1, 2, "a"), intent("u", 2, 2, "a"), intent("u", 1, 3, "a"), intent("u", 1, 2, "b")]
        {
            assert_ne!(first.request, other.request);
        }
    }

    #[test]
    fn the_longest_key_is_a_valid_one() {
        let long = intent(&"u".repeat(128), i64::MIN, u64::MAX, &"a".repeat(253));
        assert!(long.request.as_str().len() <= RequestId::MAX_LENGTH);
    }
}
