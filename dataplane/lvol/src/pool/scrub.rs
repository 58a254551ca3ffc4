//! Looking over the metadata of a pool that is in service, now and then and gently: what rots is found while it can be made good.
//!
//! All metadata is in memory, so rot of what the disks hold is no loss as long as the pool lives: a page that is not what was written is
//! written anew, elsewhere, with the next checkpoint. What is being looked at is held meanwhile, so that nothing else takes its
//! place: what differs has rotted, however many checkpoints are written at the same time.

mod pages;
mod references;
mod slots;

use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use basalt_clock::Instant;
use basalt_reactor::Handle;
use thiserror::Error;

pub(super) use references::Marks;

use super::inspect::{Finding, Remedy};
use super::{Inner, Pool};
use crate::error::{DiskFault, ReadOnlyReason};
use crate::layout::PAGE_BYTES;

/// Findings that are kept with their words; beyond it they are counted. A disk that lost much says the same many times.
const FINDINGS_MAX: usize = 64;
/// Reading pauses when it has earned a pause of this length.
const PAUSE: Duration = Duration::from_millis(20);

/// How often and how fast a pool is looked over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubSettings {
    /// From the beginning of one run to that of the next; zero: never.
    pub interval: Duration,
    /// So many bytes of metadata are read in a second at most; at least a page.
    pub bytes_per_second: u64,
}

impl Default for ScrubSettings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(24 * 3600), bytes_per_second: 4 << 20 }
    }
}

/// How the metadata of a pool was looked over, since it was imported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Runs that came to their end.
    pub runs: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Things that were found to be wrong.
    pub findings: u64,
    /// How many of them were made good.
    pub repaired: u64,
    /// Of the run that is under way: bytes that it has read, and about how many there are.
    pub progress: Option<(u64, u64)>,
    /// When the last run ended that came to its end.
    pub ended: Option<Instant>,
    /// Why the last one did not.
    pub cut_off: Option<String>,
    /// What the last run found and could not make good; of many the first ones.
    pub open: Vec<Finding>,
}

/// Why a run did not come to its end.
#[derive(Clone, Debug, Error)]
pub enum ScrubError {
    /// Another one is under way.
    #[error("the pool is being looked over already")]
    Busy,
    /// The pool takes no change: what the disks hold is not what it has in memory.
    #[error(transparent)]
    ReadOnly(#[from] ReadOnlyReason),
    /// A disk failed.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// The pool was given away meanwhile.
    #[error("the pool is not in service any more")]
    Gone,
}

impl Pool {
    /// Looks over the pool's metadata from now on, for as long as it is in service. `tell` gets each finding when it was dealt with:
    /// what has [`Remedy::Rewrite`] was made good.
    pub fn scrub_every(&self, settings: ScrubSettings, tell: impl Fn(&Finding) + 'static) {
        if settings.interval.is_zero() {
            return;
        }
        let (handle, inner) = (self.inner.handle.clone(), Rc::downgrade(&self.inner));
        // Pools take turns: each has an hour of its own, and keeps it over restarts.
        let share = u32::from(self.inner.id.to_bytes()[15]);
        let first = settings.interval / 2 + settings.interval / 512 * share;
        drop(self.inner.handle.spawn(async move {
            let mut next = handle.now() + first;
            loop {
                handle.sleep_until(next).await;
                next = handle.now() + settings.interval;
                match Run::begin(&inner, settings.bytes_per_second) {
                    Ok(run) => run.complete().await.0.iter().for_each(&tell),
                    Err(ScrubError::Gone) => return,
                    Err(ScrubError::Busy | ScrubError::ReadOnly(_) | ScrubError::Disk(_)) => {}
                }
            }
        }));
    }

    /// Looks over the pool's metadata once: superblocks, all pages that the state on disk refers to, the journal, and whether maps
    /// and free space agree. Answers what was found to be wrong; what has [`Remedy::Rewrite`] was made good.
    ///
    /// # Errors
    /// Why it did not come to its end. What was found until then is in the status.
    pub async fn scrub(&self, bytes_per_second: u64) -> Result<Vec<Finding>, ScrubError> {
        let run = Run::begin(&Rc::downgrade(&self.inner), bytes_per_second)?;
        let (findings, outcome) = run.complete().await;
        outcome.map(|()| findings)
    }

    /// How the metadata was looked over.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        self.inner.scrub.borrow().clone()
    }
}

