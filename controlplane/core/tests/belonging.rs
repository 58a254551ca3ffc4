//! Who belongs to a cluster: a lost disk makes no second one, and whoever is out learns of it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use basalt_core::*;
use basalt_model::*;
use basalt_raft::{CrashStyle, PeerRefusal};
use std::collections::BTreeSet;
use std::time::Duration;
use world::*;

const SECOND: Duration = Duration::from_secs(1);

fn add(id: u64) -> Mutation {
    let Listed { peer, api } = addresses(id);
    Mutation::AddMember { id: member_id(id), peer_address: peer, api_address: api }
}

fn replace(old: u64, new: u64) -> Mutation {
    let Listed { peer, api } = addresses(new);
    Mutation::ReplaceMember { old: member_id(old), new: member_id(new), peer_address: peer, api_address: api }
}

struct Listed {
    peer: String,
    api: String,
}

fn addresses(id: u64) -> Listed {
    let member = listed(id);
    Listed { peer: member.peer_address, api: member.api_address }
}

/// Another run of `--bootstrap` would call its cluster this.
fn bootstrap_again(world: &mut World, id: u64, others: &[u64]) {
    let config = world.configs.get_mut(&id).unwrap();
    config.peers = others.iter().copied().map(member_id).collect();
    let others = others.iter().copied().map(listed).collect();
    config.start = Start::Bootstrap { cluster: ClusterId::from_random(0xbad), others };
}

fn refused(world: &World, id: u64) -> Option<PeerRefusal> {
    world.members[&id].status().refused
}

/// A settled cluster of three that member 1 does not lead.
fn three_without_one_leading(seed: u64) -> World {
    let mut world = World::new(seed, 3);
    world.wait_settled(3);
    world.ask(1, ClientRequest::TransferLeader { to: Some(member_id(2)) });
    world.run_until("2 leads", |world| world.leader() == Some(2));
    world.wait_settled(3);
    world
}

#[test]
fn a_lost_disk_under_bootstrap_creates_no_second_cluster() {
    let mut world = three_without_one_leading(31);
    bootstrap_again(&mut world, 1, &[2, 3]);
    world.start_empty(1);
    world.run_until("the refusal", |world| refused(world, 1) == Some(PeerRefusal::WrongDisk));
    world.run(5 * SECOND);
    let status = world.members[&1].status();
    assert_eq!((status.role, status.cluster), (Role::Waiting, None));
    world.mutate("still", put_node("fine")).unwrap();
}

#[test]
fn a_lost_disk_under_bootstrap_waits_while_its_peers_are_silent() {
    let mut world = three_without_one_leading(32);
    bootstrap_again(&mut world, 1, &[2, 3]);
    world.cut_off.insert(1);
    world.start_empty(1);
    world.run(60 * SECOND);
    let status = world.members[&1].status();
    let silent = BTreeSet::from([member_id(2), member_id(3)]);
    assert_eq!((status.role, status.founding), (Role::Waiting, Some(Founding::Asking { silent })));
    // One that answers is enough to know.
    world.cut_off.clear();
    world.cut_off.insert(3);
    world.run_until("the refusal", |world| refused(world, 1) == Some(PeerRefusal::WrongDisk));
}

#[test]
fn a_new_cluster_waits_for_the_last_of_its_members() {
    let mut world = World::new(33, 3);
    world.members.remove(&3);
    world.run(20 * SECOND);
    let silent = BTreeSet::from([member_id(3)]);
    assert_eq!(world.members[&1].status().founding, Some(Founding::Asking { silent }));
    world.start(3).unwrap();
    world.wait_settled(3);
    assert_eq!(world.members[&1].status().founding, None);
}

#[test]
fn several_members_that_are_told_to_create_the_cluster_create_one() {
    for seed in 0..20 {
        let mut world = World::new(340 + seed, 0);
        world.drop_per_mille = seed * 20;
        for id in 1..=3 {
            let others = (1..=3).filter(|other| *other != id).map(listed).collect();
            let cluster = ClusterId::from_random(u128::from(id));
            world.add(id, Start::Bootstrap { cluster, others }, (1..=3).collect());
            world.run(Duration::from_millis(seed * 70));
        }
        world.wait_settled(3);
        let clusters: BTreeSet<_> = world.members.values().map(|member| member.status().cluster).collect();
        assert_eq!(clusters.into_iter().collect::<Vec<_>>(), [Some(ClusterId::from_random(1))]);
        assert!((1..=3).all(|id| refused(&world, id).is_none()), "seed {seed}");
    }
}

#[test]
fn a_stranger_under_bootstrap_is_told_of_the_cluster_that_exists() {
    let mut world = World::new(35, 3);
    world.wait_settled(3);
    world.add(4, Start::Join { cluster: None }, vec![]);
    bootstrap_again(&mut world, 4, &[1, 2, 3]);
    world.start_empty(4);
    let expected = Some(PeerRefusal::WrongCluster { cluster: cluster_id() });
    world.run_until("the refusal", |world| refused(world, 4) == expected);
    assert_eq!(world.members[&4].status().cluster, None);
}

#[test]
fn a_member_that_was_added_joins_also_under_bootstrap() {
    let mut world = World::new(36, 3);
    world.wait_settled(3);
    world.mutate("add", add(4)).unwrap();
    world.add(4, Start::Join { cluster: None }, vec![]);
    bootstrap_again(&mut world, 4, &[1, 2, 3]);
    world.start_empty(4);
    world.wait_settled(4);
    let status = world.members[&4].status();
    assert_eq!((status.cluster, status.founding), (Some(cluster_id()), None));
}

