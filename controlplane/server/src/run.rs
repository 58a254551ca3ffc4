//! A member from its start to its end.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use basalt_core::{
    ClientRequest, Fatal, Founding, Limits, Member, Recovered, Reply, Role, Start, Status, Timing,
};
use basalt_identity::{Credentials, Identity, IdentityError, Security};
use basalt_model::{ClusterId, FeatureLevel};
use basalt_proto::{
    FILE_DESCRIPTOR_SET, api::control_plane_server::ControlPlaneServer,
    membership::membership_server::MembershipServer, node::node_session_server::NodeSessionServer,
    peer::peer_server::PeerServer,
};
use basalt_raft::{DirectoryDisk, DiskError, PeerRefusal};
use basalt_telemetry::{Exporter, ExporterConfig, ExporterError, Gate, LogsError, Readiness};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    api::ControlPlaneService,
    config::{Addresses, Config, ConfigError, SecurityConfig},
    driver::{self, About, Answer, Clock, Driver, Input},
    edge::Edge,
    gauges,
    guard::GuardLayer,
    listen::{self, ListenError},
    membership::MembershipService,
    peers::{self, Inbound, PeerService, Peers},
    sessions::NodeSessionService,
};

/// How often certificate files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a leader that is told to stop waits for another one to take over.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// The file that binds a data directory to the cluster's name.
const CLUSTER_FILE: &str = "cluster-name";

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Logs(#[from] LogsError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the certificate is for {found}; this process is {expected}")]
    OtherIdentity { found: Box<Identity>, expected: Box<Identity> },
    #[error(
        "{} belongs to a member of cluster {found:?}, this is {expected:?}; give this member its own directory",
        path.display()
    )]
    OtherCluster { path: PathBuf, found: String, expected: String },
    #[error("cannot use {}: {source}", path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Member(#[from] Fatal),
    #[error("the other members refuse this one: {refusal}; {remedy}")]
    Refused { refusal: PeerRefusal, remedy: &'static str },
    #[error(transparent)]
    Metrics(#[from] ExporterError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("a server ended: {0}")]
    Server(#[from] tonic::transport::Error),
    #[error("cannot set up threads or signals: {0}")]
    System(#[source] io::Error),
    #[error("the member's thread ended without a word (a panic is in the log)")]
    Thread,
}

/// Runs a member until it is told to stop or cannot go on.
pub(crate) fn run(config: &Config) -> Result<(), Failure> {
    let readiness = Readiness::new();
    let gate = readiness.gate("member", "the log is being opened");
    let shared = Arc::new(OnceLock::new());
    let exporter = ExporterConfig {
        listen: config.metrics_listen,
        process: "basalt-control",
        version: env!("CARGO_PKG_VERSION"),
    };
    let collector = gauges::collector(Arc::clone(&shared), log_dir(config));
    let exporter = Exporter::start_with(&exporter, readiness, collector)?;
    gauges::describe();
    tracing::info!(address = %exporter.address(), "serving metrics");

    let security = security(config)?;
    let disk = open_disk(config)?;
    let clock = Clock::new();
    let core = core_config(config);
    let tick = core.timing.tick;
    let member = Member::open(core, disk, clock.now(), seed())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("edge")
        .enable_all()
        .build()
        .map_err(Failure::System)?;
    runtime.block_on(serve(config, security, member, clock, tick, &shared, &gate))
}

/// Begins a new incarnation of the cluster with this member's disk alone.
pub(crate) fn recover(config: &Config) -> Result<Recovered, Failure> {
    let disk = open_disk(config)?;
    Ok(basalt_core::recover(&core_config(config), disk, Clock::new().now().wall, seed())?)
}

async fn serve(
    config: &Config,
    security: Security,
    member: Member<DirectoryDisk>,
    clock: Clock,
    tick: Duration,
    shared: &OnceLock<Driver>,
    gate: &Gate,
) -> Result<(), Failure> {
    // Listens before the member runs: a port that is taken must not cost an election.
    let api_connections = listen::listen(config.api_listen, "clients and daemons", security.clone()).await?;
    let peer_connections = listen::listen(config.peer_listen, "other members", security.clone()).await?;
    if let Security::Tls(credentials) = &security {
        tokio::spawn(Arc::clone(credentials).follow_files(CERTIFICATE_INTERVAL));
    }
    let handle = tokio::runtime::Handle::current();
    let peer_security = security.clone();
    let inbound = Inbound::default();
    let refusals = inbound.clone();
    let (driver, ended) =
        driver::start(member, clock, tick, config.peers.clone(), move |addresses, inputs| {
            Peers::new(handle, addresses, peer_security, refusals, inputs)
        })
        .map_err(Failure::System)?;
    // Set once, here.
    let driver = shared.get_or_init(|| driver).clone();
    tracing::info!(member = %config.member, api = %config.api_listen, peers = %config.peer_listen, "member runs");

    let edge = Edge::new(driver.clone(), &config.cluster, security.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| Failure::System(io::Error::other(error)))?;
    let server = || {
        Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .layer(GuardLayer::new(security.clone(), driver.status()))
    };
    let api = server()
        .add_service(ControlPlaneServer::new(ControlPlaneService::new(edge.clone())))
        .add_service(MembershipServer::new(MembershipService::new(edge)))
        .add_service(
            NodeSessionServer::new(NodeSessionService::new(driver.clone()))
                .max_decoding_message_size(peers::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(peers::MESSAGE_BYTES_MAX),
        )
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming(api_connections);
    let peer = server()
        .add_service(
            PeerServer::new(PeerService::new(driver.clone(), inbound))
                .max_decoding_message_size(peers::MESSAGE_BYTES_MAX),
        )
        .serve_with_incoming(peer_connections);
    tokio::select! {
        served = api => served.map_err(Failure::from),
        served = peer => served.map_err(Failure::from),
        end = ended => end_of(end),
        refused = follow_status(driver.status(), gate, &health) => Err(refused),
        asked = asked_to_stop() => {
            asked?;
            tracing::info!("told to stop");
            hand_over(&driver).await;
            if let Err(refused) = driver.send(Input::Stop) {
                tracing::debug!(%refused, "the member's thread was not told to stop");
            }
            Ok(())
        }
    }
}

fn end_of(end: Result<Result<(), Fatal>, oneshot::error::RecvError>) -> Result<(), Failure> {
    end.map_err(|_| Failure::Thread)?.map_err(Failure::from)
}

/// Keeps readiness and health at what the member is. Returns when the other members refuse it for good, whatever it believes to
/// be: with the process end its listeners.
async fn follow_status(mut status: watch::Receiver<Status>, gate: &Gate, health: &HealthReporter) -> Failure {
    let mut logged = None;
    loop {
        let now = status.borrow_and_update().clone();
        let told = status_words(&now);
        if logged.as_ref() != Some(&told) {
            tracing::info!("{told}");
            logged = Some(told);
        }
        if let Some(refusal) = now.refused
            && let Some(remedy) = remedy(refusal)
        {
            return Failure::Refused { refusal, remedy };
        }
        let serving = match waits_for(&now) {
            Some(reason) => {
                gate.close(reason);
                ServingStatus::NotServing
            }
            None => {
                gate.open();
                ServingStatus::Serving
            }
        };
        health.set_service_status("", serving).await;
        if status.changed().await.is_err() {
            // The thread has ended; its last word comes another way.
            return std::future::pending().await;
        }
    }
}

/// What a member is, for its log.
fn status_words(status: &Status) -> String {
    let role = match status.role {
        Role::Waiting => "waits to be part of a cluster",
        Role::Learner => "learns and does not vote",
        Role::Follower => "follows",
        Role::Candidate => "asks for votes",
        Role::Leader => "leads",
    };
    let leader = match status.leader {
        Some(leader) if leader == status.id => String::new(),
        Some(leader) => format!(", member {leader} leads"),
        None => ", no leader is known".to_owned(),
    };
    let waits = match status.role {
        Role::Waiting => waits_for(status).map(|reason| format!(": {reason}")),
        Role::Learner | Role::Follower | Role::Candidate | Role::Leader => {
            status.refused.map(|refusal| format!("; the other members refuse it: {refusal}"))
        }
    };
    format!("this member {role} in term {}{leader}{}", status.term, waits.unwrap_or_default())
}

fn waits_for(status: &Status) -> Option<String> {
    if let Some(refusal) = status.refused {
        return Some(format!("the other members refuse this one: {refusal}"));
    }
    match (&status.founding, status.role, status.leader) {
        (Some(founding), ..) => Some(founding_words(founding)),
        (None, Role::Waiting, _) => Some("the cluster has not taken this member in yet".to_owned()),
        (None, _, None) => Some("no leader is known".to_owned()),
        (None, _, Some(_)) => None,
    }
}

fn founding_words(founding: &Founding) -> String {
    match founding {
        Founding::Asking { silent } => {
            let silent = silent.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!(
                "the cluster is created as soon as every member of --peers has answered that it knows none; silent: {silent}"
            )
        }
        Founding::Yielding { to } => {
            format!(
                "member {to} has --bootstrap too and the lower id: it creates the cluster and takes this one in"
            )
        }
        Founding::Exists { by, cluster } => {
            format!(
                "--bootstrap has no effect: member {by} knows cluster {cluster}, which has not taken this member in yet"
            )
        }
    }
}

/// What to do about a refusal that waiting does not end.
fn remedy(refusal: PeerRefusal) -> Option<&'static str> {
    match refusal {
        PeerRefusal::WrongCluster { .. } => Some(
            "start it with the directory of that cluster, or, to join it, with an empty directory, without --bootstrap and \
             under an id that is added to it",
        ),
        PeerRefusal::WrongDisk => Some(
            "the directory that belongs to this id was lost or exchanged: restore it, or add a new member under a new id with \
             an empty directory, in place of this one; --bootstrap helps nothing, for the cluster exists",
        ),
        PeerRefusal::Removed => Some("its id is never used again: add a new member with an empty directory"),
        PeerRefusal::Unknown => None,
    }
}

async fn asked_to_stop() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::System)?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::System),
    }
}

