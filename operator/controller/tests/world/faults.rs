//! A process that dies at a chosen call.

use std::sync::Mutex;

/// Before or after the call has had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// Where the process dies, counted over all calls of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) call: usize,
    pub(crate) when: When,
}

/// The calls of a run.
#[derive(Debug)]
pub(crate) struct Faults {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    fault: Option<Fault>,
    calls: usize,
    dead: bool,
}

/// What a call may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Take effect and be answered.
    Answered,
    /// Take effect, and the answer reaches nobody.
    Unheard,
    /// Nothing.
    Lost,
}

impl Faults {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self { state: Mutex::new(State { fault, calls: 0, dead: false }) }
    }

    /// A dead process makes no calls.
    pub(crate) fn call(&self) -> Fate {
        let mut state = self.state.lock().unwrap();
        if state.dead {
            return Fate::Lost;
        }
        let this = state.calls;
        state.calls += 1;
        match state.fault {
            Some(fault) if fault.call == this => {
                state.dead = true;
                if fault.when == When::After { Fate::Unheard } else { Fate::Lost }
            }
            _ => Fate::Answered,
        }
    }

    pub(crate) fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state.lock().unwrap().dead
    }

    pub(crate) fn start_process(&self) {
        self.state.lock().unwrap().dead = false;
    }
}
