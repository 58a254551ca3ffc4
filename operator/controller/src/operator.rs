//! The wiring: who leads runs the loops, everybody keeps an eye on what the loops need.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use basalt_client::Client as ControlClient;
use basalt_crds::{Snapshot, StorageNode, Volume};
use basalt_model::Revision;
use basalt_telemetry::{Gate, Readiness};
use futures::StreamExt as _;
use kube::{Api, Client};
use kube_runtime::controller::{Config as LoopConfig, Controller};
use kube_runtime::reflector::{ObjectRef, Store as Cache};
use kube_runtime::watcher;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};

use crate::backoff::{Backoff, random_fraction};
use crate::control_plane::ControlPlane;
use crate::election::{Election, ElectionConfig, Lost};
use crate::fence::Fence;
use crate::grpc::Members;
use crate::managed::Managed;
use crate::meters;
use crate::mirror::{Mirror, Touched};
use crate::reconcile::{Context, reconcile, retry_after_error};
use crate::store::Store;

/// How many objects of one kind are reconciled at once.
const CONCURRENCY: u16 = 16;
/// How many names may wait on the way from the watch to a loop; at the limit the watch waits.
const TRIGGERS_MAX: usize = 1024;
/// How often the control plane is asked whether it is there, and objects are counted.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
/// How long to wait before the watch is started anew after an error that waiting does not heal.
const WATCH_PAUSE: Duration = Duration::from_secs(5);
/// What `/readyz` says until the loops have seen every object.
const NOT_LISTED: &str = "objects are not listed yet; are the definitions in crds/yaml applied?";
/// How long the lease may take to be given up at the end.
const RELEASE_DEADLINE: Duration = Duration::from_secs(2);

/// What the operator works with.
pub struct Operator {
    /// The apiserver.
    pub kube: Client,
    /// The control plane.
    pub control: ControlClient,
    /// Its part in the election.
    pub election: ElectionConfig,
    /// Where it says what it waits for.
    pub readiness: Readiness,
}

/// Runs until `shutdown` resolves.
pub async fn run(operator: Operator, shutdown: impl Future<Output = ()>) {
    let gates = Gates::new(&operator.readiness);
    let fence = Fence::new();
    let mut election = Election::new(operator.kube.clone(), operator.election.clone(), fence.clone());
    let (reachable, reached) = watch::channel(true);
    let work = async {
        loop {
            stand(&mut election, operator.election.duration, &gates).await;
            tracing::info!(identity = operator.election.identity, "leading");
            meters::leader(true);
            let lost = tokio::select! {
                lost = election.keep() => Some(lost),
                () = lead(&operator, &fence, &gates, &reached) => None,
            };
            meters::leader(false);
            fence.close();
            match lost {
                Some(Lost::Forgotten) => tracing::warn!(
                    "the apiserver was emptied or restored: its lease is gone, or not as it was written; everything is listed anew"
                ),
                Some(Lost::Taken) => {
                    tracing::warn!("another process has taken the lease; not leading any more")
                }
                Some(Lost::Expired) | None => tracing::warn!("not leading any more"),
            }
        }
    };
    tokio::select! {
        () = shutdown => tracing::info!("stopping"),
        () = work => (),
        () = probe(operator.control.clone(), &gates.control_plane, &reachable) => (),
    }
    meters::leader(false);
    match tokio::time::timeout(RELEASE_DEADLINE, election.release()).await {
        Ok(Ok(())) => tracing::info!("the lease is given up"),
        Ok(Err(error)) => tracing::warn!(%error, "the lease was not given up; it expires by itself"),
        Err(_) => tracing::warn!("the lease was not given up in time; it expires by itself"),
    }
}

/// What `/readyz` names.
struct Gates {
    apiserver: Gate,
    control_plane: Gate,
    resources: Gate,
}

impl Gates {
    fn new(readiness: &Readiness) -> Self {
        Self {
            apiserver: readiness.gate("apiserver", "not asked yet"),
            control_plane: readiness.gate("control-plane", "not asked yet"),
            resources: readiness.gate("custom-resources", NOT_LISTED),
        }
    }
}

