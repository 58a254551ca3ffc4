//! What was promised of each volume, and which contents a crash at some moment may leave.

use std::collections::BTreeMap;

use basalt_lvol::id::{Epoch, Generation, VolumeId};

pub(crate) const SECTOR: usize = 512;

/// How many events each disk had seen. Moments of one run are ordered.
pub(crate) type Moment = Vec<usize>;

pub(crate) fn reached(moment: &Moment, point: &Moment) -> bool {
    moment.iter().zip(point).all(|(moment, point)| moment <= point)
}

/// Something happened since the moment, so what began there may have had effects.
pub(crate) fn passed(moment: &Moment, point: &Moment) -> bool {
    reached(moment, point) && moment != point
}

/// What ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The power: what was not flushed may be lost.
    Power,
    /// The process: what was acknowledged stays.
    Process,
}

/// One write of a stamp (zero: a discard) to a range of sectors.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) first: u64,
    pub(crate) sectors: u64,
    pub(crate) stamp: u64,
    pub(crate) began: Moment,
    pub(crate) acknowledged: Option<Moment>,
    pub(crate) durable: Option<Moment>,
    /// It failed: any part of it may be there, and what is was noted as writes of their own.
    pub(crate) failed: bool,
}

impl Write {
    pub(crate) fn new(first: u64, sectors: u64, stamp: u64, began: Moment) -> Self {
        Self { first, sectors, stamp, began, acknowledged: None, durable: None, failed: false }
    }
}

/// What was asked of one volume, and when it was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// Sizes in bytes: the first, and each growth with when it began and was acknowledged.
    pub(crate) size: u64,
    pub(crate) growths: Vec<(u64, Moment, Option<Moment>)>,
    /// What each sector held when the volume came to be; beyond its end: zeroes.
    pub(crate) base: Vec<u64>,
    pub(crate) generation: Generation,
    pub(crate) creation: (Moment, Option<Moment>),
    pub(crate) deletion: Option<(Moment, Option<Moment>)>,
    pub(crate) raised: Vec<(Generation, Moment, Option<Moment>)>,
    pub(crate) epochs: Vec<(Epoch, Moment)>,
    pub(crate) writes: Vec<Write>,
    /// What each sector holds now.
    pub(crate) live: Vec<u64>,
}

pub(crate) type Histories = BTreeMap<VolumeId, History>;

impl History {
    pub(crate) fn new(size: u64, base: Vec<u64>, began: Moment) -> Self {
        let sectors = usize::try_from(size).unwrap() / SECTOR;
        let mut live = base.clone();
        live.resize(sectors, 0);
        Self {
            size,
            growths: Vec::new(),
            base,
            generation: Generation(10),
            creation: (began, None),
            deletion: None,
            raised: Vec::new(),
            epochs: Vec::new(),
            writes: Vec::new(),
            live,
        }
    }

    /// The last write failed, and `live` is what is there: that is written, each sector on its own.
    pub(crate) fn settle_failed(&mut self) {
        let Some(failed) = self.writes.last_mut() else { return };
        failed.failed = true;
        let (first, sectors, began) = (failed.first, failed.sectors, failed.began.clone());
        for sector in first..first + sectors {
            let stamp = self.live[usize::try_from(sector).unwrap()];
            self.writes.push(Write::new(sector, 1, stamp, began.clone()));
        }
    }

    /// The stamps that each of `sectors` sectors may hold.
    fn allowed(&self, point: &Moment, cut: Cut, sectors: usize) -> Vec<Vec<u64>> {
        let mut allowed: Vec<Vec<u64>> = self.base.iter().take(sectors).map(|stamp| vec![*stamp]).collect();
        allowed.resize(sectors, vec![0]);
        for write in self.writes.iter().filter(|write| passed(&write.began, point)) {
            let kept = if cut == Cut::Power { &write.durable } else { &write.acknowledged };
            let durable = kept.as_ref().is_some_and(|durable| reached(durable, point));
            let range = usize::try_from(write.first).unwrap()..;
            let range = range.start..(range.start + usize::try_from(write.sectors).unwrap()).min(sectors);
            if range.start >= sectors {
                continue;
            }
            for allowed in &mut allowed[range] {
                // The last durable write, and each one after it, may be there.
                if durable {
                    allowed.clear();
                }
                allowed.push(write.stamp);
            }
        }
        allowed
    }

    /// What is wrong with a volume's content after a crash.
    pub(crate) fn judge_content(&self, point: &Moment, cut: Cut, content: &[u8]) -> Result<(), String> {
        let allowed = self.allowed(point, cut, content.len() / SECTOR);
        for ((sector, found), allowed) in content.chunks(SECTOR).enumerate().zip(allowed) {
            let stamp = u64::from_le_bytes(found[..8].try_into().unwrap());
            if found[8..] != found[..SECTOR - 8] {
                return Err(format!("sector {sector} is torn"));
            }
            if !allowed.contains(&stamp) {
                let covers =
                    |write: &&Write| (write.first..write.first + write.sectors).contains(&(sector as u64));
                let writes: Vec<&Write> = self.writes.iter().filter(covers).collect();
                return Err(format!(
                    "sector {sector} holds {stamp:#x}, allowed are {allowed:x?}; began {:?}, writes there: {writes:x?}",
                    self.creation
                ));
            }
        }
        Ok(())
    }

    /// What is wrong with a volume's size after a crash.
    pub(crate) fn judge_size(&self, point: &Moment, size: u64) -> Result<(), String> {
        let grown = |(_, _, ended): &&(u64, Moment, Option<Moment>)| {
            ended.as_ref().is_some_and(|ended| reached(ended, point))
        };
        let least = self.growths.iter().filter(grown).map(|(size, ..)| *size).max().unwrap_or(self.size);
        let begun = self.growths.iter().filter(|(_, began, _)| passed(began, point));
        let most = begun.map(|(size, ..)| *size).max().unwrap_or(least).max(least);
        match (least..=most).contains(&size) {
            true => Ok(()),
            false => Err(format!("it has {size} bytes, not {least} to {most}")),
        }
    }

    /// Whether the volume must be there, may be, or must not.
    pub(crate) fn presence(&self, point: &Moment) -> Presence {
        let by = |moment: &Option<Moment>| moment.as_ref().is_some_and(|moment| reached(moment, point));
        let created = by(&self.creation.1);
        let deletion_began = self.deletion.as_ref().is_some_and(|(began, _)| passed(began, point));
        match self.deletion.as_ref().is_some_and(|(_, ended)| by(ended)) {
            true => Presence::Gone,
            false if created && !deletion_began => Presence::There,
            false => Presence::Either,
        }
    }

    /// The lowest epoch that the volume may have seen.
    pub(crate) fn least_epoch(&self, point: &Moment) -> Option<Epoch> {
        let given = self.epochs.iter().filter(|(_, ended)| reached(ended, point));
        given.map(|(epoch, _)| *epoch).max()
    }

    /// The lowest generation that the volume may have seen.
    pub(crate) fn least_generation(&self, point: &Moment) -> Generation {
        let raised = self
            .raised
            .iter()
            .filter(|(_, _, ended)| ended.as_ref().is_some_and(|ended| reached(ended, point)));
        raised.map(|(generation, ..)| *generation).max().unwrap_or(self.generation)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    There,
    Either,
    Gone,
}
