//! Requests that a channel cannot hand to one disk as they are: first writes, copies after a snapshot, discards, requests whose
//! blocks lie apart or nowhere, flushes that need the pool's owner. Each is a task on the channel's reactor.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use basalt_bdev::provider::DeviceState;
use basalt_bdev::{AsyncChannel, BlockCount, Capabilities, Completion, IoError, Lba, Operation, Request};
use basalt_clock::{mark, planted};
use basalt_dma::{Buffer, Payload};
use basalt_reactor::Handle;

use crate::gates::LocalGate;
use crate::layout::{HOLE_BYTES, PIECES};
use crate::memory::Memory;
use crate::port::{Answer, Ask, Fill, Grant, Target};
use crate::volume::{Found, VolumeCore};

/// How often a request that needs its blocks together tries again when others take them apart meanwhile.
const TOGETHER_TRIES: usize = 16;

/// What the tasks of one channel share.
pub(crate) struct Slow {
    volume: Arc<VolumeCore>,
    handle: Handle,
    gate: Rc<RefCell<LocalGate>>,
    fence: u64,
    /// By disk; opened when first used.
    disks: RefCell<Vec<Option<AsyncChannel>>>,
    running: Cell<usize>,
    done: RefCell<Vec<Completion>>,
}

/// A stay in an epoch of the gates.
struct Stay<'a> {
    gate: &'a RefCell<LocalGate>,
    epoch: u64,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.gate.borrow_mut().leave(self.epoch);
    }
}

impl Slow {
    pub(crate) fn new(
        volume: &Arc<VolumeCore>,
        handle: &Handle,
        gate: Rc<RefCell<LocalGate>>,
        fence: u64,
    ) -> Self {
        Self {
            volume: Arc::clone(volume),
            handle: handle.clone(),
            gate,
            fence,
            disks: RefCell::default(),
            running: Cell::new(0),
            done: RefCell::default(),
        }
    }

    /// Requests that have not been taken yet.
    pub(crate) fn running(&self) -> usize {
        self.running.get()
    }

    /// Appends the completions of requests that have ended.
    pub(crate) fn take_done(&self, completions: &mut Vec<Completion>) {
        let mut done = self.done.borrow_mut();
        self.running.set(self.running.get() - done.len());
        completions.append(&mut done);
    }

    /// Begins a request.
    pub(crate) fn start(this: &Rc<Self>, request: Request) {
        this.running.set(this.running.get() + 1);
        let slow = Rc::clone(this);
        drop(this.handle.spawn(async move {
            let completion = slow.run(request).await;
            slow.done.borrow_mut().push(completion);
        }));
    }

    async fn run(&self, mut request: Request) -> Completion {
        let tag = request.tag;
        if request.operation == Operation::Read && matches!(request.payload, Payload::None) {
            match self.buffer(request.blocks.0) {
                Ok(buffer) => request.payload = Payload::Buffer(buffer),
                Err(error) => return request.complete(Err(error)),
            }
        }
        let blocks = request.lba.0..request.lba.0 + request.blocks.0;
        match request.operation {
            Operation::Flush => Completion { tag, result: self.flush().await, payload: request.payload },
            Operation::Unmap => {
                let result = self.clear(blocks, false).await;
                Completion { tag, result, payload: request.payload }
            }
            Operation::WriteZeroes { fua, .. } => {
                let result = self.clear(blocks, fua).await;
                Completion { tag, result, payload: request.payload }
            }
            Operation::Read => {
                let mut memory = Memory::of(request.payload);
                let result = self.read(blocks, &mut memory).await;
                Completion { tag, result, payload: memory.join() }
            }
            Operation::Write { fua } => {
                let mut memory = Memory::of(request.payload);
                let result = self.write(blocks, &mut memory, fua).await;
                Completion { tag, result, payload: memory.join() }
            }
            Operation::Compare => {
                let result = self.compare(blocks, &request.payload).await;
                Completion { tag, result, payload: request.payload }
            }
            Operation::CompareAndWrite { .. } => self.compare_and_write(request).await,
        }
    }

