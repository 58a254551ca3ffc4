//! Fused pairs byte by byte: data of both halves in every order, and every way in which a half stays alone.

use std::sync::Arc;

use basalt_bdev::{BlockCount, BlockSize};
use basalt_device_mem::{NullDevice, PlainDevice};
use basalt_nvme_wire::digest::crc32c;
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::pdu::{DataTransfer, Digests, FLAG_LAST, Frame, Kind, ReadyToTransfer};
use basalt_nvme_wire::{Cqe, Fuse, ReadWrite, Sgl, Sqe, Status, fabrics};
use basalt_nvmf_target::{NamespaceIdentity, Nsid};
use basalt_nvmf_transport::Nqn;
use rstest::rstest;
use uuid::Uuid;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::pipe::{End, pipe};
use super::raw::{NONE, capsule, connect, turns};
use super::rig::{BLOCKS, Rig, SUBSYSTEM};
use crate::target::connection::{Connection, Phase};
use crate::wire::Wire;

const DATA_DIGEST: Digests = Digests { header: false, data: true };
const MISSING: Status = Status::ABORTED_MISSING_FUSED.dnr();
const FAILED: Status = Status::ABORTED_FAILED_FUSED.dnr();
const COMPARE: u16 = 0x11;
const WRITE: u16 = 0x22;
const OTHER: u16 = 0x33;
const LBA: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ready { command_id: u16, tag: u16 },
    Done { command_id: u16, status: Status },
    Data { first: u8 },
}

struct Session {
    rig: Rig,
    admin: Connection<End>,
    io: Connection<End>,
    host: End,
    digests: Digests,
}

/// How a half's data travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Capsule,
    Asked,
}

fn half(fuse: Fuse, opcode: Io, command_id: u16, way: Way) -> Sqe {
    let mut sqe = Sqe::new(opcode.code(), command_id);
    sqe.set_fuse(fuse);
    sqe.nsid = U32::new(1);
    ReadWrite::new(LBA, 1).emit(&mut sqe);
    sqe.sgl = match way {
        Way::Capsule => Sgl::InCapsule { offset: 0, length: 512 },
        Way::Asked => Sgl::Transport { length: 512 },
    }
    .emit();
    sqe
}

fn compare(way: Way) -> Sqe {
    half(Fuse::First, Io::Compare, COMPARE, way)
}

fn write(way: Way) -> Sqe {
    half(Fuse::Second, Io::Write, WRITE, way)
}

fn flush() -> Sqe {
    let mut sqe = Sqe::new(Io::Flush.code(), OTHER);
    sqe.nsid = U32::new(1);
    sqe
}

fn done(command_id: u16, status: Status) -> Answer {
    Answer::Done { command_id, status }
}

impl Session {
    fn new(digests: Digests) -> Self {
        let mut rig = Rig::new();
        let (admin_host, end) = pipe(1, 100_000);
        let mut admin = rig.accept(end, 0);
        connect(&mut rig, None, &mut admin, &admin_host, 0, digests);
        let (host, end) = pipe(2, 100_000);
        let mut io = rig.accept(end, 1);
        connect(&mut rig, Some(&mut admin), &mut io, &host, 1, digests);
        Self { rig, admin, io, host, digests }
    }

    fn answers(&mut self) -> Vec<Answer> {
        turns(&mut self.rig, &mut [&mut self.admin, &mut self.io]);
        let bytes = self.host.drain();
        let mut rest = &bytes[..];
        let mut answers = Vec::new();
        while let Some(header) = rest.first_chunk::<24>() {
            let total = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
            if header[0] == Kind::ReadyToTransfer.code() {
                let ready = ReadyToTransfer::parse(header).unwrap();
                answers.push(Answer::Ready { command_id: ready.command_id, tag: ready.transfer_tag });
            } else if header[0] == Kind::Response.code() {
                let entry = Cqe::read_from_bytes(&header[8..]).unwrap();
                answers.push(done(entry.command_id.get(), entry.status()));
            } else {
                assert_eq!(header[0], Kind::ControllerData.code());
                answers.push(Answer::Data { first: rest[24] });
            }
            rest = &rest[total..];
        }
        assert!(rest.is_empty());
        answers
    }

