//! The right to write: where first writes and writes to shared pieces go, and what becomes of it when they have ended.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use basalt_bdev::IoError;
use basalt_clock::{mark, planted};

use super::owner::reply;
use super::starving::Want;
use super::{Inner, State, VolumeData};
use crate::id::VolumeId;
use crate::layout::{HOLE_BYTES, JournalRecord, PIECES, Pieces, Place};
use crate::port::{Answer, Ask, Fill, Grant, Message, Target};
use crate::refs::Refs;

/// A grant that was given and not ended.
#[derive(Debug)]
pub(super) struct OpenGrant {
    volume: VolumeId,
    extent: u64,
    targets: Vec<Target>,
    /// Units that are holes of each target once it was written.
    holes: Vec<u16>,
    /// An extent that was taken for it and that no map names yet.
    taken: Option<Place>,
}

/// What is to be done about a request.
pub(super) enum Verdict {
    /// Let it wait until a lock or a freeze ends.
    Wait(Message),
    /// Let it wait until there is space, or room for metadata.
    Starve(Message, Want),
    Answer(Message, Result<Answer, IoError>),
    /// It changed a map; answer when that is durable, if it is to be.
    Changed(Message, bool),
    /// Its extents are to be left alone by others first.
    Disowned(Message, Grant),
}

impl Inner {
    /// A channel wants to write, or to discard.
    pub(super) fn want(self: &Rc<Self>, message: Message) {
        let verdict = self.judge(message);
        self.act(verdict);
    }

    pub(super) fn act(self: &Rc<Self>, verdict: Verdict) {
        match verdict {
            Verdict::Wait(message) => {
                let mut state = self.state.borrow_mut();
                match state.ready_mut(message.volume) {
                    Some(data) => data.waiting.push_back(message),
                    None => reply(message, Err(IoError::DeviceGone)),
                }
            }
            Verdict::Starve(message, want) => self.starve(message, want),
            Verdict::Answer(message, answer) => reply(message, answer),
            Verdict::Changed(message, durable) => {
                self.note_freed();
                self.reply_when_settled(message, durable);
            }
            Verdict::Disowned(message, grant) => {
                let inner = Rc::clone(self);
                drop(self.handle.spawn(async move {
                    inner.grace().await;
                    reply(message, Ok(Answer::Granted(grant)));
                }));
            }
        }
    }

    pub(super) fn judge(&self, message: Message) -> Verdict {
        let mut state = self.state.borrow_mut();
        let tight = self.metadata_is_tight(&state);
        if state.read_only.is_some() {
            return Verdict::Answer(message, Err(IoError::Medium));
        }
        let Some(data) = state.ready_mut(message.volume) else {
            return Verdict::Answer(message, Err(IoError::DeviceGone));
        };
        if let Err(error) = data.admits(&message) {
            return Verdict::Answer(message, Err(error));
        }
        let (Ask::Write { extent, .. } | Ask::Discard { extent, .. }) = message.ask else {
            panic!("only writes and discards are judged")
        };
        if data.frozen > 0 || data.locked.contains(&extent) {
            return Verdict::Wait(message);
        }
        match message.ask {
            Ask::Discard { pieces, durable, .. } => {
                // Discards may use the room that is kept back from writes.
                if tight == Tight::Hopeless {
                    return Verdict::Starve(message, Want::Room);
                }
                state.discard(message.volume, extent, pieces);
                Verdict::Changed(message, durable)
            }
            Ask::Write { .. } if tight != Tight::No => Verdict::Starve(message, Want::Room),
            Ask::Write { .. } => match state.grant(&message, self.all_units()) {
                Some((grant, false)) => Verdict::Answer(message, Ok(Answer::Granted(grant))),
                Some((grant, true)) => Verdict::Disowned(message, grant),
                None => Verdict::Starve(message, Want::Space),
            },
            _ => panic!("only writes and discards are judged"),
        }
    }

    /// Bits of all units of a piece that may be holes.
    fn all_units(&self) -> u16 {
        let units = self.shared.extent_bytes / PIECES as u64 / HOLE_BYTES;
        (0..units).fold(0, |bits, unit| bits | 1 << unit)
    }

    /// A grant has ended.
    pub(super) fn end_grant(self: &Rc<Self>, message: Message, grant: u64, ok: bool, durable: bool) {
        let open = {
            let mut state = self.state.borrow_mut();
            let Some(open) = state.grants.remove(&grant) else {
                return reply(message, Err(IoError::Aborted));
            };
            state.end_grant(&open, ok);
            open
        };
        self.note_freed();
        match ok {
            true => self.reply_when_settled(message, durable),
            false => reply(message, Ok(Answer::Done)),
        }
        self.wake(open.volume);
    }

