//! A small deterministic world: members on disks in memory, a network that delays and drops, clients and daemons by hand.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test world: a failure here is a failed test")]

use basalt_clock::{Instant, Random, SeededRandom};
use basalt_core::*;
use basalt_model::*;
use basalt_raft::{CrashStyle, MemoryDisk, PeerMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub fn member_id(id: u64) -> MemberId {
    MemberId::new(id).unwrap()
}

pub fn cluster_id() -> ClusterId {
    ClusterId::from_random(0xba5a17)
}

pub fn listed(id: u64) -> basalt_model::Member {
    basalt_model::Member {
        id: member_id(id),
        disk: None,
        replaces: None,
        peer_address: format!("peer-{id}:1"),
        api_address: format!("api-{id}:1"),
        supports: FeatureLevel::SUPPORTED,
        version: "test".to_owned(),
    }
}

pub struct World {
    pub now: Instant,
    pub random: SeededRandom,
    pub members: BTreeMap<u64, basalt_core::Member<MemoryDisk>>,
    pub disks: BTreeMap<u64, MemoryDisk>,
    pub configs: BTreeMap<u64, Config>,
    pub network: BTreeMap<(Instant, u64), PeerMessage>,
    pub sent: u64,
    /// Of a thousand messages, how many are lost.
    pub drop_per_mille: u64,
    /// Members that nobody reaches.
    pub cut_off: BTreeSet<u64>,
    pub replies: BTreeMap<ReplyTo, Reply>,
    pub next_reply: u64,
    pub to_nodes: Vec<(u64, SessionId, ToNode)>,
    pub events: BTreeMap<u64, Vec<Event>>,
    pub hash: u64,
}

impl World {
    /// Members 1 to `size`; 1 bootstraps, the others join.
    pub fn new(seed: u64, size: u64) -> Self {
        let mut world = Self {
            now: Instant::from_nanos(1_000_000_000),
            random: SeededRandom::new(seed),
            members: BTreeMap::new(),
            disks: BTreeMap::new(),
            configs: BTreeMap::new(),
            network: BTreeMap::new(),
            sent: 0,
            drop_per_mille: 0,
            cut_off: BTreeSet::new(),
            replies: BTreeMap::new(),
            next_reply: 0,
            to_nodes: Vec::new(),
            events: BTreeMap::new(),
            hash: 0,
        };
        for id in 1..=size {
            let start = if id == 1 {
                Start::Bootstrap { cluster: cluster_id(), others: (2..=size).map(listed).collect() }
            } else {
                Start::Join { cluster: Some(cluster_id()) }
            };
            world.add(id, start, (1..=size).collect());
        }
        world
    }

    pub fn add(&mut self, id: u64, start: Start, peers: Vec<u64>) {
        let limits = Limits {
            snapshot_entries: 40,
            segment_bytes: 16 << 10,
            chunk_bytes: 700,
            history: 50,
            ..Limits::default()
        };
        let config = Config {
            member: listed(id),
            start,
            peers: peers.into_iter().filter(|peer| *peer != id).map(member_id).collect(),
            timing: Timing::default(),
            limits,
        };
        self.configs.insert(id, config);
        self.start_empty(id);
    }

    pub fn now(&self) -> Now {
        Now { monotonic: self.now, wall: Timestamp(self.now.as_nanos() / 1_000_000) }
    }

    pub fn start(&mut self, id: u64) -> Result<(), Fatal> {
        let seed = self.random.next_u64();
        let member =
            basalt_core::Member::open(self.configs[&id].clone(), self.disks[&id].clone(), self.now(), seed)?;
        self.members.insert(id, member);
        Ok(())
    }

    /// Starts a member whose disk was lost, as it was started before.
    pub fn start_empty(&mut self, id: u64) {
        self.members.remove(&id);
        // Connections end with the process.
        self.network.retain(|_, message| message.to != member_id(id));
        self.disks.insert(id, MemoryDisk::new());
        self.start(id).unwrap();
    }

    /// Power loss.
    pub fn crash(&mut self, id: u64, style: CrashStyle) {
        self.members.remove(&id);
        self.disks[&id].crash(style);
    }

    pub fn step(&mut self) {
        self.now += Duration::from_millis(10);
        let due: Vec<_> = self.network.range(..(self.now, 0)).map(|(key, _)| *key).collect();
        for key in due {
            let message = self.network.remove(&key).unwrap();
            if let Some(member) = self.members.get_mut(&message.to.get()) {
                member.peer_message(message);
            }
        }
        let now = self.now();
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            let member = self.members.get_mut(&id).unwrap();
            member.tick(now);
            let outputs = member.take_outputs().unwrap_or_else(|error| panic!("member {id}: {error}"));
            self.take(id, outputs);
        }
    }

    fn take(&mut self, id: u64, outputs: Outputs) {
        for message in outputs.peers {
            self.sent += 1;
            self.hash = self.hash.wrapping_mul(31).wrapping_add(message.to.get() ^ self.now.as_nanos());
            let lost = self.random.below(1000) < self.drop_per_mille
                || self.cut_off.contains(&id)
                || self.cut_off.contains(&message.to.get());
            let delay = Duration::from_micros(self.random.within(100..30_000));
            if !lost {
                self.network.insert((self.now + delay, self.sent), message);
            }
        }
        for (reply_to, reply) in outputs.replies {
            assert!(self.replies.insert(reply_to, reply).is_none(), "a request was answered twice");
        }
        self.to_nodes.extend(outputs.nodes.into_iter().map(|(session, message)| (id, session, message)));
        self.events.entry(id).or_default().extend(outputs.events);
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..6_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        for member in self.members.values() {
            eprintln!("{:?} {:?}", member.status(), member.membership());
        }
        panic!("not reached within 60 s: {what}");
    }

    pub fn leader(&self) -> Option<u64> {
        let lead = |(id, member): (&u64, &basalt_core::Member<MemoryDisk>)| {
            let status = member.status();
            (status.role == Role::Leader).then_some((status.term, *id))
        };
        self.members.iter().filter_map(lead).max().map(|(_, id)| id)
    }

    pub fn wait_leader(&mut self) -> u64 {
        self.run_until("a leader", |world| world.leader().is_some());
        self.leader().unwrap()
    }

    /// All members that run are voters and have applied the same.
    pub fn wait_settled(&mut self, voters: usize) {
        self.run_until("all voters in step", |world| {
            let roles: Vec<_> = world.members.values().map(|member| member.status()).collect();
            roles.len() >= voters
                && roles.iter().filter(|s| matches!(s.role, Role::Leader | Role::Follower)).count() == voters
                && roles.iter().filter(|s| s.role == Role::Leader).count() == 1
                && roles.iter().all(|s| s.role == Role::Waiting || s.applied == roles[0].applied)
        });
    }

    pub fn ask(&mut self, id: u64, request: ClientRequest) -> ReplyTo {
        self.next_reply += 1;
        let reply_to = ReplyTo(self.next_reply);
        match self.members.get_mut(&id) {
            Some(member) => member.request(request, reply_to),
            None => {
                self.replies.insert(reply_to, Reply::Failed(RequestError::Stopped));
            }
        }
        reply_to
    }

    pub fn wait_reply(&mut self, reply_to: ReplyTo) -> Reply {
        self.run_until("a reply", |world| world.replies.contains_key(&reply_to));
        self.replies.remove(&reply_to).unwrap()
    }

    /// Sends a mutation to whoever leads until it is done or refused.
    pub fn mutate(&mut self, key: &str, mutation: Mutation) -> Result<(Revision, Receipt), Refusal> {
        for _ in 0..200 {
            let leader = self.wait_leader();
            let id = RequestId::new(key).unwrap();
            let reply_to = self.ask(leader, ClientRequest::Mutate { id, mutation: mutation.clone() });
            match self.wait_reply(reply_to) {
                Reply::Done { revision, receipt } => return Ok((revision, receipt)),
                Reply::Failed(RequestError::Refused(refusal)) => return Err(refusal),
                Reply::Failed(_) => self.run(Duration::from_millis(50)),
                other => panic!("unexpected {other:?}"),
            }
        }
        panic!("{key} is not taken");
    }

    pub fn read(&mut self, id: u64, read: Read) -> (Revision, ReadResult) {
        for _ in 0..200 {
            let reply_to = self.ask(id, ClientRequest::Read(read.clone()));
            match self.wait_reply(reply_to) {
                Reply::Read { revision, result } => return (revision, result),
                Reply::Failed(_) => self.run(Duration::from_millis(50)),
                other => panic!("unexpected {other:?}"),
            }
        }
        panic!("no answer to {read:?}");
    }

    pub fn say(&mut self, id: u64, session: u64, message: NodeMessage) {
        if let Some(member) = self.members.get_mut(&id) {
            member.node_message(SessionId(session), message);
        }
    }

    /// What a member said in a session since the last look.
    pub fn heard(&mut self, session: u64) -> Vec<ToNode> {
        let (ours, others) =
            std::mem::take(&mut self.to_nodes).into_iter().partition(|(_, id, _)| *id == SessionId(session));
        self.to_nodes = others;
        let ours: Vec<(u64, SessionId, ToNode)> = ours;
        ours.into_iter().map(|(_, _, message)| message).collect()
    }
}

