//! What every object has in common.

use basalt_crds::{FINALIZER, OWNER_UID_ANNOTATION};
use basalt_model::{ClusterId, ObjectUid};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What of an object's metadata matters to a plan.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) name: &'a str,
    /// The UID under which the control plane knows the object: its own, or the one that a user wrote into the annotation.
    pub(crate) owner: ObjectUid,
    pub(crate) generation: i64,
    pub(crate) deleting: bool,
    pub(crate) has_finalizer: bool,
    /// How many intents were accepted for it just now.
    pub(crate) accepted: u32,
}

impl<'a> Facts<'a> {
    /// `None` for an object that no apiserver has stored, or whose annotation is no UID.
    pub(crate) fn of(metadata: &'a ObjectMeta, accepted: u32) -> Option<Self> {
        let annotated = metadata.annotations.as_ref().and_then(|all| all.get(OWNER_UID_ANNOTATION));
        let uid = annotated.or(metadata.uid.as_ref())?;
        Some(Self {
            name: metadata.name.as_deref()?,
            owner: ObjectUid::new(uid.as_str()).ok()?,
            generation: metadata.generation.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            has_finalizer: metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER),
            accepted,
        })
    }
}

/// What a status says of an earlier life.
#[derive(Debug)]
pub(crate) struct Recorded<'a> {
    pub(crate) id: Option<&'a str>,
    pub(crate) cluster: Option<&'a str>,
}

impl<'a> Recorded<'a> {
    /// The cluster that the object belongs to, if another one answers.
    pub(crate) fn other_cluster(&self, answering: ClusterId) -> Option<&'a str> {
        self.cluster.filter(|recorded| *recorded != answering.to_string())
    }
}
