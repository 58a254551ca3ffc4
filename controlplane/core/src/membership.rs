//! Brings the raft group to the members that the state lists: learners first, voters once they have caught up, one change at
//! a time, by the leader.

use crate::member::Member;
use crate::pending::Topic;
use basalt_clock::mark;
use basalt_model::{Body, Member as Listed, MemberId};
use basalt_raft::{Disk, Membership, MembershipChange, RoleChange};

/// How many entries a learner may be behind to become a voter.
const CAUGHT_UP: u64 = 64;

/// What to do next about the members.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// Change the group.
    Change(MembershipChange),
    /// Hand over the leadership, because this member is to go.
    HandOver,
    /// Take a replaced member off the list.
    Retire(MemberId),
    /// Note that a replacement is done.
    Settle(Listed),
}

impl<D: Disk> Member<D> {
    /// Proposes the next step, if there is one and none is under way.
    pub(crate) fn reconcile_membership(&mut self) {
        if !self.ready_to_lead() || self.group.membership_changing() {
            return;
        }
        let membership = self.group.membership();
        if !membership.voters_outgoing.is_empty() {
            // The leader that began the change is gone, and with it the library's wish to end it.
            mark!("joint-consensus-ended-by-another-leader");
            self.change_group(&MembershipChange::default());
            return;
        }
        let Some(next) = self.next_step(&membership) else { return };
        match next {
            Next::Change(change) => {
                mark!("membership-change-proposed");
                self.change_group(&change);
            }
            Next::HandOver => {
                if let Some(to) = self.best_successor(None) {
                    mark!("leader-hands-over-to-be-removed");
                    self.group.transfer_leader(to);
                }
            }
            Next::Retire(id) => self.propose_own(Topic::Member(id), Body::RemoveMember { id }),
            Next::Settle(member) => self.propose_own(Topic::Member(member.id), Body::PutMember(member)),
        }
    }

    fn change_group(&mut self, change: &MembershipChange) {
        if let Err(error) = self.group.propose_membership(change) {
            tracing::debug!(%error, ?change, "not proposed, will be tried again");
        }
    }

    fn next_step(&self, membership: &Membership) -> Option<Next> {
        let present =
            |id: MemberId| membership.voters.contains(&id.get()) || membership.learners.contains(&id.get());
        let listed = self.state.members();
        for member in listed.values() {
            if let Some(next) = self.next_for(member, membership, &present) {
                return Some(next);
            }
        }
        let in_group =
            membership.voters.iter().chain(&membership.learners).filter_map(|id| MemberId::new(*id));
        let gone = in_group.into_iter().find(|id| !listed.contains_key(id) && self.state.is_retired(*id))?;
        Some(self.removal(gone))
    }

    fn next_for(
        &self,
        member: &Listed,
        membership: &Membership,
        present: &impl Fn(MemberId) -> bool,
    ) -> Option<Next> {
        if let Some(old) = member.replaces
            && !present(old)
            && membership.voters.contains(&member.id.get())
        {
            if self.state.members().contains_key(&old) {
                return Some(Next::Retire(old));
            }
            return Some(Next::Settle(Listed { replaces: None, ..member.clone() }));
        }
        if !present(member.id) {
            let replaced = |other: &Listed| {
                other.replaces == Some(member.id) && membership.voters.contains(&other.id.get())
            };
            if self.state.members().values().any(replaced) {
                return None;
            }
            // A member without a disk has not announced itself: nobody would answer.
            member.disk?;
            return Some(Next::Change(change(&[(member.id, RoleChange::Learner)])));
        }
        let replaced = member.replaces.filter(|old| present(*old));
        if membership.voters.contains(&member.id.get()) {
            return replaced.map(|old| self.removal(old));
        }
        if !self.has_caught_up(member.id) {
            return None;
        }
        mark!("learner-promoted");
        let voter = (member.id, RoleChange::Voter);
        match replaced.filter(|old| *old != self.config.member.id) {
            Some(old) => Some(Next::Change(change(&[voter, (old, RoleChange::Remove)]))),
            None => Some(Next::Change(change(&[voter]))),
        }
    }

    fn removal(&self, id: MemberId) -> Next {
        if id == self.config.member.id {
            return Next::HandOver;
        }
        Next::Change(change(&[(id, RoleChange::Remove)]))
    }

    fn has_caught_up(&self, id: MemberId) -> bool {
        let last = self.group.status().last;
        self.group
            .members()
            .iter()
            // Whoever has acknowledged nothing may be out of reach, however short the log is.
            .any(|progress| {
                let near = progress.matched > 0 && progress.matched + CAUGHT_UP >= last;
                progress.member == id && progress.active && near
            })
    }
}

fn change(steps: &[(MemberId, RoleChange)]) -> MembershipChange {
    MembershipChange { steps: steps.to_vec() }
}
