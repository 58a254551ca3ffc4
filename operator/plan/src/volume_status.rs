//! The status of one `Volume`: what was observed, never what is hoped for.

use basalt_crds as crds;
use basalt_crds::volume::{AnaState, PathStatus, ReplicaState, ReplicaStatus, VolumePhase};
use basalt_crds::{Conditions, Status, VolumeStatus, format_bytes};
use basalt_model as model;
use basalt_model::{ClusterId, Node, Problem, Volume, VolumeState};
use k8s_openapi::jiff::Timestamp;

use crate::held::{Departure, Obstacle};
use crate::intent::Rejection;
use crate::volume::Situation;
use crate::word::{Word, elsewhere, hindrance, one_word, refused};

/// What a node says of a volume whose pool takes no change.
const POOL_READ_ONLY: &str = "PoolReadOnly";

const READY: &str = "Ready";
const SYNCED: &str = "Synced";
const ACCESS: &str = "AccessRestricted";

/// What every status of one object is written from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) object: &'a crds::Volume,
    pub(crate) generation: i64,
    /// The cluster that answered; `None` when none did.
    pub(crate) cluster: Option<ClusterId>,
    /// The node that is to delete it, if it is being deleted.
    pub(crate) node: Option<&'a Node>,
    pub(crate) now: Timestamp,
}

impl<'a> Context<'a> {
    /// The status of an object that is to stay.
    pub(crate) fn staying(self, situation: &Situation<'_>, rejection: Option<&Rejection>) -> VolumeStatus {
        let mut draft = self.draft();
        match situation {
            Situation::Unreachable(message) => draft.unreachable(message),
            Situation::Wanted(_) => {
                let word =
                    rejection.map_or_else(|| Word::new("Pending", "asking the control plane"), refused);
                draft.status.phase = Some(VolumePhase::Pending);
                draft.not_synced(&word);
                draft.conditions.set(READY, Status::False, &word.reason, word.message);
            }
            Situation::Settled(present) => {
                draft.observe(present);
                draft.synced(present);
            }
            Situation::Drifted { present, .. } => {
                draft.observe(present);
                match rejection {
                    Some(rejection) => draft.not_synced(&refused(rejection)),
                    None => draft.synced(present),
                }
            }
            Situation::Invalid { error, present } => {
                let word = Word::new("Invalid", error.to_string());
                draft.not_synced(&word);
                match present {
                    Some(present) => draft.observe(present),
                    None => draft.fail(VolumePhase::Pending, &word),
                }
            }
            Situation::DeletedByOther(present) => {
                draft.observe(present);
                draft.not_synced(&Word::new("DeletedByOther", format!(
                        "volume {} is being deleted, which this object did not ask for: delete this object, and \
                         create it again for a new volume",
                        present.id
                    )));
            }
            Situation::CutOff(obstacle) => draft.cut_off(obstacle),
        }
        draft.finish()
    }

    /// The status of an object that is to go.
    pub(crate) fn leaving(
        self,
        departure: &Departure<'_, Volume>,
        rejection: Option<&Rejection>,
    ) -> VolumeStatus {
        let node = self.node;
        let mut draft = self.draft();
        draft.status.phase = Some(VolumePhase::Deleting);
        match departure {
            Departure::Unreachable(message) => {
                draft.unreachable(message);
                draft.status.phase = Some(VolumePhase::Deleting);
            }
            Departure::Elsewhere { recorded, answering } => {
                let word = elsewhere(recorded, *answering);
                draft.not_synced(&word);
                draft.conditions.set(READY, Status::False, &word.reason, word.message);
            }
            Departure::Held { present, .. } => {
                let word = rejection.map_or_else(
                    || Word::new("Deleting", format!("volume {} is to go", present.id)),
                    refused,
                );
                draft.not_synced(&word);
                draft.conditions.set(READY, Status::False, &word.reason, word.message);
            }
            Departure::Going(present) => {
                let message = format!(
                    "waiting for node {} to delete the data of volume {}{}",
                    present.placement.node,
                    present.id,
                    hindrance(node, &present.placement.pool)
                );
                draft.conditions.set(
                    SYNCED,
                    Status::True,
                    "Synced",
                    "the control plane has ordered the deletion",
                );
                draft.conditions.set(READY, Status::False, "Deleting", message);
            }
            Departure::Gone => {
                draft.conditions.set(
                    SYNCED,
                    Status::True,
                    "Synced",
                    "the control plane holds nothing of this object",
                );
                draft.conditions.set(READY, Status::False, "Deleting", "nothing is left");
            }
        }
        draft.finish()
    }

