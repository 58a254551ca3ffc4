//! Time, seeded randomness and the fault facility.

pub mod fault;