#[test]
fn a_cluster_of_its_own_ends_when_the_real_one_speaks() {
    let mut world = three_without_one_leading(37);
    // Nobody to ask.
    bootstrap_again(&mut world, 1, &[]);
    world.cut_off.insert(1);
    world.start_empty(1);
    world.run_until("it leads itself", |world| world.members[&1].status().role == Role::Leader);
    world.cut_off.clear();
    world.run_until("the refusal", |world| refused(world, 1) == Some(PeerRefusal::WrongDisk));
    // It serves nobody any more, also not the reads for which it needs nobody.
    let read = world.ask(1, ClientRequest::Read(Read::Cluster));
    assert_eq!(world.wait_reply(read), Reply::Failed(RequestError::Stopped));
    world.say(1, 9, hello("n", 1));
    world.run(SECOND / 10);
    assert!(matches!(world.heard(9)[..], [ToNode::Refused(SessionRefusal::NotLeader { .. })]));
}

#[test]
fn a_stranger_does_not_put_off_a_member_that_takes_part() {
    let mut world = World::new(38, 3);
    world.wait_settled(3);
    for id in 1..=3 {
        for refusal in [PeerRefusal::WrongDisk, PeerRefusal::WrongCluster { cluster: cluster_id() }] {
            let message = basalt_raft::PeerMessage {
                cluster: Some(ClusterId::from_random(0xbad)),
                from: member_id(id % 3 + 1),
                from_disk: DiskId::from_random(1),
                to: member_id(id),
                to_disk: Some(DiskId::from_random(2)),
                body: basalt_raft::PeerBody::Refused(refusal),
            };
            world.members.get_mut(&id).unwrap().peer_message(message);
        }
        assert_eq!(refused(&world, id), None);
    }
    world.mutate("still", put_node("fine")).unwrap();
}

/// Runs until a member knows that it was removed, and checks that it took seconds.
fn learns_of_its_removal(world: &mut World, id: u64) {
    let before = world.now;
    world.run_until("it learns of its removal", |world| refused(world, id) == Some(PeerRefusal::Removed));
    assert!(world.now.since(before) < 5 * SECOND, "took {:?}", world.now.since(before));
}

fn wait_out(world: &mut World, id: u64) {
    world.run_until("the removal", |world| {
        let Some(leader) = world.leader().filter(|leader| *leader != id) else { return false };
        let leader = &world.members[&leader];
        let names = |ids: &[u64]| ids.contains(&id);
        let membership = leader.membership();
        leader.state().is_retired(member_id(id))
            && !names(&membership.voters)
            && !names(&membership.learners)
            && !names(&membership.voters_outgoing)
    });
}

#[test]
fn a_removed_voter_learns_of_it() {
    for seed in 0..10 {
        let mut world = World::new(600 + seed, 3);
        world.wait_settled(3);
        let victim = if world.leader() == Some(3) { 2 } else { 3 };
        world.mutate("remove", Mutation::RemoveMember { id: member_id(victim) }).unwrap();
        wait_out(&mut world, victim);
        learns_of_its_removal(&mut world, victim);
    }
}

#[test]
fn a_removed_leader_learns_of_it() {
    for seed in 0..10 {
        let mut world = World::new(610 + seed, 3);
        world.wait_settled(3);
        let victim = world.wait_leader();
        world.mutate("remove", Mutation::RemoveMember { id: member_id(victim) }).unwrap();
        wait_out(&mut world, victim);
        learns_of_its_removal(&mut world, victim);
    }
}

#[test]
fn a_replaced_member_learns_of_it() {
    for seed in 0..20 {
        let mut world = World::new(620 + seed, 3);
        world.wait_settled(3);
        let victim = seed % 3 + 1;
        world.mutate("replace", replace(victim, 4)).unwrap();
        world.add(4, Start::Join { cluster: None }, vec![1, 2, 3]);
        wait_out(&mut world, victim);
        learns_of_its_removal(&mut world, victim);
    }
}

#[test]
fn a_removed_learner_learns_of_it() {
    let mut world = World::new(640, 3);
    world.wait_settled(3);
    for n in 0..100 {
        world.mutate(&format!("r{n}"), put_node(&format!("n{n}"))).unwrap();
    }
    world.mutate("add", add(4)).unwrap();
    world.add(4, Start::Join { cluster: None }, vec![1, 2, 3]);
    world.run_until("it learns", |world| world.members[&4].status().role == Role::Learner);
    world.cut_off.insert(4);
    world.mutate("remove", Mutation::RemoveMember { id: member_id(4) }).unwrap();
    wait_out(&mut world, 4);
    world.cut_off.clear();
    learns_of_its_removal(&mut world, 4);
}

#[test]
fn a_member_that_is_removed_while_it_waits_learns_of_it() {
    let mut world = World::new(641, 3);
    world.wait_settled(3);
    world.mutate("add", add(4)).unwrap();
    world.add(4, Start::Join { cluster: None }, vec![1, 2, 3]);
    world.cut_off.insert(4);
    world.run(2 * SECOND);
    world.mutate("remove", Mutation::RemoveMember { id: member_id(4) }).unwrap();
    world.cut_off.clear();
    learns_of_its_removal(&mut world, 4);
}

#[test]
fn a_member_that_is_started_after_its_removal_learns_of_it() {
    let mut world = World::new(642, 4);
    world.wait_settled(4);
    let victim = if world.leader() == Some(3) { 2 } else { 3 };
    world.crash(victim, CrashStyle::LoseAll);
    world.mutate("remove", Mutation::RemoveMember { id: member_id(victim) }).unwrap();
    wait_out(&mut world, victim);
    world.start(victim).unwrap();
    learns_of_its_removal(&mut world, victim);
    // And again, from what it has on its disk by now.
    world.crash(victim, CrashStyle::KeepAll);
    world.start(victim).unwrap();
    learns_of_its_removal(&mut world, victim);
}
