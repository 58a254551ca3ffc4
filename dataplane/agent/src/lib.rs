//! The node agent: from the desired state of a node to pools, volumes and exports, and back to a report of what is.
//!
//! [`Agent::start`] takes the last desired state from the [`StateStore`] and begins to make it true, with or without a control
//! plane; [`Agent::apply`] takes a newer one. A task on the reactor compares desired with actual, does what is missing, tries again with
//! back-off what failed, and tells the [`Reporter`] whenever the truth changed. Nothing is ever deleted because it is missing from
//! the desired state: only a [`Tombstone`] deletes.
//!
//! The crate knows neither files nor sockets nor the wire: disks, target and memory are ports, which the daemon and the simulator fill.
//! Begin reading at [`Agent`].

mod agent;
mod desired;
mod disk_health;
mod growth;
mod items;
mod listeners;
mod notify;
pub mod nvme_tcp;
mod pools;
mod ports;
mod report;
mod reporting;
mod usage;
mod volumes;

pub use agent::{Agent, AgentConfig, PoolCounts, Ports, Refused};
pub use desired::{
    AllowedHosts, Content, DesiredDisk, DesiredListener, DesiredNode, DesiredPool, DesiredVolume, Provision,
    Tombstone,
};
pub use ports::{DiskOpener, Export, ExportError, Exporter, LocalFuture, Reporter, StateStore, StoreError};
pub use report::{
    DeletedVolume, DiskHealth, DiskReport, NodeReport, PoolHealth, PoolReport, Problem, Reason, VolumeHealth,
    VolumeReport,
};
