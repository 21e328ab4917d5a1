//! Progress, as data: the CLI draws it, Python will.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// The job begins: bytes to read and modules to handle, what a resumed job already has included.
    Start {
        /// Bytes to read.
        source_bytes: u64,
        /// Modules and plain tensors.
        modules: usize,
    },
    /// Work on a module or tensor begins.
    Module {
        /// Its name (hostile input).
        name: &'a str,
    },
    /// So many more bytes of the source are done.
    Advance {
        /// Bytes.
        source_bytes: u64,
    },
    /// A shard is complete and durable.
    Shard {
        /// Its name.
        name: &'a str,
        /// Its length.
        len_bytes: u64,
    },
    /// The result is being published.
    Commit,
    /// Something worth a line.
    Note {
        /// The line.
        text: &'a str,
    },
}

/// Who listens.
pub trait Events: Sync {
    /// Called from one thread at a time.
    fn event(&self, event: Event<'_>);

    /// Seconds on the listener's own clock, from whatever point on; asked from any thread. Libraries have no clock: without one
    /// nobody measures how long modules take.
    fn seconds(&self) -> Option<f64> {
        None
    }
}

/// Lets another thread (a signal handler's) stop a job at the next tile.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks the job to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_canceled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
