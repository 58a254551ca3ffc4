//! Runs the production code of the control plane and the data plane in one simulated world.
//!
//! One seed decides everything: the order of events, the network, the disks, the clocks, what clients ask for and which
//! faults strike. The same seed gives the same trace. Begin reading at [`scenario`]; [`run`] guards one run, [`batch`] runs
//! many, [`planted`] checks the checkers. Never touches a socket, a file or a clock of the operating system.

pub mod batch;
pub mod blocks;
pub mod catalogue;
pub mod cluster;
pub mod control;
pub mod data;
pub mod drift;
pub mod findings;
pub mod history;
pub mod holding;
pub mod linearize;
pub mod network;
pub mod pattern;
pub mod planted;
pub mod run;
pub mod scenario;
pub mod scheduler;
pub mod trace;
