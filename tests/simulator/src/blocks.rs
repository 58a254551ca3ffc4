//! What a read of a block may return, given every write, flush and crash so far.
//!
//! Per block there is a list of writes that may still be seen. A write leaves the list when another one has certainly taken
//! its place on the medium. *Live* candidates may be read now; *durable* candidates may be read after the next crash:
//!
//! * an acknowledged write replaces, live, everything that had its effect before it was issued;
//! * it replaces it durably once it was acknowledged with FUA, or once a flush that was issued after the acknowledgement was
//!   acknowledged;
//! * a write that failed (its connection ended) may have had its effect or not, or may still have it until the target is
//!   known to have given it up;
//! * after a crash every durable candidate is possible; what is then read has been on the medium and stays;
//! * two reads with nothing between them agree;
//! * until a write is acknowledged only the running target may know where it lies: one that was read before may be gone after the
//!   target's end, as it may be after a power failure;
//! * a volume that was restored begins with what its snapshot may hold ([`Holding`]), all of it durable.

use crate::holding::{Contradiction, Holding, Shared};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

/// A position in the one order of everything that hosts and the world did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    pub(crate) const NEVER: Self = Self(u64::MAX);
}

/// What stands for the content of one block; [`Stamp::ZEROES`] is a block that was never written. All others are of one volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

/// Bits of a stamp that count the writes of its volume.
const COUNT_BITS: u32 = 40;

impl Stamp {
    /// All bytes are zero.
    pub const ZEROES: Self = Self(0);

    /// The stamp of a volume's write with this number; neither is zero.
    pub fn of(volume: u64, count: u64) -> Self {
        debug_assert!(volume > 0 && count > 0 && count >> COUNT_BITS == 0, "{volume} {count}");
        Self(volume << COUNT_BITS | count)
    }

    /// The number of the volume that it was written to.
    pub fn volume(self) -> u64 {
        self.0 >> COUNT_BITS
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stamp({}.{})", self.volume(), self.0 & ((1 << COUNT_BITS) - 1))
    }
}

/// The number of a write, for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(u64);

/// How a write changes blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The blocks read as this from now on.
    Content(Stamp),
    /// The blocks may read as zeroes or as before (a discard).
    PerhapsZeroes,
}

#[derive(Debug, Clone)]
struct Write {
    id: WriteId,
    effect: Effect,
    issued: Moment,
    /// The last moment at which it can have had its effect.
    settled: Moment,
    acknowledged: bool,
    durable: bool,
    /// A crash came before it was durable.
    perhaps_lost: bool,
    /// A later read saw something else, which ended then; until the next crash no read that is issued after that can see it.
    hidden: Option<Moment>,
    /// The volume began with it.
    inherited: bool,
}

impl Write {
    /// One that the hosts of the volume have issued.
    fn issued(id: WriteId, effect: Effect, issued: Moment) -> Self {
        Self {
            id,
            effect,
            issued,
            settled: Moment::NEVER,
            acknowledged: false,
            durable: false,
            perhaps_lost: false,
            hidden: None,
            inherited: false,
        }
    }

    /// What the volume perhaps began with.
    fn inherited(id: WriteId, stamp: Stamp) -> Self {
        Self {
            settled: Moment(0),
            acknowledged: true,
            durable: true,
            inherited: true,
            ..Self::issued(id, Effect::Content(stamp), Moment(0))
        }
    }

    fn stamp(&self) -> Stamp {
        match self.effect {
            Effect::Content(stamp) => stamp,
            Effect::PerhapsZeroes => Stamp::ZEROES,
        }
    }

    /// Whether this write has taken the place of `other`, live.
    fn replaces(&self, other: &Self) -> bool {
        self.acknowledged
            && !self.perhaps_lost
            && self.effect != Effect::PerhapsZeroes
            && other.settled < self.issued
    }
}

#[derive(Debug, Clone)]
struct Block {
    writes: Vec<Write>,
}

