//! Parsers: what they take must come out again as it went in.

use basalt_nvme_wire::fabrics::{
    Command as Fabrics, ConnectData, DiscoveryEntry, DiscoveryHeader, parse_nqn,
};
use basalt_nvme_wire::feature::{QueueCount, Select};
use basalt_nvme_wire::identify::{
    self, IdentifyController, IdentifyNamespace, IndependentNamespace, NamespaceId, NvmController,
};
use basalt_nvme_wire::log::{AnaHeader, AnaState, AsyncEvent, CommandEffects, GetLogPage, Health};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{
    COMMON_LEN, DataTransfer, Digests, Frame, INITIALIZE_LEN, InitializeRequest, InitializeResponse,
    ReadyToTransfer, Receiver, SHORT_LEN, Termination,
};
use basalt_nvme_wire::register::{Capabilities, Configuration, ControllerStatus, Property};
use basalt_nvme_wire::reservation::{Acquire, NotificationPage, ParsedReport, Register, Release, Report};
use basalt_nvme_wire::{Cqe, ReadWrite, Sgl, Sqe, dsm};
use basalt_nvmf_target::ReservationState;
use zerocopy::FromBytes;

/// First byte: receiver and digests; then a PDU.
pub(super) fn pdu(bytes: &[u8]) {
    let Some((flags, bytes)) = bytes.split_first() else { return };
    let receiver = if flags & 1 == 0 { Receiver::Controller } else { Receiver::Host };
    let digests = Digests { header: flags & 2 != 0, data: flags & 4 != 0 };
    let limit = if flags & 8 == 0 { u32::MAX } else { 8192 };
    let frame =
        bytes.first_chunk::<COMMON_LEN>().map(|common| Frame::parse(common, receiver, digests, limit));
    if let Some(header) = bytes.first_chunk::<INITIALIZE_LEN>() {
        if let Ok(request) = InitializeRequest::parse(header) {
            assert_eq!(InitializeRequest::parse(&request.emit()), Ok(request));
        }
        if let Ok(response) = InitializeResponse::parse(header) {
            assert_eq!(InitializeResponse::parse(&response.emit()), Ok(response));
        }
    }
    let Some(Ok(frame)) = frame else { return };
    assert_eq!(Frame::parse(&frame.emit(), receiver, digests, limit), Ok(frame), "what is read is written");
    assert!(frame.total_len() >= frame.prefix_len() && frame.prefix_len() >= frame.header_len());
    let Some(header) = bytes.first_chunk::<SHORT_LEN>() else { return };
    if let Ok(transfer) = DataTransfer::parse(header, &frame) {
        assert_eq!(DataTransfer::parse(&transfer.emit(&frame), &frame), Ok(transfer));
    }
    if let Ok(ready) = ReadyToTransfer::parse(header) {
        assert_eq!(ReadyToTransfer::parse(&ready.emit(&frame)), Ok(ready));
    }
    Termination::parse(header);
}

