use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basalt_bdev::{
    BlockDevice, BlockSize, Channel, Completion, DeviceInfo, IoError, Lba, OpenError, Operation, Rejected,
    Request,
};
use basalt_clock::Random;
use basalt_reactor::Handle;

use crate::image::{ImageDevice, Overlay, PAGE, write_over};

/// What a power failure never tears, in bytes.
const SECTOR_BYTES: usize = 512;

/// One thing that happened at the device, in order.
#[derive(Debug, Clone)]
enum Event {
    /// The request `id` was given to the device.
    Submitted { id: u64, change: Change },
    /// The device completed it with success.
    Completed { id: u64 },
    /// The device did nothing: a comparison failed.
    Refused { id: u64 },
}

/// What a request does to the device's content.
#[derive(Debug, Clone)]
enum Change {
    Write { lba: Lba, data: Vec<u8>, fua: bool, compared: bool },
    Flush,
}

/// Everything that changed a recorded device, from which the content after a crash at any moment follows.
#[derive(Default)]
pub struct Recording {
    events: Mutex<Vec<Event>>,
}

impl Recording {
    /// Moments between which something happened: a crash point is a number from 0 to this.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events().len()
    }

    /// True if nothing happened yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submitted(&self, change: Change) -> u64 {
        let mut events = self.events();
        let id = events.len() as u64;
        events.push(Event::Submitted { id, change });
        id
    }

    /// Brings `image`, the content before the recording, to a state that a crash after the first `point` events may leave:
    /// what was durable is there; of every other write `random` chooses whether all, nothing or some sectors of it are.
    ///
    /// # Panics
    /// If `point` is beyond the recording or a write beyond the image.
    pub fn crash(&self, image: &mut [u8], block_size: BlockSize, point: usize, random: &mut dyn Random) {
        let events = self.events();
        let events = &events[..point];
        let durable = durable(events, true);
        let refused = |id: u64| {
            events.iter().any(|event| matches!(event, Event::Refused { id: other } if *other == id))
        };
        for event in events {
            let Event::Submitted { id, change: Change::Write { lba, data, compared, .. } } = event else {
                continue;
            };
            if *compared && refused(*id) {
                continue;
            }
            let Ok(offset) = usize::try_from(block_size.offset_of(*lba)) else {
                panic!("a recorded write beyond the address space")
            };
            let target = &mut image[offset..offset + data.len()];
            if durable.contains(id) {
                target.copy_from_slice(data);
            } else {
                leave_some(target, data, random);
            }
        }
    }
}

/// Ids of the writes that are durable after these events: completed with FUA, or covered by a completed flush; without a volatile
/// cache all that completed.
fn durable(events: &[Event], volatile: bool) -> BTreeSet<u64> {
    let mut completed = BTreeSet::new();
    let mut durable = BTreeSet::new();
    let mut flushes: Vec<(u64, BTreeSet<u64>)> = Vec::new();
    let mut forced = BTreeSet::new();
    for event in events {
        match event {
            Event::Submitted { id, change: Change::Flush } => flushes.push((*id, completed.clone())),
            Event::Submitted { id, change: Change::Write { fua, .. } } => {
                if *fua {
                    forced.insert(*id);
                }
            }
            Event::Refused { .. } => {}
            Event::Completed { id } => {
                if let Some(place) = flushes.iter().position(|(flush, _)| flush == id) {
                    durable.append(&mut flushes.swap_remove(place).1);
                } else if forced.contains(id) || !volatile {
                    durable.insert(*id);
                } else {
                    completed.insert(*id);
                }
            }
        }
    }
    durable
}

/// Applies all, nothing or some sectors of a write.
fn leave_some(target: &mut [u8], data: &[u8], random: &mut dyn Random) {
    match random.below(3) {
        0 => {}
        1 => target.copy_from_slice(data),
        _ => {
            for (old, new) in target.chunks_mut(SECTOR_BYTES).zip(data.chunks(SECTOR_BYTES)) {
                if random.chance(1, 2) {
                    old.copy_from_slice(new);
                }
            }
        }
    }
}