/// Waits for the lease. A standby is ready: it does what a standby does.
async fn stand(election: &mut Election, duration: Duration, gates: &Gates) {
    let pause = duration / 4;
    loop {
        match tokio::time::timeout(duration, election.try_acquire()).await {
            Ok(Ok(acquired)) => {
                meters::apiserver_connected(true);
                gates.apiserver.open();
                if acquired {
                    return;
                }
                gates.resources.open();
            }
            Ok(Err(error)) => apiserver_away(gates, &error.to_string()),
            Err(_) => apiserver_away(gates, "it does not answer"),
        }
        tokio::time::sleep(pause.mul_f64(0.75 + random_fraction() / 4.0)).await;
    }
}

fn apiserver_away(gates: &Gates, why: &str) {
    tracing::warn!(why, "the apiserver cannot be asked for the lease; will try again");
    meters::apiserver_connected(false);
    gates.apiserver.close(why);
}

/// Runs the loops. Returns only when they end, which they do not by themselves.
async fn lead(operator: &Operator, fence: &Fence, gates: &Gates, reached: &watch::Receiver<bool>) {
    gates.resources.close(NOT_LISTED);
    let mirror = Arc::new(Mirror::default());
    let backoff = Arc::new(Backoff::default());
    let context = Arc::new(Context {
        control: Arc::new(Members::new(operator.control.clone(), Arc::clone(&mirror))),
        store: Store::new(operator.kube.clone(), operator.election.identity.clone()),
        fence: fence.clone(),
        backoff: Arc::clone(&backoff),
    });
    let (volume_triggers, volumes_touched) = mpsc::channel(TRIGGERS_MAX);
    let (node_triggers, nodes_touched) = mpsc::channel(TRIGGERS_MAX);
    let (snapshot_triggers, snapshots_touched) = mpsc::channel(TRIGGERS_MAX);
    let (volumes, volume_loop) =
        control_loop::<Volume, _>(operator, Arc::clone(&context), volumes_touched, reached.clone());
    let (nodes, node_loop) =
        control_loop::<StorageNode, _>(operator, Arc::clone(&context), nodes_touched, reached.clone());
    let (snapshots, snapshot_loop) =
        control_loop::<Snapshot, _>(operator, Arc::clone(&context), snapshots_touched, reached.clone());
    let triggers = Triggers {
        volumes: volume_triggers,
        nodes: node_triggers,
        snapshots: snapshot_triggers,
        backoff: Arc::clone(&backoff),
    };
    tokio::join!(
        volume_loop,
        node_loop,
        snapshot_loop,
        follow(operator.control.clone(), &mirror, &triggers),
        count(&volumes, &nodes, &snapshots, &backoff),
        listed(&volumes, &nodes, &snapshots, &gates.resources),
    );
}

fn control_loop<K, C>(
    operator: &Operator,
    context: Arc<Context<C>>,
    touched: mpsc::Receiver<ObjectRef<K>>,
    reached: watch::Receiver<bool>,
) -> (Cache<K>, impl Future<Output = ()>)
where
    K: Managed,
    C: ControlPlane,
{
    let controller = Controller::new(Api::<K>::all(operator.kube.clone()), watcher::Config::default())
        .with_config(LoopConfig::default().concurrency(CONCURRENCY))
        .reconcile_on(ReceiverStream::new(touched))
        // Every object says so when the control plane goes away or comes back.
        .reconcile_all_on(WatchStream::from_changes(reached).map(|_| ()));
    let cache = controller.store();
    let policy =
        |object: Arc<K>, error: &_, context: Arc<Context<C>>| retry_after_error(&*object, error, &context);
    let backoff = Arc::clone(&context.backoff);
    let run = controller.run(reconcile::<K, C>, policy, context).for_each(move |result| {
        match result {
            // The error policy has said it.
            Ok(_) | Err(kube_runtime::controller::Error::ReconcilerFailed(..)) => (),
            // Touched by the control plane, and not an object (any more).
            Err(kube_runtime::controller::Error::ObjectNotFound(object)) => {
                backoff.reset(&format!("{}/{}", K::WORD, object.name));
            }
            Err(error) => {
                tracing::warn!(kind = K::WORD, %error, "the watch was interrupted; it goes on by itself");
            }
        }
        std::future::ready(())
    });
    (cache, run)
}