pub fn node_name(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

pub fn put_node(name: &str) -> Mutation {
    let pool = PoolSpec {
        disks: vec![DiskPath::new("/disk").unwrap()],
        labels: BTreeMap::new(),
        over_provisioning: OverProvisioning::default(),
        layout: PoolLayout::default(),
        allocation_unit: AllocationUnit::default(),
    };
    Mutation::PutNode {
        name: node_name(name),
        uid: Some(ObjectUid::new(format!("uid-{name}")).unwrap()),
        spec: NodeSpec {
            address: "127.0.0.1".parse().unwrap(),
            listeners: vec![Listener {
                transport: Transport::Tcp,
                bind: "127.0.0.1:4420".parse().unwrap(),
                advertise: "127.0.0.1:4420".parse().unwrap(),
            }],
            pools: BTreeMap::from([(PoolName::new("p").unwrap(), pool)]),
            cores: Cores::Count(1),
            unschedulable: false,
        },
    }
}

pub fn create_volume(name: &str, mib: u64) -> Mutation {
    Mutation::CreateVolume {
        name: VolumeName::new(name).unwrap(),
        uid: Some(ObjectUid::new(format!("uid-{name}")).unwrap()),
        adopt: None,
        spec: VolumeSpec {
            size: Bytes(mib << 20),
            replicas: 1,
            thin: false,
            read_only: false,
            allowed_hosts: AllowedHosts::default(),
            selector: Selector::default(),
            reclaim: ReclaimPolicy::Delete,
            source: None,
        },
    }
}

pub fn hello(node: &str, instance: u128) -> NodeMessage {
    NodeMessage::Hello(Hello {
        cluster: None,
        node: node_name(node),
        instance: InstanceId::from_random(instance),
        boot: BootId::from_random(1),
        version_min: NODE_PROTOCOL.0,
        version_max: NODE_PROTOCOL.1,
        features: BTreeSet::new(),
        revision: Revision(0),
    })
}

pub fn observed(mib: u64) -> NodeObserved {
    let pool = PoolObserved {
        id: Some(PoolId::from_random(5)),
        health: PoolHealth::Online,
        capacity: Bytes(mib << 20),
        used: Bytes(0),
        allocation_unit: Bytes(1 << 20),
        disks: BTreeMap::new(),
        problem: None,
    };
    NodeObserved {
        version: "1".to_owned(),
        pools: BTreeMap::from([(PoolName::new("p").unwrap(), pool)]),
        ..NodeObserved::default()
    }
}

pub fn full_report(mib: u64) -> Report {
    Report { full: true, observed: Some(observed(mib)), volumes: BTreeMap::new(), deleted: BTreeMap::new() }
}

pub fn online(desired: &DesiredNode) -> BTreeMap<VolumeId, VolumeObserved> {
    let path = PathObserved {
        node: desired.node.clone(),
        address: "127.0.0.1:4420".parse().unwrap(),
        ana: AnaState::Optimized,
    };
    let seen = |volume: &DesiredVolume| VolumeObserved {
        health: VolumeHealth::Online,
        size: volume.size,
        generation: volume.generation,
        allocated: None,
        shortfall: None,
        paths: vec![path.clone()],
    };
    desired.volumes.iter().map(|volume| (volume.id, seen(volume))).collect()
}