impl Block {
    /// Forgets writes that can neither be seen now, nor by a read that was issued since `oldest_read`, nor after a crash.
    fn prune(&mut self, oldest_read: Moment) {
        let durable: Vec<Moment> = self
            .writes
            .iter()
            .filter(|write| write.durable && !write.perhaps_lost && write.effect != Effect::PerhapsZeroes)
            .filter(|write| write.settled < oldest_read)
            .map(|write| write.issued)
            .collect();
        self.writes.retain(|write| durable.iter().all(|issued| write.settled >= *issued));
    }

    /// Whether `write` may be seen by a read that was issued at `read`.
    fn visible(&self, write: &Write, read: Moment) -> bool {
        write.hidden.is_none_or(|since| read < since)
            && self.writes.iter().all(|other| !(other.replaces(write) && other.settled < read))
    }

    /// Tells a snapshot that is under way what of this block it may hold if it is taken now.
    fn tell(&self, number: u64, now: Moment, snapshot: &Shared) {
        let mut snapshot = snapshot.borrow_mut();
        for write in self.writes.iter().filter(|write| self.visible(write, now)) {
            snapshot.may_hold(number, write.id, write.stamp(), write.issued);
        }
    }
}

/// Why a read is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("block {block} read as {read:?}, but only {permitted:?} are possible ({detail})")]
pub struct WrongRead {
    /// The block.
    pub block: u64,
    /// What was read.
    pub read: Stamp,
    /// What could have been read.
    pub permitted: Vec<Stamp>,
    /// What is known of the stamp.
    pub detail: &'static str,
}

/// The oracle of one volume.
#[derive(Debug)]
pub struct Blocks {
    moment: Moment,
    writes: u64,
    blocks: BTreeMap<u64, Block>,
    open: BTreeMap<WriteId, (u64, u64)>,
    reads: BTreeSet<Moment>,
    crashed: Moment,
    killed: Moment,
    volatile_cache: bool,
    base: Option<Shared>,
    /// Snapshots that were ordered and not reported.
    snapshots: Vec<Shared>,
}

impl Blocks {
    /// A volume that reads as what its snapshot holds, if it was restored from one, and as zeroes otherwise. Without a
    /// `volatile_cache` every acknowledged write is durable.
    pub fn new(volatile_cache: bool, base: Option<Shared>) -> Self {
        Self {
            moment: Moment(0),
            writes: 0,
            blocks: BTreeMap::new(),
            open: BTreeMap::new(),
            reads: BTreeSet::new(),
            crashed: Moment(0),
            killed: Moment(0),
            volatile_cache,
            base,
            snapshots: Vec::new(),
        }
    }

    /// Now, as a moment later than all before.
    pub fn now(&mut self) -> Moment {
        self.moment.0 += 1;
        self.moment
    }

    /// A write of blocks `first..first + count` was issued.
    pub fn write_issued(&mut self, first: u64, count: u64, effect: Effect) -> WriteId {
        let issued = self.now();
        let id = self.next_id();
        for number in first..first + count {
            if !self.blocks.contains_key(&number) {
                let inherited =
                    self.base.as_ref().map_or(vec![Stamp::ZEROES], |base| base.borrow().stamps(number));
                let writes =
                    inherited.into_iter().map(|stamp| Write::inherited(self.next_id(), stamp)).collect();
                self.blocks.insert(number, Block { writes });
            }
            let Some(block) = self.blocks.get_mut(&number) else { continue };
            block.writes.push(Write::issued(id, effect, issued));
            self.snapshots.iter().for_each(|snapshot| block.tell(number, issued, snapshot));
        }
        self.open.insert(id, (first, count));
        id
    }

    fn next_id(&mut self) -> WriteId {
        self.writes += 1;
        WriteId(self.writes)
    }

    /// A snapshot of the volume was ordered. It may hold whatever the volume may until it is reported.
    pub fn snapshot_ordered(&mut self) -> Shared {
        let now = self.now();
        let snapshot = Rc::new(RefCell::new(Holding::ordered(now, self.base.clone())));
        self.snapshots.push(Rc::clone(&snapshot));
        self.tell_snapshots();
        snapshot
    }