    /// Refuses what must not go on: the volume was removed, or another epoch has it.
    fn check(&self) -> Result<(), IoError> {
        if self.volume.info.state() == DeviceState::Removed {
            return Err(IoError::DeviceGone);
        }
        match self.volume.fence.load(Ordering::Acquire) == self.fence {
            true => Ok(()),
            false => Err(IoError::Fenced),
        }
    }

    /// Enters the gates: what is looked up afterwards stays until the answer is dropped.
    fn stay(&self) -> Result<Stay<'_>, IoError> {
        let epoch = self.gate.borrow_mut().enter();
        let stay = Stay { gate: &self.gate, epoch };
        self.check()?;
        Ok(stay)
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, IoError> {
        self.volume.port.ask(self.volume.id, self.fence, ask).await
    }

    fn disk(&self, disk: usize) -> Result<AsyncChannel, IoError> {
        let mut disks = self.disks.borrow_mut();
        if disks.len() <= disk {
            disks.resize_with(disk + 1, || None);
        }
        if let Some(channel) = &disks[disk] {
            return Ok(channel.clone());
        }
        let device = self.volume.shared.device(disk).ok_or(IoError::DeviceGone)?;
        let channel = device.open(&self.handle).map_err(|_| IoError::DeviceGone)?;
        let channel = AsyncChannel::new(&self.handle, channel);
        disks[disk] = Some(channel.clone());
        Ok(channel)
    }

    fn bytes(&self, blocks: u64) -> u64 {
        self.volume.info.block_size().bytes_of(BlockCount(blocks))
    }

    fn buffer(&self, blocks: u64) -> Result<Buffer, IoError> {
        let bytes = usize::try_from(self.bytes(blocks)).map_err(|_| IoError::TooLarge)?;
        self.handle.buffers().take(bytes).ok_or(IoError::NoMemory)
    }

    fn zeroes(&self, blocks: u64) -> Result<Buffer, IoError> {
        let bytes = usize::try_from(self.bytes(blocks)).map_err(|_| IoError::TooLarge)?;
        self.handle.buffers().take_zeroed(bytes).ok_or(IoError::NoMemory)
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.check()?;
        if self.volume.is_pending() {
            return self.ask(Ask::Sync).await.map(drop);
        }
        let used = self.volume.used.load(Ordering::Acquire);
        for disk in (0..64).filter(|disk| used & 1 << disk != 0) {
            self.disk(disk)?.flush().await?;
        }
        Ok(())
    }

    async fn read(&self, blocks: Range<u64>, memory: &mut Memory) -> Result<(), IoError> {
        let mut at = blocks.start;
        while at < blocks.end {
            let stay = self.stay()?;
            match self.volume.find(at, blocks.end - at, false) {
                Found::At { disk, target, blocks } => {
                    let channel = self.disk(disk)?;
                    let payload = memory.take(self.bytes(blocks));
                    let completion = channel.run(Request::read(0, target, BlockCount(blocks), payload)).await;
                    memory.put_done(completion.payload);
                    completion.result?;
                    at += blocks;
                }
                Found::Nowhere { blocks } => {
                    let mut payload = memory.take(self.bytes(blocks));
                    payload.buffers_mut().iter_mut().for_each(|buffer| buffer.fill(0));
                    memory.put_done(payload);
                    at += blocks;
                }
                Found::Load { extent } => {
                    drop(stay);
                    self.ask(Ask::Load { extent }).await?;
                }
                Found::Owner { .. } => panic!("a read needs no permission"),
            }
        }
        Ok(())
    }

