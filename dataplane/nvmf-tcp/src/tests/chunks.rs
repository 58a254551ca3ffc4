//! Whole sessions over a pipe that cuts anywhere: what is read is what was written.

use basalt_clock::{Random, SeededRandom};
use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::{ReadWrite, dsm};
use basalt_nvmf_host::{Command, Data, FusedPair, IoCommand, Swap};
use proptest::prelude::*;

use super::pipe::pipe;
use super::rig::{BLOCKS, Rig};
use crate::host::connection::{Connection as HostConnection, Refused};

/// What the namespace holds, as a naive model.
struct Oracle(Vec<u8>);

impl Oracle {
    fn range(&mut self, lba: u64, blocks: u32) -> &mut [u8] {
        let start = usize::try_from(lba * 512).unwrap();
        &mut self.0[start..start + blocks as usize * 512]
    }
}

fn command(random: &mut SeededRandom, oracle: &mut Oracle) -> (Command, Option<Vec<u8>>) {
    let blocks =
        u32::try_from([1, 2, 8, 16, 17, 40, 256][usize::try_from(random.below(7)).unwrap()]).unwrap();
    let lba = random.below(BLOCKS - u64::from(blocks) + 1);
    let fields = ReadWrite::new(lba, blocks);
    let range = oracle.range(lba, blocks);
    match random.below(10) {
        0..4 => {
            let mut buffer = Buffer::zeroed(range.len());
            random.fill(&mut buffer);
            range.copy_from_slice(&buffer);
            (IoCommand::Write(fields).with(1, Data::ToController(Payload::Buffer(buffer))), None)
        }
        4..8 => {
            let data = Data::ToHost(Buffer::zeroed(range.len()));
            (IoCommand::Read(fields).with(1, data), Some(range.to_vec()))
        }
        8 => {
            range.fill(0);
            (Command::deallocate(1, &[dsm::Range::new(lba, blocks)]), None)
        }
        _ => {
            range.fill(0);
            (IoCommand::WriteZeroes(fields).with(1, Data::None), None)
        }
    }
}

/// Swaps one block, or tries to; answers what must come of it.
fn pair(random: &mut SeededRandom, oracle: &mut Oracle) -> (FusedPair, Swap) {
    let lba = random.below(BLOCKS);
    let range = oracle.range(lba, 1);
    let (mut expected, mut new) = (Buffer::copy_of(range), Buffer::zeroed(512));
    random.fill(&mut new);
    let outcome = if random.chance(1, 2) {
        range.copy_from_slice(&new);
        Swap::Done
    } else {
        expected[usize::try_from(random.below(512)).unwrap()] ^= 1;
        Swap::Miscompare
    };
    let data = |buffer| Data::ToController(Payload::Buffer(buffer));
    (FusedPair::new(1, ReadWrite::new(lba, 1), data(expected), data(new)), outcome)
}

fn session(seed: u64, chunk_max: u64, digests: Digests) {
    let mut rig = Rig::new();
    let (wire, end) = pipe(seed, chunk_max);
    let mut admin = rig.accept(end, 0);
    let mut admin_host = HostConnection::new(wire, digests, 31, 8192);
    let facts = rig.bring_up(&mut admin_host, &mut [&mut admin]);
    let (wire, end) = pipe(seed ^ 1, chunk_max);
    let mut io = rig.accept(end, 1);
    let mut host = HostConnection::new(wire, digests, 32, 8192);
    rig.connect_io(&mut host, &mut [&mut admin, &mut io], &facts);
    let mut random = SeededRandom::new(seed);
    let mut oracle = Oracle(vec![0; usize::try_from(BLOCKS * 512).unwrap()]);
    let mut staging = Buffer::zeroed(65_536);
    for _ in 0..30 {
        // One batch touches each place once: commands of a batch may be done in any order.
        let (next, expected) = command(&mut random, &mut oracle);
        host.submit(1, next).unwrap();
        let mut outcomes = Vec::new();
        while outcomes.is_empty() {
            host.poll(&mut staging, &mut outcomes);
            rig.turn(&mut [&mut admin, &mut io]);
        }
        let outcome = outcomes.pop().unwrap();
        assert!(outcome.result.unwrap().status().is_success());
        if let Some(expected) = expected {
            assert!(outcome.payload.to_vec() == expected, "what was written is read");
        }
        let (next, expected) = pair(&mut random, &mut oracle);
        host.set_in_capsule_max(if random.chance(1, 2) { 0 } else { facts.in_capsule_bytes });
        host.submit_fused([1, 2], next).unwrap();
        while outcomes.len() < 2 {
            host.poll(&mut staging, &mut outcomes);
            rig.turn(&mut [&mut admin, &mut io]);
        }
        let [compare, write] = [0, 1].map(|at| outcomes[at].result.unwrap().status());
        assert_eq!(FusedPair::result(compare, write), Ok(expected));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn sessions_survive_any_chunking(seed: u64, chunk_max in 50u64..40_000, header: bool, data: bool) {
        session(seed, chunk_max, Digests { header, data });
    }
}

#[test]
fn a_session_survives_single_bytes() {
    session(7, 3, Digests { header: true, data: true });
}

#[test]
fn many_commands_at_once_each_get_their_own_data() {
    let mut rig = Rig::new();
    let (wire, end) = pipe(1, 100_000);
    let mut admin = rig.accept(end, 0);
    let mut admin_host = HostConnection::new(wire, Digests::default(), 31, 8192);
    let facts = rig.bring_up(&mut admin_host, &mut [&mut admin]);
    let (wire, end) = pipe(2, 100_000);
    let mut io = rig.accept(end, 1);
    let mut host = HostConnection::new(wire, Digests::default(), 32, 8192);
    rig.connect_io(&mut host, &mut [&mut admin, &mut io], &facts);
    let mut staging = Buffer::zeroed(65_536);
    let mut outcomes = Vec::new();
    for write in [true, false] {
        let mut submitted = 0u64;
        let mut done = 0;
        while done < 64 {
            while submitted < 64 {
                let mut buffer = Buffer::zeroed(32 * 512);
                buffer.fill(if write { submitted.to_le_bytes()[0] } else { 0xff });
                let fields = ReadWrite::new(submitted * 32, 32);
                let command = if write {
                    IoCommand::Write(fields).with(1, Data::ToController(Payload::Buffer(buffer)))
                } else {
                    IoCommand::Read(fields).with(1, Data::ToHost(buffer))
                };
                match host.submit(submitted, command) {
                    Ok(()) => submitted += 1,
                    Err(Refused::Full(_)) => break,
                    Err(refused) => panic!("{refused:?}"),
                }
            }
            host.poll(&mut staging, &mut outcomes);
            rig.turn(&mut [&mut admin, &mut io]);
            for outcome in outcomes.drain(..) {
                assert!(outcome.result.unwrap().status().is_success());
                let value = outcome.tag.to_le_bytes()[0];
                assert!(outcome.payload.to_vec().iter().all(|byte| *byte == value));
                done += 1;
            }
        }
    }
}
