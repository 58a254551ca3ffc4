//! Client requests: mutations through the log, reads through a read index.

use crate::api::{ClientRequest, Mutation, Reply, ReplyTo, RequestError};
use crate::compose::compose;
use crate::member::Member;
use crate::pending::{Batch, Proposal, Purpose, Question};
use basalt_clock::{mark, planted};
use basalt_model::{
    Body, Claim, Command, MemberId, Outcome, Placement, Receipt, Refusal, RequestId, RequestKey, Revision,
};
use basalt_raft::{Disk, ProposeError};

impl<D: Disk> Member<D> {
    /// A client asks. The reply comes out under `reply_to`, exactly once while the member lives.
    pub fn request(&mut self, request: ClientRequest, reply_to: ReplyTo) {
        if self.is_expelled() {
            return self.fail(reply_to, RequestError::Stopped);
        }
        if self.proposals.len() + self.questions.len() >= self.config.limits.requests {
            return self.fail(reply_to, RequestError::Overloaded);
        }
        match request {
            ClientRequest::Mutate { id, mutation } => self.mutate(id, mutation, reply_to, false),
            ClientRequest::Read(read) => self.questions.fresh.push(Question::Read(read, reply_to)),
            ClientRequest::Watch { from } => self.watch(from, reply_to),
            ClientRequest::TransferLeader { to } => self.transfer(to, reply_to),
        }
    }

    pub(crate) fn reply(&mut self, reply_to: ReplyTo, reply: Reply) {
        self.outputs.replies.push((reply_to, reply));
    }

    pub(crate) fn fail(&mut self, reply_to: ReplyTo, error: RequestError) {
        self.reply(reply_to, Reply::Failed(error));
    }

    /// Proposes a mutation. `confirmed` says that the state is known to be the present one, so that a refusal is final.
    pub(crate) fn mutate(&mut self, id: RequestId, mutation: Mutation, reply_to: ReplyTo, confirmed: bool) {
        if !self.leads() {
            let leader = self.group.status().leader.filter(|leader| *leader != self.config.member.id);
            return self.fail(reply_to, RequestError::NotLeader { leader });
        }
        let digest = digest_of(&mutation);
        if self.proposals.join(&id, digest, reply_to) {
            mark!("request-joined");
            return;
        }
        let key = RequestKey { id, digest };
        if let Some((revision, known, receipt)) = self.state.request(&key.id) {
            // Done before, and committed: that is the answer, whoever leads by now.
            mark!("request-known");
            let done = Reply::Done { revision, receipt: receipt.clone() };
            let reused = Reply::Failed(RequestError::Refused(Refusal::RequestIdReused));
            return self.reply(reply_to, if known == digest { done } else { reused });
        }
        let reserved = self.proposals.reserved();
        match compose(&self.state, &self.config.member, &reserved, &mut self.random, &mutation) {
            Ok(composed) => self.propose_client(key, composed.body, composed.reserved, reply_to),
            Err(refusal) if confirmed => self.fail(reply_to, RequestError::Refused(refusal)),
            Err(_) => {
                self.questions.fresh.push(Question::Retry(key.id, Box::new(mutation), reply_to));
            }
        }
    }

    fn propose_client(
        &mut self,
        key: RequestKey,
        body: Body,
        reserved: Option<(Placement, Claim)>,
        reply_to: ReplyTo,
    ) {
        let purpose = Purpose::Client { id: key.id.clone(), digest: key.digest, reply_to: vec![reply_to] };
        match self.propose(Some(key), body, purpose, reserved) {
            Ok(()) if planted!("reply-before-commit") => {
                let revision = Revision(self.group.status().last);
                self.reply(reply_to, Reply::Done { revision, receipt: Receipt::Done });
            }
            Ok(()) => {}
            Err(ProposeError::NotLeader) => {
                let leader = self.group.status().leader;
                self.fail(reply_to, RequestError::NotLeader { leader });
            }
            Err(ProposeError::Busy) => self.fail(reply_to, RequestError::Overloaded),
        }
    }