    async fn write(&self, blocks: Range<u64>, memory: &mut Memory, fua: bool) -> Result<(), IoError> {
        let mut at = blocks.start;
        while at < blocks.end {
            let stay = self.stay()?;
            match self.volume.find(at, blocks.end - at, true) {
                Found::At { disk, target, blocks } => {
                    self.write_at(disk, target, blocks, memory, fua).await?;
                    at += blocks;
                }
                Found::Owner { blocks } => {
                    drop(stay);
                    self.write_granted(at..at + blocks, memory, fua).await?;
                    at += blocks;
                }
                Found::Load { extent } => {
                    drop(stay);
                    self.ask(Ask::Load { extent }).await?;
                }
                Found::Nowhere { .. } => panic!("a write is told where to go"),
            }
        }
        if fua && self.volume.is_pending() {
            self.ask(Ask::Sync).await?;
        }
        Ok(())
    }

    async fn write_at(
        &self,
        disk: usize,
        target: Lba,
        blocks: u64,
        memory: &mut Memory,
        fua: bool,
    ) -> Result<(), IoError> {
        let channel = self.disk(disk)?;
        let payload = memory.take(self.bytes(blocks));
        let operation = Operation::Write { fua };
        let request = Request { tag: 0, operation, lba: target, blocks: BlockCount(blocks), payload };
        let completion = channel.run(request).await;
        memory.put_done(completion.payload);
        completion.result
    }

    /// Bits of the pieces that blocks of one extent touch.
    fn pieces_of(&self, blocks: &Range<u64>) -> u16 {
        let piece = |block: u64| self.volume.within_extent(block) / self.volume.piece_blocks();
        (piece(blocks.start)..=piece(blocks.end - 1)).fold(0, |bits, piece| bits | 1 << piece)
    }

    /// Units of the first and of the last piece that blocks of one extent touch.
    fn edges_of(&self, blocks: &Range<u64>) -> (u16, u16) {
        let length = self.volume.piece_blocks();
        let (start, end) = (blocks.start % length, (blocks.end - 1) % length + 1);
        (self.volume.units_of(start..length), self.volume.units_of(0..end))
    }

    async fn grant(&self, blocks: &Range<u64>, together: bool) -> Result<Grant, IoError> {
        let extent = self.volume.extent_of(blocks.start);
        let pieces = self.pieces_of(blocks);
        let (head, tail) = if together { (u16::MAX, u16::MAX) } else { self.edges_of(blocks) };
        match self.ask(Ask::Write { extent, pieces, head, tail, together }).await? {
            Answer::Granted(grant) => Ok(grant),
            Answer::Done => Err(IoError::Aborted),
        }
    }

    /// Tells how the writing of a grant went.
    async fn written(&self, grant: u64, result: Result<(), IoError>, fua: bool) -> Result<(), IoError> {
        let durable = fua || !self.volume.shared.volatile;
        let told = self.ask(Ask::Written { grant, ok: result.is_ok(), durable }).await;
        result.and(told.map(drop))
    }

    /// Writes blocks of one extent to places that the pool's owner gives.
    async fn write_granted(&self, blocks: Range<u64>, memory: &mut Memory, fua: bool) -> Result<(), IoError> {
        let grant = self.grant(&blocks, false).await?;
        let result = match planted!("lvol-mapping-before-data") {
            true => {
                self.written(grant.id, Ok(()), fua).await?;
                return self.fill_targets(&grant.targets, blocks, memory, fua).await;
            }
            false => self.fill_targets(&grant.targets, blocks, memory, fua).await,
        };
        self.written(grant.id, result, fua).await
    }

