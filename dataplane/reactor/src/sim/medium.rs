use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use basalt_clock::{Random, SeededRandom};

/// What a power failure never tears, in bytes.
pub const SECTOR_BYTES: u64 = 512;

const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;
/// Writes that a medium keeps back at most; beyond it the oldest become durable, as caches do by themselves.
const UNSYNCED_MAX: usize = 8192;

/// Bytes of a disk; pages that were never written are zero.
#[derive(Debug, Clone, Default)]
struct Pages(BTreeMap<u64, Rc<[u8; PAGE_BYTES]>>);

impl Pages {
    fn read(&self, offset: u64, target: &mut [u8]) {
        for (page, inside, part) in pieces(offset, target.len()) {
            match self.0.get(&page) {
                Some(bytes) => target[part].copy_from_slice(&bytes[inside]),
                None => target[part].fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, source: &[u8]) {
        for (page, inside, part) in pieces(offset, source.len()) {
            let bytes = self.0.entry(page).or_insert_with(|| Rc::new([0; PAGE_BYTES]));
            Rc::make_mut(bytes)[inside].copy_from_slice(&source[part]);
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let (first, last) = (offset.div_ceil(PAGE), (offset + length) / PAGE);
        if first >= last {
            self.write(offset, &vec![0; size(length)]);
            return;
        }
        let whole: Vec<u64> = self.0.range(first..last).map(|(page, _)| *page).collect();
        for page in whole {
            self.0.remove(&page);
        }
        self.write(offset, &vec![0; size(first * PAGE - offset)]);
        self.write(last * PAGE, &vec![0; size(offset + length - last * PAGE)]);
    }

    fn apply(&mut self, change: &Change) {
        match &change.data {
            Some(data) => self.write(change.offset, data),
            None => self.zero(change.offset, change.length),
        }
    }

    fn apply_sectors(&mut self, change: &Change, random: &mut SeededRandom) {
        let mut at = 0;
        while at < change.length {
            let count = SECTOR_BYTES.min(change.length - at);
            if random.chance(1, 2) {
                match &change.data {
                    Some(data) => self.write(change.offset + at, &data[size(at)..size(at + count)]),
                    None => self.zero(change.offset + at, count),
                }
            }
            at += count;
        }
    }
}

/// A length that fits memory, as simulated transfers do.
fn size(bytes: u64) -> usize {
    match usize::try_from(bytes) {
        Ok(bytes) => bytes,
        Err(_) => panic!("{bytes} bytes exceed the address space"),
    }
}

/// The pages of a range: page number, place in the page, place in the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let begin = size(at % PAGE);
        let count = (PAGE_BYTES - begin).min(len - done);
        let part = done..done + count;
        done += count;
        Some((at / PAGE, begin..begin + count, part))
    })
}

/// One change of a disk's content; without data it makes zeroes.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) data: Option<Vec<u8>>,
    /// Survives a power failure from its completion on.
    pub(super) durable: bool,
}

/// A disk's content: what reads see, and what a power failure leaves of it.
#[derive(Debug, Default)]
pub(super) struct Medium {
    current: Pages,
    /// What is safe; older than all of `unsynced`.
    durable: Pages,
    /// Changes since, in the order of their completion.
    unsynced: VecDeque<Change>,
    /// Changes that ever left `unsynced` to the front.
    settled: u64,
}

impl Medium {
    pub(super) fn read(&self, offset: u64, target: &mut [u8]) {
        self.current.read(offset, target);
    }

    /// A change completes.
    pub(super) fn change(&mut self, change: Change) {
        self.current.apply(&change);
        self.unsynced.push_back(change);
        while self.unsynced.front().is_some_and(|first| first.durable) || self.unsynced.len() > UNSYNCED_MAX {
            self.settle_first();
        }
    }

    /// A change fails half-way: some of its sectors are there.
    pub(super) fn tear(&mut self, change: &Change, random: &mut SeededRandom) {
        let mut torn = self.current.clone();
        torn.apply_sectors(change, random);
        let mut data = vec![0; size(change.length)];
        torn.read(change.offset, &mut data);
        self.change(Change { data: Some(data), durable: false, ..change.clone() });
    }

