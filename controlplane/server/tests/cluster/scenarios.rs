//! The scenarios.

use basalt_client::{ClientError, Event, Mutation};
use basalt_identity::Role;
use basalt_model::{NodeName, Revision};
use basalt_proto::api::Reason;

use crate::fixture::{Cluster, http_get, leader, node_spec, request, voters};

fn name(index: u64) -> NodeName {
    format!("node-{index}").parse().unwrap()
}

fn mutation(id: &str) -> Mutation {
    Mutation { request: request(id), owner: None }
}

#[tokio::test]
async fn one_member_serves_and_shows_itself() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    assert_eq!(leader(&client).await, 1);
    let put = client.put_node(&mutation("r1"), &name(1), &node_spec("/d")).await.unwrap();
    assert_eq!(client.get_node(&name(1)).await.unwrap(), Some(put.value));
    assert_eq!(client.get_node(&name(2)).await.unwrap(), None);
    let metrics = http_get(cluster.member(1).metrics, "/metrics");
    assert!(metrics.contains("basalt_control_leader 1\n"), "{metrics}");
    assert!(metrics.contains("basalt_node_up{node=\"node-1\"} 0\n"), "{metrics}");
    assert!(http_get(cluster.member(1).metrics, "/readyz").starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn acknowledged_changes_survive_the_leader() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    for index in 0..20 {
        client.put_node(&mutation(&format!("a{index}")), &name(index), &node_spec("/d")).await.unwrap();
    }
    let first = leader(&client).await;
    cluster.kill(first);
    // Whoever leads now has everything, and goes on.
    let others = [1, 2, 3].into_iter().filter(|id| *id != first).collect::<Vec<_>>();
    let client = cluster.client_of(&others, Role::Cli);
    client.put_node(&mutation("after"), &name(20), &node_spec("/d")).await.unwrap();
    let nodes = client.nodes().all().await.unwrap();
    assert_eq!(nodes.items.len(), 21);
    // All die; all come back.
    cluster.kill(others[0]);
    cluster.kill(others[1]);
    for id in 1..=3 {
        cluster.spawn(id, false);
    }
    let nodes = cluster.client().nodes().all().await.unwrap();
    assert_eq!(nodes.items.len(), 21);
}

#[tokio::test]
async fn followers_answer_and_forward_and_ids_make_changes_happen_once() {
    let cluster = Cluster::start(3);
    voters(&cluster.client(), 3).await;
    let leader = leader(&cluster.client()).await;
    for id in [1, 2, 3].into_iter().filter(|id| *id != leader) {
        // This client knows nobody else: the follower has to do it.
        let follower = cluster.client_of(&[id], Role::Operator);
        let key = format!("f{id}");
        let put = follower.put_node(&mutation(&key), &name(id), &node_spec("/d")).await.unwrap();
        assert_eq!(follower.get_node(&name(id)).await.unwrap(), Some(put.value.clone()));
        let again = cluster.client().put_node(&mutation(&key), &name(id), &node_spec("/d")).await.unwrap();
        assert_eq!(again, put);
        let other = follower.put_node(&mutation(&key), &name(id), &node_spec("/other")).await;
        assert_eq!(other.unwrap_err().reason(), Some(Reason::RequestIdReused));
    }
}

#[tokio::test]
async fn a_role_does_only_what_is_its_own() {
    let cluster = Cluster::start(1);
    leader(&cluster.client()).await;
    for role in [Role::Node, Role::Member] {
        let client = cluster.client_of(&[1], role);
        let error = client.put_node(&mutation("x"), &name(1), &node_spec("/d")).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::Forbidden), "{error}");
    }
    let operator = cluster.client_of(&[1], Role::Operator);
    let error = operator.transfer_leadership(None).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { reason: Reason::Forbidden, .. }), "{error}");
    operator.list_members().await.unwrap();
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_over_the_death_of_its_member() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    client.put_node(&mutation("w0"), &name(0), &node_spec("/d")).await.unwrap();
    let mut watch = client.watch(Revision(0));
    assert_eq!(watch.next().await.unwrap(), Event::Reset);
    let mut seen = Vec::new();
    collect(&mut watch, &mut seen, 1).await;
    for index in 1..10 {
        client.put_node(&mutation(&format!("w{index}")), &name(index), &node_spec("/d")).await.unwrap();
    }
    collect(&mut watch, &mut seen, 10).await;
    // Whichever member serves the watch, it dies at some point of this.
    for id in 1..=3 {
        cluster.kill(id);
        let key = 10 + id;
        client.put_node(&mutation(&format!("w{key}")), &name(key), &node_spec("/d")).await.unwrap();
        cluster.spawn(id, false);
        voters(&client, 3).await;
    }
    collect(&mut watch, &mut seen, 13).await;
    // A continued watch sees no reset: nothing was lost and nothing was listed again.
    assert!(!seen.contains(&Event::Reset), "{seen:?}");
}

/// Takes events until this many different nodes were seen.
async fn collect(watch: &mut basalt_client::Watch, seen: &mut Vec<Event>, nodes: usize) {
    let different = |seen: &[Event]| {
        let names = seen.iter().filter_map(|event| match event {
            Event::Node(node) => Some(node.name.clone()),
            _ => None,
        });
        names.collect::<std::collections::BTreeSet<_>>().len()
    };
    while different(seen) < nodes || !matches!(seen.last(), Some(Event::Synced(_))) {
        let next = tokio::time::timeout(std::time::Duration::from_secs(30), watch.next()).await;
        seen.push(next.expect("an event comes in time").unwrap());
    }
}