    async fn fill_targets(
        &self,
        targets: &[Target],
        blocks: Range<u64>,
        memory: &mut Memory,
        fua: bool,
    ) -> Result<(), IoError> {
        let mut at = blocks.start;
        let mut rest = targets;
        while let Some(first) = rest.first() {
            // Neighbouring pieces of one place that need nothing but what is written.
            let mut count = 0;
            while rest.get(count).is_some_and(|next| {
                next.place == first.place
                    && next.piece == first.piece + count
                    && self.padded(next, &self.part_of(next, &blocks)) == self.part_of(next, &blocks)
            }) {
                count += 1;
            }
            if count == 0 {
                let part = self.part_of(first, &blocks);
                self.write_padded(first, &part, memory, fua).await?;
                at = part.end;
                rest = &rest[1..];
                continue;
            }
            let end = self.part_of(&rest[count - 1], &blocks).end;
            let target = Lba(self.volume.start_of(first.place) + self.volume.within_extent(at));
            self.write_at(first.place.disk(), target, end - at, memory, fua).await?;
            at = end;
            rest = &rest[count..];
        }
        assert_eq!(at, blocks.end, "what was asked for was granted");
        Ok(())
    }

    /// Those of the blocks that lie in a target's piece.
    fn part_of(&self, target: &Target, blocks: &Range<u64>) -> Range<u64> {
        let piece = self.piece_range(target.piece, blocks.start);
        piece.start.max(blocks.start)..piece.end.min(blocks.end)
    }

    /// What has to be written of a target's piece if only `part` of it is given: all that is copied, and whole units of holes.
    fn padded(&self, target: &Target, part: &Range<u64>) -> Range<u64> {
        let piece = self.piece_range(target.piece, part.start);
        if matches!(target.fill, Fill::Copy(_)) {
            return piece;
        }
        let unit = self.volume.hole_blocks();
        let hole = |block: u64| {
            target.holes & self.volume.units_of(block - piece.start..block - piece.start + 1) != 0
        };
        let start = if hole(part.start) { part.start / unit * unit } else { part.start };
        let end = if hole(part.end - 1) { part.end.next_multiple_of(unit) } else { part.end };
        start..end
    }

    /// Blocks of the volume that a piece of the extent of `block` has.
    fn piece_range(&self, piece: usize, block: u64) -> Range<u64> {
        let start = block - self.volume.within_extent(block) + piece as u64 * self.volume.piece_blocks();
        start..start + self.volume.piece_blocks()
    }

    /// Writes a part of a piece with what has to be written around it.
    async fn write_padded(
        &self,
        target: &Target,
        part: &Range<u64>,
        memory: &mut Memory,
        fua: bool,
    ) -> Result<(), IoError> {
        let all = self.padded(target, part);
        let mut buffer = match target.fill {
            Fill::Copy(_) => self.filled(target).await?,
            Fill::Keep | Fill::Fresh => self.zeroes(all.end - all.start)?,
        };
        let payload = memory.take(self.bytes(part.end - part.start));
        let from = usize::try_from(self.bytes(part.start - all.start)).unwrap_or(usize::MAX);
        payload.copy_to(0, &mut buffer[from..from + payload.len()]);
        memory.put_done(payload);
        let lba = Lba(self.volume.start_of(target.place) + self.volume.within_extent(all.start));
        let channel = self.disk(target.place.disk())?;
        channel.write(lba, BlockCount(all.end - all.start), buffer, fua).await.map(drop)
    }

    /// What a piece is to hold where nothing is written.
    async fn filled(&self, target: &Target) -> Result<Buffer, IoError> {
        let blocks = self.volume.piece_blocks();
        let Fill::Copy(source) = target.fill else { return self.zeroes(blocks) };
        mark!("lvol-piece-copied");
        let lba = Lba(self.volume.start_of(source) + target.piece as u64 * blocks);
        let buffer = self.buffer(blocks)?;
        let mut buffer = self.disk(source.disk())?.read(lba, BlockCount(blocks), buffer).await?;
        let unit = usize::try_from(HOLE_BYTES).unwrap_or(usize::MAX);
        for (index, part) in buffer.chunks_mut(unit).enumerate() {
            if target.holes & 1 << index != 0 {
                mark!("lvol-hole-copied");
                part.fill(0);
            }
        }
        Ok(buffer)
    }

