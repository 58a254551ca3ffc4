//! What follows from what comes: the agent gets each desired state, and readiness shows how that went.

use std::future::pending;
use std::time::Duration;

use basalt_agent::{Agent, DesiredNode, NodeReport, PoolCounts, Reason, Refused};
use basalt_reactor::Handle;
use basalt_telemetry::Readiness;
use tokio::sync::{oneshot, watch};

use super::session::SessionState;

/// Time until a desired state that could not be kept is tried again; doubles with each failure.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// How often it is looked at how full the pools are.
const USAGE_INTERVAL: Duration = Duration::from_secs(2);
/// The longest time until it is tried again.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Gives the agent each desired state that comes. One that could not be kept is given again until it is, or until another takes its
/// place. Runs on the reactor; ends when the daemon stops, and what is exported stays exported until the reactor ends.
pub(crate) async fn desired(
    handle: &Handle,
    agent: &Agent,
    mut desired: watch::Receiver<Option<DesiredNode>>,
) {
    let mut backoff = None;
    loop {
        match next(handle, &mut desired, backoff).await {
            Next::End => return,
            Next::Another => backoff = None,
            Next::Again => {}
        }
        let Some(newest) = desired.borrow_and_update().clone() else { continue };
        let revision = newest.revision;
        backoff = match agent.apply(newest).await {
            Ok(()) => {
                if backoff.is_some() {
                    tracing::info!(%revision, "the desired state is kept now");
                }
                None
            }
            Err(error @ Refused::NotKept(_)) => {
                if backoff.is_none() {
                    tracing::error!(%revision, %error, "a desired state is not put into effect; it is tried again");
                }
                Some(backoff.map_or(RETRY_MIN, |last: Duration| (last * 2).min(RETRY_MAX)))
            }
            Err(error) => {
                tracing::error!(%revision, %error, "a desired state was refused");
                None
            }
        };
    }
}

/// Tells what is counted of the pools, every few seconds. Runs on the reactor for as long as that does.
pub(crate) async fn pools(handle: Handle, agent: Agent, counts: watch::Sender<Vec<PoolCounts>>) {
    loop {
        counts.send_replace(agent.pool_counts());
        handle.sleep(USAGE_INTERVAL).await;
    }
}

/// Prepares the agent for the end of the daemon once that is asked for, and says so.
pub(crate) async fn end(agent: Agent, to_end: oneshot::Receiver<oneshot::Sender<()>>) {
    if let Ok(prepared) = to_end.await {
        agent.prepare_for_end().await;
        // Who asked waits for so long only, and may have gone.
        prepared.send(()).ok();
    }
}

/// What there is to do.
enum Next {
    /// Another desired state came.
    Another,
    /// It is time to try the last one again.
    Again,
    /// None can come any more.
    End,
}

async fn next(
    handle: &Handle,
    desired: &mut watch::Receiver<Option<DesiredNode>>,
    backoff: Option<Duration>,
) -> Next {
    let again = async {
        let Some(backoff) = backoff else { return pending().await };
        let quarter = u64::try_from(backoff.as_nanos() / 4).unwrap_or(u64::MAX).max(1);
        // Up to a quarter earlier, so that nodes do not try in step.
        handle.sleep(backoff - Duration::from_nanos(handle.random_u64() % quarter)).await;
    };
    tokio::select! {
        changed = desired.changed() => if changed.is_ok() { Next::Another } else { Next::End },
        () = again => Next::Again,
    }
}

