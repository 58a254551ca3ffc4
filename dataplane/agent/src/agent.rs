//! The agent itself: takes desired states, runs the work that follows from them, publishes what is.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use basalt_clock::{Instant, mark};
use basalt_lvol::id::{ClusterId, Revision};
use basalt_lvol::{PoolUsage, ScrubSettings, ScrubStatus};
use basalt_reactor::Handle;
use futures::lock::Mutex;
use futures::stream::{FuturesUnordered, StreamExt};
use thiserror::Error;

use crate::desired::DesiredNode;
use crate::disk_health::{LOOK_INTERVAL, PROBE_INTERVAL, probe};
use crate::items::{Items, Key};
use crate::notify::Notify;
use crate::ports::{DiskOpener, Exporter, Reporter, StateStore, StoreError};
use crate::report::{NodeReport, Problem, Reason};

/// How an agent works.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Pieces of work (a pool, a volume, a deletion) that are under way at a time.
    pub parallel: usize,
    /// Time until the first retry of something that failed; doubles with each failure.
    pub retry_min: Duration,
    /// The longest time until a retry.
    pub retry_max: Duration,
    /// How the metadata of open pools is looked over.
    pub scrub: ScrubSettings,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            parallel: 32,
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(10),
            scrub: ScrubSettings::default(),
        }
    }
}

/// What is counted of an open pool.
#[derive(Clone, Debug)]
pub struct PoolCounts {
    /// Its name.
    pub name: String,
    /// How full it is.
    pub usage: PoolUsage,
    /// How its metadata was looked over.
    pub scrub: ScrubStatus,
    /// How long ago the last such run ended that came to its end.
    pub scrubbed: Option<Duration>,
}

/// What an agent works with.
#[derive(Clone)]
pub struct Ports {
    /// Opens disks.
    pub disks: Rc<dyn DiskOpener>,
    /// Serves volumes.
    pub exporter: Rc<dyn Exporter>,
    /// Remembers the desired state.
    pub store: Rc<dyn StateStore>,
    /// Takes reports.
    pub reporter: Rc<dyn Reporter>,
}

/// Why a desired state was not taken.
#[derive(Debug, Error)]
pub enum Refused {
    /// A higher one was seen.
    #[error("revision {given} is older than {seen}, which this node has seen")]
    Stale {
        /// The one that was given.
        given: Revision,
        /// The highest that was seen.
        seen: Revision,
    },
    /// This node belongs to another cluster.
    #[error("this node belongs to the cluster {own}, not to {given}")]
    OtherCluster {
        /// The cluster that gave the state.
        given: ClusterId,
        /// The node's cluster.
        own: ClusterId,
    },
    /// It contradicts itself.
    #[error("the desired state is malformed: {0}")]
    Malformed(&'static str),
    /// It could not be made durable, so it is not acted upon; the report says so until a state is kept. Give it again later.
    #[error("the desired state could not be kept: {0}")]
    NotKept(#[from] StoreError),
}

/// A node's agent. Lives on one reactor; cheap to clone. Its work ends when [`Agent::stop`] is called or the reactor ends.
#[derive(Clone)]
pub struct Agent {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) handle: Handle,
    pub(crate) config: AgentConfig,
    pub(crate) ports: Ports,
    pub(crate) desired: RefCell<Option<Rc<DesiredNode>>>,
    pub(crate) items: RefCell<Items>,
    /// Why the newest desired state is not in effect, if it could not be kept.
    pub(crate) not_kept: RefCell<Option<Problem>>,
    last_report: RefCell<NodeReport>,
    /// When disks on which nothing succeeds are probed again.
    next_probe: Cell<Instant>,
    applying: Mutex<()>,
    changed: Notify,
    stopped: Cell<bool>,
}

impl Agent {
    /// Starts an agent that makes true what was kept last.
    ///
    /// # Errors
    /// What was kept cannot be read: going on would forget the highest revision, so this is for a person to decide.
    pub async fn start(handle: &Handle, config: AgentConfig, ports: Ports) -> Result<Self, StoreError> {
        let kept = ports.store.load().await?;
        if kept.is_some() {
            mark!("agent-restored");
        }
        let inner = Rc::new(Inner {
            handle: handle.clone(),
            config,
            ports,
            desired: RefCell::new(kept.map(Rc::new)),
            items: RefCell::new(Items::default()),
            not_kept: RefCell::new(None),
            last_report: RefCell::new(NodeReport::default()),
            next_probe: Cell::new(handle.now()),
            applying: Mutex::new(()),
            changed: Notify::default(),
            stopped: Cell::new(false),
        });
        drop(handle.spawn(reconcile(Rc::clone(&inner))));
        Ok(Self { inner })
    }