    /// Makes all of a target's piece hold something.
    async fn complete(&self, target: &Target) -> Result<(), IoError> {
        if target.fill != Fill::Keep {
            return self.write_piece(target, self.filled(target).await?).await;
        }
        let start = self.volume.start_of(target.place) + target.piece as u64 * self.volume.piece_blocks();
        let unit = self.volume.hole_blocks();
        for hole in (0..u64::from(u16::BITS)).filter(|hole| target.holes & 1 << hole != 0) {
            let (lba, zeroes) = (Lba(start + hole * unit), self.zeroes(unit)?);
            self.disk(target.place.disk())?.write(lba, BlockCount(unit), zeroes, false).await?;
        }
        Ok(())
    }

    async fn write_piece(&self, target: &Target, buffer: Buffer) -> Result<(), IoError> {
        let blocks = self.volume.piece_blocks();
        let lba = Lba(self.volume.start_of(target.place) + target.piece as u64 * blocks);
        let channel = self.disk(target.place.disk())?;
        channel.write(lba, BlockCount(blocks), buffer, false).await.map(drop)
    }

    /// Makes blocks read as zeroes and gives back what space can be given back.
    async fn clear(&self, blocks: Range<u64>, fua: bool) -> Result<(), IoError> {
        let mut at = blocks.start;
        while at < blocks.end {
            let rest = self.volume.extent_blocks() - self.volume.within_extent(at);
            let part = at..blocks.end.min(at + rest);
            let stay = self.stay()?;
            let found = self.volume.find(part.start, part.end - part.start, false);
            drop(stay);
            match found {
                Found::Load { extent } => {
                    self.ask(Ask::Load { extent }).await?;
                }
                Found::Nowhere { blocks } if self.volume.skipped(&part, blocks) > at => {
                    at = self.volume.skipped(&part, blocks)
                }
                Found::Nowhere { .. } | Found::At { .. } | Found::Owner { .. } => {
                    self.clear_part(&part, fua).await?;
                    at = part.end;
                }
            }
        }
        if fua && self.volume.is_pending() {
            self.ask(Ask::Sync).await?;
        }
        Ok(())
    }

    /// The same for blocks of one extent: whole pieces are given back, the rest is written with zeroes.
    async fn clear_part(&self, blocks: &Range<u64>, fua: bool) -> Result<(), IoError> {
        if self.volume.thick && self.clear_in_place(blocks, fua).await? {
            return Ok(());
        }
        let durable = fua || !self.volume.shared.volatile;
        let extent = self.volume.extent_of(blocks.start);
        let end_of_volume = self.volume.info.blocks().0;
        let mut whole = 0;
        for piece in 0..PIECES {
            let range = self.piece_range(piece, blocks.start);
            let part = range.start.max(blocks.start)..range.end.min(blocks.end);
            if part.is_empty() {
                continue;
            }
            let to_its_end = range.end <= blocks.end || blocks.end >= end_of_volume;
            if blocks.start <= range.start && to_its_end {
                whole |= 1 << piece;
            } else {
                self.write_zeroes(part, fua).await?;
            }
        }
        if whole != 0 {
            self.ask(Ask::Discard { extent, pieces: whole, durable }).await?;
        }
        Ok(())
    }

    /// Writes zeroes to a part of a piece where it does not read as zeroes.
    async fn write_zeroes(&self, part: Range<u64>, fua: bool) -> Result<(), IoError> {
        let mut at = part.start;
        while at < part.end {
            let stay = self.stay()?;
            let found = self.volume.find(at, part.end - at, false);
            drop(stay);
            match found {
                Found::Nowhere { blocks } => at += blocks,
                Found::Load { extent } => drop(self.ask(Ask::Load { extent }).await?),
                Found::At { blocks, .. } | Found::Owner { blocks } => {
                    let mut zeroes = Memory::of(self.zeroes(blocks)?.into());
                    self.write(at..at + blocks, &mut zeroes, fua).await?;
                    at += blocks;
                }
            }
        }
        Ok(())
    }

