//! How the buffers of one reactor are shared by its connections.
//!
//! A connection may hold as many bytes as are free, and so may all connections of one address of their part: whoever takes all that it
//! can get leaves as much to the next, and two leave a third. Besides, each may hold a little that only the whole limits. What is
//! refused waits with its connection, in order.

use std::cell::Cell;
use std::rc::Rc;

use crate::charge::charge_of;

/// What one reactor's connections hold together, and may.
#[derive(Debug)]
pub(crate) struct Budget {
    held: Cell<usize>,
    limits: Limits,
    /// What a connection may hold however little is left.
    assured: usize,
}

/// Of all connections, in bytes.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// What they may hold; the rest of the pool is for receiving and for what devices need by themselves.
    all: usize,
    /// What they may hold beyond what each is assured of.
    beyond_assured: usize,
}

impl Limits {
    const fn of_pool(pool_bytes: usize) -> Self {
        let all = pool_bytes / 4 * 3;
        Self { all, beyond_assured: all / 8 * 7 }
    }

    /// Of one address: the last quarter is for others.
    const fn of_peer(self) -> Self {
        Self { all: self.all / 4 * 3, beyond_assured: self.beyond_assured / 4 * 3 }
    }

    fn allow(self, all: usize, own: usize, bytes: usize, assured: usize) -> bool {
        let wanted = own + bytes;
        let fair = wanted <= assured || wanted <= self.beyond_assured.saturating_sub(all);
        // A pool that is smaller than one transfer serves one after the other.
        all == 0 || (fair && all + bytes <= self.all)
    }
}

impl Budget {
    /// For a pool of `pool_bytes` and transfers of up to `transfer_bytes_max`.
    pub(crate) fn new(pool_bytes: usize, transfer_bytes_max: u32) -> Rc<Self> {
        // Two: both halves of a fused pair.
        let assured = 2 * charge_of(transfer_bytes_max as usize);
        Rc::new(Self { held: Cell::new(0), limits: Limits::of_pool(pool_bytes), assured })
    }

    /// Bytes that all connections hold.
    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }
}

/// What connections of one address hold together.
#[derive(Debug, Clone, Default)]
pub(crate) struct PeerShare(Rc<Cell<usize>>);

/// What one connection holds; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Rc<Budget>,
    peer: PeerShare,
    held: usize,
}

impl Share {
    pub(crate) fn new(budget: &Rc<Budget>, peer: &PeerShare) -> Self {
        Self { budget: Rc::clone(budget), peer: peer.clone(), held: 0 }
    }

    /// Takes so much unless others need it more.
    #[must_use]
    pub(crate) fn try_take(&mut self, bytes: usize) -> bool {
        let (limits, assured) = (self.budget.limits, self.budget.assured);
        let allowed = limits.allow(self.budget.held(), self.held, bytes, assured)
            && limits.of_peer().allow(self.peer.0.get(), self.held, bytes, assured);
        if allowed {
            self.note(bytes);
        }
        allowed
    }

    /// Counts what is held already.
    pub(crate) fn note(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.held += bytes;
        self.budget.held.set(self.budget.held.get() + bytes);
        self.peer.0.set(self.peer.0.get() + bytes);
    }

    /// Gives back.
    pub(crate) fn put(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        debug_assert!(bytes <= self.held, "nothing is given back twice");
        self.held -= bytes;
        self.budget.held.set(self.budget.held.get() - bytes);
        self.peer.0.set(self.peer.0.get() - bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.put(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSFER: usize = 128 << 10;

    fn fill(share: &mut Share) -> usize {
        while share.try_take(TRANSFER) {}
        share.held
    }

    fn budget() -> Rc<Budget> {
        Budget::new(256 << 20, 128 << 10)
    }

    #[test]
    fn whoever_takes_all_leaves_as_much_to_the_next() {
        let budget = budget();
        let peer = PeerShare::default();
        let mut shares: Vec<Share> = (0..12).map(|_| Share::new(&budget, &peer)).collect();
        let held: Vec<usize> = shares.iter_mut().map(fill).collect();
        assert_eq!(held[0] >> 20, 63, "one of one address: half of what an address may have");
        assert!(held.windows(2).all(|pair| pair[1] <= pair[0]) && held[11] >= 2 * TRANSFER, "{held:?}");
        // A second round of those that still want more changes little: nobody starves who held nothing.
        let mut late = Share::new(&budget, &peer);
        assert!(fill(&mut late) >= 2 * TRANSFER);
        let mut elsewhere = Share::new(&budget, &PeerShare::default());
        assert!(fill(&mut elsewhere) >= 16 << 20);
        drop((shares, late, elsewhere));
        assert_eq!((budget.held(), peer.0.get()), (0, 0));
    }

    #[test]
    fn one_address_does_not_keep_others_out() {
        let budget = budget();
        let peer = PeerShare::default();
        let mut shares: Vec<Share> = (0..2048).map(|_| Share::new(&budget, &peer)).collect();
        let held: usize = shares.iter_mut().map(fill).sum();
        assert_eq!(held, 144 << 20);
        let mut others: Vec<Share> = (0..100).map(|_| Share::new(&budget, &PeerShare::default())).collect();
        assert!(others.iter_mut().all(|share| fill(share) >= 2 * TRANSFER));
        let mut late = Share::new(&budget, &peer);
        assert!(!late.try_take(TRANSFER));
        shares.remove(0);
        assert!(late.try_take(TRANSFER), "what one gave back serves another");
    }

    #[test]
    fn a_pool_of_less_than_a_transfer_serves_one_after_the_other() {
        let budget = Budget::new(64 << 10, 128 << 10);
        let peer = PeerShare::default();
        let mut first = Share::new(&budget, &peer);
        let mut second = Share::new(&budget, &peer);
        assert!(first.try_take(TRANSFER) && !first.try_take(4096) && !second.try_take(4096));
        first.put(TRANSFER);
        assert!(second.try_take(TRANSFER));
    }
}
