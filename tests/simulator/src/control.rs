//! The control plane in a world: members, clients, daemons, a watcher, an administrator, and faults.

pub mod admin;
pub mod calls;
pub mod client;
pub mod daemon;
pub mod faults;
pub mod fuse;
pub mod invariants;
pub mod links;
pub mod objects;
pub mod process;
pub mod recovery;
pub mod requests;
pub mod strangers;
pub mod watcher;
pub mod world;

pub use admin::{member_id, node_name};
pub use client::{pool_name, uid, volume_name};
pub use daemon::{Daemon, NodeBody};
pub use world::{Event, World};

use crate::drift::DriftingClock;
use crate::event;
use crate::network::{Network, Weather};
use crate::run::{Seed, Tally, Violation};
use crate::scheduler::Scheduler;
use admin::{Admin, member, short_timing, small_limits};
use basalt_clock::{Random, SeededRandom};
use basalt_core::Start;
use basalt_model::{Bytes, ClusterId, Volume, VolumeState};
use client::{Client, Workload};
use daemon::StandIn;
use invariants::Oracle;
use process::Process;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use watcher::Watcher;
use world::Caller;

/// Operations that clients begin while faults strike.
const OPERATIONS: u64 = 2_200;

/// Faults that must have struck before the end.
const FAULTS: u64 = 30;

/// How long the cluster may take to recover after the last fault.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// How long all faults and operations may take.
const TURMOIL_MAX: Duration = Duration::from_secs(1_800);

/// How large a control plane's world is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Members at the start.
    pub members: u64,
    /// Clients.
    pub clients: u32,
    /// Names of volumes.
    pub volume_names: u32,
    /// Names of nodes without a daemon.
    pub node_names: u32,
}

/// Runs the scenario.
///
/// # Errors
/// What must not happen and did.
pub fn run(seed: Seed) -> Result<Tally, Violation> {
    let mut random = SeededRandom::new(seed.0);
    let shape = Shape {
        members: [3, 3, 3, 3, 3, 3, 5, 1][usize::try_from(random.below(8)).unwrap_or(0)],
        clients: 3 + u32::try_from(random.below(6)).unwrap_or(0),
        volume_names: 4 + u32::try_from(random.below(8)).unwrap_or(0),
        node_names: 2,
    };
    let bodies = (0..3).map(|number| stand_in(number, random.fork())).collect();
    let mut world = build(shape, bodies, &mut random);
    let specs = (0..world.daemons.len()).map(|number| {
        let port = 4420 + u16::try_from(number).unwrap_or(0);
        client::node_spec(&pool_name(), port, 0)
    });
    let specs = specs.collect();
    world.put_nodes(specs);
    begin(&mut world);
    turmoil(&mut world, OPERATIONS, FAULTS)?;
    calm(&mut world)?;
    verify(&mut world)?;
    Ok(finish(world))
}

fn stand_in(number: usize, random: SeededRandom) -> Box<dyn NodeBody> {
    let port = 4420 + u16::try_from(number).unwrap_or(0);
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    Box::new(StandIn::new(node_name(number), pool_name(), Bytes(10 << 20), address, random))
}

/// A world at its beginning: nothing runs yet.
pub fn build(shape: Shape, bodies: Vec<Box<dyn NodeBody>>, random: &mut SeededRandom) -> World {
    let timing = short_timing(random);
    let admin = Admin::new(shape.members, small_limits(random), timing.clone());
    let cluster = ClusterId::from_random(u128::from(random.next_u64()));
    let ids: Vec<_> = (1..=shape.members).map(member_id).collect();
    let mut processes = BTreeMap::new();
    for id in &ids {
        let others: Vec<_> = ids.iter().copied().filter(|other| other != id).collect();
        let start = match id.get() {
            1 => Start::Bootstrap { cluster, others: others.iter().copied().map(member).collect() },
            _ => Start::Join { cluster: random.chance(1, 2).then_some(cluster) },
        };
        let config = admin.config(*id, start, others);
        processes.insert(*id, Process::new(config, DriftingClock::random(random)));
    }
    let client = |number| Client { number, pending: None, operation: None, made: 0, last_reads: Vec::new() };
    World {
        scheduler: Scheduler::new(random.fork()),
        network: Network::new(random.fork()),
        random: random.fork(),
        processes,
        clients: (0..shape.clients).map(client).collect(),
        workload: Workload::new(random.fork(), shape.volume_names, shape.node_names),
        budget: 0,
        admin,
        watcher: Watcher::default(),
        daemons: bodies.into_iter().map(Daemon::new).collect(),
        oracle: Oracle::new(random.fork()),
        tally: Tally::default(),
        faulty: false,
        majorities_to_lose: u32::try_from(random.below(3)).unwrap_or(0),
        tick: timing.tick,
        attempts: 0,
        sessions: 0,
    }
}

/// Starts everything.
pub fn begin(world: &mut World) {
    let members: Vec<_> = world.processes.keys().copied().collect();
    for member in members {
        world.restart(member);
    }
    for number in 0..world.daemons.len() {
        world.scheduler.after(Duration::from_millis(1), Event::Daemon(number));
    }
    let callers = world.clients.iter().map(|client| Caller::Client(client.number));
    for caller in callers.chain([Caller::Watcher]).collect::<Vec<_>>() {
        world.scheduler.after(Duration::from_millis(2), Event::Wake(caller, 0));
    }
}

