//! Machines with a reactor each, turned in an order that the seed decides.

use crate::run::Violation;
use basalt_clock::{Instant, Random, SeededRandom};
use basalt_reactor::sim::{NodeId, World, WorldOptions};
use basalt_reactor::{Handle, Polling, Progress, Reactor, ReactorOptions};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Turns of one machine at one instant after which it counts as spinning.
const TURNS_MAX: u32 = 200_000;

/// Memory of one reactor's buffers in bytes.
const BUFFER_BYTES: usize = 32 << 20;

/// A machine of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(pub usize);

struct Machine {
    node: NodeId,
    reactor: Option<Reactor>,
    timer: Option<Instant>,
    paused_until: Option<Instant>,
    busy: bool,
    turns: u32,
}

/// All machines of a world.
pub struct Fleet {
    /// The world that they stand in.
    pub world: World,
    machines: Vec<Machine>,
    random: SeededRandom,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("world", &self.world).finish_non_exhaustive()
    }
}

impl Fleet {
    /// A fleet without machines.
    pub fn new(options: WorldOptions, random: &mut SeededRandom) -> Self {
        let world = World::new(random.next_u64(), options);
        Self { world, machines: Vec::new(), random: random.fork() }
    }

    /// Adds a machine that is off.
    pub fn add(&mut self) -> MachineId {
        let number = u8::try_from(self.machines.len() + 1).unwrap_or(u8::MAX);
        let node = self.world.add_node(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)));
        self.machines.push(Machine {
            node,
            reactor: None,
            timer: None,
            paused_until: None,
            busy: false,
            turns: 0,
        });
        MachineId(self.machines.len() - 1)
    }

    /// The machine's place in the world.
    pub fn node(&self, machine: MachineId) -> NodeId {
        self.machines[machine.0].node
    }

    /// Starts a process with one reactor on a machine.
    ///
    /// # Panics
    /// If one runs already.
    pub fn start(&mut self, machine: MachineId) -> Handle {
        let machine = &mut self.machines[machine.0];
        assert!(machine.reactor.is_none(), "a machine runs one process");
        let options =
            ReactorOptions { polling: Polling::Busy, ring_capacity: 256, buffer_bytes: BUFFER_BYTES };
        let reactor = Reactor::new(Box::new(self.world.driver(machine.node)), &options);
        let handle = reactor.handle();
        machine.reactor = Some(reactor);
        machine.timer = None;
        machine.paused_until = None;
        machine.busy = true;
        handle
    }

    /// Whether a process runs on the machine.
    pub fn runs(&self, machine: MachineId) -> bool {
        self.machines[machine.0].reactor.is_some()
    }

    /// Ends the machine's process as SIGKILL does.
    pub fn kill(&mut self, machine: MachineId) {
        let machine = &mut self.machines[machine.0];
        self.world.kill(machine.node);
        machine.reactor = None;
    }

    /// Takes the machine's power away; [`Fleet::power_on`] gives it back.
    pub fn power_fail(&mut self, machine: MachineId) {
        let machine = &mut self.machines[machine.0];
        self.world.power_fail(machine.node);
        machine.reactor = None;
    }

    /// Gives the machine its power back.
    pub fn power_on(&mut self, machine: MachineId) {
        self.world.power_on(self.machines[machine.0].node);
    }

    /// Stops the machine's process until `until`; time goes on meanwhile.
    pub fn pause(&mut self, machine: MachineId, until: Instant) {
        self.machines[machine.0].paused_until = Some(until);
    }

    /// Makes sure that the machine is turned: something was put on its reactor from outside.
    pub fn poke(&mut self, machine: MachineId) {
        self.machines[machine.0].busy = true;
    }

    /// Turns machines until none has anything to do at this instant.
    ///
    /// # Errors
    /// When a machine does not stop.
    pub fn settle(&mut self) -> Result<(), Violation> {
        let now = self.world.now();
        for machine in &mut self.machines {
            machine.turns = 0;
        }
        loop {
            let mut ready: Vec<usize> =
                (0..self.machines.len()).filter(|index| self.is_ready(*index, now)).collect();
            if ready.is_empty() {
                return Ok(());
            }
            while !ready.is_empty() {
                let chosen = usize::try_from(self.random.below(ready.len() as u64)).unwrap_or(0);
                self.turn(ready.swap_remove(chosen))?;
            }
        }
    }

    fn is_ready(&self, index: usize, now: Instant) -> bool {
        let machine = &self.machines[index];
        machine.reactor.is_some()
            && machine.paused_until.is_none_or(|until| until <= now)
            && (machine.busy
                || machine.timer.is_some_and(|timer| timer <= now)
                || self.world.has_activity(machine.node))
    }

    fn turn(&mut self, index: usize) -> Result<(), Violation> {
        let machine = &mut self.machines[index];
        let Some(reactor) = machine.reactor.as_mut() else { return Ok(()) };
        let turn = reactor.turn();
        machine.busy = turn.progress == Progress::Busy;
        machine.timer = turn.next_timer;
        machine.turns += 1;
        if machine.turns > TURNS_MAX {
            return Err(Violation::Stuck {
                waited: Duration::ZERO,
                detail: format!("machine {index} took {TURNS_MAX} turns at one instant"),
            });
        }
        Ok(())
    }

    /// When something happens next by itself.
    pub fn next_at(&self) -> Option<Instant> {
        let now = self.world.now();
        let machines = self.machines.iter().filter(|machine| machine.reactor.is_some());
        let timers = machines.filter_map(|machine| match (machine.timer, machine.paused_until) {
            (timer, Some(until)) if until > now => Some(timer.map_or(until, |_| until)),
            (timer, _) => timer,
        });
        timers.chain(self.world.next_event()).min()
    }

    /// Lets time pass until `at`, at which every machine is settled.
    ///
    /// # Errors
    /// As for [`Fleet::settle`].
    pub fn run_until(&mut self, at: Instant) -> Result<(), Violation> {
        self.settle()?;
        while let Some(next) = self.next_at().filter(|next| *next <= at) {
            self.world.advance_to(next.max(self.world.now()));
            self.settle()?;
        }
        self.world.advance_to(at);
        self.settle()
    }
}
