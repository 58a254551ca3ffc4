//! Reservations (Base 7.2 to 7.5, 8.19; docs/reservations.md).
//!
//! [`state`] is pure: who may do what, and what a command changes. [`shared`] makes it one namespace's, shared between
//! reactors and kept by a [`ReservationStore`]. How commands of preempted hosts end is in [`crate::abort`].

mod image;
mod queue;
mod report;
mod shared;
mod state;
mod store;
#[cfg(test)]
mod tests;

pub use image::ImageError;
pub(crate) use queue::{Access, KnownRights, Pending, begin};
pub(crate) use report::report;
pub(crate) use shared::{Outcome, Reservations, Ticket};
pub(crate) use state::Command;
pub use state::ReservationState;
pub use store::{ReservationStore, Saved, StoreError};
