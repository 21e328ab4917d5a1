//! Progress of a job: a bar on a terminal, a line now and then elsewhere, nothing with `--quiet`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use safequant::rewrite::{Event, Events};

use crate::output::{self, MAX_NOTES, Name, Output};

/// Time between two lines where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A bar that redraws itself.
    Bar,
    /// Plain lines.
    Lines,
    /// Nothing but notes.
    Quiet,
}

impl Style {
    /// The style for this run.
    pub(crate) fn choose(quiet: bool, output: Output) -> Self {
        match (quiet, output.draws()) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        }
    }
}

/// Listens to a job and shows what it hears on standard error.
pub(crate) struct Progress {
    output: Output,
    style: Style,
    bar: ProgressBar,
    state: Mutex<State>,
}

struct State {
    started: Instant,
    last_line: Instant,
    total_bytes: u64,
    done_bytes: u64,
    modules: usize,
    begun_modules: usize,
    notes: usize,
}

impl Progress {
    /// Begins to listen.
    pub(crate) fn new(style: Style, output: Output) -> Self {
        let bar = match style {
            Style::Bar => {
                ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10))
            }
            Style::Lines | Style::Quiet => ProgressBar::hidden(),
        };
        bar.set_style(bar_style());
        let now = Instant::now();
        let state = State {
            started: now,
            last_line: now,
            total_bytes: 0,
            done_bytes: 0,
            modules: 0,
            begun_modules: 0,
            notes: 0,
        };
        Self {
            output,
            style,
            bar,
            state: Mutex::new(state),
        }
    }

    /// Removes the bar; what was listened to is over.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Seconds since the beginning.
    pub(crate) fn elapsed(&self) -> f64 {
        self.state().started.elapsed().as_secs_f64()
    }

    /// Nothing that is done under the lock can leave the state half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line that must not be painted over by the bar.
    fn say(&self, text: &str) {
        self.bar.suspend(|| output::note(text));
    }

    fn line(&self, text: &str) {
        if self.style == Style::Lines {
            output::note(text);
        }
    }

    fn start(&self, source_bytes: u64, modules: usize) {
        let mut state = self.state();
        state.total_bytes = source_bytes;
        state.modules = modules;
        self.bar.set_length(source_bytes);
        self.line(&format!(
            "reading {} in {modules} modules and tensors",
            output::bytes(source_bytes)
        ));
    }

    fn module(&self, name: &str) {
        let mut state = self.state();
        state.begun_modules += 1;
        self.bar.set_message(format!(
            "{}/{} {}",
            state.begun_modules,
            state.modules,
            short(name)
        ));
    }

    fn advance(&self, source_bytes: u64) {
        let mut state = self.state();
        state.done_bytes = state.done_bytes.saturating_add(source_bytes);
        self.bar.set_position(state.done_bytes);
        if state.last_line.elapsed() >= LINE_EVERY {
            state.last_line = Instant::now();
            self.line(&state.line());
        }
    }

    /// A note, unless there were too many.
    pub(crate) fn remark(&self, text: &str) {
        let mut state = self.state();
        state.notes += 1;
        match state.notes {
            n if n <= MAX_NOTES => self.bar.suspend(|| self.output.remark(text)),
            n if n == MAX_NOTES + 1 => self.say("further notes are not shown"),
            _ => {}
        }
    }
}

impl Events for Progress {
    fn seconds(&self) -> Option<f64> {
        Some(self.elapsed())
    }

    fn event(&self, event: Event<'_>) {
        match event {
            Event::Start {
                source_bytes,
                modules,
            } => self.start(source_bytes, modules),
            Event::Module { name } => self.module(name),
            Event::Advance { source_bytes } => self.advance(source_bytes),
            Event::Shard { name, len_bytes } => {
                self.line(&format!(
                    "{}: {} written",
                    Name(name),
                    output::bytes(len_bytes)
                ));
            }
            Event::Commit => self.line("publishing"),
            Event::Note { text } => self.remark(text),
        }
    }
}

impl State {
    /// `42% 1.2 GiB of 2.9 GiB, 130/291 modules, 0.92 GB/s, 2 min 03 s left`.
    fn line(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let done = output::real(self.done_bytes);
        let total = output::real(self.total_bytes).max(1.0);
        let left = seconds * (total - done).max(0.0) / done.max(1.0);
        format!(
            "{:.0}% {} of {}, {}/{} modules, {}, {} left",
            100.0 * done / total,
            output::bytes(self.done_bytes),
            output::bytes(self.total_bytes),
            self.begun_modules,
            self.modules,
            output::rate(self.done_bytes, seconds),
            output::duration(left),
        )
    }
}

/// `[=====>    ] 1.2 GiB/2.9 GiB 0.92 GB/s ETA 12s 130/291 model.layers.3.mlp.up_proj`.
fn bar_style() -> ProgressStyle {
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{:.2} GB/s", state.per_sec() / 1e9);
    };
    ProgressStyle::with_template(
        "[{bar:24}] {binary_bytes}/{binary_total_bytes} {rate} ETA {eta} {wide_msg}",
    )
    .map_or_else(
        |_| ProgressStyle::default_bar(),
        |style| style.with_key("rate", rate).progress_chars("=> "),
    )
}

/// The end of a long name says more than its beginning.
fn short(name: &str) -> String {
    const MAX_CHARS: usize = 48;
    let shown = Name(name).to_string();
    match shown.chars().count().checked_sub(MAX_CHARS) {
        None | Some(0) => shown,
        Some(cut) => format!("..{}", shown.chars().skip(cut + 2).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Color;

    #[test]
    fn a_flood_of_notes_is_bounded_and_any_event_order_is_survived() {
        let progress = Progress::new(Style::Quiet, Output::new(Color::Never));
        progress.event(Event::Advance {
            source_bytes: u64::MAX,
        });
        progress.event(Event::Advance {
            source_bytes: u64::MAX,
        });
        progress.event(Event::Module { name: "\u{1b}[31m" });
        assert!(progress.state().line().starts_with("184467"));
        assert_eq!(short("\u{1b}"), "\\u{1b}");
        assert_eq!(short(&"x".repeat(100)).chars().count(), 48);
    }
}
