//! The commands of one connection that are under way.

use basalt_dma::Payload;
use basalt_nvme_wire::{Sqe, Status};
use basalt_nvmf_target::{BlockCommand, UnmapRanges};

use super::devices::DeviceIndex;
use super::ids::CommandIds;
use super::share::Share;

/// What a command does once its data, if it has any, is there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// The queue interprets the data.
    Interpret,
    /// A block request.
    Block(BlockCommand, DeviceIndex),
    /// The first half of a fused pair: its data belongs to the second half's request.
    FusedFirst { second: Option<usize> },
    /// The second half, with the request that both become.
    FusedSecond { first: usize, block: BlockCommand, device: DeviceIndex },
    /// One unmap after the other.
    Unmap { ranges: UnmapRanges, next: usize, device: DeviceIndex },
}

/// Where a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No command.
    Free,
    /// Completed by an event, some time.
    Held,
    /// A buffer for its data is wanted first.
    NeedsBuffer,
    /// Its data was asked for and `received` bytes of it came.
    Receiving { received: u32 },
    /// It ends with `status`, once all of the data that was asked for is there.
    Failed { received: u32, status: Status },
    /// A half of a fused pair whose data is there; the other half's is not, or has the request.
    Waiting,
    /// To be submitted.
    Ready,
    /// With the device.
    Submitted,
    /// It has ended, and its identifier may be that of another command; `received` bytes came of the data that it was asked for, and the
    /// rest may come yet. Until then its place, which is the transfer's tag, is not another's.
    Draining { received: u32 },
}

/// One command.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) state: State,
    pub(crate) sqe: Sqe,
    pub(crate) work: Work,
    /// Bytes of data from the host, or to it.
    pub(crate) length: u32,
    pub(crate) payload: Payload,
    /// Bytes of the connection's share that it holds, as its payload or with its device.
    pub(crate) charged: usize,
    /// A device has it, and it is to end like this, whatever the device makes of it.
    pub(crate) aborted: Option<Status>,
}

impl Slot {
    fn free() -> Self {
        Self {
            state: State::Free,
            sqe: Sqe::default(),
            work: Work::Interpret,
            length: 0,
            payload: Payload::None,
            charged: 0,
            aborted: None,
        }
    }

    pub(crate) fn command_id(&self) -> u16 {
        self.sqe.command_id.get()
    }
}

/// The commands of a connection: as many as its queue has entries, and at most as many that have ended while their data was on its way.
#[derive(Debug)]
pub(crate) struct Slots {
    /// What the connection may hold of the buffers, by its commands and by output that is not sent.
    pub(crate) share: Share,
    slots: Vec<Slot>,
    free: Vec<usize>,
    limit: usize,
    /// Places of commands that have ended while their data was on its way.
    draining: usize,
    ids: CommandIds,
}

/// Why a command gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The host sent more commands than its queue has entries.
    Full,
    /// Another command has its identifier.
    IdInUse,
}

impl Slots {
    pub(crate) fn new(share: Share) -> Self {
        let ids = CommandIds::default();
        Self { share, slots: Vec::new(), free: Vec::new(), limit: 0, draining: 0, ids }
    }

    /// Counts memory that a command is to have; false if others need it more.
    #[must_use]
    pub(crate) fn charge(&mut self, index: usize, bytes: usize) -> bool {
        let taken = self.share.try_take(bytes);
        if taken {
            self.slots[index].charged += bytes;
        }
        taken
    }

    /// Counts the memory of a command as given back.
    pub(crate) fn discharge(&mut self, index: usize) {
        self.share.put(std::mem::take(&mut self.slots[index].charged));
    }

    /// Changes how many commands there may be; memory is taken as they are first used.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(self.slots.len());
    }

    /// A place for a command.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn take(&mut self, sqe: &Sqe) -> Result<usize, NoPlace> {
        if self.slots.len() - self.free.len() - self.draining >= self.limit {
            return Err(NoPlace::Full);
        }
        if !self.ids.insert(sqe.command_id.get()) {
            return Err(NoPlace::IdInUse);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::free());
            self.slots.len() - 1
        });
        self.slots[index].sqe = *sqe;
        Ok(index)
    }

    /// Lets a command's place stay for data that may come yet, though the command has ended; false, and nothing is changed, if as many
    /// stay as the queue has entries.
    #[must_use]
    pub(crate) fn try_drain(&mut self, index: usize, received: u32) -> bool {
        if self.draining >= self.limit {
            return false;
        }
        self.draining += 1;
        self.slots[index].state = State::Draining { received };
        self.ids.remove(self.slots[index].command_id());
        true
    }

    /// Ends a command; what it held is dropped.
    pub(crate) fn release(&mut self, index: usize) {
        self.discharge(index);
        let slot = &mut self.slots[index];
        debug_assert!(slot.state != State::Free || matches!(slot.payload, Payload::None));
        match slot.state {
            State::Draining { .. } => self.draining -= 1,
            _ => self.ids.remove(slot.sqe.command_id.get()),
        }
        slot.state = State::Free;
        slot.work = Work::Interpret;
        slot.payload = Payload::None;
        slot.aborted = None;
        self.free.push(index);
    }

    /// Places that there are, used or not.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index)
    }

    /// The outstanding command with this identifier.
    pub(crate) fn find(&self, command_id: u16) -> Option<usize> {
        let outstanding = |slot: &Slot| !matches!(slot.state, State::Free | State::Draining { .. });
        self.slots.iter().position(|slot| outstanding(slot) && slot.command_id() == command_id)
    }

    /// The held command with this identifier.
    pub(crate) fn find_held(&self, command_id: u16) -> Option<usize> {
        self.slots.iter().position(|slot| slot.state == State::Held && slot.command_id() == command_id)
    }
}

impl std::ops::Index<usize> for Slots {
    type Output = Slot;

    fn index(&self, index: usize) -> &Slot {
        &self.slots[index]
    }
}

impl std::ops::IndexMut<usize> for Slots {
    fn index_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }
}
