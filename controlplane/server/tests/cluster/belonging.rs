//! Lost and copied directories, false clusters, removed members: who belongs to the cluster, and who is followed.

use std::{fs, time::Duration};

use basalt_client::{ClientError, Event, Mutation, NewMember, Watch};
use basalt_identity::Role;
use basalt_model::{NodeName, Revision};

use crate::fixture::{Cluster, eventually, http_get, leader, member_id, node_spec, request, voters};

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn new_member(cluster: &Cluster, id: u64) -> NewMember {
    let member = cluster.member(id);
    NewMember {
        id: member_id(id),
        peer_address: format!("127.0.0.1:{}", member.peer),
        api_address: format!("127.0.0.1:{}", member.api),
    }
}

/// Moves the leadership away from member 1.
async fn lead_elsewhere(client: &basalt_client::Client) {
    eventually("another leader", async || {
        if leader(client).await != 1 {
            return Some(());
        }
        client.transfer_leadership(Some(member_id(2))).await.ok();
        None
    })
    .await;
}

#[tokio::test]
async fn a_lost_directory_under_bootstrap_makes_no_second_cluster() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    lead_elsewhere(&client).await;
    let before = client.cluster_status().await.unwrap().cluster;
    // What a supervisor does after the directory is gone.
    cluster.kill(1);
    fs::remove_dir_all(cluster.data_dir(1)).unwrap();
    cluster.spawn(1, true);
    assert!(!cluster.ends(1).await.success());
    let log = cluster.log(1);
    assert!(log.contains("the directory that belongs to this id was lost or exchanged"), "{log}");
    // Whoever asks now, and knows all three, gets the cluster.
    assert_eq!(cluster.client().cluster_status().await.unwrap().cluster, before);
}

#[tokio::test]
async fn bootstrap_waits_for_every_peer_and_says_so() {
    let mut cluster = Cluster::start(1);
    leader(&cluster.client()).await;
    cluster.stop(1);
    fs::remove_dir_all(cluster.data_dir(1)).unwrap();
    cluster.prepare(2);
    cluster.spawn(1, true);
    let metrics = cluster.member(1).metrics;
    eventually("it says what it waits for", async || {
        let said = std::panic::catch_unwind(|| http_get(metrics, "/readyz")).ok()?;
        said.contains("silent: 2").then_some(())
    })
    .await;
    cluster.spawn(2, false);
    voters(&cluster.client(), 2).await;
}

#[tokio::test]
async fn a_false_cluster_is_not_followed_and_ends_when_the_real_one_speaks() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    client.put_node(&Mutation::once(None), &node("real"), &node_spec("/d")).await.unwrap();
    let (only_one, all) = (cluster.client_of(&[1], Role::Cli), cluster.client());
    let real = only_one.cluster_status().await.unwrap().cluster;
    assert_eq!(all.cluster_status().await.unwrap().cluster, real);
    for id in 1..=3 {
        cluster.kill(id);
    }
    // Nobody to ask: member 1 becomes a cluster of its own.
    fs::remove_dir_all(cluster.data_dir(1)).unwrap();
    cluster.spawn_among(1, true, &[1]);
    let newcomer = cluster.client_of(&[1], Role::Cli);
    leader(&newcomer).await;
    assert_ne!(newcomer.cluster_status().await.unwrap().cluster, real);
    let put = only_one.put_node(&Mutation::once(None), &node("lost"), &node_spec("/d")).await;
    let error = put.unwrap_err();
    assert!(matches!(error, ClientError::OtherCluster { .. }), "{error}");
    assert!(error.to_string().contains(&real.unwrap().to_string()), "{error}");
    assert!(newcomer.nodes().all().await.unwrap().items.is_empty(), "the false cluster was written to");
    // The real ones come back: whoever knew them goes on with them, and the false one ends.
    cluster.spawn(2, false);
    cluster.spawn(3, false);
    eventually("the real cluster", async || {
        let nodes = all.nodes().all().await.ok()?.items;
        assert_eq!(nodes.iter().map(|node| node.name.to_string()).collect::<Vec<_>>(), ["real"]);
        Some(())
    })
    .await;
    assert!(!cluster.ends(1).await.success());
    assert!(cluster.log(1).contains("the other members refuse this one"), "{}", cluster.log(1));
}