    fn draft(self) -> Draft<'a> {
        let old = self.object.status.as_ref();
        let conditions =
            Conditions::new(old.map_or(&[], |old| old.conditions.as_slice()), self.generation, self.now);
        let mut status = old.cloned().unwrap_or_default();
        status.observed_generation = Some(self.generation);
        status.conditions = Vec::new();
        Draft { status, cluster: self.cluster, conditions }
    }
}

struct Draft<'a> {
    status: VolumeStatus,
    cluster: Option<ClusterId>,
    conditions: Conditions<'a>,
}

impl Draft<'_> {
    /// Nothing can be said now; what was seen last stays.
    fn unreachable(&mut self, message: &str) {
        let message = format!("the control plane cannot be reached: {message}");
        self.status.phase.get_or_insert(VolumePhase::Pending);
        self.conditions.set(SYNCED, Status::Unknown, "ControlPlaneUnreachable", message.clone());
        self.conditions.set(READY, Status::Unknown, "ControlPlaneUnreachable", message);
        self.conditions.keep(ACCESS);
    }

    /// The control plane answers, but what it holds is not this object's volume.
    fn cut_off(&mut self, obstacle: &Obstacle<'_, Volume>) {
        let word = match obstacle {
            Obstacle::Elsewhere { recorded, answering } => elsewhere(recorded, *answering),
            Obstacle::Missing { id } => Word::new(
                "NoRecord",
                format!(
                    "the control plane has no record of volume {id}, which existed: restore the control plane; or, \
                     if the data is given up, delete this object and create it again"
                ),
            ),
            Obstacle::PutAside(volume) => Word::new(
                "Released",
                format!(
                    "volume {0} was put aside with its data: to serve it again, delete this object and create one \
                     with spec.volumeId: {0}",
                    volume.id
                ),
            ),
            Obstacle::Replaced { recorded, present } => Word::new(
                "Replaced",
                format!(
                    "the control plane holds volume {} under this name, but this object stood for volume {recorded}: \
                     nothing is done until one of them is deleted",
                    present.id
                ),
            ),
            Obstacle::Taken(present) => taken(present),
        };
        let existed = self.status.volume_id.is_some();
        self.not_synced(&word);
        self.fail(if existed { VolumePhase::Unavailable } else { VolumePhase::Pending }, &word);
    }

    fn fail(&mut self, phase: VolumePhase, word: &Word) {
        self.status.phase = Some(phase);
        for path in &mut self.status.paths {
            path.ana_state = AnaState::Inaccessible;
        }
        self.conditions.set(READY, Status::False, &word.reason, word.message.clone());
    }

    fn not_synced(&mut self, word: &Word) {
        self.conditions.set(SYNCED, Status::False, &word.reason, word.message.clone());
    }

    /// The control plane has what was asked; whether the node has put it into effect is another question.
    fn synced(&mut self, present: &Volume) {
        let in_effect = present.observed.as_ref().map_or(0, |observed| observed.generation);
        if present.state == VolumeState::Creating {
            self.conditions.set(SYNCED, Status::False, "Creating", "its node is creating it");
        } else if let Some(Problem { reason, message }) = present.shortfall() {
            let message = format!("node {}: {message}; it is served as it was", present.placement.node);
            self.conditions.set(SYNCED, Status::False, one_word(reason).unwrap_or("NotInEffect"), message);
        } else if in_effect < present.generation {
            let message = format!(
                "the control plane has accepted the specification; node {} has not put it into effect yet",
                present.placement.node
            );
            self.conditions.set(SYNCED, Status::False, "Applying", message);
        } else {
            self.conditions.set(SYNCED, Status::True, "Synced", "the specification is in effect");
        }
    }

    /// Writes down what the control plane says of our volume.
    fn observe(&mut self, present: &Volume) {
        self.status.volume_id = Some(present.id.to_string());
        self.status.cluster_id = self.cluster.map(|cluster| cluster.to_string());
        self.status.nqn = Some(present.identity.nqn.clone());
        self.status.uuid = Some(present.identity.uuid.to_string());
        // What hosts see, once there is something to see.
        let served = present.observed.as_ref().map(|observed| observed.size).filter(|size| size.0 > 0);
        self.status.size = Some(format_bytes(served.unwrap_or(present.size).0));
        let allocated = present.observed.as_ref().and_then(|observed| observed.allocated);
        self.status.used = allocated.map(|allocated| format_bytes(allocated.0));
        self.status.epoch = Some(present.epoch.to_string());
        let read_only = present.shortfall().filter(|problem| problem.reason == POOL_READ_ONLY);
        self.state(&present.state, &present.spec, read_only);
        let reachable =
            !matches!(present.state, VolumeState::Unavailable { .. } | VolumeState::Faulted { .. });
        self.status.paths = paths(present, reachable);
        let first = self.status.paths.first();
        self.status.endpoint = first.map(|path| endpoint(&path.address, path.port));
        let optimized = self.status.paths.iter().find(|path| path.ana_state == AnaState::Optimized);
        self.status.target_node = optimized.map(|path| path.node.clone());
        self.status.replicas = vec![replica(present)];
        self.access(present);
    }

    fn state(&mut self, state: &VolumeState, spec: &model::VolumeSpec, read_only: Option<&Problem>) {
        let (nobody, protected) = (spec.allowed_hosts.0.is_empty(), spec.read_only);
        let (phase, ready, reason, message) = match state {
            VolumeState::Creating => {
                (VolumePhase::Creating, false, "Creating", "its node is creating it".to_owned())
            }
            VolumeState::Online if nobody => {
                let message = "it is served, and no host may connect until spec.allowedHosts names one";
                (VolumePhase::Online, true, "Online", message.to_owned())
            }
            VolumeState::Online => {
                let (reason, message) = match read_only {
                    Some(problem) => (POOL_READ_ONLY, problem.message.clone()),
                    None if protected => {
                        ("Online", "hosts can read, and not write: spec.readOnly is true".to_owned())
                    }
                    None => ("Online", "hosts can read and write".to_owned()),
                };
                (VolumePhase::Online, true, reason, message)
            }
            VolumeState::Unavailable { reason, message } => {
                (VolumePhase::Unavailable, false, reason.as_str(), message.clone())
            }
            VolumeState::Faulted { reason, message } => {
                (VolumePhase::Faulted, false, reason.as_str(), message.clone())
            }
            VolumeState::Released => {
                (VolumePhase::Unavailable, false, "Released", "it was put aside with its data".to_owned())
            }
            VolumeState::Deleting => {
                (VolumePhase::Deleting, false, "Deleting", "its data is being deleted".to_owned())
            }
        };
        let reason = one_word(reason).unwrap_or(phase.as_str());
        self.status.phase = Some(phase);
        self.conditions.set(READY, ready.into(), reason, message);
    }

    fn access(&mut self, present: &Volume) {
        let hosts = &present.spec.allowed_hosts;
        if hosts.any() {
            let message =
                "any host may connect, because spec.allowedHosts is [\"*\"]: list the NQNs of your hosts";
            self.conditions.set(ACCESS, Status::False, "AnyHost", message);
        } else if hosts.0.is_empty() {
            let message = "no host may connect until spec.allowedHosts names one";
            self.conditions.set(ACCESS, Status::True, "Nobody", message);
        } else {
            self.conditions.set(
                ACCESS,
                Status::True,
                "NamedHosts",
                "only the hosts in spec.allowedHosts may connect",
            );
        }
    }

    fn finish(mut self) -> VolumeStatus {
        self.status.conditions = self.conditions.finish();
        self.status
    }
}