    /// Takes a desired state: once this has ended well it is durable and being made true. The one that is in effect already is
    /// taken again without harm.
    ///
    /// # Errors
    /// It is older than one that was seen, from another cluster, malformed, or could not be kept.
    pub async fn apply(&self, mut desired: DesiredNode) -> Result<(), Refused> {
        check(&desired)?;
        let inner = &self.inner;
        // One after the other, so that what is kept last is the highest.
        let _applying = inner.applying.lock().await;
        if let Some(current) = inner.desired.borrow().as_deref() {
            if current.cluster != desired.cluster {
                return Err(Refused::OtherCluster { given: desired.cluster, own: current.cluster });
            }
            inner.items.borrow().carry_notes(current, &mut desired);
            if *current == desired {
                inner.note_kept(Ok(()));
                return Ok(());
            }
        }
        inner.check_revision(&desired)?;
        inner.items.borrow().note_checkpoints(&mut desired);
        if let Err(error) = inner.ports.store.save(&desired).await {
            inner.note_kept(Err((desired.revision, &error)));
            return Err(error.into());
        }
        inner.note_kept(Ok(()));
        inner.items.borrow_mut().retry_now();
        *inner.desired.borrow_mut() = Some(Rc::new(desired));
        inner.changed.ring();
        Ok(())
    }

    /// What is, as it was published last.
    #[must_use]
    pub fn report(&self) -> NodeReport {
        self.inner.last_report.borrow().clone()
    }

    /// What is counted of the pools that are open.
    #[must_use]
    pub fn pool_counts(&self) -> Vec<PoolCounts> {
        let (items, now) = (self.inner.items.borrow(), self.inner.handle.now());
        let counts = items.open_pools().map(|(name, pool)| {
            let scrub = pool.scrub_status();
            let scrubbed = scrub.ended.map(|ended| now - ended);
            PoolCounts { name: name.clone(), usage: pool.usage(), scrub, scrubbed }
        });
        counts.collect()
    }

    /// The desired state that is in effect.
    #[must_use]
    pub fn desired(&self) -> Option<Rc<DesiredNode>> {
        self.inner.desired.borrow().clone()
    }

    /// Begins no more work, and lets nothing that hosts were told depend on the life of write caches any more, before a machine may be
    /// stopped. What is exported stays exported.
    pub async fn prepare_for_end(&self) {
        self.stop();
        let pools: Vec<_> =
            self.inner.items.borrow().open_pools().map(|(name, pool)| (name.clone(), pool.clone())).collect();
        for (name, pool) in pools {
            if let Err(reason) = pool.prepare_for_end().await {
                tracing::warn!(
                    pool = name,
                    "what was not flushed may be lost if the machine stops: {reason}"
                );
            }
        }
        self.inner.keep_checkpoints().await;
    }

    /// Begins no more work. What is exported stays exported.
    pub fn stop(&self) {
        self.inner.stopped.set(true);
        self.inner.changed.ring();
    }
}

impl Inner {
    /// Refuses what is older than what was seen, also by the pools that are open.
    fn check_revision(&self, desired: &DesiredNode) -> Result<(), Refused> {
        let given = desired.revision;
        let kept = self.desired.borrow().as_ref().map(|current| current.revision);
        let seen = kept.max(self.items.borrow().pools_revision());
        match seen {
            Some(seen) if given < seen => {
                mark!("agent-stale-revision");
                Err(Refused::Stale { given, seen })
            }
            _ => Ok(()),
        }
    }

    /// Keeps which checkpoints the disks of pools hold, for the next start. If that does not work, older ones are known then.
    pub(crate) async fn keep_checkpoints(&self) {
        let _applying = self.applying.lock().await;
        let Some(current) = self.desired.borrow().clone() else { return };
        let mut desired = (*current).clone();
        self.items.borrow().note_checkpoints(&mut desired);
        if desired != *current && self.ports.store.save(&desired).await.is_ok() {
            *self.desired.borrow_mut() = Some(Rc::new(desired));
        }
    }

    /// Notes whether the newest desired state could be made durable, and tells it.
    fn note_kept(&self, kept: Result<(), (Revision, &StoreError)>) {
        let problem = kept.err().map(|(revision, error)| {
            mark!("agent-state-not-kept");
            let message = format!(
                "the desired state of revision {revision} cannot be kept, so it is not put into effect: {error}; make room in \
                 the daemon's data directory, or mend it: it is tried again"
            );
            Problem::new(Reason::StateNotKept, message)
        });
        if *self.not_kept.borrow() != problem {
            *self.not_kept.borrow_mut() = problem;
            self.changed.ring();
        }
    }