/// A leader that stops in order lets another one take over first, so that clients hardly notice.
async fn hand_over(driver: &Driver) {
    let mut status = driver.status();
    if status.borrow().role != Role::Leader {
        return;
    }
    let handed_over = async {
        match driver.ask(ClientRequest::TransferLeader { to: None }, About::Nothing).await {
            Ok(Answer { reply: Reply::Transferring { to }, .. }) => {
                tracing::info!(%to, "handing over");
                // An error means that the thread is gone, and with it the leadership.
                drop(status.wait_for(|status| status.role != Role::Leader).await);
            }
            Ok(Answer { reply: Reply::Failed(error), .. }) => tracing::info!("cannot hand over: {error}"),
            Ok(_) => tracing::info!("cannot hand over: the member gave an answer of another kind"),
            Err(refused) => tracing::info!("cannot hand over: {refused}"),
        }
    };
    if tokio::time::timeout(HANDOVER_TIMEOUT, handed_over).await.is_err() {
        tracing::info!("no other member took over in time");
    }
}

fn security(config: &Config) -> Result<Security, Failure> {
    let expected = Identity::new(&config.cluster, basalt_identity::Role::Member, config.member.to_string())?;
    match &config.security {
        SecurityConfig::Plaintext => {
            tracing::warn!("without TLS: anyone on this machine can be anyone in this cluster");
            Ok(Security::Plaintext(expected))
        }
        SecurityConfig::Tls(files) => {
            let credentials = Credentials::load(files)?;
            if *credentials.identity() != expected {
                let found = Box::new(credentials.identity().clone());
                return Err(Failure::OtherIdentity { found, expected: Box::new(expected) });
            }
            Ok(Security::Tls(credentials))
        }
    }
}

