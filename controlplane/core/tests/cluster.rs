//! Members in a small deterministic world: what a cluster must do, and what it must survive.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use basalt_clock::{Random, SeededRandom};
use basalt_core::*;
use basalt_model::*;
use basalt_raft::{CrashStyle, Disk, MemoryDisk};
use std::collections::BTreeMap;
use std::time::Duration;
use world::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn one_member_bootstraps_and_commits() {
    let mut world = World::new(1, 1);
    world.mutate("a", put_node("n1")).unwrap();
    let (_, result) = world.read(1, Read::Node(node_name("n1")));
    assert!(matches!(result, ReadResult::Node(Some(node)) if node.name == node_name("n1")));
    assert_eq!(world.members[&1].state().cluster(), Some(cluster_id()));
}

#[test]
fn three_members_grow_from_one_and_agree() {
    let mut world = World::new(2, 3);
    world.wait_settled(3);
    for n in 0..20 {
        world.mutate(&format!("r{n}"), put_node(&format!("n{n}"))).unwrap();
    }
    for id in 1..=3 {
        let (_, result) = world.read(id, Read::Nodes(Page::default()));
        assert!(
            matches!(result, ReadResult::Nodes { items, next: None } if items.len() == 20),
            "member {id}"
        );
    }
    world.wait_settled(3);
    let states: Vec<_> = world.members.values().map(|member| member.state().encode().unwrap()).collect();
    assert!(states.iter().all(|state| *state == states[0]));
}

#[test]
fn acknowledged_commands_survive_a_crash_of_all_members() {
    for seed in 0..10 {
        let mut world = World::new(100 + seed, 3);
        world.wait_settled(3);
        for n in 0..60 {
            world.mutate(&format!("r{n}"), put_node(&format!("n{n}"))).unwrap();
        }
        for id in 1..=3 {
            let style =
                [CrashStyle::LoseAll, CrashStyle::Tear { seed: seed * 7 + id }][usize::from(seed % 2 == 0)];
            world.crash(id, style);
        }
        for id in 1..=3 {
            world.start(id).unwrap();
        }
        let (_, result) = world.read(2, Read::Nodes(Page::default()));
        assert!(matches!(result, ReadResult::Nodes { items, .. } if items.len() == 60), "seed {seed}");
    }
}

#[test]
fn the_leader_is_replaced_within_seconds_when_it_dies() {
    let mut world = World::new(3, 5);
    world.wait_settled(5);
    let old = world.wait_leader();
    let before = world.now;
    world.crash(old, CrashStyle::LoseAll);
    world.run_until("another leader", |world| world.leader().is_some());
    assert!(world.now.since(before) < 4 * SECOND, "took {:?}", world.now.since(before));
    world.mutate("after", put_node("n")).unwrap();
}

#[test]
fn a_member_that_missed_everything_gets_a_snapshot() {
    let mut world = World::new(4, 3);
    world.wait_settled(3);
    world.crash(3, CrashStyle::LoseAll);
    for n in 0..150 {
        world.mutate(&format!("r{n}"), put_node(&format!("n{n}"))).unwrap();
    }
    basalt_clock::fault::record_marks();
    world.start(3).unwrap();
    world.wait_settled(3);
    let marks = basalt_clock::fault::take_marks();
    assert!(marks.contains_key("snapshot-installed"), "{marks:?}");
    assert_eq!(world.members[&3].state().nodes().len(), 150);
    assert!(world.events[&3].iter().any(|event| event.kind == EventKind::Resync));
    // And it starts from what it installed.
    world.crash(3, CrashStyle::LoseAll);
    world.start(3).unwrap();
    world.wait_settled(3);
    assert_eq!(world.members[&3].state().nodes().len(), 150);
}

