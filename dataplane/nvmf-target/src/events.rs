//! Asynchronous events of one controller (Base 5.2).

use std::collections::{BTreeSet, VecDeque};

use basalt_nvme_wire::log::AsyncEvent;
use basalt_nvmf_transport::CommandId;

/// Asynchronous Event Requests that a host may have outstanding; one more is refused (Base 5.2, AERL).
pub(crate) const REQUESTS_MAX: usize = 4;

/// Outstanding requests and the events that wait for one, or for the host to read a log page.
#[derive(Debug, Default)]
pub(crate) struct Events {
    requests: VecDeque<CommandId>,
    pending: BTreeSet<AsyncEvent>,
    /// Reported and not yet cleared by reading the page: raised again only afterwards.
    masked: BTreeSet<AsyncEvent>,
}

impl Events {
    /// Takes a request; `None` at the limit.
    pub(crate) fn request(&mut self, command: CommandId) -> Option<()> {
        if self.requests.len() >= REQUESTS_MAX {
            return None;
        }
        self.requests.push_back(command);
        Some(())
    }

    /// Takes a request back; whether it was outstanding.
    pub(crate) fn cancel(&mut self, command: CommandId) -> bool {
        let place = self.requests.iter().position(|request| *request == command);
        place.and_then(|place| self.requests.remove(place)).is_some()
    }

    /// Notes that an event happened.
    pub(crate) fn raise(&mut self, event: AsyncEvent) {
        if !self.masked.contains(&event) {
            self.pending.insert(event);
        }
    }

    /// The host read the page of `event` without retaining it.
    pub(crate) fn clear(&mut self, event: AsyncEvent) {
        self.masked.remove(&event);
        self.pending.remove(&event);
    }

    /// The next request to complete, and its event.
    pub(crate) fn next(&mut self) -> Option<(CommandId, AsyncEvent)> {
        let event = *self.pending.first()?;
        let request = self.requests.pop_front()?;
        self.pending.remove(&event);
        self.masked.insert(event);
        Some((request, event))
    }

    /// A reset forgets everything; answers the requests that were outstanding.
    pub(crate) fn reset(&mut self) -> VecDeque<CommandId> {
        std::mem::take(self).requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_reported_once_until_its_page_is_read() {
        let mut events = Events::default();
        events.raise(AsyncEvent::AnaChange);
        assert_eq!(events.next(), None, "no request yet");
        events.request(CommandId(1)).unwrap();
        events.request(CommandId(2)).unwrap();
        assert_eq!(events.next(), Some((CommandId(1), AsyncEvent::AnaChange)));
        events.raise(AsyncEvent::AnaChange);
        assert_eq!(events.next(), None, "masked until the log is read");
        events.clear(AsyncEvent::AnaChange);
        events.raise(AsyncEvent::AnaChange);
        assert_eq!(events.next(), Some((CommandId(2), AsyncEvent::AnaChange)));
    }

    #[test]
    fn requests_are_bounded_and_can_be_cancelled() {
        let mut events = Events::default();
        for id in 0..4 {
            events.request(CommandId(id)).unwrap();
        }
        assert_eq!(events.request(CommandId(9)), None);
        assert!(events.cancel(CommandId(0)));
        assert!(!events.cancel(CommandId(0)));
        events.raise(AsyncEvent::NamespaceAttributeChanged);
        assert_eq!(events.next().map(|(id, _)| id), Some(CommandId(1)));
    }
}
