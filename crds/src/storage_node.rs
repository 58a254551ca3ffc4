//! `StorageNode` (`bsn`): a machine that runs one daemon.

#![allow(
    unreachable_pub,
    reason = "KubeSchema copies each struct, with its visibility, into a function body"
)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::Condition;
use crate::volume::Transport;

/// A machine that runs one `basaltd`, the disks it may use, and where its volumes are served.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "basalt.storage",
    version = "v1alpha1",
    kind = "StorageNode",
    plural = "storagenodes",
    singular = "storagenode",
    shortname = "bsn",
    category = "basalt",
    status = "StorageNodeStatus",
    derive = "PartialEq",
    cel,
    doc = "A machine that runs one Basalt data-plane daemon. `kubectl get bsn` says whether it is all right.",
    validation = Rule::new("self.metadata.name.size() <= 63").message(
        "metadata.name of a StorageNode has at most 63 characters: choose a shorter name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase",
        description = "Pending, Online, Degraded, Offline or Deleting"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the daemon is there and serves what it should"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is, or is not, ready"),
    printcolumn(name = "Synced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Synced\")].status",
        description = "Whether the control plane has accepted the specification"),
    printcolumn(name = "Cordoned", type_ = "boolean", json_path = ".spec.unschedulable",
        description = "Whether new volumes stay away"),
    printcolumn(name = "Capacity", type_ = "string", json_path = ".status.capacity"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "Volumes", type_ = "integer", json_path = ".status.volumes"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = "1"),
    printcolumn(name = "Message", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1")
)]
pub struct StorageNodeSpec {
    /// IP address at which hosts reach the machine.
    #[schemars(length(max = 64))]
    #[x_kube(
        validation = Rule::new("isIP(self)").message(
            "spec.address must be an IP address without a port, for example 192.0.2.7"),
        validation = Rule::new("!self.matches('^(22[4-9]|23[0-9])[.]|^[fF][fF]')").message(
            "spec.address must be the machine's own address, not a multicast one"),
        validation = Rule::new("self != '255.255.255.255'").message(
            "spec.address must be the machine's own address, not the broadcast one"),
        validation = Rule::new("!self.matches('^(0[.]0[.]0[.]0|[0:.]+)$')").message(
            "spec.address must be an address that hosts can reach, not a wildcard: give the machine's own, for \
            example 192.0.2.7")
    )]
    pub address: String,

    /// The cores that run reactors: how many (`2`), or which (`"0,2-5"`). Takes effect when the daemon starts.
    #[serde(default)]
    #[x_kube(
        validation = Rule::new("self != 0").message(
            "spec.cores must be at least 1, or a list of cores in quotes, for example \"0,2-5\""),
        validation = Rule::new("string(self).matches('^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$')").message(
            "spec.cores must be a number of cores, for example 2, or a list of cores, for example \"0,2-5\""),
        validation = Rule::new("!string(self).matches('[2-9][0-9]{3}|1[1-9][0-9]{2}|10[3-9][0-9]|102[4-9]')").message(
            "spec.cores may use the numbers up to 1023: reactors take at most 1023 cores, numbered from 0")
    )]
    pub cores: CoreSet,

    /// Where volumes are served.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, self.exists_one(b, b.bind == a.bind))").message(
            "spec.listeners must not bind the same address twice: give each listener a port of its own"),
        validation = Rule::new("self.all(a, !a.bind.matches(r'^(0[.]0[.]0[.]0|\\[[0:.]+\\]):') || \
            self.exists_one(b, b.bind.substring(b.bind.lastIndexOf(':') + 1) == \
            a.bind.substring(a.bind.lastIndexOf(':') + 1)))").message(
            "spec.listeners that bind a wildcard take their port on every address of the machine: give the other \
            listeners another port")
    )]
    pub listeners: Vec<Listener>,

    /// The disks that hold logical volumes.
    #[serde(default)]
    #[schemars(length(max = 8))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(p, p.disks.all(d, self.exists_one(q, d in q.disks)))").message(
            "spec.pools must not share a disk: a disk belongs to exactly one pool"),
        validation = Rule::new("self.all(p, oldSelf.all(q, q.name != p.name || q.layout == p.layout))").message(
            "spec.pools[].layout is immutable: a pool keeps what it was made with; make another pool of other disks"),
        validation = Rule::new("self.all(p, oldSelf.all(q, q.name != p.name || q.allocationUnit == p.allocationUnit))").message(
            "spec.pools[].allocationUnit is immutable: a pool keeps what it was made with; make another pool of other disks")
    )]
    pub pools: Vec<Pool>,

    /// Keeps new volumes away from this node. Volumes that are here stay and are served.
    #[serde(default)]
    pub unschedulable: bool,
}

/// The cores that run reactors.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum CoreSet {
    /// That many, wherever.
    Count(u32),
    /// Exactly these: numbers and ranges (from either end), separated by commas.
    List(String),
}

