//! Tiny checkpoints for tests, built in memory or in a temporary folder.

mod fault_disk;

pub use fault_disk::{Fault, FaultDisk, Operation};
