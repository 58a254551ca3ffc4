//! The data plane in a world: agents, pools, volumes, NVMe/TCP and hosts, on simulated machines.

pub mod faults;
pub mod fleet;
pub mod node;
pub mod nvme;
pub mod script;
pub mod snapshots;
pub mod volume;
pub mod world;

use crate::event;
use crate::run::{Seed, Tally, Violation};
use basalt_clock::{Random, SeededRandom};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use volume::verify;
use world::World;

/// Requests that hosts make while faults strike.
const OPERATIONS: u64 = 2_400;

/// Faults that must have struck before the end.
const FAULTS: u64 = 24;

/// How long the turmoil may take.
const TURMOIL_MAX: Duration = Duration::from_secs(120);

/// How long volumes may take to be in service again after the last fault.
const RECOVERY_MAX: Duration = Duration::from_secs(120);

/// Runs the scenario.
///
/// # Errors
/// What must not happen and did.
pub fn run(seed: Seed) -> Result<Tally, Violation> {
    let mut random = SeededRandom::new(seed.0 ^ 0xda7a);
    let (nodes, hosts) = (1 + random.below(2), 1 + random.below(2));
    let count = |number| usize::try_from(number).unwrap_or(1);
    let mut world = World::new(count(nodes), count(hosts), random.fork());
    let mut disk_random = SeededRandom::new(seed.0 ^ 0xd15c);
    if disk_random.chance(1, 4) {
        world.let_disks_come_and_go(disk_random);
    }
    for number in 0..world.nodes.len() {
        world.start_node(number);
    }
    for number in 0..world.host_machines.len() {
        world.start_hosts(number);
    }
    if random.chance(1, 6) {
        troubled_beginning(&mut world, &mut random)?;
    }
    turmoil(&mut world, &mut random)?;
    calm(&mut world)?;
    all_that_is_owed(&mut world)?;
    world.restore_witnesses();
    all_that_is_owed(&mut world)?;
    verify_all(&mut world)?;
    // What is on the disks is what was read.
    for number in 0..world.nodes.len() {
        world.node_dies(number, true);
        world.start_node(number);
    }
    verify_all(&mut world)?;
    Ok(world.finish())
}

/// Power fails again and again while the pools are made.
fn troubled_beginning(world: &mut World, random: &mut SeededRandom) -> Result<(), Violation> {
    for _ in 0..4 {
        for number in 0..world.nodes.len() {
            world.beat(Duration::from_micros(200 + random.below(12_000)))?;
            world.tally.fault("power failure", 1);
            world.node_dies(number, true);
            world.start_node(number);
        }
    }
    Ok(())
}

fn turmoil(world: &mut World, random: &mut SeededRandom) -> Result<(), Violation> {
    world.budget.set(OPERATIONS);
    let end = world.now() + TURMOIL_MAX;
    for _ in 0..world.nodes.len() * 2 {
        world.change_volumes();
    }
    // In some runs volumes come and go so often that their space changes hands between two power failures.
    let (change, calmer) = if random.chance(1, 2) { (4, 30) } else { (30, 120) };
    while (world.budget.get() > 0 || world.tally.faults_total() < FAULTS) && world.now() < end {
        let length = Duration::from_micros(500 + random.below(20_000));
        world.beat(length)?;
        // Many faults in a short time, then fewer, so that hosts come to their requests.
        let pause = if world.tally.faults_total() < 4 * FAULTS { 12 } else { calmer };
        if random.chance(1, pause) {
            world.strike();
        }
        if random.chance(1, change) {
            world.change_volumes();
        }
    }
    Ok(())
}

/// Ends all faults, and all hosts.
fn calm(world: &mut World) -> Result<(), Violation> {
    event!("no more faults");
    world.fleet.world.heal_all();
    world.agenda.retain(|(_, what)| !matches!(what, world::Later::DiskAway(_) | world::Later::DiskBack(_)));
    for number in 0..world.nodes.len() {
        world.nodes[number].bring_back();
        world.agenda.push((world.now(), world::Later::DiskWorks(number)));
        world.agenda.push((world.now(), world::Later::StoreWorks(number)));
        // A pool that could not be read, or written, when it was imported is given another chance.
        world.node_dies(number, false);
        world.later(Duration::from_millis(50), world::Later::StartNode(number));
    }
    for number in 0..world.host_machines.len() {
        world.agenda.push((world.now(), world::Later::StartHosts(number)));
    }
    for used in &world.volumes {
        used.hosts.stop.set(true);
    }
    let end = world.now() + RECOVERY_MAX;
    while world.volumes.iter().any(|used| used.hosts.hosts.get() > 0) || world.agenda.len() > 1_000 {
        world.beat(Duration::from_millis(50))?;
        if world.now() > end {
            let waiting = world.volumes.iter().filter(|used| used.hosts.hosts.get() > 0);
            let waiting: Vec<u64> = waiting.map(|used| used.hosts.number).collect();
            let detail = format!("the hosts of volumes {waiting:?} do not end");
            return Err(Violation::Stuck { waited: RECOVERY_MAX, detail });
        }
    }
    Ok(())
}

/// Waits until the nodes have done all that was ordered.
fn all_that_is_owed(world: &mut World) -> Result<(), Violation> {
    let end = world.now() + RECOVERY_MAX;
    loop {
        world.beat(Duration::from_millis(20))?;
        match world.owed() {
            None => return Ok(()),
            Some(detail) if world.now() > end => {
                return Err(Violation::Stuck { waited: RECOVERY_MAX, detail });
            }
            Some(_) => {}
        }
    }
}

/// Reads all volumes, trying again until each could be read as a whole.
///
/// # Errors
/// When a volume holds what it must not, or cannot be read.
pub fn verify_all(world: &mut World) -> Result<(), Violation> {
    let end = world.now() + RECOVERY_MAX;
    for at in 0..world.volumes.len() {
        // A volume that never came into service found no room.
        if world.volumes[at].going || !world.volumes[at].seen {
            continue;
        }
        loop {
            let (hosts, node) = (Rc::clone(&world.volumes[at].hosts), world.volumes[at].node);
            let connector = world.connector(node, 5_000);
            let outcome: Rc<Cell<Option<bool>>> = Rc::default();
            world.spawn_on_hosts({
                let outcome = Rc::clone(&outcome);
                move |handle| async move { outcome.set(Some(verify(handle, hosts, connector).await)) }
            });
            while outcome.get().is_none() {
                world.beat(Duration::from_millis(20))?;
            }
            if outcome.get() == Some(true) {
                break;
            }
            if world.now() > end {
                let number = world.volumes[at].hosts.number;
                let report = world.nodes[node].report();
                let detail = format!("volume {number} cannot be read: {report:?}");
                return Err(Violation::Stuck { waited: RECOVERY_MAX, detail });
            }
            world.beat(Duration::from_millis(200))?;
        }
    }
    world.beat(Duration::from_millis(1))
}