impl Default for CoreSet {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl JsonSchema for CoreSet {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "CoreSet".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

/// One address at which volumes are served.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.advertise) || \
    !self.bind.matches(r'^(0[.]0[.]0[.]0|\\[[0:.]+\\]):')").message(
    "spec.listeners[].advertise is required where bind is a wildcard: give the address and port that hosts reach"))]
pub struct Listener {
    /// Name of the listener, unique within the node.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
        "spec.listeners[].name must be lower-case letters, digits and dashes, for example tcp"))]
    pub name: String,

    /// Transport of the listener.
    #[serde(default)]
    pub transport: Transport,

    /// IP address and port that the daemon binds, for example `0.0.0.0:4420` or `[::]:4420`.
    #[schemars(length(max = 64))]
    #[x_kube(
        validation = Rule::new("self.matches(r'^([0-9.]+|\\[[0-9a-fA-F]*:[0-9a-fA-F:.]+\\]):[1-9][0-9]{0,4}$')").message(
            "spec.listeners[].bind must be an IP address and a port, for example 0.0.0.0:4420 or [::]:4420"),
        validation = Rule::new("!self.matches(r'^([0-9.]+|\\[[0-9a-fA-F]*:[0-9a-fA-F:.]+\\]):[1-9][0-9]{0,4}$') || \
            (isIP(self.replace('[', '').replace(']', '').substring(0, \
            self.replace('[', '').replace(']', '').lastIndexOf(':'))) && \
            int(self.substring(self.lastIndexOf(':') + 1)) <= 65535)").message(
            "spec.listeners[].bind must have a valid IP address and a port from 1 to 65535"),
        validation = Rule::new(r"!self.matches('^(22[4-9]|23[0-9])[.]|^255[.]255[.]255[.]255:|^\\[[fF][fF]')").message(
            "spec.listeners[].bind must be an address of the machine or a wildcard, not a multicast or broadcast one")
    )]
    pub bind: String,

    /// What hosts are told to connect to, when that is not `bind`: behind an address translation, or where `bind`
    /// is a wildcard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(
        validation = Rule::new("self.matches(r'^([0-9.]+|\\[[0-9a-fA-F]*:[0-9a-fA-F:.]+\\]):[1-9][0-9]{0,4}$')").message(
            "spec.listeners[].advertise must be an IP address and a port, for example 192.0.2.7:4420"),
        validation = Rule::new("!self.matches(r'^([0-9.]+|\\[[0-9a-fA-F]*:[0-9a-fA-F:.]+\\]):[1-9][0-9]{0,4}$') || \
            (isIP(self.replace('[', '').replace(']', '').substring(0, \
            self.replace('[', '').replace(']', '').lastIndexOf(':'))) && \
            int(self.substring(self.lastIndexOf(':') + 1)) <= 65535)").message(
            "spec.listeners[].advertise must have a valid IP address and a port from 1 to 65535"),
        validation = Rule::new("!self.matches(r'^(0[.]0[.]0[.]0|\\[[0:.]+\\]):')").message(
            "spec.listeners[].advertise must be an address that hosts can reach, not a wildcard"),
        validation = Rule::new(r"!self.matches('^(22[4-9]|23[0-9])[.]|^255[.]255[.]255[.]255:|^\\[[fF][fF]')").message(
            "spec.listeners[].advertise must be the address of one machine, not a multicast or broadcast one")
    )]
    pub advertise: Option<String>,
}

impl Listener {
    /// What hosts are told: `advertise`, or `bind` where it says nothing.
    #[must_use]
    pub fn advertised(&self) -> &str {
        self.advertise.as_deref().unwrap_or(&self.bind)
    }
}

/// Disks that hold logical volumes together.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Name of the pool, unique within the node.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
        "spec.pools[].name must be lower-case letters, digits and dashes, for example fast"))]
    pub name: String,

    /// Absolute paths of block devices or files, by a name that survives a reboot (`/dev/disk/by-id/...`).
    #[schemars(length(min = 1, max = 32), inner(length(min = 2, max = 255)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(d, d.startsWith('/') && !d.matches('/[.][.]?(/|$)'))").message(
            "spec.pools[].disks must be absolute paths without . or .., for example /dev/disk/by-id/nvme-..."),
        validation = Rule::new("self.all(d, !d.matches('//|/$'))").message(
            "spec.pools[].disks must be written without // and without / at the end, so that one disk has one name"),
        validation = Rule::new("self.all(d, !d.matches('^/dev/((sd|vd|xvd|hd|nvme)[a-z0-9]+|dm-[0-9]+)$'))").message(
            "spec.pools[].disks must be names that survive a reboot: use the disk's link in /dev/disk/by-id \
            instead of /dev/sdX, /dev/vdX, /dev/dm-X or /dev/nvmeXnY")
    )]
    pub disks: Vec<String>,

    /// `Concatenated`: space is taken from the first disk that has some. `Striped`: from one disk after the other, an
    /// allocation unit at a time, so that a volume is as fast as several disks, and is lost when one of them is.
    #[serde(default)]
    pub layout: PoolLayout,

    /// How much space volumes take from the pool at a time. Smaller units waste less on thin volumes that are written here and there, and a
    /// sixteenth of one is what the first overwrite after a snapshot copies; they take more memory: 46 MiB per TiB that is mapped with
    /// `1Mi`, 510 MiB with `64Ki`. A pool keeps what it was made with.
    #[serde(default)]
    pub allocation_unit: AllocationUnit,

    /// Words to choose pools by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = label_value()))]
    #[x_kube(validation = Rule::new(LABEL_KEYS).message(
        "spec.pools[].labels must have keys of at most 63 letters, digits, dashes, dots and underscores, for example tier, which may follow \
        a domain and a slash, for example example.com/tier"))]
    #[x_kube(validation = Rule::new(LABEL_VALUES).message(
        "spec.pools[].labels must have values of letters, digits, dashes, dots and underscores that begin and end with a letter or \
        digit, for example nvme"))]
    pub labels: BTreeMap<String, String>,

    /// How much thin volumes may be promised together, in percent of what thick volumes leave of the pool. Absent: 400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 100 && self <= 10000").message(
        "spec.pools[].overProvisioningPercent must be from 100 (thin volumes are promised what there is) to 10000"))]
    pub over_provisioning_percent: Option<i32>,
}

