//! Commands about the cluster and its members.

use super::Context;
use crate::command::{FeatureLevel, Receipt};
use crate::ids::{ClusterId, Incarnation, MemberId};
use crate::refusal::{Field, Limited, Refusal, Rule};
use crate::state::{Change, Member, State};

/// The longest address, name or version that a member may give.
const MEMBER_TEXT_MAX: usize = 512;

impl State {
    pub(super) fn bootstrap(
        &mut self,
        context: &mut Context<'_>,
        cluster: ClusterId,
    ) -> Result<Receipt, Refusal> {
        match self.cluster {
            Some(present) if present == cluster => Ok(Receipt::Done),
            Some(present) => Err(Refusal::AlreadyBootstrapped { cluster: present }),
            None => {
                self.cluster = Some(cluster);
                context.changed(Change::Cluster);
                Ok(Receipt::Done)
            }
        }
    }

    pub(super) fn put_member(
        &mut self,
        context: &mut Context<'_>,
        member: &Member,
    ) -> Result<Receipt, Refusal> {
        if self.retired.contains(&member.id) {
            return Err(Refusal::MemberRetired { member: member.id });
        }
        let bound = self.members.get(&member.id).and_then(|present| present.disk);
        if bound.is_some() && member.disk.is_some() && bound != member.disk {
            return Err(Refusal::MemberDisk { member: member.id });
        }
        let member = Member { disk: member.disk.or(bound), ..member.clone() };
        let texts = [&member.peer_address, &member.api_address, &member.version];
        if member.supports < self.level {
            let (member, supported, needed) = (member.id, member.supports, self.level);
            return Err(Refusal::MemberTooOld { member, supported, needed });
        }
        if texts.iter().any(|text| text.len() > MEMBER_TEXT_MAX) {
            return Err(Refusal::OutOfRange { field: Field::MemberAddress, rule: Rule::NotTooLong });
        }
        let new = !self.members.contains_key(&member.id);
        if new && let Some(taken) = member.address_taken(self.members.values()) {
            return Err(taken);
        }
        if new && self.members.len() >= Self::MAX_MEMBERS {
            return Err(Refusal::LimitReached { what: Limited::Members, limit: Self::MAX_MEMBERS as u64 });
        }
        if self.members.get(&member.id) != Some(&member) {
            context.changed(Change::Member(member.id));
            self.members.insert(member.id, member);
        }
        Ok(Receipt::Done)
    }

    pub(super) fn remove_member(
        &mut self,
        context: &mut Context<'_>,
        id: MemberId,
    ) -> Result<Receipt, Refusal> {
        if self.members.len() == 1 && self.members.contains_key(&id) {
            return Err(Refusal::LastMember { member: id });
        }
        if self.members.remove(&id).is_some() {
            context.changed(Change::MemberRemoved(id));
        }
        self.retired.insert(id);
        Ok(Receipt::Done)
    }

    pub(super) fn set_feature_level(
        &mut self,
        context: &mut Context<'_>,
        level: FeatureLevel,
    ) -> Result<Receipt, Refusal> {
        if level == self.level {
            return Ok(Receipt::Done);
        }
        if level < self.level {
            return Err(Refusal::LevelNotHigher { level: self.level });
        }
        if let Some(old) = self.members.values().find(|member| member.supports < level) {
            return Err(Refusal::MemberTooOld { member: old.id, supported: old.supports, needed: level });
        }
        self.level = level;
        context.changed(Change::Cluster);
        Ok(Receipt::Done)
    }

    pub(super) fn start_incarnation(
        &mut self,
        context: &mut Context<'_>,
        incarnation: Incarnation,
    ) -> Result<Receipt, Refusal> {
        if incarnation <= self.incarnation {
            return Err(Refusal::StaleIncarnation);
        }
        self.incarnation = incarnation;
        self.epoch_counter = 0;
        context.changed(Change::Cluster);
        let ids: Vec<_> = self.volumes.keys().copied().collect();
        for id in ids {
            let epoch = self.issue_epoch();
            self.touch_volume(context, id, |volume| volume.epoch = epoch);
        }
        let ids: Vec<_> = self.snapshots.keys().copied().collect();
        for id in ids {
            let epoch = self.issue_epoch();
            self.touch_snapshot(context, id, |snapshot| snapshot.epoch = epoch);
        }
        let nodes: Vec<_> = self.nodes.keys().cloned().collect();
        for node in nodes {
            context.desired(&node);
        }
        Ok(Receipt::Done)
    }
}