/// The states that power failures can leave of a recorded device, point by point.
///
/// What must be there at a point is kept in one image that grows with the points; only what may or may not be there is decided for
/// each state anew.
#[derive(Debug)]
pub struct Crashes {
    recording: Arc<Recording>,
    block_size: BlockSize,
    volatile: bool,
    /// What completed is there: nothing but the process of the device's user ended.
    completed_stays: bool,
    base: Arc<Vec<u8>>,
    /// The fingerprint of `base`.
    base_print: u64,
    /// Events whose effect is in `base`.
    applied: usize,
    point: usize,
    /// Writes behind them, in order, and whether each must be there.
    open: Vec<(usize, Vec<u8>, bool)>,
}

/// A state that a power failure can leave.
#[derive(Debug)]
pub struct CrashState {
    /// The device as it is found.
    pub device: ImageDevice,
    /// A hash of all that the device holds: the same for equal contents, and hardly ever for others.
    pub fingerprint: u64,
}

impl Crashes {
    /// States of a device that held `image` when the recording began and claims the write cache that `volatile` says.
    #[must_use]
    pub fn new(recording: &Arc<Recording>, image: Vec<u8>, block_size: BlockSize, volatile: bool) -> Self {
        let pages = image.chunks(PAGE).enumerate();
        let base_print = pages.fold(0, |all, (page, content)| all ^ page_print(page, content));
        let base = Arc::new(image);
        let recording = Arc::clone(recording);
        let completed_stays = !volatile;
        Self {
            recording,
            block_size,
            volatile,
            completed_stays,
            base,
            base_print,
            applied: 0,
            point: 0,
            open: Vec::new(),
        }
    }

    /// The same for states that the end of the user's process leaves: the device keeps what it completed.
    #[must_use]
    pub fn of_process_ends(mut self) -> Self {
        self.completed_stays = true;
        self
    }

    /// Goes on to the moment after the first `point` events.
    ///
    /// # Panics
    /// If that lies before the moment that was gone to last, or beyond the recording.
    pub fn advance(&mut self, point: usize) {
        assert!(point >= self.point, "crash points are visited in order");
        self.point = point;
        let events = self.recording.events();
        let events = &events[..point];
        let durable = durable(events, !self.completed_stays);
        let refused: BTreeSet<u64> = events
            .iter()
            .filter_map(|event| if let Event::Refused { id } = event { Some(*id) } else { None })
            .collect();
        let base = Arc::make_mut(&mut self.base);
        self.open.clear();
        for (index, event) in events.iter().enumerate().skip(self.applied) {
            let Event::Submitted { id, change: Change::Write { lba, data, compared, .. } } = event else {
                if self.open.is_empty() {
                    self.applied = index + 1;
                }
                continue;
            };
            if *compared && refused.contains(id) {
                continue;
            }
            let Ok(offset) = usize::try_from(self.block_size.offset_of(*lba)) else {
                panic!("a recorded write beyond the address space")
            };
            let must = durable.contains(id);
            if must && self.open.is_empty() {
                let pages = offset / PAGE..(offset + data.len()).div_ceil(PAGE);
                let print = |base: &[u8]| {
                    let part = &base[pages.start * PAGE..base.len().min(pages.end * PAGE)];
                    pages
                        .clone()
                        .zip(part.chunks(PAGE))
                        .fold(0, |all, (page, content)| all ^ page_print(page, content))
                };
                self.base_print ^= print(base);
                base[offset..offset + data.len()].copy_from_slice(data);
                self.base_print ^= print(base);
                self.applied = index + 1;
            } else {
                self.open.push((offset, data.clone(), must));
            }
        }
    }

    /// Writes that may or may not be there at this moment.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.open.iter().filter(|(_, _, must)| !must).count()
    }

    /// A state of this moment: `random` chooses of each write that need not be there whether all, nothing or some sectors are.
    pub fn state(&self, random: &mut dyn Random) -> CrashState {
        let mut overlay = Overlay::new();
        for (offset, data, must) in &self.open {
            let choice = if *must { 1 } else { random.below(3) };
            match choice {
                0 => {}
                1 => write_over(&self.base, &mut overlay, *offset, data),
                _ => {
                    for (index, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                        if random.chance(1, 2) {
                            write_over(&self.base, &mut overlay, offset + index * SECTOR_BYTES, sector);
                        }
                    }
                }
            }
        }
        let base = Arc::clone(&self.base);
        let fingerprint = overlay.iter().fold(self.base_print, |all, (page, content)| {
            all ^ page_print(*page, &base[page * PAGE..(page + 1) * PAGE]) ^ page_print(*page, &content[..])
        });
        let device = ImageDevice::with_overlay(base, overlay, self.block_size, self.volatile);
        CrashState { device, fingerprint }
    }
}

