//! Settings of a target.

use std::time::Duration;

use basalt_nvmf_transport::TransportLimits;

/// Settings of a TCP target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpTargetOptions {
    /// What controllers tell their hosts.
    pub limits: TransportLimits,
    /// Most bytes of data in one H2CData PDU (MAXH2CDATA): at least 4096, a multiple of four.
    pub host_data_max: u32,
    /// Connections of this reactor; more are closed at once.
    pub connections_max: usize,
    /// Connections from one address; more are closed at once.
    pub connections_per_address_max: usize,
    /// Time that a connection has until its Connect succeeded; then it is closed.
    pub connect_timeout: Duration,
    /// Time that a peer has to close after a termination request; then the connection is closed (TCP 3.5).
    pub termination_timeout: Duration,
}

impl Default for TcpTargetOptions {
    fn default() -> Self {
        Self {
            limits: TransportLimits {
                in_capsule_bytes_max: 8192,
                transfer_bytes_max: 128 << 10,
                queue_entries_max: 256,
            },
            host_data_max: 128 << 10,
            connections_max: 4096,
            connections_per_address_max: 2048,
            connect_timeout: Duration::from_secs(10),
            termination_timeout: Duration::from_secs(5),
        }
    }
}