/// From which of its disks a pool takes space.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolLayout {
    /// From the first one that has some.
    #[default]
    Concatenated,
    /// From one after the other.
    Striped,
}

/// How much space volumes take from a pool at a time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllocationUnit {
    /// 64 KiB.
    #[serde(rename = "64Ki")]
    Kib64,
    /// 128 KiB.
    #[serde(rename = "128Ki")]
    Kib128,
    /// 256 KiB.
    #[serde(rename = "256Ki")]
    Kib256,
    /// 512 KiB.
    #[serde(rename = "512Ki")]
    Kib512,
    /// 1 MiB.
    #[default]
    #[serde(rename = "1Mi")]
    Mib1,
}

impl AllocationUnit {
    /// The same in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Kib64 => 64 << 10,
            Self::Kib128 => 128 << 10,
            Self::Kib256 => 256 << 10,
            Self::Kib512 => 512 << 10,
            Self::Mib1 => 1 << 20,
        }
    }
}

/// The rule of labels' keys: Kubernetes' own.
pub(crate) const LABEL_KEYS: &str = "self.all(key, key.matches('^([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?/)?[a-zA-Z0-9]([-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$'))";

/// The rule of labels' values: Kubernetes' own.
pub(crate) const LABEL_VALUES: &str =
    "self.all(key, self[key].matches('^([a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?)?$'))";

/// The schema of a label's value: Kubernetes' own limit.
pub(crate) fn label_value() -> serde_json::Value {
    serde_json::json!({ "type": "string", "maxLength": 63 })
}

/// What was observed of a node. Written by the operator alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageNodeStatus {
    /// One word for the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<NodePhase>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The cluster that the node belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Version of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Address and port at which hosts reach the data plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Space of all pools together, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// Space taken in all pools together, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// How many volumes have a copy here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<i64>,
    /// The pools of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pools: Vec<PoolStatus>,
    /// The disks of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub disks: Vec<DiskStatus>,
    /// `Ready`: the daemon is there and all its pools are online. `Synced`: the control plane has accepted the spec.
    /// `Connected`: the daemon has a session with the control plane. `PoolsReady`: every pool is online. `PoolsHaveRoom`: no pool
    /// is nearly full.
    /// `Deletable`: no volume holds a deleted node back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One pool as it was reported.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Name of the pool.
    pub name: String,
    /// State of the pool.
    pub state: PoolState,
    /// Space for volumes, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// Space taken on the disks, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// Space guaranteed to thick volumes, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<String>,
    /// What all volumes could hold together, as a quantity. More than the capacity where thin volumes are promised more than
    /// there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioned: Option<String>,
    /// How much space volumes take from it at a time, as a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation_unit: Option<String>,
    /// What is wrong, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// State of a pool.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// Not reported yet.
    Pending,
    /// Takes volumes and serves them.
    Online,
    /// Serves, with a fault: see `message`.
    Degraded,
    /// Serves nothing: see `message`.
    Faulted,
    /// Its node cannot be seen.
    Unknown,
}

/// One disk as it was reported.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// Path as the spec has it.
    pub path: String,
    /// The pool that it belongs to.
    pub pool: String,
    /// Health of the disk.
    pub state: DiskState,
    /// What is wrong, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Health of a disk.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// Works.
    Online,
    /// Had errors and is being watched.
    Suspected,
    /// Does not work.
    Faulted,
    /// Is not there, or its node cannot be seen.
    Offline,
}

/// One word for the conditions of a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePhase {
    /// Its daemon has not been seen yet, or the control plane has not accepted it.
    Pending,
    /// All is well.
    Online,
    /// The daemon is there, but a pool or disk is not well.
    Degraded,
    /// The daemon is gone.
    Offline,
    /// Being deleted.
    Deleting,
}

impl NodePhase {
    /// The word that stands in the object.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Online => "Online",
            Self::Degraded => "Degraded",
            Self::Offline => "Offline",
            Self::Deleting => "Deleting",
        }
    }
}
