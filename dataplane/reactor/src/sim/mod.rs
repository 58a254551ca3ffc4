//! A simulated world: time, disks and a network that one seed determines, and the driver that stands in it.