#[tokio::test]
async fn a_removed_member_ends_whatever_it_was() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    let remove = async |id: u64| {
        client.remove_member(&request(&format!("remove-{id}")), member_id(id)).await.unwrap();
    };
    // The first three were started before these existed: once they are off the list, nobody knows their addresses.
    for id in [4, 5, 6] {
        cluster.prepare(id);
        client.add_member(&request(&format!("add-{id}")), &new_member(&cluster, id)).await.unwrap();
    }
    cluster.spawn(4, false);
    cluster.spawn(5, false);
    voters(&client, 5).await;
    // A voter.
    remove(4).await;
    removed(&mut cluster, 4).await;
    // The leader.
    eventually("5 leads", async || {
        client.transfer_leadership(Some(member_id(5))).await.ok();
        (leader(&client).await == 5).then_some(())
    })
    .await;
    remove(5).await;
    removed(&mut cluster, 5).await;
    // One that never took part.
    remove(6).await;
    cluster.spawn(6, false);
    removed(&mut cluster, 6).await;
    // One that comes back.
    cluster.spawn(4, false);
    removed(&mut cluster, 4).await;
    // One that was replaced.
    cluster.prepare(7);
    client.replace_member(&request("replace"), member_id(3), &new_member(&cluster, 7)).await.unwrap();
    cluster.spawn(7, false);
    removed(&mut cluster, 3).await;
    voters(&client, 3).await;
}

async fn removed(cluster: &mut Cluster, id: u64) {
    assert!(!cluster.ends(id).await.success());
    assert!(cluster.log(id).contains("add a new member with an empty directory"), "{}", cluster.log(id));
}

#[tokio::test]
async fn members_have_addresses_of_their_own_and_transfers_say_what_is_wrong() {
    let mut cluster = Cluster::start(1);
    let client = cluster.client();
    leader(&client).await;
    cluster.prepare(2);
    let peer_address = new_member(&cluster, 1).peer_address;
    let stolen = NewMember { peer_address, ..new_member(&cluster, 2) };
    let error = client.add_member(&request("a"), &stolen).await.unwrap_err().to_string();
    assert!(error.contains("is an address of member 1"), "{error}");
    client.add_member(&request("b"), &new_member(&cluster, 2)).await.unwrap();
    assert_eq!(client.transfer_leadership(Some(member_id(1))).await.unwrap(), member_id(1));
    let waiting = client.transfer_leadership(Some(member_id(2))).await.unwrap_err().to_string();
    assert!(waiting.contains("member 2 does not vote"), "{waiting}");
    let unknown = client.transfer_leadership(Some(member_id(9))).await.unwrap_err().to_string();
    assert!(unknown.contains("there is no member 9"), "{unknown}");
}

/// Follows a watch up to its next progress; whether it began anew, the nodes that it saw, and the revision.
async fn follow(watch: &mut Watch) -> (bool, Vec<String>, Revision) {
    let (mut anew, mut nodes) = (false, Vec::new());
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        match event.expect("the watch says something").unwrap() {
            Event::Reset => anew = true,
            Event::Node(node) => nodes.push(node.name.to_string()),
            Event::Synced(revision) => return (anew, nodes, revision),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_watch_begins_anew_when_the_cluster_went_back_in_time() {
    let mut cluster = Cluster::start(1);
    let client = cluster.client();
    leader(&client).await;
    client.put_node(&Mutation::once(None), &node("old"), &node_spec("/d")).await.unwrap();
    assert!(cluster.stop(1).success());
    cluster.copy_directory(1, false);
    cluster.spawn(1, false);
    for index in 0..9 {
        let name = node(&format!("new-{index}"));
        client.put_node(&Mutation::once(None), &name, &node_spec("/d")).await.unwrap();
    }
    let mut watch = client.watch(Revision(0));
    let (anew, nodes, before) = follow(&mut watch).await;
    assert!(anew && nodes.len() == 10, "{nodes:?}");
    cluster.kill(1);
    cluster.copy_directory(1, true);
    cluster.spawn(1, false);
    let (anew, nodes, after) = follow(&mut watch).await;
    assert!(anew && after < before, "{before} {after}");
    assert_eq!(nodes, ["old"]);
    // And it goes on from there.
    client.put_node(&Mutation::once(None), &node("next"), &node_spec("/d")).await.unwrap();
    let (anew, nodes, _) = follow(&mut watch).await;
    assert!(!anew && nodes == ["next"], "{nodes:?}");
}
