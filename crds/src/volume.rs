//! `Volume` (`bv`): what a user asks for and gets.

#![allow(
    unreachable_pub,
    reason = "KubeSchema copies each struct, with its visibility, into a function body"
)]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::storage_node::{LABEL_KEYS, LABEL_VALUES, label_value};
use crate::{Condition, Size};

/// What a user asks for: a block device of a size, served under one NQN and one namespace UUID for its whole life.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "basalt.storage",
    version = "v1alpha1",
    kind = "Volume",
    plural = "volumes",
    singular = "volume",
    shortname = "bv",
    category = "basalt",
    status = "VolumeStatus",
    derive = "PartialEq",
    cel,
    doc = "A block device served over NVMe-oF. `kubectl get bv` says whether it is all right.",
    validation = Rule::new("self.metadata.name.size() <= 63").message(
        "metadata.name of a Volume has at most 63 characters: choose a shorter name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase",
        description = "Pending, Creating, Online, Degraded, Unavailable, Faulted or Deleting"),
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size",
        description = "What was asked for; hosts see status.size"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether hosts can read and write"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is, or is not, ready"),
    printcolumn(name = "Synced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Synced\")].status",
        description = "Whether the specification is in effect"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.targetNode",
        description = "The node whose path is optimized"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.endpoint",
        description = "Where hosts connect first"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used",
        description = "What of it takes space in its pool"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "NQN", type_ = "string", json_path = ".status.nqn", priority = "1"),
    printcolumn(name = "Message", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1")
)]
#[x_kube(
    validation = Rule::new("has(self.volumeId) == has(oldSelf.volumeId) && \
        (!has(self.volumeId) || self.volumeId == oldSelf.volumeId)").message(
        "spec.volumeId is immutable: to adopt another volume, create another Volume object"),
    validation = Rule::new("has(self.topology) == has(oldSelf.topology) && \
        (!has(self.topology) || self.topology == oldSelf.topology)").message(
        "spec.topology is immutable: to place the data elsewhere, create another Volume and copy into it"),
    validation = Rule::new("has(self.source) == has(oldSelf.source) && \
        (!has(self.source) || self.source == oldSelf.source)").message(
        "spec.source is immutable: a volume begins once, so create another Volume for another snapshot"),
    validation = Rule::new("!has(self.source) || self.thin").message(
        "spec.thin must be true with spec.source: a volume that is restored shares its snapshot's data"),
    validation = Rule::new("!has(self.source) || !has(self.volumeId)").message(
        "spec.source and spec.volumeId exclude each other: a volume that exists begins as nothing else")
)]
pub struct VolumeSpec {
    /// How large the volume is; raise it and the volume grows while hosts use it: a whole number with Mi, Gi, Ti or Pi, or a number of bytes that is a multiple of 1Mi.
    #[x_kube(
        validation = Rule::new("string(self).matches('^[1-9][0-9]{0,15}(Mi|Gi|Ti|Pi)?$')").message(
            "spec.size must be a positive whole number with Mi, Gi, Ti or Pi, for example 512Mi, 10Gi or 2Ti"),
        validation = Rule::new("!string(self).matches('^[0-9]{1,16}$') || int(string(self)) % 1048576 == 0").message(
            "spec.size must be a multiple of 1Mi (1048576 bytes): write it with Mi or Gi, for example 10Gi"),
        validation = Rule::new("!isQuantity(string(self)) || \
            quantity(string(self)).compareTo(quantity('1Pi')) <= 0").message("spec.size must be at most 1Pi"),
        validation = Rule::new("!isQuantity(string(self)) || \
            quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0").message(
            "spec.size can never shrink, because that would cut off data: create a smaller Volume and copy into it")
    )]
    pub size: Size,

    /// How many nodes hold a copy.
    #[serde(default = "one")]
    #[x_kube(validation = Rule::new("self == 1").message(
        "spec.replicas must be 1 until replication exists: set it to 1 or leave it out"))]
    pub replicas: i32,

    /// Whether space is taken only when it is written, and given back when hosts discard it. Such volumes share what the others
    /// leave of their pool: when the pool is full, hosts are told so (Capacity Exceeded) where they write for the first time.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message(
        "spec.thin is immutable: create another Volume and copy into it"))]
    pub thin: bool,

    /// Whether hosts can only read. Can be changed at any time: what hosts write from then on is refused (Namespace is Write
    /// Protected), and what they wrote before is there.
    #[serde(default)]
    pub read_only: bool,

    /// How hosts reach the volume.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message(
        "spec.transport is immutable: create another Volume for another transport"))]
    pub transport: Transport,

    /// Where the volume may be placed. Absent: wherever there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,

    /// The NQNs of the hosts that may connect. Empty or absent: nobody. `["*"]`: any host, which a condition warns of.
    #[serde(default)]
    #[schemars(length(max = 128), inner(length(min = 1, max = 223)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(host, host == '*' || \
            host.matches('^nqn[.][0-9]{4}-[0-9]{2}[.][!-~]+$'))").message(
            "spec.allowedHosts entries must be host NQNs such as nqn.2014-08.org.nvmexpress:uuid:... \
            (a host prints its own with `cat /etc/nvme/hostnqn`), or \"*\" alone for any host"),
        validation = Rule::new("!('*' in self) || self.size() == 1").message(
            "spec.allowedHosts with \"*\" lets any host in: remove the other entries, or remove \"*\"")
    )]
    pub allowed_hosts: Vec<String>,

    /// What becomes of the data when this object is deleted.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,

    /// What the volume begins as. Absent: it reads as zeroes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeSource>,

    /// Adopts the existing volume of this id instead of creating one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')").message(
        "spec.volumeId must be a lower-case UUID as `kubectl basalt volumes` shows it; \
        leave it out to create a new volume"))]
    pub volume_id: Option<String>,
}