    fn used(&self) -> usize {
        used(&self.rig)
    }

    /// Sends a command with `fill` as its data, in its capsule or not yet.
    fn send(&mut self, sqe: &Sqe, fill: u8) -> Vec<Answer> {
        let in_capsule = matches!(Sgl::parse(&sqe.sgl), Ok(Sgl::InCapsule { .. }));
        let data = vec![fill; if in_capsule { 512 } else { 0 }];
        self.host.inject(&capsule(self.digests, sqe, &data));
        self.answers()
    }

    /// Sends the data that was asked for; `spoilt` so that its digest does not match.
    fn give(&mut self, (command_id, tag): (u16, u16), fill: u8, spoilt: bool) -> Vec<Answer> {
        let transfer = DataTransfer { command_id, transfer_tag: tag, offset: 0, length: 512 };
        let frame = Frame::new(Kind::HostData, FLAG_LAST, self.digests, 512, 4);
        self.host.inject(&transfer.emit(&frame));
        self.host.inject(&[fill; 512]);
        if frame.data_digest {
            let digest = crc32c(&[fill; 512]) ^ u32::from(spoilt);
            self.host.inject(&digest.to_le_bytes());
        }
        self.answers()
    }

    /// Sends a half whose data the target has to ask for.
    fn asked(&mut self, sqe: &Sqe) -> (u16, u16) {
        let answers = self.send(sqe, 0);
        let [Answer::Ready { command_id, tag }] = answers[..] else { panic!("{answers:?}") };
        assert_eq!(command_id, sqe.command_id.get());
        (command_id, tag)
    }

    fn send_spoilt(&mut self, sqe: &Sqe) -> Vec<Answer> {
        let mut bytes = capsule(self.digests, sqe, &[0; 512]);
        *bytes.last_mut().unwrap() ^= 1;
        self.host.inject(&bytes);
        self.answers()
    }

    /// First byte of the block.
    fn stored(&mut self) -> u8 {
        let mut read = half(Fuse::Normal, Io::Read, OTHER, Way::Asked);
        read.sgl = Sgl::Transport { length: 512 }.emit();
        let answers = self.send(&read, 0);
        let [Answer::Data { first }, Answer::Done { status, .. }] = answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!(status, Status::SUCCESS);
        first
    }

    /// A whole pair that replaces `old` by `new`.
    fn pair(&mut self, ways: [Way; 2], data_in_order: bool, old: u8, new: u8) -> Vec<Answer> {
        let mut asked = Vec::new();
        let mut answers = Vec::new();
        for (sqe, way, fill) in [(compare(ways[0]), ways[0], old), (write(ways[1]), ways[1], new)] {
            match way {
                Way::Capsule => answers.extend(self.send(&sqe, fill)),
                Way::Asked => asked.push((self.asked(&sqe), fill)),
            }
        }
        if !data_in_order {
            asked.reverse();
        }
        for (place, fill) in asked {
            assert!(answers.is_empty(), "no half ends before the data of both is there");
            answers.extend(self.give(place, fill, false));
        }
        answers
    }
}

#[rstest]
#[case::in_capsules([Way::Capsule, Way::Capsule], true)]
#[case::compare_asked([Way::Asked, Way::Capsule], true)]
#[case::write_asked([Way::Capsule, Way::Asked], true)]
#[case::both_asked([Way::Asked, Way::Asked], true)]
#[case::both_asked_and_the_second_first([Way::Asked, Way::Asked], false)]
fn a_pair_compares_and_writes_whatever_the_order_of_its_data(
    #[case] ways: [Way; 2],
    #[case] in_order: bool,
    #[values(NONE, DATA_DIGEST)] digests: Digests,
) {
    let mut session = Session::new(digests);
    let success = [done(COMPARE, Status::SUCCESS), done(WRITE, Status::SUCCESS)];
    assert_eq!(session.pair(ways, in_order, 0, 7), success);
    assert_eq!(session.stored(), 7);
    let miscompare = [done(COMPARE, Status::COMPARE_FAILURE.dnr()), done(WRITE, FAILED)];
    assert_eq!(session.pair(ways, in_order, 0, 9), miscompare);
    assert_eq!(session.stored(), 7);
    assert_eq!(session.pair(ways, in_order, 7, 9), success);
    assert_eq!(session.stored(), 9);
}

