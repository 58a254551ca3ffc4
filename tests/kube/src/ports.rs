//! Free ports on loopback.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};

use crate::Error;

/// Below the kernel's range for outgoing connections, so that no client takes a port between choosing and listening.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// Picks `count` different ports on which nothing listens on 127.0.0.1, from a random place on.
///
/// # Errors
/// [`Error::NoPorts`] when there are not that many.
pub fn free_ports(count: usize) -> Result<Vec<u16>, Error> {
    let span = u64::from(LAST - FIRST) + 1;
    let start = RandomState::new().build_hasher().finish() % span;
    let ports: Vec<u16> = (0..span)
        .filter_map(|step| u16::try_from(u64::from(FIRST) + (start + step) % span).ok())
        .filter(|port| is_free_port(*port))
        .take(count)
        .collect();
    if ports.len() == count {
        Ok(ports)
    } else {
        Err(Error::NoPorts { wanted: count, first: FIRST, last: LAST })
    }
}

/// Whether nothing listens on `port` of 127.0.0.1.
#[must_use]
pub fn is_free_port(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_different() {
        let mut ports = free_ports(64).unwrap();
        assert!(ports.iter().all(|port| (FIRST..=LAST).contains(port)));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 64);
    }

    #[test]
    fn a_port_in_use_is_not_free() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free_port(held.local_addr().unwrap().port()));
    }

    #[test]
    fn more_ports_than_there_are_is_an_error() {
        assert!(matches!(free_ports(20_000), Err(Error::NoPorts { wanted: 20_000, .. })));
    }
}