    /// Looks again at requests that waited for a lock or the end of a freeze.
    pub(super) fn wake(self: &Rc<Self>, volume: VolumeId) {
        let waiting = {
            let mut state = self.state.borrow_mut();
            let data = state.volumes.get_mut(&volume).and_then(|volume| volume.data_mut());
            data.map(|data| std::mem::take(&mut data.waiting)).unwrap_or_default()
        };
        waiting.into_iter().for_each(|message| self.want(message));
    }

    /// How little room is left in the metadata areas.
    fn metadata_is_tight(&self, state: &State) -> Tight {
        self.tightness(state, self.pages.dirty_count())
    }

    /// Whether there is room for writes.
    pub(super) fn has_room(&self, state: &State) -> bool {
        self.metadata_is_tight(state) == Tight::No
    }

    /// Whether there is room for writes once all that is dirty was written.
    pub(super) fn has_room_when_written(&self, state: &State) -> bool {
        self.pages.dirty_count() > 0 && self.tightness(state, 0) == Tight::No
    }

    fn tightness(&self, state: &State, dirty: usize) -> Tight {
        let (for_maps, all) = self.pages.free();
        // A checkpoint needs new pages for all that is dirty while the old ones are kept, and volumes and directory besides.
        let dirty = dirty + state.volumes.len() / 8 + 8;
        if all <= dirty + dirty / 4 {
            return Tight::Hopeless;
        }
        if for_maps > 2 * dirty + self.pages.total() / 32 { Tight::No } else { Tight::Yes }
    }
}

/// See [`Inner::metadata_is_tight`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tight {
    No,
    /// Only what gives space back goes on.
    Yes,
    /// A checkpoint has to come first.
    Hopeless,
}

impl VolumeData {
    fn admits(&self, message: &Message) -> Result<(), IoError> {
        let Some(device) = &self.device else { return Err(IoError::DeviceGone) };
        let core = device.core();
        if core.fence.load(Ordering::Acquire) != message.fence {
            return Err(IoError::Fenced);
        }
        match core.info.read_only() {
            true => Err(IoError::ReadOnly),
            false => Ok(()),
        }
    }
}

/// What a grant is made of.
struct Plan {
    targets: Vec<Target>,
    /// Pieces need an extent that is to be taken.
    needs_extent: bool,
    /// The volume's own pieces are moved.
    moves_own: bool,
}

/// Where the pieces of `wanted` are to be written; those that need a new extent name `fresh`. `units` are all of a piece.
fn plan(pieces: &Pieces, own: u16, (wanted, units): (u16, u16), together: bool, fresh: Place) -> Plan {
    let bits = |piece: usize| 1_u16 << piece;
    let is_own = |piece: usize| own & bits(piece) != 0;
    let each = (0..PIECES).filter(|piece| wanted & bits(*piece) != 0);
    let mut plan = Plan { targets: Vec::new(), needs_extent: false, moves_own: false };
    // An extent that is the volume's own altogether has room for pieces that lie elsewhere or nowhere.
    let home = pieces.places().find(|place| pieces.within(*place) & !own == 0);
    let first_own = each.clone().find(|piece| is_own(*piece)).and_then(|piece| pieces.get(piece));
    let all_in = |place: Place| each.clone().all(|piece| is_own(piece) && pieces.get(piece) == Some(place));
    let apart = together && !first_own.is_some_and(all_in);
    for piece in each.clone() {
        let at = pieces.get(piece);
        if is_own(piece) && !apart {
            let place = at.unwrap_or(fresh);
            plan.targets.push(Target { piece, place, fill: Fill::Keep, holes: pieces.holes(piece) });
            continue;
        }
        let fill = at.map_or(Fill::Fresh, Fill::Copy);
        let holes = if fill == Fill::Fresh { units } else { pieces.holes(piece) };
        let place = match home {
            Some(home) if !apart => home,
            _ => {
                plan.needs_extent = true;
                fresh
            }
        };
        plan.moves_own |= is_own(piece);
        plan.targets.push(Target { piece, place, fill, holes });
    }
    plan
}

