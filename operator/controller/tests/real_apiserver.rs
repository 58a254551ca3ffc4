//! Against a real apiserver: what is written is taken, seen with kubectl, and safe when the apiserver loses everything.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use basalt_controller::backoff::Backoff;
use basalt_controller::election::{Election, ElectionConfig, Lost};
use basalt_controller::fence::Fence;
use basalt_controller::managed::Managed;
use basalt_controller::reconcile::{Context, reconcile};
use basalt_controller::store::Store;
use basalt_crds::{StorageNode, Volume};
use basalt_kube::Fixture;
use basalt_model::Lifecycle;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::time::Instant;
use world::{Control, Faults};

const NODE: &str = "{apiVersion: basalt.storage/v1alpha1, kind: StorageNode, metadata: {name: n-1}, spec: \
    {address: 127.0.0.1, listeners: [{name: tcp, bind: '127.0.0.1:4420'}], pools: [{name: pool, disks: [/disks/a]}]}}";
const VOLUME: &str = "{apiVersion: basalt.storage/v1alpha1, kind: Volume, metadata: {name: data}, spec: \
    {size: 1Gi, allowedHosts: ['*']}}";

fn kubectl(fixture: &Fixture, args: &[&str]) -> String {
    let output = fixture.kubectl().args(args).output().unwrap();
    assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn apply(fixture: &Fixture, manifest: &str) {
    let mut command = fixture.kubectl();
    command.args(["apply", "--server-side", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{manifest}");
}

fn define(fixture: &Fixture) {
    for manifest in basalt_crds::manifests().unwrap() {
        apply(fixture, &manifest.content);
    }
    kubectl(fixture, &["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"]);
}

async fn client(kubeconfig: &Path) -> Client {
    basalt_identity::install_provider();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn context(client: &Client, control: &Arc<Control>) -> Arc<Context<Control>> {
    let fence = Fence::new();
    fence.extend(Instant::now() + Duration::from_secs(3600));
    let store = Store::new(client.clone(), "test".to_owned());
    Arc::new(Context { control: Arc::clone(control), store, fence, backoff: Arc::new(Backoff::default()) })
}

/// Daemons and operator take turns.
async fn work(client: &Client, context: &Arc<Context<Control>>) {
    for _ in 0..4 {
        reconcile_all::<StorageNode>(client, context).await;
        reconcile_all::<Volume>(client, context).await;
        context.control.daemons_work();
    }
}

async fn reconcile_all<K: Managed>(client: &Client, context: &Arc<Context<Control>>) {
    for object in Api::<K>::all(client.clone()).list(&kube::api::ListParams::default()).await.unwrap() {
        reconcile(Arc::new(object), Arc::clone(context)).await.unwrap();
    }
}

#[tokio::test]
async fn a_life_and_the_loss_of_the_apiserver() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::start(dir.path()).unwrap();
    define(&fixture);
    let client = client(&fixture.kubeconfig()).await;
    let control = Arc::new(Control::new(Arc::new(Faults::new(None)), None));
    let context = context(&client, &control);

    apply(&fixture, NODE);
    apply(&fixture, VOLUME);
    work(&client, &context).await;
    let volumes = kubectl(&fixture, &["get", "bv", "data"]);
    let row: Vec<&str> = volumes.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..8], ["data", "Online", "1Gi", "True", "Online", "True", "n-1", "127.0.0.1:4420"]);
    let nodes = kubectl(&fixture, &["get", "bsn", "n-1"]);
    let row: Vec<&str> = nodes.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..10], ["n-1", "Online", "True", "Online", "True", "false", "1Ti", "0", "1", "1.0"]);
    let described = kubectl(&fixture, &["describe", "bv", "data"]);
    assert!(described.contains("hosts can read and write") && described.contains("AnyHost"), "{described}");

    // A second look writes nothing.
    let version = || kubectl(&fixture, &["get", "bv", "data", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let before = version();
    reconcile_all::<Volume>(&client, &context).await;
    assert_eq!(version(), before);

    fixture.wipe().unwrap();
    define(&fixture);
    apply(&fixture, NODE);
    apply(&fixture, VOLUME);
    work(&client, &context).await;
    lost_and_found(&fixture, &client, &context).await;
}

/// Objects that were applied anew do not take over what others owned, until somebody says so.
async fn lost_and_found(fixture: &Fixture, client: &Client, context: &Arc<Context<Control>>) {
    let control = &context.control;
    let reason = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
    for kind in ["bv/data", "bsn/n-1"] {
        assert_eq!(kubectl(fixture, &["get", kind, "-o", reason]), "NameTaken");
    }
    kubectl(fixture, &["delete", "bv", "data", "--wait=false"]);
    work(client, context).await;
    assert_eq!(
        kubectl(fixture, &["get", "bv", "-o", "name"]),
        "",
        "an object that owns nothing goes at once"
    );
    let active = |control: &Control| {
        control.state().volumes().values().filter(|volume| volume.lifecycle == Lifecycle::Active).count()
    };
    assert_eq!(active(control), 1, "the volume of the lost object was deleted");

    apply(fixture, VOLUME);
    for (kind, uid) in [
        ("bv/data", control.state().volumes().values().next().unwrap().uid.clone().unwrap()),
        ("bsn/n-1", control.state().nodes().values().next().unwrap().uid.clone().unwrap()),
    ] {
        kubectl(fixture, &["annotate", kind, &format!("basalt.storage/owner-uid={uid}")]);
    }
    work(client, context).await;
    for kind in ["bv/data", "bsn/n-1"] {
        assert_eq!(kubectl(fixture, &["get", kind, "-o", reason]), "Online", "{kind}");
    }
    kubectl(fixture, &["delete", "bv/data", "bsn/n-1", "--wait=false"]);
    work(client, context).await;
    assert_eq!(kubectl(fixture, &["get", "bv,bsn", "-o", "name"]), "");
    assert!(control.state().volumes().is_empty() && control.state().nodes().is_empty());
}

#[tokio::test]
async fn one_leads_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::start(dir.path()).unwrap();
    let client = client(&fixture.kubeconfig()).await;
    let candidate = |identity: &str| {
        let config = ElectionConfig {
            namespace: "kube-system".to_owned(),
            name: "basalt-operator".to_owned(),
            identity: identity.to_owned(),
            duration: Duration::from_secs(4),
        };
        let fence = Fence::new();
        (Election::new(client.clone(), config, fence.clone()), fence)
    };
    let (mut first, first_fence) = candidate("first");
    let (mut second, second_fence) = candidate("second");
    assert!(first.try_acquire().await.unwrap());
    assert!(!second.try_acquire().await.unwrap());
    assert!(first_fence.end().is_some() && second_fence.end().is_none());

    // While the first one renews, the second never gets it.
    tokio::select! {
        lost = first.keep() => panic!("the lease was lost: {lost:?}"),
        () = tokio::time::sleep(Duration::from_secs(6)) => (),
    }
    assert!(!second.try_acquire().await.unwrap());

    // The first one is silent from now on: the second gets it only after the first one's right has ended.
    while !second.try_acquire().await.unwrap() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(first_fence.end().is_none(), "both may act");
    assert_eq!(first.keep().await, Lost::Expired);
    assert!(!first.try_acquire().await.unwrap());

    second.release().await.unwrap();
    assert!(second_fence.end().is_none());
    assert!(first.try_acquire().await.unwrap(), "a lease that was given up is free at once");
    let transitions = "jsonpath={.spec.leaseTransitions}";
    let lease =
        kubectl(&fixture, &["-n", "kube-system", "get", "lease", "basalt-operator", "-o", transitions]);
    assert_eq!(lease, "2");
}

