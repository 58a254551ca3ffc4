//! Both ends over a pipe in memory: any chunking, any bytes.

mod pipe;
mod rig;

mod chunks;
mod garbage;
mod time;
mod violations;
