//! Time and randomness as values, so that a core can be driven by a simulation as well as by a machine.
//!
//! Owns [`Instant`], the [`Clock`] and [`Random`] traits and [`SeededRandom`]. Never reads a clock of the operating system
//! and never draws entropy: drivers do that and hand the result in. Begin reading at [`Instant`]. [`fault`] holds the marks and
//! planted bugs of simulations.

pub mod fault;

mod instant;
mod random;

pub use instant::{Clock, Instant, ManualClock};
pub use random::{Random, SeededRandom};