#[tokio::test]
async fn an_apiserver_that_was_emptied_or_restored_ends_the_lease() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::start(&dir.path().join("kube")).unwrap();
    let client = client(&fixture.kubeconfig()).await;
    let config = ElectionConfig {
        namespace: "kube-system".to_owned(),
        name: "basalt-operator".to_owned(),
        identity: "only".to_owned(),
        // Longer than the apiserver takes to come back.
        duration: Duration::from_secs(40),
    };
    let fence = Fence::new();
    let mut election = Election::new(client, config, fence.clone());
    let renews = Duration::from_secs(10);
    let copy = dir.path().join("copy");

    assert!(election.try_acquire().await.unwrap());
    fixture.back_up(&copy).unwrap();
    tokio::select! {
        lost = election.keep() => panic!("the lease was lost with nothing else: {lost:?}"),
        () = tokio::time::sleep(renews + Duration::from_secs(3)) => (),
    }
    // It has renewed once, so what is put back is older.
    fixture.restore(&copy).unwrap();
    assert_eq!(election.keep().await, Lost::Forgotten);
    assert!(fence.end().is_none());

    assert!(election.try_acquire().await.unwrap(), "it is free for everybody, or ours");
    fixture.wipe().unwrap();
    assert_eq!(election.keep().await, Lost::Forgotten);
    assert!(election.try_acquire().await.unwrap());
}
