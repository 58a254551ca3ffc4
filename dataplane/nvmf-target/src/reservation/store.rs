//! Where reservations are kept through a loss of power.

use std::fmt;
use std::io;

use super::image::ImageError;
use super::state::ReservationState;

/// Why a store failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// What was saved cannot be understood.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The medium failed.
    #[error("the reservation store failed: {0}")]
    Io(io::ErrorKind),
    /// The store takes nothing more.
    #[error("the reservation store has stopped")]
    Stopped,
}

/// What is called when a save has ended: once, on any thread, also from within [`ReservationStore::save`].
pub type Saved = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Keeps the reservations of namespaces through a loss of power.
pub trait ReservationStore: Send + Sync + fmt::Debug {
    /// What was last saved for the namespace with this UUID; `None` if nothing is. For set-up: may take as long as a file takes.
    ///
    /// # Errors
    /// [`StoreError`]; the namespace is not served then.
    fn load(&self, namespace: [u8; 16]) -> Result<Option<ReservationState>, StoreError>;

    /// Begins to save a state, or to forget the saved one, and answers at once; `saved` is called when that is durable or has
    /// failed. There is at most one save of a namespace at a time. Called on reactors: must not wait.
    fn save(&self, namespace: [u8; 16], state: Option<&ReservationState>, saved: Saved);
}
