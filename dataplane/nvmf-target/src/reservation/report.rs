//! Reservation Report (Base 7.5).

use basalt_nvme_wire::fabrics::CONTROLLER_ANY;
use basalt_nvme_wire::reservation::{REGISTRANT_HOLDS, Report, ReportHeader, ReportRegistrant};
use basalt_nvme_wire::{Sqe, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::state::ReservationState;

/// The data of a report: what there is room for, and zeroes behind it.
pub(crate) fn report(state: &ReservationState, sqe: &Sqe, bytes_max: u32) -> Result<Vec<u8>, Status> {
    let wanted = Report::parse(sqe);
    // Hosts have identifiers of 128 bits.
    if !wanted.extended {
        return Err(Status::HOST_ID_INCONSISTENT.dnr());
    }
    let length = usize::try_from(wanted.length).unwrap_or(usize::MAX);
    if wanted.length > u64::from(bytes_max) {
        return Err(Status::INVALID_FIELD.dnr());
    }
    let header = ReportHeader {
        generation: U32::new(state.generation),
        kind: state.held.map_or(0, |held| held.kind().code()),
        registrants: U16::new(u16::try_from(state.registrants.len()).unwrap_or(u16::MAX)),
        reserved_7: [0; 2],
        persistent: u8::from(state.persistent),
        reserved_10: [0; 54],
    };
    let mut data = header.as_bytes().to_vec();
    for (host, key) in &state.registrants {
        if data.len() + size_of::<ReportRegistrant>() > length {
            break;
        }
        let registrant = ReportRegistrant {
            controller: U16::new(CONTROLLER_ANY),
            status: if state.holds(*host) { REGISTRANT_HOLDS } else { 0 },
            reserved_3: [0; 5],
            key: U64::new(key.0),
            host_id: host.0,
            reserved_32: [0; 32],
        };
        data.extend_from_slice(registrant.as_bytes());
    }
    data.resize(length, 0);
    Ok(data)
}