    /// The moment that a sync submitted now covers.
    pub(super) fn position(&self) -> u64 {
        self.settled + self.unsynced.len() as u64
    }

    /// A sync that was submitted at `position` completes.
    pub(super) fn sync(&mut self, position: u64) {
        while self.settled < position && !self.unsynced.is_empty() {
            self.settle_first();
        }
    }

    fn settle_first(&mut self) {
        if let Some(change) = self.unsynced.pop_front() {
            self.durable.apply(&change);
            self.settled += 1;
        }
    }

    /// The power fails: of every change that is not durable, all, nothing or some sectors are left.
    pub(super) fn power_fail(&mut self, random: &mut SeededRandom) {
        for change in std::mem::take(&mut self.unsynced) {
            self.settled += 1;
            match if change.durable { 0 } else { random.below(3) } {
                0 => self.durable.apply(&change),
                1 => {}
                _ => self.durable.apply_sectors(&change, random),
            }
        }
        self.current = self.durable.clone();
    }

    /// Changes bytes behind everyone's back, durably: bit rot.
    pub(super) fn corrupt(&mut self, offset: u64, length: u64, random: &mut SeededRandom) {
        let mut bytes = vec![0; size(length)];
        self.current.read(offset, &mut bytes);
        for byte in &mut bytes {
            *byte ^= u8::try_from(1 + random.below(255)).unwrap_or(1);
        }
        self.change(Change { offset, length, data: Some(bytes), durable: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, bytes: &[u8], durable: bool) -> Change {
        Change { offset, length: bytes.len() as u64, data: Some(bytes.to_vec()), durable }
    }

    fn read(medium: &Medium, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![9; len];
        medium.read(offset, &mut bytes);
        bytes
    }

    #[test]
    fn reads_see_completed_changes_across_pages() {
        let mut medium = Medium::default();
        medium.change(write(4090, &[1; 12], false));
        medium.change(Change { offset: 4092, length: 4100, data: None, durable: false });
        assert_eq!(read(&medium, 4088, 6), [0, 0, 1, 1, 0, 0]);
        medium.change(write(0, &[7; 3 * 4096], false));
        medium.change(Change { offset: 100, length: 2 * 4096, data: None, durable: false });
        let bytes = read(&medium, 0, 3 * 4096);
        let zeroes = bytes.iter().filter(|byte| **byte == 0).count();
        assert_eq!((bytes[99], bytes[100], bytes[8291], bytes[8292], zeroes), (7, 0, 0, 7, 8192));
    }

    #[test]
    fn a_sync_saves_what_completed_before_it_was_submitted() {
        for seed in 0..50 {
            let mut medium = Medium::default();
            medium.change(write(0, &[1; 512], false));
            let position = medium.position();
            medium.change(write(512, &[2; 1024], false));
            medium.sync(position);
            medium.power_fail(&mut SeededRandom::new(seed));
            assert_eq!(read(&medium, 0, 512), [1; 512]);
            let second = read(&medium, 512, 1024);
            assert!(second.chunks(512).all(|sector| sector == [0; 512] || sector == [2; 512]));
        }
    }

    #[test]
    fn a_durable_write_is_never_undone_by_an_older_one() {
        for seed in 0..50 {
            let mut medium = Medium::default();
            medium.change(write(0, &[1; 512], false));
            medium.change(write(0, &[2; 512], true));
            medium.power_fail(&mut SeededRandom::new(seed));
            assert_eq!(read(&medium, 0, 512), [2; 512]);
        }
    }

    #[test]
    fn a_power_failure_loses_and_tears_in_some_seeds() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let mut medium = Medium::default();
            medium.change(write(0, &[1; 2048], false));
            medium.power_fail(&mut SeededRandom::new(seed));
            outcomes.insert(read(&medium, 0, 2048).iter().filter(|byte| **byte == 1).count());
        }
        assert!(outcomes.contains(&0) && outcomes.contains(&2048) && outcomes.len() > 3, "{outcomes:?}");
    }
}
