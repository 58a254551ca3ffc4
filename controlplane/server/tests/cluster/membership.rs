//! Members come, go and are lost.

use std::fs;

use basalt_client::{MemberRole, Mutation, NewMember};
use basalt_identity::Role;
use basalt_model::Incarnation;

use crate::fixture::{Cluster, eventually, leader, member_id, node_spec, request, voters};

fn new_member(cluster: &Cluster, id: u64) -> NewMember {
    let member = cluster.member(id);
    NewMember {
        id: member_id(id),
        peer_address: format!("127.0.0.1:{}", member.peer),
        api_address: format!("127.0.0.1:{}", member.api),
    }
}

#[tokio::test]
async fn leadership_is_transferred_and_an_orderly_stop_hands_it_over() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    let first = leader(&client).await;
    let next = first % 3 + 1;
    assert_eq!(client.transfer_leadership(Some(member_id(next))).await.unwrap(), member_id(next));
    eventually("the new leader", async || (leader(&client).await == next).then_some(())).await;
    assert!(cluster.stop(next).success());
    assert!(cluster.log(next).contains("told to stop"));
    let mutation = Mutation::once(None);
    client.put_node(&mutation, &"n1".parse().unwrap(), &node_spec("/d")).await.unwrap();
    assert_ne!(leader(&client).await, next);
}

#[tokio::test]
async fn a_lost_member_is_replaced_and_never_comes_back() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    client.put_node(&Mutation::once(None), &"n1".parse().unwrap(), &node_spec("/d")).await.unwrap();
    let lost = leader(&client).await % 3 + 1;
    cluster.kill(lost);
    cluster.prepare(4);
    let new = new_member(&cluster, 4);
    client.replace_member(&request("replace"), member_id(lost), &new).await.unwrap();
    cluster.spawn(4, false);
    eventually("member 4 votes and the lost one is gone", async || {
        let info = client.list_members().await.ok()?;
        let votes = info.members.iter().any(|member| {
            member.id == member_id(4) && matches!(member.role, MemberRole::Voter | MemberRole::Leader)
        });
        let gone = info.members.iter().all(|member| member.id != member_id(lost));
        (votes && gone).then_some(())
    })
    .await;
    // The new member alone knows everything.
    let nodes = cluster.client_of(&[4], Role::Cli).nodes().all().await.unwrap();
    assert_eq!(nodes.items.len(), 1);
    // The old disk is refused for good, with a remedy.
    cluster.spawn(lost, false);
    assert!(!cluster.ends(lost).await.success());
    assert!(cluster.log(lost).contains("add a new member with an empty directory"), "{}", cluster.log(lost));
    let again = client.add_member(&request("again"), &new_member(&cluster, lost)).await.unwrap_err();
    assert!(again.to_string().contains("use a new id"), "{again}");
}

#[tokio::test]
async fn a_lost_majority_is_recovered_by_one_command() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    client.put_node(&Mutation::once(None), &"n1".parse().unwrap(), &node_spec("/d")).await.unwrap();
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in [2, 3] {
        fs::remove_dir_all(cluster.data_dir(id)).unwrap();
    }
    let recovered = cluster.command(1).arg("recover").output().unwrap();
    let said = String::from_utf8_lossy(&recovered.stderr).into_owned();
    assert!(recovered.status.success() && said.contains("incarnation 2"), "{said}");
    cluster.spawn(1, false);
    let client = cluster.client_of(&[1], Role::Cli);
    assert_eq!(client.nodes().all().await.unwrap().items.len(), 1);
    let status = client.cluster_status().await.unwrap();
    assert_eq!((status.incarnation, status.leader), (Incarnation(2), Some(member_id(1))));
    for id in [4, 5] {
        cluster.prepare(id);
        let key = format!("add-{id}");
        client.add_member(&request(&key), &new_member(&cluster, id)).await.unwrap();
        cluster.spawn(id, false);
    }
    voters(&client, 3).await;
    cluster.kill(1);
    let survivors = cluster.client_of(&[4, 5], Role::Cli);
    assert_eq!(survivors.nodes().all().await.unwrap().items.len(), 1);
}
