//! What lets I/O to a namespace through, in one byte.

use std::sync::atomic::{AtomicU8, Ordering};

use basalt_nvme_wire::log::AnaState;

/// A reservation is held: rights are to be looked at.
const HELD: u8 = 1 << 7;

/// A namespace's access state and whether a reservation is held: what every I/O command looks at.
#[derive(Debug)]
pub(crate) struct Gate(AtomicU8);

/// What a gate said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gauge(u8);

impl Gate {
    pub(crate) fn new(ana: AnaState) -> Self {
        Self(AtomicU8::new(ana as u8))
    }

    pub(crate) fn look(&self) -> Gauge {
        Gauge(self.0.load(Ordering::Acquire))
    }

    /// Sets the access state; answers whether it changed.
    pub(crate) fn set_ana(&self, ana: AnaState) -> bool {
        let set = |gate: u8| Some(gate & HELD | ana as u8);
        let before = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, set);
        before.is_ok_and(|gate| gate & !HELD != ana as u8)
    }

    pub(crate) fn set_held(&self, held: bool) {
        if held {
            self.0.fetch_or(HELD, Ordering::AcqRel);
        } else {
            self.0.fetch_and(!HELD, Ordering::AcqRel);
        }
    }
}

impl Gauge {
    /// Whether everybody's I/O passes.
    pub(crate) fn is_open(self) -> bool {
        self.0 == AnaState::Optimized as u8 || self.0 == AnaState::NonOptimized as u8
    }

    pub(crate) fn is_held(self) -> bool {
        self.0 & HELD != 0
    }

    pub(crate) fn ana(self) -> AnaState {
        AnaState::parse(self.0 & !HELD).unwrap_or(AnaState::Inaccessible)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_state_and_reservation_do_not_disturb_each_other() {
        let gate = Gate::new(AnaState::Optimized);
        assert!(gate.look().is_open());
        gate.set_held(true);
        assert!(!gate.look().is_open() && gate.look().is_held());
        assert!(gate.set_ana(AnaState::Change) && !gate.set_ana(AnaState::Change));
        assert_eq!((gate.look().ana(), gate.look().is_held()), (AnaState::Change, true));
        gate.set_held(false);
        assert_eq!((gate.look().ana(), gate.look().is_open()), (AnaState::Change, false));
        assert!(gate.set_ana(AnaState::NonOptimized) && gate.look().is_open());
    }
}