#[test]
fn a_request_that_is_sent_again_is_done_once() {
    let mut world = World::new(5, 3);
    world.wait_settled(3);
    let first = world.mutate("same", put_node("n1")).unwrap();
    assert_eq!(world.mutate("same", put_node("n1")).unwrap(), first);
    assert_eq!(world.mutate("same", put_node("n2")), Err(Refusal::RequestIdReused));
    // Also by another leader, and from a snapshot.
    for n in 0..100 {
        world.mutate(&format!("r{n}"), put_node(&format!("x{n}"))).unwrap();
    }
    for id in 1..=3 {
        world.crash(id, CrashStyle::LoseAll);
    }
    for id in 1..=3 {
        world.start(id).unwrap();
    }
    assert_eq!(world.mutate("same", put_node("n1")).unwrap(), first);
}

#[test]
fn a_deposed_leader_neither_reads_nor_writes() {
    let mut world = World::new(6, 3);
    world.wait_settled(3);
    let old = world.wait_leader();
    world.cut_off.insert(old);
    let write = world
        .ask(old, ClientRequest::Mutate { id: RequestId::new("lost").unwrap(), mutation: put_node("lost") });
    let read = world.ask(old, ClientRequest::Read(Read::Nodes(Page::default())));
    world.run(15 * SECOND);
    assert!(matches!(world.replies.get(&write), Some(Reply::Failed(_))), "{:?}", world.replies.get(&write));
    assert!(matches!(world.replies.get(&read), Some(Reply::Failed(RequestError::TimedOut))));
    world.cut_off.clear();
    world.wait_settled(3);
    assert!(world.members[&1].state().nodes().is_empty());
}

#[test]
fn watches_resume_or_say_that_they_cannot() {
    let mut world = World::new(7, 1);
    world.wait_leader();
    let (from, _) = world.mutate("a", put_node("a")).unwrap();
    world.mutate("b", put_node("b")).unwrap();
    let reply = world.ask(1, ClientRequest::Watch { from: Some(from) });
    let Reply::Watching { backlog, .. } = world.wait_reply(reply) else { panic!() };
    let names: Vec<_> = backlog
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Node(node) => Some(node.name.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["b"]);
    for n in 0..60 {
        world.mutate(&format!("r{n}"), put_node(&format!("n{n}"))).unwrap();
    }
    let reply = world.ask(1, ClientRequest::Watch { from: Some(from) });
    assert!(matches!(world.wait_reply(reply), Reply::Failed(RequestError::TooOld { .. })));
    // A revision that the cluster never had: of another one, or of this one before it was restored from a copy.
    let reply = world.ask(1, ClientRequest::Watch { from: Some(Revision(1 << 40)) });
    assert!(matches!(world.wait_reply(reply), Reply::Failed(RequestError::Ahead { .. })));
}

#[test]
fn a_member_that_is_behind_its_watcher_waits_until_it_is_not() {
    let mut world = World::new(27, 3);
    world.wait_settled(3);
    let follower = if world.leader() == Some(3) { 2 } else { 3 };
    world.cut_off.insert(follower);
    let (seen, _) = world.mutate("a", put_node("a")).unwrap();
    assert!(world.members[&follower].state().revision() < seen);
    let reply = world.ask(follower, ClientRequest::Watch { from: Some(seen) });
    world.run(SECOND / 10);
    world.cut_off.clear();
    let reply = world.wait_reply(reply);
    assert!(matches!(reply, Reply::Watching { revision, .. } if revision >= seen), "{reply:?}");
}