const fn one() -> i32 {
    1
}

/// What a volume begins as.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSource {
    /// The Snapshot that it is restored from. The volume is placed where the snapshot is, and may be larger. Once it is online it
    /// needs the snapshot no more.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message(
        "spec.source.snapshot must be the name of a Snapshot"))]
    pub snapshot: String,
}

/// How hosts reach a volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// NVMe/TCP.
    #[default]
    #[serde(rename = "tcp")]
    Tcp,
}

/// Where a volume may be placed. All that is given must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Only on this `StorageNode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message(
        "spec.topology.node must be the name of a StorageNode"))]
    pub node: Option<String>,
    /// Only in pools of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
        "spec.topology.pool must be the name of a pool"))]
    pub pool: Option<String>,
    /// Only in pools that have all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = label_value()))]
    #[x_kube(validation = Rule::new(LABEL_KEYS).message(
        "spec.topology.poolLabels must have keys of at most 63 letters, digits, dashes, dots and underscores, for example tier, which may \
        follow a domain and a slash, for example example.com/tier"))]
    #[x_kube(validation = Rule::new(LABEL_VALUES).message(
        "spec.topology.poolLabels must have values of letters, digits, dashes, dots and underscores that begin and end with a letter \
        or digit, for example nvme"))]
    pub pool_labels: BTreeMap<String, String>,
}

/// What becomes of the data when the object is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReclaimPolicy {
    /// The data is deleted with the object.
    #[default]
    Delete,
    /// The data stays, is served to nobody, and can be adopted with `spec.volumeId`.
    Retain,
}

/// What was observed of a volume. Written by the operator alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// One word for the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VolumePhase>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The NVMe qualified name under which hosts connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<String>,
    /// The UUID of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The id by which the control plane knows the volume; `spec.volumeId` of another object can adopt it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<String>,
    /// The cluster that holds it. The same object against another cluster is not the same volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// How large hosts see the volume, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// What of it lies on the disks of its pool, as a quantity; space that it shares with snapshots is counted here too. Some
    /// seconds old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// The node whose path is ANA-optimized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_node: Option<String>,
    /// Address and port of the first path, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The fencing epoch at which the target serves: incarnation of the cluster, point, counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// Where hosts can connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into(), "address".into(), "port".into()]))]
    pub paths: Vec<PathStatus>,
    /// The copies of the data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into(), "pool".into()]))]
    pub replicas: Vec<ReplicaStatus>,
    /// `Ready`: hosts can read and write. `Synced`: the control plane has accepted the spec. `AccessRestricted`: only
    /// named hosts may connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One way to a volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PathStatus {
    /// The `StorageNode` behind it.
    pub node: String,
    /// IP address that hosts connect to.
    pub address: String,
    /// Port that hosts connect to.
    pub port: i32,
    /// What the target says of this path.
    pub ana_state: AnaState,
}

/// Asymmetric namespace access state (NVMe Base 2.1, section 8.1.1).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnaState {
    /// The path to use.
    #[serde(rename = "optimized")]
    Optimized,
    /// A path that works at a cost.
    #[serde(rename = "non-optimized")]
    NonOptimized,
    /// A path that waits.
    #[serde(rename = "inaccessible")]
    Inaccessible,
    /// A path that is changing.
    #[serde(rename = "change")]
    Change,
}

/// One copy of the data.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// The `StorageNode` that holds it.
    pub node: String,
    /// The pool that holds it.
    pub pool: String,
    /// What the node says of it.
    pub state: ReplicaState,
    /// What is wrong, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// State of one copy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// Ordered, not there yet.
    Creating,
    /// There and in sync.
    Online,
    /// Its node cannot be seen.
    Unknown,
    /// There is something wrong with it: see `message`.
    Faulted,
}

/// One word for the conditions of a volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumePhase {
    /// Not accepted by the control plane yet.
    Pending,
    /// Accepted; the data plane is at it.
    Creating,
    /// Hosts can read and write, and every copy is in sync.
    Online,
    /// Hosts can read and write, but a copy is missing.
    Degraded,
    /// No in-sync copy can be reached now. Nothing is lost by what is known.
    Unavailable,
    /// Data is lost.
    Faulted,
    /// Being deleted.
    Deleting,
}

impl VolumePhase {
    /// The word that stands in the object.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Creating => "Creating",
            Self::Online => "Online",
            Self::Degraded => "Degraded",
            Self::Unavailable => "Unavailable",
            Self::Faulted => "Faulted",
            Self::Deleting => "Deleting",
        }
    }
}
