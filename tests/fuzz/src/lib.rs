//! Fuzzing of everything that reads foreign bytes: parsers, the target's and the host's state machines, and whole NVMe/TCP
//! sessions in a simulated world.
//!
//! A [`Target`] is a function of bytes that must neither panic nor run for ever. [`run`] gives it the committed corpus as it is and
//! then mutated, as a seed says: the same seed, the same inputs. It needs no nightly compiler and no instrumentation; what it lacks in
//! guidance the corpora make up for, which reach deep states by themselves. Begin reading at [`targets`].
#![allow(clippy::print_stdout, reason = "the program prints its results")]

mod corpus;
mod mutate;
pub mod run;
pub mod seeds;
pub mod sessions;
pub mod targets;

pub use corpus::{Corpus, folder as corpus_folder};
pub use mutate::Mutator;
pub use targets::Target;