    /// Proposes a command.
    pub(crate) fn propose(
        &mut self,
        key: Option<RequestKey>,
        body: Body,
        purpose: Purpose,
        reserved: Option<(Placement, Claim)>,
    ) -> Result<(), ProposeError> {
        let command = Command::new(self.now.wall, key, body);
        let bytes = command.encode().map_err(|error| {
            tracing::error!(%error, "a command cannot be encoded");
            ProposeError::Busy
        })?;
        let index = self.group.propose(bytes)?;
        let deadline = self.now.monotonic + self.config.timing.request_timeout;
        let term = self.group.status().term;
        let replaced = self.proposals.insert(index, Proposal { term, deadline, purpose, reserved });
        if let Some(replaced) = replaced {
            // Another leader's entry took the place; ours can never be committed.
            self.answer_lost(replaced);
        }
        Ok(())
    }

    /// Answers the clients of a command that was applied.
    pub(crate) fn answer_applied(&mut self, index: u64, term: u64, outcome: &Outcome) {
        let Some(proposal) = self.proposals.take(index) else { return };
        if proposal.term != term {
            return self.answer_lost(proposal);
        }
        let Purpose::Client { reply_to, .. } = proposal.purpose else { return };
        let reply = match &outcome.result {
            Ok(receipt) => Reply::Done { revision: outcome.revision, receipt: receipt.clone() },
            Err(refusal) => Reply::Failed(RequestError::Refused(refusal.clone())),
        };
        for reply_to in reply_to {
            if !planted!("reply-before-commit") {
                self.reply(reply_to, reply.clone());
            }
        }
    }

    /// Answers the clients of a proposal that lost its place in the log: it was not done.
    fn answer_lost(&mut self, proposal: Proposal) {
        mark!("proposal-lost");
        self.answer_failed(proposal, &RequestError::NotLeader { leader: self.group.status().leader });
    }

    pub(crate) fn answer_failed(&mut self, proposal: Proposal, error: &RequestError) {
        if let Purpose::Client { reply_to, .. } = proposal.purpose {
            for reply_to in reply_to {
                self.fail(reply_to, error.clone());
            }
        }
    }

    /// Asks for one read index for all questions that came in.
    pub(crate) fn ask_read_index(&mut self) {
        if self.questions.fresh.is_empty() {
            return;
        }
        let fresh = std::mem::take(&mut self.questions.fresh);
        if planted!("stale-read") {
            self.questions.known.push((0, fresh));
            return;
        }
        let deadline = self.now.monotonic + self.config.timing.request_timeout;
        self.ask(fresh, deadline);
    }

    fn ask(&mut self, questions: Vec<Question>, deadline: basalt_clock::Instant) {
        let number = self.questions.number();
        let mut context = self.config.member.id.get().to_be_bytes().to_vec();
        context.extend_from_slice(&self.life.to_be_bytes());
        context.extend_from_slice(&number.to_be_bytes());
        self.group.read_index(context);
        self.questions.asked.insert(number, Batch { questions, deadline, asked: self.now.monotonic });
    }

    /// A read index is known.
    pub(crate) fn read_index_known(&mut self, context: &[u8], index: u64) {
        let mut expected = self.config.member.id.get().to_be_bytes().to_vec();
        expected.extend_from_slice(&self.life.to_be_bytes());
        let Some(number) = context.strip_prefix(&expected[..]) else { return };
        let Ok(number) = number.try_into().map(u64::from_be_bytes) else { return };
        if let Some(batch) = self.questions.asked.remove(&number) {
            self.questions.known.push((index, batch.questions));
        }
    }

    /// Answers the questions whose index is applied. Returns whether there were any.
    pub(crate) fn answer_questions(&mut self) -> bool {
        let applied = self.group.applied();
        let known = std::mem::take(&mut self.questions.known);
        let (ready, waiting): (Vec<_>, Vec<_>) = known.into_iter().partition(|(index, _)| *index <= applied);
        self.questions.known = waiting;
        let any = !ready.is_empty();
        for question in ready.into_iter().flat_map(|(_, questions)| questions) {
            match question {
                Question::Read(read, reply_to) => {
                    let result = self.answer(&read);
                    self.reply(reply_to, Reply::Read { revision: self.state.revision(), result });
                }
                Question::Retry(id, mutation, reply_to) => self.mutate(id, *mutation, reply_to, true),
                Question::Watch(from, reply_to) => self.watch_from(from, reply_to),
            }
        }
        any
    }

