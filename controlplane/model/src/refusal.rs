//! Why a command was refused. A refused command changed nothing.

use crate::command::FeatureLevel;
use crate::ids::{
    Bytes, ClusterId, DiskPath, InstanceId, MemberId, NodeName, PoolName, SnapshotName, VolumeId, VolumeName,
};
use crate::placement::NoFit;
use serde::{Deserialize, Serialize};

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The cluster has an identity already.
    #[error("the cluster was bootstrapped before, as {cluster}")]
    AlreadyBootstrapped {
        /// Its identity.
        cluster: ClusterId,
    },
    /// The cluster has no identity yet.
    #[error("the cluster is not bootstrapped; start its first member with --bootstrap")]
    NotBootstrapped,
    /// The command needs a higher feature level.
    #[error(
        "this needs feature level {needed}, the cluster is at {level}: upgrade all members and daemons, then run kubectl basalt \
         members raise-level {needed}"
    )]
    FeatureLevel {
        /// What the command needs.
        needed: FeatureLevel,
        /// What the cluster is at.
        level: FeatureLevel,
    },
    /// A member does not support the feature level.
    #[error("member {member} supports feature level {supported}, not {needed}; upgrade it first")]
    MemberTooOld {
        /// The member.
        member: MemberId,
        /// What it supports.
        supported: FeatureLevel,
        /// What was asked.
        needed: FeatureLevel,
    },
    /// The feature level never goes down.
    #[error("the feature level is {level} already and never goes down")]
    LevelNotHigher {
        /// What the cluster is at.
        level: FeatureLevel,
    },
    /// The request id was used for something else.
    #[error("this request id was used for another request; use a new one")]
    RequestIdReused,
    /// No such node.
    #[error("there is no node {node}")]
    NoSuchNode {
        /// Its name.
        node: NodeName,
    },
    /// The node has no such pool.
    #[error("node {node} has no pool {pool}")]
    NoSuchPool {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
    },
    /// No such volume.
    #[error("there is no volume {volume}")]
    NoSuchVolume {
        /// Its name.
        volume: VolumeName,
    },
    /// No such snapshot.
    #[error("there is no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// Its name.
        snapshot: SnapshotName,
    },
    /// The snapshot to restore is gone by now.
    #[error("there is no snapshot with id {id} to restore")]
    NothingToRestore {
        /// The id.
        id: VolumeId,
    },
    /// No released volume or snapshot has this id.
    #[error("nothing with id {id} was put aside to be adopted")]
    NothingToAdopt {
        /// The id.
        id: VolumeId,
    },
    /// What is to be adopted is another object's.
    #[error("{id} is {present}, which is in use: delete that object first, with spec.reclaimPolicy Retain")]
    NotPutAside {
        /// The id.
        id: VolumeId,
        /// The object that stands for it.
        present: String,
    },
    /// What is to be adopted is otherwise than is asked for.
    #[error("volume {id} is adopted as it is: {field} must be {is}")]
    AdoptedAsItIs {
        /// The id.
        id: VolumeId,
        /// The field, as in the custom resource.
        field: Field,
        /// What it must say.
        is: String,
    },
    /// No such member.
    #[error("there is no member {member}")]
    NoSuchMember {
        /// The member.
        member: MemberId,
    },
    /// A member id is used once.
    #[error("member id {member} belonged to a member that was removed; use a new id and an empty disk")]
    MemberRetired {
        /// The member.
        member: MemberId,
    },
    /// A member is bound to its first disk.
    #[error("member {member} is bound to another disk; an empty disk joins under a new id")]
    MemberDisk {
        /// The member.
        member: MemberId,
    },
    /// A member that takes part says itself where it is reached.
    #[error("member {member} takes part already; a new member needs an id that was never used")]
    MemberExists {
        /// The member.
        member: MemberId,
    },
    /// An address belongs to one member.
    #[error("{address} is an address of member {member}; a new member needs addresses of its own")]
    AddressTaken {
        /// The address.
        address: String,
        /// The member that has it.
        member: MemberId,
    },
    /// The group needs a member.
    #[error("member {member} is the last one; add another one first")]
    LastMember {
        /// The member.
        member: MemberId,
    },
    /// Another object owns the name.
    #[error(
        "the name {name} is taken by an object with another UID; delete that one first or use another name"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The volume exists with other properties.
    #[error("volume {volume} exists with another specification")]
    Different {
        /// Its name.
        volume: VolumeName,
    },
    /// The id is in use.
    #[error("volume id {id} is in use")]
    VolumeIdTaken {
        /// The id.
        id: VolumeId,
    },
    /// The node holds volumes.
    #[error("node {node} holds {volumes} volumes and snapshots; delete them first")]
    NodeHoldsVolumes {
        /// The node.
        node: NodeName,
        /// How many.
        volumes: u64,
    },
    /// The node's daemon is heard, so its disks are not gone.
    #[error("the daemon of node {node} is connected, so its disks are not lost; stop it first")]
    NodeConnected {
        /// The node.
        node: NodeName,
    },
    /// The pool is in service, so its disks are not gone.
    #[error(
        "node {node} reported pool {pool} to be online, so its disks are not lost: if it is the node that is lost, abandon that"
    )]
    PoolOnline {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
    },
    /// The pool holds volumes, so that it cannot go from the node's specification.
    #[error("pool {pool} of node {node} holds {volumes} volumes and snapshots; delete them first")]
    PoolHoldsVolumes {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
        /// How many.
        volumes: u64,
    },
    /// The pool holds volumes and runs on the disk, which is not named any more.
    #[error(
        "disk {disk} of pool {pool} of node {node} is in use, and the pool holds {volumes} volumes and snapshots: name it again in \
         spec.pools[].disks. Disks cannot be exchanged or taken away; one that has moved is named anew once its node reports that it is \
         missing under its old path"
    )]
    DiskInService {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
        /// The disk.
        disk: DiskPath,
        /// How many.
        volumes: u64,
    },
    /// The pool holds volumes that may need the disk, for which no other path is named.
    #[error(
        "disk {disk} of pool {pool} of node {node} is taken away, and the pool holds {volumes} volumes and snapshots that may need it: name \
         it again in spec.pools[].disks, or its new path in its place if it has moved"
    )]
    DiskNeeded {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
        /// The disk.
        disk: DiskPath,
        /// How many.
        volumes: u64,
    },
    /// Nothing new is put where it may not be found again.
    #[error(
        "nothing new is put on pool {pool} of node {node} until its disks are those that are named: {problem}"
    )]
    PoolHasOtherDisks {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
        /// What its node says.
        problem: String,
    },
    /// No pool fits a new volume.
    #[error(transparent)]
    NoFit(NoFit),
    /// The chosen pool is too small by now.
    #[error("pool {pool} of node {node} has {free} bytes free, {needed} are needed")]
    PoolTooSmall {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
        /// What is free.
        free: Bytes,
        /// What is needed.
        needed: Bytes,
    },
    /// The chosen pool is too full for anything that takes its space later.
    #[error(
        "pool {pool} of node {node} is more than {}% full: nothing thin is placed on it until space is given back or it grows",
        crate::space::NEAR_FULL
    )]
    PoolNearFull {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
    },
    /// The chosen pool is not there (any more).
    #[error("node {node} has no usable pool {pool}")]
    PoolNotUsable {
        /// The node.
        node: NodeName,
        /// The pool.
        pool: PoolName,
    },
    /// The volume is being deleted.
    #[error("volume {volume} is being deleted")]
    BeingDeleted {
        /// Its name.
        volume: VolumeName,
    },
    /// A volume is restored where its snapshot is.
    #[error(
        "snapshot {snapshot} is in pool {pool} of node {node}, and what is restored from it is there too: leave spec.topology out, or \
         name these"
    )]
    SnapshotElsewhere {
        /// The snapshot.
        snapshot: SnapshotName,
        /// Where it is.
        node: NodeName,
        /// The pool.
        pool: PoolName,
    },
    /// The snapshot is being deleted.
    #[error("snapshot {snapshot} is being deleted")]
    SnapshotBeingDeleted {
        /// Its name.
        snapshot: SnapshotName,
    },
    /// The snapshot has not been taken yet.
    #[error("snapshot {snapshot} is not ready yet: its node has not reported that it is taken")]
    SnapshotNotReady {
        /// Its name.
        snapshot: SnapshotName,
    },
    /// The volume was never in service.
    #[error(
        "volume {volume} is not ready yet: there is nothing to take a snapshot of before it was online once"
    )]
    VolumeNotReady {
        /// Its name.
        volume: VolumeName,
    },
    /// A snapshot of the volume is to be taken first.
    #[error(
        "snapshot {snapshot} of volume {volume} is not taken yet: wait until it is ready, or delete the snapshot first"
    )]
    BeingSnapshotted {
        /// The volume.
        volume: VolumeName,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// A volume is being restored from the snapshot.
    #[error(
        "volume {volume} is being restored from snapshot {snapshot}: wait until it is online, or delete the volume first"
    )]
    BeingRestored {
        /// The snapshot.
        snapshot: SnapshotName,
        /// The volume.
        volume: VolumeName,
    },
    /// The snapshot is of another volume than was asked for.
    #[error("snapshot {id} is of volume {volume}")]
    OfAnotherVolume {
        /// The snapshot.
        id: VolumeId,
        /// The volume that it is of.
        volume: VolumeName,
    },
    /// A volume that is restored holds all of its snapshot.
    #[error("spec.size is less than the {0}Mi of snapshot {snapshot}: ask for at least that", .size.0.div_ceil(1 << 20))]
    SmallerThanSnapshot {
        /// The snapshot.
        snapshot: SnapshotName,
        /// Its size.
        size: Bytes,
    },
    /// Another daemon is the node's.
    #[error(
        "node {node} belongs to the daemon with identity {bound}; stop the second daemon, or unbind the node if its \
         machine was replaced"
    )]
    OtherInstance {
        /// The node.
        node: NodeName,
        /// The daemon that it belongs to.
        bound: InstanceId,
    },
    /// The node is not bound to a daemon.
    #[error("node {node} is not bound to a daemon")]
    NotBound {
        /// The node.
        node: NodeName,
    },
    /// The daemon acted on another tombstone.
    #[error("volume {volume} has no tombstone of that node and generation")]
    NoSuchTombstone {
        /// The volume.
        volume: VolumeId,
    },
    /// Not supported yet.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// What was asked for.
        what: Feature,
    },
    /// A field is out of its range.
    #[error("{field} is out of its range: {rule}")]
    OutOfRange {
        /// The field, as in the custom resource.
        field: Field,
        /// What it must satisfy.
        rule: Rule,
    },
    /// Incarnations only go up.
    #[error("the cluster is at a later incarnation already")]
    StaleIncarnation,
    /// A limit of the cluster.
    #[error("the cluster holds its maximum of {limit} {what}")]
    LimitReached {
        /// What there are too many of.
        what: Limited,
        /// The maximum.
        limit: u64,
    },
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$vdoc])* $variant),*
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $text),* })
            }
        }
    };
}

