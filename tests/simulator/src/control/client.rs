//! Clients: what they ask for, and how what they are told becomes a history.

use crate::control::objects::{Ask, Key, Object, Owner, Seen, Token, Told, Why};
use crate::control::requests::Pending;
use crate::history::{History, OperationId};
use crate::linearize::{self, Verdict};
use crate::run::Violation;
use basalt_clock::{Random, SeededRandom};
use basalt_core::{ClientRequest, Mutation, Read, ReadResult, Reply, RequestError};
use basalt_model::{
    AllocationUnit, AllowedHosts, Bytes, Cores, HostNqn, Lifecycle, Listener, Node, NodeName, NodeSpec,
    ObjectUid, OverProvisioning, PoolLayout, PoolName, PoolSpec, Receipt, ReclaimPolicy, RequestId, Selector,
    Transport, Volume, VolumeChange, VolumeName, VolumeSpec,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Steps after which the search for an order is given up.
const STEPS_MAX: u64 = 3_000_000;

/// How the label with a node's token is called.
const TOKEN_LABEL: &str = "token";

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub number: u32,
    /// What it is waiting for.
    pub pending: Option<Pending>,
    /// The operation that it is waiting for.
    pub operation: Option<(Key, Ask, OperationId)>,
    /// How many requests it has made.
    pub made: u64,
    /// Keys that it reads at the end.
    pub last_reads: Vec<Key>,
}

/// All clients and their history.
#[derive(Debug)]
pub struct Workload {
    random: SeededRandom,
    tokens: Token,
    volume_names: u32,
    node_names: u32,
    /// What was asked and told.
    pub history: History<Key, Ask, Told>,
}

/// The name of a volume.
///
/// # Panics
/// Never: the name is valid.
pub fn volume_name(number: u32) -> VolumeName {
    VolumeName::new(format!("volume-{number}")).expect("a valid name")
}

/// The name of a node that clients put and delete.
///
/// # Panics
/// Never: the name is valid.
pub fn spare_name(number: u32) -> NodeName {
    NodeName::new(format!("spare-{number}")).expect("a valid name")
}

/// The UID of an owner.
///
/// # Panics
/// Never: the UID is valid.
pub fn uid(owner: Owner) -> ObjectUid {
    ObjectUid::new(format!("uid-{owner}")).expect("a valid uid")
}

/// The hosts that stand for a token.
fn hosts(token: Token) -> AllowedHosts {
    let host = HostNqn::new(format!("nqn.2026-01.sim:{token}")).expect("a valid name");
    AllowedHosts(BTreeSet::from([host]))
}

fn token_of(hosts: &AllowedHosts) -> Token {
    let first = hosts.0.first().and_then(|host| host.as_str().rsplit_once(':'));
    first.and_then(|(_, token)| token.parse().ok()).unwrap_or(0)
}

/// A node's specification with one pool and a token.
pub fn node_spec(pool: &PoolName, port: u16, token: Token) -> NodeSpec {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let listen = SocketAddr::new(address, port);
    let labels = BTreeMap::from([(TOKEN_LABEL.to_owned(), token.to_string())]);
    let disk = basalt_model::DiskPath::new("/dev/simulated").expect("a valid path");
    NodeSpec {
        address,
        listeners: vec![Listener { transport: Transport::Tcp, bind: listen, advertise: listen }],
        pools: BTreeMap::from([(
            pool.clone(),
            PoolSpec {
                disks: vec![disk],
                labels,
                over_provisioning: OverProvisioning::default(),
                layout: PoolLayout::default(),
                allocation_unit: AllocationUnit::default(),
            },
        )]),
        cores: Cores::Count(1),
        unschedulable: false,
    }
}

/// The name of every node's pool.
///
/// # Panics
/// Never: the name is valid.
pub fn pool_name() -> PoolName {
    PoolName::new("pool").expect("a valid name")
}

fn seen_volume(volume: &Volume) -> Seen {
    Seen {
        id: Some(volume.id),
        owner: owner_of(volume.uid.as_ref()),
        size: volume.spec.size.0,
        token: token_of(&volume.spec.allowed_hosts),
        deleting: matches!(volume.lifecycle, Lifecycle::Deleting(_)),
    }
}

fn seen_node(node: &Node) -> Seen {
    let label = node.spec.pools.values().find_map(|pool| pool.labels.get(TOKEN_LABEL));
    let token = label.and_then(|token| token.parse().ok()).unwrap_or(0);
    Seen { id: None, owner: owner_of(node.uid.as_ref()), size: 0, token, deleting: false }
}

fn owner_of(uid: Option<&ObjectUid>) -> Owner {
    let number = uid.and_then(|uid| uid.as_str().strip_prefix("uid-"));
    number.and_then(|owner| owner.parse().ok()).unwrap_or(0)
}