/// From now on faults strike.
pub fn faults_begin(world: &mut World) {
    world.faulty = true;
    if world.random.chance(7, 8) {
        let weather = Weather::bad(&mut world.random);
        event!("weather {weather:?}");
        world.network.set_weather(weather);
    }
    world.scheduler.after(Duration::from_millis(500), Event::Fault);
    wake_clients(world);
}

/// Lets clients work and faults strike until there were enough of both.
fn turmoil(world: &mut World, operations: u64, faults: u64) -> Result<(), Violation> {
    world.budget = operations;
    faults_begin(world);
    let end = world.now() + TURMOIL_MAX;
    while (world.budget > 0 || world.tally.faults_total() < faults) && world.now() < end {
        world.step()?;
        if world.budget == 0 && world.tally.faults_total() < faults {
            // Not yet enough faults: the clients go on meanwhile.
            world.budget = 50;
            wake_clients(world);
        }
    }
    world.budget = 0;
    Ok(())
}

fn wake_clients(world: &mut World) {
    let callers: Vec<Caller> = world.clients.iter().map(|client| Caller::Client(client.number)).collect();
    for caller in callers {
        world.scheduler.after(Duration::from_millis(1), Event::Wake(caller, 0));
    }
}

/// No more faults strike, and clients read everything once more.
pub fn faults_end(world: &mut World) {
    event!("no more faults");
    world.faulty = false;
    world.budget = 0;
    world.network.mend();
    world.network.set_weather(Weather::CALM);
    for process in world.processes.values_mut() {
        process.disk.set_fault(None);
    }
    let keys = world.workload.keys();
    for client in &mut world.clients {
        client.last_reads = keys.clone();
    }
    wake_clients(world);
}

/// Ends all faults and waits until everybody has an answer and agrees.
fn calm(world: &mut World) -> Result<(), Violation> {
    faults_end(world);
    let end = world.now() + RECOVERY_MAX;
    let mut checks = 0_u64;
    while world.now() < end {
        world.step()?;
        checks += 1;
        if checks.is_multiple_of(64) && unsettled(world).is_none() {
            return Ok(());
        }
    }
    match unsettled(world) {
        None => Ok(()),
        Some(detail) => Err(Violation::Stuck { waited: RECOVERY_MAX, detail }),
    }
}

/// What is still under way, if anything is.
pub fn unsettled(world: &World) -> Option<String> {
    let Some(leader) = world.leader() else { return Some("nobody leads".to_owned()) };
    if let Some(client) =
        world.clients.iter().find(|client| client.pending.is_some() || !client.last_reads.is_empty())
    {
        return Some(format!("client {} waits: {:?}", client.number, client.pending));
    }
    if !world.admin.is_idle() {
        return Some(format!("the administrator waits: {:?}", world.admin.pending));
    }
    let lead = world.processes[&leader].running.as_ref()?.member.state();
    let voters = world.admin.voters.iter().filter_map(|id| world.processes.get(id));
    for process in voters {
        let Some(running) = &process.running else { return Some(format!("member {} is dead", process.id)) };
        let state = running.member.state();
        if state.revision() != lead.revision() {
            return Some(format!(
                "member {} is at {}, the leader at {}",
                process.id,
                state.revision(),
                lead.revision()
            ));
        }
    }
    if let Some(number) =
        world.daemons.iter().position(|daemon| daemon.session.is_none_or(|session| !session.welcomed))
    {
        return Some(format!("daemon {number} has no session"));
    }
    let settled = |volume: &&Volume| matches!(volume.state, VolumeState::Online | VolumeState::Released);
    if let Some(volume) = lead.volumes().values().find(|volume| !settled(volume)) {
        return Some(format!("volume {} is {:?}", volume.name, volume.state));
    }
    let there = |state: &VolumeState| matches!(state, VolumeState::Online | VolumeState::Released);
    if let Some(snapshot) = lead.snapshots().values().find(|snapshot| !there(&snapshot.state)) {
        return Some(format!("snapshot {} is {:?}", snapshot.name, snapshot.state));
    }
    if !world.watcher.is_watching() {
        return Some("the watcher does not watch".to_owned());
    }
    world.watcher.compare(lead).err()
}

/// The checks at the end.
///
/// # Errors
/// The first that fails.
pub fn verify(world: &mut World) -> Result<(), Violation> {
    let Some(leader) = world.leader() else { return Ok(()) };
    let states: Vec<_> = world
        .admin
        .voters
        .iter()
        .filter_map(|id| world.processes.get(id))
        .filter_map(|process| Some((process.id, process.running.as_ref()?.member.state().clone())))
        .collect();
    for (member, state) in &states {
        world.oracle.observe_state(*member, state)?;
    }
    if let Some((_, state)) = states.iter().find(|(member, _)| *member == leader) {
        world.oracle.nothing_lost(state)?;
    }
    world.workload.check()
}

/// What was done.
pub fn finish(mut world: World) -> Tally {
    let weather = world.network.tally();
    world.tally.fault("lost message", weather.lost);
    world.tally.fault("repeated message", weather.repeated);
    world.tally.fault("late message", weather.late);
    world.tally.simulated = world.now() - basalt_clock::Instant::ORIGIN;
    event!(
        "{} operations, {} acknowledged, {} elections, {} changes of members, {} lists and {} events of the watcher",
        world.tally.operations,
        world.oracle.acknowledgements(),
        world.oracle.elections,
        world.admin.done,
        world.watcher.lists,
        world.watcher.events
    );
    world.tally
}