words!(
    /// What is not supported yet.
    Feature {
        /// More than one replica.
        Replication => "more than one replica",
    }
);
words!(
    /// A field of a custom resource.
    Field {
        /// `spec.size`
        Size => "spec.size",
        /// `spec.thin`
        Thin => "spec.thin",
        /// `spec.replicas`
        Replicas => "spec.replicas",
        /// `spec.topology`
        Topology => "spec.topology",
        /// `spec.allowedHosts`
        AllowedHosts => "spec.allowedHosts",
        /// `spec.listeners`
        Listeners => "spec.listeners",
        /// `spec.pools`
        Pools => "spec.pools",
        /// `spec.pools[].disks`
        Disks => "spec.pools[].disks",
        /// `spec.cores`
        Cores => "spec.cores",
        /// `spec.pools[].overProvisioningPercent`
        OverProvisioning => "spec.pools[].overProvisioningPercent",
        /// `spec.pools[].layout`
        Layout => "spec.pools[].layout",
        /// `spec.pools[].allocationUnit`
        AllocationUnit => "spec.pools[].allocationUnit",
        /// The address of a member.
        MemberAddress => "the member's address",
    }
);
words!(
    /// What a field must satisfy.
    Rule {
        /// Greater than zero and small enough for arithmetic.
        Positive => "it must be at least 1 byte and at most 2^60",
        /// Not less than now.
        NotShrink => "a volume never shrinks",
        /// A volume that shares a snapshot's data.
        ThinAsItsSource => "it must be true with spec.source: what is restored shares its snapshot's data",
        /// At least one.
        AtLeastOne => "at least one is needed",
        /// The bounded lists.
        NotTooMany => "there are too many entries",
        /// A percentage of over-provisioning.
        Percentage => "it must be from 100 to 10000",
        /// How much a pool gives at a time.
        Unit => "it must be 64Ki, 128Ki, 256Ki, 512Ki or 1Mi",
        /// What a pool is made with.
        Kept => "a pool keeps what it was made with: make another pool of other disks",
        /// No duplicates.
        Distinct => "entries must be distinct",
        /// Text that is too long.
        NotTooLong => "it is too long",
    }
);
words!(
    /// What a cluster holds a bounded number of.
    Limited {
        /// Nodes.
        Nodes => "nodes",
        /// Volumes.
        Volumes => "volumes",
        /// Snapshots.
        Snapshots => "snapshots",
        /// Members.
        Members => "members",
    }
);

