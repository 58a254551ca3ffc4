//! How clients begin operations and take answers.

use crate::control::client::{Workload, volume_name};
use crate::control::objects::{Ask, Key, Told};
use crate::control::requests::Pending;
use crate::control::world::{Caller, Event, World};
use crate::event;
use crate::run::Violation;
use basalt_clock::Random;
use basalt_core::{Reply, RequestError};
use basalt_model::{Refusal, RequestId};
use std::time::Duration;

/// The longest time that a client thinks before its next operation.
const THINKING_MAX: Duration = Duration::from_millis(60);

impl World {
    /// A client that waits for nothing begins its next operation, if there is one.
    pub(crate) fn client_begins(&mut self, number: u32) {
        let client = &mut self.clients[number as usize];
        let (key, ask) = match client.last_reads.pop() {
            Some(key) => (key, Ask::Read),
            None if self.budget > 0 => {
                self.budget -= 1;
                self.workload.choose()
            }
            None => return,
        };
        client.made += 1;
        let id = RequestId::new(format!("client-{number}-{}", client.made)).expect("a valid id");
        if let (Key::Volume(volume), Ask::Delete { .. }) = (key, &ask) {
            self.oracle.deletion_asked(&volume_name(volume));
        }
        event!("client {number} asks {key:?}: {ask:?}");
        self.tally.operations += 1;
        let request = Workload::request(key, &ask, id);
        let operation = self.workload.history.called(number, key, ask.clone());
        self.clients[number as usize].operation = Some((key, ask, operation));
        let pending = self.ask(Caller::Client(number), request);
        self.clients[number as usize].pending = Some(pending);
    }

    /// A client has its answer.
    pub(crate) fn client_answered(
        &mut self,
        number: u32,
        pending: &Pending,
        reply: &Reply,
    ) -> Result<(), Violation> {
        let Some((key, ask, operation)) = self.clients[number as usize].operation.take() else {
            return Ok(());
        };
        let Some(told) = Workload::told(reply) else {
            return Err(Violation::Invariant {
                invariant: "an answer fits its question",
                detail: format!("client {number} asked {key:?} {ask:?} and was told {reply:?}"),
            });
        };
        if matches!(reply, Reply::Failed(RequestError::Refused(Refusal::RequestIdReused))) {
            return Err(Violation::Invariant {
                invariant: "a request id belongs to one request",
                detail: format!("client {number} was told that its new request id was used before: {ask:?}"),
            });
        }
        event!("client {number} is told {told:?} after {} tries", pending.tries);
        if let (Reply::Done { revision, .. }, basalt_core::ClientRequest::Mutate { id, .. }) =
            (reply, &pending.request)
        {
            self.oracle.acknowledged(id, *revision)?;
        }
        if matches!(told, Told::Refused(_)) && pending.uncertain {
            self.workload.history.may_still_happen(operation);
        }
        self.workload.history.returned(operation, told);
        let thinking = u64::try_from(THINKING_MAX.as_micros()).unwrap_or(u64::MAX);
        let after = Duration::from_micros(self.random.below(thinking));
        self.scheduler.after(after, Event::Wake(Caller::Client(number), 0));
        Ok(())
    }
}
