//! Operation codes.

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vdoc])* $variant = $value,)*
        }

        impl $name {
            /// Every code that this crate knows.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code, if known.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The byte on the wire.
            pub const fn code(self) -> u8 {
                self as u8
            }
        }
    };
}
pub(crate) use codes;

codes! {
    /// Admin commands (Base figure 138).
    Admin {
        /// Get Log Page (Base 5.16).
        GetLogPage = 0x02,
        /// Identify (Base 5.17).
        Identify = 0x06,
        /// Abort (Base 5.1).
        Abort = 0x08,
        /// Set Features (Base 5.27).
        SetFeatures = 0x09,
        /// Get Features (Base 5.15).
        GetFeatures = 0x0a,
        /// Asynchronous Event Request (Base 5.2).
        AsyncEventRequest = 0x0c,
        /// Keep Alive (Base 5.18).
        KeepAlive = 0x18,
        /// Fabrics commands (oF 3).
        Fabrics = 0x7f,
    }
}

codes! {
    /// I/O commands of the NVM command set (NVM figure 10) and the common ones (Base 7).
    Io {
        /// Flush (Base 7.1).
        Flush = 0x00,
        /// Write (NVM 3.2.6).
        Write = 0x01,
        /// Read (NVM 3.2.4).
        Read = 0x02,
        /// Write Uncorrectable (NVM 3.2.7).
        WriteUncorrectable = 0x04,
        /// Compare (NVM 3.2.1).
        Compare = 0x05,
        /// Write Zeroes (NVM 3.2.8).
        WriteZeroes = 0x08,
        /// Dataset Management (NVM 3.2.3).
        DatasetManagement = 0x09,
        /// Verify (NVM 3.2.5).
        Verify = 0x0c,
        /// Reservation Register (Base 7.3).
        ReservationRegister = 0x0d,
        /// Reservation Report (Base 7.5).
        ReservationReport = 0x0e,
        /// Reservation Acquire (Base 7.2).
        ReservationAcquire = 0x11,
        /// Reservation Release (Base 7.4).
        ReservationRelease = 0x15,
    }
}

codes! {
    /// Fabrics command types (oF figure 14).
    Fabrics {
        /// Property Set (oF 3.5).
        PropertySet = 0x00,
        /// Connect (oF 3.3).
        Connect = 0x01,
        /// Property Get (oF 3.4).
        PropertyGet = 0x04,
        /// Authentication Send (oF 3.2).
        AuthenticationSend = 0x05,
        /// Authentication Receive (oF 3.1).
        AuthenticationReceive = 0x06,
        /// Disconnect (oF 3.6).
        Disconnect = 0x08,
    }
}

/// Which way a command's data moves: bits 1:0 of an opcode, or of a fabrics command type (Base figure 138, oF 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// From host to controller.
    ToController,
    /// From controller to host.
    ToHost,
    /// Both; no command of this crate does it.
    Both,
}

impl Direction {
    /// Reads the two lowest bits of `code`.
    pub const fn of(code: u8) -> Self {
        match code & 3 {
            0 => Direction::None,
            1 => Direction::ToController,
            2 => Direction::ToHost,
            _ => Direction::Both,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for code in 0..=u8::MAX {
            assert!(Admin::from_code(code).is_none_or(|known| known.code() == code));
            assert!(Io::from_code(code).is_none_or(|known| known.code() == code));
            assert!(Fabrics::from_code(code).is_none_or(|known| known.code() == code));
        }
    }

    #[test]
    fn directions_follow_the_low_bits() {
        assert_eq!(Direction::of(Io::Write.code()), Direction::ToController);
        assert_eq!(Direction::of(Io::Read.code()), Direction::ToHost);
        assert_eq!(Direction::of(Io::DatasetManagement.code()), Direction::ToController);
        assert_eq!(Direction::of(Fabrics::Connect.code()), Direction::ToController);
        assert_eq!(Direction::of(Fabrics::Disconnect.code()), Direction::None);
    }
}