/// How a client should treat a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// Something named does not exist.
    NotFound,
    /// Something stands in the way that somebody else put there.
    Conflict,
    /// The request is wrong in itself.
    Invalid,
    /// Not possible in the present state; may be later.
    Precondition,
    /// There is no room.
    Exhausted,
    /// No pool that could be asked is in service; may be later.
    NoPool,
}

impl Refusal {
    /// How a client should treat it.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Refusal::NoSuchNode { .. }
            | Refusal::NoSuchPool { .. }
            | Refusal::NoSuchVolume { .. }
            | Refusal::NoSuchSnapshot { .. }
            | Refusal::NothingToRestore { .. }
            | Refusal::NothingToAdopt { .. }
            | Refusal::NoSuchMember { .. } => RefusalKind::NotFound,
            Refusal::AlreadyBootstrapped { .. }
            | Refusal::NameTaken { .. }
            | Refusal::Different { .. }
            | Refusal::NotPutAside { .. }
            | Refusal::OfAnotherVolume { .. }
            | Refusal::VolumeIdTaken { .. }
            | Refusal::AddressTaken { .. }
            | Refusal::OtherInstance { .. } => RefusalKind::Conflict,
            Refusal::RequestIdReused
            | Refusal::Unsupported { .. }
            | Refusal::SmallerThanSnapshot { .. }
            | Refusal::AdoptedAsItIs { .. }
            | Refusal::SnapshotElsewhere { .. }
            | Refusal::OutOfRange { .. } => RefusalKind::Invalid,
            Refusal::NoFit(no_fit) if no_fit.is_waiting() => RefusalKind::NoPool,
            Refusal::NoFit(_)
            | Refusal::PoolTooSmall { .. }
            | Refusal::PoolNearFull { .. }
            | Refusal::LimitReached { .. } => RefusalKind::Exhausted,
            Refusal::NotBootstrapped
            | Refusal::FeatureLevel { .. }
            | Refusal::MemberTooOld { .. }
            | Refusal::LevelNotHigher { .. }
            | Refusal::MemberRetired { .. }
            | Refusal::MemberDisk { .. }
            | Refusal::MemberExists { .. }
            | Refusal::LastMember { .. }
            | Refusal::NodeHoldsVolumes { .. }
            | Refusal::NodeConnected { .. }
            | Refusal::PoolOnline { .. }
            | Refusal::PoolHoldsVolumes { .. }
            | Refusal::DiskInService { .. }
            | Refusal::DiskNeeded { .. }
            | Refusal::PoolHasOtherDisks { .. }
            | Refusal::PoolNotUsable { .. }
            | Refusal::BeingDeleted { .. }
            | Refusal::SnapshotBeingDeleted { .. }
            | Refusal::SnapshotNotReady { .. }
            | Refusal::VolumeNotReady { .. }
            | Refusal::BeingSnapshotted { .. }
            | Refusal::BeingRestored { .. }
            | Refusal::NotBound { .. }
            | Refusal::NoSuchTombstone { .. }
            | Refusal::StaleIncarnation => RefusalKind::Precondition,
        }
    }
}
