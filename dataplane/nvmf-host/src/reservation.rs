//! Reservation commands (Base 7.2 to 7.5).

use basalt_dma::Buffer;
use basalt_nvme_wire::Sqe;
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::reservation::{Acquire, Register, Release, Report};
use zerocopy::little_endian::U32;

use crate::command::{Command, Data};

impl Command {
    /// Registers this host with namespace `nsid`, or ends or changes its registration.
    pub fn register(nsid: u32, register: &Register) -> Self {
        let mut sqe = entry(Io::ReservationRegister, nsid);
        let data = Data::Bytes(register.emit(&mut sqe).to_vec());
        Self { sqe, data }
    }

    /// Takes the reservation of namespace `nsid`, or preempts.
    pub fn acquire(nsid: u32, acquire: &Acquire) -> Self {
        let mut sqe = entry(Io::ReservationAcquire, nsid);
        let data = Data::Bytes(acquire.emit(&mut sqe).to_vec());
        Self { sqe, data }
    }

    /// Gives the reservation of namespace `nsid` up, or clears it.
    pub fn release(nsid: u32, release: &Release) -> Self {
        let mut sqe = entry(Io::ReservationRelease, nsid);
        let data = Data::Bytes(release.emit(&mut sqe).to_vec());
        Self { sqe, data }
    }

    /// Asks for `bytes` bytes of the extended report of namespace `nsid`: 64 and 64 for each registrant.
    ///
    /// # Panics
    /// If `bytes` is not a positive multiple of four.
    pub fn report(nsid: u32, bytes: u32) -> Self {
        let mut sqe = entry(Io::ReservationReport, nsid);
        Report { length: u64::from(bytes), extended: true }.emit(&mut sqe);
        Self { sqe, data: Data::ToHost(Buffer::zeroed(bytes as usize)) }
    }
}

fn entry(opcode: Io, nsid: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode.code(), 0);
    sqe.nsid = U32::new(nsid);
    sqe
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_nvme_wire::reservation::{
        AcquireAction, PersistenceChange, RegisterAction, ReservationKey, ReservationType,
    };

    #[test]
    fn commands_carry_their_keys() {
        let register = Register {
            action: RegisterAction::Register,
            ignore_key: false,
            persistence: PersistenceChange::Keep,
            current: ReservationKey(0),
            new: ReservationKey(7),
        };
        let command = Command::register(3, &register);
        assert_eq!((command.sqe.opcode, command.sqe.nsid.get()), (0x0d, 3));
        let Data::Bytes(data) = &command.data else { panic!("keys are data") };
        assert_eq!(Register::parse(&command.sqe, data), Ok(register));
        let acquire = Acquire {
            action: AcquireAction::Preempt,
            ignore_key: false,
            kind: ReservationType::WriteExclusive,
            current: ReservationKey(7),
            preempted: ReservationKey(8),
        };
        let command = Command::acquire(3, &acquire);
        let Data::Bytes(data) = &command.data else { panic!("keys are data") };
        assert_eq!(Acquire::parse(&command.sqe, data), Ok(acquire));
        let report = Command::report(3, 128);
        assert_eq!(Report::parse(&report.sqe), Report { length: 128, extended: true });
    }
}