#[test]
fn lists_come_in_pages() {
    let mut world = World::new(8, 1);
    for n in 0..25 {
        world.mutate(&format!("r{n}"), put_node(&format!("n{n:02}"))).unwrap();
    }
    let (mut after, mut names) = (None, Vec::new());
    loop {
        let (_, result) = world.read(1, Read::Nodes(Page { after, limit: 10 }));
        let ReadResult::Nodes { items, next } = result else { panic!() };
        assert!(items.len() <= 10);
        names.extend(items.iter().map(|node| node.name.to_string()));
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(names, (0..25).map(|n| format!("n{n:02}")).collect::<Vec<_>>());
}

#[test]
fn a_member_is_replaced_and_its_id_is_dead() {
    let mut world = World::new(9, 3);
    world.wait_settled(3);
    for n in 0..100 {
        world.mutate(&format!("r{n}"), put_node(&format!("n{n}"))).unwrap();
    }
    world.crash(2, CrashStyle::LoseAll);
    world.disks.remove(&2);
    let replace = Mutation::ReplaceMember {
        old: member_id(2),
        new: member_id(4),
        peer_address: "peer-4:1".to_owned(),
        api_address: "api-4:1".to_owned(),
    };
    world.mutate("replace", replace).unwrap();
    world.add(4, Start::Join { cluster: Some(cluster_id()) }, vec![1, 3]);
    world.run_until("the replacement", |world| {
        let state = world.members[&world.leader().unwrap_or(1)].state();
        state.is_retired(member_id(2))
            && state.members().get(&member_id(4)).is_some_and(|m| m.replaces.is_none())
    });
    world.wait_settled(3);
    assert_eq!(world.members[&4].state().nodes().len(), 100);
    // An empty disk under the old id is let in by nobody.
    world.add(2, Start::Join { cluster: Some(cluster_id()) }, vec![1, 3]);
    world.run(5 * SECOND);
    let status = world.members[&2].status();
    assert_eq!((status.role, status.refused), (Role::Waiting, Some(basalt_raft::PeerRefusal::Removed)));
}

#[test]
fn a_leader_that_is_removed_in_the_middle_of_a_change_leads_no_more() {
    let mut removed_while_leading = 0;
    for seed in 0..24 {
        let mut world = World::new(400 + seed, 3);
        world.wait_settled(3);
        let first = world.wait_leader();
        let old = if first == 2 { 3 } else { 2 };
        world.add(4, Start::Join { cluster: Some(cluster_id()) }, vec![1, 2, 3]);
        let replace = Mutation::ReplaceMember {
            old: member_id(old),
            new: member_id(4),
            peer_address: "peer-4:1".to_owned(),
            api_address: "api-4:1".to_owned(),
        };
        world.mutate("replace", replace).unwrap();
        // The one that goes knows of the change's first half when the leader dies.
        world.run_until("the change", |world| !world.members[&old].membership().voters_outgoing.is_empty());
        world.crash(first, CrashStyle::LoseAll);
        world.run_until("another leader", |world| world.leader().is_some());
        removed_while_leading += u32::from(world.leader() == Some(old));
        world.start(first).unwrap();
        world.run_until("the end of the change", |world| {
            let ended = |id: &u64| world.members[id].membership().voters_outgoing.is_empty();
            [first, 4].iter().all(ended) && world.leader().is_some_and(|leader| leader != old)
        });
        world.mutate("after", put_node("n")).unwrap();
    }
    assert!(removed_while_leading > 0, "no run came to what this is about");
}

#[test]
fn the_id_of_a_member_that_takes_part_is_not_given_again() {
    let mut world = World::new(13, 3);
    world.wait_settled(3);
    let add = |id: u64, peer: &str| Mutation::AddMember {
        id: member_id(id),
        peer_address: peer.to_owned(),
        api_address: "elsewhere:2".to_owned(),
    };
    let before = world.members[&1].state().members().clone();
    let refusal = world.mutate("again", add(3, "elsewhere:1")).unwrap_err();
    assert_eq!(refusal, Refusal::MemberExists { member: member_id(3) });
    assert_eq!(*world.members[&1].state().members(), before);
    // One that has never been there can still be put right.
    world.mutate("wrong", add(4, "wrong:1")).unwrap();
    world.mutate("right", add(4, "right:1")).unwrap();
}

#[test]
fn a_member_that_knows_only_a_follower_joins() {
    let mut world = World::new(12, 3);
    world.wait_settled(3);
    let follower = if world.leader() == Some(3) { 2 } else { 3 };
    let add = Mutation::AddMember {
        id: member_id(4),
        peer_address: "peer-4:1".to_owned(),
        api_address: "api-4:1".to_owned(),
    };
    world.mutate("add", add).unwrap();
    world.add(4, Start::Join { cluster: None }, vec![follower]);
    world.run_until("introductions", |world| !world.members[&4].introduced().is_empty());
    world.wait_settled(4);
    world.run_until("nothing left of them", |world| world.members[&4].introduced().is_empty());
    world.mutate("after", put_node("n")).unwrap();
}

#[test]
fn an_empty_disk_under_a_used_id_is_refused() {
    let mut world = World::new(10, 3);
    world.wait_settled(3);
    let victim = if world.leader() == Some(3) { 2 } else { 3 };
    world.members.remove(&victim);
    world.disks.insert(victim, MemoryDisk::new());
    world.start(victim).unwrap();
    world.run(5 * SECOND);
    let status = world.members[&victim].status();
    assert_eq!((status.role, status.refused), (Role::Waiting, Some(basalt_raft::PeerRefusal::WrongDisk)));
    world.mutate("still", put_node("fine")).unwrap();
}

#[test]
fn the_leader_itself_can_be_removed() {
    let mut world = World::new(11, 3);
    world.wait_settled(3);
    let old = world.wait_leader();
    world.mutate("remove", Mutation::RemoveMember { id: member_id(old) }).unwrap();
    world.run_until("two voters", |world| {
        world.members.iter().any(|(id, member)| {
            *id != old && member.status().role == Role::Leader && member.state().is_retired(member_id(old))
        })
    });
    world.run(3 * SECOND);
    world.mutate("after", put_node("n")).unwrap();
    let leader = world.wait_leader();
    let (_, result) = world.read(leader, Read::Cluster);
    let ReadResult::Cluster(view) = result else { panic!() };
    assert_eq!(view.members.len(), 2);
    assert!(view.members.iter().all(|member| member.role != MemberRole::Waiting));
}

#[test]
fn leadership_is_transferred_on_request() {
    let mut world = World::new(12, 3);
    world.wait_settled(3);
    let old = world.wait_leader();
    let reply = world.ask(old, ClientRequest::TransferLeader { to: None });
    let Reply::Transferring { to } = world.wait_reply(reply) else { panic!() };
    world.run_until("the other leads", |world| world.leader() == Some(to.get()));
    world.wait_settled(3);
    let leader = world.wait_leader();
    world.mutate("add", add_member(4, "peer-4:1", "api-4:1")).unwrap();
    let mut transfer = |to| {
        let reply = world.ask(leader, ClientRequest::TransferLeader { to: Some(member_id(to)) });
        world.wait_reply(reply)
    };
    // To the one that leads already: done.
    assert_eq!(transfer(leader), Reply::Transferring { to: member_id(leader) });
    assert_eq!(transfer(4), Reply::Failed(RequestError::NoVote { member: member_id(4) }));
    assert_eq!(transfer(9), Reply::Failed(RequestError::NoSuchMember { member: member_id(9) }));
}

fn add_member(id: u64, peer: &str, api: &str) -> Mutation {
    Mutation::AddMember { id: member_id(id), peer_address: peer.to_owned(), api_address: api.to_owned() }
}

#[test]
fn an_address_belongs_to_one_member() {
    let mut world = World::new(28, 3);
    world.wait_settled(3);
    let taken =
        |address: &str, by| Err(Refusal::AddressTaken { address: address.to_owned(), member: member_id(by) });
    for (key, peer, api, address, by) in [
        ("a", "peer-1:1", "api-4:1", "peer-1:1", 1),
        ("b", "peer-4:1", "api-2:1", "api-2:1", 2),
        ("c", "api-3:1", "api-4:1", "api-3:1", 3),
    ] {
        assert_eq!(world.mutate(key, add_member(4, peer, api)), taken(address, by));
    }
    let replace = |peer: &str| Mutation::ReplaceMember {
        old: member_id(2),
        new: member_id(4),
        peer_address: peer.to_owned(),
        api_address: "api-4:1".to_owned(),
    };
    assert_eq!(world.mutate("d", replace("peer-1:1")), taken("peer-1:1", 1));
    // The new one may run where the old one did.
    world.mutate("e", replace("peer-2:1")).unwrap();
}

#[test]
fn a_lost_majority_is_recovered_with_a_new_incarnation() {
    let mut world = World::new(13, 3);
    world.wait_settled(3);
    world.mutate("n", put_node("n1")).unwrap();
    world.wait_settled(3);
    let before = world.members[&2].state().revision();
    for id in 1..=3 {
        world.crash(id, CrashStyle::LoseAll);
    }
    let (config, disk) = (world.configs[&2].clone(), world.disks[&2].clone());
    let recovered = recover(&config, disk, Timestamp(1), 77).unwrap();
    assert_eq!((recovered.incarnation, recovered.retired.len()), (Incarnation(2), 2));
    assert!(recovered.revision.0 > before.0 + 1_000_000);
    world.start(2).unwrap();
    world.mutate("more", put_node("n2")).unwrap();
    let (_, result) = world.read(2, Read::Nodes(Page::default()));
    assert!(matches!(result, ReadResult::Nodes { items, .. } if items.len() == 2));
    // New members join; the lost ones are refused.
    let add = Mutation::AddMember {
        id: member_id(4),
        peer_address: "peer-4:1".to_owned(),
        api_address: "api-4:1".to_owned(),
    };
    world.mutate("add", add).unwrap();
    world.add(4, Start::Join { cluster: None }, vec![2]);
    world.start(1).unwrap();
    world.run_until("member 4 votes", |world| world.members[&4].status().role == Role::Follower);
    world.run(3 * SECOND);
    assert_eq!(world.members[&1].status().refused, Some(basalt_raft::PeerRefusal::Removed));
}

/// One daemon, played by hand, up to date with the present leader.
fn connect(world: &mut World, session: u64, node: &str, instance: u128) -> Vec<ToNode> {
    let leader = world.wait_leader();
    world.say(leader, session, hello(node, instance));
    world.run(SECOND / 2);
    world.heard(session)
}

#[test]
fn a_volume_goes_from_a_request_to_online_and_to_gone() {
    let mut world = World::new(14, 3);
    world.wait_settled(3);
    world.mutate("n", put_node("n1")).unwrap();
    let refused = world.mutate("v", create_volume("v", 10));
    assert!(matches!(refused, Err(Refusal::NoFit(NoFit { not_live: 1, .. }))), "{refused:?}");
    let heard = connect(&mut world, 1, "n1", 7);
    assert!(matches!(heard[..], [ToNode::Welcome(_), ToNode::Desired { .. }]), "{heard:?}");
    let leader = world.wait_leader();
    world.say(leader, 1, NodeMessage::Report(full_report(100)));
    world.run(SECOND / 2);
    world.heard(1);
    world.mutate("v", create_volume("v", 10)).unwrap();
    world.run(SECOND / 2);
    let heard = world.heard(1);
    let Some(ToNode::Desired { desired, .. }) = heard.last() else { panic!("{heard:?}") };
    assert_eq!((desired.volumes.len(), desired.volumes[0].provision), (1, Provision::Create));
    let report = Report { full: false, volumes: online(desired), ..full_report(100) };
    world.say(leader, 1, NodeMessage::Report(report));
    world.run(SECOND / 2);
    let (_, result) = world.read(1, Read::Volume(VolumeName::new("v").unwrap()));
    let ReadResult::Volume(Some(volume)) = result else { panic!() };
    assert_eq!(volume.state, VolumeState::Online);
    world.heard(1);
    let delete = Mutation::DeleteVolume { name: volume.name.clone(), uid: volume.uid.clone() };
    world.mutate("d", delete).unwrap();
    world.run(SECOND / 2);
    let heard = world.heard(1);
    let Some(ToNode::Desired { desired, .. }) = heard.last() else { panic!("{heard:?}") };
    let tombstone = desired.tombstones[0].clone();
    // That the daemon does not report it deletes nothing.
    world.say(leader, 1, NodeMessage::Report(full_report(100)));
    world.run(SECOND / 2);
    assert_eq!(world.members[&leader].state().volumes().len(), 1);
    let deleted = BTreeMap::from([(tombstone.volume, tombstone.generation)]);
    world.say(leader, 1, NodeMessage::Report(Report { full: false, deleted, ..full_report(100) }));
    world.run(SECOND / 2);
    assert!(world.members[&leader].state().volumes().is_empty());
    assert_eq!(world.members[&leader].state().claim(&volume.placement), Claim::default());
}

#[test]
fn second_daemons_and_foreign_ones_are_refused() {
    let mut world = World::new(15, 3);
    world.wait_settled(3);
    world.mutate("n", put_node("n1")).unwrap();
    connect(&mut world, 1, "n1", 7);
    let refusal = |heard: Vec<ToNode>| match heard.into_iter().next_back() {
        Some(ToNode::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    };
    let heard = connect(&mut world, 2, "n1", 8);
    assert!(matches!(refusal(heard), SessionRefusal::OtherInstance { .. }));
    let heard = connect(&mut world, 3, "n1", 7);
    assert!(matches!(refusal(heard), SessionRefusal::Duplicate { .. }));
    let heard = connect(&mut world, 4, "nobody", 7);
    assert!(matches!(refusal(heard), SessionRefusal::UnknownNode { .. }));
    let leader = world.wait_leader();
    let NodeMessage::Hello(mine) = hello("n1", 7) else { panic!() };
    let foreign = Hello { cluster: Some(ClusterId::from_random(1)), ..mine.clone() };
    world.say(leader, 5, NodeMessage::Hello(foreign));
    world.run(SECOND / 10);
    assert!(matches!(refusal(world.heard(5)), SessionRefusal::WrongCluster { .. }));
    let old = Hello { version_max: 2, ..mine.clone() };
    world.say(leader, 8, NodeMessage::Hello(old));
    world.run(SECOND / 10);
    assert_eq!(refusal(world.heard(8)), SessionRefusal::Version { min: 3, max: 3 });
    let future = Hello { revision: Revision(1 << 50), ..mine };
    world.say(leader, 6, NodeMessage::Hello(future));
    world.run(SECOND / 10);
    assert!(matches!(refusal(world.heard(6)), SessionRefusal::Future { .. }));
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    world.say(follower, 7, hello("n1", 7));
    world.run(SECOND / 10);
    assert_eq!(refusal(world.heard(7)), SessionRefusal::NotLeader { leader: Some(member_id(leader)) });
}

/// Three members, and a daemon that is node `n1` in session 1; the leader.
fn with_reporting_node(seed: u64) -> (World, u64) {
    let mut world = World::new(seed, 3);
    world.wait_settled(3);
    world.mutate("n", put_node("n1")).unwrap();
    connect(&mut world, 1, "n1", 7);
    let leader = world.wait_leader();
    world.say(leader, 1, NodeMessage::Report(full_report(100)));
    world.run(SECOND);
    (world, leader)
}

/// What is told of the only node.
fn told(world: &mut World) -> Vec<(String, String)> {
    let leader = world.wait_leader();
    let node = world.members[&leader].state().nodes().values().next().unwrap();
    node.observed.problems.iter().map(|problem| (problem.reason.clone(), problem.message.clone())).collect()
}

#[test]
fn a_refused_daemon_is_told_as_a_problem_of_its_node_until_it_is_let_in_or_gone() {
    let (mut world, leader) = with_reporting_node(18);
    assert_eq!(told(&mut world), []);
    // While the right daemon is there.
    connect(&mut world, 2, "n1", 8);
    world.say(leader, 1, NodeMessage::Heartbeat);
    world.run(SECOND);
    let problems = told(&mut world);
    assert_eq!(problems[0].0, "DaemonRefused");
    assert!(problems[0].1.contains("kubectl basalt unbind-node n1"), "{}", problems[0].1);
    // Once it is lost, too, and over a change of leader.
    let leader = world.wait_leader();
    world.members.get_mut(&leader).unwrap().node_closed(SessionId(1));
    for session in 10..30 {
        connect(&mut world, session, "n1", 8);
        world.run(SECOND);
        let revision = world.members[&leader].state().revision();
        assert_eq!(told(&mut world).len(), 1);
        if session > 20 {
            connect(&mut world, session + 100, "n1", 8);
            assert_eq!(world.members[&leader].state().revision(), revision, "the same again is no news");
        }
    }
    // It stays away.
    world.run(40 * SECOND);
    assert_eq!(told(&mut world), []);
    // Or it is let in.
    connect(&mut world, 200, "n1", 8);
    world.run(SECOND);
    assert_eq!(told(&mut world).len(), 1);
    world.mutate("u", Mutation::UnbindNode { name: node_name("n1") }).unwrap();
    connect(&mut world, 201, "n1", 8);
    let leader = world.wait_leader();
    world.say(leader, 201, NodeMessage::Report(full_report(100)));
    world.run(SECOND);
    assert_eq!(told(&mut world), []);
}

#[test]
fn two_daemons_with_one_identity_are_told_and_a_quick_return_is_not() {
    let (mut world, leader) = with_reporting_node(19);
    for second in 0..15 {
        connect(&mut world, 10 + second, "n1", 7);
        world.say(leader, 1, NodeMessage::Heartbeat);
        world.run(SECOND);
        let problems = told(&mut world);
        if second < 6 {
            assert_eq!(problems, [], "an old session may not have run out yet");
        }
        if second > 12 {
            assert!(problems[0].1.contains("a second daemon"), "{problems:?}");
        }
    }
}

#[test]
fn a_daemon_that_is_gone_shows_within_ten_seconds_also_over_a_change_of_leader() {
    let mut world = World::new(16, 3);
    world.wait_settled(3);
    world.mutate("n", put_node("n1")).unwrap();
    connect(&mut world, 1, "n1", 7);
    let leader = world.wait_leader();
    world.say(leader, 1, NodeMessage::Report(full_report(100)));
    world.run(SECOND / 2);
    let live = |world: &World| {
        let leader = world.leader().unwrap_or(1);
        world.members.get(&leader).is_some_and(|m| m.state().nodes()[&node_name("n1")].liveness.is_live())
    };
    assert!(live(&world));
    for _ in 0..20 {
        world.say(leader, 1, NodeMessage::Heartbeat);
        world.run(SECOND);
    }
    assert!(live(&world));
    world.crash(leader, CrashStyle::LoseAll);
    let before = world.now;
    world.run_until("the node is lost", |world| world.leader().is_some() && !live(world));
    assert!(world.now.since(before) < 10 * SECOND, "took {:?}", world.now.since(before));
}

#[test]
fn full_and_failing_disks_stop_a_member_and_lose_nothing() {
    use basalt_raft::DiskFault;
    for fault in [DiskFault::Full, DiskFault::ReadOnly, DiskFault::SyncFails, DiskFault::Dead] {
        let mut world = World::new(17, 1);
        world.mutate("a", put_node("a")).unwrap();
        world.disks[&1].set_fault(Some(fault));
        let id = RequestId::new("b").unwrap();
        let reply_to = world.ask(1, ClientRequest::Mutate { id, mutation: put_node("b") });
        let member = world.members.get_mut(&1).unwrap();
        let error = member.take_outputs().unwrap_err().to_string();
        assert!(error.contains("log-"), "{fault:?}: {error}");
        assert!(!world.replies.contains_key(&reply_to));
        world.crash(1, CrashStyle::Tear { seed: 3 });
        world.disks[&1].set_fault(None);
        world.start(1).unwrap();
        let (_, result) = world.read(1, Read::Node(node_name("a")));
        assert!(matches!(result, ReadResult::Node(Some(_))), "{fault:?}");
    }
}

#[test]
fn another_members_or_clusters_disk_is_refused() {
    let mut world = World::new(18, 2);
    world.wait_settled(2);
    world.members.clear();
    let mut config = world.configs[&1].clone();
    let other = world.disks[&2].clone();
    assert!(Member::open(config.clone(), other, world.now(), 1).is_err());
    config.start = Start::Join { cluster: Some(ClusterId::from_random(9)) };
    let error = Member::open(config, world.disks[&1].clone(), world.now(), 1).err().unwrap();
    assert!(error.to_string().contains("belongs to cluster"), "{error}");
}

type Member = basalt_core::Member<MemoryDisk>;

/// Random crashes, cuts and losses under a stream of writes and reads: what was acknowledged stays, and every read sees
/// at least what was acknowledged before it began.
#[test]
fn random_faults_lose_nothing_and_reads_are_never_stale() {
    let seeds = std::env::var("BASALT_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12_u64);
    let acknowledged: usize = (0..seeds).map(|seed| chaos(seed, if seed % 3 == 2 { 5 } else { 3 }).1).sum();
    assert!(acknowledged as u64 > seeds * 20, "the cluster hardly worked: {acknowledged} writes");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(chaos(1, 3), chaos(1, 3));
    assert_ne!(chaos(1, 3), chaos(2, 3));
}

/// Returns a hash of all that was sent, and how many writes were acknowledged.
fn chaos(seed: u64, size: u64) -> (u64, usize) {
    let mut world = World::new(seed, size);
    let mut random = SeededRandom::new(seed ^ 0xfeed);
    world.wait_settled(usize::try_from(size).unwrap());
    world.drop_per_mille = random.below(80);
    let mut acknowledged: Vec<String> = Vec::new();
    let mut open: BTreeMap<ReplyTo, Asked> = BTreeMap::new();
    let mut next = 0_u64;
    for step in 0..1_500 {
        disturb(&mut world, &mut random, size);
        if step % 200 == 0 {
            // What a crashed member was asked is never answered.
            open.clear();
        }
        if random.chance(1, 3) && open.len() < 20 {
            next += 1;
            let name = format!("n{next}");
            let to = random.within(1..size + 1);
            let id = RequestId::new(name.clone()).unwrap();
            let reply_to = world.ask(to, ClientRequest::Mutate { id, mutation: put_node(&name) });
            open.insert(reply_to, Asked::Write(name));
        }
        if random.chance(1, 6) && open.len() < 20 {
            let to = random.within(1..size + 1);
            let reply_to = world.ask(to, ClientRequest::Read(Read::Nodes(Page { after: None, limit: 0 })));
            open.insert(reply_to, Asked::Read(acknowledged.len()));
        }
        world.step();
        for (reply_to, reply) in std::mem::take(&mut world.replies) {
            settle(seed, &mut acknowledged, open.remove(&reply_to), reply);
        }
    }
    world.cut_off.clear();
    world.drop_per_mille = 0;
    for id in 1..=size {
        if !world.members.contains_key(&id) {
            world.start(id).unwrap();
        }
    }
    world.wait_settled(usize::try_from(size).unwrap());
    for member in world.members.values() {
        for name in &acknowledged {
            assert!(member.state().nodes().contains_key(&node_name(name)), "seed {seed}: {name} was lost");
        }
    }
    (world.hash, acknowledged.len())
}

enum Asked {
    Write(String),
    Read(usize),
}

fn settle(seed: u64, acknowledged: &mut Vec<String>, asked: Option<Asked>, reply: Reply) {
    match (asked, reply) {
        (Some(Asked::Write(name)), Reply::Done { .. }) => acknowledged.push(name),
        (Some(Asked::Read(known)), Reply::Read { result: ReadResult::Nodes { items, next }, .. }) => {
            assert_eq!(next, None);
            for name in &acknowledged[..known] {
                assert!(
                    items.iter().any(|node| node.name.as_str() == name),
                    "seed {seed}: a read missed {name}"
                );
            }
        }
        _ => {}
    }
}

fn disturb(world: &mut World, random: &mut SeededRandom, size: u64) {
    let id = random.within(1..size + 1);
    match random.below(120) {
        0 if world.members.len() as u64 > size / 2 => {
            let style = match random.below(3) {
                0 => CrashStyle::LoseAll,
                1 => CrashStyle::KeepAll,
                _ => CrashStyle::Tear { seed: random.next_u64() },
            };
            world.crash(id, style);
        }
        1..=3 if !world.members.contains_key(&id) => world.start(id).unwrap(),
        4 if world.cut_off.is_empty() => {
            world.cut_off.insert(id);
        }
        5 | 6 => world.cut_off.clear(),
        _ => {}
    }
}

#[test]
fn files_stay_few() {
    let mut world = World::new(19, 1);
    for n in 0..400 {
        world.mutate(&format!("r{n}"), put_node(&format!("n{}", n % 50))).unwrap();
    }
    let files = world.disks[&1].list().unwrap();
    assert!(files.iter().filter(|name| name.starts_with("snapshot-")).count() == 2, "{files:?}");
    assert!(files.len() < 15, "{files:?}");
}
