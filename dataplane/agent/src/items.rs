//! What the agent has done so far, and what is due. Pure bookkeeping.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use basalt_bdev::BlockDevice;
use basalt_clock::Instant;
use basalt_lvol::id::{Generation, Revision, VolumeId};
use basalt_lvol::{Pool, PoolHealth, ReadOnlyReason};

use crate::desired::{DesiredNode, DesiredPool, DesiredVolume};
use crate::disk_health::DiskWatch;
use crate::growth::newcomers;
use crate::report::{DiskHealth, DiskReport, Problem};
use crate::usage::Usage;

/// Paths of disks that were named before which are remembered for a pool; older ones are forgotten.
const FORMER_MAX: usize = 64;

/// One thing that work is done for; never by two pieces of work at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The address that is listened on.
    Listener(SocketAddr),
    /// A pool by its name.
    Pool(String),
    /// A volume that is to be deleted.
    Deletion(VolumeId),
    /// A volume that is to be there.
    Volume(VolumeId),
}

/// What the agent knows about everything that it works on.
#[derive(Default)]
pub(crate) struct Items {
    /// Listeners that are bound.
    pub(crate) listeners: BTreeMap<SocketAddr, BoundListener>,
    pub(crate) pools: BTreeMap<String, PoolItem>,
    pub(crate) volumes: BTreeMap<VolumeId, VolumeItem>,
    /// Tombstones that were carried out, with their generation.
    pub(crate) deleted: BTreeMap<VolumeId, Generation>,
    /// How much is used.
    pub(crate) usage: Usage,
    busy: BTreeSet<Key>,
    failures: BTreeMap<Key, Failure>,
}

/// A listener that is bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BoundListener {
    /// As it was asked for.
    pub(crate) advertise: SocketAddr,
    /// As hosts are told.
    pub(crate) endpoint: SocketAddr,
}

/// A pool that is open or could not be opened.
#[derive(Default)]
pub(crate) struct PoolItem {
    pub(crate) pool: Option<Pool>,
    /// One for each disk of the desired state as it was when the pool was tried last.
    pub(crate) disks: Vec<DiskReport>,
    /// One for each disk that an open pool runs on.
    pub(crate) watches: Vec<DiskWatch>,
    /// There was no room in a file system for what the open pool keeps for itself; it is tried again.
    pub(crate) unallocated: bool,
    /// What is wrong with a pool that is open all the same.
    pub(crate) problem: Option<Problem>,
}

impl PoolItem {
    /// Whether the open pool runs on the disk at a path.
    pub(crate) fn runs_on(&self, path: &str) -> bool {
        self.watches.iter().any(|watch| watch.path() == path)
    }

    /// What is wrong with a disk of the open pool whose requests fail.
    pub(crate) fn failing_disk(&self) -> Option<Problem> {
        self.watches.iter().find_map(failing)
    }

    /// What is wrong with a disk of the open pool that is not at its path any more.
    pub(crate) fn displaced_disk(&self) -> Option<Problem> {
        self.watches.iter().filter(|watch| watch.is_displaced()).find_map(|watch| watch.judgement().1)
    }

    /// What is wrong with one whose requests fail and that a volume needs.
    pub(crate) fn failing_disk_of(&self, volume: VolumeId) -> Option<Problem> {
        self.failing_disk()?;
        let pool = self.pool.as_ref()?;
        let disks = pool.disks();
        let needs = |watch: &&DiskWatch| {
            let at = disks.iter().position(|disk| disk.name.as_deref() == Some(watch.path()));
            at.is_none_or(|disk| pool.needs_disk(volume, disk))
        };
        self.watches.iter().filter(needs).find_map(failing)
    }
}

/// What is wrong with a disk whose requests fail.
fn failing(watch: &DiskWatch) -> Option<Problem> {
    match watch.judgement() {
        (DiskHealth::Faulted, problem) => problem,
        (DiskHealth::Online | DiskHealth::Suspected | DiskHealth::Offline, _) => None,
    }
}

/// A volume that was worked on.
#[derive(Default)]
pub(crate) struct VolumeItem {
    /// What was put into effect.
    pub(crate) applied: Option<DesiredVolume>,
    pub(crate) exported: bool,
    /// Bytes; 0 while it does not exist.
    pub(crate) size: u64,
}

/// Something failed and will be tried again.
#[derive(Debug)]
pub(crate) struct Failure {
    count: u32,
    next_try: Instant,
    pub(crate) problem: Problem,
    /// The data is lost.
    pub(crate) lost: bool,
}

/// What can be begun.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) keys: Vec<Key>,
    /// When to look again if nothing else happens before.
    pub(crate) next_try: Option<Instant>,
}

/// A write of its metadata failed; it takes no change until one succeeds.
pub(crate) fn needs_resumption(pool: &Pool) -> bool {
    matches!(pool.health(), PoolHealth::ReadOnly(ReadOnlyReason::MetadataWriteFailed(_)))
}