    /// A snapshot was reported to be there.
    pub fn snapshot_reported(&mut self, snapshot: &Shared) {
        let now = self.now();
        snapshot.borrow_mut().reported(now);
        self.snapshots.retain(|other| !Rc::ptr_eq(other, snapshot));
    }

    /// Tells snapshots that are under way what the volume may hold now.
    fn tell_snapshots(&mut self) {
        let now = self.now();
        for snapshot in &self.snapshots {
            self.blocks.iter().for_each(|(number, block)| block.tell(*number, now, snapshot));
        }
    }

    /// The target's process ended: snapshots that are under way are taken again.
    fn interrupt_snapshots(&mut self) {
        self.snapshots.iter().for_each(|snapshot| snapshot.borrow_mut().interrupted());
        self.tell_snapshots();
    }

    /// Tells snapshots that are under way what the write takes the place of.
    fn tell_of_replacement(&self, id: WriteId, now: Moment) {
        let Some((first, count)) = self.open.get(&id).filter(|_| !self.snapshots.is_empty()) else { return };
        for number in *first..first + count {
            let Some(block) = self.blocks.get(&number) else { continue };
            let Some(write) = block.writes.iter().find(|write| write.id == id) else { continue };
            if write.effect == Effect::PerhapsZeroes {
                continue;
            }
            let replaced = |other| {
                let other = block.writes.iter().find(|write| write.id == other);
                other.is_some_and(|other| other.settled < write.issued)
            };
            for snapshot in &self.snapshots {
                snapshot.borrow_mut().replaced(number, now, replaced);
            }
        }
    }

    fn oldest_read(&self) -> Moment {
        self.reads.first().copied().unwrap_or(Moment::NEVER)
    }

    /// A read was issued.
    pub fn read_issued(&mut self) -> Moment {
        let issued = self.now();
        self.reads.insert(issued);
        issued
    }

    /// A read that was issued at `issued` has ended.
    pub fn read_ended(&mut self, issued: Moment) {
        self.reads.remove(&issued);
    }

    fn each(&mut self, id: WriteId, mut change: impl FnMut(&mut Write)) {
        let oldest_read = self.oldest_read();
        let Some((first, count)) = self.open.remove(&id) else { return };
        for block in first..first + count {
            let Some(block) = self.blocks.get_mut(&block) else { continue };
            block.writes.iter_mut().filter(|write| write.id == id).for_each(&mut change);
            block.prune(oldest_read);
        }
    }

    /// The write was acknowledged.
    pub fn write_acknowledged(&mut self, id: WriteId, fua: bool) {
        let now = self.now();
        let durable = fua || !self.volatile_cache;
        self.tell_of_replacement(id, now);
        self.each(id, |write| {
            write.acknowledged = true;
            write.settled = now;
            write.durable = durable;
        });
    }

    /// The write failed and will certainly not have an effect that it has not had yet.
    pub fn write_given_up(&mut self, id: WriteId) {
        let now = self.now();
        self.each(id, |write| write.settled = now);
    }

    /// Nobody waits for the writes that are open any more; they may still have their effect until they are given up.
    pub fn abandoned(&mut self) -> Vec<WriteId> {
        self.reads.clear();
        self.open.keys().copied().collect()
    }

    /// A flush that was issued at `issued` was acknowledged.
    pub fn flush_acknowledged(&mut self, issued: Moment) {
        self.now();
        let oldest_read = self.oldest_read();
        for block in self.blocks.values_mut() {
            for write in &mut block.writes {
                if write.acknowledged && write.settled < issued && !write.perhaps_lost {
                    write.durable = true;
                }
            }
            block.prune(oldest_read);
        }
    }

    /// The target's processes ended, and its disks kept what they had completed: writes that are still open had their effect or
    /// never will.
    pub fn killed(&mut self) {
        let (now, oldest_read) = (self.now(), self.oldest_read());
        self.killed = now;
        self.open.clear();
        for block in self.blocks.values_mut() {
            let unacknowledged = block.writes.iter().any(|write| !write.acknowledged);
            for write in &mut block.writes {
                write.settled = write.settled.min(now);
                write.hidden = write.hidden.filter(|_| !unacknowledged);
            }
            block.prune(oldest_read);
        }
        self.interrupt_snapshots();
    }