/// Ways to the loops.
struct Triggers {
    volumes: mpsc::Sender<ObjectRef<Volume>>,
    nodes: mpsc::Sender<ObjectRef<StorageNode>>,
    snapshots: mpsc::Sender<ObjectRef<Snapshot>>,
    backoff: Arc<Backoff>,
}

impl Triggers {
    /// The names of objects of a kind that wait to be tried again.
    fn waiting<K: Managed>(&self) -> Vec<String> {
        let prefix = format!("{}/", K::WORD);
        let waiting = self.backoff.waiting();
        waiting.iter().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    async fn pull(&self, touched: Touched) {
        let (mut volumes, mut snapshots) = (touched.volumes, touched.snapshots);
        if touched.room {
            volumes.extend(self.waiting::<Volume>());
            snapshots.extend(self.waiting::<Snapshot>());
        }
        // The loops live as long as this future: both run in one `join`.
        for name in volumes {
            if self.volumes.send(ObjectRef::new(&name)).await.is_err() {
                return;
            }
        }
        for name in snapshots {
            if self.snapshots.send(ObjectRef::new(&name)).await.is_err() {
                return;
            }
        }
        for name in touched.nodes {
            if self.nodes.send(ObjectRef::new(&name)).await.is_err() {
                return;
            }
        }
    }
}

/// Follows the control plane's watch for as long as this process leads.
async fn follow(client: ControlClient, mirror: &Mirror, triggers: &Triggers) {
    loop {
        let mut watch = client.watch(Revision(0));
        let error = loop {
            match watch.next().await {
                Ok(event) => triggers.pull(mirror.take(&event)).await,
                Err(error) => break error,
            }
        };
        tracing::error!(%error, "the control plane's watch ended; it is started anew");
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}

/// Asks again and again whether the control plane is there.
async fn probe(client: ControlClient, gate: &Gate, reachable: &watch::Sender<bool>) {
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        ticks.tick().await;
        let answer = client.cluster_status().await;
        meters::control_plane_connected(answer.is_ok());
        let changed =
            reachable.send_if_modified(|last| std::mem::replace(last, answer.is_ok()) != answer.is_ok());
        match &answer {
            Err(error) if changed || first => {
                tracing::warn!(%error, "the control plane cannot be reached; will try again");
            }
            Ok(_) if changed => tracing::info!("the control plane answers"),
            Ok(_) | Err(_) => {}
        }
        first = false;
        match answer {
            Ok(status) if status.cluster.is_some() => gate.open(),
            Ok(_) => gate.close("it is not bootstrapped yet"),
            Err(error) => gate.close(error.to_string()),
        }
    }
}

/// Counts objects by phase, for as long as this process leads.
async fn count(
    volumes: &Cache<Volume>,
    nodes: &Cache<StorageNode>,
    snapshots: &Cache<Snapshot>,
    backoff: &Backoff,
) {
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        count_kind(
            volumes,
            &["Pending", "Creating", "Online", "Degraded", "Unavailable", "Faulted", "Deleting"],
        );
        count_kind(nodes, &["Pending", "Online", "Degraded", "Offline", "Deleting"]);
        count_kind(snapshots, &["Pending", "Creating", "Ready", "Unavailable", "Faulted", "Deleting"]);
        meters::waiting(u32::try_from(backoff.waiting().len()).unwrap_or(u32::MAX));
    }
}

fn count_kind<K: Managed>(cache: &Cache<K>, phases: &[&'static str]) {
    let mut counts: BTreeMap<&'static str, u32> = phases.iter().map(|phase| (*phase, 0)).collect();
    for object in cache.state() {
        *counts.entry(object.phase()).or_default() += 1;
    }
    for (phase, count) in counts {
        meters::objects(K::WORD, phase, count);
    }
}

/// Opens the gate once all kinds were listed, and then waits for ever.
async fn listed(
    volumes: &Cache<Volume>,
    nodes: &Cache<StorageNode>,
    snapshots: &Cache<Snapshot>,
    gate: &Gate,
) {
    // An error says that the loop has ended; then nobody waits for this either.
    if volumes.wait_until_ready().await.is_ok()
        && nodes.wait_until_ready().await.is_ok()
        && snapshots.wait_until_ready().await.is_ok()
    {
        gate.open();
    }
    std::future::pending::<()>().await;
}
