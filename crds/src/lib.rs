//! The custom resources of `basalt.storage/v1alpha1` as typed Rust.
//!
//! Owns: the schema of [`StorageNode`], [`Volume`] and [`Snapshot`], what of it the apiserver refuses by itself (CEL rules whose
//! messages name the field and the remedy), and the committed YAML under `crds/yaml`, which [`manifests`] generates.
//! Never: talks to a cluster, or decides anything; that is `operator/plan`.
//!
//! A field is in the schema only once something acts on it: a setting that is accepted and ignored is a lie. Fields that
//! `docs/` promises for later are refused by kubectl's strict validation until then.
//!
//! Begin with [`volume::VolumeSpec`] and [`storage_node::StorageNodeSpec`].

mod conditions;
mod manifests;
mod size;
pub mod snapshot;
pub mod storage_node;
pub mod volume;

pub use conditions::{Condition, Conditions, Status};
pub use manifests::{Manifest, ManifestError, manifests};
pub use size::{Size, SizeError, format_bytes};
pub use snapshot::{Snapshot, SnapshotSpec, SnapshotStatus};
pub use storage_node::{StorageNode, StorageNodeSpec, StorageNodeStatus};
pub use volume::{Volume, VolumeSpec, VolumeStatus};

/// API group of all Basalt resources.
pub const GROUP: &str = "basalt.storage";
/// API version of all Basalt resources.
pub const VERSION: &str = "v1alpha1";
/// The finalizer with which the operator holds an object until the control plane has let go of what it stands for.
pub const FINALIZER: &str = "basalt.storage/control-plane";
/// Annotation that makes an object stand for what the control plane holds under another UID: after an apiserver was lost and
/// its objects were applied anew, its value is the UID that the control plane names.
pub const OWNER_UID_ANNOTATION: &str = "basalt.storage/owner-uid";
/// Field manager under which the operator applies statuses and finalizers.
pub const FIELD_MANAGER: &str = "basalt-operator";
