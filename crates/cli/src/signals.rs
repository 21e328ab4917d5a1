//! Ctrl-C and its relatives: the first one asks the job to stop at the next tile, the second one ends the process.

use std::thread;

use safequant::rewrite::CancelToken;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::exit::{Exit, Failure};
use crate::output;

/// Listens until it is dropped.
pub(crate) struct Listener {
    handle: Handle,
}

impl Listener {
    /// Begins to listen; the first signal is answered with `note`.
    ///
    /// # Errors
    /// If the system does not let us.
    pub(crate) fn install(cancel: CancelToken, note: &'static str) -> Result<Self, Failure> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(Failure::Signals)?;
        let handle = signals.handle();
        let listen = move || {
            for _ in &mut signals {
                if cancel.is_canceled() {
                    leave_at_once();
                }
                cancel.cancel();
                output::note(note);
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(listen)
            .map_err(Failure::Signals)?;
        Ok(Self { handle })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// Like `kill -9`, but with a status of ours: the job's state is resumable at any moment.
#[expect(clippy::disallowed_methods, reason = "the second signal")]
fn leave_at_once() -> ! {
    std::process::exit(i32::from(Exit::Usage.status()))
}
