//! The reactors of this process: one per core, each with a target of its own; the first one also listens.

use std::sync::Arc;

use basalt_nvmf_target::Target;
use basalt_nvmf_tcp::{TcpTarget, TcpTargetControl, TcpTargetOptions};
use basalt_reactor::{Handle, PostError, ReactorOptions, ReactorThread, Remote, StartError, keep_off};

use crate::cores::CoreList;

/// Why the reactors did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReactorsError {
    /// A reactor did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A reactor took no message.
    #[error("a reactor takes no messages: {0}")]
    Post(#[from] PostError),
}

/// Running reactors, the first one first.
pub(crate) struct Reactors {
    threads: Vec<ReactorThread>,
}

/// How reactors are started.
#[derive(Debug, Clone)]
pub(crate) struct Start<'a> {
    /// One reactor for each.
    pub(crate) cores: &'a CoreList,
    /// Whether reactors are bound to their cores.
    pub(crate) pin: bool,
    /// Settings of each.
    pub(crate) options: ReactorOptions,
}

impl Start<'_> {
    /// Keeps this thread, and the threads that it starts, away from the reactors: to be called before any other thread is there.
    pub(crate) fn keep_management_off(&self) {
        if !self.pin {
            return;
        }
        match keep_off(self.cores.cores()) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                cores = %self.cores,
                "reactors take every core of this process: management runs on them too and costs latency"
            ),
            Err(error) => tracing::warn!(%error, "management cannot be kept off the cores of reactors"),
        }
    }
}

impl Reactors {
    /// Starts all reactors. `set_up` runs on the first one, once the others serve `target`; it gets their controls.
    pub(crate) fn start(
        start: Start<'_>,
        target: &Arc<Target>,
        set_up: impl FnOnce(&Handle, Vec<TcpTargetControl>) + Send + 'static,
    ) -> Result<Self, ReactorsError> {
        let mut threads = Vec::new();
        let mut siblings = Vec::new();
        let cores = start.cores.cores();
        let core = |index: usize| start.pin.then_some(cores[index]);
        for index in 1..cores.len() {
            let name = format!("reactor-{index}");
            let thread = basalt_reactor::start(&name, core(index), start.options.clone(), |_| {})?;
            let options = TcpTargetOptions::default();
            siblings.push(TcpTarget::start_on(thread.remote(), Arc::clone(target), options)?);
            threads.push(thread);
        }
        let set_up = move |handle: &Handle| set_up(handle, siblings);
        threads.insert(0, basalt_reactor::start("reactor-0", core(0), start.options, set_up)?);
        Ok(Self { threads })
    }

    /// What other threads use to reach them.
    pub(crate) fn remotes(&self) -> Vec<Remote> {
        self.threads.iter().map(|thread| thread.remote().clone()).collect()
    }

    /// Stops all and waits for their end; false if one had panicked.
    pub(crate) fn join(self) -> bool {
        let mut sound = true;
        for thread in self.threads {
            sound &= thread.join().is_ok();
        }
        sound
    }
}