    /// The target lost everything that was not on its medium; writes that are still open will not have an effect any more.
    pub fn crashed(&mut self) {
        let (now, oldest_read) = (self.now(), self.oldest_read());
        self.crashed = now;
        self.open.clear();
        for block in self.blocks.values_mut() {
            for write in &mut block.writes {
                write.settled = write.settled.min(now);
                write.perhaps_lost |= !write.durable;
                write.hidden = None;
            }
            block.prune(oldest_read);
        }
        self.interrupt_snapshots();
    }

    /// A read that was issued at `issued` returned `read` for `block`.
    ///
    /// # Errors
    /// When no history explains that.
    pub fn read(&mut self, issued: Moment, block: u64, read: Stamp) -> Result<(), WrongRead> {
        let (now, crashed, killed) = (self.now(), self.crashed, self.killed);
        let Some(state) = self.blocks.get_mut(&block) else { return self.read_unwritten(block, read) };
        let seen = |write: &&Write| write.stamp() == read && state.visible(write, issued);
        // With several candidates of one content nothing can be concluded about which it was.
        let matching: Vec<WriteId> = state.writes.iter().filter(seen).map(|write| write.id).collect();
        let [id] = matching[..] else {
            if !matching.is_empty() {
                return Ok(());
            }
            let visible = |write: &&Write| state.visible(write, issued);
            let permitted = state.writes.iter().filter(visible).map(Write::stamp).collect();
            let known = state.writes.iter().any(|write| write.stamp() == read);
            let detail =
                if known { "it was replaced" } else { "it was replaced for good or never written there" };
            return Err(WrongRead { block, read, permitted, detail });
        };
        if state.writes.iter().any(|write| write.id == id && write.inherited)
            && let Some(base) = &self.base
        {
            saw(base, block, read)?;
        }
        // What was read before a crash and arrives after it says nothing about now, nor before the target's end if that may have
        // undone it.
        let unacknowledged = state.writes.iter().any(|write| !write.acknowledged);
        if issued <= crashed || (issued <= killed && unacknowledged) {
            return Ok(());
        }
        let on_medium = state.writes.iter().any(|write| write.id == id && write.settled <= crashed);
        for write in &mut state.writes {
            if write.id != id && write.settled < issued {
                write.hidden = write.hidden.or(Some(now));
            }
        }
        if on_medium {
            state.writes.retain(|write| write.id == id || write.settled > crashed);
            for write in state.writes.iter_mut().filter(|write| write.id == id) {
                write.durable = true;
                write.perhaps_lost = false;
            }
        }
        Ok(())
    }

    /// A block was read that no host of this volume has written.
    fn read_unwritten(&self, block: u64, read: Stamp) -> Result<(), WrongRead> {
        match &self.base {
            Some(base) => saw(base, block, read),
            None if read == Stamp::ZEROES => Ok(()),
            None => {
                let (permitted, detail) = (vec![Stamp::ZEROES], "it was never written");
                Err(WrongRead { block, read, permitted, detail })
            }
        }
    }
}