impl Items {
    /// Marks as busy, and gives, what is to be done now.
    pub(crate) fn take_due(&mut self, desired: &DesiredNode, now: Instant, room: usize) -> Due {
        let mut due = Due::default();
        for key in self.wanted(desired) {
            if self.is_blocked(&key) || self.is_too_early(&key, desired) {
                continue;
            }
            match self.failures.get(&key) {
                Some(failure) if failure.next_try > now => {
                    due.next_try = Some(due.next_try.map_or(failure.next_try, |at| at.min(failure.next_try)));
                }
                _ if due.keys.len() < room => {
                    self.busy.insert(key.clone());
                    due.keys.push(key);
                }
                // The end of any work in progress looks again.
                _ => {}
            }
        }
        due
    }

    /// True if everything was tried, whether it worked or not.
    pub(crate) fn is_settled(&self, desired: &DesiredNode) -> bool {
        self.busy.is_empty() && self.wanted(desired).iter().all(|key| self.failures.contains_key(key))
    }

    /// What differs from the desired state, in the order in which it is to be done.
    fn wanted(&self, desired: &DesiredNode) -> Vec<Key> {
        let mut keys = Vec::new();
        for bind in self.listeners.keys() {
            if desired.listeners.iter().all(|listener| listener.bind != *bind) {
                keys.push(Key::Listener(*bind));
            }
        }
        for listener in &desired.listeners {
            let bound = self.listeners.get(&listener.bind);
            if bound.is_none_or(|bound| bound.advertise != listener.advertise) {
                keys.push(Key::Listener(listener.bind));
            }
        }
        let closing = self.pools.keys().filter(|pool| self.is_to_close(pool, desired));
        keys.extend(closing.map(|pool| Key::Pool(pool.clone())));
        let any_closing = matches!(keys.last(), Some(Key::Pool(_)));
        for pool in &desired.pools {
            let item = self.pools.get(&pool.name);
            let open = item.and_then(|item| Some((item, item.pool.as_ref()?)));
            // What is closed first may be what its disks are in use by.
            if any_closing && (open.is_none() || self.is_to_close(&pool.name, desired)) {
                continue;
            }
            let due = open.is_none_or(|(item, open)| {
                needs_resumption(open) || item.unallocated || newcomers(item, pool).next().is_some()
            });
            if due {
                keys.push(Key::Pool(pool.name.clone()));
            }
        }
        for tombstone in &desired.tombstones {
            let done = self.deleted.get(&tombstone.volume) == Some(&tombstone.generation);
            if !done && self.pool(&tombstone.pool).is_some() {
                keys.push(Key::Deletion(tombstone.volume));
            }
        }
        for volume in &desired.volumes {
            let applied = self.volumes.get(&volume.id).and_then(|item| item.applied.as_ref());
            if applied != Some(volume) && self.pool(&volume.pool).is_some() {
                keys.push(Key::Volume(volume.id));
            }
        }
        keys
    }

    /// Whether a pool is open that is not wanted any more, or in whose place another one is wanted. One of whose volumes anything is known
    /// or served stays open.
    pub(crate) fn is_to_close(&self, name: &str, desired: &DesiredNode) -> bool {
        let Some(item) = self.pools.get(name) else { return false };
        let Some(open) = &item.pool else { return false };
        let replaced =
            desired.pools.iter().find(|pool| pool.name == name).is_none_or(|wanted| match wanted.id {
                Some(id) => id != open.id(),
                None => !wanted
                    .disks
                    .iter()
                    .any(|disk| item.watches.iter().any(|watch| watch.path() == disk.path)),
            });
        let known = || {
            let volumes = desired.volumes.iter().map(|volume| &volume.pool);
            volumes.chain(desired.tombstones.iter().map(|tombstone| &tombstone.pool)).any(|pool| pool == name)
        };
        // Served, though nothing is known of it any more.
        let served = || {
            self.volumes.iter().any(|(id, item)| {
                let here = item.applied.as_ref().is_none_or(|applied| applied.pool == name);
                item.exported && here && desired.volumes.iter().all(|volume| volume.id != *id)
            })
        };
        replaced && !known() && !served()
    }

    /// Notes in a new desired state what is known of pools that stay: the last checkpoint that was seen, and under which paths one may still
    /// be: it was named there, and was not found elsewhere since.
    pub(crate) fn carry_notes(&self, current: &DesiredNode, desired: &mut DesiredNode) {
        for wanted in desired.pools.iter_mut().filter(|pool| pool.id.is_some()) {
            let Some(before) = current.pools.iter().find(|pool| pool.name == wanted.name) else { continue };
            if before.id.is_some() && before.id != wanted.id {
                continue;
            }
            wanted.checkpoint = before.checkpoint;
            let named = |path: &str, pool: &DesiredPool| pool.disks.iter().any(|disk| disk.path == path);
            let item = self.pools.get(&wanted.name).filter(|item| item.pool.is_some());
            let found = item.is_some_and(|item| item.watches.iter().all(|watch| named(watch.path(), before)));
            let older = before.former.iter().filter(|_| !found);
            let former = before.disks.iter().map(|disk| &disk.path).chain(older);
            wanted.former = former.filter(|path| !named(path, wanted)).take(FORMER_MAX).cloned().collect();
        }
    }