    /// Asks again for read indexes that did not come, with fresh contexts, and gives up what is overdue.
    pub(crate) fn tick_requests(&mut self) {
        let now = self.now.monotonic;
        let patience = self.config.timing.tick * self.config.timing.election_ticks;
        let overdue: Vec<u64> = self
            .questions
            .asked
            .iter()
            .filter(|(_, batch)| batch.deadline <= now || now.since(batch.asked) >= patience)
            .map(|(number, _)| *number)
            .collect();
        for number in overdue {
            let Some(batch) = self.questions.asked.remove(&number) else { continue };
            if batch.deadline > now {
                mark!("read-index-asked-again");
                self.ask(batch.questions, batch.deadline);
                continue;
            }
            for question in batch.questions {
                self.fail(question.reply_to(), RequestError::TimedOut);
            }
        }
        for proposal in self.proposals.take_expired(now) {
            self.answer_failed(proposal, &RequestError::TimedOut);
        }
    }

    fn watch(&mut self, from: Option<Revision>, reply_to: ReplyTo) {
        let present = self.state.revision();
        match from {
            // This member may be behind the one that the watcher saw it at.
            Some(from) if from > present => self.questions.fresh.push(Question::Watch(from, reply_to)),
            from => self.watch_from(from.unwrap_or(present), reply_to),
        }
    }

    fn watch_from(&mut self, from: Revision, reply_to: ReplyTo) {
        let revision = self.state.revision();
        if from > revision {
            return self.fail(reply_to, RequestError::Ahead { present: revision });
        }
        match self.history.since(from) {
            Some(backlog) => self.reply(reply_to, Reply::Watching { revision, backlog }),
            None => self.fail(reply_to, RequestError::TooOld { oldest: self.history.oldest() }),
        }
    }

    fn transfer(&mut self, to: Option<MemberId>, reply_to: ReplyTo) {
        if !self.leads() {
            let leader = self.group.status().leader;
            return self.fail(reply_to, RequestError::NotLeader { leader });
        }
        if to == Some(self.config.member.id) {
            return self.reply(reply_to, Reply::Transferring { to: self.config.member.id });
        }
        if let Some(to) = self.best_successor(to) {
            self.group.transfer_leader(to);
            return self.reply(reply_to, Reply::Transferring { to });
        }
        let error = match to {
            None => RequestError::NoSuccessor,
            Some(member) if self.state.members().contains_key(&member) => RequestError::NoVote { member },
            Some(member) => RequestError::NoSuchMember { member },
        };
        self.fail(reply_to, error);
    }

    /// The voter to hand over to: the given one, or the active one that is furthest.
    pub(crate) fn best_successor(&self, to: Option<MemberId>) -> Option<MemberId> {
        let voters = self.group.membership().voters;
        self.group
            .members()
            .into_iter()
            .filter(|progress| {
                progress.member != self.config.member.id && voters.contains(&progress.member.get())
            })
            .filter(|progress| to.map_or(progress.active, |to| progress.member == to))
            .max_by_key(|progress| (progress.matched, std::cmp::Reverse(progress.member)))
            .map(|progress| progress.member)
    }

    /// Refuses what depends on the leadership that was lost.
    pub(crate) fn fail_proposals(&mut self, error: &RequestError) {
        for proposal in self.proposals.take_all() {
            mark!("leader-lost-in-the-middle-of-a-proposal");
            self.answer_failed(proposal, error);
        }
    }
}

/// FNV-1a over the JSON of a mutation: tells a retry from a reused request id. Not for security.
fn digest_of(mutation: &Mutation) -> u64 {
    let bytes = serde_json::to_vec(mutation).unwrap_or_default();
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