/// Ready when the control plane was heard and everything of the newest desired state was tried.
pub(crate) async fn readiness(
    readiness: Readiness,
    mut states: watch::Receiver<SessionState>,
    mut reports: watch::Receiver<Option<NodeReport>>,
) {
    let control = readiness.gate("control-plane", "no session yet");
    let settled = readiness.gate("desired-state", "not tried yet");
    loop {
        match &*states.borrow_and_update() {
            SessionState::Connected { .. } => control.open(),
            SessionState::Disconnected(reason) => control.close(reason.clone()),
        }
        match unsettled(reports.borrow_and_update().as_ref()) {
            None => settled.open(),
            Some(reason) => settled.close(reason),
        }
        let ended = tokio::select! {
            changed = states.changed() => changed.is_err(),
            changed = reports.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

/// Why the newest desired state is not in effect, as far as that is not a matter of a pool or a volume.
fn unsettled(report: Option<&NodeReport>) -> Option<String> {
    let problems = report.map_or(&[][..], |report| &report.problems);
    if let Some(problem) = problems.iter().find(|problem| problem.reason == Reason::StateNotKept) {
        return Some(problem.message.clone());
    }
    match report {
        Some(report) if report.settled => None,
        _ => Some("pools and volumes are still being brought up".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io;
    use std::net::SocketAddr;
    use std::rc::Rc;
    use std::sync::Arc;

    use basalt_agent::{
        AgentConfig, DiskOpener, Export, ExportError, Exporter, LocalFuture, Ports, Reporter, StateStore,
        StoreError,
    };
    use basalt_bdev::BlockDevice;
    use basalt_lvol::id::VolumeId;
    use basalt_reactor::sim::{World, WorldOptions};
    use basalt_reactor::{DiskError, Reactor, ReactorOptions, SocketError};

    use super::*;
    use crate::node::store::tests::desired as state;

    /// A data directory that is full for a while, and what was kept in it.
    #[derive(Default)]
    struct Directory {
        full: Cell<bool>,
        tries: Cell<u32>,
        kept: RefCell<Option<DesiredNode>>,
        reports: RefCell<Vec<NodeReport>>,
    }

    struct Port(Rc<Directory>);

    impl StateStore for Port {
        fn load(&self) -> LocalFuture<Result<Option<DesiredNode>, StoreError>> {
            Box::pin(async { Ok(None) })
        }

        fn save(&self, desired: &DesiredNode) -> LocalFuture<Result<(), StoreError>> {
            self.0.tries.set(self.0.tries.get() + 1);
            if self.0.full.get() {
                return Box::pin(async { Err(StoreError::Io(io::ErrorKind::StorageFull.into())) });
            }
            *self.0.kept.borrow_mut() = Some(desired.clone());
            Box::pin(async { Ok(()) })
        }
    }

    impl Reporter for Port {
        fn report(&self, report: &NodeReport) {
            self.0.reports.borrow_mut().push(report.clone());
        }
    }

    impl DiskOpener for Port {
        fn open(&self, _: &str) -> LocalFuture<Result<Arc<dyn BlockDevice>, DiskError>> {
            Box::pin(async { Err(DiskError::NotFound) })
        }
    }

    impl Exporter for Port {
        fn export(&self, _: Export) -> LocalFuture<Result<(), ExportError>> {
            Box::pin(async { Ok(()) })
        }

        fn withdraw(&self, _: VolumeId) -> LocalFuture<Result<(), ExportError>> {
            Box::pin(async { Ok(()) })
        }

        fn listen(&self, bind: SocketAddr, _: SocketAddr) -> LocalFuture<Result<SocketAddr, SocketError>> {
            Box::pin(async move { Ok(bind) })
        }

        fn unlisten(&self, _: SocketAddr) -> LocalFuture<()> {
            Box::pin(async {})
        }
    }

    /// Runs on a reactor of a simulated world, with a daemon that follows what is sent.
    fn run<F: Future<Output = ()> + 'static>(
        test: impl FnOnce(Handle, Rc<Directory>, watch::Sender<Option<DesiredNode>>) -> F + 'static,
    ) {
        let world = World::new(1, WorldOptions::default());
        let node = world.add_node([10, 0, 0, 1].into());
        let options = ReactorOptions { buffer_bytes: 8 << 20, ..ReactorOptions::default() };
        let mut reactor = Reactor::new(Box::new(world.driver(node)), &options);
        let handle = reactor.handle();
        let task = handle.clone().spawn(async move {
            let directory = Rc::<Directory>::default();
            let port = || Rc::new(Port(Rc::clone(&directory)));
            let ports = Ports { disks: port(), exporter: port(), store: port(), reporter: port() };
            let agent = Agent::start(&handle, AgentConfig::default(), ports).await.unwrap();
            let (send, receive) = watch::channel(None);
            let follower = handle.clone();
            drop(handle.spawn(async move { desired(&follower, &agent, receive).await }));
            test(handle, directory, send).await;
        });
        for _ in 0..1_000_000 {
            let turn = reactor.turn();
            if task.is_done() {
                return;
            }
            if let Some(next) = turn.next_timer.into_iter().chain(world.next_event()).min()
                && turn.progress == basalt_reactor::Progress::Idle
            {
                world.advance_to(next.max(world.now()));
            }
        }
        panic!("no progress");
    }

    #[test]
    fn a_state_that_could_not_be_kept_is_tried_until_it_is() {
        run(async |handle, directory, states| {
            directory.full.set(true);
            states.send_replace(Some(state(1)));
            handle.sleep(Duration::from_secs(60)).await;
            let tries = directory.tries.get();
            assert!((10..40).contains(&tries), "{tries} tries in a minute");
            let reason = unsettled(directory.reports.borrow().last()).unwrap();
            assert!(reason.contains("data directory"), "{reason}");
            directory.full.set(false);
            handle.sleep(RETRY_MAX).await;
            assert_eq!(*directory.kept.borrow(), Some(state(1)), "nothing else had to change");
            assert_eq!(unsettled(directory.reports.borrow().last()), None);
        });
    }

    #[test]
    fn a_newer_state_takes_the_place_of_one_that_could_not_be_kept() {
        run(async |handle, directory, states| {
            directory.full.set(true);
            states.send_replace(Some(state(1)));
            handle.sleep(Duration::from_secs(60)).await;
            directory.full.set(false);
            states.send_replace(Some(state(2)));
            handle.sleep(Duration::from_millis(1)).await;
            assert_eq!(*directory.kept.borrow(), Some(state(2)), "it is tried at once");
            handle.sleep(Duration::from_secs(60)).await;
            assert_eq!(*directory.kept.borrow(), Some(state(2)));
        });
    }
}
