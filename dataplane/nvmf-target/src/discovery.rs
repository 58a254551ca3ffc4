//! Discovery: where subsystems can be reached (oF 5).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

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
    /// A listener that hosts reach where it is bound; one that is bound to all addresses of its machine, at the address at which they reach
    /// its discovery.
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

    /// Whether connections to `address` of this machine can reach it, as far as families go.
    fn takes(&self, address: IpAddr) -> bool {
        self.bind.is_ipv6() || address.is_ipv4()
    }

    /// Where a host that has reached `here` reaches this listener: family and address; `None` if no address is known to it.
    fn told(&self, here: Option<IpAddr>) -> Option<(u8, String)> {
        let advertised = self.advertise_host.parse::<IpAddr>();
        let family = |address: IpAddr| if address.is_ipv6() { FAMILY_IPV6 } else { FAMILY_IPV4 };
        match (advertised, here.map(|here| here.to_canonical())) {
            (Err(_), _) => Some((family(self.bind.ip()), self.advertise_host.clone())),
            (Ok(address), _) if !address.is_unspecified() => {
                Some((family(address), self.advertise_host.clone()))
            }
            (Ok(_), Some(here)) if self.takes(here) => Some((family(here), here.to_string())),
            (Ok(_), _) => None,
        }
    }
}

impl fmt::Display for ListenerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bind, advertise_host, advertise_port } = self;
        match advertise_host.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() => {
                write!(f, "{bind} (advertised at the address that is reached, port {advertise_port})")
            }
            _ => write!(f, "{bind} (advertised as {advertise_host} port {advertise_port})"),
        }
    }
}

/// The discovery log page for a host that has reached `here`: every subsystem at every listener that it can reach.
pub(crate) fn page(
    generation: u64,
    subsystems: &[Nqn],
    listeners: &[ListenerAddress],
    here: Option<IpAddr>,
) -> Vec<u8> {
    let ports: Vec<Port<'_>> = (1..)
        .zip(listeners)
        .filter_map(|(id, listener)| {
            let (family, host) = listener.told(here)?;
            Some(Port { id, listener, family, host })
        })
        .collect();
    let mut header: DiscoveryHeader = zeroed();
    header.generation = U64::new(generation);
    header.records = U64::new(subsystems.len() as u64 * ports.len() as u64);
    let mut page = header.as_bytes().to_vec();
    for nqn in subsystems {
        for port in &ports {
            page.extend_from_slice(entry(nqn, port).as_bytes());
        }
    }
    page
}

/// A listener as a host is told of it.
struct Port<'a> {
    id: u16,
    listener: &'a ListenerAddress,
    family: u8,
    host: String,
}

fn entry(nqn: &Nqn, port: &Port<'_>) -> DiscoveryEntry {
    let mut entry: DiscoveryEntry = zeroed();
    entry.transport = TRANSPORT_TCP;
    entry.family = port.family;
    entry.subsystem_type = SUBSYSTEM_NVM;
    entry.requirements = REQUIREMENTS_OPEN;
    entry.port_id = U16::new(port.id);
    entry.controller_id = U16::new(CONTROLLER_ANY);
    entry.admin_queue_size = U16::new(ADMIN_QUEUE_ENTRIES);
    entry.service = blank_padded(&port.listener.port().to_string());
    entry.subsystem_nqn = nqn_field(nqn.as_str()).unwrap_or([0; 256]);
    entry.address = blank_padded(&port.host);
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
        let page = page(7, &[nqn], &[first, second], None);
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

    /// Families, addresses and ports of the entries for a host that has reached `here`.
    fn told(listeners: &[ListenerAddress], here: &str) -> Vec<(u8, String, String)> {
        let nqn = Nqn::new("nqn.2026-01.io.basalt:a").unwrap();
        let page = page(1, &[nqn], listeners, Some(here.parse().unwrap()));
        let (header, entries) = page.split_at(1024);
        assert_eq!(usize::from(header[8]), entries.len() / 1024);
        let text = |field: &[u8]| String::from_utf8_lossy(field).trim_end().to_owned();
        entries.chunks(1024).map(|e| (e[1], text(&e[512..768]), text(&e[32..64]))).collect()
    }

    #[test]
    fn a_listener_on_all_addresses_is_told_at_the_one_that_the_host_has_reached() {
        let listens = |bind: &str| ListenerAddress::new(bind.parse().unwrap());
        let entry = |family, host: &str, port: &str| (family, host.to_owned(), port.to_owned());
        let ipv4 = [listens("0.0.0.0:4420"), listens("192.0.2.9:4421")];
        let other = entry(1, "192.0.2.9", "4421");
        assert_eq!(
            ipv4[0].to_string(),
            "0.0.0.0:4420 (advertised at the address that is reached, port 4420)"
        );
        assert_eq!(told(&ipv4, "192.0.2.1"), [entry(1, "192.0.2.1", "4420"), other.clone()]);
        assert_eq!(told(&ipv4, "2001:db8::1"), [other], "it does not listen there");
        let both = [listens("[::]:4420")];
        assert_eq!(told(&both, "2001:db8::1"), [entry(2, "2001:db8::1", "4420")]);
        assert_eq!(told(&both, "::ffff:192.0.2.1"), [entry(1, "192.0.2.1", "4420")]);
        let named = ListenerAddress::advertised("0.0.0.0:4420".parse().unwrap(), "198.51.100.7", 4500);
        assert_eq!(told(&[named.unwrap()], "192.0.2.1"), [entry(1, "198.51.100.7", "4500")]);
        let translated = ListenerAddress::advertised("[::]:4420".parse().unwrap(), "198.51.100.7", 4500);
        assert_eq!(told(&[translated.unwrap()], "192.0.2.1"), [entry(1, "198.51.100.7", "4500")]);
    }

    #[test]
    fn addresses_that_cannot_be_told_are_refused() {
        let bind = "127.0.0.1:4420".parse().unwrap();
        assert_eq!(ListenerAddress::advertised(bind, "", 1), Err(ListenerAddressError::Length(0)));
        assert_eq!(ListenerAddress::advertised(bind, "a b", 1), Err(ListenerAddressError::Character));
    }
}