/// A run. It holds on to the pool only while it reads: who lets go of a pool ends it.
struct Run {
    inner: Weak<Inner>,
    pace: Pace,
    findings: Vec<Finding>,
    /// The next checkpoint makes something good.
    rewrites: bool,
}

impl Run {
    fn begin(inner: &Weak<Inner>, bytes_per_second: u64) -> Result<Self, ScrubError> {
        let pool = inner.upgrade().ok_or(ScrubError::Gone)?;
        pool.may_be_scrubbed()?;
        let mut status = pool.scrub.borrow_mut();
        if status.progress.is_some() {
            return Err(ScrubError::Busy);
        }
        let pages = (pool.pages.total() - pool.pages.free().1 + 2 * pool.present_disks().len()) as u64;
        status.progress = Some((0, pages * PAGE_BYTES as u64));
        let bytes_per_second = bytes_per_second.max(PAGE_BYTES as u64);
        let pace = Pace { handle: pool.handle.clone(), bytes_per_second, owed: Duration::ZERO };
        Ok(Self { inner: Weak::clone(inner), pace, findings: Vec::new(), rewrites: false })
    }

    /// Looks at everything and makes good what can be: what was found, and whether all was looked at.
    async fn complete(mut self) -> (Vec<Finding>, Result<(), ScrubError>) {
        let outcome = self.look().await;
        let made_good = match (self.rewrites, self.inner.upgrade()) {
            // With a disk that fails nothing is forced: what is to be written anew is so with the next checkpoint.
            (true, Some(pool)) => outcome.is_ok() && pool.checkpoint().await.is_ok(),
            (rewrites, _) => !rewrites,
        };
        if !made_good {
            // What is wrong on the disk is so still.
            self.findings.iter_mut().for_each(|finding| finding.remedy = Remedy::ByHand);
        }
        let findings = std::mem::take(&mut self.findings);
        let Some(pool) = self.inner.upgrade() else { return (findings, Err(ScrubError::Gone)) };
        let mut status = pool.scrub.borrow_mut();
        let (repaired, open): (Vec<_>, Vec<_>) =
            findings.iter().cloned().partition(|finding| finding.remedy == Remedy::Rewrite);
        status.repaired += repaired.len() as u64;
        status.open = open;
        status.cut_off = outcome.as_ref().err().map(ToString::to_string);
        if outcome.is_ok() {
            status.runs += 1;
            status.ended = Some(pool.handle.now());
        }
        drop(status);
        (findings, outcome)
    }

    async fn look(&mut self) -> Result<(), ScrubError> {
        self.lead().await?;
        self.members().await?;
        self.top().await?;
        self.volumes().await?;
        self.journal().await?;
        self.references().await
    }

    /// The pool, for one step.
    fn pool(&self) -> Result<Rc<Inner>, ScrubError> {
        let pool = self.inner.upgrade().ok_or(ScrubError::Gone)?;
        pool.may_be_scrubbed()?;
        Ok(pool)
    }

    fn found(&mut self, subject: impl fmt::Display, explanation: impl fmt::Display, remedy: Remedy) {
        if let Some(pool) = self.inner.upgrade() {
            pool.scrub.borrow_mut().findings += 1;
        }
        if self.findings.len() < FINDINGS_MAX {
            let (subject, explanation) = (subject.to_string(), explanation.to_string());
            self.findings.push(Finding { subject, explanation, remedy });
        }
    }

    /// Notes what was read, and pauses if it is time to.
    async fn spent(&mut self, bytes: u64) {
        if let Some(pool) = self.inner.upgrade() {
            let mut status = pool.scrub.borrow_mut();
            status.bytes += bytes;
            if let Some((done, total)) = &mut status.progress {
                *done += bytes;
                *total = (*total).max(*done);
            }
        }
        self.pace.spent(bytes).await;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(pool) = self.inner.upgrade() {
            pool.scrub.borrow_mut().progress = None;
            pool.state.borrow_mut().marks = None;
        }
    }
}

impl Inner {
    fn may_be_scrubbed(&self) -> Result<(), ScrubError> {
        self.state.borrow().read_only.clone().map_or(Ok(()), |reason| Err(reason.into()))
    }
}

/// Keeps reading to so many bytes in a second.
struct Pace {
    handle: Handle,
    bytes_per_second: u64,
    owed: Duration,
}

impl Pace {
    async fn spent(&mut self, bytes: u64) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        self.owed += Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        if self.owed >= PAUSE {
            self.handle.sleep(std::mem::take(&mut self.owed)).await;
        }
    }
}
