//! Which parameter of a Connect was invalid (oF figure 20).

/// A field of Connect that a controller names when it refuses one with Connect Invalid Parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectField {
    /// QID, in the command.
    QueueId,
    /// SQSIZE, in the command.
    QueueSize,
    /// HOSTID, in the data.
    HostId,
    /// CNTLID, in the data.
    ControllerId,
    /// SUBNQN, in the data.
    SubsystemNqn,
    /// HOSTNQN, in the data.
    HostNqn,
}

/// IATTR, bit 0: the offset is one into the data, not into the command.
const IN_DATA: u32 = 1 << 16;

impl ConnectField {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::QueueId, Self::QueueSize, Self::HostId, Self::ControllerId, Self::SubsystemNqn, Self::HostNqn];

    /// Dword 0 of the completion: the field's offset in bytes (IPO, bits 15:0), and where that counts from (IATTR, bits 23:16).
    pub const fn code(self) -> u32 {
        match self {
            Self::QueueId => 42,
            Self::QueueSize => 44,
            Self::HostId => IN_DATA,
            Self::ControllerId => IN_DATA | 16,
            Self::SubsystemNqn => IN_DATA | 256,
            Self::HostNqn => IN_DATA | 512,
        }
    }

    /// The field that dword 0 of a completion names, if it names one of these.
    pub fn from_code(dword: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.code() == dword & 0x00ff_ffff)
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;
    use crate::fabrics::{Command, Connect, ConnectData};
    use zerocopy::IntoBytes;

    #[test]
    fn every_field_is_where_its_code_says() {
        for field in ConnectField::ALL {
            assert_eq!(ConnectField::from_code(field.code()), Some(field));
        }
        assert_eq!(ConnectField::from_code(0), None);
        let in_data = [
            (ConnectField::HostId, offset_of!(ConnectData, host_id)),
            (ConnectField::ControllerId, offset_of!(ConnectData, controller_id)),
            (ConnectField::SubsystemNqn, offset_of!(ConnectData, subsystem_nqn)),
            (ConnectField::HostNqn, offset_of!(ConnectData, host_nqn)),
        ];
        for (field, offset) in in_data {
            assert_eq!(field.code(), 1 << 16 | u32::try_from(offset).unwrap());
        }
        let fields =
            Connect { format: 0, queue_id: 0x1234, queue_size: 0x5679, attributes: 0, keep_alive_ms: 0 };
        let sqe = Command::Connect(fields).emit(1);
        let at = |field: ConnectField| &sqe.as_bytes()[field.code() as usize..][..2];
        assert_eq!([at(ConnectField::QueueId), at(ConnectField::QueueSize)], [[0x34, 0x12], [0x78, 0x56]]);
    }
}
