//! The whole cluster in one world: members drive production agents, hosts use the volumes that clients asked for.

mod body;
mod convert;

use crate::control::{self, Shape, World as Control, node_name, pool_name};
use crate::data::verify_all;
use crate::data::world::{Later, World as Data};
use crate::event;
use crate::run::{Seed, Tally, Violation};
use basalt_clock::{Random, SeededRandom};
use basalt_core::Mutation;
use basalt_lvol::id as lvol;
use basalt_model::{
    AllocationUnit, AllowedHosts, Bytes, Cores, DiskPath, HostNqn, Listener, NodeSpec, OverProvisioning,
    PoolLayout, PoolSpec, ReclaimPolicy, Selector, SnapshotName, Transport, VolumeChange, VolumeName,
    VolumeSpec, VolumeState,
};
use body::{AgentBody, Link};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Operations of clients while faults strike.
const OPERATIONS: u64 = 900;

/// Requests of hosts while faults strike.
const REQUESTS: u64 = 1_500;

/// Faults that must have struck before the end.
const FAULTS: u64 = 24;

/// Volumes that hosts use.
const VOLUMES: usize = 4;

/// How long everything may take.
const TURMOIL_MAX: Duration = Duration::from_secs(400);

/// How long the cluster may take to recover after the last fault.
const RECOVERY_MAX: Duration = Duration::from_secs(120);

/// Both halves of the cluster.
struct Cluster {
    control: Control,
    data: Data,
    links: Vec<Rc<Link>>,
}

/// Runs the scenario.
///
/// # Errors
/// What must not happen and did.
pub fn run(seed: Seed) -> Result<Tally, Violation> {
    let mut random = SeededRandom::new(seed.0 ^ 0xc105_7e12);
    let mut cluster = Cluster::new(&mut random);
    cluster.begin();
    cluster.turmoil(&mut random)?;
    cluster.calm()?;
    verify_all(&mut cluster.data)?;
    control::verify(&mut cluster.control)?;
    let mut tally = control::finish(cluster.control);
    let data = cluster.data.finish();
    tally.operations += data.operations;
    for (kind, count) in data.faults {
        tally.fault(kind, count);
    }
    Ok(tally)
}

impl Cluster {
    fn new(random: &mut SeededRandom) -> Self {
        let nodes = 2;
        let mut data = Data::new(nodes, 1, random.fork());
        data.scripted = false;
        let links: Vec<Rc<Link>> = (0..nodes).map(|_| Rc::default()).collect();
        let body = |(number, link): (usize, &Rc<Link>)| {
            let seed = SeededRandom::new(seed_of(number));
            Box::new(AgentBody::new(node_name(number), Rc::clone(link), seed)) as Box<dyn control::NodeBody>
        };
        let bodies = links.iter().enumerate().map(body).collect();
        let shape = Shape { members: 3, clients: 3, volume_names: 4, node_names: 2 };
        Self { control: control::build(shape, bodies, random), data, links }
    }

    fn begin(&mut self) {
        for number in 0..self.data.nodes.len() {
            self.data.start_node(number);
        }
        self.data.start_hosts(0);
        let specs = (0..self.data.nodes.len()).map(|number| self.spec(number)).collect();
        self.control.put_nodes(specs);
        for number in 0..VOLUMES {
            self.control.admin.queue.push_back(Mutation::CreateVolume {
                name: VolumeName::new(format!("used-{number}")).expect("a valid name"),
                uid: Some(control::uid(3)),
                adopt: None,
                spec: VolumeSpec {
                    size: Bytes((1 + number as u64) << 20),
                    replicas: 1,
                    thin: false,
                    read_only: false,
                    allowed_hosts: AllowedHosts(BTreeSet::from([HostNqn::new("*").expect("a valid name")])),
                    selector: Selector::default(),
                    reclaim: ReclaimPolicy::Delete,
                    source: None,
                },
            });
        }
        self.control.admin.queue.extend(a_life_of_snapshots());
        control::begin(&mut self.control);
    }

    fn spec(&self, number: usize) -> NodeSpec {
        let listener = self.data.scripts[number].desired.listeners[0];
        let path = |path: &String| DiskPath::new(path.clone()).expect("a valid path");
        let disks = self.data.disks[number].iter().map(path).collect();
        NodeSpec {
            address: listener.bind.ip(),
            listeners: vec![Listener {
                transport: Transport::Tcp,
                bind: listener.bind,
                advertise: listener.advertise,
            }],
            pools: BTreeMap::from([(
                pool_name(),
                PoolSpec {
                    disks,
                    labels: BTreeMap::new(),
                    over_provisioning: OverProvisioning::default(),
                    layout: PoolLayout::default(),
                    allocation_unit: AllocationUnit::default(),
                },
            )]),
            cores: Cores::Count(1),
            unschedulable: false,
        }
    }

    fn turmoil(&mut self, random: &mut SeededRandom) -> Result<(), Violation> {
        self.control.budget = OPERATIONS;
        self.data.budget.set(REQUESTS);
        control::faults_begin(&mut self.control);
        let end = self.control.now() + TURMOIL_MAX;
        let faults =
            |cluster: &Self| cluster.control.tally.faults_total() + cluster.data.tally.faults_total();
        while (self.control.budget > 0 || self.data.budget.get() > 0 || faults(self) < FAULTS)
            && self.control.now() < end
        {
            let length = Duration::from_micros(500 + random.below(20_000));
            self.beat(length)?;
            if random.chance(1, 60) {
                self.strike(random);
            }
        }
        Ok(())
    }