    /// Publishes what is, if it is not what was published.
    fn publish(&self) {
        let report = self.observe();
        if *self.last_report.borrow() != report {
            self.ports.reporter.report(&report);
            *self.last_report.borrow_mut() = report;
        }
    }

    /// Looks at the disks of open pools if it is time to; when it is time again.
    fn look_at_disks(&self, next_look: &mut Instant) -> Instant {
        let now = self.handle.now();
        if now < *next_look {
            return *next_look;
        }
        let any = self.items.borrow_mut().look_at_disks(now);
        *next_look = now + LOOK_INTERVAL;
        if now >= self.next_probe.get() {
            self.next_probe.set(now + PROBE_INTERVAL);
            for disk in self.items.borrow().disks_to_probe() {
                let handle = self.handle.clone();
                drop(self.handle.spawn(async move { probe(&handle, disk).await }));
            }
        }
        if any { *next_look } else { Instant::FAR_FUTURE }
    }

    async fn work(self: Rc<Self>, key: Key, desired: Rc<DesiredNode>) -> Key {
        match &key {
            Key::Listener(bind) => self.work_listener(*bind, &desired).await,
            Key::Pool(name) => self.work_pool(name, &desired).await,
            Key::Deletion(volume) => self.work_deletion(*volume, &desired).await,
            Key::Volume(volume) => self.work_volume(*volume, &desired).await,
        }
        key
    }

    /// When to try again what has failed this many times: doubles up to a limit, and up to a quarter earlier, so that many
    /// failures do not try again at one instant.
    pub(crate) fn next_try(&self, failures: u32) -> Instant {
        let doubled = self.config.retry_min.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let longest = doubled.min(self.config.retry_max);
        let quarter = u64::try_from(longest.as_nanos() / 4).unwrap_or(u64::MAX).max(1);
        let early = Duration::from_nanos(self.handle.random_u64() % quarter);
        self.handle.now() + (longest - early)
    }
}

/// The agent's task: as long as something is to be done it is done, a few things at a time.
async fn reconcile(inner: Rc<Inner>) {
    let mut running = FuturesUnordered::new();
    let mut next_look = inner.handle.now();
    loop {
        let desired = inner.desired.borrow().clone();
        let mut next_try = None;
        if let Some(desired) = desired.filter(|_| !inner.stopped.get()) {
            let now = inner.handle.now();
            let room = inner.config.parallel.saturating_sub(running.len());
            let due = inner.items.borrow_mut().take_due(&desired, now, room);
            next_try = due.next_try;
            for key in due.keys {
                running.push(Rc::clone(&inner).work(key, Rc::clone(&desired)));
            }
        }
        let look = inner.look_at_disks(&mut next_look);
        inner.publish();
        if inner.stopped.get() && running.is_empty() {
            return;
        }
        let mut timer = pin!(inner.handle.sleep_until(next_try.map_or(look, |at| at.min(look))));
        let done = poll_fn(|context| {
            if !running.is_empty()
                && let Poll::Ready(Some(key)) = running.poll_next_unpin(context)
            {
                return Poll::Ready(Some(key));
            }
            match (inner.changed.poll(context), timer.as_mut().poll(context)) {
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                _ => Poll::Ready(None),
            }
        })
        .await;
        if let Some(key) = done {
            inner.items.borrow_mut().ended(&key);
        }
    }
}

fn check(desired: &DesiredNode) -> Result<(), Refused> {
    let distinct = |count: usize, mut names: Vec<&str>| {
        names.sort_unstable();
        names.dedup();
        names.len() == count
    };
    if !distinct(desired.pools.len(), desired.pools.iter().map(|pool| pool.name.as_str()).collect()) {
        return Err(Refused::Malformed("two pools have one name"));
    }
    let mut ids: Vec<_> = desired.volumes.iter().map(|volume| volume.id).collect();
    ids.extend(desired.tombstones.iter().map(|tombstone| tombstone.volume));
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != count {
        return Err(Refused::Malformed("a volume is there twice"));
    }
    if desired.volumes.iter().any(|volume| volume.serial.len() > 20 || !volume.serial.is_ascii()) {
        return Err(Refused::Malformed("a serial number is longer than 20 ASCII characters"));
    }
    Ok(())
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = self.inner.desired.borrow().as_ref().map(|desired| desired.revision);
        f.debug_struct("Agent").field("revision", &revision).finish_non_exhaustive()
    }
}
