//! One control-plane member as a state machine: time, peer messages, client requests and node messages in; messages,
//! replies and desired states out.
//!
//! It owns the sessions with the nodes' daemons and the reconciliation of the replicated state with them. It knows no
//! tokio, no tonic and no wall clock: the server (or a simulation) tells it what time it is. Begin with [`api`] and
//! [`Member`].

pub mod api;

mod compose;
mod founding;
mod history;
mod member;
mod membership;
mod peers;
mod pending;
mod queries;
mod recover;
mod refused;
mod requests;
mod sessions;

pub use api::*;
pub use member::Member;
pub use recover::{Recovered, recover};