    /// Clears blocks that lie together and are the volume's own on their disk; false if they are not.
    async fn clear_in_place(&self, blocks: &Range<u64>, fua: bool) -> Result<bool, IoError> {
        // Until the end: what is cleared must not become a snapshot's, or another volume's, meanwhile.
        let _stay = self.stay()?;
        let count = blocks.end - blocks.start;
        let found = self.volume.find(blocks.start, count, true);
        let Found::At { disk, target, blocks } = found else { return Ok(false) };
        if blocks != count {
            return Ok(false);
        }
        let channel = self.disk(disk)?;
        let device = self.volume.shared.device(disk).ok_or(IoError::DeviceGone)?;
        let can = device.info().capabilities();
        let lba = target;
        let operation = match (can.contains(Capabilities::UNMAP), can.contains(Capabilities::WRITE_ZEROES)) {
            (true, _) if !fua => Operation::Unmap,
            (_, true) => Operation::WriteZeroes { unmap: true, fua },
            _ => {
                let mut memory = Memory::of(self.zeroes(count)?.into());
                self.write_at(disk, target, count, &mut memory, fua).await?;
                return Ok(true);
            }
        };
        let request = Request { tag: 0, operation, lba, blocks: BlockCount(count), payload: Payload::None };
        channel.run(request).await.result?;
        Ok(true)
    }

    async fn compare(&self, blocks: Range<u64>, payload: &Payload) -> Result<(), IoError> {
        let buffer = self.buffer(blocks.end - blocks.start)?;
        let mut memory = Memory::of(buffer.into());
        self.read(blocks, &mut memory).await?;
        match memory.join().to_vec() == payload.to_vec() {
            true => Ok(()),
            false => Err(IoError::Miscompare),
        }
    }

    /// One step on one disk: first the blocks are brought together where the volume may write them.
    async fn compare_and_write(&self, mut request: Request) -> Completion {
        let blocks = request.lba.0..request.lba.0 + request.blocks.0;
        let fua = request.operation.forces();
        for _ in 0..TOGETHER_TRIES {
            let (disk, target, _stay) = match self.bring_together(&blocks).await {
                Ok(Some(place)) => place,
                Ok(None) => continue,
                Err(error) => return request.complete(Err(error)),
            };
            let channel = match self.disk(disk) {
                Ok(channel) => channel,
                Err(error) => return request.complete(Err(error)),
            };
            request.lba = target;
            let tag = request.tag;
            let mut completion = channel.run(request).await;
            if completion.result.is_ok() && fua && self.volume.is_pending() {
                completion.result = self.ask(Ask::Sync).await.map(drop);
            }
            return Completion { tag, ..completion };
        }
        request.complete(Err(IoError::Aborted))
    }

    async fn bring_together(&self, blocks: &Range<u64>) -> Result<Option<(usize, Lba, Stay<'_>)>, IoError> {
        let count = blocks.end - blocks.start;
        let stay = self.stay()?;
        match self.volume.find(blocks.start, count, true) {
            Found::At { disk, target, blocks } if blocks == count => return Ok(Some((disk, target, stay))),
            Found::Load { extent } => {
                drop(stay);
                self.ask(Ask::Load { extent }).await?;
                return Ok(None);
            }
            _ => drop(stay),
        }
        if self.volume.extent_of(blocks.start) != self.volume.extent_of(blocks.end - 1) {
            // It could not be one atomic step.
            return Err(IoError::TooLarge);
        }
        mark!("lvol-brought-together");
        let grant = self.grant(blocks, true).await?;
        let mut result = Ok(());
        for target in &grant.targets {
            result = self.complete(target).await;
            if result.is_err() {
                break;
            }
        }
        self.written(grant.id, result, false).await?;
        Ok(None)
    }
}
