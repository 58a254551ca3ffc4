//! Applying commands. Every function here either refuses before it changes anything, or succeeds.

mod cluster;
mod nodes;
mod pools;
mod snapshots;
mod volumes;

use crate::command::{Body, Command, FeatureLevel, Receipt};
use crate::ids::{NodeName, Revision};
use crate::refusal::Refusal;
use crate::state::{Change, Outcome, RequestRecord, State};

/// What one command sees while it is applied.
pub(crate) struct Context<'a> {
    /// The command's revision.
    pub(crate) revision: Revision,
    /// The command.
    pub(crate) command: &'a Command,
    /// What changed so far.
    pub(crate) changes: Vec<Change>,
}

impl State {
    /// Applies one command.
    ///
    /// # Panics
    /// When `revision` is not higher than that of the command before: the log is applied in order and once.
    pub fn apply(&mut self, revision: Revision, command: &Command) -> Outcome {
        self.advance(revision);
        if let Some(key) = &command.request
            && let Some(record) = self.requests.get(&key.id)
        {
            basalt_clock::mark!("request-repeated");
            let result = if record.digest == key.digest {
                Ok(record.receipt.clone())
            } else {
                Err(Refusal::RequestIdReused)
            };
            return Outcome { result, repeated: true, revision: record.revision, changes: Vec::new() };
        }
        let mut context = Context { revision, command, changes: Vec::new() };
        let result = self.dispatch(&mut context);
        assert!(result.is_ok() || context.changes.is_empty(), "a refused command changed something");
        if let (Ok(receipt), Some(key)) = (&result, &command.request) {
            let record = RequestRecord { revision, digest: key.digest, receipt: receipt.clone() };
            self.requests.insert(key.id.clone(), record);
            self.index.expiry.insert(revision, key.id.clone());
        }
        let mut changes = context.changes;
        changes.sort();
        changes.dedup();
        self.stamp_desired(revision, &changes);
        Outcome { result, repeated: false, revision, changes }
    }

    /// Notes that the log reached this revision with an entry that is no command.
    ///
    /// # Panics
    /// When `revision` is not higher than the one before.
    pub fn advance(&mut self, revision: Revision) {
        assert!(revision > self.revision, "revision {revision} applied after {}", self.revision);
        self.revision = revision;
        while let Some(entry) = self.index.expiry.first_entry() {
            let age = (revision.0 - entry.key().0) % Self::RECOVERY_JUMP;
            if age < Self::REQUEST_WINDOW {
                break;
            }
            let id = entry.remove();
            self.requests.remove(&id);
        }
    }

    fn dispatch(&mut self, context: &mut Context<'_>) -> Result<Receipt, Refusal> {
        let command = context.command;
        self.needs(command.level)?;
        if self.cluster.is_none() && !matches!(command.body, Body::Bootstrap { .. } | Body::PutMember(_)) {
            return Err(Refusal::NotBootstrapped);
        }
        match &command.body {
            Body::Bootstrap { cluster } => self.bootstrap(context, *cluster),
            Body::PutMember(member) => self.put_member(context, member),
            Body::RemoveMember { id } => self.remove_member(context, *id),
            Body::SetFeatureLevel { level } => self.set_feature_level(context, *level),
            Body::StartIncarnation { incarnation } => self.start_incarnation(context, *incarnation),
            Body::PutNode { name, uid, spec } => self.put_node(context, name, uid.as_ref(), spec),
            Body::DeleteNode { name, uid } => self.delete_node(context, name, uid.as_ref()),
            Body::UnbindNode { name } => self.unbind_node(context, name),
            Body::AbandonNode { name } => self.abandon_node(context, name),
            Body::AbandonPool { node, pool } => self.abandon_pool(context, node, pool),
            Body::BindNodeInstance { node, instance } => self.bind_node(context, node, *instance),
            Body::ReportNode(report) => self.report_node(context, report),
            Body::SetNodeLiveness { node, liveness } => self.set_liveness(context, node, *liveness),
            Body::CreateVolume(create) => self.create_volume(context, create),
            Body::UpdateVolume { name, uid, change } => {
                self.update_volume(context, name, uid.as_ref(), change)
            }
            Body::DeleteVolume { name, uid } => self.delete_volume(context, name, uid.as_ref()),
            Body::ReleaseVolume { name, uid } => self.release_volume(context, name, uid.as_ref()),
            Body::CreateSnapshot(create) => self.create_snapshot(context, create),
            Body::DeleteSnapshot { name, uid } => self.delete_snapshot(context, name, uid.as_ref()),
            Body::ReleaseSnapshot { name, uid } => self.release_snapshot(context, name, uid.as_ref()),
            Body::ConfirmVolumeDeleted { node, volume, generation } => {
                self.confirm_deleted(context, node, *volume, *generation)
            }
        }
    }

    /// Refuses what a member may not understand.
    fn needs(&self, needed: FeatureLevel) -> Result<(), Refusal> {
        match self.level >= needed {
            true => Ok(()),
            false => Err(Refusal::FeatureLevel { needed, level: self.level }),
        }
    }

    /// Gives the revision to every node whose desired state changed.
    fn stamp_desired(&mut self, revision: Revision, changes: &[Change]) {
        for change in changes {
            if let Change::Desired(name) = change
                && let Some(node) = self.nodes.get_mut(name)
            {
                node.desired = revision;
            }
        }
    }
}

impl Context<'_> {
    fn changed(&mut self, change: Change) {
        self.changes.push(change);
    }

    fn desired(&mut self, node: &NodeName) {
        self.changes.push(Change::Desired(node.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::RequestKey;
    use crate::ids::{ClusterId, RequestId, Timestamp};

    #[test]
    fn a_recovery_forgets_no_request() {
        let key = RequestKey { id: RequestId::new("once").unwrap(), digest: 1 };
        let body = Body::Bootstrap { cluster: ClusterId::from_random(1) };
        let command = Command::new(Timestamp(0), Some(key), body);
        let mut state = State::new();
        assert!(!state.apply(Revision(5), &command).repeated);
        let later = 5 + State::RECOVERY_JUMP;
        assert!(state.apply(Revision(later + 1), &command).repeated);
        state.advance(Revision(later + State::REQUEST_WINDOW - 1));
        assert_eq!(state.requests.len(), 1);
        state.advance(Revision(later + State::REQUEST_WINDOW));
        assert!(state.requests.is_empty());
    }
}
