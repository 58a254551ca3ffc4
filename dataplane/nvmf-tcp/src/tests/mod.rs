//! Both ends over a pipe in memory: any chunking, any bytes.

mod abort;
mod pipe;
mod raw;
mod rig;

mod chunks;
mod complaints;
mod entries;
mod fused;
mod garbage;
mod heads;
mod memory;
mod reservations;
mod time;
mod violations;
