//! What cannot start says why and what to do.

use std::process::Command;

use basalt_identity::{CertificateAuthority, Credentials, Identity, Role, Security};

use crate::fixture::{CLUSTER, Cluster, leader};

/// Runs a command that fails by itself, and gives what it says.
fn complaint(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn ports_and_directories_in_use_are_named() {
    let mut cluster = Cluster::start(1);
    leader(&cluster.client()).await;
    cluster.prepare(2);
    let api = format!("127.0.0.1:{}", cluster.member(1).api);
    let mut second = cluster.command(2);
    second.args(["--api-listen", &api]);
    // The last flag wins in no program of ours: giving one twice is refused.
    assert!(complaint(&mut second).contains("cannot be used multiple times"));
    let mut twin = cluster.command(1);
    let said = complaint(&mut twin);
    assert!(said.contains("cannot listen on") && said.contains("free"), "{said}");
}

#[tokio::test]
async fn the_directory_of_another_member_or_cluster_is_refused() {
    let mut cluster = Cluster::start(1);
    leader(&cluster.client()).await;
    assert!(cluster.stop(1).success());
    cluster.prepare(2);
    std::fs::rename(cluster.data_dir(1), cluster.data_dir(2)).unwrap();
    let said = complaint(&mut cluster.command(2));
    assert!(said.contains("the disk belongs to member 1, this is member 2"), "{said}");
    std::fs::write(cluster.data_dir(2).join("cluster-name"), "elsewhere\n").unwrap();
    let said = complaint(&mut cluster.command(2));
    assert!(said.contains("belongs to a member of cluster \"elsewhere\""), "{said}");
}

#[tokio::test]
async fn a_certificate_for_something_else_is_refused() {
    let cluster = Cluster::start(1);
    leader(&cluster.client()).await;
    // Of another authority that claims the same cluster.
    let elsewhere = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::create_or_load(elsewhere.path(), CLUSTER).unwrap();
    let identity = Identity::new(CLUSTER, Role::Cli, "cli").unwrap();
    let stranger = Credentials::load(&authority.issue(&identity, &[]).unwrap()).unwrap();
    let endpoints = vec![format!("127.0.0.1:{}", cluster.member(1).api)];
    let mut config = basalt_client::ClientConfig::new(endpoints, Security::Tls(stranger));
    config.deadline = std::time::Duration::from_secs(1);
    let error = basalt_client::Client::new(config).unwrap().cluster_status().await.unwrap_err();
    assert!(matches!(error, basalt_client::ClientError::Unavailable { .. }), "{error}");
}