#[test]
fn a_first_half_misses_its_second_when_another_command_follows() {
    let mut session = Session::new(NONE);
    assert_eq!(session.send(&compare(Way::Capsule), 0), []);
    assert_eq!(session.send(&flush(), 0), [done(COMPARE, MISSING), done(OTHER, Status::SUCCESS)]);
    assert_eq!(session.send(&write(Way::Capsule), 3), [done(WRITE, MISSING)]);
    assert_eq!(session.stored(), 0);
}

#[test]
fn a_half_that_ends_is_answered_after_the_data_that_was_asked_for() {
    let mut session = Session::new(NONE);
    let place = session.asked(&compare(Way::Asked));
    assert_eq!(session.send(&flush(), 0), [done(OTHER, Status::SUCCESS)]);
    assert_eq!(session.give(place, 0, false), [done(COMPARE, MISSING)]);
    let place = session.asked(&compare(Way::Asked));
    let mut elsewhere = write(Way::Capsule);
    ReadWrite::new(LBA + 1, 1).emit(&mut elsewhere);
    assert_eq!(session.send(&elsewhere, 0), [done(WRITE, Status::INVALID_FIELD.dnr())]);
    assert_eq!(session.give(place, 0, false), [done(COMPARE, Status::INVALID_FIELD.dnr())]);
    let mut beyond = write(Way::Capsule);
    ReadWrite::new(BLOCKS, 1).emit(&mut beyond);
    assert_eq!(session.send(&compare(Way::Capsule), 0), []);
    assert_eq!(
        session.send(&beyond, 0),
        [done(COMPARE, FAILED), done(WRITE, Status::LBA_OUT_OF_RANGE.dnr())]
    );
}

#[test]
fn a_half_whose_data_comes_damaged_takes_the_other_with_it() {
    let mut session = Session::new(DATA_DIGEST);
    let (damaged, failed) = (Status::TRANSIENT_TRANSPORT, Status::ABORTED_FAILED_FUSED);
    assert_eq!(session.send_spoilt(&compare(Way::Capsule)), [done(COMPARE, damaged)]);
    assert_eq!(session.send(&write(Way::Capsule), 3), [done(WRITE, failed)]);
    assert_eq!(session.send(&compare(Way::Capsule), 0), []);
    assert_eq!(session.send_spoilt(&write(Way::Capsule)), [done(COMPARE, failed), done(WRITE, damaged)]);

    let place = session.asked(&compare(Way::Asked));
    assert_eq!(session.give(place, 0, true), [done(COMPARE, damaged)]);
    assert_eq!(session.send(&write(Way::Capsule), 3), [done(WRITE, failed)]);

    let first = session.asked(&compare(Way::Asked));
    let second = session.asked(&write(Way::Asked));
    assert_eq!(session.give(second, 3, true), [done(WRITE, damaged)]);
    assert_eq!(session.give(first, 0, false), [done(COMPARE, failed)]);

    let first = session.asked(&compare(Way::Asked));
    assert_eq!(session.send(&write(Way::Capsule), 3), []);
    assert_eq!(session.give(first, 0, true), [done(WRITE, failed), done(COMPARE, damaged)]);
    assert_eq!(session.stored(), 0);
}

#[test]
fn capsules_that_hold_less_than_they_say_fail_the_pair() {
    let mut session = Session::new(NONE);
    let length = Status::SGL_LENGTH_INVALID.dnr();
    session.host.inject(&capsule(NONE, &compare(Way::Capsule), &[0; 256]));
    assert_eq!(session.answers(), [done(COMPARE, length)]);
    assert_eq!(session.send(&write(Way::Capsule), 3), [done(WRITE, FAILED)]);
    assert_eq!(session.send(&compare(Way::Capsule), 0), []);
    session.host.inject(&capsule(NONE, &write(Way::Capsule), &[3; 256]));
    assert_eq!(session.answers(), [done(COMPARE, FAILED), done(WRITE, length)]);
    assert_eq!(session.stored(), 0);
}