/// Something was read that only the snapshot can have brought.
fn saw(base: &Shared, block: u64, read: Stamp) -> Result<(), WrongRead> {
    base.borrow_mut().saw(block, read).map_err(|contradiction| match contradiction {
        Contradiction::Other(permitted) => {
            let detail = "the snapshot that the volume was restored from does not hold it";
            WrongRead { block, read, permitted, detail }
        }
        Contradiction::OtherMoment => {
            let detail = "with what else is known of the snapshot it is not of one moment";
            WrongRead { block, read, permitted: Vec::new(), detail }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Stamp = Stamp(11);
    const B: Stamp = Stamp(22);

    fn write(blocks: &mut Blocks, stamp: Stamp, fua: bool) {
        let id = blocks.write_issued(5, 1, Effect::Content(stamp));
        blocks.write_acknowledged(id, fua);
    }

    fn flush(blocks: &mut Blocks) {
        let issued = blocks.now();
        blocks.flush_acknowledged(issued);
    }

    fn reads(blocks: &mut Blocks, stamp: Stamp) -> bool {
        let issued = blocks.now();
        blocks.read(issued, 5, stamp).is_ok()
    }

    #[test]
    fn never_written_blocks_read_as_zeroes() {
        let mut blocks = Blocks::new(true, None);
        assert!(reads(&mut blocks, Stamp::ZEROES) && !reads(&mut blocks, A));
    }

    #[test]
    fn an_acknowledged_write_is_read_and_what_it_replaced_is_not() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, false);
        assert!(reads(&mut blocks, A) && !reads(&mut blocks, Stamp::ZEROES));
        write(&mut blocks, B, false);
        assert!(!reads(&mut blocks, A) && reads(&mut blocks, B));
    }

    #[test]
    fn while_a_write_is_open_both_contents_are_possible_but_not_back_and_forth_once_it_ended() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, false);
        let open = blocks.write_issued(5, 1, Effect::Content(B));
        assert!(reads(&mut blocks, A));
        assert!(reads(&mut blocks, B));
        assert!(!reads(&mut blocks, A), "B was seen already");
        blocks.write_acknowledged(open, false);
        assert!(!reads(&mut blocks, A) && reads(&mut blocks, B));
    }

    #[test]
    fn a_read_that_began_before_the_acknowledgement_may_see_the_old_content() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, false);
        for fua in [false, true] {
            let open = blocks.write_issued(5, 1, Effect::Content(B));
            let issued = blocks.read_issued();
            blocks.write_acknowledged(open, fua);
            assert!(blocks.read(issued, 5, A).is_ok(), "FUA {fua}");
            blocks.read_ended(issued);
            write(&mut blocks, A, false);
        }
    }

    #[test]
    fn concurrent_writes_may_end_in_either_order_and_then_stay() {
        for (seen, other) in [(A, B), (B, A)] {
            let mut blocks = Blocks::new(true, None);
            let first = blocks.write_issued(5, 1, Effect::Content(A));
            let second = blocks.write_issued(5, 1, Effect::Content(B));
            blocks.write_acknowledged(first, false);
            blocks.write_acknowledged(second, false);
            assert!(reads(&mut blocks, seen) && !reads(&mut blocks, other));
        }
    }

    #[test]
    fn an_unflushed_write_may_be_lost_by_a_crash_but_one_outcome_stays() {
        for (seen, other) in [(A, B), (B, A)] {
            let mut blocks = Blocks::new(true, None);
            write(&mut blocks, A, true);
            write(&mut blocks, B, false);
            blocks.crashed();
            assert!(reads(&mut blocks, seen), "{seen:?}");
            assert!(!reads(&mut blocks, other));
            blocks.crashed();
            assert!(!reads(&mut blocks, other) && reads(&mut blocks, seen), "what was on the medium stays");
        }
    }

    #[test]
    fn a_read_that_arrives_after_a_crash_tells_of_before() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, true);
        write(&mut blocks, B, false);
        let issued = blocks.read_issued();
        blocks.crashed();
        assert!(blocks.read(issued, 5, B).is_ok());
        assert!(reads(&mut blocks, A), "B was lost");
    }

    #[test]
    fn what_was_flushed_or_written_with_fua_survives() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, false);
        flush(&mut blocks);
        blocks.crashed();
        assert!(!reads(&mut blocks, Stamp::ZEROES) && reads(&mut blocks, A));
        write(&mut blocks, B, true);
        blocks.crashed();
        assert!(!reads(&mut blocks, A) && reads(&mut blocks, B));
    }

    #[test]
    fn a_long_read_may_see_what_was_replaced_since_it_was_issued() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, false);
        let issued = blocks.read_issued();
        let id = blocks.write_issued(5, 1, Effect::PerhapsZeroes);
        blocks.write_acknowledged(id, false);
        assert!(reads(&mut blocks, Stamp::ZEROES) && !reads(&mut blocks, A));
        assert_eq!(blocks.read(issued, 5, A), Ok(()));
    }

    #[test]
    fn without_a_volatile_cache_acknowledged_writes_survive() {
        let mut blocks = Blocks::new(false, None);
        write(&mut blocks, A, false);
        blocks.crashed();
        assert!(!reads(&mut blocks, Stamp::ZEROES) && reads(&mut blocks, A));
    }

    #[test]
    fn a_flush_does_not_cover_a_write_that_was_acknowledged_after_it_was_issued() {
        let mut blocks = Blocks::new(true, None);
        let open = blocks.write_issued(5, 1, Effect::Content(A));
        let issued = blocks.now();
        blocks.write_acknowledged(open, false);
        blocks.flush_acknowledged(issued);
        blocks.crashed();
        assert!(reads(&mut blocks, Stamp::ZEROES));
    }

    #[test]
    fn a_failed_write_may_appear_until_it_is_given_up_and_replaced() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, true);
        let failed = blocks.write_issued(5, 1, Effect::Content(B));
        assert!(reads(&mut blocks, A));
        write(&mut blocks, A, true);
        assert!(reads(&mut blocks, B), "it had its effect late");
        blocks.write_given_up(failed);
        write(&mut blocks, A, true);
        assert!(!reads(&mut blocks, B) && reads(&mut blocks, A));
    }

    #[test]
    fn a_killed_target_keeps_what_it_acknowledged() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, false);
        let open = blocks.write_issued(5, 1, Effect::Content(B));
        blocks.killed();
        blocks.write_acknowledged(open, false);
        assert!(!reads(&mut blocks, Stamp::ZEROES) && reads(&mut blocks, B));
        write(&mut blocks, A, false);
        assert!(reads(&mut blocks, A) && !reads(&mut blocks, B), "the open write can not come later");
    }

    #[test]
    fn a_write_that_was_read_and_not_acknowledged_may_be_gone_after_the_targets_end() {
        for seen in [A, B] {
            let mut blocks = Blocks::new(true, None);
            write(&mut blocks, A, true);
            let _open = blocks.write_issued(5, 1, Effect::Content(B));
            assert!(
                reads(&mut blocks, B) && !reads(&mut blocks, A),
                "it was read, and stays while the target lives"
            );
            blocks.killed();
            assert!(reads(&mut blocks, seen), "{seen:?}");
        }
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, true);
        write(&mut blocks, B, false);
        blocks.killed();
        assert!(!reads(&mut blocks, A), "what was acknowledged stays");
    }

    #[test]
    fn a_read_that_arrives_after_the_targets_end_tells_of_before() {
        let mut blocks = Blocks::new(true, None);
        write(&mut blocks, A, true);
        let failed = blocks.write_issued(5, 1, Effect::Content(B));
        blocks.write_given_up(failed);
        let issued = blocks.read_issued();
        blocks.killed();
        assert!(blocks.read(issued, 5, B).is_ok());
        assert!(reads(&mut blocks, A), "nobody acknowledged B");
        assert!(!reads(&mut blocks, B));
    }

    #[test]
    fn a_discard_may_or_may_not_zero() {
        for seen in [A, Stamp::ZEROES] {
            let mut blocks = Blocks::new(true, None);
            write(&mut blocks, A, true);
            let discard = blocks.write_issued(5, 1, Effect::PerhapsZeroes);
            blocks.write_acknowledged(discard, false);
            assert!(reads(&mut blocks, seen), "{seen:?}");
            assert!(!reads(&mut blocks, B));
        }
    }

    #[test]
    fn a_write_to_one_block_says_nothing_of_another() {
        let mut blocks = Blocks::new(true, None);
        let id = blocks.write_issued(4, 2, Effect::Content(A));
        blocks.write_acknowledged(id, false);
        for (block, stamp) in [(3, Stamp::ZEROES), (4, A), (5, A), (6, Stamp::ZEROES)] {
            let issued = blocks.now();
            assert!(blocks.read(issued, block, stamp).is_ok());
        }
    }
}