fn taken(present: &Volume) -> Word {
    let message = match &present.uid {
        Some(uid) => format!(
            "volume {} of this name belongs to an object with UID {uid}: use another name; or, if that object is lost for \
             good, take over its volume by annotating this one with {}={uid}",
            present.id,
            crds::OWNER_UID_ANNOTATION
        ),
        None => format!(
            "volume {0} of this name was created without an object: use another name; or let whoever created it delete it by the \
             control plane's API with the reclaim policy Retain, and create this object with spec.volumeId: {0}",
            present.id
        ),
    };
    Word::new("NameTaken", message)
}

fn paths(present: &Volume, reachable: bool) -> Vec<PathStatus> {
    let observed = present.observed.iter().flat_map(|observed| &observed.paths);
    observed
        .map(|path| PathStatus {
            node: path.node.to_string(),
            address: path.address.ip().to_string(),
            port: i32::from(path.address.port()),
            ana_state: match path.ana {
                _ if !reachable => AnaState::Inaccessible,
                model::AnaState::Optimized => AnaState::Optimized,
                model::AnaState::NonOptimized => AnaState::NonOptimized,
                model::AnaState::Inaccessible => AnaState::Inaccessible,
            },
        })
        .collect()
}

fn replica(present: &Volume) -> ReplicaStatus {
    let (state, message) = match &present.state {
        VolumeState::Creating => (ReplicaState::Creating, None),
        VolumeState::Online | VolumeState::Released | VolumeState::Deleting => (ReplicaState::Online, None),
        VolumeState::Unavailable { message, .. } => (ReplicaState::Unknown, Some(message.clone())),
        VolumeState::Faulted { message, .. } => (ReplicaState::Faulted, Some(message.clone())),
    };
    ReplicaStatus {
        node: present.placement.node.to_string(),
        pool: present.placement.pool.to_string(),
        state,
        message,
    }
}

/// `address:port`, with brackets where the address needs them.
fn endpoint(address: &str, port: i32) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