#[test]
fn a_namespace_whose_device_cannot_refuses_both_halves() {
    let mut session = Session::new(NONE);
    let null = NullDevice::new("null", Uuid::nil(), BlockSize::B512, BlockCount(64)).unwrap();
    let plain = Arc::new(PlainDevice::new(Arc::new(null)));
    let identity = NamespaceIdentity { uuid: [2; 16], nguid: [2; 16] };
    let nqn = Nqn::new(SUBSYSTEM).unwrap();
    session.rig.target.add_namespace(&nqn, Nsid(2), identity, plain, AnaState::Optimized).unwrap();
    session.io.refresh(&mut session.rig.context());
    for mut sqe in [compare(Way::Capsule), write(Way::Capsule)] {
        sqe.nsid = U32::new(2);
        let id = sqe.command_id.get();
        assert_eq!(session.send(&sqe, 0), [done(id, Status::INVALID_FIELD.dnr())]);
    }
}

#[test]
fn a_namespace_that_goes_while_data_is_awaited_fails_what_waits() {
    let nqn = Nqn::new(SUBSYSTEM).unwrap();
    let mut session = Session::new(NONE);
    let alone = session.asked(&half(Fuse::Normal, Io::Write, OTHER, Way::Asked));
    let first = session.asked(&compare(Way::Asked));
    let second = session.asked(&write(Way::Asked));
    session.rig.target.remove_namespace(&nqn, Nsid(1)).unwrap();
    session.io.refresh(&mut session.rig.context());
    let gone = Status::INVALID_NAMESPACE.dnr();
    assert_eq!(session.give(alone, 3, false), [done(OTHER, gone)]);
    assert_eq!(session.give(second, 3, false), []);
    assert_eq!(session.give(first, 0, false), [done(COMPARE, FAILED), done(WRITE, gone)]);
}

#[test]
fn disconnecting_between_the_halves_frees_everything() {
    for way in [Way::Capsule, Way::Asked] {
        let mut session = Session::new(NONE);
        let before = session.used();
        session.send(&compare(way), 0);
        assert!(session.used() > before, "the half holds a buffer");
        session.host.inject(&capsule(NONE, &fabrics::Command::Disconnect { format: 0 }.emit(OTHER), &[]));
        let mut answers = session.answers();
        session.io.refresh(&mut session.rig.context());
        answers.extend(session.answers());
        let missing = done(COMPARE, MISSING);
        assert_eq!(answers.contains(&missing), way == Way::Capsule, "{answers:?}");
        assert_eq!(answers.last(), Some(&done(OTHER, Status::SUCCESS)));
        session.io.tick(&mut session.rig.context());
        assert_eq!(session.io.phase, Phase::Over);
        end_of(session, before);
    }
}

#[test]
fn a_connection_that_is_lost_between_the_halves_frees_everything() {
    for way in [Way::Capsule, Way::Asked] {
        let mut session = Session::new(NONE);
        let before = session.used();
        session.send(&compare(way), 0);
        session.host.shutdown();
        assert_eq!(session.answers(), []);
        assert_eq!(session.io.phase, Phase::Over);
        end_of(session, before);
    }
}

/// Bytes of the reactor's pool that someone holds.
fn used(rig: &Rig) -> usize {
    let stats = rig.pool.stats();
    stats.held_bytes - stats.idle_bytes
}

/// Sees that an ended connection leaves neither buffers nor users of the namespace.
fn end_of(session: Session, used_before: usize) {
    let Session { mut rig, mut io, admin, .. } = session;
    io.close(rig.context().devices);
    assert!(io.is_done());
    drop((io, admin));
    let nqn = Nqn::new(SUBSYSTEM).unwrap();
    let removed = rig.target.remove_namespace(&nqn, Nsid(1)).unwrap();
    assert_eq!(Arc::strong_count(&removed), 1, "nothing uses the namespace any more");
    assert_eq!(used(&rig), used_before);
}