    /// A node loses its power, is killed, or is cut off from the hosts.
    fn strike(&mut self, random: &mut SeededRandom) {
        let number = usize::try_from(random.below(self.data.nodes.len() as u64)).unwrap_or(0);
        let off = Duration::from_millis(random.within(5..4_000));
        match random.below(4) {
            kind @ 0..3 => {
                self.data.tally.fault(if kind == 0 { "kill" } else { "power failure" }, 1);
                self.data.node_dies(number, kind != 0);
                self.links[number].report.replace(None);
                self.control.daemon_dies(number, off);
                self.data.later(off, Later::StartNode(number));
            }
            _ => self.data.block(number),
        }
    }

    /// Lets time pass on both sides.
    fn beat(&mut self, length: Duration) -> Result<(), Violation> {
        let until = self.control.now() + length;
        while self.control.scheduler.next_at().is_some_and(|next| next <= until) {
            self.control.step()?;
        }
        self.control.scheduler.advance_to(until);
        self.exchange();
        self.data.beat(length)?;
        self.exchange();
        self.use_volumes();
        Ok(())
    }

    /// Carries orders to the agents and their reports back.
    fn exchange(&mut self) {
        for (number, link) in self.links.iter().enumerate() {
            let node = &self.data.nodes[number];
            *link.report.borrow_mut() = node.report();
            if let Some(taken) = node.taken() {
                link.seen.set(link.seen.get().max(taken.revision.index));
            }
            let orders = link.orders.borrow_mut().take();
            if let Some(orders) = orders {
                if node.taken().is_some_and(|taken| *taken == orders) {
                    continue;
                }
                if node.apply(orders.clone(), |_| ()) {
                    self.data.fleet.poke(self.data.nodes[number].machine);
                } else {
                    *link.orders.borrow_mut() = Some(orders);
                }
            }
        }
    }

    /// Hosts begin to use the volumes that are in service and meant for them.
    fn use_volumes(&mut self) {
        let Some(leader) = self.control.leader() else { return };
        let Some(state) = self.control.state_of(leader) else { return };
        let ready = state.volumes().values().filter(|volume| {
            volume.name.as_str().starts_with("used-") && volume.state == VolumeState::Online
        });
        let ready: Vec<_> = ready
            .map(|volume| {
                (lvol::VolumeId(volume.id.0), volume.placement.node.clone(), volume.identity.nqn.clone())
            })
            .collect();
        for (id, node, nqn) in ready {
            if self.data.volumes.iter().all(|used| used.id != id)
                && let Some(number) = (0..self.data.nodes.len()).find(|number| node_name(*number) == node)
            {
                event!("volume {id} is in service on node {number}");
                self.data.use_volume(id, number, nqn);
            }
        }
    }

    /// Ends all faults and waits until everything is in order.
    fn calm(&mut self) -> Result<(), Violation> {
        control::faults_end(&mut self.control);
        self.data.fleet.world.heal_all();
        for number in 0..self.data.nodes.len() {
            self.data.later(Duration::ZERO, Later::StartNode(number));
        }
        let end = self.control.now() + RECOVERY_MAX;
        loop {
            // Also those of a volume that comes into service only now.
            self.data.volumes.iter().for_each(|used| used.hosts.stop.set(true));
            self.beat(Duration::from_millis(20))?;
            let waits = match self.data.volumes.iter().find(|used| used.hosts.hosts.get() > 0) {
                Some(used) => Some(format!("hosts of volume {} do not end", used.hosts.number)),
                None if self.data.volumes.len() < VOLUMES => {
                    Some("not all volumes are in service".to_owned())
                }
                None => control::unsettled(&self.control),
            };
            match waits {
                None => return Ok(()),
                Some(detail) if self.control.now() > end => {
                    return Err(Violation::Stuck { waited: RECOVERY_MAX, detail });
                }
                Some(_) => {}
            }
        }
    }
}

/// A thin volume that grows, a snapshot of it, a volume that is restored from that, and the snapshot's end: each as soon as what it
/// needs is there, while nodes and members die. No host uses these: that they come into service under every crash is the matter,
/// and that nothing of them is done twice.
fn a_life_of_snapshots() -> Vec<Mutation> {
    let thin: VolumeName = "thin".parse().expect("a valid name");
    let snapshot: SnapshotName = "snapshot".parse().expect("a valid name");
    let uid = || Some(control::uid(3));
    let spec = |mib: u64, source: Option<SnapshotName>| VolumeSpec {
        size: Bytes(mib << 20),
        replicas: 1,
        thin: true,
        read_only: false,
        allowed_hosts: AllowedHosts::default(),
        selector: Selector::default(),
        reclaim: ReclaimPolicy::Delete,
        source,
    };
    let create =
        |name: VolumeName, spec: VolumeSpec| Mutation::CreateVolume { name, uid: uid(), adopt: None, spec };
    let larger = VolumeChange { size: Some(Bytes(3 << 20)), ..VolumeChange::default() };
    vec![
        create(thin.clone(), spec(2, None)),
        Mutation::CreateSnapshot { name: snapshot.clone(), uid: uid(), volume: thin.clone(), adopt: None },
        Mutation::UpdateVolume { name: thin, uid: uid(), change: larger },
        create("restored".parse().expect("a valid name"), spec(4, Some(snapshot.clone()))),
        Mutation::DeleteSnapshot { name: snapshot, uid: uid() },
    ]
}

fn seed_of(number: usize) -> u64 {
    0x1000 + number as u64
}
