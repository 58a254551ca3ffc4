//! `basalt-figures`: measures a development cluster of its own, for docs/performance.md. `cargo xtask bench cluster` runs it.
#![allow(clippy::print_stdout, reason = "prints its results")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use basalt_client::{Client, ClientConfig, Mutation};
use basalt_e2e::cluster::Cluster;
use basalt_identity::{CertificateFiles, Credentials, Security};
use basalt_model::{Cores, Listener, NodeName, NodeSpec, Transport};
use rustix::process::{Pid, Signal, kill_process};

/// Clients that change something at the same time.
const WORKERS: u16 = 64;
const COMMANDS_FOR: Duration = Duration::from_secs(10);
const LEADER_KILLS: usize = 5;
const SINGLE_VOLUMES: usize = 5;
const MANY_VOLUMES: usize = 100;
const DEADLINE: Duration = Duration::from_secs(180);

fn main() -> Result<()> {
    basalt_identity::install_provider();
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("cluster");
    let started = Instant::now();
    let cluster = Cluster::up(&state)?;
    show("`xtask up` of a new cluster, programs built, until its volume is verified", started.elapsed());
    cluster.down()?;
    let started = Instant::now();
    let again = Cluster::up(&state)?;
    show("`xtask up` on existing state", started.elapsed());
    kubernetes_figures(&again)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(control_plane_figures(&again))?;
    drop(again);
    Ok(())
}

fn show(what: &str, took: Duration) {
    println!("| {what} | {:.2} s |", took.as_secs_f64());
}

fn kubernetes_figures(cluster: &Cluster) -> Result<()> {
    let mut times = Vec::new();
    for index in 0..SINGLE_VOLUMES {
        let name = format!("single-{index}");
        let started = Instant::now();
        cluster.apply(&volume(&name))?;
        cluster.wait("volumes", &name, DEADLINE, "online", |object| object["status"]["phase"] == "Online")?;
        times.push(started.elapsed());
    }
    show(
        "`kubectl apply` of one Volume until `Online` (median of 5, kubectl's own time included)",
        median(times),
    );

    let manifest: String =
        (0..MANY_VOLUMES).map(|index| volume(&format!("many-{index}")) + "---\n").collect();
    let started = Instant::now();
    cluster.apply(&manifest)?;
    let applied = started.elapsed();
    wait_for_many(cluster, MANY_VOLUMES, "Online")?;
    show("100 Volumes in one `kubectl apply`: until kubectl returns", applied);
    show("100 Volumes in one `kubectl apply`: until all are `Online`", started.elapsed());
    let started = Instant::now();
    // With --wait kubectl looks at one object after the other, five times a second: that would be its figure, not ours.
    let output = cluster.kubectl(&["delete", "--wait=false", "--filename=-"], &manifest)?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_for_many(cluster, 0, "")?;
    show("`kubectl delete --wait=false` of the 100 Volumes until all are gone", started.elapsed());
    Ok(())
}

fn volume(name: &str) -> String {
    format!(
        "apiVersion: basalt.storage/v1alpha1\nkind: Volume\nmetadata:\n  name: {name}\n\
         spec:\n  size: 4Mi\n  allowedHosts: [\"*\"]\n  reclaimPolicy: Delete\n"
    )
}

/// Waits until so many of the many volumes are in a phase that ends with `phase`.
fn wait_for_many(cluster: &Cluster, count: usize, phase: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let query = "--output=jsonpath={range .items[*]}{.metadata.name} {.status.phase}{\"\\n\"}{end}";
        let output = cluster.kubectl(&["get", "volumes.basalt.storage", query], "")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let there = text.lines().filter(|line| line.starts_with("many-") && line.ends_with(phase)).count();
        if there == count {
            return Ok(());
        }
        anyhow::ensure!(started.elapsed() < DEADLINE, "{there} volumes are there, not {count} ({phase})");
        std::thread::sleep(Duration::from_millis(100));
    }
}

async fn control_plane_figures(cluster: &Cluster) -> Result<()> {
    let client = client(cluster)?;
    let done = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let (client, done) = (client.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut unschedulable = false;
                while started.elapsed() < COMMANDS_FOR {
                    unschedulable = !unschedulable;
                    change(&client, worker, unschedulable).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    let rate = done.load(Ordering::Relaxed) / COMMANDS_FOR.as_secs();
    println!("| commands per second, three members, {WORKERS} clients at once, durable | {rate} |");

    let mut gaps = Vec::new();
    for _ in 0..LEADER_KILLS {
        let leader = client.cluster_status().await?.leader.context("no leader")?;
        let pid = cluster.pid(&format!("control-{leader}"))?.and_then(Pid::from_raw).context("no process")?;
        kill_process(pid, Signal::KILL)?;
        let started = Instant::now();
        change(&client, 0, gaps.len() % 2 == 0).await?;
        gaps.push(started.elapsed());
        // The killed member comes back before the next one goes.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    show("SIGKILL of the leader until the next command is committed (median of 5)", median(gaps));
    for worker in 0..WORKERS {
        client.delete_node(&Mutation::once(None), &name(worker)?).await?;
    }
    Ok(())
}

fn client(cluster: &Cluster) -> Result<Client> {
    let pki = cluster.state().join("pki");
    let credentials = Credentials::load(&CertificateFiles {
        ca: pki.join("ca.crt"),
        certificate: pki.join("cli-admin.crt"),
        key: pki.join("cli-admin.key"),
    })?;
    let line = cluster.command_line("operator")?;
    let control = line.iter().find_map(|word| word.strip_prefix("--control=")).context("no --control")?;
    let endpoints = control.split(',').map(str::to_owned).collect();
    Ok(Client::new(ClientConfig::new(endpoints, Security::Tls(credentials)))?)
}

/// One command: a node that has no daemon is closed to new volumes, or opened.
async fn change(client: &Client, worker: u16, unschedulable: bool) -> Result<()> {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let listen = SocketAddr::new(address, 10_000 + worker);
    let spec = NodeSpec {
        address,
        listeners: vec![Listener { transport: Transport::Tcp, bind: listen, advertise: listen }],
        pools: std::collections::BTreeMap::new(),
        cores: Cores::Count(1),
        unschedulable,
    };
    client.put_node(&Mutation::once(None), &name(worker)?, &spec).await?;
    Ok(())
}

fn name(worker: u16) -> Result<NodeName> {
    Ok(NodeName::new(format!("figures-{worker}"))?)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
