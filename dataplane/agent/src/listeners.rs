//! Listeners.

use std::net::SocketAddr;

use crate::agent::Inner;
use crate::desired::DesiredNode;
use crate::items::{BoundListener, Key};
use crate::report::{Problem, Reason};

impl Inner {
    /// Binds a listener, changes what it tells hosts, or ends it.
    pub(crate) async fn work_listener(&self, bind: SocketAddr, desired: &DesiredNode) {
        let key = Key::Listener(bind);
        let Some(wanted) = desired.listeners.iter().find(|listener| listener.bind == bind) else {
            self.ports.exporter.unlisten(bind).await;
            let mut items = self.items.borrow_mut();
            items.listeners.remove(&bind);
            items.succeeded(&key);
            return;
        };
        match self.ports.exporter.listen(bind, wanted.advertise).await {
            Ok(endpoint) => {
                let mut items = self.items.borrow_mut();
                items.listeners.insert(bind, BoundListener { advertise: wanted.advertise, endpoint });
                items.succeeded(&key);
            }
            Err(error) => {
                let message = format!("cannot listen on {bind}: {error}");
                self.failed(key, Problem::new(Reason::ListenFailed, message));
            }
        }
    }

    /// Notes a failure and when to try again.
    pub(crate) fn failed(&self, key: Key, problem: Problem) {
        self.note_failure(key, problem, false);
    }

    /// Notes that data is lost. It is looked for again all the same: it may be on a disk that comes back.
    pub(crate) fn lost(&self, key: Key, problem: Problem) {
        self.note_failure(key, problem, true);
    }

    fn note_failure(&self, key: Key, problem: Problem, lost: bool) {
        let failures = self.items.borrow().failures_of(&key).saturating_add(1);
        let next_try = self.next_try(failures);
        self.items.borrow_mut().failed(key, problem, lost, next_try);
    }
}
