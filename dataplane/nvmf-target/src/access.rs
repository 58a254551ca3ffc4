//! Which hosts may connect.

use std::collections::BTreeSet;

use basalt_nvmf_transport::Nqn;

/// The hosts that may connect to a subsystem. The default is nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHosts {
    /// These and no others; an empty set is nobody.
    Only(BTreeSet<Nqn>),
    /// Any host: the `"*"` of a configuration.
    Any,
}

impl Default for AllowedHosts {
    fn default() -> Self {
        Self::Only(BTreeSet::new())
    }
}

impl AllowedHosts {
    /// Whether `host` may connect.
    pub fn allows(&self, host: &Nqn) -> bool {
        match self {
            AllowedHosts::Only(hosts) => hosts.contains(host),
            AllowedHosts::Any => true,
        }
    }
}

impl FromIterator<Nqn> for AllowedHosts {
    fn from_iter<I: IntoIterator<Item = Nqn>>(hosts: I) -> Self {
        Self::Only(hosts.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_the_default() {
        let host = Nqn::new("nqn.2026-01.io.basalt:host").unwrap();
        assert!(!AllowedHosts::default().allows(&host));
        assert!(AllowedHosts::Any.allows(&host));
        let only: AllowedHosts = [host.clone()].into_iter().collect();
        assert!(only.allows(&host));
        assert!(!only.allows(&Nqn::new("nqn.2026-01.io.basalt:other").unwrap()));
    }
}