/// A hash of one page at its place (FNV-1a over words); of a page of zeroes: zero.
fn page_print(page: usize, content: &[u8]) -> u64 {
    if content.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let words = content.chunks(8).map(|word| {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        u64::from_le_bytes(bytes)
    });
    let hash = words.fold(0xcbf2_9ce4_8422_2325_u64 ^ page as u64, |hash, word| {
        (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    });
    hash | 1
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("events", &self.len()).finish()
    }
}

/// A layer that records what changes a device: for tests that look at every state a crash can leave.
///
/// The log grows with every write: for tests only.
#[derive(Debug)]
pub struct RecordingDevice {
    inner: Arc<dyn BlockDevice>,
    recording: Arc<Recording>,
}

impl RecordingDevice {
    /// `inner` with an empty recording.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner, recording: Arc::default() }
    }

    /// What was recorded so far, and will be.
    #[must_use]
    pub fn recording(&self) -> &Arc<Recording> {
        &self.recording
    }
}

impl BlockDevice for RecordingDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(RecordingChannel {
            inner: self.inner.open(handle)?,
            block_size: self.inner.info().block_size(),
            recording: Arc::clone(&self.recording),
            pending: Vec::new(),
        }))
    }
}

struct RecordingChannel {
    inner: Box<dyn Channel>,
    block_size: BlockSize,
    recording: Arc<Recording>,
    /// The consumer's tags and the recording's ids of requests under way, by the tag that the device below has.
    pending: Vec<Option<(u64, Option<u64>)>>,
}

impl RecordingChannel {
    /// The change that a request makes if it succeeds. A compare-and-write is recorded as the write that it may be.
    fn change_of(&self, request: &Request) -> Option<Change> {
        let bytes = usize::try_from(self.block_size.bytes_of(request.blocks)).ok()?;
        match request.operation {
            Operation::Read | Operation::Compare => None,
            Operation::Flush => Some(Change::Flush),
            Operation::Write { .. } => Some(write(request, request.payload.to_vec())),
            Operation::CompareAndWrite { .. } => {
                Some(write(request, request.payload.to_vec().split_off(bytes)))
            }
            Operation::Unmap | Operation::WriteZeroes { .. } => Some(write(request, vec![0; bytes])),
        }
    }
}

fn write(request: &Request, data: Vec<u8>) -> Change {
    let compared = matches!(request.operation, Operation::CompareAndWrite { .. });
    Change::Write { lba: request.lba, data, fua: request.operation.forces(), compared }
}

impl Channel for RecordingChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        let change = self.change_of(&request);
        let tag = request.tag;
        let place = self.pending.iter().position(Option::is_none).unwrap_or_else(|| {
            self.pending.push(None);
            self.pending.len() - 1
        });
        request.tag = place as u64;
        self.inner.submit(request).map_err(|Rejected(mut request)| {
            request.tag = tag;
            Rejected(request)
        })?;
        let id = change.map(|change| self.recording.submitted(change));
        self.pending[place] = Some((tag, id));
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        let count = self.inner.poll(completions);
        for completion in &mut completions[before..] {
            let place = usize::try_from(completion.tag).ok();
            let pending = place.and_then(|place| self.pending.get_mut(place)).and_then(Option::take);
            let Some((tag, id)) = pending else {
                panic!("the device below completed a tag that it was never given")
            };
            completion.tag = tag;
            match (id, completion.result) {
                (Some(id), Ok(())) => self.recording.events().push(Event::Completed { id }),
                (Some(id), Err(IoError::Miscompare)) => self.recording.events().push(Event::Refused { id }),
                _ => {}
            }
        }
        count
    }
}
