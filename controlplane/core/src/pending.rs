//! What is under way: proposals until they are committed, reads until their index is known and applied.

use crate::api::{Read, ReplyTo};
use basalt_clock::Instant;
use basalt_model::{Claim, MemberId, NodeName, Placement, RequestId, Revision, VolumeId};
use std::collections::BTreeMap;

/// Why a command was proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Clients wait for it.
    Client {
        /// The request.
        id: RequestId,
        /// Its checksum.
        digest: u64,
        /// Who wait.
        reply_to: Vec<ReplyTo>,
    },
    /// The leader's own; not proposed again while it is under way.
    Own(Topic),
}

/// What one of the leader's own commands is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// A node's binding.
    Bind(NodeName),
    /// A node's report.
    Report(NodeName),
    /// A node's liveness.
    Liveness(NodeName),
    /// A volume's deletion.
    Confirm(VolumeId),
    /// A member's entry.
    Member(MemberId),
}

/// A proposal that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) term: u64,
    pub(crate) deadline: Instant,
    pub(crate) purpose: Purpose,
    /// What it will take from a pool.
    pub(crate) reserved: Option<(Placement, Claim)>,
}

/// The proposals that are under way, by log index.
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    by_index: BTreeMap<u64, Proposal>,
}

impl Proposals {
    pub(crate) fn len(&self) -> usize {
        self.by_index.len()
    }

    pub(crate) fn insert(&mut self, index: u64, proposal: Proposal) -> Option<Proposal> {
        self.by_index.insert(index, proposal)
    }

    pub(crate) fn take(&mut self, index: u64) -> Option<Proposal> {
        self.by_index.remove(&index)
    }

    /// Takes all, in the order of the log.
    pub(crate) fn take_all(&mut self) -> Vec<Proposal> {
        std::mem::take(&mut self.by_index).into_values().collect()
    }

    /// Takes those whose deadline has passed.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<Proposal> {
        let expired: Vec<u64> = self
            .by_index
            .iter()
            .filter(|(_, proposal)| proposal.deadline <= now)
            .map(|(index, _)| *index)
            .collect();
        expired.into_iter().filter_map(|index| self.by_index.remove(&index)).collect()
    }

    /// Lets another reply wait for the same request, if it is under way.
    pub(crate) fn join(&mut self, request: &RequestId, asked: u64, reply: ReplyTo) -> bool {
        for proposal in self.by_index.values_mut() {
            if let Purpose::Client { id, digest, reply_to } = &mut proposal.purpose
                && id == request
                && *digest == asked
            {
                reply_to.push(reply);
                return true;
            }
        }
        false
    }

    pub(crate) fn has(&self, topic: &Topic) -> bool {
        self.by_index.values().any(|proposal| matches!(&proposal.purpose, Purpose::Own(own) if own == topic))
    }

    /// The space that proposals will take.
    pub(crate) fn reserved(&self) -> BTreeMap<Placement, Claim> {
        let mut reserved: BTreeMap<Placement, Claim> = BTreeMap::new();
        for (placement, claim) in self.by_index.values().filter_map(|proposal| proposal.reserved.clone()) {
            reserved.entry(placement).or_default().add(claim);
        }
        reserved
    }
}

/// A request that needs to know that its member is not behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// A read.
    Read(Read, ReplyTo),
    /// A refusal that is to be confirmed by the present state.
    Retry(RequestId, Box<crate::api::Mutation>, ReplyTo),
    /// A watch from a revision that this member has not got to; another one may have.
    Watch(Revision, ReplyTo),
}

impl Question {
    pub(crate) fn reply_to(&self) -> ReplyTo {
        match self {
            Question::Read(_, reply_to) | Question::Retry(_, _, reply_to) | Question::Watch(_, reply_to) => {
                *reply_to
            }
        }
    }
}

/// Questions that share one read index.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) questions: Vec<Question>,
    pub(crate) deadline: Instant,
    /// When the read index was asked for.
    pub(crate) asked: Instant,
}

/// Questions until they are answered.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    /// Came in since the last call.
    pub(crate) fresh: Vec<Question>,
    /// Wait for their read index, by the number in the context.
    pub(crate) asked: BTreeMap<u64, Batch>,
    /// Wait until their index is applied.
    pub(crate) known: Vec<(u64, Vec<Question>)>,
    next: u64,
}

impl Questions {
    pub(crate) fn len(&self) -> usize {
        self.fresh.len()
            + self.asked.values().map(|batch| batch.questions.len()).sum::<usize>()
            + self.known.iter().map(|(_, questions)| questions.len()).sum::<usize>()
    }

    /// A number that was never used before.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