/// Where the member keeps its log and snapshots.
fn log_dir(config: &Config) -> PathBuf {
    config.data_dir.join("log")
}

/// Opens the data directory and makes sure that it is of this cluster.
fn open_disk(config: &Config) -> Result<DirectoryDisk, Failure> {
    let disk = DirectoryDisk::open(&log_dir(config))?;
    let path = config.data_dir.join(CLUSTER_FILE);
    let failure = |source| Failure::DataDir { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == config.cluster => {}
        Ok(found) => {
            let found = found.trim().to_owned();
            return Err(Failure::OtherCluster { path, found, expected: config.cluster.clone() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::write(&path, format!("{}\n", config.cluster)).map_err(failure)?;
        }
        Err(error) => return Err(failure(error)),
    }
    Ok(disk)
}

fn core_config(config: &Config) -> basalt_core::Config {
    let member = |id, addresses: &Addresses| basalt_model::Member {
        id,
        disk: None,
        peer_address: addresses.peer.clone(),
        api_address: addresses.api.clone(),
        supports: FeatureLevel::SUPPORTED,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        replaces: None,
    };
    let start = if config.bootstrap {
        Start::Bootstrap {
            cluster: ClusterId::from_random(random()),
            others: config.peers.iter().map(|(id, addresses)| member(*id, addresses)).collect(),
        }
    } else {
        Start::Join { cluster: None }
    };
    basalt_core::Config {
        member: member(config.member, &config.advertise),
        start,
        peers: config.peers.keys().copied().collect(),
        timing: Timing::default(),
        limits: Limits::default(),
    }
}

/// From the operating system's randomness.
fn random() -> u128 {
    // A version 4 UUID has six fixed bits; two of them give more than enough for each purpose here.
    uuid::Uuid::new_v4().as_u128() ^ uuid::Uuid::new_v4().as_u128().rotate_left(64)
}

fn seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0 ^ uuid::Uuid::new_v4().as_u64_pair().1
}
