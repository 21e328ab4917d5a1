//! Long work away from the interpreter: its lock is released, Ctrl-C is heard, and events come back to the calling thread.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use safequant::CancelToken;

/// How long a signal may wait.
const PATIENCE: Duration = Duration::from_millis(50);

/// Runs `work` on a thread of its own until it is done. Whatever it sends is given to `tell` on the calling thread, attached to
/// the interpreter. A signal handler that raises (Ctrl-C), or `tell` that fails, cancels the work; its exception is what comes
/// back, once the work has stopped.
///
/// # Errors
/// That exception.
pub(crate) fn run<M: Send, T: Send>(
    py: Python<'_>,
    cancel: &CancelToken,
    work: impl FnOnce(Sender<M>) -> T + Send,
    mut tell: impl FnMut(Python<'_>, M) -> PyResult<()> + Send,
) -> PyResult<T> {
    py.detach(|| {
        thread::scope(|scope| {
            let (sender, receiver) = channel();
            let worker = scope.spawn(|| work(sender));
            let heard = listen(&receiver, &mut tell);
            if heard.is_err() {
                cancel.cancel();
            }
            let done = worker.join();
            heard?;
            // A panic is a defect of ours: it goes on, and becomes pyo3's PanicException.
            Ok(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })
}

/// Until the work has dropped its sender.
fn listen<M>(
    receiver: &Receiver<M>,
    tell: &mut impl FnMut(Python<'_>, M) -> PyResult<()>,
) -> PyResult<()> {
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok(message) => Python::attach(|py| tell(py, message))?,
            Err(RecvTimeoutError::Timeout) => ask_for_signals()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method alone is not general enough in its lifetime"
)]
fn ask_for_signals() -> PyResult<()> {
    Python::attach(|py| py.check_signals())
}

/// As [`run`], for work that tells nothing.
///
/// # Errors
/// As there.
pub(crate) fn run_quietly<T: Send>(
    py: Python<'_>,
    cancel: &CancelToken,
    work: impl FnOnce() -> T + Send,
) -> PyResult<T> {
    let hold = |_sender: Sender<()>| work();
    run(py, cancel, hold, |_, ()| Ok(()))
}