impl State {
    /// The right to write, and whether others have to leave its extents alone first. `None`: it takes an extent, and none is to be had.
    fn grant(&mut self, message: &Message, units: u16) -> Option<(Grant, bool)> {
        let Ask::Write { extent, pieces: wanted, head, tail, together } = message.ask else {
            panic!("only writes get grants")
        };
        let Self { volumes, refs, space, .. } = self;
        let Some(super::Volume::Ready(data)) = volumes.get(&message.volume) else {
            return None;
        };
        let (pieces, own) = data.own(extent, refs);
        let own = if planted!("lvol-snapshot-shares-writes") { valid(&pieces) } else { own };
        let nowhere = Place::new(0, 0)?;
        let mut planned = plan(&pieces, own, (wanted, units), together, nowhere);
        let mut taken = None;
        if planned.needs_extent {
            let limit = super::usage::extent_limit(space.total());
            let used = space.total() - space.free();
            if used >= limit {
                return None;
            }
            let place = space.allocate_one(turn_of(message.volume, extent))?;
            planned = plan(&pieces, own, (wanted, units), together, place);
            taken = Some(place);
        }
        self.grants_made += 1;
        let id = self.grants_made;
        let holes = left_over(&planned.targets, head, tail);
        let targets = planned.targets.clone();
        let open = OpenGrant { volume: message.volume, extent, targets, holes, taken };
        self.grants.insert(id, open);
        let refs = &self.refs;
        if let Some(super::Volume::Ready(data)) = self.volumes.get_mut(&message.volume) {
            data.locked.insert(extent);
            data.granted += 1;
            if planned.moves_own {
                data.disown(extent, refs);
            }
        }
        Some((Grant { id, targets: planned.targets }, planned.moves_own))
    }

    fn end_grant(&mut self, open: &OpenGrant, ok: bool) {
        let mut named = false;
        if let Some(data) = self.volumes.get_mut(&open.volume).and_then(|volume| volume.data_mut()) {
            data.locked.remove(&open.extent);
            data.granted -= 1;
            let (before, _) = data.tree.get(open.extent);
            let mut after = before;
            if ok {
                for (target, holes) in open.targets.iter().zip(&open.holes) {
                    after.set_partly(target.piece, target.place, *holes);
                }
            }
            named = open.taken.is_some_and(|taken| after.within(taken) != 0);
            if after != before {
                data.set(open.extent, &after, &mut self.refs);
                data.touch();
                self.pending.push(JournalRecord { volume: open.volume, extent: open.extent, pieces: after });
                self.map_changes += 1;
                if let Some(device) = &data.device {
                    device.core().changed.store(self.map_changes, Ordering::Release);
                }
                self.note_unwritten(open.volume, open.extent);
            }
        }
        if let Some(data) = self.volumes.get(&open.volume).and_then(super::Volume::data) {
            data.publish(open.extent, &self.refs);
        }
        if let Some(taken) = open.taken.filter(|_| !named) {
            self.space.give_back(taken);
        }
    }

    /// Lets pieces lie nowhere.
    fn discard(&mut self, volume: VolumeId, extent: u64, wanted: u16) {
        let Some(super::Volume::Ready(data)) = self.volumes.get_mut(&volume) else { return };
        let (before, _) = data.tree.get(extent);
        let mut after = before;
        (0..PIECES).filter(|piece| wanted & 1 << piece != 0).for_each(|piece| after.set(piece, None));
        if after == before {
            return;
        }
        mark!("lvol-discarded");
        data.set(extent, &after, &mut self.refs);
        data.touch();
        data.publish(extent, &self.refs);
        if planted!("lvol-discard-not-journalled") {
            return;
        }
        self.pending.push(JournalRecord { volume, extent, pieces: after });
        self.map_changes += 1;
        if let Some(device) = &data.device {
            device.core().changed.store(self.map_changes, Ordering::Release);
        }
    }
}

/// Which units of each target are holes still when the first one's `head`, the last one's `tail` and all between was written.
fn left_over(targets: &[Target], head: u16, tail: u16) -> Vec<u16> {
    let last = targets.len() - 1;
    let written = |at: usize| {
        let of_first = if at == 0 { head } else { u16::MAX };
        if at == last { of_first & tail } else { of_first }
    };
    let each = targets.iter().enumerate().map(|(at, target)| match target.fill {
        // The holes of what is copied are filled.
        Fill::Copy(_) => 0,
        _ if planted!("lvol-rest-of-piece-not-zeroed") => 0,
        Fill::Keep | Fill::Fresh => target.holes & !written(at),
    });
    each.collect()
}

/// Which disk's turn it is for an extent of a volume, where they take turns: neighbouring extents lie on different disks in whatever order
/// they are written, and not all volumes begin on the same one.
pub(super) fn turn_of(volume: VolumeId, extent: u64) -> u64 {
    let [.., last] = volume.to_bytes();
    extent.wrapping_add(u64::from(last))
}

/// Bits of the pieces that lie somewhere.
fn valid(pieces: &Pieces) -> u16 {
    pieces.places().fold(0, |bits, place| bits | pieces.within(place))
}

impl VolumeData {
    /// Sends all writes of an extent to the owner.
    fn disown(&self, extent: u64, refs: &Refs) {
        let Some(device) = &self.device else { return };
        let core = device.core();
        let (pieces, _) = self.own(extent, refs);
        core.map.set(extent, core.token.load(Ordering::Acquire), &pieces, 0);
    }
}
