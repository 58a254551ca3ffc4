//! The pool's owner: answers what channels ask, one question after the other.

use std::rc::{Rc, Weak};

use basalt_bdev::IoError;
use basalt_clock::planted;
use futures::StreamExt;
use futures::channel::mpsc;

use super::journal::Until;
use super::{Inner, State, VolumeData};
use crate::id::VolumeId;
use crate::layout::{LEAF_EXTENTS, PIECES, Pieces};
use crate::port::{Answer, Ask, Message};
use crate::refs::Refs;

/// Answers until the last one is gone who could ask.
pub(super) async fn serve(inner: Weak<Inner>, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.next().await {
        // Without the pool nobody can answer; the question's channel learns it when the message is dropped.
        if let Some(inner) = inner.upgrade() {
            inner.take(message);
        }
    }
}

/// Answers; whoever asked may be gone, which is no matter.
pub(super) fn reply(message: Message, answer: Result<Answer, IoError>) {
    drop(message.reply.send(answer));
}

impl Inner {
    fn take(self: &Rc<Self>, message: Message) {
        match message.ask {
            Ask::Load { extent } => {
                let loaded = self.load_chunk(message.volume, extent);
                reply(message, loaded.map(|()| Answer::Done));
            }
            Ask::Write { .. } | Ask::Discard { .. } => self.want(message),
            Ask::Written { grant, ok, durable } => self.end_grant(message, grant, ok, durable),
            Ask::Sync => {
                let inner = Rc::clone(self);
                drop(self.handle.spawn(async move {
                    let synced = inner.sync().await;
                    reply(message, synced.map(|()| Answer::Done).map_err(|_| IoError::Medium));
                }));
            }
        }
    }

    /// Answers once all changes of maps so far are durable, if that is wanted, or at least survive the end of this process:
    /// hosts that go on afterwards do not write again what was acknowledged.
    pub(super) fn reply_when_settled(self: &Rc<Self>, message: Message, durable: bool) {
        if planted!("lvol-acknowledged-before-journal") && !durable {
            return reply(message, Ok(Answer::Done));
        }
        let until = if durable { Until::Durable } else { Until::Written };
        let inner = Rc::clone(self);
        drop(self.handle.spawn(async move {
            let written = inner.settle_maps(until).await;
            reply(message, written.map(|_| Answer::Done).map_err(|_| IoError::Medium));
        }));
    }

    fn load_chunk(&self, id: VolumeId, extent: u64) -> Result<(), IoError> {
        let mut state = self.state.borrow_mut();
        let State { volumes, refs, .. } = &mut *state;
        let data = match volumes.get_mut(&id) {
            Some(super::Volume::Ready(data)) => data,
            _ => return Err(IoError::DeviceGone),
        };
        let Some(device) = &data.device else { return Err(IoError::DeviceGone) };
        let core = device.core();
        let first = extent / LEAF_EXTENTS as u64 * LEAF_EXTENTS as u64;
        let token = core.token.load(std::sync::atomic::Ordering::Acquire);
        core.map.load(extent, token, |index| {
            let extent = first + index as u64;
            let (pieces, own) = data.own(extent, refs);
            // What somebody has a grant for is moved under no other write.
            (pieces, if data.locked.contains(&extent) { 0 } else { data.free_to_overwrite(extent, own) })
        });
        Ok(())
    }
}

impl State {
    /// A change of an extent's map that no group has yet.
    pub(super) fn note_unwritten(&mut self, volume: VolumeId, extent: u64) {
        let change = self.map_changes;
        self.unwritten.push_back((change, volume, extent));
        if let Some(data) = self.volumes.get_mut(&volume).and_then(super::Volume::data_mut) {
            data.unwritten.insert(extent, change);
        }
    }

    /// All changes up to this one are in groups that were written, or in a checkpoint.
    pub(super) fn written_upto(&mut self, change: u64) {
        self.map_written = self.map_written.max(change);
        while let Some((noted, volume, extent)) = self.unwritten.front().copied() {
            if noted > change {
                return;
            }
            self.unwritten.pop_front();
            let Some(data) = self.volumes.get_mut(&volume).and_then(super::Volume::data_mut) else {
                continue;
            };
            if data.unwritten.get(&extent) == Some(&noted) {
                data.unwritten.remove(&extent);
                if !data.locked.contains(&extent) {
                    data.publish(extent, &self.refs);
                }
            }
        }
    }
}

impl VolumeData {
    /// Where the pieces of an extent lie, and bits of those that no other volume shares.
    pub(super) fn own(&self, extent: u64, refs: &Refs) -> (Pieces, u16) {
        let (pieces, own_leaf) = self.tree.get(extent);
        if !own_leaf || self.frozen > 0 {
            return (pieces, 0);
        }
        let mut own = 0;
        for place in pieces.places().filter(|place| refs.is_sole(*place)) {
            own |= pieces.within(place);
        }
        (pieces, own)
    }

    /// What of its own pieces a volume lets requests overwrite without asking.
    fn free_to_overwrite(&self, extent: u64, own: u16) -> u16 {
        match self.unwritten.contains_key(&extent) && !planted!("lvol-overwritten-before-journal") {
            true => 0,
            false => own,
        }
    }

    /// Tells requests where the pieces of an extent lie.
    pub(super) fn publish(&self, extent: u64, refs: &Refs) {
        let Some(device) = &self.device else { return };
        let core = device.core();
        let (pieces, own) = self.own(extent, refs);
        let own = self.free_to_overwrite(extent, own);
        core.used.fetch_or(pieces.disks(), std::sync::atomic::Ordering::AcqRel);
        if core.map.is_loaded(extent) {
            let token = core.token.load(std::sync::atomic::Ordering::Acquire);
            core.map.set(extent, token, &pieces, own);
        }
    }
}

const _: () = assert!(PIECES <= 16);