/// A submission entry, and its data.
pub(super) fn command(bytes: &[u8]) {
    let Ok((sqe, data)) = Sqe::read_from_prefix(bytes) else { return };
    if let Ok(sgl) = Sgl::parse(&sqe.sgl) {
        assert_eq!(Sgl::parse(&sgl.emit()), Ok(sgl));
    }
    let mut again = Sqe::default();
    let fields = ReadWrite::parse(&sqe);
    fields.emit(&mut again);
    assert_eq!(ReadWrite::parse(&again), fields);
    let page = GetLogPage::parse(&sqe);
    page.emit(&mut again);
    assert_eq!(GetLogPage::parse(&again), page);
    let report = Report::parse(&sqe);
    report.emit(&mut again);
    assert_eq!(Report::parse(&again), report);
    if sqe.opcode == Admin::Fabrics.code() {
        let fabrics = Fabrics::parse(&sqe);
        assert_eq!(Fabrics::parse(&fabrics.emit(1)), fabrics);
    }
    if let Ok(register) = Register::parse(&sqe, data) {
        let keys = register.emit(&mut again);
        assert_eq!(Register::parse(&again, &keys), Ok(register));
    }
    if let Ok(acquire) = Acquire::parse(&sqe, data) {
        let keys = acquire.emit(&mut again);
        assert_eq!(Acquire::parse(&again, &keys), Ok(acquire));
    }
    if let Ok(release) = Release::parse(&sqe, data) {
        let keys = release.emit(&mut again);
        assert_eq!(Release::parse(&again, &keys), Ok(release));
    }
    let count = usize::from(sqe.cdw10.get().to_le_bytes()[0]) + 1;
    assert!(dsm::Range::list(data, count).is_none_or(|ranges| ranges.len() == count));
    if let Ok(connect) = identify::parse::<ConnectData>(data) {
        for field in [&connect.subsystem_nqn, &connect.host_nqn] {
            assert!(parse_nqn(field).is_none_or(|nqn| (1..=223).contains(&nqn.len())));
        }
    }
    let dword = sqe.cdw11.get();
    assert!(QueueCount::parse(dword).is_none_or(|counts| counts.emit() == dword));
    Select::parse(sqe.cdw10.get());
    Property::from_offset(dword);
    let (configuration, status) = (Configuration(dword), ControllerStatus::parse(dword));
    assert_eq!(ControllerStatus::parse(status.emit()), status);
    assert!(configuration.page_size() < 16 && configuration.command_set() < 8);
    configuration.shutdown();
    Capabilities::parse(u64::from(dword) << 32 | u64::from(sqe.cdw10.get()));
    let fuse = sqe.fuse();
    sqe.clone_into(&mut again);
    again.set_fuse(fuse);
    assert_eq!(again, sqe, "fused bits are written as they were read");
    assert!(Io::from_code(sqe.opcode).is_none_or(|opcode| opcode.code() == sqe.opcode));
}

/// Pages as a controller could send them.
pub(super) fn page(bytes: &[u8]) {
    if let Ok(page) = identify::parse::<IdentifyNamespace>(bytes) {
        page.block_shift();
    }
    if let Ok(page) = identify::parse::<IdentifyController>(bytes) {
        assert!(parse_nqn(&page.subnqn).is_none_or(|nqn| !nqn.is_empty()));
    }
    assert!(NamespaceId::list(bytes).count() <= bytes.len());
    if let Ok(report) = ParsedReport::parse(bytes) {
        assert!(report.registrants.len() <= bytes.len() / 64);
    }
    if let Some(dword) = bytes.first_chunk::<4>() {
        let dword = u32::from_le_bytes(*dword);
        assert!(AsyncEvent::parse(dword).is_none_or(|event| event.emit() == dword & 0x00ff_ff07));
    }
    let states = bytes.iter().filter_map(|byte| AnaState::parse(*byte)).count();
    assert!(states <= bytes.len());
    if let Ok((cqe, _)) = Cqe::read_from_prefix(bytes) {
        assert_eq!(cqe.status().to_field() & 1, 0);
        assert!(!cqe.status().to_string().is_empty());
    }
    for size in [
        identify::parse::<Health>(bytes).is_ok(),
        identify::parse::<CommandEffects>(bytes).is_ok(),
        identify::parse::<AnaHeader>(bytes).is_ok(),
        identify::parse::<DiscoveryHeader>(bytes).is_ok(),
        identify::parse::<DiscoveryEntry>(bytes).is_ok(),
        identify::parse::<IndependentNamespace>(bytes).is_ok(),
        identify::parse::<NvmController>(bytes).is_ok(),
        identify::parse::<NotificationPage>(bytes).is_ok(),
    ] {
        assert!(!size || bytes.len() >= 16);
    }
}

/// A saved reservation of the namespace that the bytes name.
pub(super) fn reservation(bytes: &[u8]) {
    let namespace = bytes.get(16..32).and_then(|uuid| uuid.try_into().ok()).unwrap_or([0; 16]);
    if let Ok(state) = ReservationState::decode(namespace, bytes) {
        assert_eq!(ReservationState::decode(namespace, &state.encode(namespace)), Ok(state));
        return;
    }
    // Damage is nearly always found by the checksum: with a right one the rest is read too.
    if bytes.len() > 16 {
        let mut repaired = bytes.to_vec();
        let checksum = basalt_nvme_wire::digest::crc32c(&repaired[16..]);
        repaired[..12].copy_from_slice(b"BSLTRESV\x01\0\0\0");
        repaired[12..16].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(state) = ReservationState::decode(namespace, &repaired) {
            assert_eq!(ReservationState::decode(namespace, &state.encode(namespace)), Ok(state));
        }
    }
}