    /// Notes in a desired state what the disks of open pools hold.
    pub(crate) fn note_checkpoints(&self, desired: &mut DesiredNode) {
        for wanted in &mut desired.pools {
            let open = self.pool(&wanted.name).filter(|open| wanted.id == Some(open.id()));
            wanted.checkpoint = open.map_or(wanted.checkpoint, Pool::last_checkpoint);
        }
    }

    /// A pool is closed when no work is under way that may be about one of its volumes.
    fn is_too_early(&self, key: &Key, desired: &DesiredNode) -> bool {
        let Key::Pool(pool) = key else { return false };
        let about_volume = |key: &Key| matches!(key, Key::Volume(_) | Key::Deletion(_));
        self.busy.iter().any(about_volume) && self.is_to_close(pool, desired)
    }

    /// Work for it, or for the same volume, is under way.
    fn is_blocked(&self, key: &Key) -> bool {
        let twin = match key {
            Key::Deletion(volume) => Some(Key::Volume(*volume)),
            Key::Volume(volume) => Some(Key::Deletion(*volume)),
            Key::Listener(_) | Key::Pool(_) => None,
        };
        self.busy.contains(key) || twin.is_some_and(|twin| self.busy.contains(&twin))
    }

    /// The work for a key has ended.
    pub(crate) fn ended(&mut self, key: &Key) {
        assert!(self.busy.remove(key), "only work that was begun ends");
        self.usage.forget();
    }

    /// The work for a key was successful.
    pub(crate) fn succeeded(&mut self, key: &Key) {
        self.failures.remove(key);
    }

    /// How many times in a row it failed.
    pub(crate) fn failures_of(&self, key: &Key) -> u32 {
        self.failures.get(key).map_or(0, |failure| failure.count)
    }

    /// The work for a key failed once more.
    pub(crate) fn failed(&mut self, key: Key, problem: Problem, lost: bool, next_try: Instant) {
        let count = self.failures_of(&key).saturating_add(1);
        self.failures.insert(key, Failure { count, next_try, problem, lost });
    }

    /// The failure of a key that is waiting for its next try or being tried again.
    pub(crate) fn failure(&self, key: &Key) -> Option<&Failure> {
        self.failures.get(key)
    }

    /// Something else is wanted: what failed before may work now.
    pub(crate) fn retry_now(&mut self) {
        for failure in self.failures.values_mut() {
            failure.next_try = Instant::ORIGIN;
            failure.count = 0;
        }
    }

    /// Forgets failures and deletions that are not about the desired state any more.
    pub(crate) fn forget_all_but(&mut self, desired: &DesiredNode) {
        let wanted: BTreeSet<Key> = self.wanted(desired).into_iter().collect();
        self.failures.retain(|key, _| wanted.contains(key));
        let named = |name: &String| desired.pools.iter().any(|pool| pool.name == *name);
        self.pools.retain(|name, item| item.pool.is_some() || named(name));
        let ordered: BTreeSet<VolumeId> =
            desired.tombstones.iter().map(|tombstone| tombstone.volume).collect();
        self.deleted.retain(|volume, _| ordered.contains(volume));
    }

    /// Looks at the disks of open pools; false if there is none to look at again.
    pub(crate) fn look_at_disks(&mut self, now: Instant) -> bool {
        let mut any = false;
        for watch in self.pools.values_mut().flat_map(|item| &mut item.watches) {
            watch.look(now);
            any = true;
        }
        any
    }

    /// Looks at how much is used, if it is time to.
    pub(crate) fn look_at_usage(&mut self, now: Instant) {
        let pools = self.pools.iter().filter_map(|(name, item)| Some((name, item.pool.as_ref()?)));
        self.usage.look(now, pools);
    }

    /// Disks of open pools on which nothing succeeds.
    pub(crate) fn disks_to_probe(&self) -> Vec<Arc<dyn BlockDevice>> {
        self.pools.values().flat_map(|item| &item.watches).filter_map(DiskWatch::to_probe).collect()
    }

    /// An open pool.
    pub(crate) fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name).and_then(|item| item.pool.as_ref())
    }

    /// All open pools with their names.
    pub(crate) fn open_pools(&self) -> impl Iterator<Item = (&String, &Pool)> {
        self.pools.iter().filter_map(|(name, item)| Some((name, item.pool.as_ref()?)))
    }

    /// The highest revision that an open pool has noted.
    pub(crate) fn pools_revision(&self) -> Option<Revision> {
        self.open_pools().map(|(_, pool)| pool.revision()).max()
    }

    /// Addresses at which hosts reach the node.
    pub(crate) fn endpoints(&self) -> Vec<SocketAddr> {
        self.listeners.values().map(|listener| listener.endpoint).collect()
    }
}
