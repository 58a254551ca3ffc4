//! Discovery: where subsystems can be reached (oF 5).

use std::fmt;
use std::net::SocketAddr;

use basalt_nvme_wire::fabrics::{
    CONTROLLER_ANY, DiscoveryEntry, DiscoveryHeader, FAMILY_IPV4, FAMILY_IPV6, REQUIREMENTS_OPEN,
    SUBSYSTEM_NVM, TRANSPORT_TCP, nqn_field,
};
use basalt_nvme_wire::identify::{blank_padded, zeroed};
use basalt_nvmf_transport::Nqn;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

/// Entries of an admin queue that discovery tells hosts (oF figure 34, ASQSZ; at least 32).
const ADMIN_QUEUE_ENTRIES: u16 = 32;

/// A listener: where it is bound, and what discovery tells hosts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerAddress {
    bind: SocketAddr,
    advertise_host: String,
    advertise_port: u16,
}

/// An address to advertise that hosts could not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListenerAddressError {
    /// Empty or longer than the 255 bytes of a discovery entry.
    #[error("the address to advertise has {0} bytes; 1 to 255 are possible")]
    Length(usize),
    /// A character that is not printable ASCII.
    #[error("the address to advertise holds a character that is not printable ASCII")]
    Character,
}

impl ListenerAddress {
    /// A listener that hosts reach where it is bound.
    pub fn new(bind: SocketAddr) -> Self {
        Self { bind, advertise_host: bind.ip().to_string(), advertise_port: bind.port() }
    }

    /// A listener that hosts reach under another address or port.
    ///
    /// # Errors
    /// [`ListenerAddressError`].
    pub fn advertised(bind: SocketAddr, host: &str, port: u16) -> Result<Self, ListenerAddressError> {
        if host.is_empty() || host.len() > 255 {
            return Err(ListenerAddressError::Length(host.len()));
        }
        if !host.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ListenerAddressError::Character);
        }
        Ok(Self { bind, advertise_host: host.to_owned(), advertise_port: port })
    }

    /// The same with the port that the system chose where port 0 was asked for.
    #[must_use]
    pub fn with_bound(mut self, bound: SocketAddr) -> Self {
        if self.advertise_port == 0 {
            self.advertise_port = bound.port();
        }
        self.bind = bound;
        self
    }

    /// Where it is bound.
    pub fn bind(&self) -> SocketAddr {
        self.bind
    }

    /// Host part of what is advertised.
    pub fn host(&self) -> &str {
        &self.advertise_host
    }

    /// Port of what is advertised.
    pub fn port(&self) -> u16 {
        self.advertise_port
    }

    fn family(&self) -> u8 {
        if self.bind.is_ipv6() { FAMILY_IPV6 } else { FAMILY_IPV4 }
    }
}

impl fmt::Display for ListenerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (advertised as {} port {})", self.bind, self.advertise_host, self.advertise_port)
    }
}

/// The discovery log page: every subsystem at every listener.
pub(crate) fn page(generation: u64, subsystems: &[Nqn], listeners: &[ListenerAddress]) -> Vec<u8> {
    let mut header: DiscoveryHeader = zeroed();
    header.generation = U64::new(generation);
    header.records = U64::new(subsystems.len() as u64 * listeners.len() as u64);
    let mut page = header.as_bytes().to_vec();
    for nqn in subsystems {
        for (port, listener) in (1..).zip(listeners) {
            page.extend_from_slice(entry(nqn, listener, port).as_bytes());
        }
    }
    page
}

fn entry(nqn: &Nqn, listener: &ListenerAddress, port: u16) -> DiscoveryEntry {
    let mut entry: DiscoveryEntry = zeroed();
    entry.transport = TRANSPORT_TCP;
    entry.family = listener.family();
    entry.subsystem_type = SUBSYSTEM_NVM;
    entry.requirements = REQUIREMENTS_OPEN;
    entry.port_id = U16::new(port);
    entry.controller_id = U16::new(CONTROLLER_ANY);
    entry.admin_queue_size = U16::new(ADMIN_QUEUE_ENTRIES);
    entry.service = blank_padded(&listener.port().to_string());
    entry.subsystem_nqn = nqn_field(nqn.as_str()).unwrap_or([0; 256]);
    entry.address = blank_padded(listener.host());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_lists_every_subsystem_at_every_listener() {
        let nqn = Nqn::new("nqn.2026-01.io.basalt:a").unwrap();
        let first = ListenerAddress::new("127.0.0.1:4420".parse().unwrap());
        let second = ListenerAddress::advertised("[::]:4421".parse().unwrap(), "node-1", 4500).unwrap();
        let page = page(7, &[nqn], &[first, second]);
        assert_eq!(page.len(), 3 * 1024);
        assert_eq!((page[0], page[8]), (7, 2));
        let entry = &page[1024..2048];
        assert_eq!(entry[..4], [3, 1, 2, 6]);
        assert_eq!(&entry[32..37], b"4420 ");
        assert_eq!(&entry[256..279], b"nqn.2026-01.io.basalt:a");
        assert_eq!(&entry[512..522], b"127.0.0.1 ");
        let entry = &page[2048..];
        assert_eq!((entry[1], entry[4]), (2, 2));
        assert_eq!(&entry[512..519], b"node-1 ");
    }

    #[test]
    fn addresses_that_cannot_be_told_are_refused() {
        let bind = "127.0.0.1:4420".parse().unwrap();
        assert_eq!(ListenerAddress::advertised(bind, "", 1), Err(ListenerAddressError::Length(0)));
        assert_eq!(ListenerAddress::advertised(bind, "a b", 1), Err(ListenerAddressError::Character));
    }
}
