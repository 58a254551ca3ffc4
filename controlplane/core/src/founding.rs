//! Creating the cluster: only when every peer has said that its disk is empty too.
//!
//! An empty disk under `--bootstrap` is either a new cluster's or one whose content was lost; what tells them apart is with the
//! peers. The question is the announcement that a waiting member sends anyway, marked as coming from one that would create the
//! cluster. A peer with an empty disk answers it with an announcement that names the asker's disk; a peer of a cluster answers
//! with its cluster's id, whatever it says. Silence is no answer.
//!
//! Two members that are told to create the cluster never both do: each creates it only after the other has answered its question,
//! hence after the other has heard that it would, and the one with the higher id yields.

use crate::api::{Config, Fatal, Founding, Start};
use crate::member::Member;
use basalt_clock::mark;
use basalt_model::{Body, ClusterId, Command, FeatureLevel, MemberId, Revision, State, Timestamp};
use basalt_raft::{Disk, PeerBody, PeerMessage};
use std::collections::{BTreeMap, BTreeSet};

/// How many ticks an answer counts: a few rounds of announcements.
const ANSWER_TICKS: u64 = 60;

/// What a member with an empty disk that is to create the cluster knows.
#[derive(Debug)]
pub(crate) struct Founder {
    /// The identity of the cluster that it would create.
    cluster: ClusterId,
    /// Who must answer.
    peers: BTreeSet<MemberId>,
    /// Peers that would create the cluster too.
    founders: BTreeSet<MemberId>,
    /// The peers that have answered, and for how long that counts.
    answers: BTreeMap<MemberId, u64>,
    /// The peer that knows a cluster.
    exists: Option<(MemberId, ClusterId)>,
}

impl Founder {
    /// What a member begins with whose disk is empty and bound to `bound`, if it is to create the cluster.
    pub(crate) fn new(config: &Config, bound: Option<ClusterId>) -> Option<Self> {
        let Start::Bootstrap { cluster, others } = &config.start else { return None };
        let mut peers: BTreeSet<MemberId> = config.peers.iter().copied().collect();
        peers.extend(others.iter().map(|other| other.id));
        peers.remove(&config.member.id);
        Some(Self {
            cluster: bound.unwrap_or(*cluster),
            peers,
            founders: BTreeSet::new(),
            answers: BTreeMap::new(),
            exists: None,
        })
    }

    /// The cluster to create at once, because there is nobody to ask.
    pub(crate) fn cluster_to_create_alone(&self) -> Option<ClusterId> {
        self.peers.is_empty().then_some(self.cluster)
    }

    /// Whether a cluster was found to exist.
    pub(crate) fn knows_cluster(&self) -> bool {
        self.exists.is_some()
    }

    /// How far it is. `None`: there is nobody left to wait for.
    fn progress(&self, me: MemberId) -> Option<Founding> {
        if let Some((by, cluster)) = self.exists {
            return Some(Founding::Exists { by, cluster });
        }
        let silent: BTreeSet<MemberId> =
            self.peers.iter().copied().filter(|peer| !self.answers.contains_key(peer)).collect();
        if !silent.is_empty() {
            return Some(Founding::Asking { silent });
        }
        let first = self.founders.first().copied().filter(|founder| *founder < me)?;
        Some(Founding::Yielding { to: first })
    }
}

/// The state of a cluster that was created just now.
pub(crate) fn first_state(cluster: ClusterId) -> State {
    // A member that joins supports what this one does, or is refused.
    let mut state = State::at_level(FeatureLevel::SUPPORTED);
    let command = Command::new(Timestamp(0), None, Body::Bootstrap { cluster });
    let outcome = state.apply(Revision(1), &command);
    assert!(outcome.result.is_ok(), "the first command of a cluster is not refused");
    state
}

impl<D: Disk> Member<D> {
    /// How far the creation of the cluster is, if this member is about to.
    pub(crate) fn founding(&self) -> Option<Founding> {
        self.founder.as_ref()?.progress(self.config.member.id)
    }

    /// Notes what a message says about the cluster that is to be created.
    pub(crate) fn note_for_founding(&mut self, message: &PeerMessage) {
        let own_disk = self.group.log().identity().disk;
        let Some(founder) = &mut self.founder else { return };
        if let Some(cluster) = message.cluster {
            if founder.exists.replace((message.from, cluster)).is_none() {
                mark!("founding-given-up");
                tracing::warn!(
                    peer = %message.from, %cluster,
                    "told to create a cluster, and a peer knows one already: this member creates none",
                );
            }
            return;
        }
        if let PeerBody::Announce { founds, .. } = message.body {
            match founds {
                true => founder.founders.insert(message.from),
                false => founder.founders.remove(&message.from),
            };
            if message.to_disk == Some(own_disk) {
                founder.answers.insert(message.from, ANSWER_TICKS);
            }
        }
    }

    /// Answers a member that would create the cluster, if this one has an empty disk too.
    pub(crate) fn answer_founder(&mut self, message: &PeerMessage) {
        let question = message.to_disk.is_none() && message.cluster.is_none();
        let blank = self.group.log().is_blank() && self.group.log().identity().cluster.is_none();
        if question && blank && matches!(message.body, PeerBody::Announce { founds: true, .. }) {
            let answer = self.announcement();
            self.send_to(message.from, Some(message.from_disk), answer);
        }
    }

    /// What this member says of itself.
    pub(crate) fn announcement(&self) -> PeerBody {
        let founds = self.founder.as_ref().is_some_and(|founder| !founder.knows_cluster());
        PeerBody::Announce { member: self.config.member.clone(), founds }
    }

    /// Creates the cluster when nobody has to be waited for any more.
    pub(crate) fn tick_founding(&mut self) {
        let Some(founder) = &mut self.founder else { return };
        if !self.group.log().is_blank() {
            // It was taken in.
            self.founder = None;
            return;
        }
        founder.answers.retain(|_, ticks| {
            *ticks = ticks.saturating_sub(1);
            *ticks > 0
        });
        if founder.progress(self.config.member.id).is_some() || self.failed.is_some() {
            return;
        }
        let cluster = founder.cluster;
        self.founder = None;
        match self.found(cluster) {
            Ok(()) => mark!("bootstrapped"),
            Err(fatal) => self.failed = Some(fatal),
        }
    }

    fn found(&mut self, cluster: ClusterId) -> Result<(), Fatal> {
        self.group.log_mut().bind_cluster(cluster)?;
        self.group.found(first_state(cluster).encode()?);
        Ok(())
    }
}
