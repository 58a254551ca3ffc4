//! What is fuzzed.

mod controller;
mod host;
mod wire;

use crate::sessions;

/// Something that takes any bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// What it covers.
    pub what: &'static str,
    /// Mutated inputs in a run of some seconds.
    pub cases: u64,
    /// The function.
    pub run: fn(&[u8]),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every target.
pub const ALL: &[Target] = &[
    Target { name: "pdu", what: "NVMe/TCP PDUs, both receivers", cases: 1_000_000, run: wire::pdu },
    Target { name: "command", what: "submission entries and their data", cases: 500_000, run: wire::command },
    Target {
        name: "page",
        what: "identify data, log pages and reports, as a host reads them",
        cases: 300_000,
        run: wire::page,
    },
    Target { name: "reservation", what: "saved reservations", cases: 500_000, run: wire::reservation },
    Target {
        name: "controller",
        what: "the target's core: any commands on admin and I/O queues",
        cases: 60_000,
        run: controller::run,
    },
    Target {
        name: "bringup",
        what: "the host's core: any answers while a controller is brought up or discovered",
        cases: 200_000,
        run: host::run,
    },
    Target {
        name: "hostile-host",
        what: "a session of valid and damaged PDUs beside a legitimate host",
        cases: 240,
        run: sessions::hostile_host,
    },
    Target {
        name: "hostile-stream",
        what: "a host's byte stream, damaged, beside a legitimate host",
        cases: 160,
        run: sessions::hostile_stream,
    },
    Target {
        name: "hostile-controller",
        what: "a controller's byte stream, damaged, against our host",
        cases: 2_000,
        run: sessions::hostile_controller,
    },
    Target {
        name: "hostile-wire",
        what: "a wire that damages what a host and the target say",
        cases: 240,
        run: sessions::hostile_wire,
    },
];

/// The target with this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