impl Workload {
    /// A workload on so many names.
    pub fn new(random: SeededRandom, volume_names: u32, node_names: u32) -> Self {
        Self { random, tokens: 0, volume_names, node_names, history: History::default() }
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        let volumes = (0..self.volume_names).map(Key::Volume);
        volumes.chain((0..self.node_names).map(Key::Node)).collect()
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        self.tokens
    }

    /// What some client asks for next.
    pub fn choose(&mut self) -> (Key, Ask) {
        let owner = 1 + self.random.below(8) / 7;
        let token = self.token();
        let below = |random: &mut SeededRandom, bound: u32| {
            u32::try_from(random.below(u64::from(bound))).unwrap_or(0)
        };
        if self.random.chance(1, 5) {
            let key = Key::Node(below(&mut self.random, self.node_names));
            let ask = match self.random.below(10) {
                0..4 => Ask::Read,
                4..8 => Ask::PutNode { owner, token },
                _ => Ask::DeleteNode { owner },
            };
            return (key, ask);
        }
        let key = Key::Volume(below(&mut self.random, self.volume_names));
        let ask = match self.random.below(100) {
            0..35 => Ask::Read,
            35..60 => Ask::Create { owner, size: (1 + self.random.below(12) / 5) << 20, token },
            60..82 => Ask::Update { owner, token },
            82..99 => Ask::Delete { owner },
            _ => Ask::Release { owner },
        };
        (key, ask)
    }

    /// The request for an operation.
    pub fn request(key: Key, ask: &Ask, id: RequestId) -> ClientRequest {
        let (volume, node) = match key {
            Key::Volume(number) => (volume_name(number), spare_name(0)),
            Key::Node(number) => (volume_name(0), spare_name(number)),
        };
        let mutation = match ask {
            Ask::Read => {
                return ClientRequest::Read(match key {
                    Key::Volume(_) => Read::Volume(volume),
                    Key::Node(_) => Read::Node(node),
                });
            }
            Ask::Create { owner, size, token } => Mutation::CreateVolume {
                name: volume,
                uid: Some(uid(*owner)),
                adopt: None,
                spec: VolumeSpec {
                    size: Bytes(*size),
                    replicas: 1,
                    thin: false,
                    read_only: false,
                    allowed_hosts: hosts(*token),
                    selector: Selector::default(),
                    reclaim: ReclaimPolicy::Delete,
                    source: None,
                },
            },
            Ask::Update { owner, token } => Mutation::UpdateVolume {
                name: volume,
                uid: Some(uid(*owner)),
                change: VolumeChange { allowed_hosts: Some(hosts(*token)), ..VolumeChange::default() },
            },
            Ask::Delete { owner } => Mutation::DeleteVolume { name: volume, uid: Some(uid(*owner)) },
            Ask::Release { owner } => Mutation::ReleaseVolume { name: volume, uid: Some(uid(*owner)) },
            Ask::PutNode { owner, token } => Mutation::PutNode {
                name: node,
                uid: Some(uid(*owner)),
                spec: node_spec(&pool_name(), 4420, *token),
            },
            Ask::DeleteNode { owner } => Mutation::DeleteNode { name: node, uid: Some(uid(*owner)) },
        };
        ClientRequest::Mutate { id, mutation }
    }

    /// What a final reply says about the object.
    pub fn told(reply: &Reply) -> Option<Told> {
        match reply {
            Reply::Done { receipt, .. } => Some(Told::Done(match receipt {
                Receipt::Volume { id } | Receipt::Snapshot { id } => Some(*id),
                Receipt::Done => None,
            })),
            Reply::Read { result, .. } => Some(Told::Seen(match result {
                ReadResult::Volume(volume) => volume.as_deref().map(seen_volume),
                ReadResult::Node(node) => node.as_deref().map(seen_node),
                _ => None,
            })),
            Reply::Failed(RequestError::Refused(refusal)) => Some(Told::Refused(Why::of(refusal))),
            _ => None,
        }
    }

    /// Checks the whole history.
    ///
    /// # Errors
    /// The first key whose history no order explains.
    pub fn check(&self) -> Result<(), Violation> {
        for (key, calls) in self.history.per_key() {
            match linearize::check(&Object, &calls, STEPS_MAX) {
                Verdict::Linearizable => {}
                Verdict::Violation { stuck, explained } => {
                    let call = &calls[stuck];
                    let before: Vec<String> = calls[..=stuck]
                        .iter()
                        .rev()
                        .take(8)
                        .map(|call| {
                            format!("\n    client {} {:?}: {:?}", call.client, call.operation, call.returned)
                        })
                        .collect();
                    let detail = format!(
                        "{explained} of {} operations explained; stuck at {:?} -> {:?}; the calls before, newest first: {}",
                        calls.len(),
                        call.operation,
                        call.returned,
                        before.concat()
                    );
                    return Err(Violation::NotLinearizable { key: format!("{key:?}"), detail });
                }
                Verdict::Undecided { steps } => {
                    return Err(Violation::Undecided { key: format!("{key:?}"), steps });
                }
            }
        }
        Ok(())
    }
}
