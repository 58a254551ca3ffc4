use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use crate::Polling;
use crate::handle::Handle;
use crate::reactor::{Reactor, ReactorOptions};
use crate::real::RealDriver;
use crate::remote::Remote;

/// Why a reactor thread did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system gave no thread.
    #[error("cannot start a reactor thread: {0}")]
    Thread(io::Error),
    /// The driver could not be made.
    #[error("cannot set up the reactor's driver: {0}")]
    Driver(io::Error),
    /// The thread cannot be bound to the core.
    #[error(
        "cannot pin a reactor to core {core}: {source}; name a core that this process may use, or do not pin"
    )]
    Pin {
        /// The core that was asked for.
        core: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// A reactor that runs on a thread of its own with the machine's driver. Stops and waits for the thread when it is dropped.
#[derive(Debug)]
pub struct ReactorThread {
    remote: Remote,
    thread: Option<JoinHandle<()>>,
}

impl ReactorThread {
    /// What other threads use to reach the reactor.
    #[must_use]
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Stops the reactor and waits for its end.
    ///
    /// # Errors
    /// The panic of the reactor's thread, if it had one.
    pub fn join(mut self) -> thread::Result<()> {
        self.remote.stop();
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }

    /// True if the thread has ended, by a stop or by a panic.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for ReactorThread {
    fn drop(&mut self) {
        self.remote.stop();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook already.
            drop(thread.join());
        }
    }
}

/// Starts a reactor on a thread named `name`, pinned to `core` if one is given. `set_up` runs on it before its first turn.
///
/// # Errors
/// If the thread, its driver or its pinning fails.
pub fn start(
    name: &str,
    core: Option<usize>,
    options: ReactorOptions,
    set_up: impl FnOnce(&Handle) + Send + 'static,
) -> Result<ReactorThread, StartError> {
    let (report, started) = mpsc::sync_channel(1);
    let body = move || {
        let mut reactor = match prepare(core, &options) {
            Ok(reactor) => reactor,
            Err(error) => {
                // The starter waits for this message; it can only be missing if the starter is gone.
                drop(report.send(Err(error)));
                return;
            }
        };
        set_up(&reactor.handle());
        if report.send(Ok(reactor.remote())).is_ok() {
            reactor.run();
        }
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StartError::Thread)?;
    match started.recv() {
        Ok(Ok(remote)) => Ok(ReactorThread { remote, thread: Some(thread) }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(StartError::Thread(io::Error::other("the thread panicked while it was set up"))),
    }
}

fn prepare(core: Option<usize>, options: &ReactorOptions) -> Result<Reactor, StartError> {
    if let Some(core) = core {
        pin(core).map_err(|source| StartError::Pin { core, source })?;
    }
    let driver = match options.polling {
        Polling::Busy => RealDriver::polling_disks(),
        Polling::Adaptive { .. } => RealDriver::new(),
    };
    let driver = driver.map_err(StartError::Driver)?;
    Ok(Reactor::new(Box::new(driver), options))
}

/// Keeps the calling thread, and every thread that it starts from now on, off `cores`; reactors pin themselves elsewhere. False, and
/// nothing is changed, where this process has no other core.
///
/// # Errors
/// What the system says.
pub fn keep_off(cores: &[usize]) -> io::Result<bool> {
    let capacity = 8 * size_of::<libc::cpu_set_t>();
    let mut allowed = affinity()?;
    for core in cores.iter().filter(|core| **core < capacity) {
        // SAFETY: `core` is within the set's bits.
        unsafe { libc::CPU_CLR(*core, &mut allowed) }
    }
    // SAFETY: the set is valid.
    if unsafe { libc::CPU_COUNT(&allowed) } == 0 {
        return Ok(false);
    }
    // SAFETY: the set is valid for its size and outlives the call.
    let set = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const allowed) };
    if set == 0 { Ok(true) } else { Err(io::Error::last_os_error()) }
}

/// The cores that reactors of this process can be pinned to, ascending: those that the calling thread may run on and that the system
/// gives when it is asked for them.
///
/// # Errors
/// What the system says.
pub fn usable_cores() -> io::Result<Vec<usize>> {
    let allowed = affinity()?;
    // A thread of its own: the caller stays where it is.
    let tried = thread::Builder::new().spawn(move || {
        (0..8 * size_of::<libc::cpu_set_t>())
            // SAFETY: `core` is within the set's bits.
            .filter(|core| unsafe { libc::CPU_ISSET(*core, &allowed) } && pin(*core).is_ok())
            .collect()
    })?;
    tried.join().map_err(|_| io::Error::other("the thread that tries the cores panicked"))
}

/// The cores that the calling thread may run on.
fn affinity() -> io::Result<libc::cpu_set_t> {
    // SAFETY: a zeroed set is a valid empty one and outlives the call.
    let mut allowed = unsafe { std::mem::zeroed::<libc::cpu_set_t>() };
    // SAFETY: the set is valid for writes of its size.
    let asked = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) };
    if asked == 0 { Ok(allowed) } else { Err(io::Error::last_os_error()) }
}

fn pin(core: usize) -> io::Result<()> {
    let capacity = 8 * size_of::<libc::cpu_set_t>();
    if core >= capacity {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a zeroed set is a valid empty one; `core` is within its bits; the set outlives the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn management_stays_off_the_cores_of_reactors() {
        let cores = || thread::available_parallelism().unwrap().get();
        // A thread of its own: affinity is inherited by what it starts.
        thread::spawn(move || {
            let before = cores();
            let all: Vec<usize> = (0..8 * size_of::<libc::cpu_set_t>()).collect();
            assert!(!keep_off(&all).unwrap(), "no core would be left");
            assert_eq!(cores(), before);
            let usable = usable_cores().unwrap();
            assert_eq!((usable.len(), cores()), (before, before), "{usable:?}");
            assert!(usable.is_sorted());
            if before > 1 {
                assert!(keep_off(&[0]).unwrap());
                assert_eq!(cores(), before - 1);
                let reactor = start("pinned", Some(0), ReactorOptions::default(), |_| {}).unwrap();
                reactor.join().unwrap();
                assert_eq!(thread::spawn(cores).join().unwrap(), before - 1);
            }
        })
        .join()
        .unwrap();
    }
}
